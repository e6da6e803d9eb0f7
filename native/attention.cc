#include "kernels.h"
#include "simd.h"

namespace hearthlm::HEARTHLM_TARGET {
namespace {

// The values of the keys in sight are summed in chunks of so many absolute positions; the sums of chunks are joined in
// their order. So chunks can be computed anywhere, and the order of sums depends on positions alone.
constexpr int64_t kChunk = 256;
constexpr int64_t kTile = 16;                       // queries that go through a chunk together
constexpr int64_t kNear = 32;                       // keys that stay in the first cache for all of them
constexpr int kQueries = kRegisters == 32 ? 4 : 2;  // queries in registers at a time
constexpr int kKeys = 4;                            // with so many keys,
constexpr int kSums = kQueries * kKeys;             // that is, so many sums,
constexpr int kStrip = 4;                           // or with so many registers of a value
constexpr int kAhead = 8;                           // rows from the value that is read to the one that is asked for
static_assert(kAhead <= kSums && kSums % kLanes == 0);

constexpr int kSharedSlot = 0;  // of the caller
constexpr int kTileSlot = 1;

// Registers of keys or values, stored as T.
inline Vec load_as(const float* p) { return load(p); }
inline Vec load_as(const uint16_t* p) { return load_half(p); }
inline Vec load_as(const int8_t* p) { return load_bytes(p); }
inline Vec load_first_as(const float* p, int64_t n) { return load_first(p, n); }
inline Vec load_first_as(const uint16_t* p, int64_t n) { return load_half_first(p, n); }
inline Vec load_first_as(const int8_t* p, int64_t n) { return load_bytes_first(p, n); }

template <class T>
constexpr bool has_scale = sizeof(T) == 1;

// Elements of a row in a block.
template <class T>
inline int64_t row_size(const Cache& cache) {
  return cache.head_dim + (has_scale<T> ? static_cast<int64_t>(sizeof(float)) : 0);
}

inline float scale_of(const int8_t* row, int64_t head_dim) {
  float scale;
  memcpy(&scale, row + head_dim, sizeof scale);
  return scale;
}

template <class T>
inline T* plane(const Cache& cache, int64_t sequence, int64_t block, int64_t which, int64_t kv_head) {
  auto* base = reinterpret_cast<T*>(cache.addresses[cache.block_begin[sequence] + block]);
  return base + ((cache.layer * 2 + which) * cache.kv_heads + kv_head) * cache.block_size * row_size<T>(cache);
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

inline void store_row(const float* x, int64_t n, int8_t* out) {
  float scale = quantize_row(x, n, out).scale;
  memcpy(out + n, &scale, sizeof scale);
}

template <class T>
void append(const float* keys, const float* values, const Cache& cache) {
  for (int64_t i = 0; i < cache.sequences; i++) {
    for (int64_t row = cache.row_begin[i]; row < cache.row_begin[i + 1]; row++) {
      int64_t position = cache.first_positions[i] + row - cache.row_begin[i];
      int64_t block = position / cache.block_size, inside = position % cache.block_size * row_size<T>(cache);
      for (int64_t head = 0; head < cache.kv_heads; head++) {
        int64_t from = (row * cache.kv_heads + head) * cache.head_dim;
        store_row(keys + from, cache.head_dim, plane<T>(cache, i, block, 0, head) + inside);
        store_row(values + from, cache.head_dim, plane<T>(cache, i, block, 1, head) + inside);
      }
    }
  }
}

void kv_append(const float* keys, const float* values, const Cache& cache) {
  switch (cache.type) {
    case CacheType::kFloat32: return append<float>(keys, values, cache);
    case CacheType::kFloat16: return append<uint16_t>(keys, values, cache);
    case CacheType::kInt8: return append<int8_t>(keys, values, cache);
  }
}

// ---- Attention ----------------------------------------------------------------------------------------------------

struct Job {
  const float* queries;
  const Cache& cache;
  const AttentionOptions& options;
  float* y;
  ThreadPool& pool;
  int64_t width;                              // head_dim, rounded up to whole registers
  int64_t tile_rows, tile_heads, head_tiles;  // rows and heads of a tile, tiles of a kv head's group
  int64_t* tile_begin;                        // [sequences + 1], in tiles of rows
  int64_t tiles;
  int64_t chunks;                             // in sight of a tile at most
  float* partials;                            // if chunks are computed apart, see `partial_of`
};

// What becomes of a query: values weighted by e^(score - highest), and the sum of the weights.
struct Mean {
  float highest, total;
};

// Queries with one kv head: `heads` of each of some rows of a sequence, row by row.
struct Tile {
  int64_t sequence, kv_head, row, head, heads, count, position;  // of the first row
  int64_t window;

  int64_t last(int64_t query) const { return position + query / heads; }
  int64_t first(int64_t query) const { return window ? max_of<int64_t>(0, last(query) - window + 1) : 0; }
};

Tile tile_of(const Job& job, int64_t index) {
  const Cache& cache = job.cache;
  int64_t row_tiles = job.tile_begin[cache.sequences], at = index % row_tiles, of_heads = index / row_tiles;
  int64_t low = 0, high = cache.sequences - 1;
  while (low < high) {  // the last sequence that begins at or before the tile
    int64_t middle = (low + high + 1) / 2;
    if (job.tile_begin[middle] <= at) low = middle;
    else high = middle - 1;
  }
  int64_t group = job.options.heads / cache.kv_heads, inside = of_heads % job.head_tiles * job.tile_heads;
  Tile tile;
  tile.sequence = low;
  tile.kv_head = of_heads / job.head_tiles;
  tile.row = cache.row_begin[low] + (at - job.tile_begin[low]) * job.tile_rows;
  tile.head = tile.kv_head * group + inside;
  tile.heads = min_of(job.tile_heads, group - inside);
  tile.count = min_of(job.tile_rows, cache.row_begin[low + 1] - tile.row) * tile.heads;
  tile.position = cache.first_positions[low] + tile.row - cache.row_begin[low];
  tile.window = job.options.window;
  return tile;
}

// Which keys of a chunk a query sees, counted from the chunk's first.
struct Range {
  int64_t begin, end;
};

inline Range range_of(const Tile& tile, int64_t query, int64_t chunk) {
  int64_t first = chunk * kChunk;
  return {max_of<int64_t>(tile.first(query) - first, 0), min_of(tile.last(query) + 1 - first, kChunk)};
}

// Where the rows of a chunk lie, and their scales.
template <class T>
struct Rows {
  const T* rows[kChunk + kSums];  // past the end the last one
  float scales[has_scale<T> ? kChunk : 1];

  void find(const Cache& cache, const Tile& tile, int64_t which, int64_t chunk, Range range) {
    int64_t position = chunk * kChunk + range.begin, step = row_size<T>(cache);
    for (int64_t j = range.begin; j < range.end;) {
      int64_t block = position / cache.block_size, inside = position - block * cache.block_size;
      const T* row = plane<T>(cache, tile.sequence, block, which, tile.kv_head) + inside * step;
      int64_t end = min_of(j + cache.block_size - inside, range.end);
      position += end - j;
      for (; j < end; j++, row += step) {
        rows[j] = row;
        if constexpr (has_scale<T>) scales[j] = scale_of(row, cache.head_dim);
      }
    }
    for (int64_t j = range.end; j < range.end + kSums; j++) rows[j] = rows[range.end - 1];
  }
};

// Memory of a worker for a tile.
struct Memory {
  static constexpr int64_t kStride = kChunk + kSums;
  float *q, *sums, *mean, *scores;  // [count, width] three times, [count, kStride]

  Memory(const Job& job, int worker) {
    int64_t rows = job.tile_rows * job.tile_heads * job.width;
    int64_t scores_size = job.tile_rows * job.tile_heads * kStride;
    q = static_cast<float*>(job.pool.scratch(worker, kTileSlot, (3 * rows + scores_size) * 4));
    sums = q + rows;
    mean = sums + rows;
    scores = mean + rows;
  }
};

// scores [n, stride] of n queries, for `passes` times kKeys keys: q [n, width] . k, zeros in q past head_dim.
template <int n, int passes, class T>
inline void score(const float* q, int64_t width, const T* const* keys, int64_t head_dim, float* scores,
                  int64_t stride) {
  constexpr int kAll = passes * kKeys;
  static_assert(n * kAll <= kSums);
  Vec sums[kSums] = {};
#pragma GCC unroll 4
  for (int pass = 0; pass < passes; pass++) {
    const T* key[kKeys];
#pragma GCC unroll 4
    for (int k = 0; k < kKeys; k++) key[k] = keys[pass * kKeys + k];
    int64_t c = 0;
    for (; c + kLanes <= head_dim; c += kLanes) {
      Vec wide[kKeys];
#pragma GCC unroll 4
      for (int k = 0; k < kKeys; k++) wide[k] = load_as(key[k] + c);
#pragma GCC unroll 4
      for (int i = 0; i < n; i++) {
        Vec query = load(q + i * width + c);
#pragma GCC unroll 4
        for (int k = 0; k < kKeys; k++) {
          Vec& sum = sums[i * kAll + pass * kKeys + k];
          sum = fma(query, wide[k], sum);
        }
      }
    }
    if (c < head_dim) {
#pragma GCC unroll 4
      for (int k = 0; k < kKeys; k++) {
        Vec wide = load_first_as(key[k] + c, head_dim - c);
#pragma GCC unroll 4
        for (int i = 0; i < n; i++) {
          Vec& sum = sums[i * kAll + pass * kKeys + k];
          sum = fma(load(q + i * width + c), wide, sum);
        }
      }
    }
  }
  float totals[kSums];
  for (int i = 0; i < kSums; i += kLanes) store(totals + i, sums_of(sums + i));
#pragma GCC unroll 4
  for (int i = 0; i < n; i++) memcpy(scores + i * stride, totals + i * kAll, kAll * sizeof(float));
}

template <int n, int passes, class T>
inline void score_all(const T* const* keys, Range all, const float* q, int64_t width, int64_t head_dim, float* scores) {
  for (int64_t j = all.begin; j < all.end; j += passes * kKeys) {
    score<n, passes>(q, width, keys + j, head_dim, scores + j, Memory::kStride);
  }
}

template <class T>
void score_keys(const Job& job, const Tile& tile, const Rows<T>& keys, Range all, const Memory& memory) {
  int64_t width = job.width, head_dim = job.cache.head_dim;
  for (Range part = all; part.begin < all.end; part.begin += kNear) {
    part.end = min_of(part.begin + kNear, all.end);
    for (int64_t i = 0; i < tile.count; i += kQueries) {
      const float* q = memory.q + i * width;
      float* scores = memory.scores + i * Memory::kStride;
      switch (min_of<int64_t>(kQueries, tile.count - i)) {
        case 1: score_all<1, kQueries>(keys.rows, part, q, width, head_dim, scores); break;
        case 2: score_all<2, kQueries / 2>(keys.rows, part, q, width, head_dim, scores); break;
        default:
          if constexpr (kQueries == 4) {
            if (tile.count - i == 3) score_all<3, 1>(keys.rows, part, q, width, head_dim, scores);
            else score_all<4, 1>(keys.rows, part, q, width, head_dim, scores);
          }
      }
    }
  }
}

// Turns a query's scores of a chunk into e^(score - highest).
Mean soften(const AttentionOptions& options, Range range, int64_t first, int64_t head, const float* key_scales,
            float* scores) {
  const float lowest = -__builtin_inff();
  const float* bias = options.key_bias ? options.key_bias + head * options.key_bias_stride : nullptr;
  int64_t begin = range.begin / kLanes * kLanes, end = round_up(range.end, kLanes);
  for (int64_t i = begin; i < range.begin; i++) scores[i] = 0;
  for (int64_t i = range.end; i < end; i++) scores[i] = 0;
  for (int64_t i = begin; i < end; i += kLanes) {
    Vec s = load(scores + i);
    if (key_scales) s = s * load(key_scales + i);
    s = s * options.scale;
    if (options.soft_cap != 0) s = tanh_of(s / options.soft_cap) * options.soft_cap;
    if (bias) s += load_first(bias + first + i, min_of<int64_t>(kLanes, options.key_bias_stride - first - i));
    store(scores + i, s);
  }
  for (int64_t i = begin; i < range.begin; i++) scores[i] = lowest;
  for (int64_t i = range.end; i < end; i++) scores[i] = lowest;
  Vec highest_lanes = broadcast(lowest);
  for (int64_t i = begin; i < end; i += kLanes) highest_lanes = max_of(load(scores + i), highest_lanes);
  Mean mean;
  mean.highest = max_lane(highest_lanes);
  float subtracted = mean.highest == lowest ? 0 : mean.highest;  // nothing but minus infinity: weights 0
  Vec sum{};
  for (int64_t i = begin; i < end; i += kLanes) {
    Vec e = exp_of(load(scores + i) - subtracted);
    store(scores + i, e);
    sum += e;
  }
  mean.total = sum_of(sum);
  return mean;
}

// sums [n, width], `count` registers of them: plus weights [n, kStride] times values from channel c, by position. The
// last register may have only `rest` channels, 0: all.
template <int n, int count, class T>
inline void add_values(const T* const* values, Range range, int64_t c, int64_t rest, const float* weights, float* sums,
                       int64_t width) {
  Vec sum[n][count];
#pragma GCC unroll 4
  for (int i = 0; i < n; i++) {
#pragma GCC unroll 4
    for (int r = 0; r < count; r++) sum[i][r] = load(sums + i * width + r * kLanes);
  }
  for (int64_t j = range.begin; j < range.end; j++) {
    const T* v = values[j] + c;
    for (int64_t line = 0; line < count * kLanes; line += 64 / static_cast<int64_t>(sizeof(T))) {
      prefetch(values[j + kAhead], (c + line) * static_cast<int64_t>(sizeof(T)));
    }
    Vec value[count];
#pragma GCC unroll 4
    for (int r = 0; r < count; r++) value[r] = rest ? load_first_as(v, rest) : load_as(v + r * kLanes);
#pragma GCC unroll 4
    for (int i = 0; i < n; i++) {
      Vec weight = broadcast(weights[i * Memory::kStride + j]);
#pragma GCC unroll 4
      for (int r = 0; r < count; r++) sum[i][r] = fma(weight, value[r], sum[i][r]);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < n; i++) {
#pragma GCC unroll 4
    for (int r = 0; r < count; r++) store(sums + i * width + r * kLanes, sum[i][r]);
  }
}

template <int n, class T>
inline void add_strip(const T* const* values, Range range, int64_t c, int64_t channels, const float* weights,
                      float* sums, int64_t width) {
  if (range.begin >= range.end) return;
  if (channels == kStrip * kLanes) return add_values<n, kStrip>(values, range, c, 0, weights, sums, width);
  for (; channels >= kLanes; channels -= kLanes, c += kLanes, sums += kLanes) {
    add_values<n, 1>(values, range, c, 0, weights, sums, width);
  }
  if (channels > 0) add_values<n, 1>(values, range, c, channels, weights, sums, width);
}

// Some of the channels, for up to kQueries queries from `query` on. Those of several rows see different keys: what all
// of them see is read once, the rest before and after it one by one, so that nothing out of sight is touched.
template <class T>
void add_visible(const Tile& tile, int64_t chunk, int64_t query, const T* const* values, int64_t c, int64_t channels,
                 const float* weights, float* sums, int64_t width) {
  int64_t n = min_of<int64_t>(kQueries, tile.count - query);
  Range ranges[kQueries], shared{0, kChunk};
  for (int64_t i = 0; i < n; i++) {
    ranges[i] = range_of(tile, query + i, chunk);
    shared = {max_of(shared.begin, ranges[i].begin), min_of(shared.end, ranges[i].end)};
  }
  if (shared.begin >= shared.end) shared = {kChunk, kChunk};
  for (int64_t i = 0; i < n; i++) {
    Range before{ranges[i].begin, min_of(ranges[i].end, shared.begin)};
    add_strip<1>(values, before, c, channels, weights + i * Memory::kStride, sums + i * width, width);
  }
  switch (n) {
    case 1: add_strip<1>(values, shared, c, channels, weights, sums, width); break;
    case 2: add_strip<2>(values, shared, c, channels, weights, sums, width); break;
    default:
      if constexpr (kQueries == 4) {
        if (n == 3) add_strip<3>(values, shared, c, channels, weights, sums, width);
        else add_strip<4>(values, shared, c, channels, weights, sums, width);
      }
  }
  for (int64_t i = 0; i < n; i++) {
    Range after{max_of(ranges[i].begin, shared.end), ranges[i].end};
    add_strip<1>(values, after, c, channels, weights + i * Memory::kStride, sums + i * width, width);
  }
}

template <class T>
void sum_values(const Job& job, const Tile& tile, int64_t chunk, const Rows<T>& values, const Memory& memory,
                float* sums) {
  int64_t width = job.width, head_dim = job.cache.head_dim;
  memset(sums, 0, static_cast<size_t>(tile.count * width) * sizeof(float));
  for (int64_t c = 0; c < head_dim; c += kStrip * kLanes) {
    int64_t channels = min_of<int64_t>(kStrip * kLanes, head_dim - c);
    for (int64_t i = 0; i < tile.count; i += kQueries) {
      add_visible(tile, chunk, i, values.rows, c, channels, memory.scores + i * Memory::kStride, sums + i * width + c,
                  width);
    }
  }
}

// The means of the tile's queries over one chunk: `means` [count] and `sums` [count, width].
template <class T>
void attend_chunk(const Job& job, const Tile& tile, int64_t chunk, const Memory& memory, Mean* means, float* sums) {
  Range all{range_of(tile, 0, chunk).begin, range_of(tile, tile.count - 1, chunk).end};
  Rows<T> rows;
  rows.find(job.cache, tile, 0, chunk, all);
  score_keys(job, tile, rows, all, memory);
  for (int64_t i = 0; i < tile.count; i++) {
    Range range = range_of(tile, i, chunk);
    means[i] = {-__builtin_inff(), 0};
    if (range.begin >= range.end) continue;
    means[i] = soften(job.options, range, chunk * kChunk, tile.head + i % tile.heads,
                      has_scale<T> ? rows.scales : nullptr, memory.scores + i * Memory::kStride);
  }
  rows.find(job.cache, tile, 1, chunk, all);
  if constexpr (has_scale<T>) {
    for (int64_t i = 0; i < tile.count; i++) {
      float* weights = memory.scores + i * Memory::kStride;
      for (int64_t j = all.begin / kLanes * kLanes; j < all.end; j += kLanes) {
        store(weights + j, load(weights + j) * load(rows.scales + j));
      }
    }
  }
  sum_values(job, tile, chunk, rows, memory, sums);
}

// Joins a chunk's mean to that of the chunks before.
void join(Mean& mean, float* sums, const Mean& next, const float* next_sums, int64_t width) {
  float highest = max_of(mean.highest, next.highest);
  float subtracted = highest == -__builtin_inff() ? 0 : highest;
  Vec kept = broadcast(exp_of(broadcast(mean.highest - subtracted))[0]);
  Vec added = broadcast(exp_of(broadcast(next.highest - subtracted))[0]);
  for (int64_t c = 0; c < width; c += kLanes) {
    store(sums + c, fma(added, load(next_sums + c), kept * load(sums + c)));
  }
  mean.total = mean.total * kept[0] + next.total * added[0];
  mean.highest = highest;
}

void write(const Job& job, const Tile& tile, int64_t query, const Mean& mean, const float* sums) {
  int64_t head_dim = job.cache.head_dim, c = 0;
  int64_t row = tile.row + query / tile.heads, head = tile.head + query % tile.heads;
  float* y = job.y + (row * job.options.heads + head) * head_dim;
  for (; c + kLanes <= head_dim; c += kLanes) store(y + c, load(sums + c) / mean.total);
  if (c < head_dim) store_first(y + c, load(sums + c) / mean.total, head_dim - c);
}

void copy_queries(const Job& job, const Tile& tile, float* q) {
  int64_t head_dim = job.cache.head_dim;
  for (int64_t i = 0; i < tile.count; i++, q += job.width) {
    int64_t row = tile.row + i / tile.heads, head = tile.head + i % tile.heads;
    const float* from = job.queries + (row * job.options.heads + head) * head_dim;
    memcpy(q, from, static_cast<size_t>(head_dim) * sizeof(float));
    memset(q + head_dim, 0, static_cast<size_t>(job.width - head_dim) * sizeof(float));
  }
}

template <class T>
void attend_tiles(const void* context, int64_t begin, int64_t end, int worker) {
  const Job& job = *static_cast<const Job*>(context);
  Memory memory(job, worker);
  for (int64_t index = begin; index < end; index++) {
    Tile tile = tile_of(job, job.tiles - 1 - index);  // the longest first
    copy_queries(job, tile, memory.q);
    Mean means[kTile], next[kTile];
    int64_t chunk = tile.first(0) / kChunk, last_chunk = tile.last(tile.count - 1) / kChunk;
    attend_chunk<T>(job, tile, chunk, memory, means, memory.mean);
    while (chunk++ < last_chunk) {
      attend_chunk<T>(job, tile, chunk, memory, next, memory.sums);
      for (int64_t i = 0; i < tile.count; i++) {
        Range range = range_of(tile, i, chunk);
        if (range.begin >= range.end) continue;
        join(means[i], memory.mean + i * job.width, next[i], memory.sums + i * job.width, job.width);
      }
    }
    for (int64_t i = 0; i < tile.count; i++) write(job, tile, i, means[i], memory.mean + i * job.width);
  }
}

// The place of a tile's chunk in `partials`: the means of its queries, then their sums.
inline float* partial_of(const Job& job, int64_t tile, int64_t chunk) {
  return job.partials + (tile * job.chunks + chunk) * job.tile_rows * job.tile_heads * (job.width + 2);
}

template <class T>
void attend_chunks(const void* context, int64_t begin, int64_t end, int worker) {
  const Job& job = *static_cast<const Job*>(context);
  Memory memory(job, worker);
  int64_t copied = -1;
  Tile tile;
  for (int64_t index = begin; index < end; index++) {
    if (index / job.chunks != copied) {
      copied = index / job.chunks;
      tile = tile_of(job, copied);
      copy_queries(job, tile, memory.q);
    }
    int64_t chunk = tile.first(0) / kChunk + index % job.chunks;
    if (chunk > tile.last(tile.count - 1) / kChunk) continue;
    float* partial = partial_of(job, copied, index % job.chunks);
    attend_chunk<T>(job, tile, chunk, memory, reinterpret_cast<Mean*>(partial), partial + 2 * tile.count);
  }
}

void join_chunks(const void* context, int64_t begin, int64_t end, int) {
  const Job& job = *static_cast<const Job*>(context);
  for (int64_t index = begin; index < end; index++) {
    Tile tile = tile_of(job, index);
    int64_t first_chunk = tile.first(0) / kChunk;
    for (int64_t i = 0; i < tile.count; i++) {
      int64_t chunk = tile.first(i) / kChunk, last_chunk = tile.last(i) / kChunk;
      float* partial = partial_of(job, index, chunk - first_chunk);
      Mean mean = reinterpret_cast<Mean*>(partial)[i];
      float* sums = partial + 2 * tile.count + i * job.width;
      while (chunk++ < last_chunk) {
        const float* next = partial_of(job, index, chunk - first_chunk);
        join(mean, sums, reinterpret_cast<const Mean*>(next)[i], next + 2 * tile.count + i * job.width, job.width);
      }
      write(job, tile, i, mean, sums);
    }
  }
}

template <class T>
void attend(const Job& job, int64_t keys) {
  int64_t tile_work = keys * job.cache.head_dim * job.tile_rows * job.tile_heads;
  if (!job.partials) {
    job.pool.run(job.tiles, (1 << 15) / (tile_work + 1) + 1, attend_tiles<T>, &job);
    return;
  }
  job.pool.run(job.tiles * job.chunks, (1 << 15) / (tile_work / job.chunks + 1) + 1, attend_chunks<T>, &job);
  job.pool.run(job.tiles, 1, join_chunks, &job);
}

void attention(const float* queries, const Cache& cache, const AttentionOptions& options, float* y, ThreadPool& pool) {
  int64_t all_rows = cache.row_begin[cache.sequences], threads = pool.threads();
  if (all_rows == 0) return;
  int64_t keys = 1, longest = 1;  // in sight of one row, rows of a sequence
  for (int64_t i = 0; i < cache.sequences; i++) {
    int64_t rows = cache.row_begin[i + 1] - cache.row_begin[i];
    keys = max_of<int64_t>(keys, cache.first_positions[i] + rows);
    longest = max_of(longest, rows);
  }
  if (options.window) keys = min_of(keys, options.window);
  int64_t group = options.heads / cache.kv_heads, head_tiles = (group + kTile - 1) / kTile;
  if (keys <= kChunk && longest == 1) {  // too few keys for all threads: these share the heads
    while (head_tiles < group && all_rows * cache.kv_heads * head_tiles < threads) head_tiles++;
  }
  Job job{queries, cache, options, y, pool, round_up(cache.head_dim, kLanes), 1, 1, 1, nullptr, 0, 0, nullptr};
  job.tile_heads = (group + head_tiles - 1) / head_tiles;
  job.head_tiles = (group + job.tile_heads - 1) / job.tile_heads;
  job.tile_rows = min_of(longest, max_of<int64_t>(1, kTile / job.tile_heads));
  int64_t row_tiles = 0;
  for (int64_t i = 0; i < cache.sequences; i++) {
    row_tiles += (cache.row_begin[i + 1] - cache.row_begin[i] + job.tile_rows - 1) / job.tile_rows;
  }
  job.tiles = row_tiles * cache.kv_heads * job.head_tiles;
  // With a window the keys of a tile may begin and end within a chunk.
  job.chunks = options.window ? (keys + job.tile_rows + kChunk - 2) / kChunk + 1 : (keys + kChunk - 1) / kChunk;

  // Chunks are computed apart where whole tiles would not keep all threads busy.
  bool is_even = cache.sequences == 1 && job.tiles % threads == 0;
  bool is_apart = threads > 1 && keys > kChunk && job.tiles < 4 * threads && !is_even;
  int64_t partial_size = job.tile_rows * job.tile_heads * (job.width + 2) * 4;
  int64_t begin_size = round_up((cache.sequences + 1) * 8, 64);
  int64_t size = begin_size + (is_apart ? job.tiles * job.chunks * partial_size : 0);
  auto* shared = static_cast<char*>(pool.scratch(0, kSharedSlot, size));
  if (is_apart) job.partials = reinterpret_cast<float*>(shared + begin_size);
  job.tile_begin = reinterpret_cast<int64_t*>(shared);
  job.tile_begin[0] = 0;
  for (int64_t i = 0; i < cache.sequences; i++) {
    int64_t rows = cache.row_begin[i + 1] - cache.row_begin[i];
    job.tile_begin[i + 1] = job.tile_begin[i] + (rows + job.tile_rows - 1) / job.tile_rows;
  }
  switch (cache.type) {
    case CacheType::kFloat32: return attend<float>(job, keys);
    case CacheType::kFloat16: return attend<uint16_t>(job, keys);
    case CacheType::kInt8: return attend<int8_t>(job, keys);
  }
}

}  // namespace

void add_attention(Kernels& kernels) {
  kernels.kv_append = kv_append;
  kernels.attention = attention;
}

}  // namespace hearthlm::HEARTHLM_TARGET
