#include "activation.h"
#include "kernels.h"
#include "matrix_rows.h"
#include "simd.h"
#if defined(__AVX512VNNI__)
#include "int8_avx512.h"
#elif defined(__AVX2__)
#include "int8_avx2.h"
#elif HEARTHLM_NEON
#include "int8_neon.h"
#else
#include "int8_portable.h"
#endif

// What multiplies many rows of integers, see below.
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__) || (HEARTHLM_NEON && defined(__ARM_FEATURE_DOTPROD))
#define HEARTHLM_PANELS 1
#else
#define HEARTHLM_PANELS 0
#endif

namespace hearthlm::HEARTHLM_TARGET {
namespace {

// Slots of scratch memory.
constexpr int kRowsSlot = 0;   // of the caller: the activations, read by every worker
constexpr int kPanelSlot = 1;  // weights unpacked for several rows of activations
constexpr int kSumsSlot = 2;   // a panel's, from block to block
constexpr int kUpSlot = 3;     // what a gate is multiplied by

// Rows per part so that a part is one long stream of memory, but the threads still end together.
inline int64_t stream_grain(int64_t bytes, int64_t rows, int threads) {
  int64_t wanted = min_of<int64_t>(max_of<int64_t>((bytes + 1) * rows / (threads * 8), 1 << 15), 1 << 20);
  return wanted / (bytes + 1) + 1;
}

// ---- Weights as floats --------------------------------------------------------------------------------------------

inline float offset_of(const Matrix& w, int64_t row) {
  return (w.type == WeightType::kInt4 ? 8.0f : 0.0f) + (w.zero_points ? w.zero_points[row] : 0.0f);
}

template <WeightType type>
void widen_row(const uint8_t* row, int64_t columns, float offset, float* out) {
  int64_t j = 0;
  for (; j + 2 * kLanes <= columns; j += 2 * kLanes) {
    store(out + j, widen<type>(row, j) - offset);
    store(out + j + kLanes, widen<type>(row, j + kLanes) - offset);
  }
  if (j < columns) widen_tail<type>(row, j, columns - j, offset, out + j);
}

// ---- Float activations --------------------------------------------------------------------------------------------
// A product is two registers of sums over k: even registers of columns go to the first, odd ones to the second. That
// holds for one row, where weights are widened on the way, and for several, where they are widened once into a panel.

template <WeightType type>
float dot(const float* x, const uint8_t* row, int64_t columns, float offset) {
  Vec a{}, b{};
  int64_t j = 0;
  for (; j + 2 * kLanes <= columns; j += 2 * kLanes) {
    prefetch(row, j * 4 / (type == WeightType::kFloat32 ? 1 : type == WeightType::kInt4 ? 8 : 2) + 4096);
    a = fma(load(x + j), widen<type>(row, j) - offset, a);
    b = fma(load(x + j + kLanes), widen<type>(row, j + kLanes) - offset, b);
  }
  if (j < columns) {
    float w[2 * kLanes];
    widen_tail<type>(row, j, columns - j, offset, w);
    a = fma(load(x + j), load(w), a);
    b = fma(load(x + j + kLanes), load(w + kLanes), b);
  }
  return sum_of(a + b);
}

constexpr int kFloatRows = kRegisters == 32 ? 4 : 2;
constexpr int kFloatColumns = kLanes == 4 ? 2 : 3;
constexpr int64_t kPanelBytes = 192 << 10;

// out [m][kFloatColumns] = x [m, stride] * w [kFloatColumns, stride]^T, stride a multiple of 2 kLanes.
template <int m>
void float_tile(const float* x, const float* w, int64_t stride, float* out) {
  Vec a[m][kFloatColumns] = {}, b[m][kFloatColumns] = {};
  auto add = [&](Vec(&sums)[m][kFloatColumns], int64_t j) __attribute__((always_inline)) {
    Vec columns[kFloatColumns];
#pragma GCC unroll 4
    for (int c = 0; c < kFloatColumns; c++) columns[c] = load(w + c * stride + j);
#pragma GCC unroll 4
    for (int r = 0; r < m; r++) {
      Vec row = load(x + r * stride + j);
      keep(row);
#pragma GCC unroll 4
      for (int c = 0; c < kFloatColumns; c++) sums[r][c] = fma(row, columns[c], sums[r][c]);
    }
  };
  for (int64_t j = 0; j < stride; j += 2 * kLanes) {
    add(a, j);
    add(b, j + kLanes);
  }
#pragma GCC unroll 4
  for (int r = 0; r < m; r++) {
#pragma GCC unroll 4
    for (int c = 0; c < kFloatColumns; c++) out[r * kFloatColumns + c] = sum_of(a[r][c] + b[r][c]);
  }
}

struct FloatJob {
  const float* x;  // [m, stride], zeros from w.columns on
  int64_t m, stride;
  const Matrix& w;
  const float* bias;
  float* y;
  ThreadPool& pool;
  int64_t panel_rows;
};

inline float finish(const FloatJob& job, float sum, int64_t column) {
  float y = job.w.scales ? sum * job.w.scales[column] : sum;
  return job.bias ? y + job.bias[column] : y;
}

template <WeightType type>
void float_one_row(const void* context, int64_t begin, int64_t end, int) {
  const FloatJob& job = *static_cast<const FloatJob*>(context);
  for (int64_t n = begin; n < end; n++) {
    job.y[n] = finish(job, dot<type>(job.x, row_of(job.w, n), job.w.columns, offset_of(job.w, n)), n);
  }
}

template <WeightType type>
void float_panels(const void* context, int64_t begin, int64_t end, int worker) {
  const FloatJob& job = *static_cast<const FloatJob*>(context);
  float* panel = static_cast<float*>(job.pool.scratch(worker, kPanelSlot, job.panel_rows * job.stride * 4));
  for (int64_t p = begin; p < end; p++) {
    int64_t first = p * job.panel_rows, rows = min_of(job.panel_rows, job.w.rows - first);
    for (int64_t n = 0; n < rows; n++) {
      widen_row<type>(row_of(job.w, first + n), job.w.columns, offset_of(job.w, first + n), panel + n * job.stride);
    }
    for (int64_t n = rows; n % kFloatColumns != 0; n++) {
      memset(panel + n * job.stride, 0, static_cast<size_t>(job.stride * 4));
    }
    for (int64_t i = 0; i < job.m; i += kFloatRows) {
      int64_t tile_rows = min_of<int64_t>(kFloatRows, job.m - i);
      const float* x = job.x + i * job.stride;
      for (int64_t n = 0; n < rows; n += kFloatColumns) {
        float out[kFloatRows * kFloatColumns];
        const float* w = panel + n * job.stride;
        switch (tile_rows) {
          case 1: float_tile<1>(x, w, job.stride, out); break;
          case 2: float_tile<2>(x, w, job.stride, out); break;
          case 3: float_tile<min_of(3, kFloatRows)>(x, w, job.stride, out); break;
          default: float_tile<kFloatRows>(x, w, job.stride, out); break;
        }
        int64_t columns = min_of<int64_t>(kFloatColumns, rows - n);
        for (int64_t r = 0; r < tile_rows; r++) {
          float* y = job.y + (i + r) * job.w.rows + first + n;
          for (int64_t c = 0; c < columns; c++) y[c] = finish(job, out[r * kFloatColumns + c], first + n + c);
        }
      }
    }
  }
}

template <WeightType type>
void run_float(const FloatJob& job) {
  if (job.m == 1) {
    job.pool.run(job.w.rows, stream_grain(row_bytes(job.w), job.w.rows, job.pool.threads()), float_one_row<type>, &job);
  } else {
    job.pool.run((job.w.rows + job.panel_rows - 1) / job.panel_rows, 1, float_panels<type>, &job);
  }
}

void linear_float(const float* x, int64_t m, const Matrix& w, const float* bias, float* y, ThreadPool& pool) {
  if (m == 0 || w.rows == 0) return;
  int64_t k = w.columns, stride = round_up(k, 2 * kLanes);
  // Several rows are read again and again: worth a copy that no load straddles cache lines in.
  if (stride != k || (m > 1 && reinterpret_cast<uintptr_t>(x) % 64 != 0)) {
    float* padded = static_cast<float*>(pool.scratch(0, kRowsSlot, m * stride * 4 + 4));
    for (int64_t i = 0; i < m; i++) {
      memcpy(padded + i * stride, x + i * k, static_cast<size_t>(k * 4));
      memset(padded + i * stride + k, 0, static_cast<size_t>((stride - k) * 4));
    }
    x = padded;
  }
  int64_t panel_rows = max_of<int64_t>(kPanelBytes / (stride * 4 + 1) / kFloatColumns, 1) * kFloatColumns;
  // Enough panels for every thread.
  panel_rows = min_of(panel_rows, round_up(max_of<int64_t>(w.rows / (4 * pool.threads()), 1), kFloatColumns));
  FloatJob job{x, m, stride, w, bias, y, pool, panel_rows};
  switch (w.type) {
    case WeightType::kFloat32: return run_float<WeightType::kFloat32>(job);
    case WeightType::kFloat16: return run_float<WeightType::kFloat16>(job);
    case WeightType::kBfloat16: return run_float<WeightType::kBfloat16>(job);
    case WeightType::kInt8: return run_float<WeightType::kInt8>(job);
    case WeightType::kInt4: return run_float<WeightType::kInt4>(job);
  }
}

// ---- Integer activations ------------------------------------------------------------------------------------------
// The dot products are each instruction set's own, in int8_*.h: `Sums`, a register of sums, and `total` of it;
// `add_chunk`, which adds one chunk of products to the sums of m rows of activations, `stride` bytes apart; and `kBias`,
// what sums are then too large by, in units of the sum of the activations: int4 is stored as q + 8, and the unsigned
// operand of VNNI is q + 128.

template <bool is_int4>
void arrange_row(const int8_t* x, int64_t k, int8_t* out) {
  if constexpr (!is_int4) {
#if HEARTHLM_WIDE_ACTIVATIONS
    int16_t* wide = reinterpret_cast<int16_t*>(out);
    for (int64_t j = 0; j < k; j++) wide[j] = x[j];
    memset(wide + k, 0, static_cast<size_t>(2 * (round_up(k, kChunk) - k)));
#else
    memcpy(out, x, static_cast<size_t>(k));
    memset(out + k, 0, static_cast<size_t>(round_up(k, kChunk) - k));
#endif
  } else {
    for (int64_t j = 0; j < k; j += 2 * kChunk, out += 2 * kChunk) {
      int8_t last[2 * kChunk];
      const int8_t* chunk = x + j;
      if (j + 2 * kChunk > k) {
        memset(last, 0, sizeof last);
        memcpy(last, chunk, static_cast<size_t>(k - j));
        chunk = last;
      }
#if defined(__AVX512BW__)
      __m512i a = _mm512_loadu_si512(chunk), b = _mm512_loadu_si512(chunk + 64);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm512_cvtepi16_epi8(a));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 32), _mm512_cvtepi16_epi8(b));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 64), _mm512_cvtepi16_epi8(_mm512_srli_epi16(a, 8)));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 96), _mm512_cvtepi16_epi8(_mm512_srli_epi16(b, 8)));
#else
      for (int64_t i = 0; i < kChunk; i++) {
        out[i] = chunk[2 * i];
        out[kChunk + i] = chunk[2 * i + 1];
      }
#endif
    }
  }
}

// acc [m] = exact sums over one row of weights, too large by kBias times the sum of the activations.
template <bool is_int4, int m>
inline void int_dots(const int8_t* x, int64_t stride, const uint8_t* w, int64_t bytes, int64_t* acc) {
  constexpr int64_t kBlock = is_int4 ? kMaxColumns / 2 : kMaxColumns;
  for (int r = 0; r < m; r++) acc[r] = 0;
  for (int64_t begin = 0; begin < bytes; begin += kBlock) {
    int64_t end = min_of(begin + kBlock, bytes), j = begin;
    Sums sums[m][2] = {};
    const int8_t* rows = x + begin / kChunk * kChunkBytes<is_int4>;
    if constexpr (m == 1 && !is_int4) {  // more chains of sums, as one waits for its latency
      Sums others[1][2] = {};
      for (; j + 2 * kChunk <= end; j += 2 * kChunk, rows += 2 * kChunkBytes<false>) {
        prefetch(w, j + 4096);
        prefetch(w, j + 4096 + kChunk);
        add_chunk<false, 1>(sums, w + j, rows, 0);
        add_chunk<false, 1>(others, w + j + kChunk, rows + kChunkBytes<false>, 0);
      }
      acc[0] += static_cast<int64_t>(total(others[0][0])) + total(others[0][1]);
    }
    for (; j + kChunk <= end; j += kChunk, rows += kChunkBytes<is_int4>) {
      prefetch(w, j + 4096);
      add_chunk<is_int4, m>(sums, w + j, rows, stride);
    }
    if (j < end) {
      uint8_t last[kChunk] = {};
      memcpy(last, w + j, static_cast<size_t>(end - j));
      add_chunk<is_int4, m>(sums, last, rows, stride);
    }
    for (int r = 0; r < m; r++) acc[r] += static_cast<int64_t>(total(sums[r][0])) + total(sums[r][1]);
  }
}

constexpr int64_t kBlockBytes = 192 << 10;
constexpr int64_t kMinColumns = 16;  // of y, a cache line: threads that share one wait for each other

// y = x * w^T, or act(x * w^T) * (x * up^T).
struct IntJob {
  const int8_t* x;  // arranged: [m, stride], or tiles of them
  const float* scales;
  const int32_t* sums;
  int64_t m, stride;
  Matrix w;
  const float* bias;
  const Matrix* up;  // of w's type and shape, or null
  const float* up_bias;
  Activation kind;
  float* y;
  ThreadPool* pool;
  const int8_t* values;  // [m, columns] as they came
  // y[i, n] is at y + (i - first_row) * y_stride + n - first_column
  int64_t y_stride, first_row = 0, first_column = 0;

  float* y_at(int64_t i, int64_t n) const { return y + (i - first_row) * y_stride + n - first_column; }

  // The product with `up`, of the part of y that begins at [row, column], to `memory`.
  IntJob product_of_up(float* memory, int64_t memory_stride, int64_t row, int64_t column) const {
    IntJob job = *this;
    job.w = *up;
    job.bias = up_bias;
    job.y = memory;
    job.y_stride = memory_stride;
    job.first_row = row;
    job.first_column = column;
    return job;
  }
};

inline float finished(const IntJob& job, int64_t acc, int64_t bias, int64_t i, int64_t n) {
  int64_t exact = acc - bias * job.sums[i];
  float y;
  if (job.w.zero_points) {
    // In double both products are exact, and their difference is rounded once.
    y = static_cast<float>(static_cast<double>(exact) -
                           static_cast<double>(job.w.zero_points[n]) * static_cast<double>(job.sums[i]));
  } else {
    y = static_cast<float>(exact);
  }
  y = y * (job.scales[i] * job.w.scales[n]);
  return job.bias ? y + job.bias[n] : y;
}

template <bool is_int4, int m>
inline void int_rows(const IntJob& job, int64_t first, int64_t n, const uint8_t* w, int64_t bytes) {
  int64_t acc[m];
  int_dots<is_int4, m>(job.x + first * job.stride, job.stride, w, bytes, acc);
  for (int r = 0; r < m; r++) *job.y_at(first + r, n) = finished(job, acc[r], kBias<is_int4>, first + r, n);
}

// Rows of activations that stay in the second cache while weights pass by, a multiple of 4.
inline int64_t rows_per_block(const IntJob& job) { return max_of<int64_t>(kBlockBytes / (job.stride + 1) / 4, 1) * 4; }

#ifdef HEARTHLM_FOUR_COLUMNS
constexpr int64_t kColumnGroup = 4;
#if defined(__AVX512VNNI__)
constexpr int64_t kMinFourRows = 2;  // of activations
#else
constexpr int64_t kMinFourRows = 1;
#endif

// Four columns of m rows of y. Without zero points vectors round as `finished` does: the exact sum fits 32 bits.
template <bool is_int4, int m>
inline void int_four(const IntJob& job, int64_t i, int64_t n, const uint8_t* w, int64_t bytes) {
  typedef int32_t Ints __attribute__((vector_size(16)));
  typedef float Floats __attribute__((vector_size(16)));
  int32_t totals[m][4];
  dot_four<is_int4, m>(w, bytes, job.x + i * job.stride, job.stride, i / 4, (job.m + 3) / 4, totals);
  if (job.w.zero_points) {
    for (int r = 0; r < m; r++) {
      for (int c = 0; c < 4; c++) *job.y_at(i + r, n + c) = finished(job, totals[r][c], kBias<is_int4>, i + r, n + c);
    }
    return;
  }
  Floats scales, bias{};
  memcpy(&scales, job.w.scales + n, sizeof scales);
  if (job.bias) memcpy(&bias, job.bias + n, sizeof bias);
  for (int r = 0; r < m; r++) {
    Ints exact;
    memcpy(&exact, totals[r], sizeof exact);
    exact -= static_cast<int32_t>(kBias<is_int4>) * job.sums[i + r];
    Floats y = __builtin_convertvector(exact, Floats) * (scales * job.scales[i + r]);
    if (job.bias) y += bias;
    memcpy(job.y_at(i + r, n), &y, sizeof y);
  }
}
#else
constexpr int64_t kColumnGroup = 1;
#endif

// Columns [begin, end) of rows [first, last) of y, a few of these at a time against one row of weights, or against four.
template <bool is_int4>
void int_block(const IntJob& job, int64_t first, int64_t last, int64_t begin, int64_t end) {
  int64_t bytes = row_bytes(job.w), n = begin;
#ifdef HEARTHLM_FOUR_COLUMNS
  for (; job.m >= kMinFourRows && n + 4 <= end && job.w.columns <= kMaxColumns; n += 4) {
    const uint8_t* w = row_of(job.w, n);
    int64_t i = first;
    for (; i + 4 <= last; i += 4) int_four<is_int4, 4>(job, i, n, w, bytes);
    switch (last - i) {
      case 1: int_four<is_int4, 1>(job, i, n, w, bytes); break;
      case 2: int_four<is_int4, 2>(job, i, n, w, bytes); break;
      case 3: int_four<is_int4, 3>(job, i, n, w, bytes); break;
      default: break;
    }
  }
#endif
  for (; n < end; n++) {
    const uint8_t* w = row_of(job.w, n);
    int64_t i = first;
    for (; i + 4 <= last; i += 4) int_rows<is_int4, 4>(job, i, n, w, bytes);
    switch (last - i) {
      case 1: int_rows<is_int4, 1>(job, i, n, w, bytes); break;
      case 2: int_rows<is_int4, 2>(job, i, n, w, bytes); break;
      case 3: int_rows<is_int4, 3>(job, i, n, w, bytes); break;
      default: break;
    }
  }
}

// Jobs on the same activations, computed as one: parts are `grain` columns of one of them.
constexpr int64_t kMaxJobs = 4;

struct IntJobs {
  IntJob* jobs;
  int64_t count, grain;

  int64_t parts() const {
    int64_t parts = 0;
    for (int64_t i = 0; i < count; i++) parts += (jobs[i].w.rows + grain - 1) / grain;
    return parts;
  }
  // The job of a part and its first column; null past the last part.
  const IntJob* find(int64_t part, int64_t& first) const {
    for (int64_t i = 0; i < count; i++) {
      int64_t parts = (jobs[i].w.rows + grain - 1) / grain;
      first = part * grain;
      if (part < parts) return &jobs[i];
      part -= parts;
    }
    return nullptr;
  }
};

template <bool is_int4>
void int_columns(const void* context, int64_t begin_part, int64_t end_part, int worker) {
  const IntJobs& jobs = *static_cast<const IntJobs*>(context);
  for (int64_t part = begin_part; part < end_part; part++) {
    int64_t begin;
    const IntJob& job = *jobs.find(part, begin);
    int64_t end = min_of(begin + jobs.grain, job.w.rows), block = rows_per_block(job), columns = end - begin;
    for (int64_t i = 0; i < job.m; i += block) {
      int64_t last = min_of(i + block, job.m);
      int_block<is_int4>(job, i, last, begin, end);
      if (!job.up) continue;
      auto* up = static_cast<float*>(job.pool->scratch(worker, kUpSlot, (last - i) * columns * 4));
      int_block<is_int4>(job.product_of_up(up, columns, i, begin), i, last, begin, end);
      activate(job.kind, job.y_at(i, begin), job.y_stride, up, last - i, columns);
    }
  }
}

template <bool is_int4>
void arrange_rows(const void* context, int64_t begin, int64_t end, int) {
  const IntJob& job = *static_cast<const IntJob*>(context);
  for (int64_t i = begin; i < end; i++) {
    arrange_row<is_int4>(job.values + i * job.w.columns, job.w.columns, const_cast<int8_t*>(job.x) + i * job.stride);
  }
}

#if HEARTHLM_PANELS
// Many rows. kPanelRows rows of weights are unpacked and transposed into a panel [steps][kPanelRows][kStep] of bytes, a
// step being kStep columns; activations lie in tiles [steps][tile rows][kStep]. A tile of sums stays in registers. Of
// the instruction set are kPanelRows and kStep; `tile_rows_at`, which cuts rows of activations, a multiple of
// kRowMultiple, into tiles of kTileRows and then smaller ones; `fill_panel`; `add_tile`, which writes sums
// [tile rows][kPanelRows], others' and the products of a tile and a panel, and meanwhile fetches lines of memory; and
// kMinPanelRows, from which on unpacking pays.

constexpr int64_t kBlockColumns = 2048;  // of a panel in memory, at most 64 KiB

template <bool is_int4>
void arrange_tiles(const void* context, int64_t begin, int64_t end, int worker) {
  const IntJob& job = *static_cast<const IntJob*>(context);
  int64_t padded = round_up(job.m, kRowMultiple);
  for (int64_t i = begin * kTileRows; i < min_of(end * kTileRows, padded);) {
    int64_t rows = tile_rows_at(padded - i);
    int8_t* tile = const_cast<int8_t*>(job.x) + i * job.stride;
    const int8_t* values = job.values + i * job.w.columns;
#ifdef HEARTHLM_TILE_TRANSPOSED
    if (rows == kTileRows) {
      arrange_tile<is_int4>(values, job.w.columns, tile);
      i += rows;
      continue;
    }
#endif
    int8_t* row = static_cast<int8_t*>(job.pool->scratch(worker, kPanelSlot, job.stride));
    for (int64_t r = 0; r < rows; r++) {
      if (i + r < job.m) arrange_row<is_int4>(values + r * job.w.columns, job.w.columns, row);
      else memset(row, 0, static_cast<size_t>(job.stride));
      for (int64_t s = 0; s < job.stride / kStep; s++) memcpy(tile + (s * rows + r) * kStep, row + s * kStep, kStep);
    }
    i += rows;
  }
}

// What one panel's sums become y by.
struct PanelScales {
  static constexpr int64_t kVecs = kPanelRows / kLanes;
  int64_t first, columns;  // of y
  Vec scales[kVecs], bias[kVecs] = {};
  int64_t sizes[kVecs];

  PanelScales(const IntJob& job, int64_t first) : first(first), columns(min_of(kPanelRows, job.w.rows - first)) {
    for (int64_t v = 0; v < kVecs; v++) {
      sizes[v] = max_of<int64_t>(min_of<int64_t>(columns - v * kLanes, kLanes), 0);
      scales[v] = load_first(job.w.scales + first + v * kLanes, sizes[v]);
      if (job.bias) bias[v] = load_first(job.bias + first + v * kLanes, sizes[v]);
    }
  }
};

// Vectors round as `finished` does without zero points: the exact sum fits 32 bits.
template <bool is_int4, bool is_whole>
inline void finish_vectors(const IntJob& job, const PanelScales& panel, const int32_t* sums, int64_t begin,
                           int64_t end) {
  bool is_biased = job.bias != nullptr;
  float* out = job.y_at(begin, panel.first);
  for (int64_t i = begin; i < end; i++, sums += kPanelRows, out += job.y_stride) {
    IntVec excess = IntVec{} + static_cast<int32_t>(kBias<is_int4>) * job.sums[i];
    for (int64_t v = 0; v < PanelScales::kVecs; v++) {
      Vec exact = __builtin_convertvector(*reinterpret_cast<const UnalignedIntVec*>(sums + v * kLanes) - excess, Vec);
      Vec y = exact * (panel.scales[v] * job.scales[i]);
      if (is_biased) y += panel.bias[v];
      if constexpr (is_whole) store(out + v * kLanes, y);
      else store_first(out + v * kLanes, y, panel.sizes[v]);
    }
  }
}

// A tile's sums to rows [begin, end) of y.
template <bool is_int4>
void finish_tile(const IntJob& job, const PanelScales& panel, const int32_t* sums, int64_t begin, int64_t end) {
  if (job.w.zero_points) {
    for (int64_t i = begin; i < end; i++, sums += kPanelRows) {
      float* out = job.y_at(i, panel.first);
      for (int64_t c = 0; c < panel.columns; c++) out[c] = finished(job, sums[c], kBias<is_int4>, i, panel.first + c);
    }
  } else if (panel.columns == kPanelRows) {
    finish_vectors<is_int4, true>(job, panel, sums, begin, end);
  } else {
    finish_vectors<is_int4, false>(job, panel, sums, begin, end);
  }
}

// Columns [first, first + kPanelRows) of y. With `gate`, y is its up, and its y becomes the product.
template <bool is_int4>
void int_panel(const IntJob& job, int64_t first, const IntJob* gate, const Matrix& next, int64_t next_first,
               int worker) {
  static constexpr int32_t kZeros[kTileRows * kPanelRows] = {};
  int64_t bytes = row_bytes(job.w), chunks = chunks_of(job.w), padded = round_up(job.m, kRowMultiple);
  int64_t blocks = (job.w.columns + kBlockColumns - 1) / kBlockColumns, block = (chunks + blocks - 1) / blocks;
  auto* panel = static_cast<uint8_t*>(job.pool->scratch(worker, kPanelSlot, kBlockColumns * kPanelRows));
  auto* sums = static_cast<int32_t*>(
      job.pool->scratch(worker, kSumsSlot, (blocks == 1 ? kTileRows : padded) * kPanelRows * 4));
  PanelScales scales(job, first);
  for (int64_t chunk = 0; chunk < chunks; chunk += block) {
    int64_t chunk_end = min_of(chunk + block, chunks);
    int64_t steps = (chunk_end - chunk) * kChunkColumns<is_int4> / kStep;
    bool is_last = chunk_end == chunks;
    fill_panel<is_int4>(job.w, first, chunk, chunk_end, panel);
    const Matrix& next_w = is_last ? next : job.w;
    int64_t next_row = is_last ? next_first : first, next_begin = is_last ? 0 : chunk_end * kChunk;
    int64_t next_bytes = min_of(next_begin + block * kChunk, bytes) - next_begin;
    Lines weights(static_cast<const uint8_t*>(next_w.data) + next_row * bytes + next_begin, bytes, next_bytes);
    if (next_row + kPanelRows > next_w.rows) weights.clear();
    for (int64_t i = 0; i < padded;) {
      int64_t rows = tile_rows_at(padded - i), end = min_of(i + rows, job.m);
      const int8_t* x = job.x + i * job.stride + chunk * kChunkColumns<is_int4> * rows;
      int32_t* tile = blocks == 1 ? sums : sums + i * kPanelRows;
      const IntJob& written = gate ? *gate : job;
      Lines results(written.y_at(i, first), written.y_stride * 4, kPanelRows * 4);
      if (is_last) results.allow(end - i);
      weights.allow(kPanelRows * (i + rows) / padded);
      add_tile(rows, x, panel, steps, chunk == 0 ? kZeros : tile, tile, Fetch{results, weights});
      if (is_last && gate) {
        float up[kTileRows * kPanelRows];
        finish_tile<is_int4>(gate->product_of_up(up, scales.columns, i, first), scales, tile, i, end);
        activate(gate->kind, gate->y_at(i, first), gate->y_stride, up, end - i, scales.columns);
      } else if (is_last) {
        finish_tile<is_int4>(job, scales, tile, i, end);
      }
      i += rows;
    }
  }
}

template <bool is_int4>
void int_panels(const void* context, int64_t begin, int64_t end, int worker) {
  const IntJobs& jobs = *static_cast<const IntJobs*>(context);
  for (int64_t p = begin; p < end; p++) {
    int64_t first, next_first = 0;
    const IntJob& job = *jobs.find(p, first);
    // Threads go on side by side, so this one's next panel is probably that far.
    const IntJob* next = jobs.find(p + job.pool->threads(), next_first);
    const Matrix& next_w = next ? next->w : job.w;
    if (!next) next_first = job.w.rows;
    if (job.up) {
      int_panel<is_int4>(job, first, nullptr, *job.up, first, worker);
      int_panel<is_int4>(job.product_of_up(nullptr, 0, 0, 0), first, &job, next_w, next_first, worker);
    } else {
      int_panel<is_int4>(job, first, nullptr, next_w, next_first, worker);
    }
  }
}
#endif

template <bool is_int4>
void run_jobs(IntJob* jobs, int64_t count) {
  const IntJob& job = jobs[0];
  IntJobs all{jobs, count, 0};
#if HEARTHLM_PANELS
  if (job.m >= kMinPanelRows && job.w.columns <= kMaxColumns) {
    void* x = job.pool->scratch(0, kRowsSlot, round_up(job.m, kRowMultiple) * job.stride + 1);
    for (int64_t i = 0; i < count; i++) jobs[i].x = static_cast<int8_t*>(x);
    job.pool->run((job.m + kTileRows - 1) / kTileRows, 4, arrange_tiles<is_int4>, &job);
    all.grain = kPanelRows;
    job.pool->run(all.parts(), 1, int_panels<is_int4>, &all);
    return;
  }
#endif
  void* x = job.pool->scratch(0, kRowsSlot, job.m * job.stride + 1);
  int64_t rows = 0;
  for (int64_t i = 0; i < count; i++) {
    jobs[i].x = static_cast<int8_t*>(x);
    rows += jobs[i].w.rows * (jobs[i].up ? 2 : 1);
  }
  job.pool->run(job.m, 16, arrange_rows<is_int4>, &job);
  int64_t grain = stream_grain(row_bytes(job.w), rows, job.pool->threads());
  grain = grain / ((min_of(job.m, rows_per_block(job)) + 3) / 4) + 1;
  if (job.up) grain = (grain + 1) / 2;
  all.grain = round_up(max_of(grain, kMinColumns), kColumnGroup);
  job.pool->run(all.parts(), 1, int_columns<is_int4>, &all);
}

IntJob job_of(const int8_t* x, const float* x_scales, const int32_t* x_sums, int64_t m, const Linear& linear,
              ThreadPool& pool) {
  const Matrix& w = linear.w;
  int64_t stride = chunks_of(w) * (w.type == WeightType::kInt4 ? kChunkBytes<true> : kChunkBytes<false>);
  return {nullptr, x_scales, x_sums, m, stride, w, linear.bias, nullptr, nullptr, {}, linear.y, &pool, x, w.rows};
}

void linear_int8(const int8_t* x, const float* x_scales, const int32_t* x_sums, int64_t m, const Linear* linears,
                 int64_t count, ThreadPool& pool) {
  for (int64_t begin = 0; m > 0 && begin < count; begin += kMaxJobs) {
    int64_t size = min_of(count - begin, kMaxJobs);
    IntJob first = job_of(x, x_scales, x_sums, m, linears[begin], pool), jobs[kMaxJobs] = {first, first, first, first};
    for (int64_t i = 1; i < size; i++) jobs[i] = job_of(x, x_scales, x_sums, m, linears[begin + i], pool);
    first.w.type == WeightType::kInt4 ? run_jobs<true>(jobs, size) : run_jobs<false>(jobs, size);
  }
}

void linear_gated(const int8_t* x, const float* x_scales, const int32_t* x_sums, int64_t m, const Linear& gate,
                  const Matrix& up, const float* up_bias, Activation kind, ThreadPool& pool) {
  if (m == 0) return;
  IntJob job = job_of(x, x_scales, x_sums, m, gate, pool);
  job.up = &up;
  job.up_bias = up_bias;
  job.kind = kind;
  up.type == WeightType::kInt4 ? run_jobs<true>(&job, 1) : run_jobs<false>(&job, 1);
}

// ---- Quantised activations and embeddings -------------------------------------------------------------------------

struct QuantizeJob {
  const float* x;
  int64_t k;
  int8_t* values;
  float* scales;
  int32_t* sums;
};

void quantize_part(const void* context, int64_t begin, int64_t end, int) {
  const QuantizeJob& job = *static_cast<const QuantizeJob*>(context);
  for (int64_t row = begin; row < end; row++) {
    QuantizedRow quantized = quantize_row(job.x + row * job.k, job.k, job.values + row * job.k);
    job.scales[row] = quantized.scale;
    job.sums[row] = quantized.sum;
  }
}

void quantize_rows(const float* x, int64_t m, int64_t k, int8_t* values, float* scales, int32_t* sums,
                   ThreadPool& pool) {
  QuantizeJob job{x, k, values, scales, sums};
  pool.run(m, 32768 / (k + 1) + 1, quantize_part, &job);
}

template <WeightType type>
void embed(const int32_t* ids, int64_t m, const Matrix& w, float scale, float* y) {
  for (int64_t i = 0; i < m; i++, y += w.columns) {
    const uint8_t* row = row_of(w, ids[i]);
    float offset = offset_of(w, ids[i]), row_scale = w.scales ? w.scales[ids[i]] : 1.0f;
    int64_t j = 0;
    for (; j + kLanes <= w.columns; j += kLanes) store(y + j, (widen<type>(row, j) - offset) * row_scale * scale);
    if (j < w.columns) {
      float tail[2 * kLanes];
      widen_tail<type>(row, j, w.columns - j, offset, tail);
      store_first(y + j, load(tail) * row_scale * scale, w.columns - j);
    }
  }
}

void embed_rows(const int32_t* ids, int64_t m, const Matrix& w, float scale, float* y) {
  switch (w.type) {
    case WeightType::kFloat32: return embed<WeightType::kFloat32>(ids, m, w, scale, y);
    case WeightType::kFloat16: return embed<WeightType::kFloat16>(ids, m, w, scale, y);
    case WeightType::kBfloat16: return embed<WeightType::kBfloat16>(ids, m, w, scale, y);
    case WeightType::kInt8: return embed<WeightType::kInt8>(ids, m, w, scale, y);
    case WeightType::kInt4: return embed<WeightType::kInt4>(ids, m, w, scale, y);
  }
}

}  // namespace

void add_linear(Kernels& kernels) {
  kernels.quantize_rows = quantize_rows;
  kernels.linear_float = linear_float;
  kernels.linear_int8 = linear_int8;
  kernels.linear_gated = linear_gated;
  kernels.embed_rows = embed_rows;
}

}  // namespace hearthlm::HEARTHLM_TARGET
