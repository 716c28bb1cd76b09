// A step of the engine as a tape of a few kinds of operations, run by all threads together.
//
// Every output number is computed by one thread, in an order that depends neither on how many rows are computed
// together nor on how many threads there are: a sequence's logits are the same bits alone and in any batch.
//
// Legend: T tokens of the batch, R rows whose logits are wanted, N outputs and K inputs of a matrix, H heads,
// G key/value heads, E numbers of a head.
#include <omp.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <vector>

#include "packing.h"
#include "sampling.h"
#include "simd.h"
#include "tiles.h"

constexpr int GROUP = 32;   // inputs that share a step when activations are made integers
constexpr int PAGE = 32;    // tokens of a page
constexpr int CHUNK = 512;  // keys whose attention is summed up before it is merged with that of others
constexpr int PIECE = 8192; // logits whose sum is one item
constexpr int TILE = 8;     // rows that share a panel of weights while it is in registers
constexpr int MOST = TILES ? 64 : TILE;  // rows whose sums are kept until they are finished
constexpr int AHEAD = 8;    // groups between the one that is multiplied and the one that memory is asked for
constexpr int RUN = 4;      // groups whose codes are unpacked before the first becomes a tile
#ifndef CUTAWAY_TILED
#define CUTAWAY_TILED 9     // rows from which a tile of 16, some of them wasted, is faster than `panel_of_codes`
#endif

// ---- what the tape is made of -------------------------------------------------------------------------------

struct Matrix {     // N x K in panels of 16 outputs, see packing.py
  const uint8_t* blocks;
  int32_t n, k;
  int32_t bits;     // 32 and 16: floats; 4, 5, 6, 8: w = scale * (code - zero) + offset
  int32_t zero, offset, halves;  // offset: is there one? halves: a scale for every 16 inputs instead of 32
  int32_t bytes;    // of a block: 16 outputs x 32 inputs
  int32_t unused;
};

struct Rows {       // activations: floats and, for matrices of integers, codes with a step and a sum per group
  float* x;
  int8_t* q;
  float* step;
  int32_t* sum;     // per 16 codes
  float* mass;      // step times sum, per group
  int32_t width, unused;
};

struct Update {     // what an adapter adds to a product: B (A x), see "adapters"
  const Matrix* a;  // A of all matrices that the product joins, one below the other; null: nothing is added
  const void* b;    // [.., 16] of B
  const struct Share {  // of each panel: its ranks among those of A, its row in b, and what the two are multiplied by
    int32_t first, rank, at;
    float scale;
  }* shares;
  int32_t bits, unused;  // of a number of B, 32 or 16
};

enum Kind { EMBED, NORM, LINEAR, FEED, TURN, ATTEND, MERGE, WEIGH, SHRINK };
enum Activation { NONE, SILU, GELU, GELU_TANH, QUICK_GELU, RELU, RELU2 };

struct Op {
  int32_t kind, activation;
  int32_t of_rows;          // 1: over the R wanted rows instead of the T tokens
  int32_t add;              // 1: add to what is there
  int32_t heads, kv_heads, head_dim, window;  // window 0: none
  int32_t turning, gated, layered, quantize;  // turning: coordinates of a head that turn. layered: LayerNorm
  float eps, scale, softcap;
  int32_t coded;            // 1: pages hold codes of 8 bits, see `Kept`
  int32_t target;           // which update of an adapter is added, counted from 1; 0: none
  Rows* in;
  Rows* out;
  const Matrix* matrix;
  const float *weight, *bias;      // of norms, or a bias of a matrix
  const float *q_norm, *k_norm;
  const float *cos, *sin;          // [positions, turning / 2]
  const float *sinks, *table;      // table: rows added to embeddings, by position
  uint8_t *keys, *values;          // pages [P, G, E, 32] and [P, G, 32, E], see `Kept`
};

struct Batch {
  int32_t tokens, rows, sequences, stride;  // stride: of a row of `tables`
  const int32_t *ids, *positions, *owner;   // [T]; owner: which sequence
  const int32_t *first, *start, *tables;    // [S + 1] first token, [S] its position, [S, stride] pages
  const int32_t* wanted;                    // [R] tokens
  float* partial;                           // scratch for attention in chunks
  int64_t partial_size;
  const Update* const* adapters;            // [S] null: none; all null: nobody has one
  float* shrunk;                            // [T, shrunk_width] A x of the operation that comes next
  int64_t shrunk_width;
};

struct Team {  // who shares the items of an operation. Nobody waits for a thread that is late, only for items that are not done
  int size;
  std::atomic<int64_t>*taken, *done;
  template <class Work> void share(int64_t items, int64_t chunk, Work work) {  // items in runs of `chunk`, as they come
    if (size == 1) {
      for (int64_t i = 0; i < items; i++) work(i);
      return;
    }
    for (int64_t from; (from = taken->fetch_add(chunk, std::memory_order_relaxed)) < items;) {
      int64_t to = std::min(items, from + chunk);
      for (int64_t i = from; i < to; i++) work(i);
      done->fetch_add(to - from, std::memory_order_acq_rel);
    }
    for (int spins = 0; done->load(std::memory_order_acquire) < items; spins++)
      if (spins > 20000) sched_yield();
      else __builtin_ia32_pause();
  }
};

// ---- activations ---------------------------------------------------------------------------------------------

static void quantize_group(const float* x, int8_t* q, float* step, int32_t* sum, float* mass) {  // w = step * q, |q| <= 127
  F a = load(x), b = load(x + LANES);
  float size = largest(max(abs(a), abs(b))), inverse = size > 1e-30f ? 127.0f / size : 0.0f;
  I qa = to_int(a * all(inverse)), qb = to_int(b * all(inverse));
  store_bytes(q, qa);
  store_bytes(q + LANES, qb);
  *step = size / 127.0f;
  sum[0] = total(qa);
  sum[1] = total(qb);
  *mass = *step * (float)(sum[0] + sum[1]);
}

static void quantize_row(Rows& r, int64_t row, int from, int to) {
  for (int k = from; k < to; k += GROUP) {
    int64_t at = row * r.width + k;
    quantize_group(r.x + at, r.q + at, r.step + at / GROUP, r.sum + at / LANES, r.mass + at / GROUP);
  }
}

static inline F error_function(F x) {  // Abramowitz & Stegun 7.1.26, off by at most 1.5e-7
  F size = abs(x), t = all(1.0f) / fma(all(0.3275911f), size, all(1.0f));
  F p = fma(all(1.061405429f), t, all(-1.453152027f));
  p = fma(p, t, all(1.421413741f));
  p = fma(p, t, all(-0.284496736f));
  p = fma(p, t, all(0.254829592f));
  F y = all(1.0f) - p * t * exponential(all(0.0f) - size * size);
  return y * (x / max(size, all(1e-30f)));
}

static inline F logistic(F x) { return all(1.0f) / (all(1.0f) + exponential(all(0.0f) - x)); }
static inline F hyperbolic_tangent(F x) { return fma(all(2.0f), logistic(x + x), all(-1.0f)); }

static inline F activate(int kind, F x) {
  switch (kind) {
    case SILU: return x * logistic(x);
    case GELU: return all(0.5f) * x * (all(1.0f) + error_function(x * all(0.70710678118f)));
    case GELU_TANH: return x * logistic(all(1.59576912161f) * fma(all(0.044715f) * x * x, x, x));
    case QUICK_GELU: return x * logistic(all(1.702f) * x);
    case RELU: return max(x, all(0.0f));
    case RELU2: { F y = max(x, all(0.0f)); return y * y; }
    default: return x;
  }
}

// ---- matrices ------------------------------------------------------------------------------------------------

template <int CODE, bool SECOND, bool TWO> struct Form {  // of a block: bits of a code; an offset? a scale for each half?
  static constexpr int BITS = CODE, CODES = BITS == 8 ? 512 : 256, PLANES = BITS == 8 ? 0 : BITS - 4;
  static constexpr bool OFFSET = SECOND, HALVES = TWO;
  static const uint16_t* scales(const uint8_t* block) { return (const uint16_t*)(block + CODES + 64 * PLANES); }
};

template <class Form, class Each> static inline void each_step(const uint8_t* block, Each each) {  // codes of inputs 4 step ... 4 step + 3
  auto whole = [&](U codes, int step) {
    const uint8_t* plane = block + Form::CODES + 8 * step;
    uint64_t bits;
    for (int p = 0; p < Form::PLANES; p++) memcpy(&bits, plane + 64 * p, 8), codes = with_bit(codes, bits, 16 << p);
    each(codes, step);
  };
  if (Form::BITS == 8) {
    UNROLLED for (int step = 0; step < 8; step++) whole(load_bytes(block + 64 * step), step);
  } else {
    UNROLLED for (int pair = 0; pair < 4; pair++) {
      U both = load_bytes(block + 64 * pair);
      whole(low_halves(both), 2 * pair);
      whole(high_halves(both), 2 * pair + 1);
    }
  }
}

template <class Form> static inline void begin(const Matrix& w, const Rows& in, int64_t group, I& dot, I& late) {  // what the zero takes off
  const int32_t* sum = in.sum + 2 * group;
  if (Form::HALVES) dot = all(-w.zero * sum[0]), late = all(-w.zero * sum[1]);
  else dot = Form::OFFSET ? all(0) : all(-w.zero * (sum[0] + sum[1]));
}

template <class Form> static inline F grown(F sum, I dot, I late, F scale, F second, const Rows& in, int64_t group) {
  F step = all(in.step[group]);
  sum = fma(to_float(dot), scale * step, sum);
  if (Form::HALVES) return fma(to_float(late), second * step, sum);
  return Form::OFFSET ? fma(second, all(in.mass[group]), sum) : sum;
}

// Rows m ... m + M - 1 times one panel. Integer products of a group are exact; then one float sum, group after group.
template <class Form, int M> static inline void panel_of_codes(const Matrix& w, const uint8_t* block, const Rows& in, int64_t row, F* sums) {
  const int64_t groups = in.width / GROUP, first = row * groups;
  for (int m = 0; m < M; m++) sums[m] = all(0.0f);
  for (int g = 0; g < w.k / GROUP; g++, block += w.bytes) {
    for (int line = 0; line < w.bytes; line += 64) __builtin_prefetch(block + AHEAD * w.bytes + line);
    I dots[M], late[M];
    for (int m = 0; m < M; m++) begin<Form>(w, in, first + m * groups + g, dots[m], late[m]);
    each_step<Form>(block, [&](U codes, int step) {
      for (int m = 0; m < M; m++) {
        int32_t four;
        memcpy(&four, in.q + (first + m * groups + g) * GROUP + 4 * step, 4);
        I& dot = Form::HALVES && step >= 4 ? late[m] : dots[m];
        dot = dot4(dot, codes, four);
      }
    });
    const uint16_t* scales = Form::scales(block);
    F scale = load_half(scales), second = Form::HALVES || Form::OFFSET ? load_half(scales + LANES) : scale;
    for (int m = 0; m < M; m++) sums[m] = grown<Form>(sums[m], dots[m], late[m], scale, second, in, first + m * groups + g);
  }
}

// The same numbers of `count` rows by tiles of 16, see tiles.h. What a tile reads beyond the last row is not used.
template <class Form> static void panel_of_tiles(const Matrix& w, const uint8_t* block, const Rows& in, int64_t row, int count, F* sums) {
  constexpr int PIECES = Form::HALVES ? 2 : 1;  // tiles of a group; where there are two, the codes of the other half are 0
  alignas(64) uint8_t codes[RUN * PIECES][512] = {};
  alignas(64) int32_t dots[RUN * PIECES][16][LANES];
  for (int m = 0; m < count; m++) sums[m] = all(0.0f);
  for (int g = 0, here; g < w.k / GROUP; g += here, block += here * w.bytes) {
    here = std::min(RUN, w.k / GROUP - g);
    F scale[RUN], second[RUN];
    for (int r = 0; r < here; r++) {
      const uint16_t* scales = Form::scales(block + r * w.bytes);
      scale[r] = load_half(scales), second[r] = Form::HALVES || Form::OFFSET ? load_half(scales + LANES) : scale[r];
      if (Form::BITS == 8) continue;
      each_step<Form>(block + r * w.bytes, [&](U made, int step) { memcpy(codes[r * PIECES + step / 4 % PIECES] + 64 * step, &made, 64); });
    }
    written(codes);
    for (int from = 0; from < count; from += 16) {
      const int8_t* q = in.q + (row + from) * in.width + g * GROUP;
      for (int i = 0; i < here * PIECES; i++)
        tile_of_dots(i, q + i / PIECES * GROUP, in.width, Form::BITS == 8 ? block + i * w.bytes : codes[i], dots[i][0]);
      for (int m = 0; m < std::min(16, count - from); m++) {
        int64_t group = (row + from + m) * (in.width / GROUP) + g;
        F sum = sums[from + m];
        for (int r = 0; r < here; r++) {
          I dot, late, zero, none{};
          memcpy(&dot, dots[r * PIECES][m], 64);
          memcpy(&late, dots[r * PIECES + PIECES - 1][m], 64);
          begin<Form>(w, in, group + r, zero, none);
          sum = grown<Form>(sum, dot + zero, late + none, scale[r], second[r], in, group + r);
        }
        sums[from + m] = sum;
      }
    }
  }
}

template <class Form> static bool tiles_agree() {  // a product of numbers at random, by tiles and without
  constexpr int GROUPS = RUN + 1, COUNT = 17, BYTES = Form::CODES + 64 * Form::PLANES + 32 * (1 + Form::HALVES);
  uint8_t blocks[GROUPS * BYTES];
  int8_t q[32 * GROUPS * GROUP];
  float step[COUNT * GROUPS];
  int32_t sum[2 * COUNT * GROUPS];
  uint32_t seed = 1;
  auto draw = [&] { return seed = seed * 1664525u + 1013904223u, seed >> 16; };
  for (auto& b : blocks) b = draw();
  for (auto& b : q) b = std::max(-127, (int)(int8_t)draw());
  for (auto& s : step) s = draw();
  for (auto& s : sum) s = draw();
  for (int g = 0; g < GROUPS; g++)
    for (int i = 0; i < LANES * (1 + Form::HALVES); i++) ((uint16_t*)Form::scales(blocks + g * BYTES))[i] = 0x3000 + draw() % 0x800;
  Matrix w{blocks, LANES, GROUPS * GROUP, Form::BITS, 32, Form::OFFSET, Form::HALVES, BYTES, 0};
  Rows in{nullptr, q, step, sum, nullptr, GROUPS * GROUP, 0};
  F tiled[COUNT], plain;
  panel_of_tiles<Form>(w, blocks, in, 0, COUNT, tiled);
  for (int m = 0; m < COUNT; m++)
    if (panel_of_codes<Form, 1>(w, blocks, in, m, &plain); memcmp(&plain, &tiled[m], sizeof plain)) return false;
  return true;
}

static bool tiles() {  // whether to use them: the processor has them, the system lends them, and they give the right numbers
  static const bool right = permitted() && (Shaped(true), tiles_agree<Form<8, false, false>>() && tiles_agree<Form<6, false, true>>());
  return right;
}

template <int BITS, int M>
static inline void panel_of_floats(const Matrix& w, const uint8_t* block, const Rows& in, int64_t row, F* sums) {
  for (int m = 0; m < M; m++) sums[m] = all(0.0f);
  for (int k = 0; k < w.k; k++, block += LANES * BITS / 8) {
    F weight = BITS == 32 ? load((const float*)block) : load_brain((const uint16_t*)block);
    for (int m = 0; m < M; m++) sums[m] = fma(weight, all(in.x[(row + m) * in.width + k]), sums[m]);
  }
}

template <class Run> static inline void with_form(const Matrix& w, Run run) {
  switch (w.bits) {
    case 4: return w.offset ? run(Form<4, true, false>()) : run(Form<4, false, false>());
    case 5: return w.offset ? run(Form<5, true, false>()) : run(Form<5, false, false>());
    case 6: return run(Form<6, false, true>());
    default: return w.offset ? run(Form<8, true, false>()) : run(Form<8, false, false>());
  }
}

template <int M> using Size = std::integral_constant<int, M>;

// `finish(row, sums)` for every row from `row` up to `end`; a unit is `panels` panels that are finished together.
template <class Finish> static void multiply(const Matrix& w, const Rows& in, int64_t unit, int panels, int64_t row, int64_t end, Finish finish) {
  F sums[4 * MOST];
  auto together = [&](int64_t count, auto panel) {
    for (int p = 0; p < panels; p++) panel(w.blocks + (unit * panels + p) * (w.k / GROUP) * w.bytes, sums + p * MOST);
    for (int m = 0; m < count; m++) finish(row + m, sums + m);
    row += count;
  };
  auto few = [&](auto size) {
    constexpr int M = decltype(size)::value;
    together(M, [&](const uint8_t* block, F* sums) {
      if (w.bits == 16) panel_of_floats<16, M>(w, block, in, row, sums);
      else if (w.bits == 32) panel_of_floats<32, M>(w, block, in, row, sums);
      else with_form(w, [&](auto form) { panel_of_codes<decltype(form), M>(w, block, in, row, sums); });
    });
  };
  int64_t tiled = w.bits < 16 && tiles() ? std::min(end, row + (end - row + 16 - CUTAWAY_TILED) / 16 * 16) : row;
  while (row < tiled) {
    int64_t count = std::min<int64_t>(tiled - row, MOST);
    together(count, [&](const uint8_t* block, F* sums) {
      with_form(w, [&](auto form) { panel_of_tiles<decltype(form)>(w, block, in, row, count, sums); });
    });
  }
  auto those = [&](auto... sizes) { (void)((row + sizes <= end && (few(sizes), true)) || ...); };
  while (row < end) those(Size<8>(), Size<7>(), Size<6>(), Size<5>(), Size<4>(), Size<3>(), Size<2>(), Size<1>());
}

// ---- adapters ------------------------------------------------------------------------------------------------

static inline const Update* update_of(const Op& op, const Batch& b, int sequence) {
  const Update* all = b.adapters[sequence];
  return all && all[op.target - 1].a ? &all[op.target - 1] : nullptr;
}

// A x of the rows that have an adapter, from the activations before they are made integers.
static void shrink(const Op& op, const Batch& b, Team& team) {
  if (!b.adapters) return;
  std::vector<int64_t> items(b.sequences + 1);  // first item of each sequence, one per panel of its A
  for (int s = 0; s < b.sequences; s++) {
    const Update* update = update_of(op, b, s);
    items[s + 1] = items[s] + (update ? (update->a->n + LANES - 1) / LANES : 0);
  }
  team.share(items[b.sequences], 1, [&](int64_t item) {
    int s = std::upper_bound(items.begin(), items.end(), item) - items.begin() - 1;
    int64_t index = item - items[s];
    multiply(*update_of(op, b, s)->a, *op.in, index, 1, b.first[s], b.first[s + 1], [&](int64_t row, const F* sum) {
      store(b.shrunk + row * b.shrunk_width + index * LANES, *sum);
    });
  });
}

template <int BITS> static inline F product_of_ranks(const float* shrunk, const uint8_t* column, int rank) {
  F sum = all(0.0f);
  for (int r = 0; r < rank; r++, column += LANES * BITS / 8) {
    __builtin_prefetch(column + rank * LANES * BITS / 8);  // of the next panel: each adapter lies somewhere else
    sum = fma(all(shrunk[r]), BITS == 32 ? load((const float*)column) : load_brain((const uint16_t*)column), sum);
  }
  return sum;
}

// The sum of a row and a panel, with what the row's adapter adds. Other rows keep their bits.
static inline F adapted(const Op& op, const Batch& b, int64_t row, int64_t panel, F sum) {
  if (!b.adapters || !op.target) return sum;
  const Update* update = update_of(op, b, b.owner[row]);
  if (!update) return sum;
  const Update::Share& share = update->shares[panel];
  if (!share.rank) return sum;
  const float* shrunk = b.shrunk + row * b.shrunk_width + share.first;
  const uint8_t* column = (const uint8_t*)update->b + (int64_t)share.at * LANES * update->bits / 8;
  F made = update->bits == 32 ? product_of_ranks<32>(shrunk, column, share.rank) : product_of_ranks<16>(shrunk, column, share.rank);
  return fma(all(share.scale), made, sum);
}

// ---- products ------------------------------------------------------------------------------------------------

static void linear(const Op& op, const Batch& b, Team& team) {
  int64_t count = op.of_rows ? b.rows : b.tokens;
  const Matrix& w = *op.matrix;
  team.share((w.n + LANES - 1) / LANES, 4, [&](int64_t index) {
    F bias = op.bias ? load(op.bias + index * LANES) : all(0.0f);
    multiply(w, *op.in, index, 1, 0, count, [&](int64_t row, const F* sum) {
      float* out = op.out->x + row * op.out->width + index * LANES;
      F made = adapted(op, b, row, index, op.bias ? *sum + bias : *sum);
      store(out, op.add ? load(out) + made : made);
    });
  });
}

// The hidden units of a feed-forward layer. Gated: rows of W come as 32 of the gate, then the same 32 of the other.
static void feed(const Op& op, const Batch& b, Team& team) {
  const Matrix& w = *op.matrix;
  int panels = op.gated ? 4 : 2;
  team.share(w.n / (panels * LANES), 1, [&](int64_t unit) {
    auto made = [&](const F* sums, int64_t row, int p) {
      F sum = sums[p * MOST];
      return adapted(op, b, row, unit * panels + p, op.bias ? sum + load(op.bias + (unit * panels + p) * LANES) : sum);
    };
    multiply(w, *op.in, unit, panels, 0, b.tokens, [&](int64_t row, const F* sums) {
      float* out = op.out->x + row * op.out->width + unit * GROUP;
      for (int p = 0; p < 2; p++) {
        F hidden = activate(op.activation, made(sums, row, p));
        store(out + p * LANES, op.gated ? hidden * made(sums, row, 2 + p) : hidden);
      }
      if (op.quantize) quantize_row(*op.out, row, unit * GROUP, (unit + 1) * GROUP);
    });
  });
}

static void row_of(const Matrix& w, int64_t n, float* out) {  // the weights of output n
  int lane = n % LANES;
  for (int k = 0; k < w.k; k++) {
    const uint8_t* block = w.blocks + ((n / LANES) * (w.k / GROUP) + k / GROUP) * (int64_t)w.bytes;
    int i = k % GROUP;
    if (w.bits >= 16) {
      float wide[LANES];
      const uint8_t* at = block + i * LANES * w.bits / 8;
      store(wide, w.bits == 32 ? load((const float*)at) : load_brain((const uint16_t*)at));
      out[k] = wide[lane];
      continue;
    }
    int step = i / 4, within = 4 * lane + i % 4, codes = w.bits == 8 ? 512 : 256, planes = w.bits == 8 ? 0 : w.bits - 4, code;
    if (w.bits == 8) code = block[64 * step + within];
    else code = step % 2 ? block[32 * (step - 1) + within] >> 4 : block[32 * step + within] & 15;
    for (int p = 0; p < planes; p++) code += (block[codes + 64 * p + 8 * step + within / 8] >> within % 8 & 1) * (16 << p);
    const uint16_t* scales = (const uint16_t*)(block + codes + 64 * planes);
    float scale = one_half(scales[(w.halves && i >= LANES ? LANES : 0) + lane]);
    out[k] = w.offset ? scale * code + one_half(scales[LANES + lane]) : scale * (code - w.zero);
  }
}

static void embed(const Op& op, const Batch& b, Team& team) {
  team.share(b.tokens, 1, [&](int64_t t) {
    float* out = op.out->x + t * op.out->width;
    row_of(*op.matrix, b.ids[t], out);
    for (int k = 0; k < op.matrix->k; k += LANES) {
      F x = load(out + k) * all(op.scale);
      store(out + k, op.table ? x + load(op.table + b.positions[t] * (int64_t)op.matrix->k + k) : x);
    }
  });
}

// ---- norms ---------------------------------------------------------------------------------------------------

static void normalize(const float* x, int width, const Op& op, const float* weight, const float* bias, bool layered, float* out, bool add) {
  F mean = all(0.0f), squares = all(0.0f);
  if (layered) {
    F sum = all(0.0f);
    for (int k = 0; k < width; k += LANES) sum = sum + load(x + k);
    mean = all(total(sum) / width);
  }
  for (int k = 0; k < width; k += LANES) {
    F centered = load(x + k) - mean;
    squares = fma(centered, centered, squares);
  }
  F inverse = all(1.0f / std::sqrt(total(squares) / width + op.eps));
  for (int k = 0; k < width; k += LANES) {
    F made = (load(x + k) - mean) * inverse * load(weight + k);
    if (bias) made = made + load(bias + k);
    store(out + k, add ? load(out + k) + made : made);
  }
}

static void norm(const Op& op, const Batch& b, Team& team) {
  team.share(op.of_rows ? b.rows : b.tokens, 1, [&](int64_t row) {
    int64_t from = op.of_rows ? b.wanted[row] : row;
    int width = op.in->width;
    const float* x = op.in->x + from * width;
    float* out = op.out->x + row * width;
    if (op.weight) normalize(x, width, op, op.weight, op.bias, op.layered, out, op.add);
    else memcpy(out, x, width * sizeof(float));
    if (op.quantize) quantize_row(*op.out, row, 0, width);
  });
}

// ---- attention -----------------------------------------------------------------------------------------------

static void turn_head(float* x, const Op& op, int64_t position) {  // pairs (j, j + turning / 2)
  int half = op.turning / 2;
  const float *cos = op.cos + position * half, *sin = op.sin + position * half;
  for (int j = 0; j < half; j++) {
    float a = x[j], c = x[j + half];
    x[j] = a * cos[j] - c * sin[j];
    x[j + half] = c * cos[j] + a * sin[j];
  }
}

// What a page holds of one key/value head, 32 x E numbers: float16; or codes of 8 bits and then a float16 scale for
// every 32 numbers of a token, [E / 32, 32 tokens]: 34 bytes instead of 64 for each number of a head.
template <bool CODED> struct Kept {
  static constexpr int BYTES = CODED ? PAGE + 2 : 2 * PAGE;  // per number of a head
  const uint8_t* at;
  F numbers(int i) const { return CODED ? load_codes((const int8_t*)at + i) : load_half((const uint16_t*)at + i); }  // i ... i + 15
  const uint16_t* scales(int E, int e) const { return (const uint16_t*)(at + E * PAGE) + e / GROUP * PAGE; }
};

template <bool CODED> static void keep(const float* x, uint8_t* page, int64_t slot, int E, bool value) {  // a token's numbers
  std::conditional_t<CODED, int8_t, uint16_t> row[1024], *numbers = (decltype(&row[0]))page;
  if constexpr (CODED) {
    uint16_t* scales = (uint16_t*)(page + E * PAGE);
    float step, mass;
    int32_t sum[2];
    for (int e = 0; e < E; e += GROUP) {
      quantize_group(x + e, row + e, &step, sum, &mass);
      scales[e / GROUP * PAGE + slot] = to_half(step);
    }
  } else {
    for (int e = 0; e < E; e += LANES) store_half(row + e, load(x + e));
  }
  for (int e = 0; e < E; e++) numbers[value ? slot * E + e : e * PAGE + slot] = row[e];
}

// Queries and keys are normalized and turned; keys and values go to the page that holds the token.
template <bool CODED> static void turn(const Op& op, const Batch& b, Team& team) {
  int E = op.head_dim, heads = op.heads + 2 * op.kv_heads;
  team.share((int64_t)b.tokens * heads, 4, [&](int64_t item) {
    int64_t t = item / heads, head = item % heads;
    float* x = op.in->x + t * op.in->width + head * E;
    int64_t position = b.positions[t];
    bool query = head < op.heads, value = head >= op.heads + op.kv_heads;
    const float* weight = query ? op.q_norm : op.k_norm;
    if (!value && weight) normalize(x, E, op, weight, nullptr, op.layered, x, false);
    if (!value && op.turning) turn_head(x, op, position);
    if (query) return;
    int64_t g = (head - op.heads) % op.kv_heads;
    int64_t page = b.tables[b.owner[t] * b.stride + position / PAGE] * (int64_t)op.kv_heads + g;
    keep<CODED>(x, (value ? op.values : op.keys) + page * E * Kept<CODED>::BYTES, position % PAGE, E, value);
  });
}

struct Sum {  // of one query over some keys: sum of exp(score - most) and of the values times that
  float most, mass;
  float* value;
};

static const float NOTHING = -1e30f;

// Queries of M rows over the keys of one page. Row m sees positions low[m] ... high[m], all rows together `from` ... `to`;
// what lies beyond is not touched: an earlier sequence may have left anything there. Pages lie anywhere in memory, so
// each is asked for before it is needed: the values while keys are read, the keys of the `next` page while values are.
template <int M, bool CODED>
static void page_of_keys(const Op& op, const float* const* query, const int64_t* low, const int64_t* high, int64_t from, int64_t to,
                         int64_t at, Kept<CODED> keys, Kept<CODED> values, const uint8_t* next, Sum* sums) {
  const int E = op.head_dim, begin = std::max<int64_t>(from - at, 0), end = std::min<int64_t>(to - at, PAGE);
  float weight[M][PAGE];
  F score[M][2], scale[2];
  for (int m = 0; m < M; m++) score[m][0] = score[m][1] = all(0.0f);
  for (int e = 0; e < E; e++) {
    F a = keys.numbers(e * PAGE), c = keys.numbers(e * PAGE + LANES);
    if (CODED && e % GROUP == 0) scale[0] = load_half(keys.scales(E, e)), scale[1] = load_half(keys.scales(E, e) + LANES);
    if (CODED) a = a * scale[0], c = c * scale[1];
    __builtin_prefetch(values.at + e * values.BYTES);
    for (int m = 0; m < M; m++) {
      F q = all(query[m][e]);
      score[m][0] = fma(q, a, score[m][0]);
      score[m][1] = fma(q, c, score[m][1]);
    }
  }
  for (int m = 0; m < M; m++) {
    bool partly = at < low[m] || at + PAGE - 1 > high[m];
    for (int half = 0; half < 2; half++) {
      F s = score[m][half] * all(op.scale);
      if (op.softcap > 0) s = all(op.softcap) * hyperbolic_tangent(s * all(1.0f / op.softcap));
      store(weight[m] + half * LANES, s);
    }
    for (int j = 0; partly && j < PAGE; j++)
      if (at + j < low[m] || at + j > high[m]) weight[m][j] = NOTHING;
    F a = load(weight[m]), c = load(weight[m] + LANES);
    float most = std::max(sums[m].most, largest(max(a, c)));
    store(weight[m], exponential(a - all(most)));
    store(weight[m] + LANES, exponential(c - all(most)));
    for (int j = 0; partly && j < PAGE; j++)
      if (at + j < low[m] || at + j > high[m]) weight[m][j] = 0.0f;
    if (most != sums[m].most) {  // what was summed up before fades
      float lanes[LANES];
      store(lanes, exponential(all(sums[m].most - most)));
      sums[m].most = most;
      sums[m].mass *= lanes[0];
      for (int e = 0; e < E; e += LANES) store(sums[m].value + e, load(sums[m].value + e) * all(lanes[0]));
    }
    sums[m].mass += total(load(weight[m]) + load(weight[m] + LANES));
  }
  for (int e = 0; e < E; e += 2 * LANES) {
    F made[M][2];
    float scaled[M][PAGE];  // weights times the scales of these values
    for (int m = 0; m < M; m++) {
      made[m][0] = load(sums[m].value + e), made[m][1] = load(sums[m].value + e + LANES);
      for (int j = 0; j < PAGE && CODED; j += LANES) store(scaled[m] + j, load(weight[m] + j) * load_half(values.scales(E, e) + j));
    }
    for (int j = begin; j < end; j++) {
      __builtin_prefetch(next + (e + j) * values.BYTES);
      F a = values.numbers(j * E + e), c = values.numbers(j * E + e + LANES);
      for (int m = 0; m < M; m++) {
        F w = all((CODED ? scaled : weight)[m][j]);
        made[m][0] = fma(w, a, made[m][0]);
        made[m][1] = fma(w, c, made[m][1]);
      }
    }
    for (int m = 0; m < M; m++) store(sums[m].value + e, made[m][0]), store(sums[m].value + e + LANES, made[m][1]);
  }
}

static void merge_into(Sum& whole, const Sum& part, int E) {
  float most = std::max(whole.most, part.most), lanes[2 * LANES];
  store(lanes, exponential(all(whole.most - most)));
  store(lanes + LANES, exponential(all(part.most - most)));
  float a = lanes[0], c = lanes[LANES];
  whole.most = most;
  whole.mass = whole.mass * a + part.mass * c;
  for (int e = 0; e < E; e += LANES) store(whole.value + e, fma(load(part.value + e), all(c), load(whole.value + e) * all(a)));
}

static void finish_head(const Op& op, Sum& sum, int64_t token, int head) {
  if (op.sinks) {  // a score that takes weight and gives nothing
    float none[1024] = {0};
    Sum sink{op.sinks[head], 1.0f, none};
    merge_into(sum, sink, op.head_dim);
  }
  float* out = op.out->x + token * op.out->width + head * op.head_dim;
  F inverse = all(1.0f / sum.mass);
  for (int e = 0; e < op.head_dim; e += LANES) store(out + e, load(sum.value + e) * inverse);
  if (op.quantize) quantize_row(*op.out, token, head * op.head_dim, (head + 1) * op.head_dim);
}

struct Plan {  // how the rows (token, head) of each sequence and key/value head are cut into items
  int group, tile, chunks;
  Plan(const Op& op, const Batch& b) {
    group = op.heads / op.kv_heads;
    tile = group <= TILE ? TILE / group * group : TILE;
    int64_t longest = 1;
    for (int s = 0; s < b.sequences; s++) longest = std::max<int64_t>(longest, b.start[s] + b.first[s + 1] - b.first[s]);
    chunks = (longest + CHUNK - 1) / CHUNK;
    int64_t need = (int64_t)b.tokens * op.heads * chunks * (op.head_dim + 2);
    if (b.tokens > 16 || need > b.partial_size) chunks = 1;  // enough items without cutting the keys
  }
};

template <int M, bool CODED>
static void attend_rows(const Op& op, const Batch& b, int s, int g, int64_t row, int chunk, int chunks, int group) {
  const int E = op.head_dim;
  const float* query[M];
  int64_t low[M], high[M], token[M], from = INT64_MAX, to = 0;
  int head[M];
  float value[M * 2][1024];
  Sum whole[M], part[M];
  for (int m = 0; m < M; m++) {
    token[m] = b.first[s] + (row + m) / group;
    head[m] = g * group + (row + m) % group;
    query[m] = op.in->x + token[m] * op.in->width + head[m] * E;
    high[m] = b.positions[token[m]];
    low[m] = op.window ? std::max<int64_t>(0, high[m] - op.window + 1) : 0;
    from = std::min(from, low[m]);
    to = std::max(to, high[m] + 1);
    whole[m] = {NOTHING, 0.0f, value[m]};
    part[m] = {NOTHING, 0.0f, value[M + m]};
    memset(value[m], 0, E * sizeof(float));
  }
  auto page_of = [&](int64_t at) { return (b.tables[s * b.stride + at / PAGE] * (int64_t)op.kv_heads + g) * E * Kept<CODED>::BYTES; };
  int64_t first = chunks > 1 ? chunk : from / CHUNK, last = chunks > 1 ? chunk + 1 : (to + CHUNK - 1) / CHUNK;
  for (int64_t c = first; c < last; c++) {
    for (int m = 0; m < M; m++) part[m].most = NOTHING, part[m].mass = 0, memset(part[m].value, 0, E * sizeof(float));
    for (int64_t at = std::max(c * CHUNK, from / PAGE * PAGE); at < std::min((c + 1) * CHUNK, to); at += PAGE) {
      int64_t here = page_of(at), next = at + PAGE < to ? page_of(at + PAGE) : here;
      page_of_keys<M, CODED>(op, query, low, high, from, to, at, {op.keys + here}, {op.values + here}, op.keys + next, part);
    }
    for (int m = 0; m < M; m++)
      if (part[m].most > NOTHING) merge_into(whole[m], part[m], E);
  }
  for (int m = 0; m < M; m++) {
    if (chunks == 1) { finish_head(op, whole[m], token[m], head[m]); continue; }
    float* kept = b.partial + ((token[m] * op.heads + head[m]) * chunks + chunk) * (E + 2);
    kept[0] = whole[m].most, kept[1] = whole[m].mass;
    memcpy(kept + 2, whole[m].value, E * sizeof(float));
  }
}

template <bool CODED> static void attend(const Op& op, const Batch& b, Team& team) {
  Plan plan(op, b);
  std::vector<int64_t> tiles(b.sequences + 1);  // first item of each sequence, per key/value head and chunk
  for (int s = 0; s < b.sequences; s++)
    tiles[s + 1] = tiles[s] + ((b.first[s + 1] - b.first[s]) * plan.group + plan.tile - 1) / plan.tile;
  int64_t each = (int64_t)op.kv_heads * plan.chunks;
  team.share(tiles[b.sequences] * each, 1, [&](int64_t item) {
    int64_t at = item / each;
    int s = std::upper_bound(tiles.begin(), tiles.end(), at) - tiles.begin() - 1;
    int g = item % each / plan.chunks, chunk = item % plan.chunks;
    int64_t row = (at - tiles[s]) * plan.tile, end = std::min<int64_t>(row + plan.tile, (b.first[s + 1] - b.first[s]) * plan.group);
    for (; row + 8 <= end; row += 8) attend_rows<8, CODED>(op, b, s, g, row, chunk, plan.chunks, plan.group);
    for (; row + 6 <= end; row += 6) attend_rows<6, CODED>(op, b, s, g, row, chunk, plan.chunks, plan.group);
    for (; row + 4 <= end; row += 4) attend_rows<4, CODED>(op, b, s, g, row, chunk, plan.chunks, plan.group);
    for (; row + 3 <= end; row += 3) attend_rows<3, CODED>(op, b, s, g, row, chunk, plan.chunks, plan.group);
    for (; row < end; row++) attend_rows<1, CODED>(op, b, s, g, row, chunk, plan.chunks, plan.group);
  });
}

static void merge(const Op& op, const Batch& b, Team& team) {
  Plan plan(op, b);
  if (plan.chunks == 1) return;
  team.share((int64_t)b.tokens * op.heads, 1, [&](int64_t item) {
    int E = op.head_dim;
    float value[1024] = {0};
    Sum whole{NOTHING, 0.0f, value};
    for (int c = 0; c < plan.chunks; c++) {
      float* kept = b.partial + (item * plan.chunks + c) * (E + 2);
      if (kept[0] > NOTHING) merge_into(whole, {kept[0], kept[1], kept + 2}, E);
    }
    finish_head(op, whole, item / op.heads, item % op.heads);
  });
}

// ---- logits --------------------------------------------------------------------------------------------------

// Logits as the model defines them and, of every PIECE of a row, the largest and the sum of e^(x - largest). Where one
// is not a finite number, the largest is none either.
static void weigh(const Op& op, const Batch& b, Team& team) {
  const int n = op.matrix->n, pieces = (n + PIECE - 1) / PIECE;
  team.share((int64_t)b.rows * pieces, 1, [&](int64_t item) {
    int64_t row = item / pieces, p = item % pieces;
    float *x = op.in->x + row * op.in->width + p * PIECE, *out = op.out->x + row * op.out->width + 2 * p;
    int here = std::min<int64_t>(PIECE, n - p * PIECE), padded = (here + LANES - 1) / LANES * LANES;
    F most = all(NOTHING), poison = all(0.0f), mass = all(0.0f);
    for (int k = here; k < padded; k++) x[k] = 0;
    if (op.scale != 1.0f)
      for (int k = 0; k < padded; k += LANES) store(x + k, load(x + k) * all(op.scale));
    if (op.softcap > 0)
      for (int k = 0; k < padded; k += LANES) store(x + k, all(op.softcap) * hyperbolic_tangent(load(x + k) / all(op.softcap)));
    for (int k = here; k < padded; k++) x[k] = NOTHING;
    for (int k = 0; k < padded; k += LANES) most = max(most, load(x + k)), poison = fma(load(x + k), all(0.0f), poison);
    out[0] = largest(most) + total(poison);
    for (int k = 0; k < padded; k += LANES) mass = mass + exponential(load(x + k) - all(out[0]));
    out[1] = total(mass);
  });
}

// ---- the tape ------------------------------------------------------------------------------------------------

extern "C" const char* cutaway_isa() {
  return tiles() ? CUTAWAY_ISA ", AMX" : permitted() ? CUTAWAY_ISA ", not AMX, which gives other numbers here" : CUTAWAY_ISA;
}

// seconds: if given, how long each op took, added to what is there.
extern "C" void cutaway_run(const Op* ops, int count, const Batch* batch, int threads, double* seconds) {
  std::vector<std::atomic<int64_t>> counters(2 * count);
#pragma omp parallel num_threads(threads)
  {
    Shaped shaped(tiles());
    double began = omp_get_wtime();
    for (int i = 0; i < count; i++) {
      const Op& op = ops[i];
      Team team{omp_get_num_threads(), &counters[2 * i], &counters[2 * i + 1]};
      switch (op.kind) {
        case EMBED: embed(op, *batch, team); break;
        case NORM: norm(op, *batch, team); break;
        case LINEAR: linear(op, *batch, team); break;
        case FEED: feed(op, *batch, team); break;
        case TURN: op.coded ? turn<true>(op, *batch, team) : turn<false>(op, *batch, team); break;
        case ATTEND: op.coded ? attend<true>(op, *batch, team) : attend<false>(op, *batch, team); break;
        case MERGE: merge(op, *batch, team); break;
        case WEIGH: weigh(op, *batch, team); break;
        case SHRINK: shrink(op, *batch, team); break;
      }
      if (seconds && omp_get_thread_num() == 0) {
        double now = omp_get_wtime();
        seconds[i] += now - began;
        began = now;
      }
    }
  }
}
