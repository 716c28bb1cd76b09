// Which token comes: what engine/sampler.py says in NumPy, over a whole vocabulary in one pass or two.
//
// Scores are logarithms of probabilities up to a constant, the best is 0; minus infinity is forbidden.
#pragma once
#include <algorithm>
#include <functional>
#include <limits>
#include <vector>

#include "simd.h"

static inline I mixed(I x) {  // see `mixed` in sampler.py
  x = x ^ shifted(x, 16);
  x = x * all((int32_t)0x21F0AAAD);
  x = x ^ shifted(x, 15);
  x = x * all((int32_t)0x735A2D97);
  return x ^ shifted(x, 15);
}

static inline F gumbel(I token, uint32_t low, uint32_t high) {  // see `gumbel` in sampler.py
  I bits = mixed(mixed(token ^ all((int32_t)low)) + all((int32_t)high));
  F uniform = fma(to_float(shifted(bits, 16)), all(65536.0f), to_float(bits & all(0xffff))) * all(0x1p-32f);
  uniform = min(max(uniform, all(0x1p-33f)), all(1 - 0x1p-24f));
  return all(0.0f) - logarithm(all(0.0f) - logarithm_of_one_plus(all(0.0f) - uniform));
}

constexpr float FORBIDDEN = -std::numeric_limits<float>::infinity();
// What a mask forbids, one bit per token from the lowest, and what lies beyond it.
extern "C" void cutaway_fence(float* scores, int32_t count, const uint32_t* mask, int32_t words) {
  for (int32_t k = 0; k < count; k += 32) {
    const uint32_t bits = k / 32 < words ? mask[k / 32] : 0;
    if (bits == ~0u) continue;
    for (int i = 0; i < std::min(32, count - k); i++) scores[k + i] = bits >> i & 1 ? scores[k + i] : FORBIDDEN;
  }
}

constexpr float LUCKIEST = 22.9f;  // no noise is above it

static inline F some_of(const float* scores, int32_t k, int32_t count) {  // sixteen scores; none after the last
  if (k + LANES <= count) return load(scores + k);
  float rest[LANES];
  for (int i = 0; i < LANES; i++) rest[i] = k + i < count ? scores[k + i] : FORBIDDEN;
  return load(rest);
}

// The token that wins the draw among those whose score is in [low, high]; the first if several do; -1 if there is none.
extern "C" int32_t cutaway_draw(const float* scores, int32_t count, float low, float high, uint32_t key_low, uint32_t key_high) {
  float lanes[LANES], best = FORBIDDEN;
  int32_t winner = -1;
  for (int i = 0; i < LANES; i++) lanes[i] = i;
  const I ids = to_int(load(lanes));
  for (int32_t k = 0; k < count; k += LANES) {
    F some = some_of(scores, k, count);
    float most = largest(some);
    if (most < low || most + LUCKIEST <= best) continue;
    F noisy = some + gumbel(ids + all(k), key_low, key_high);
    if (largest(noisy) <= best) continue;
    store(lanes, noisy);
    for (int i = 0; i < LANES && k + i < count; i++)
      if (lanes[i] > best && scores[k + i] >= low && scores[k + i] <= high) best = lanes[i], winner = k + i;
  }
  return winner;
}

// How many scores are at least `low`, or their probability up to a constant.
static double weight_of(const float* scores, int32_t count, float low, bool counted) {
  double whole = 0;  // a long sum of floats would lose the tail
  for (int32_t k = 0; k < count; k += LANES) {
    F some = some_of(scores, k, count);
    if (largest(some) < low) continue;
    float lanes[LANES];
    store(lanes, some);
    int alive = 0;
    for (int i = 0; i < LANES; i++) alive += lanes[i] >= low, lanes[i] = lanes[i] >= low ? lanes[i] : -1e30f;
    whole += counted ? alive : total(exponential(load(lanes)));
  }
  return whole;
}

// How far down the best go: the score of the last one needed, best first, to have `most` tokens (if not 0) or else
// `share` of the probability of all whose score is at least `low`. Band after band, from the best down; only the scores
// of the band that ends it are put in order.
extern "C" float cutaway_reach(const float* scores, int32_t count, float low, int64_t most, double share) {
  const double need = most ? (double)most : share * weight_of(scores, count, low, false);
  double have = 0;
  float above = std::numeric_limits<float>::infinity(), floor = low;
  std::vector<float> band;
  for (float depth : {-1.0f, -2.0f, -3.0f, -4.0f, -6.0f, -8.0f, -10.0f, -12.0f, -16.0f, -24.0f, std::numeric_limits<float>::lowest()}) {
    floor = std::max(low, depth);
    double weight = weight_of(scores, count, floor, most);
    if (weight >= need || floor == low) break;
    have = weight, above = floor;
  }
  for (int32_t k = 0; k < count; k += LANES) {
    if (largest(some_of(scores, k, count)) < floor) continue;
    for (int32_t i = k; i < std::min(k + LANES, count); i++)
      if (scores[i] >= floor && scores[i] < above) band.push_back(scores[i]);
  }
  std::sort(band.begin(), band.end(), std::greater<float>());
  for (float score : band) {
    float mass[LANES];
    store(mass, exponential(all(score)));
    if ((have += most ? 1.0 : mass[0]) >= need) return score;
  }
  return band.empty() ? floor : band.back();  // all are needed, or rounding kept the sum below
}
