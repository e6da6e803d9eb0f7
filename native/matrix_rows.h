// Where the rows of a weight matrix lie, and how integer kernels cut them. Everything is local to the including source,
// see kernels.h.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace hearthlm::HEARTHLM_TARGET {
namespace {

inline int64_t row_bytes(const Matrix& w) {
  switch (w.type) {
    case WeightType::kFloat32: return w.columns * 4;
    case WeightType::kFloat16:
    case WeightType::kBfloat16: return w.columns * 2;
    case WeightType::kInt8: return w.columns;
    case WeightType::kInt4: return (w.columns + 1) / 2;
  }
  return 0;
}

inline const uint8_t* row_of(const Matrix& w, int64_t row) {
  return static_cast<const uint8_t*>(w.data) + row * row_bytes(w);
}

// Integer kernels read weights in chunks of 64 bytes. Activations lie to match: 64 per chunk for int8; for int4 the 64
// even columns of the chunk, then the 64 odd ones. Zeros fill the last chunk, so what its weights hold does not matter.
constexpr int64_t kChunk = 64;
// |sum| <= 255 * 128 * columns must stay below 2^31.
constexpr int64_t kMaxColumns = 65536;

inline int64_t chunks_of(const Matrix& w) { return (row_bytes(w) + kChunk - 1) / kChunk; }

template <bool is_int4>
constexpr int64_t kChunkColumns = is_int4 ? 2 * kChunk : kChunk;

}  // namespace
}  // namespace hearthlm::HEARTHLM_TARGET
