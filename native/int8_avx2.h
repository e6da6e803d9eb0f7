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

template <bool is_int4>
constexpr int64_t kGroupChunks = 8;

template <bool is_int4, int m, int n, int first>
inline void add_group(__m256i (&sums)[m][4], const uint8_t* w, int64_t bytes, const int8_t* x, int64_t stride,
                      int64_t chunks) {
  __m256i acc[m][n];
#pragma GCC unroll 4
  for (int i = 0; i < m; i++) {
#pragma GCC unroll 4
    for (int r = 0; r < n; r++) acc[i][r] = sums[i][first + r];
  }
  auto add = [&](int r, __m256i part, const int8_t* rows) __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int i = 0; i < m; i++) acc[i][r] = _mm256_dpbusd_avx_epi32(acc[i][r], part, load_bytes(rows + i * stride));
  };
  for (; chunks > 0; chunks--, w += kChunk, x += kChunkBytes<is_int4>) {
#pragma GCC unroll 2
    for (int half = 0; half < kChunk; half += 32) {
#pragma GCC unroll 4
      for (int r = 0; r < n; r++) {
        __m256i bytes_in = load_bytes(w + r * bytes + half);
        if constexpr (is_int4) {
          const __m256i mask = _mm256_set1_epi8(15);
          add(r, _mm256_and_si256(bytes_in, mask), x + half);
          add(r, _mm256_and_si256(_mm256_srli_epi16(bytes_in, 4), mask), x + kChunk + half);
        } else {
          add(r, _mm256_xor_si256(bytes_in, _mm256_set1_epi8(-128)), x + half);
        }
      }
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < m; i++) {
#pragma GCC unroll 4
    for (int r = 0; r < n; r++) sums[i][first + r] = acc[i][r];
  }
}

// ---- Panels

constexpr int64_t kPanelRows = 16;
constexpr int64_t kStep = 4;
constexpr int64_t kTileRows = 6;  // 12 registers of sums, 2 of weights and one of activations
constexpr int64_t kRowMultiple = 1;
constexpr int64_t kMinPanelRows = 20;  // of activations: until then groups of four rows of weights are as fast

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
void int_tile(const int8_t* x, const uint8_t* panel, int64_t steps, const int32_t* from, int32_t* sums,
              const Fetch& fetch) {
  __m256i acc[m][2];
#pragma GCC unroll 6
  for (int r = 0; r < m; r++) {
    acc[r][0] = load_bytes(from + r * kPanelRows);
    acc[r][1] = load_bytes(from + r * kPanelRows + 8);
  }
  for (int64_t s = 0; s < steps; s++, x += 4 * m, panel += kPanelRows * kStep) {
    if (s % kFetchSteps == 0) fetch.next();
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

inline void add_tile(int64_t rows, const int8_t* x, const uint8_t* panel, int64_t steps, const int32_t* from,
                     int32_t* sums, const Fetch& fetch) {
  switch (rows) {
    case kTileRows: return int_tile<kTileRows>(x, panel, steps, from, sums, fetch);
    case 2: return int_tile<2>(x, panel, steps, from, sums, fetch);
    default: return int_tile<1>(x, panel, steps, from, sums, fetch);
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
#pragma GCC unroll 4
    for (int part = 0; part < 4; part++) {
      __m256i wide = widen_bytes(w + 16 * part);
#pragma GCC unroll 4
      for (int r = 0; r < m; r++) {
        __m256i products = _mm256_madd_epi16(wide, load_bytes(x + r * stride + 32 * part));
        sums[r][part % 2] = _mm256_add_epi32(sums[r][part % 2], products);
      }
    }
  }
}

template <bool is_int4>
constexpr int64_t kGroupChunks = is_int4 ? 2 : 8;  // of int4: 8 pairs of products, at most 8 * 2 * 15 * 128 = 30720

// Holds a sum in its register: the compiler would rather add products up in a tree, and lacks the registers for that.
inline void keep_sum(__m256i& sum) { asm("" : "+x"(sum)); }

template <int m, int n>
inline void add_products(__m256i (&acc)[m][n], const __m256i (&w)[n], const int8_t* x, int64_t stride) {
#pragma GCC unroll 4
  for (int i = 0; i < m; i++) {
    __m256i values = load_bytes(x + i * stride);
#pragma GCC unroll 4
    for (int r = 0; r < n; r++) {
      acc[i][r] = _mm256_add_epi16(acc[i][r], _mm256_maddubs_epi16(w[r], values));
      keep_sum(acc[i][r]);
    }
  }
}

template <bool is_int4, int m, int n, int first>
inline void add_group(__m256i (&sums)[m][4], const uint8_t* w, int64_t bytes, const int8_t* x, int64_t stride,
                      int64_t chunks) {
  __m256i acc[m][n];
  if constexpr (is_int4) {
    const __m256i mask = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
#pragma GCC unroll 4
    for (int i = 0; i < m; i++) {
#pragma GCC unroll 4
      for (int r = 0; r < n; r++) acc[i][r] = _mm256_setzero_si256();
    }
    for (; chunks > 0; chunks--, w += kChunk, x += 2 * kChunk) {
#pragma GCC unroll 2
      for (int half = 0; half < kChunk; half += 32) {
        __m256i part[n];
#pragma GCC unroll 4
        for (int r = 0; r < n; r++) part[r] = _mm256_and_si256(load_bytes(w + r * bytes + half), mask);
        add_products<m, n>(acc, part, x + half, stride);
#pragma GCC unroll 4
        for (int r = 0; r < n; r++) {
          part[r] = _mm256_and_si256(_mm256_srli_epi16(load_bytes(w + r * bytes + half), 4), mask);
        }
        add_products<m, n>(acc, part, x + kChunk + half, stride);
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < m; i++) {
#pragma GCC unroll 4
      for (int r = 0; r < n; r++) {
        __m256i& sum = sums[i][first + r];
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(acc[i][r], ones));
      }
    }
  } else {
#pragma GCC unroll 4
    for (int i = 0; i < m; i++) {
#pragma GCC unroll 4
      for (int r = 0; r < n; r++) acc[i][r] = sums[i][first + r];
    }
    for (int64_t end = 4 * chunks; end > 0; end--, w += 16, x += 32) {
      __m256i part[n];
#pragma GCC unroll 4
      for (int r = 0; r < n; r++) part[r] = widen_bytes(w + r * bytes);
#pragma GCC unroll 4
      for (int i = 0; i < m; i++) {
        __m256i values = load_bytes(x + i * stride);
#pragma GCC unroll 4
        for (int r = 0; r < n; r++) {
          acc[i][r] = _mm256_add_epi32(acc[i][r], _mm256_madd_epi16(part[r], values));
          keep_sum(acc[i][r]);
        }
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < m; i++) {
#pragma GCC unroll 4
      for (int r = 0; r < n; r++) sums[i][first + r] = acc[i][r];
    }
  }
}

#endif

// ---- Four rows of weights against m rows of activations: `add_group` adds up to kGroupChunks chunks of n of them, as
// many as leave registers for the sums, to sums [m][4].

#define HEARTHLM_FOUR_COLUMNS 1

inline __m128i totals_of(const __m256i (&r)[4]) {
  __m256i s = _mm256_hadd_epi32(_mm256_hadd_epi32(r[0], r[1]), _mm256_hadd_epi32(r[2], r[3]));
  return _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
}

template <bool is_int4, int m>
inline void add_four(__m256i (&sums)[m][4], const uint8_t* w, int64_t bytes, const int8_t* x, int64_t stride,
                     int64_t chunks) {
  if constexpr (m <= 2) {
    add_group<is_int4, m, 4, 0>(sums, w, bytes, x, stride, chunks);
  } else {
    add_group<is_int4, m, 2, 0>(sums, w, bytes, x, stride, chunks);
    add_group<is_int4, m, 2, 2>(sums, w + 2 * bytes, bytes, x, stride, chunks);
  }
}

// totals [4] for one row of activations: one row of weights after the other, which memory serves fastest.
template <bool is_int4>
inline void dot_each(const uint8_t* w, int64_t bytes, const int8_t* x, int32_t (&totals)[4]) {
  __m256i sums[4];
#pragma GCC unroll 4
  for (int r = 0; r < 4; r++, w += bytes) {
    Sums row[1][2] = {};
    const int8_t* values = x;
    int64_t j = 0;
    for (; j + kChunk <= bytes; j += kChunk, values += kChunkBytes<is_int4>) {
      prefetch(w, j + 4096);
      add_chunk<is_int4, 1>(row, w + j, values, 0);
    }
    if (j < bytes) {
      uint8_t last[kChunk] = {};
      memcpy(last, w + j, static_cast<size_t>(bytes - j));
      add_chunk<is_int4, 1>(row, last, values, 0);
    }
    sums[r] = _mm256_add_epi32(row[0][0], row[0][1]);
  }
  _mm_storeu_si128(reinterpret_cast<__m128i*>(totals), totals_of(sums));
}

// totals [m][4], too large by kBias times the sum of the activations, over rows of at most kMaxColumns.
template <bool is_int4, int m>
inline void dot_four(const uint8_t* w, int64_t bytes, const int8_t* x, int64_t stride, int64_t pass, int64_t passes,
                     int32_t (&totals)[m][4]) {
  FourRowsAhead ahead(bytes, pass, passes);
  if constexpr (m == 1) {
    if (passes == 1) return dot_each<is_int4>(w, bytes, x, totals[0]);
  }
  __m256i sums[m][4] = {};
  int64_t whole = bytes / kChunk * kChunk, j = 0;
  while (j < whole) {
    int64_t chunks = min_of((whole - j) / kChunk, kGroupChunks<is_int4>);
    for (int64_t i = 0; i < chunks; i++) ahead.fetch(w, bytes, j + i * kChunk);
    add_four<is_int4, m>(sums, w + j, bytes, x, stride, chunks);
    j += chunks * kChunk;
    x += chunks * kChunkBytes<is_int4>;
  }
  if (j < bytes) {
    uint8_t last[4 * kChunk] = {};
    for (int64_t r = 0; r < 4; r++) memcpy(last + r * kChunk, w + r * bytes + j, static_cast<size_t>(bytes - j));
    add_four<is_int4, m>(sums, last, kChunk, x, stride, 1);
  }
#pragma GCC unroll 4
  for (int i = 0; i < m; i++) _mm_storeu_si128(reinterpret_cast<__m128i*>(totals[i]), totals_of(sums[i]));
}

}  // namespace
}  // namespace hearthlm::HEARTHLM_TARGET
