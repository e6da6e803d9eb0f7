// One register of floats, and what the kernels do with it, for the instruction set being compiled. Arithmetic and
// comparisons are the compiler's own on vector types. Everything is local to the including source, see kernels.h.
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__aarch64__) && !defined(HEARTHLM_PORTABLE)
#define HEARTHLM_NEON 1
#else
#define HEARTHLM_NEON 0
#endif
#if HEARTHLM_NEON
#include <arm_neon.h>
#elif defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef int32_t IntVec __attribute__((vector_size(4 * kLanes)));
typedef float UnalignedVec __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef int32_t UnalignedIntVec __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

template <class T>
constexpr T min_of(T a, T b) {
  return a < b ? a : b;
}
template <class T>
constexpr T max_of(T a, T b) {
  return a > b ? a : b;
}
inline int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

inline Vec load(const float* p) { return *reinterpret_cast<const UnalignedVec*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<UnalignedVec*>(p) = v; }
inline Vec broadcast(float x) { return x - Vec{}; }
inline IntVec as_int(Vec v) { return reinterpret_cast<IntVec>(v); }
inline Vec as_float(IntVec v) { return reinterpret_cast<Vec>(v); }

// Holds v in a register: the compiler would rather load it again for every use.
inline void keep(Vec& v) {
#if defined(__x86_64__)
  asm("" : "+v"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#else
  (void)v;
#endif
}

// The first n lanes; the others are zero.
inline Vec load_first(const float* p, int64_t n) {
#if defined(__AVX512F__)
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
#else
  float lanes[kLanes] = {};
  memcpy(lanes, p, static_cast<size_t>(n) * sizeof(float));
  return load(lanes);
#endif
}

inline void store_first(float* p, Vec v, int64_t n) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), v);
#else
  float lanes[kLanes];
  store(lanes, v);
  memcpy(p, lanes, static_cast<size_t>(n) * sizeof(float));
#endif
}

// a * b + c, rounded once where the instruction set can.
inline Vec fma(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#elif HEARTHLM_NEON
  return vfmaq_f32(c, a, b);
#else
  return a * b + c;
#endif
}

// b where a lane is NaN.
inline Vec max_of(Vec a, Vec b) { return a > b ? a : b; }
inline Vec min_of(Vec a, Vec b) { return a < b ? a : b; }
inline Vec abs_of(Vec v) { return as_float(as_int(v) & 0x7fffffff); }

// Half to even, for |v| < 2^22: adding 1.5 * 2^23 leaves no bits for a fraction.
inline IntVec round_to_int(Vec v) { return as_int(v + 12582912.0f) - as_int(broadcast(12582912.0f)); }

// Lane i is added to lane i + half, until one is left.
inline float sum_of(Vec v) {
#if defined(__AVX2__)
#if defined(__AVX512F__)
  __m256 half = _mm512_castps512_ps256(v) + _mm512_extractf32x8_ps(v, 1);
#else
  __m256 half = v;
#endif
  __m128 quarter = _mm256_castps256_ps128(half) + _mm256_extractf128_ps(half, 1);
  quarter = quarter + _mm_movehl_ps(quarter, quarter);
  return quarter[0] + quarter[1];
#else
  return (v[0] + v[2]) + (v[1] + v[3]);
#endif
}

template <int... lane>
struct Lanes {};
template <int count, int... lane>
struct LanesTo : LanesTo<count - 1, count - 1, lane...> {};
template <int... lane>
struct LanesTo<0, lane...> {
  typedef Lanes<lane...> List;
};

// In every 2 * half lanes: first what `sum_of` makes of those of x when it halves them, then the same of y.
template <int half, int... lane>
inline Vec fold(Vec x, Vec y, Lanes<lane...>) {
  // One operand stays in its lanes: a blend where a CPU has one, and half of the shuffles.
  Vec own = __builtin_shufflevector(x, y, (lane % (2 * half) < half ? lane : kLanes + lane)...);
  Vec other = __builtin_shufflevector(x, y, (lane % (2 * half) < half ? lane + half : kLanes + lane - half)...);
  return own + other;
}

// Lane i is sum_of(v[i]), bit for bit, at a quarter of the instructions. Overwrites v.
template <int half = kLanes / 2>
inline Vec sums_of(Vec* v) {
  if constexpr (half == 0) {
    return v[0];
  } else {
#pragma GCC unroll 8
    for (int i = 0; i < half; i++) v[i] = fold<half>(v[i], v[i + half], typename LanesTo<kLanes>::List());
    return sums_of<half / 2>(v);
  }
}

inline float max_lane(Vec v) {
  float highest = v[0];
  for (int i = 1; i < kLanes; i++) highest = max_of(highest, static_cast<float>(v[i]));
  return highest;
}

// float16 to float32, exact.
inline Vec load_half(const uint16_t* p) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__F16C__)
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif HEARTHLM_NEON
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
#else
  IntVec bits = {p[0], p[1], p[2], p[3]};
  IntVec magnitude = bits & 0x7fff;
  // Shifted into place the exponent is 112 too small; a product mends it, for subnormal numbers as well.
  Vec value = as_float(magnitude << 13) * 0x1p112f;
  IntVec is_special = magnitude >= 0x7c00;  // infinity, NaN
  IntVec special = (magnitude << 13) | 0x7f800000;
  return as_float(((is_special & special) | (~is_special & as_int(value))) | ((bits & 0x8000) << 16));
#endif
}

inline Vec load_half_first(const uint16_t* p, int64_t n) {
  uint16_t lanes[kLanes] = {};
  memcpy(lanes, p, static_cast<size_t>(n) * sizeof(uint16_t));
  return load_half(lanes);
}

// int8 to float32.
inline Vec load_bytes(const int8_t* p) {
#if defined(__AVX512F__)
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#elif defined(__AVX2__)
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#elif HEARTHLM_NEON
  int32_t four;
  memcpy(&four, p, sizeof four);
  return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four))))));
#else
  IntVec lanes = {p[0], p[1], p[2], p[3]};
  return __builtin_convertvector(lanes, Vec);
#endif
}

inline Vec load_bytes_first(const int8_t* p, int64_t n) {
  int8_t lanes[kLanes] = {};
  memcpy(lanes, p, static_cast<size_t>(n));
  return load_bytes(lanes);
}

// float32 to float16, half to even; beyond the range is infinity.
inline uint16_t to_half(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);
  if (magnitude >= 0x47800000) return static_cast<uint16_t>(sign | 0x7c00);
  if (magnitude < 0x38800000) {  // subnormal: adding 1/2 leaves multiples of 2^-24
    float shifted;
    memcpy(&shifted, &magnitude, sizeof shifted);
    shifted += 0.5f;
    memcpy(&magnitude, &shifted, sizeof magnitude);
    return static_cast<uint16_t>(sign | (magnitude - 0x3f000000));
  }
  magnitude += 0xc8000fff + (magnitude >> 13 & 1);  // exponent - 112, then half of the last place, less one if even
  return static_cast<uint16_t>(sign | magnitude >> 13);
}

inline void store_half(uint16_t* p, Vec v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#elif HEARTHLM_NEON
  vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(v)));
#else
  for (int i = 0; i < kLanes; i++) p[i] = to_half(v[i]);
#endif
}

struct QuantizedRow {
  float scale;
  int32_t sum;
};

// q [n] = half to even of x / scale for finite x; returns the scale, max|x| / 127, or 0 where its inverse overflows, and
// the sum of q.
inline QuantizedRow quantize_row(const float* x, int64_t n, int8_t* q) {
  typedef int8_t Bytes __attribute__((vector_size(kLanes)));
  Vec bounds{};
  int64_t c = 0;
  for (; c + kLanes <= n; c += kLanes) bounds = max_of(abs_of(load(x + c)), bounds);
  if (c < n) bounds = max_of(abs_of(load_first(x + c, n - c)), bounds);
  float bound = max_lane(bounds), inverse = 127.0f / bound;
  bool is_zero = inverse == __builtin_inff();
  if (is_zero) inverse = 0;
  IntVec total{};
  for (c = 0; c < n; c += kLanes) {
    int64_t count = min_of<int64_t>(kLanes, n - c);
    Vec v = count == kLanes ? load(x + c) : load_first(x + c, count);
    IntVec rounded = round_to_int(v * inverse);
    total += rounded;
    Bytes bytes = __builtin_convertvector(rounded, Bytes);
    memcpy(q + c, &bytes, static_cast<size_t>(count));
  }
  int32_t sum = 0;
  for (int i = 0; i < kLanes; i++) sum += total[i];
  return {is_zero ? 0.0f : bound / 127.0f, sum};
}

// e^v within 2 units in the last place, 0 below -87.33, infinity above 88.72.
// v = n ln 2 + r, |r| <= ln 2 / 2; ln 2 in two parts and the polynomial are those of Cephes (Moshier 1989).
inline Vec exp_of(Vec v) {
  Vec clamped = min_of(broadcast(89.0f), max_of(broadcast(-87.33f), v));
  IntVec n = round_to_int(clamped * 1.44269504f);
  Vec whole = __builtin_convertvector(n, Vec);
  Vec r = fma(whole, broadcast(-0.693359375f), clamped);
  r = fma(whole, broadcast(2.12194440e-4f), r);
  Vec p = broadcast(1.9875691500e-4f);
  p = fma(p, r, broadcast(1.3981999507e-3f));
  p = fma(p, r, broadcast(8.3334519073e-3f));
  p = fma(p, r, broadcast(4.1665795894e-2f));
  p = fma(p, r, broadcast(1.6666665459e-1f));
  p = fma(p, r, broadcast(5.0000001201e-1f));
  p = fma(p, r * r, r) + 1.0f;
  IntVec half = n >> 1;  // 2^n as two factors: n up to 128 does not fit one
  Vec y = p * as_float((half + 127) << 23) * as_float((n - half + 127) << 23);
  return v < -87.33f ? Vec{} : y;
}

// Within 2 units in the last place. Below 0.625 the polynomial of Cephes.
inline Vec tanh_of(Vec v) {
  Vec size = abs_of(v), square = v * v;
  Vec far = 1.0f - 2.0f / (exp_of(size + size) + 1.0f);
  Vec p = broadcast(-5.70498872745e-3f);
  p = fma(p, square, broadcast(2.06390887954e-2f));
  p = fma(p, square, broadcast(-5.37397155531e-2f));
  p = fma(p, square, broadcast(1.33314422036e-1f));
  p = fma(p, square, broadcast(-3.33332819422e-1f));
  Vec near = fma(p * square, v, v);
  Vec signed_far = as_float(as_int(far) | (as_int(v) & INT32_MIN));
  return size < 0.625f ? near : signed_far;
}

// Asks for the cache line at p, which may lie past the end of an array.
inline void prefetch(const void* p, int64_t offset) {
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(p) + static_cast<uintptr_t>(offset)));
}

}  // namespace
