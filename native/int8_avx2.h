// Integer dot products with AVX2, with and without its VNNI (unsigned weights times signed activations). See linear.cc.
#pragma once

#include "int8_panel.h"
#include "matrix_rows.h"

namespace hearthlm::HEARTHLM_TARGET {
namespace {

typedef __m256i Sums;
inline int32_t total(Sums s) {
  __m128i v = _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
  v = _mm_add_epi32(v, _mm_shuffle_epi32(v, 0x4e));
  v = _mm_add_epi32(v, _mm_shuffle_epi32(v, 0xb1));
  return _mm_cvtsi128_si32(v);
}

inline __m256i load_bytes(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

#if defined(__AVXVNNI__)

template <bool is_int4>
constexpr int64_t kBias = is_int4 ? 8 : 128;  // int8 weights become unsigned by 128

template <bool is_int4, int m>
inline void add_chunk(Sums (&sums)[m][2], const uint8_t* w, const int8_t* x, int64_t stride) {
#pragma GCC unroll 2
  for (int half = 0; half < 2; half++, w += 32, x += 32) {
    __m256i bytes = load_bytes(w);
    if constexpr (is_int4) {
      const __m256i mask = _mm256_set1_epi8(15);
      __m256i low = _mm256_and_si256(bytes, mask), high = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), mask);
#pragma GCC unroll 4
      for (int r = 0; r < m; r++) {
        sums[r][0] = _mm256_dpbusd_avx_epi32(sums[r][0], low, load_bytes(x + r * stride));
        sums[r][1] = _mm256_dpbusd_avx_epi32(sums[r][1], high, load_bytes(x + r * stride + kChunk));
      }
    } else {
      __m256i shifted = _mm256_xor_si256(bytes, _mm256_set1_epi8(-128));
#pragma GCC unroll 4
      for (int r = 0; r < m; r++) {
        sums[r][half] = _mm256_dpbusd_avx_epi32(sums[r][half], shifted, load_bytes(x + r * stride));
      }
    }
  }
}

// ---- Panels

constexpr int64_t kPanelRows = 16;
constexpr int64_t kStep = 4;
constexpr int64_t kTileRows = 6;  // 12 registers of sums, 2 of weights and one of activations
constexpr int64_t kRowMultiple = 1;
constexpr int64_t kMinPanelRows = 6;

inline int64_t tile_rows_at(int64_t rows_left) { return rows_left >= kTileRows ? kTileRows : rows_left >= 2 ? 2 : 1; }

inline void store_steps(const Bytes* rows, uint8_t* out) {
  __m128i r[4];
  memcpy(r, rows, sizeof r);
  __m128i a = _mm_unpacklo_epi32(r[0], r[1]), b = _mm_unpackhi_epi32(r[0], r[1]);
  __m128i c = _mm_unpacklo_epi32(r[2], r[3]), d = _mm_unpackhi_epi32(r[2], r[3]);
  const __m128i steps[4] = {_mm_unpacklo_epi64(a, c), _mm_unpackhi_epi64(a, c), _mm_unpacklo_epi64(b, d),
                            _mm_unpackhi_epi64(b, d)};
  for (int s = 0; s < 4; s++) memcpy(out + s * kPanelRows * kStep, &steps[s], sizeof steps[s]);
}

template <bool is_int4>
void fill_panel(const Matrix& w, int64_t first, int64_t begin, int64_t end, uint8_t* panel) {
  fill_panel_of<is_int4, kPanelRows, kStep, 128, store_steps>(w, first, begin, end, panel);
}

template <int m>
void int_tile(const int8_t* x, const uint8_t* panel, int64_t steps, int32_t* sums) {
  __m256i acc[m][2];
#pragma GCC unroll 6
  for (int r = 0; r < m; r++) {
    acc[r][0] = load_bytes(sums + r * kPanelRows);
    acc[r][1] = load_bytes(sums + r * kPanelRows + 8);
  }
  for (int64_t s = 0; s < steps; s++, x += 4 * m, panel += kPanelRows * kStep) {
    __m256i u = load_bytes(panel), v = load_bytes(panel + 32);
#pragma GCC unroll 6
    for (int r = 0; r < m; r++) {
      int32_t four;
      memcpy(&four, x + 4 * r, sizeof four);
      __m256i row = _mm256_set1_epi32(four);
      acc[r][0] = _mm256_dpbusd_avx_epi32(acc[r][0], u, row);
      acc[r][1] = _mm256_dpbusd_avx_epi32(acc[r][1], v, row);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < m; r++) {
    memcpy(sums + r * kPanelRows, &acc[r][0], sizeof acc[r][0]);
    memcpy(sums + r * kPanelRows + 8, &acc[r][1], sizeof acc[r][1]);
  }
}

inline void add_tile(int64_t rows, const int8_t* x, const uint8_t* panel, int64_t steps, int32_t* sums) {
  switch (rows) {
    case kTileRows: return int_tile<kTileRows>(x, panel, steps, sums);
    case 2: return int_tile<2>(x, panel, steps, sums);
    default: return int_tile<1>(x, panel, steps, sums);
  }
}

#else

template <bool is_int4>
constexpr int64_t kBias = is_int4 ? 8 : 0;

inline __m256i widen_bytes(const void* p) {
  return _mm256_cvtepi8_epi16(_mm_loadu_si128(static_cast<const __m128i*>(p)));
}

template <bool is_int4, int m>
inline void add_chunk(Sums (&sums)[m][2], const uint8_t* w, const int8_t* x, int64_t stride) {
  if constexpr (is_int4) {
    const __m256i mask = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    __m256i a = load_bytes(w), b = load_bytes(w + 32);
    __m256i a_low = _mm256_and_si256(a, mask), a_high = _mm256_and_si256(_mm256_srli_epi16(a, 4), mask);
    __m256i b_low = _mm256_and_si256(b, mask), b_high = _mm256_and_si256(_mm256_srli_epi16(b, 4), mask);
#pragma GCC unroll 4
    for (int r = 0; r < m; r++, x += stride) {
      // Four pairs of products: at most 4 * 2 * 15 * 128 = 15360, so 16 bits hold them.
      __m256i low = _mm256_add_epi16(_mm256_maddubs_epi16(a_low, load_bytes(x)),
                                     _mm256_maddubs_epi16(b_low, load_bytes(x + 32)));
      __m256i high = _mm256_add_epi16(_mm256_maddubs_epi16(a_high, load_bytes(x + 64)),
                                      _mm256_maddubs_epi16(b_high, load_bytes(x + 96)));
      sums[r][0] = _mm256_add_epi32(sums[r][0], _mm256_madd_epi16(_mm256_add_epi16(low, high), ones));
    }
  } else {
    // maddubs would saturate with full bytes: 16-bit products instead.
#pragma GCC unroll 4
    for (int part = 0; part < 4; part++) {
      __m256i wide = widen_bytes(w + 16 * part);
#pragma GCC unroll 4
      for (int r = 0; r < m; r++) {
        __m256i products = _mm256_madd_epi16(wide, widen_bytes(x + r * stride + 16 * part));
        sums[r][part % 2] = _mm256_add_epi32(sums[r][part % 2], products);
      }
    }
  }
}

#endif

}  // namespace
}  // namespace hearthlm::HEARTHLM_TARGET
