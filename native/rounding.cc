#include "kernels.h"
#include "simd.h"

namespace hearthlm::HEARTHLM_TARGET {
namespace {

constexpr int64_t kVecs = 2, kTileRows = kVecs * kLanes;  // a tile's column of the weights fills kVecs registers
constexpr int64_t kBlock = 32;                            // columns whose errors are carried on together
constexpr int64_t kColumns = 4;                           // columns that take in errors at a time

struct RoundJob {
  const float* w;
  int64_t k;
  const float *u, *scales;
  float lowest, highest;
  int8_t* q;
  float* losses;
  ThreadPool& pool;
};

// Takes from `kCount` columns of a tile, one after the other in memory, the errors of `block` columns; u is the first
// row's factor of the first of them. Every element meets the errors in their order, as in a loop over all columns.
template <int64_t kCount>
inline void carry(float* columns, const float* errors, const float* u, int64_t k, int64_t block) {
  Vec sums[kCount][kVecs];
  for (int64_t c = 0; c < kCount; c++) {
    for (int64_t v = 0; v < kVecs; v++) sums[c][v] = load(columns + c * kTileRows + v * kLanes);
  }
  for (int64_t j = 0; j < block; j++, u += k, errors += kTileRows) {
    for (int64_t v = 0; v < kVecs; v++) {
      Vec error = load(errors + v * kLanes);
      for (int64_t c = 0; c < kCount; c++) sums[c][v] -= u[c] * error;
    }
  }
  for (int64_t c = 0; c < kCount; c++) {
    for (int64_t v = 0; v < kVecs; v++) store(columns + c * kTileRows + v * kLanes, sums[c][v]);
  }
}

// Rows [begin, end), at most kTileRows. Rows that are missing are zeros with scale 1.
void round_tile(const RoundJob& job, int64_t begin, int64_t end, int worker) {
  int64_t rows = end - begin, k = job.k;
  float* tile = static_cast<float*>(job.pool.scratch(worker, 0, k * kTileRows * 4));  // [k, kTileRows]
  float scales[kTileRows], errors[kBlock * kTileRows], losses[kTileRows] = {};
  for (int64_t r = 0; r < kTileRows; r++) {
    scales[r] = r < rows ? job.scales[begin + r] : 1.0f;
    for (int64_t c = 0; c < k; c++) tile[c * kTileRows + r] = r < rows ? job.w[(begin + r) * k + c] : 0.0f;
  }
  for (int64_t first = 0; first < k; first += kBlock) {
    int64_t last = min_of(first + kBlock, k);
    for (int64_t j = first; j < last; j++) {
      float* error = errors + (j - first) * kTileRows;
      for (int64_t v = 0; v < kVecs; v++) {
        Vec value = load(tile + j * kTileRows + v * kLanes), scale = load(scales + v * kLanes);
        Vec clipped = min_of(max_of(value / scale, broadcast(job.lowest)), broadcast(job.highest));
        IntVec q = round_to_int(clipped);
        Vec e = (value - __builtin_convertvector(q, Vec) * scale) / job.u[j * k + j];
        store(error + v * kLanes, e);
        store(losses + v * kLanes, load(losses + v * kLanes) + e * e);
        for (int64_t lane = 0; lane < kLanes && v * kLanes + lane < rows; lane++) {
          job.q[(begin + v * kLanes + lane) * k + j] = static_cast<int8_t>(q[lane]);
        }
      }
      for (int64_t c = j + 1; c < last; c++) carry<1>(tile + c * kTileRows, error, job.u + j * k + c, k, 1);
    }
    int64_t c = last;
    for (; c + kColumns <= k; c += kColumns) {
      carry<kColumns>(tile + c * kTileRows, errors, job.u + first * k + c, k, last - first);
    }
    for (; c < k; c++) carry<1>(tile + c * kTileRows, errors, job.u + first * k + c, k, last - first);
  }
  memcpy(job.losses + begin, losses, static_cast<size_t>(rows) * sizeof(float));
}

void round_part(const void* context, int64_t begin, int64_t end, int worker) {
  const RoundJob& job = *static_cast<const RoundJob*>(context);
  for (; begin < end; begin += kTileRows) round_tile(job, begin, min_of(begin + kTileRows, end), worker);
}

void round_compensated(const float* w, int64_t m, int64_t k, const float* u, const float* scales, float lowest,
                       float highest, int8_t* q, float* losses, ThreadPool& pool) {
  RoundJob job{w, k, u, scales, lowest, highest, q, losses, pool};
  pool.run(m, kTileRows, round_part, &job);
}

}  // namespace

void add_rounding(Kernels& kernels) { kernels.round_compensated = round_compensated; }

}  // namespace hearthlm::HEARTHLM_TARGET
