// Intel's AMX: eight registers of up to 16 rows x 64 bytes, tiles, and an instruction that multiplies two of them.
//
// TDPBSUD c, a, b (Intel SDM, volume 2): c[m][n] += a[m][k] · b[k][n], summed over k, where an element of a is four
// signed bytes, one of b four unsigned bytes, and their product the dot of the four. So activations are a, and the
// codes of a block are b as packing.py lays them out. Sums are of 32 bits and exact.
#pragma once
#include <cstdint>

#if defined(__AMX_TILE__) && defined(__AMX_INT8__) && defined(__linux__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

constexpr bool TILES = true;

static bool permitted() {  // ARCH_REQ_XCOMP_PERM for XTILEDATA: tiles make a thread's state 8 KB larger, so Linux wants to be asked
  return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
}

// Compilers know neither that a tile is read from memory nor how much: GCC 12 would drop what was written for it alone.
static inline void written(const void* memory) { asm volatile("" : : "r"(memory) : "memory"); }

struct Shaped {  // tiles of this thread as products take them, for as long as this lives; then as they were
  struct alignas(64) Shapes { uint8_t palette, start, reserved[14]; uint16_t bytes[16]; uint8_t rows[16]; } before, shapes{};
  bool used;
  explicit Shaped(bool used) : used(used) {
    if (!used) return;
    shapes.palette = 1;
    for (int i = 0; i < 8; i++) shapes.rows[i] = i < 6 ? 16 : 8, shapes.bytes[i] = i == 4 || i == 5 ? 32 : 64;
    written(&shapes);
    _tile_storeconfig(&before);
    _tile_loadconfig(&shapes);
  }
  ~Shaped() { if (used) _tile_loadconfig(&before); }
};

// dots[16][16] of 16 rows of q, `width` apart, and 32 x 16 codes. Tiles are numbered in the instruction; calls in `turn`
// use others, so that none waits for the one before to be stored.
static inline void tile_of_dots(int turn, const int8_t* q, int64_t width, const uint8_t* codes, int32_t* dots) {
#define PRODUCT(c, a, b) \
  _tile_zero(c); _tile_loadd(a, q, width); _tile_loadd(b, codes, 64); _tile_dpbsud(c, a, b); _tile_stored(c, dots, 64)
  switch (turn % 4) {
    case 0: PRODUCT(0, 4, 6); break;
    case 1: PRODUCT(1, 5, 7); break;
    case 2: PRODUCT(2, 4, 6); break;
    default: PRODUCT(3, 5, 7);
  }
#undef PRODUCT
}

#else
constexpr bool TILES = false;
static constexpr bool permitted() { return false; }
static inline void written(const void*) {}
struct Shaped { explicit Shaped(bool) {} };
static inline void tile_of_dots(int, const int8_t*, int64_t, const uint8_t*, int32_t*) {}
#endif
