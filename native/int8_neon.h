// Integer dot products with NEON: plain, with SDOT, and with SMMLA for several rows. See linear.cc.
#pragma once

#include "int8_panel.h"
#include "matrix_rows.h"

namespace hearthlm::HEARTHLM_TARGET {
namespace {

// Weights stay signed; int4 fits as it is stored.
template <bool is_int4>
constexpr int64_t kBias = is_int4 ? 8 : 0;

struct Sums {
  int32x4_t a, b;
};
inline int32_t total(Sums s) { return vaddvq_s32(vaddq_s32(s.a, s.b)); }

inline int8x16_t load_bytes(const void* p) { return vld1q_s8(static_cast<const int8_t*>(p)); }

#if defined(__ARM_FEATURE_DOTPROD)

template <bool is_int4, int m>
inline void add_chunk(Sums (&sums)[m][2], const uint8_t* w, const int8_t* x, int64_t stride) {
#pragma GCC unroll 4
  for (int i = 0; i < kChunk; i += 32, w += 32, x += 32) {
    int8x16_t a = load_bytes(w), b = load_bytes(w + 16);
    if constexpr (is_int4) {
      const int8x16_t mask = vdupq_n_s8(15);
      int8x16_t a_low = vandq_s8(a, mask), a_high = vreinterpretq_s8_u8(vshrq_n_u8(vreinterpretq_u8_s8(a), 4));
      int8x16_t b_low = vandq_s8(b, mask), b_high = vreinterpretq_s8_u8(vshrq_n_u8(vreinterpretq_u8_s8(b), 4));
#pragma GCC unroll 4
      for (int r = 0; r < m; r++) {
        const int8_t* row = x + r * stride;
        sums[r][0].a = vdotq_s32(sums[r][0].a, a_low, load_bytes(row));
        sums[r][0].b = vdotq_s32(sums[r][0].b, b_low, load_bytes(row + 16));
        sums[r][1].a = vdotq_s32(sums[r][1].a, a_high, load_bytes(row + kChunk));
        sums[r][1].b = vdotq_s32(sums[r][1].b, b_high, load_bytes(row + kChunk + 16));
      }
    } else {
#pragma GCC unroll 4
      for (int r = 0; r < m; r++) {
        const int8_t* row = x + r * stride;
        Sums& s = sums[r][i / 32];
        s.a = vdotq_s32(s.a, a, load_bytes(row));
        s.b = vdotq_s32(s.b, b, load_bytes(row + 16));
      }
    }
  }
}

#else

// At most 16 products in each lane: 16 * 15 * 128 = 30720, so 16 bits hold them.
inline int16x8_t add_products(int16x8_t sum, int8x16_t w, int8x16_t x) {
  return vmlal_high_s8(vmlal_s8(sum, vget_low_s8(w), vget_low_s8(x)), w, x);
}

template <bool is_int4, int m>
inline void add_chunk(Sums (&sums)[m][2], const uint8_t* w, const int8_t* x, int64_t stride) {
  if constexpr (is_int4) {
    const int8x16_t mask = vdupq_n_s8(15);
    int16x8_t products[m] = {};
#pragma GCC unroll 4
    for (int i = 0; i < kChunk; i += 16) {
      int8x16_t bytes = load_bytes(w + i), low = vandq_s8(bytes, mask);
      int8x16_t high = vreinterpretq_s8_u8(vshrq_n_u8(vreinterpretq_u8_s8(bytes), 4));
#pragma GCC unroll 4
      for (int r = 0; r < m; r++) {
        products[r] = add_products(products[r], low, load_bytes(x + r * stride + i));
        products[r] = add_products(products[r], high, load_bytes(x + r * stride + kChunk + i));
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < m; r++) sums[r][0].a = vpadalq_s16(sums[r][0].a, products[r]);
  } else {
    // Two products of full bytes may not fit 16 bits: each pair goes to 32.
#pragma GCC unroll 4
    for (int i = 0; i < kChunk; i += 16) {
      int8x16_t bytes = load_bytes(w + i);
#pragma GCC unroll 4
      for (int r = 0; r < m; r++) {
        int8x16_t row = load_bytes(x + r * stride + i);
        Sums& s = sums[r][i / 16 % 2];
        s.a = vpadalq_s16(s.a, vmull_s8(vget_low_s8(bytes), vget_low_s8(row)));
        s.b = vpadalq_s16(s.b, vmull_high_s8(bytes, row));
      }
    }
  }
}

#endif

// ---- Panels

#if defined(__ARM_FEATURE_MATMUL_INT8)

constexpr int64_t kPanelRows = 12;
constexpr int64_t kStep = 8;
constexpr int64_t kTileRows = 8;  // 24 registers of sums, each of 2 rows by 2
constexpr int64_t kRowMultiple = 2;
constexpr int64_t kMinPanelRows = 4;

inline int64_t tile_rows_at(int64_t rows_left) { return rows_left >= kTileRows ? kTileRows : rows_left >= 4 ? 4 : 2; }

inline void store_steps(const Bytes* rows, uint8_t* out) {
  uint64x2_t r[2];
  memcpy(r, rows, sizeof r);
  vst1q_u8(out, vreinterpretq_u8_u64(vzip1q_u64(r[0], r[1])));
  vst1q_u8(out + kPanelRows * kStep, vreinterpretq_u8_u64(vzip2q_u64(r[0], r[1])));
}

template <int m>
void int_tile(const int8_t* x, const uint8_t* panel, int64_t steps, const int32_t* from, int32_t* sums,
              const Fetch& fetch) {
  int32x4_t acc[m / 2][6];
#pragma GCC unroll 4
  for (int r = 0; r < m / 2; r++) {
#pragma GCC unroll 6
    for (int c = 0; c < 6; c++) {
      const int32_t* at = from + 2 * r * kPanelRows + 2 * c;
      acc[r][c] = vcombine_s32(vld1_s32(at), vld1_s32(at + kPanelRows));
    }
  }
  for (int64_t s = 0; s < steps; s++, x += m * kStep, panel += kPanelRows * kStep) {
    if (s % kFetchSteps == 0) fetch.next();
    int8x16_t rows[m / 2];
#pragma GCC unroll 4
    for (int r = 0; r < m / 2; r++) rows[r] = load_bytes(x + 16 * r);
#pragma GCC unroll 6
    for (int c = 0; c < 6; c++) {
      int8x16_t w = load_bytes(panel + 16 * c);
#pragma GCC unroll 4
      for (int r = 0; r < m / 2; r++) acc[r][c] = vmmlaq_s32(acc[r][c], rows[r], w);
      asm volatile("" ::: "memory");  // all weights loaded early would push sums to the stack
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < m / 2; r++) {
#pragma GCC unroll 6
    for (int c = 0; c < 6; c++) {
      int32_t* at = sums + 2 * r * kPanelRows + 2 * c;
      vst1_s32(at, vget_low_s32(acc[r][c]));
      vst1_s32(at + kPanelRows, vget_high_s32(acc[r][c]));
    }
  }
}

inline void add_tile(int64_t rows, const int8_t* x, const uint8_t* panel, int64_t steps, const int32_t* from,
                     int32_t* sums, const Fetch& fetch) {
  switch (rows) {
    case kTileRows: return int_tile<kTileRows>(x, panel, steps, from, sums, fetch);
    case 4: return int_tile<4>(x, panel, steps, from, sums, fetch);
    default: return int_tile<2>(x, panel, steps, from, sums, fetch);
  }
}

#elif defined(__ARM_FEATURE_DOTPROD)

constexpr int64_t kPanelRows = 12;
constexpr int64_t kStep = 4;
constexpr int64_t kTileRows = 8;  // 24 registers of sums
constexpr int64_t kRowMultiple = 4;
constexpr int64_t kMinPanelRows = 8;

inline int64_t tile_rows_at(int64_t rows_left) { return rows_left >= kTileRows ? kTileRows : 4; }

inline void store_steps(const Bytes* rows, uint8_t* out) {
  uint32x4_t r[4];
  memcpy(r, rows, sizeof r);
  uint64x2_t a = vreinterpretq_u64_u32(vtrn1q_u32(r[0], r[1])), b = vreinterpretq_u64_u32(vtrn2q_u32(r[0], r[1]));
  uint64x2_t c = vreinterpretq_u64_u32(vtrn1q_u32(r[2], r[3])), d = vreinterpretq_u64_u32(vtrn2q_u32(r[2], r[3]));
  constexpr int64_t kApart = kPanelRows * kStep;
  vst1q_u8(out, vreinterpretq_u8_u64(vtrn1q_u64(a, c)));
  vst1q_u8(out + kApart, vreinterpretq_u8_u64(vtrn1q_u64(b, d)));
  vst1q_u8(out + 2 * kApart, vreinterpretq_u8_u64(vtrn2q_u64(a, c)));
  vst1q_u8(out + 3 * kApart, vreinterpretq_u8_u64(vtrn2q_u64(b, d)));
}

template <int m>
void int_tile(const int8_t* x, const uint8_t* panel, int64_t steps, const int32_t* from, int32_t* sums,
              const Fetch& fetch) {
  int32x4_t acc[m][3];
#pragma GCC unroll 8
  for (int r = 0; r < m; r++) {
#pragma GCC unroll 3
    for (int c = 0; c < 3; c++) acc[r][c] = vld1q_s32(from + r * kPanelRows + 4 * c);
  }
  for (int64_t s = 0; s < steps; s++, panel += kPanelRows * kStep) {
    if (s % kFetchSteps == 0) fetch.next();
    int8x16_t w[3] = {load_bytes(panel), load_bytes(panel + 16), load_bytes(panel + 32)};
#pragma GCC unroll 2
    for (int r = 0; r < m; r += 4, x += 16) {
      int8x16_t rows = load_bytes(x);
#pragma GCC unroll 3
      for (int c = 0; c < 3; c++) {
        acc[r][c] = vdotq_laneq_s32(acc[r][c], w[c], rows, 0);
        acc[r + 1][c] = vdotq_laneq_s32(acc[r + 1][c], w[c], rows, 1);
        acc[r + 2][c] = vdotq_laneq_s32(acc[r + 2][c], w[c], rows, 2);
        acc[r + 3][c] = vdotq_laneq_s32(acc[r + 3][c], w[c], rows, 3);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < m; r++) {
#pragma GCC unroll 3
    for (int c = 0; c < 3; c++) vst1q_s32(sums + r * kPanelRows + 4 * c, acc[r][c]);
  }
}

inline void add_tile(int64_t rows, const int8_t* x, const uint8_t* panel, int64_t steps, const int32_t* from,
                     int32_t* sums, const Fetch& fetch) {
  if (rows == kTileRows) return int_tile<kTileRows>(x, panel, steps, from, sums, fetch);
  int_tile<4>(x, panel, steps, from, sums, fetch);
}

#endif

#if defined(__ARM_FEATURE_DOTPROD)

template <bool is_int4>
void fill_panel(const Matrix& w, int64_t first, int64_t begin, int64_t end, uint8_t* panel) {
  fill_panel_of<is_int4, kPanelRows, kStep, 0, store_steps>(w, first, begin, end, panel);
}

#endif

}  // namespace
}  // namespace hearthlm::HEARTHLM_TARGET
