// Where the rows of a weight matrix lie, what they are as floats, and how integer kernels cut them. Everything is local
// to the including source, see kernels.h.
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

// Columns j to j + kLanes as floats; int4 as q + 8.
template <WeightType type>
inline Vec widen(const uint8_t* row, int64_t j) {
  if constexpr (type == WeightType::kFloat32) {
    return load(reinterpret_cast<const float*>(row) + j);
  } else if constexpr (type == WeightType::kFloat16) {
    return load_half(reinterpret_cast<const uint16_t*>(row) + j);
  } else if constexpr (type == WeightType::kBfloat16) {
    typedef uint16_t Bits __attribute__((vector_size(2 * kLanes), aligned(2), may_alias));
    return as_float(__builtin_convertvector(*reinterpret_cast<const Bits*>(row + 2 * j), IntVec) << 16);
  } else if constexpr (type == WeightType::kInt8) {
#if defined(__AVX512F__)
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(row + j))));
#elif defined(__AVX2__)
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(row + j))));
#elif HEARTHLM_NEON
    uint32_t four;
    memcpy(&four, row + j, sizeof four);
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vcreate_s8(four)))));
#else
    const int8_t* q = reinterpret_cast<const int8_t*>(row) + j;
    IntVec values = {q[0], q[1], q[2], q[3]};
    return __builtin_convertvector(values, Vec);
#endif
  } else {
#if defined(__AVX512F__)
    __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(row + j / 2));
    __m128i mask = _mm_set1_epi8(15), low = _mm_and_si128(bytes, mask);
    __m128i high = _mm_and_si128(_mm_srli_epi16(bytes, 4), mask);
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_unpacklo_epi8(low, high)));
#elif defined(__AVX2__)
    int32_t four;
    memcpy(&four, row + j / 2, sizeof four);
    __m128i bytes = _mm_cvtsi32_si128(four);
    __m128i mask = _mm_set1_epi8(15), low = _mm_and_si128(bytes, mask);
    __m128i high = _mm_and_si128(_mm_srli_epi16(bytes, 4), mask);
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_unpacklo_epi8(low, high)));
#elif HEARTHLM_NEON
    uint16_t two;
    memcpy(&two, row + j / 2, sizeof two);
    uint8x8_t bytes = vcreate_u8(two), pairs = vzip1_u8(vand_u8(bytes, vdup_n_u8(15)), vshr_n_u8(bytes, 4));
    return vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(pairs))));
#else
    const uint8_t* b = row + j / 2;
    IntVec values = {b[0] & 15, b[0] >> 4, b[1] & 15, b[1] >> 4};
    return __builtin_convertvector(values, Vec);
#endif
  }
}

// Columns j to j + n, n < 2 kLanes, as floats less `offset`; the rest of out [2 kLanes] is zero.
template <WeightType type>
inline void widen_tail(const uint8_t* row, int64_t j, int64_t n, float offset, float* out) {
  uint8_t bytes[2 * kLanes * 4] = {};
  if constexpr (type == WeightType::kFloat32) {
    memcpy(bytes, row + 4 * j, static_cast<size_t>(4 * n));
  } else if constexpr (type == WeightType::kInt8) {
    memcpy(bytes, row + j, static_cast<size_t>(n));
  } else if constexpr (type == WeightType::kInt4) {
    memcpy(bytes, row + j / 2, static_cast<size_t>((n + 1) / 2));
  } else {
    memcpy(bytes, row + 2 * j, static_cast<size_t>(2 * n));
  }
  store(out, widen<type>(bytes, 0) - offset);
  store(out + kLanes, widen<type>(bytes, kLanes) - offset);
  for (int64_t i = n; i < 2 * kLanes; i++) out[i] = 0;
}

// Integer kernels read weights in chunks of 64 bytes. Activations lie to match: 64 per chunk for int8, as 16-bit numbers
// where bytes have no product that fits; for int4 the 64 even columns of the chunk, then the 64 odd ones. Zeros fill the
// last chunk, so what its weights hold does not matter.
constexpr int64_t kChunk = 64;
// |sum| <= 255 * 128 * columns must stay below 2^31.
constexpr int64_t kMaxColumns = 65536;

inline int64_t chunks_of(const Matrix& w) { return (row_bytes(w) + kChunk - 1) / kChunk; }

template <bool is_int4>
constexpr int64_t kChunkColumns = is_int4 ? 2 * kChunk : kChunk;

#if defined(__AVX2__) && !defined(__AVX512VNNI__) && !defined(__AVXVNNI__)
#define HEARTHLM_WIDE_ACTIVATIONS 1
#else
#define HEARTHLM_WIDE_ACTIVATIONS 0
#endif
template <bool is_int4>
constexpr int64_t kChunkBytes = !is_int4 && !HEARTHLM_WIDE_ACTIVATIONS ? kChunk : 2 * kChunk;  // of activations

// The cache lines of a rectangle, `width` bytes of rows that begin `stride` bytes apart, to be fetched row by row.
class Lines {
 public:
  Lines(const void* first, int64_t stride, int64_t width)
      : row_(reinterpret_cast<uintptr_t>(first)), stride_(stride), width_(width) {}

  void allow(int64_t rows) { rows_ = rows; }  // from the first on
  void clear() { width_ = 0; }

  // Asks for the next line, if there is one.
  bool fetch() {
    if (fetched_ >= rows_ || width_ <= 0) return false;
    prefetch(reinterpret_cast<const void*>(row_), offset_);
    offset_ += 64;
    if (offset_ >= width_) {
      offset_ = 0;
      row_ += static_cast<uintptr_t>(stride_);
      fetched_++;
    }
    return true;
  }

 private:
  uintptr_t row_;
  int64_t stride_, width_, offset_ = 0, rows_ = 0, fetched_ = 0;
};

// What memory brings while a tile is computed: its part of y, then weights for later. One line every kFetchSteps steps
// keeps within what a core can wait for at once; a block is a multiple of them.
constexpr int64_t kFetchSteps = 4;

struct Fetch {
  Lines& results;
  Lines& weights;
  void next() const {
    if (!results.fetch()) weights.fetch();
  }
};

// What four rows of weights against some of activations fetch meanwhile, as one of `passes` over these weights.
//
// Four streams of short rows are slower than one, so what comes next is fetched in the order of memory, by each pass its
// part of the next four rows. Long rows are fetched each for itself: four of them and their activations fill the first
// cache.
struct FourRowsAhead {
  static constexpr int64_t kLongRow = 2048, kAhead = 1024;
  bool is_long, fetches;
  int64_t lines;  // of 64 bytes, for each chunk of four rows
  int64_t next;   // of them, from the first row on

  FourRowsAhead(int64_t bytes, int64_t pass, int64_t passes)
      : is_long(bytes > kLongRow), lines(passes == 1 ? 4 : passes <= 3 ? 2 : 1) {
    next = passes == 1 ? 3 * bytes + 4096 : (4 + pass * lines) * bytes;
    fetches = is_long ? pass == 0 : pass * lines < 4;
  }

  // For the chunk at byte j of the rows at w.
  void fetch(const uint8_t* w, int64_t bytes, int64_t j) {
    if (!fetches) return;
    if (is_long) {
      int64_t ahead = j + kAhead < bytes ? j + kAhead : j + kAhead + 3 * bytes;
      for (int64_t r = 0; r < 4; r++) prefetch(w, r * bytes + ahead);
    } else {
      for (int64_t i = 0; i < lines; i++, next += kChunk) prefetch(w, next);
    }
  }
};

}  // namespace
}  // namespace hearthlm::HEARTHLM_TARGET
