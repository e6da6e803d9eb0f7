#include "kernels.h"
#include "simd.h"

namespace hearthlm::HEARTHLM_TARGET {
namespace {

constexpr int64_t kMaxHeads = 4;  // query heads that share one pass over the keys and values of their kv head
constexpr int kQuerySlot = 1, kScoreSlot = 2;

// Registers of keys or values, stored as T.
inline Vec load_as(const float* p) { return load(p); }
inline Vec load_as(const uint16_t* p) { return load_half(p); }
inline Vec load_first_as(const float* p, int64_t n) { return load_first(p, n); }
inline Vec load_first_as(const uint16_t* p, int64_t n) { return load_half_first(p, n); }

template <class T>
inline T* plane(const Cache& cache, int64_t sequence, int64_t block, int64_t which, int64_t kv_head) {
  auto* base = reinterpret_cast<T*>(cache.addresses[cache.block_begin[sequence] + block]);
  return base + ((cache.layer * 2 + which) * cache.kv_heads + kv_head) * cache.block_size * cache.head_dim;
}

inline int64_t sequence_of(const Cache& cache, int64_t row) {
  int64_t low = 0, high = cache.sequences - 1;
  while (low < high) {  // the last sequence that begins at or before the row
    int64_t middle = (low + high + 1) / 2;
    if (cache.row_begin[middle] <= row) low = middle;
    else high = middle - 1;
  }
  return low;
}

// ---- Appending ----------------------------------------------------------------------------------------------------

inline void store_row(const float* x, int64_t n, float* out) { memcpy(out, x, static_cast<size_t>(n) * sizeof(float)); }

inline void store_row(const float* x, int64_t n, uint16_t* out) {
  int64_t c = 0;
  for (; c + kLanes <= n; c += kLanes) store_half(out + c, load(x + c));
  if (c < n) {
    uint16_t last[kLanes];
    store_half(last, load_first(x + c, n - c));
    memcpy(out + c, last, static_cast<size_t>(n - c) * sizeof(uint16_t));
  }
}

template <class T>
void append(const float* keys, const float* values, const Cache& cache) {
  for (int64_t i = 0; i < cache.sequences; i++) {
    for (int64_t row = cache.row_begin[i]; row < cache.row_begin[i + 1]; row++) {
      int64_t position = cache.first_positions[i] + row - cache.row_begin[i];
      int64_t block = position / cache.block_size, inside = position % cache.block_size * cache.head_dim;
      for (int64_t head = 0; head < cache.kv_heads; head++) {
        int64_t from = (row * cache.kv_heads + head) * cache.head_dim;
        store_row(keys + from, cache.head_dim, plane<T>(cache, i, block, 0, head) + inside);
        store_row(values + from, cache.head_dim, plane<T>(cache, i, block, 1, head) + inside);
      }
    }
  }
}

void kv_append(const float* keys, const float* values, const Cache& cache) {
  cache.is_half ? append<uint16_t>(keys, values, cache) : append<float>(keys, values, cache);
}

// ---- Attention ----------------------------------------------------------------------------------------------------

struct Job {
  const float* queries;
  const Cache& cache;
  const AttentionOptions& options;
  float* y;
  ThreadPool& pool;
  int64_t tile_heads, tiles_per_kv_head;
};

// The keys in sight of one query, first to last, and where their scores lie: score j at j - origin. The origin is a
// multiple of the lanes, so a key's lane, and with it the order of sums, depends on its absolute position alone.
struct Sight {
  int64_t sequence, first, last, origin, padded;
};

// scores [heads, padded] = q [heads, width] . k, width a multiple of the lanes, zeros past head_dim.
template <class T, int heads>
void score_keys(const Cache& cache, const Sight& sight, int64_t kv_head, const float* q, int64_t width, float* scores) {
  int64_t full = cache.head_dim / kLanes * kLanes, rest = cache.head_dim - full;
  for (int64_t j = sight.first; j <= sight.last;) {
    int64_t block = j / cache.block_size, end = min_of((block + 1) * cache.block_size, sight.last + 1);
    const T* k = plane<T>(cache, sight.sequence, block, 0, kv_head) + (j - block * cache.block_size) * cache.head_dim;
    for (; j < end; j++, k += cache.head_dim) {
      Vec sums[heads] = {};
      for (int64_t c = 0; c < full; c += kLanes) {
        Vec key = load_as(k + c);
#pragma GCC unroll 4
        for (int h = 0; h < heads; h++) sums[h] = fma(load(q + h * width + c), key, sums[h]);
      }
      if (rest) {
        Vec key = load_first_as(k + full, rest);
#pragma GCC unroll 4
        for (int h = 0; h < heads; h++) sums[h] = fma(load(q + h * width + full), key, sums[h]);
      }
#pragma GCC unroll 4
      for (int h = 0; h < heads; h++) scores[h * sight.padded + j - sight.origin] = sum_of(sums[h]);
    }
  }
}

// Turns the scores of one head into e^(score - highest), 0 out of sight; returns their sum.
float soften(const AttentionOptions& options, const Sight& sight, int64_t head, float* scores) {
  const float lowest = -__builtin_inff();
  int64_t lead = sight.first - sight.origin, size = sight.last + 1 - sight.origin;
  const float* bias = options.key_bias ? options.key_bias + head * options.key_bias_stride : nullptr;
  for (int64_t i = 0; i < lead; i++) scores[i] = 0;
  for (int64_t i = size; i < sight.padded; i++) scores[i] = 0;
  for (int64_t i = 0; i < sight.padded; i += kLanes) {
    Vec s = load(scores + i) * options.scale;
    if (options.soft_cap != 0) s = tanh_of(s / options.soft_cap) * options.soft_cap;
    if (bias) {
      int64_t position = sight.origin + i;
      s += load_first(bias + position, min_of<int64_t>(kLanes, options.key_bias_stride - position));
    }
    store(scores + i, s);
  }
  for (int64_t i = 0; i < lead; i++) scores[i] = lowest;
  for (int64_t i = size; i < sight.padded; i++) scores[i] = lowest;
  Vec highest_lanes = broadcast(lowest);
  for (int64_t i = 0; i < sight.padded; i += kLanes) highest_lanes = max_of(load(scores + i), highest_lanes);
  float highest = max_lane(highest_lanes);
  Vec sum{};
  for (int64_t i = 0; i < sight.padded; i += kLanes) {
    Vec e = exp_of(load(scores + i) - highest);
    store(scores + i, e);
    sum += e;
  }
  return sum_of(sum);
}

// y [heads, head_dim], `count` registers from channel c: sums of weights [heads, padded] times values, by position.
template <class T, int heads, int count>
inline void sum_values(const Cache& cache, const Sight& sight, int64_t kv_head, const float* weights,
                       const float* totals, int64_t c, int64_t rest, float* y) {
  Vec sums[heads][count] = {};
  for (int64_t j = sight.first; j <= sight.last;) {
    int64_t block = j / cache.block_size, end = min_of((block + 1) * cache.block_size, sight.last + 1);
    const T* v = plane<T>(cache, sight.sequence, block, 1, kv_head) + (j - block * cache.block_size) * cache.head_dim;
    v += c;
    for (; j < end; j++, v += cache.head_dim) {
      Vec value[count];
#pragma GCC unroll 4
      for (int i = 0; i < count; i++) value[i] = rest ? load_first_as(v, rest) : load_as(v + i * kLanes);
#pragma GCC unroll 4
      for (int h = 0; h < heads; h++) {
        Vec weight = broadcast(weights[h * sight.padded + j - sight.origin]);
#pragma GCC unroll 4
        for (int i = 0; i < count; i++) sums[h][i] = fma(weight, value[i], sums[h][i]);
      }
    }
  }
#pragma GCC unroll 4
  for (int h = 0; h < heads; h++) {
#pragma GCC unroll 4
    for (int i = 0; i < count; i++) {
      float* out = y + h * cache.head_dim + c + i * kLanes;
      Vec mean = sums[h][i] / totals[h];
      rest ? store_first(out, mean, rest) : store(out, mean);
    }
  }
}

template <class T, int heads>
void attend(const Job& job, const Sight& sight, int64_t row, int64_t head, int64_t kv_head, int worker) {
  const Cache& cache = job.cache;
  int64_t width = round_up(cache.head_dim, kLanes);
  auto* q = static_cast<float*>(job.pool.scratch(worker, kQuerySlot, heads * width * 4));
  auto* scores = static_cast<float*>(job.pool.scratch(worker, kScoreSlot, heads * sight.padded * 4));
  int64_t at = (row * job.options.heads + head) * cache.head_dim;
  for (int h = 0; h < heads; h++) {
    memcpy(q + h * width, job.queries + at + h * cache.head_dim, static_cast<size_t>(cache.head_dim) * sizeof(float));
    memset(q + h * width + cache.head_dim, 0, static_cast<size_t>(width - cache.head_dim) * sizeof(float));
  }
  score_keys<T, heads>(cache, sight, kv_head, q, width, scores);
  float totals[heads];
  for (int h = 0; h < heads; h++) totals[h] = soften(job.options, sight, head + h, scores + h * sight.padded);
  int64_t c = 0;
  constexpr int kCount = kRegisters == 32 ? 4 : 2;
  for (; c + kCount * kLanes <= cache.head_dim; c += kCount * kLanes) {
    sum_values<T, heads, kCount>(cache, sight, kv_head, scores, totals, c, 0, job.y + at);
  }
  for (; c + kLanes <= cache.head_dim; c += kLanes) {
    sum_values<T, heads, 1>(cache, sight, kv_head, scores, totals, c, 0, job.y + at);
  }
  if (c < cache.head_dim) {
    sum_values<T, heads, 1>(cache, sight, kv_head, scores, totals, c, cache.head_dim - c, job.y + at);
  }
}

template <class T>
void attend_part(const void* context, int64_t begin, int64_t end, int worker) {
  const Job& job = *static_cast<const Job*>(context);
  const Cache& cache = job.cache;
  int64_t group = job.options.heads / cache.kv_heads, tiles = cache.kv_heads * job.tiles_per_kv_head;
  for (int64_t i = begin; i < end; i++) {
    int64_t row = i / tiles, kv_head = i % tiles / job.tiles_per_kv_head;
    int64_t inside = i % job.tiles_per_kv_head * job.tile_heads, head = kv_head * group + inside;
    Sight sight;
    sight.sequence = sequence_of(cache, row);
    sight.last = cache.first_positions[sight.sequence] + row - cache.row_begin[sight.sequence];
    sight.first = job.options.window ? max_of<int64_t>(0, sight.last - job.options.window + 1) : 0;
    sight.origin = sight.first / kLanes * kLanes;
    sight.padded = round_up(sight.last + 1 - sight.origin, kLanes);
    switch (min_of(job.tile_heads, group - inside)) {
      case 1: attend<T, 1>(job, sight, row, head, kv_head, worker); break;
      case 2: attend<T, 2>(job, sight, row, head, kv_head, worker); break;
      case 3: attend<T, 3>(job, sight, row, head, kv_head, worker); break;
      default: attend<T, 4>(job, sight, row, head, kv_head, worker); break;
    }
  }
}

void attention(const float* queries, const Cache& cache, const AttentionOptions& options, float* y, ThreadPool& pool) {
  int64_t rows = cache.row_begin[cache.sequences];
  if (rows == 0) return;
  int64_t group = options.heads / cache.kv_heads;
  // Fewer heads per pass if there would not be one for every thread.
  int64_t tile_heads = min_of(kMaxHeads, group);
  while (tile_heads > 1 && rows * cache.kv_heads * ((group + tile_heads - 1) / tile_heads) < pool.threads()) tile_heads--;
  Job job{queries, cache, options, y, pool, tile_heads, (group + tile_heads - 1) / tile_heads};
  int64_t keys = 1;  // in sight of the longest sequence's last row
  for (int64_t i = 0; i < cache.sequences; i++) {
    keys = max_of<int64_t>(keys, cache.first_positions[i] + cache.row_begin[i + 1] - cache.row_begin[i]);
  }
  if (options.window) keys = min_of(keys, options.window);
  int64_t grain = (1 << 15) / (keys * cache.head_dim * tile_heads + 1) + 1;
  pool.run(rows * cache.kv_heads * job.tiles_per_kv_head, grain,
           cache.is_half ? attend_part<uint16_t> : attend_part<float>, &job);
}

}  // namespace

void add_attention(Kernels& kernels) {
  kernels.kv_append = kv_append;
  kernels.attention = attention;
}

}  // namespace hearthlm::HEARTHLM_TARGET
