// Panels of weights for registers of 16 bytes. See linear.cc.
#pragma once

#include "matrix_rows.h"

namespace hearthlm::HEARTHLM_TARGET {
namespace {

typedef uint8_t Bytes __attribute__((vector_size(16)));

// Chunks [begin, end) of the rows from `first` on, as [steps][panel rows][step] bytes; rows past the last are zero.
// `store_steps` writes 16 bytes of 16 / step rows, step after step, panel_rows * step bytes apart. `flipped` bits of
// int8 weights are turned over.
template <bool is_int4, int64_t panel_rows, int64_t step, uint8_t flipped, void (*store_steps)(const Bytes*, uint8_t*)>
void fill_panel_of(const Matrix& w, int64_t first, int64_t begin, int64_t end, uint8_t* panel) {
  constexpr int64_t kGroup = 16 / step;
  const uint8_t zeros[kChunk] = {};
  int64_t bytes = row_bytes(w);
  for (int64_t chunk = begin; chunk < end; chunk++) {
    int64_t left = bytes - chunk * kChunk;
    for (int64_t row = 0; row < panel_rows; row += kGroup) {
      const uint8_t* rows[kGroup];
      uint8_t last[kGroup][kChunk];
      for (int64_t r = 0; r < kGroup; r++) {
        int64_t n = first + row + r;
        rows[r] = n < w.rows ? row_of(w, n) + chunk * kChunk : zeros;
        if (left < kChunk && n < w.rows) {
          memset(last[r], 0, kChunk);
          memcpy(last[r], rows[r], static_cast<size_t>(left));
          rows[r] = last[r];
        }
      }
      for (int64_t i = 0; i < kChunk; i += 16) {
        uint8_t* out = panel + i * panel_rows + row * step;
        Bytes in[kGroup], high[kGroup];
        for (int64_t r = 0; r < kGroup; r++) memcpy(&in[r], rows[r] + i, sizeof(Bytes));
        for (int64_t r = 0; r < kGroup; r++) {
          if constexpr (is_int4) {
            high[r] = in[r] >> 4;
            in[r] &= 15;
          } else {
            in[r] ^= flipped;
          }
        }
        store_steps(in, out);
        if constexpr (is_int4) store_steps(high, out + kChunk * panel_rows);
      }
    }
    panel += kChunkColumns<is_int4> * panel_rows;
  }
}

}  // namespace
}  // namespace hearthlm::HEARTHLM_TARGET
