#include "kernels.h"
#include "matrix_rows.h"
#include "simd.h"

namespace hearthlm::HEARTHLM_TARGET {
namespace {

constexpr int64_t kRows = 4;                           // of activations that share a pass over a factor
constexpr int64_t kRanks = kRegisters == 32 ? 4 : 2;   // rows of A that share a pass over activations
constexpr int64_t kVecs = kRegisters == 32 ? 4 : 2;    // registers of y that share a pass over the ranks
constexpr int64_t kColumns = 512;                      // of y, in an item
constexpr int64_t kPartProducts = 1 << 15;             // below this, waking a worker costs more than the work
constexpr int kLowSlot = 0;

struct Job {
  const float* x;
  const LoraRows* groups;
  float* y;
  float* low;  // x A^T times the scale: [rows, rank] of one group after the other
};

// Items of a group: kRows rows by kRanks ranks on the way down, by kColumns columns on the way up.
inline int64_t row_tiles(const LoraRows& group) { return (group.end - group.begin + kRows - 1) / kRows; }
inline int64_t rank_tiles(const LoraRows& group) { return (group.down.rows + kRanks - 1) / kRanks; }
inline int64_t column_tiles(const LoraRows& group) { return (group.up.columns + kColumns - 1) / kColumns; }

// The group that an item belongs to; leaves its index within the group, and moves `low` to the group's part of it.
template <int64_t (*tiles)(const LoraRows&)>
inline const LoraRows& group_of(const LoraRows* groups, int64_t& item, float*& low) {
  for (;; groups++) {
    int64_t items = row_tiles(*groups) * tiles(*groups);
    if (item < items) return *groups;
    item -= items;
    low += (groups->end - groups->begin) * groups->down.rows;
  }
}

// low [rows] at ranks [first, last) = scale * x [rows, k] . A. Every sum has one register, whatever the tile.
template <WeightType type, int rows>
void go_down(const LoraRows& group, const float* x, int64_t first, int64_t last, float* low) {
  int64_t k = group.down.columns, rank = group.down.rows;
  const uint8_t* w[kRanks];
  for (int64_t c = 0; c < kRanks; c++) w[c] = row_of(group.down, min_of(first + c, last - 1));
  Vec sums[rows][kRanks] = {};
  int64_t j = 0;
  for (; j + kLanes <= k; j += kLanes) {
    Vec factors[kRanks];
#pragma GCC unroll 4
    for (int64_t c = 0; c < kRanks; c++) factors[c] = widen<type>(w[c], j);
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
      Vec row = load(x + r * k + j);
#pragma GCC unroll 4
      for (int64_t c = 0; c < kRanks; c++) sums[r][c] = fma(row, factors[c], sums[r][c]);
    }
  }
  if (j < k) {
    for (int64_t c = 0; c < kRanks; c++) {
      float factors[2 * kLanes];
      widen_tail<type>(w[c], j, k - j, 0, factors);
      for (int r = 0; r < rows; r++) sums[r][c] = fma(load_first(x + r * k + j, k - j), load(factors), sums[r][c]);
    }
  }
  for (int r = 0; r < rows; r++) {
    for (int64_t c = 0; c < last - first; c++) low[r * rank + first + c] = sum_of(sums[r][c]) * group.scale;
  }
}

// `vecs` registers of y [rows, n] from column j on += low [rows, rank] . B; `rest` columns of the only one, unless 0.
template <WeightType type, int rows, int64_t vecs>
inline void go_up_columns(const LoraRows& group, const float* low, int64_t j, int64_t rest, float* y) {
  int64_t n = group.up.columns, rank = group.up.rows;
  Vec sums[rows][vecs] = {};
  for (int64_t p = 0; p < rank; p++) {
    const uint8_t* w = row_of(group.up, p);
    Vec factors[vecs];
    if (rest) {
      float tail[2 * kLanes];
      widen_tail<type>(w, j, rest, 0, tail);
      factors[0] = load(tail);
    } else {
#pragma GCC unroll 4
      for (int64_t v = 0; v < vecs; v++) factors[v] = widen<type>(w, j + v * kLanes);
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
      Vec weight = broadcast(low[r * rank + p]);
#pragma GCC unroll 4
      for (int64_t v = 0; v < vecs; v++) sums[r][v] = fma(weight, factors[v], sums[r][v]);
    }
  }
  for (int r = 0; r < rows; r++) {
    for (int64_t v = 0; v < vecs; v++) {
      float* out = y + r * n + j + v * kLanes;
      rest ? store_first(out, load_first(out, rest) + sums[r][v], rest) : store(out, load(out) + sums[r][v]);
    }
  }
}

template <WeightType type, int rows>
void go_up(const LoraRows& group, const float* low, int64_t begin, int64_t end, float* y) {
  int64_t j = begin;
  for (; j + kVecs * kLanes <= end; j += kVecs * kLanes) go_up_columns<type, rows, kVecs>(group, low, j, 0, y);
  for (; j + kLanes <= end; j += kLanes) go_up_columns<type, rows, 1>(group, low, j, 0, y);
  if (j < end) go_up_columns<type, rows, 1>(group, low, j, end - j, y);
}

// f<type, rows>(arguments), for the type of a factor and the number of rows, up to kRows.
#define HEARTHLM_ROWS(f, type, rows, ...)                   \
  switch (rows) {                                           \
    case 1: f<WeightType::type, 1>(__VA_ARGS__); break;     \
    case 2: f<WeightType::type, 2>(__VA_ARGS__); break;     \
    case 3: f<WeightType::type, 3>(__VA_ARGS__); break;     \
    default: f<WeightType::type, 4>(__VA_ARGS__); break;    \
  }
#define HEARTHLM_FACTOR(f, factor, rows, ...)                                               \
  if (factor.type == WeightType::kFloat16) HEARTHLM_ROWS(f, kFloat16, rows, __VA_ARGS__)    \
  else if (factor.type == WeightType::kBfloat16) HEARTHLM_ROWS(f, kBfloat16, rows, __VA_ARGS__) \
  else HEARTHLM_ROWS(f, kFloat32, rows, __VA_ARGS__)

void down_part(const void* context, int64_t begin, int64_t end, int) {
  const Job& job = *static_cast<const Job*>(context);
  for (; begin < end; begin++) {
    int64_t item = begin;
    float* low = job.low;
    const LoraRows& group = group_of<rank_tiles>(job.groups, item, low);
    int64_t row = item / rank_tiles(group) * kRows, first = item % rank_tiles(group) * kRanks;
    int64_t rows = min_of(kRows, group.end - group.begin - row), last = min_of(first + kRanks, group.down.rows);
    const float* x = job.x + (group.begin + row) * group.down.columns;
    low += row * group.down.rows;
    HEARTHLM_FACTOR(go_down, group.down, rows, group, x, first, last, low)
  }
}

void up_part(const void* context, int64_t begin, int64_t end, int) {
  const Job& job = *static_cast<const Job*>(context);
  for (; begin < end; begin++) {
    int64_t item = begin;
    float* low = job.low;
    const LoraRows& group = group_of<column_tiles>(job.groups, item, low);
    int64_t row = item / column_tiles(group) * kRows, first = item % column_tiles(group) * kColumns;
    int64_t rows = min_of(kRows, group.end - group.begin - row), last = min_of(first + kColumns, group.up.columns);
    float* y = job.y + (group.begin + row) * group.up.columns;
    low += row * group.down.rows;
    HEARTHLM_FACTOR(go_up, group.up, rows, group, low, first, last, y)
  }
}

void lora_add(const float* x, const LoraRows* groups, int64_t count, float* y, ThreadPool& pool) {
  int64_t values = 0, down_items = 0, up_items = 0, most_rows = 0, most_rank = 0;
  for (int64_t i = 0; i < count; i++) {
    const LoraRows& group = groups[i];
    values += (group.end - group.begin) * group.down.rows;
    down_items += row_tiles(group) * rank_tiles(group);
    up_items += row_tiles(group) * column_tiles(group);
    most_rows = max_of(most_rows, min_of(kRows, group.end - group.begin));
    most_rank = max_of(most_rank, group.down.rows);
  }
  if (values == 0) return;
  Job job{x, groups, y, static_cast<float*>(pool.scratch(0, kLowSlot, values * 4))};
  pool.run(down_items, kPartProducts / (most_rows * kRanks * groups[0].down.columns + 1) + 1, down_part, &job);
  pool.run(up_items, kPartProducts / (most_rows * kColumns * most_rank + 1) + 1, up_part, &job);
}

}  // namespace

void add_lora(Kernels& kernels) { kernels.lora_add = lora_add; }

}  // namespace hearthlm::HEARTHLM_TARGET
