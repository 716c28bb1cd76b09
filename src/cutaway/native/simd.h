// Sixteen lanes at a time, under one name on every processor: AVX-512, AVX2, or whatever the compiler makes of loops.
//
// The three give the same bits: integer sums are exact in any order, and every float operation is one rounding that
// is written out (`fma` is fused where there is one; without one the portable version rounds twice).
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

constexpr int LANES = 16;

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VNNI__)
#define CUTAWAY_ISA "AVX-512 VNNI"
#define UNROLLED _Pragma("GCC unroll 8")  // so that a step knows its registers when it is compiled
struct F { __m512 v; };
struct I { __m512i v; };
struct U { __m512i v; };  // 64 unsigned bytes
static inline F load(const float* p) { return {_mm512_loadu_ps(p)}; }
static inline void store(float* p, F a) { _mm512_storeu_ps(p, a.v); }
static inline F all(float a) { return {_mm512_set1_ps(a)}; }
static inline I all(int32_t a) { return {_mm512_set1_epi32(a)}; }
static inline F operator+(F a, F b) { return {_mm512_add_ps(a.v, b.v)}; }
static inline F operator-(F a, F b) { return {_mm512_sub_ps(a.v, b.v)}; }
static inline F operator*(F a, F b) { return {_mm512_mul_ps(a.v, b.v)}; }
static inline F operator/(F a, F b) { return {_mm512_div_ps(a.v, b.v)}; }
static inline F fma(F a, F b, F c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
static inline F max(F a, F b) { return {_mm512_max_ps(a.v, b.v)}; }
static inline F min(F a, F b) { return {_mm512_min_ps(a.v, b.v)}; }
static inline F abs(F a) { return {_mm512_abs_ps(a.v)}; }
static inline F nearest(F a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
static inline F to_float(I a) { return {_mm512_cvtepi32_ps(a.v)}; }
static inline I to_int(F a) { return {_mm512_cvtps_epi32(a.v)}; }
static inline I operator+(I a, I b) { return {_mm512_add_epi32(a.v, b.v)}; }
static inline I operator*(I a, I b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
static inline I operator^(I a, I b) { return {_mm512_xor_si512(a.v, b.v)}; }
static inline I operator&(I a, I b) { return {_mm512_and_si512(a.v, b.v)}; }
static inline I shifted(I a, int right) { return {_mm512_srl_epi32(a.v, _mm_cvtsi32_si128(right))}; }  // zeros come in
static inline I bits_of(F a) { return {_mm512_castps_si512(a.v)}; }
static inline F from_bits(I a) { return {_mm512_castsi512_ps(a.v)}; }
static inline F power_of_two(I e) { return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(e.v, _mm512_set1_epi32(127)), 23))}; }
static inline F load_half(const uint16_t* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))}; }
static inline void store_half(uint16_t* p, F a) { _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT)); }
static inline F load_brain(const uint16_t* p) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16))};
}
static inline void store_bytes(int8_t* p, I a) { _mm_storeu_si128((__m128i*)p, _mm512_cvtsepi32_epi8(a.v)); }
static inline F load_codes(const int8_t* p) { return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)))}; }
static inline U load_bytes(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
static inline U low_halves(U a) { return {_mm512_and_si512(a.v, _mm512_set1_epi8(15))}; }
static inline U high_halves(U a) { return {_mm512_and_si512(_mm512_srli_epi16(a.v, 4), _mm512_set1_epi8(15))}; }
static inline U with_bit(U a, uint64_t bits, uint8_t value) {  // `value` added to the bytes whose bit is set
  return {_mm512_mask_add_epi8(a.v, bits, a.v, _mm512_set1_epi8((char)value))};
}
static inline I dot4(I sum, U codes, int32_t four) { return {_mm512_dpbusd_epi32(sum.v, codes.v, _mm512_set1_epi32(four))}; }
static inline float total(F a) { return _mm512_reduce_add_ps(a.v); }
static inline float largest(F a) { return _mm512_reduce_max_ps(a.v); }
static inline int32_t total(I a) { return _mm512_reduce_add_epi32(a.v); }

#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define CUTAWAY_ISA "AVX2"
struct F { __m256 a, b; };
struct I { __m256i a, b; };
struct U { __m256i a, b; };
#define BOTH(T, f, ...) T{f(x.a, ##__VA_ARGS__), f(x.b, ##__VA_ARGS__)}
static inline F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
static inline void store(float* p, F x) { _mm256_storeu_ps(p, x.a); _mm256_storeu_ps(p + 8, x.b); }
static inline F all(float a) { return {_mm256_set1_ps(a), _mm256_set1_ps(a)}; }
static inline I all(int32_t a) { return {_mm256_set1_epi32(a), _mm256_set1_epi32(a)}; }
static inline F operator+(F x, F y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
static inline F operator-(F x, F y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
static inline F operator*(F x, F y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
static inline F operator/(F x, F y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
static inline F fma(F x, F y, F z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
static inline F max(F x, F y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
static inline F min(F x, F y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
static inline F abs(F x) { __m256 m = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff)); return {_mm256_and_ps(x.a, m), _mm256_and_ps(x.b, m)}; }
static inline F nearest(F x) { return BOTH(F, _mm256_round_ps, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline F to_float(I x) { return BOTH(F, _mm256_cvtepi32_ps); }
static inline I to_int(F x) { return BOTH(I, _mm256_cvtps_epi32); }
static inline I operator+(I x, I y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
static inline I operator*(I x, I y) { return {_mm256_mullo_epi32(x.a, y.a), _mm256_mullo_epi32(x.b, y.b)}; }
static inline I operator^(I x, I y) { return {_mm256_xor_si256(x.a, y.a), _mm256_xor_si256(x.b, y.b)}; }
static inline I operator&(I x, I y) { return {_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)}; }
static inline I shifted(I x, int right) { return BOTH(I, _mm256_srl_epi32, _mm_cvtsi32_si128(right)); }
static inline I bits_of(F x) { return BOTH(I, _mm256_castps_si256); }
static inline F from_bits(I x) { return BOTH(F, _mm256_castsi256_ps); }
static inline F power_of_two(I e) {
  I x = e + all(127);
  return {_mm256_castsi256_ps(_mm256_slli_epi32(x.a, 23)), _mm256_castsi256_ps(_mm256_slli_epi32(x.b, 23))};
}
static inline F load_half(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)), _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8)))};
}
static inline void store_half(uint16_t* p, F x) {
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128((__m128i*)(p + 8), _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT));
}
static inline __m256 brain(const uint16_t* p) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16)); }
static inline F load_brain(const uint16_t* p) { return {brain(p), brain(p + 8)}; }
static inline void store_bytes(int8_t* p, I x) {
  int32_t wide[16];
  _mm256_storeu_si256((__m256i*)wide, x.a);
  _mm256_storeu_si256((__m256i*)(wide + 8), x.b);
  for (int i = 0; i < 16; i++) p[i] = (int8_t)wide[i];
}
static inline __m256 codes(const int8_t* p) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p))); }
static inline F load_codes(const int8_t* p) { return {codes(p), codes(p + 8)}; }
static inline U load_bytes(const uint8_t* p) { return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 32))}; }
static inline U low_halves(U x) { return BOTH(U, _mm256_and_si256, _mm256_set1_epi8(15)); }
static inline __m256i high_half(__m256i x) { return _mm256_and_si256(_mm256_srli_epi16(x, 4), _mm256_set1_epi8(15)); }
static inline U high_halves(U x) { return BOTH(U, high_half); }
static inline __m256i spread(uint32_t bits, uint8_t value) {  // a byte per bit: `value` where it is set
  const __m256i byte = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
  const __m256i bit = _mm256_set1_epi64x((long long)0x8040201008040201);
  __m256i chosen = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32((int)bits), byte), bit);
  return _mm256_and_si256(_mm256_cmpeq_epi8(chosen, bit), _mm256_set1_epi8((char)value));
}
static inline U with_bit(U x, uint64_t bits, uint8_t value) {
  return {_mm256_add_epi8(x.a, spread((uint32_t)bits, value)), _mm256_add_epi8(x.b, spread((uint32_t)(bits >> 32), value))};
}
static inline __m256i dot4(__m256i sum, __m256i codes, __m256i four) {
  // Products of two bytes are added in 16 bits, which saturate: so the highest bit of a code is multiplied by itself.
  const __m256i ones = _mm256_set1_epi16(1), top = _mm256_set1_epi16(128), low7 = _mm256_set1_epi8(127);
  __m256i low = _mm256_maddubs_epi16(_mm256_and_si256(codes, low7), four);
  __m256i high = _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16(codes, 7), _mm256_set1_epi8(1)), four);
  return _mm256_add_epi32(sum, _mm256_add_epi32(_mm256_madd_epi16(low, ones), _mm256_madd_epi16(high, top)));
}
static inline I dot4(I sum, U codes, int32_t four) {
  __m256i f = _mm256_set1_epi32(four);
  return {dot4(sum.a, codes.a, f), dot4(sum.b, codes.b, f)};
}
#define SPILLED
#else
#define CUTAWAY_ISA "portable"
struct F { float v[16]; };
struct I { int32_t v[16]; };
struct U { uint8_t v[64]; };
#define EACH(T, expression) T r; for (int i = 0; i < 16; i++) r.v[i] = expression; return r
static inline F load(const float* p) { EACH(F, p[i]); }
static inline void store(float* p, F a) { memcpy(p, a.v, 64); }
static inline F all(float a) { EACH(F, a); }
static inline I all(int32_t a) { EACH(I, a); }
static inline F operator+(F a, F b) { EACH(F, a.v[i] + b.v[i]); }
static inline F operator-(F a, F b) { EACH(F, a.v[i] - b.v[i]); }
static inline F operator*(F a, F b) { EACH(F, a.v[i] * b.v[i]); }
static inline F operator/(F a, F b) { EACH(F, a.v[i] / b.v[i]); }
static inline F fma(F a, F b, F c) { EACH(F, a.v[i] * b.v[i] + c.v[i]); }
static inline F max(F a, F b) { EACH(F, a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
static inline F min(F a, F b) { EACH(F, a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
static inline F abs(F a) { EACH(F, std::fabs(a.v[i])); }
static inline F nearest(F a) { EACH(F, std::nearbyint(a.v[i])); }
static inline F to_float(I a) { EACH(F, (float)a.v[i]); }
static inline I to_int(F a) { EACH(I, (int32_t)std::nearbyint(a.v[i])); }
static inline I operator+(I a, I b) { EACH(I, (int32_t)((uint32_t)a.v[i] + (uint32_t)b.v[i])); }
static inline I operator*(I a, I b) { EACH(I, (int32_t)((uint32_t)a.v[i] * (uint32_t)b.v[i])); }
static inline I operator^(I a, I b) { EACH(I, a.v[i] ^ b.v[i]); }
static inline I operator&(I a, I b) { EACH(I, a.v[i] & b.v[i]); }
static inline I shifted(I a, int right) { EACH(I, (int32_t)((uint32_t)a.v[i] >> right)); }
static inline I bits_of(F a) { I r; memcpy(r.v, a.v, 64); return r; }
static inline F from_bits(I a) { F r; memcpy(r.v, a.v, 64); return r; }
static inline float as_float(uint32_t bits) { float f; memcpy(&f, &bits, 4); return f; }
static inline F power_of_two(I e) { EACH(F, as_float((uint32_t)(e.v[i] + 127) << 23)); }
static inline float half(uint16_t bits) { _Float16 h; memcpy(&h, &bits, 2); return (float)h; }
static inline uint16_t halved(float f) { _Float16 h = (_Float16)f; uint16_t bits; memcpy(&bits, &h, 2); return bits; }
static inline F load_half(const uint16_t* p) { EACH(F, half(p[i])); }
static inline void store_half(uint16_t* p, F a) { for (int i = 0; i < 16; i++) p[i] = halved(a.v[i]); }
static inline F load_brain(const uint16_t* p) { EACH(F, as_float((uint32_t)p[i] << 16)); }
static inline void store_bytes(int8_t* p, I a) { for (int i = 0; i < 16; i++) p[i] = (int8_t)a.v[i]; }
static inline F load_codes(const int8_t* p) { EACH(F, (float)p[i]); }
static inline U load_bytes(const uint8_t* p) { U r; memcpy(r.v, p, 64); return r; }
static inline U low_halves(U a) { for (auto& c : a.v) c &= 15; return a; }
static inline U high_halves(U a) { for (auto& c : a.v) c >>= 4; return a; }
static inline U with_bit(U a, uint64_t bits, uint8_t value) { for (int i = 0; i < 64; i++) a.v[i] += bits >> i & 1 ? value : 0; return a; }
static inline I dot4(I sum, U codes, int32_t four) {
  int8_t f[4];
  memcpy(f, &four, 4);
  for (int i = 0; i < 16; i++)
    for (int j = 0; j < 4; j++) sum.v[i] += codes.v[4 * i + j] * f[j];
  return sum;
}
#define SPILLED
#endif

#ifdef SPILLED
#define UNROLLED
// Sums over lanes in the order in which AVX-512 adds them: halves onto each other.
template <class T, class S> static inline T folded(S a, T (*join)(T, T)) {
  T lane[16];
  memcpy(lane, &a, sizeof lane);
  for (int half = 8; half; half /= 2)
    for (int i = 0; i < half; i++) lane[i] = join(lane[i], lane[i + half]);
  return lane[0];
}
static inline float total(F a) { return folded<float>(a, [](float x, float y) { return x + y; }); }
static inline float largest(F a) { return folded<float>(a, [](float x, float y) { return x > y ? x : y; }); }
static inline int32_t total(I a) { return folded<int32_t>(a, [](int32_t x, int32_t y) { return x + y; }); }
#endif

static inline float one_half(uint16_t bits) {
  uint16_t lanes[16] = {bits};
  float out[16];
  store(out, load_half(lanes));
  return out[0];
}

static inline uint16_t to_half(float x) {
  uint16_t lanes[16];
  store_half(lanes, all(x));
  return lanes[0];
}

// e^x to about 2 units in the last place: 2^n * p(r), x = n ln 2 + r, |r| <= ln 2 / 2 (Cody & Waite 1980).
static inline F exponential(F x) {
  x = min(max(x, all(-87.33f)), all(88.37f));
  F n = nearest(x * all(1.44269504088896341f));
  F r = fma(n, all(-0.693359375f), x);
  r = fma(n, all(2.12194440e-4f), r);
  F p = all(1.9875691500e-4f);
  p = fma(p, r, all(1.3981999507e-3f));
  p = fma(p, r, all(8.3334519073e-3f));
  p = fma(p, r, all(4.1665795894e-2f));
  p = fma(p, r, all(1.6666665459e-1f));
  p = fma(p, r, all(5.0000001201e-1f));
  p = fma(p, r * r, r + all(1.0f));
  return p * power_of_two(to_int(n));
}

// Natural logarithm of normal numbers above 0, to about 1 unit in the last place: 2^e * m, m from sqrt(1/2) to sqrt(2)
// (Cephes, logf: Moshier 1992).
static inline F logarithm(F x) {
  I root = all(0x3f3504f3), bits = bits_of(x) + all(-0x3f3504f3);
  F e = to_float(shifted(bits + all(0x3f800000), 23)) - all(127.0f);
  F f = from_bits((bits & all(0x7fffff)) + root) - all(1.0f), square = f * f;
  F p = all(7.0376836292e-2f);
  for (float c : {-1.1514610310e-1f, 1.1676998740e-1f, -1.2420140846e-1f, 1.4249322787e-1f, -1.6668057665e-1f,
                  2.0000714765e-1f, -2.4999993993e-1f, 3.3333331174e-1f})
    p = fma(p, f, all(c));
  F y = fma(e, all(-2.12194440e-4f), p * f * square);
  return fma(e, all(0.693359375f), f + fma(square, all(-0.5f), y));
}

static inline F logarithm_of_one_plus(F x) {  // what rounding takes off 1 + x is put back
  F y = all(1.0f) + x;
  return logarithm(y) + (x - (y - all(1.0f))) / y;
}
