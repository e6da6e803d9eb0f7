// Integer dot products in plain C++, for compilers to vectorise as they can. See linear.cc.
#pragma once

#include "matrix_rows.h"

namespace hearthlm::HEARTHLM_TARGET {
namespace {

template <bool is_int4>
constexpr int64_t kBias = is_int4 ? 8 : 0;

typedef int32_t Sums;
inline int32_t total(Sums s) { return s; }

template <bool is_int4, int m>
inline void add_chunk(Sums (&sums)[m][2], const uint8_t* w, const int8_t* x, int64_t stride) {
  for (int r = 0; r < m; r++, x += stride) {
    int32_t sum = 0;
    if constexpr (is_int4) {
      int16_t low[kChunk], high[kChunk];  // 16 bits: what vectorises to multiply-add
      for (int i = 0; i < kChunk; i++) {
        low[i] = static_cast<int16_t>(w[i] & 15);
        high[i] = static_cast<int16_t>(w[i] >> 4);
      }
      for (int i = 0; i < kChunk; i++) sum += low[i] * static_cast<int16_t>(x[i]);
      for (int i = 0; i < kChunk; i++) sum += high[i] * static_cast<int16_t>(x[kChunk + i]);
    } else {
      const int8_t* q = reinterpret_cast<const int8_t*>(w);
      for (int i = 0; i < kChunk; i++) sum += static_cast<int16_t>(q[i]) * static_cast<int16_t>(x[i]);
    }
    sums[r][0] += sum;
  }
}

}  // namespace
}  // namespace hearthlm::HEARTHLM_TARGET
