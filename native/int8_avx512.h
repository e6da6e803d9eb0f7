// Integer dot products with AVX-512 VNNI, 64 at a time: unsigned weights times signed activations. See linear.cc.
#pragma once

#include "matrix_rows.h"

namespace hearthlm::HEARTHLM_TARGET {
namespace {

template <bool is_int4>
constexpr int64_t kBias = is_int4 ? 8 : 128;  // int8 weights become unsigned by 128

typedef __m512i Sums;
inline int32_t total(Sums s) { return _mm512_reduce_add_epi32(s); }

// The totals of four registers: 12 instructions in place of 4 reductions.
inline __m128i totals_of(__m512i r0, __m512i r1, __m512i r2, __m512i r3) {
  __m512i a = _mm512_add_epi32(_mm512_unpacklo_epi32(r0, r1), _mm512_unpackhi_epi32(r0, r1));
  __m512i b = _mm512_add_epi32(_mm512_unpacklo_epi32(r2, r3), _mm512_unpackhi_epi32(r2, r3));
  __m512i c = _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
  __m256i d = _mm256_add_epi32(_mm512_castsi512_si256(c), _mm512_extracti64x4_epi64(c, 1));
  return _mm_add_epi32(_mm256_castsi256_si128(d), _mm256_extracti128_si256(d, 1));
}

template <bool is_int4, int m>
inline void add_chunk(Sums (&sums)[m][2], const uint8_t* chunk, const int8_t* x, int64_t stride) {
  __m512i w = _mm512_loadu_si512(chunk);
  if constexpr (is_int4) {
    const __m512i mask = _mm512_set1_epi8(15);
    __m512i low = _mm512_and_si512(w, mask), high = _mm512_and_si512(_mm512_srli_epi16(w, 4), mask);
#pragma GCC unroll 4
    for (int r = 0; r < m; r++) {
      sums[r][0] = _mm512_dpbusd_epi32(sums[r][0], low, _mm512_loadu_si512(x + r * stride));
      sums[r][1] = _mm512_dpbusd_epi32(sums[r][1], high, _mm512_loadu_si512(x + r * stride + kChunk));
    }
  } else {
    __m512i shifted = _mm512_xor_si512(w, _mm512_set1_epi8(-128));
#pragma GCC unroll 4
    for (int r = 0; r < m; r++) {
      sums[r][0] = _mm512_dpbusd_epi32(sums[r][0], shifted, _mm512_loadu_si512(x + r * stride));
    }
  }
}

// ---- Four rows of weights against m rows of activations: loads are shared, and sums are added up four at a time.

#define HEARTHLM_FOUR_COLUMNS 1

template <int m>
inline void add_products(__m512i (&sums)[m][4], const __m512i (&w)[4], const int8_t* x, int64_t stride) {
#pragma GCC unroll 4
  for (int i = 0; i < m; i++) {
    __m512i values = _mm512_loadu_si512(x + i * stride);
#pragma GCC unroll 4
    for (int r = 0; r < 4; r++) sums[i][r] = _mm512_dpbusd_epi32(sums[i][r], w[r], values);
  }
}

template <bool is_int4, int m>
inline void add_chunk_of_four(__m512i (&sums)[m][4], __m512i (&w)[4], const int8_t* x, int64_t stride) {
  if constexpr (is_int4) {
    const __m512i mask = _mm512_set1_epi8(15);
    __m512i part[4];
#pragma GCC unroll 4
    for (int r = 0; r < 4; r++) part[r] = _mm512_and_si512(w[r], mask);
    add_products<m>(sums, part, x, stride);
#pragma GCC unroll 4
    for (int r = 0; r < 4; r++) part[r] = _mm512_and_si512(_mm512_srli_epi16(w[r], 4), mask);
    add_products<m>(sums, part, x + kChunk, stride);
  } else {
#pragma GCC unroll 4
    for (int r = 0; r < 4; r++) w[r] = _mm512_xor_si512(w[r], _mm512_set1_epi8(-128));
    add_products<m>(sums, w, x, stride);
  }
}

// totals [m][4], too large by kBias times the sum of the activations, over rows of at most kMaxColumns.
template <bool is_int4, int m>
inline void dot_four(const uint8_t* w, int64_t bytes, const int8_t* x, int64_t stride, int64_t pass, int64_t passes,
                     int32_t (&totals)[m][4]) {
  FourRowsAhead ahead(bytes, pass, passes);
  __m512i sums[m][4] = {};
  int64_t j = 0;
  for (; j + kChunk <= bytes; j += kChunk, x += kChunkColumns<is_int4>) {
    ahead.fetch(w, bytes, j);
    __m512i in[4];
#pragma GCC unroll 4
    for (int64_t r = 0; r < 4; r++) in[r] = _mm512_loadu_si512(w + r * bytes + j);
    add_chunk_of_four<is_int4, m>(sums, in, x, stride);
  }
  if (j < bytes) {
    __mmask64 valid = (__mmask64{1} << (bytes - j)) - 1;
    __m512i in[4];
#pragma GCC unroll 4
    for (int64_t r = 0; r < 4; r++) in[r] = _mm512_maskz_loadu_epi8(valid, w + r * bytes + j);
    add_chunk_of_four<is_int4, m>(sums, in, x, stride);
  }
#pragma GCC unroll 4
  for (int i = 0; i < m; i++) {
    __m128i four = totals_of(sums[i][0], sums[i][1], sums[i][2], sums[i][3]);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(totals[i]), four);
  }
}

// ---- Panels

constexpr int64_t kPanelRows = 32;
constexpr int64_t kStep = 4;
constexpr int64_t kTileRows = 12;
constexpr int64_t kRowMultiple = 1;
constexpr int64_t kMinPanelRows = 48;  // of activations: until then groups of four rows of weights are as fast

inline int64_t tile_rows_at(int64_t rows_left) { return rows_left >= kTileRows ? kTileRows : rows_left >= 4 ? 4 : 1; }

// out [16] = the transpose of 16 x 16 dwords.
inline void transpose(const __m512i* in, __m512i* out) {
  __m512i t[16], u[16];
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) {
    t[2 * i] = _mm512_unpacklo_epi32(in[2 * i], in[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(in[2 * i], in[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    u[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    u[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    u[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    u[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
  // u[4 i + c] holds column 4 q + c of rows 4 i to 4 i + 3 in its quarter q.
#pragma GCC unroll 4
  for (int c = 0; c < 4; c++) {
    __m512i a = _mm512_shuffle_i32x4(u[c], u[4 + c], 0x88), b = _mm512_shuffle_i32x4(u[8 + c], u[12 + c], 0x88);
    __m512i d = _mm512_shuffle_i32x4(u[c], u[4 + c], 0xdd), e = _mm512_shuffle_i32x4(u[8 + c], u[12 + c], 0xdd);
    out[c] = _mm512_shuffle_i32x4(a, b, 0x88);
    out[8 + c] = _mm512_shuffle_i32x4(a, b, 0xdd);
    out[4 + c] = _mm512_shuffle_i32x4(d, e, 0x88);
    out[12 + c] = _mm512_shuffle_i32x4(d, e, 0xdd);
  }
}

// Chunks [begin, end) of the rows from `first` on; rows past the last are zero.
template <bool is_int4>
void fill_panel(const Matrix& w, int64_t first, int64_t begin, int64_t end, uint8_t* panel) {
  int64_t bytes = row_bytes(w);
  const __m512i mask = _mm512_set1_epi8(15), sign = _mm512_set1_epi8(-128);
  for (int64_t chunk = begin; chunk < end; chunk++) {
    int64_t left = bytes - chunk * kChunk;
    __mmask64 valid = left >= kChunk ? ~__mmask64{0} : (__mmask64{1} << left) - 1;
    for (int64_t half = 0; half < kPanelRows; half += 16) {
      __m512i in[16], steps[16];
      uint8_t* out = panel + half * kStep;
#pragma GCC unroll 16
      for (int64_t r = 0; r < 16; r++) {
        int64_t n = first + half + r;
        in[r] = n < w.rows ? _mm512_maskz_loadu_epi8(valid, row_of(w, n) + chunk * kChunk) : _mm512_setzero_si512();
      }
      if constexpr (is_int4) {
        transpose(in, steps);
        for (int s = 0; s < 16; s++, out += kPanelRows * kStep) {
          _mm512_storeu_si512(out, _mm512_and_si512(steps[s], mask));
          _mm512_storeu_si512(out + 16 * kPanelRows * kStep, _mm512_and_si512(_mm512_srli_epi16(steps[s], 4), mask));
        }
      } else {
        transpose(in, steps);
        for (int s = 0; s < 16; s++) _mm512_storeu_si512(out + s * kPanelRows * kStep, _mm512_xor_si512(steps[s], sign));
      }
    }
    panel += kChunkColumns<is_int4> * kPanelRows;
  }
}

#define HEARTHLM_TILE_TRANSPOSED 1

// x [12, k] as a tile [steps][12][4], for int4 the even columns of a chunk before the odd ones.
template <bool is_int4>
void arrange_tile(const int8_t* x, int64_t k, int8_t* tile) {
  constexpr int64_t kColumns = kChunkColumns<is_int4>;
  auto store_steps = [&tile](const __m512i* rows) {
    __m512i steps[16];
    transpose(rows, steps);
    for (int s = 0; s < 16; s++, tile += kTileRows * kStep) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(tile), _mm512_castsi512_si256(steps[s]));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(tile + 32), _mm512_extracti32x4_epi32(steps[s], 2));
    }
  };
  for (int64_t j = 0; j < k; j += kColumns) {
    __m512i first[16] = {}, second[16] = {};
#pragma GCC unroll 12
    for (int r = 0; r < kTileRows; r++) {
      const int8_t* row = x + r * k + j;
      int8_t last[kColumns];
      if (j + kColumns > k) {
        memset(last, 0, sizeof last);
        memcpy(last, row, static_cast<size_t>(k - j));
        row = last;
      }
      first[r] = _mm512_loadu_si512(row);
      if constexpr (is_int4) {
        __m512i a = first[r], b = _mm512_loadu_si512(row + 64);
        first[r] = _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi16_epi8(a)), _mm512_cvtepi16_epi8(b), 1);
        a = _mm512_srli_epi16(a, 8), b = _mm512_srli_epi16(b, 8);
        second[r] = _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi16_epi8(a)), _mm512_cvtepi16_epi8(b), 1);
      }
    }
    store_steps(first);
    if constexpr (is_int4) store_steps(second);
  }
}

// acc += w * the 4 activations at p, in every lane. The compiler spills intrinsics' accumulators to the stack.
#define HEARTHLM_DOT(acc, w, p) asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(w), "m"(*(p)))

// sums [12][32] = from + products over `steps`; x [steps][12][4].
void int_tile12(const int8_t* x, const uint8_t* panel, int64_t steps, const int32_t* from, int32_t* sums,
                const Fetch& fetch) {
#define HEARTHLM_ROWS(f) f(0) f(1) f(2) f(3) f(4) f(5) f(6) f(7) f(8) f(9) f(10) f(11)
#define HEARTHLM_LOAD(r)                                \
  __m512i a##r = _mm512_loadu_si512(from + r * 32),     \
          b##r = _mm512_loadu_si512(from + r * 32 + 16);
#define HEARTHLM_STEP(r)        \
  HEARTHLM_DOT(a##r, u, p + r); \
  HEARTHLM_DOT(b##r, v, p + r);
#define HEARTHLM_STORE(r)                       \
  _mm512_storeu_si512(sums + r * 32, a##r);     \
  _mm512_storeu_si512(sums + r * 32 + 16, b##r);
  typedef int32_t Step __attribute__((aligned(1), may_alias));
  const Step* p = reinterpret_cast<const Step*>(x);
  HEARTHLM_ROWS(HEARTHLM_LOAD)
  for (int64_t s = 0; s < steps; s += kFetchSteps) {
    fetch.next();
    for (int64_t i = 0; i < kFetchSteps; i++, p += kTileRows, panel += kPanelRows * 4) {
      __m512i u = _mm512_loadu_si512(panel), v = _mm512_loadu_si512(panel + 64);
      HEARTHLM_ROWS(HEARTHLM_STEP)
    }
  }
  HEARTHLM_ROWS(HEARTHLM_STORE)
#undef HEARTHLM_ROWS
#undef HEARTHLM_LOAD
#undef HEARTHLM_STEP
#undef HEARTHLM_STORE
}

template <int m>
void int_tile(const int8_t* x, const uint8_t* panel, int64_t steps, const int32_t* from, int32_t* sums,
              const Fetch& fetch) {
  __m512i acc[m][2];
#pragma GCC unroll 4
  for (int r = 0; r < m; r++) {
    acc[r][0] = _mm512_loadu_si512(from + r * 32);
    acc[r][1] = _mm512_loadu_si512(from + r * 32 + 16);
  }
  for (int64_t s = 0; s < steps; s++, x += 4 * m, panel += kPanelRows * 4) {
    if (s % kFetchSteps == 0) fetch.next();
    __m512i u = _mm512_loadu_si512(panel), v = _mm512_loadu_si512(panel + 64);
#pragma GCC unroll 4
    for (int r = 0; r < m; r++) {
      int32_t four;
      memcpy(&four, x + 4 * r, 4);
      acc[r][0] = _mm512_dpbusd_epi32(acc[r][0], u, _mm512_set1_epi32(four));
      acc[r][1] = _mm512_dpbusd_epi32(acc[r][1], v, _mm512_set1_epi32(four));
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < m; r++) {
    _mm512_storeu_si512(sums + r * 32, acc[r][0]);
    _mm512_storeu_si512(sums + r * 32 + 16, acc[r][1]);
  }
}

inline void add_tile(int64_t rows, const int8_t* x, const uint8_t* panel, int64_t steps, const int32_t* from,
                     int32_t* sums, const Fetch& fetch) {
  switch (rows) {
    case kTileRows: return int_tile12(x, panel, steps, from, sums, fetch);
    case 4: return int_tile<4>(x, panel, steps, from, sums, fetch);
    default: return int_tile<1>(x, panel, steps, from, sums, fetch);
  }
}

}  // namespace
}  // namespace hearthlm::HEARTHLM_TARGET
