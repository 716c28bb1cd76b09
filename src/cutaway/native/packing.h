// Weights as a file stores them, laid out as the kernels read them; packing.py says what a panel looks like, and
// cutaway/weights/blocks.py what a block of each format. The same bytes as packing.py makes of the same numbers.
#pragma once
#include <omp.h>
#include <sys/mman.h>

#include <algorithm>

#include "simd.h"

enum Format { F32 = 0, F16 = 1, Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8, Q4_K = 12, Q5_K = 13, Q6_K = 14, BF16 = 30, MXFP4 = 39 };

template <class Number> static inline Number at(const uint8_t* p) { Number n; memcpy(&n, p, sizeof n); return n; }
static inline float half_at(const uint8_t* p) { return one_half(at<uint16_t>(p)); }

struct Coded {  // 32 inputs of one output; second: the offset, or the scale of the second half
  uint8_t code[32];
  float scale, second;
};

template <int FORMAT> static inline Coded coded(const uint8_t* row, int64_t g) {  // the g-th 32 of a row
  Coded c{};
  if constexpr (FORMAT == Q8_0) {
    const uint8_t* b = row + 34 * g;
    for (int i = 0; i < 32; i++) c.code[i] = b[2 + i] ^ 128;
    c.scale = half_at(b);
  } else if constexpr (FORMAT == Q4_K || FORMAT == Q5_K) {
    const uint8_t *b = row + g / 8 * (FORMAT == Q5_K ? 176 : 144), *six = b + 4;
    const uint8_t* q = b + (FORMAT == Q5_K ? 48 : 16) + g % 8 / 2 * 32;
    int j = g % 8, shift = j % 2 * 4;
    for (int i = 0; i < 32; i++) c.code[i] = (q[i] >> shift & 15) | (FORMAT == Q5_K ? (b[16 + i] >> j & 1) << 4 : 0);
    c.scale = half_at(b) * (float)(j < 4 ? six[j] & 63 : (six[j + 4] & 15) | six[j - 4] >> 6 << 4);
    c.second = -half_at(b + 2) * (float)(j < 4 ? six[j + 4] & 63 : six[j + 4] >> 4 | six[j] >> 6 << 4);
  } else if constexpr (FORMAT == Q6_K) {
    const uint8_t* b = row + g / 8 * 210;
    int j = g % 8, half = j / 4, part = j % 4;
    const uint8_t *low = b + 64 * half + part % 2 * 32, *high = b + 128 + 32 * half;
    for (int i = 0; i < 32; i++) c.code[i] = (low[i] >> part / 2 * 4 & 15) | (high[i] >> 2 * part & 3) << 4;
    c.scale = half_at(b + 208) * (float)(int8_t)b[192 + 2 * j];
    c.second = half_at(b + 208) * (float)(int8_t)b[193 + 2 * j];
  } else {
    constexpr int least = FORMAT == Q4_1 || FORMAT == Q5_1 ? 2 : 0, fifth = FORMAT == Q5_0 || FORMAT == Q5_1 ? 4 : 0;
    const uint8_t *b = row + g * (18 + least + fifth), *q = b + 2 + least + fifth;
    uint32_t high = fifth ? at<uint32_t>(b + 2 + least) : 0;
    for (int i = 0; i < 16; i++) {
      c.code[i] = (q[i] & 15) | (high >> i & 1) << 4;
      c.code[i + 16] = q[i] >> 4 | (high >> i >> 16 & 1) << 4;
    }
    c.scale = half_at(b);
    if (least) c.second = half_at(b + 2);
  }
  return c;
}

static inline bool put_halves(uint8_t* p, const float* numbers) {  // false if one is too large
  uint16_t halves[LANES];
  store_half(halves, load(numbers));
  memcpy(p, halves, sizeof halves);
  return std::all_of(halves, halves + LANES, [](uint16_t h) { return (h & 0x7c00) != 0x7c00; });
}

// A panel: up to 16 rows, the others zero.
template <int FORMAT, int BITS, int NUMBERS> static bool panel_of_coded(const uint8_t* const* rows, int count, int64_t groups, uint8_t* block) {
  constexpr int CODES = BITS == 8 ? 512 : 256, PLANES = BITS == 8 ? 0 : BITS - 4;
  bool fine = true;
  for (int64_t g = 0; g < groups; g++, block += CODES + 64 * PLANES + 32 * NUMBERS) {
    float scale[LANES], second[LANES];
    memset(block + CODES, 0, 64 * PLANES);
    for (int lane = 0; lane < LANES; lane++) {
      Coded c = lane < count ? coded<FORMAT>(rows[lane], g) : Coded{};
      scale[lane] = c.scale, second[lane] = c.second;
      for (int step = 0; step < 8; step++) {
        uint32_t four = at<uint32_t>(c.code + 4 * step);
        for (int p = 0; p < PLANES; p++) {  // bit 4 + p of each of the four bytes, side by side
          uint32_t bits = (four >> (4 + p) & 0x01010101u) * 0x10204080u >> 28;
          block[CODES + 64 * p + 8 * step + lane / 2] |= bits << lane % 2 * 4;
        }
        if (BITS == 8) {
          memcpy(block + 64 * step + 4 * lane, &four, 4);
        } else if (step % 2 == 0) {
          uint32_t both = (four & 0x0f0f0f0fu) | (at<uint32_t>(c.code + 4 * step + 4) & 0x0f0f0f0fu) << 4;
          memcpy(block + 32 * step + 4 * lane, &both, 4);
        }
      }
    }
    uint8_t* numbers = block + CODES + 64 * PLANES;
    fine &= put_halves(numbers, scale);
    if (NUMBERS == 2) fine &= put_halves(numbers + 32, second);
  }
  return fine;
}

static inline float microscaled(const uint8_t* row, int64_t k) {
  static const float values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
  const uint8_t *b = row + k / 32 * 17, byte = b[1 + k % 16];
  return values[k % 32 < 16 ? byte & 15 : byte >> 4] * std::ldexp(1.0f, b[0] - 128);
}

template <int FORMAT> static bool panel_of_numbers(const uint8_t* const* rows, int count, int64_t groups, uint8_t* block) {
  constexpr int SIZE = FORMAT == BF16 ? 2 : 4;
  for (int64_t k = 0; k < 32 * groups; k++, block += SIZE * LANES) {
    memset(block, 0, SIZE * LANES);
    for (int lane = 0; lane < count; lane++) {
      const uint8_t* row = rows[lane];
      if (FORMAT == F32 || FORMAT == BF16) { memcpy(block + SIZE * lane, row + SIZE * k, SIZE); continue; }
      float number = FORMAT == F16 ? half_at(row + 2 * k) : microscaled(row, k);
      memcpy(block + SIZE * lane, &number, SIZE);
    }
  }
  return true;
}

using Panel = bool (*)(const uint8_t* const* rows, int count, int64_t groups, uint8_t* block);

static Panel panel_of(int format) {
  switch (format) {
    case F32: return panel_of_numbers<F32>;
    case F16: return panel_of_numbers<F16>;
    case BF16: return panel_of_numbers<BF16>;
    case MXFP4: return panel_of_numbers<MXFP4>;
    case Q4_0: return panel_of_coded<Q4_0, 4, 1>;
    case Q4_1: return panel_of_coded<Q4_1, 4, 2>;
    case Q5_0: return panel_of_coded<Q5_0, 5, 1>;
    case Q5_1: return panel_of_coded<Q5_1, 5, 2>;
    case Q8_0: return panel_of_coded<Q8_0, 8, 1>;
    case Q4_K: return panel_of_coded<Q4_K, 4, 2>;
    case Q5_K: return panel_of_coded<Q5_K, 5, 2>;
    case Q6_K: return panel_of_coded<Q6_K, 6, 2>;
    default: return nullptr;
  }
}

// Pages of 2 MiB spare a look into the page table for every 4 KiB read: a tenth of the time of a large matrix.
static void in_large_pages(uint8_t* memory, int64_t size) {
#ifdef MADV_HUGEPAGE
  uintptr_t page = 4096, first = ((uintptr_t)memory + page - 1) / page * page, end = ((uintptr_t)memory + size) / page * page;
  if (end > first) madvise((void*)first, end - first, MADV_HUGEPAGE);
#endif
}

// rows: where each of the n rows of 32 * groups weights lies. blocks: room for whole panels. Gives 0, or 1 if a scale
// does not fit float16, or 2 if the format is unknown.
extern "C" int cutaway_pack(int format, const uint8_t* const* rows, int64_t n, int64_t groups, int64_t block, uint8_t* blocks, int threads) {
  Panel pack = panel_of(format);
  if (!pack) return 2;
  int64_t panels = (n + LANES - 1) / LANES;
  in_large_pages(blocks, panels * groups * block);
  bool fine = true;
#pragma omp parallel for num_threads(threads) reduction(&& : fine) schedule(dynamic, 4)
  for (int64_t p = 0; p < panels; p++)
    fine = pack(rows + p * LANES, (int)std::min<int64_t>(LANES, n - p * LANES), groups, blocks + p * groups * block) && fine;
  return fine ? 0 : 1;
}
