#include "kernels.h"
#include "simd.h"

namespace hearthlm::HEARTHLM_TARGET {
namespace {

struct Heap {  // the worst candidate on top, in the caller's arrays
  int32_t* ids;
  float* values;
  int64_t size;

  bool is_worse(int64_t a, int64_t b) const {
    return values[a] < values[b] || (values[a] == values[b] && ids[a] > ids[b]);
  }
  void swap(int64_t a, int64_t b) {
    int32_t id = ids[a];
    float value = values[a];
    ids[a] = ids[b], values[a] = values[b];
    ids[b] = id, values[b] = value;
  }
  void sift_down(int64_t i) {
    for (;;) {
      int64_t child = 2 * i + 1;
      if (child >= size) return;
      if (child + 1 < size && is_worse(child + 1, child)) child++;
      if (!is_worse(child, i)) return;
      swap(i, child);
      i = child;
    }
  }
};

inline bool any_above(const float* p, float limit) {
  Vec bound = broadcast(limit);
#if defined(__AVX512F__)
  return (_mm512_cmp_ps_mask(load(p), bound, _CMP_GT_OQ) | _mm512_cmp_ps_mask(load(p + kLanes), bound, _CMP_GT_OQ) |
          _mm512_cmp_ps_mask(load(p + 2 * kLanes), bound, _CMP_GT_OQ) |
          _mm512_cmp_ps_mask(load(p + 3 * kLanes), bound, _CMP_GT_OQ)) != 0;
#elif defined(__AVX2__)
  __m256 above = _mm256_or_ps(_mm256_or_ps(_mm256_cmp_ps(load(p), bound, _CMP_GT_OQ),
                                           _mm256_cmp_ps(load(p + kLanes), bound, _CMP_GT_OQ)),
                              _mm256_or_ps(_mm256_cmp_ps(load(p + 2 * kLanes), bound, _CMP_GT_OQ),
                                           _mm256_cmp_ps(load(p + 3 * kLanes), bound, _CMP_GT_OQ)));
  return _mm256_movemask_ps(above) != 0;
#elif HEARTHLM_NEON
  IntVec above = (load(p) > bound) | (load(p + kLanes) > bound) | (load(p + 2 * kLanes) > bound) |
                 (load(p + 3 * kLanes) > bound);
  return vmaxvq_u32(vreinterpretq_u32_s32(above)) != 0;
#else
  IntVec above = (load(p) > bound) | (load(p + kLanes) > bound) | (load(p + 2 * kLanes) > bound) |
                 (load(p + 3 * kLanes) > bound);
  return (above[0] | above[1] | above[2] | above[3]) != 0;
#endif
}

void top_k(const float* logits, int64_t v, int64_t k, int32_t* ids, float* values) {
  Heap heap{ids, values, k};
  for (int64_t i = 0; i < k; i++) {
    ids[i] = static_cast<int32_t>(i);
    values[i] = logits[i] == logits[i] ? logits[i] : -__builtin_inff();
  }
  for (int64_t i = k / 2 - 1; i >= 0; i--) heap.sift_down(i);
  // Ids rise, so that an equal value is never better than one that is held.
  auto offer = [&](int64_t i) {
    if (logits[i] > values[0]) {
      values[0] = logits[i];
      ids[0] = static_cast<int32_t>(i);
      heap.sift_down(0);
    }
  };
  constexpr int64_t kStep = 4 * kLanes;
  int64_t i = k;
  for (; i + kStep <= v; i += kStep) {
    if (!any_above(logits + i, values[0])) continue;
    for (int64_t j = i; j < i + kStep; j++) offer(j);
  }
  for (; i < v; i++) offer(i);
  while (heap.size > 1) {  // the worst goes last
    heap.size--;
    heap.swap(0, heap.size);
    heap.sift_down(0);
  }
}

struct Job {
  const float* logits;
  int64_t v;
  const int32_t* ids;
  float* y;
};

void log_softmax_rows(const void* context, int64_t begin, int64_t end, int) {
  const Job& job = *static_cast<const Job*>(context);
  for (int64_t row = begin; row < end; row++) {
    const float* x = job.logits + row * job.v;
    Vec highest_lanes = broadcast(x[0]);
    int64_t i = 0;
    for (; i + kLanes <= job.v; i += kLanes) highest_lanes = max_of(load(x + i), highest_lanes);
    float highest = max_lane(highest_lanes);
    for (; i < job.v; i++) highest = max_of(x[i], highest);
    // Blocks are summed in float, their sums in double.
    double total = 0;
    for (int64_t block = 0; block < job.v; block += 4096) {
      int64_t block_end = min_of<int64_t>(block + 4096, job.v);
      Vec sum{};
      for (i = block; i + kLanes <= block_end; i += kLanes) sum += exp_of(load(x + i) - highest);
      total += static_cast<double>(sum_of(sum));
      if (i < block_end) {
        float lanes[kLanes];
        store(lanes, exp_of(load_first(x + i, block_end - i) - highest));
        for (int64_t j = 0; j < block_end - i; j++) total += static_cast<double>(lanes[j]);
      }
    }
    job.y[row] = static_cast<float>(static_cast<double>(x[job.ids[row]] - highest) - __builtin_log(total));
  }
}

void log_softmax_at(const float* logits, int64_t m, int64_t v, const int32_t* ids, float* y, ThreadPool& pool) {
  Job job{logits, v, ids, y};
  pool.run(m, 32768 / (v + 1) + 1, log_softmax_rows, &job);
}

// ---- One draw from the whole vocabulary: the same choice with every instruction set. So sums have 8 lanes everywhere,
// and no product is fused with a sum.

constexpr int64_t kDrawBlock = 4096;
constexpr int kDrawLanes = 8;
constexpr int kDoubles = kLanes / 2;
typedef double Doubles __attribute__((vector_size(8 * kDoubles)));
typedef int64_t LongVec __attribute__((vector_size(8 * kDoubles)));
typedef float HalfVec __attribute__((vector_size(4 * kDoubles)));

// e^v for v <= 0, within 2 units in the last place; 0 below -708 and for NaN. v = n ln 2 + r; ln 2 is in two parts, the
// first with zeros enough for an exact product; then Taylor's polynomial of r.
inline Doubles exp_of(Doubles v) {
  constexpr double kShift = 6755399441055744.0;  // 1.5 * 2^52 rounds what is added to an integer, in its low bits
  Doubles clamped = v >= -708.0 ? v : Doubles{} - 708.0;
  Doubles shifted = clamped * 1.4426950408889634 + kShift, n = shifted - kShift;
  Doubles r = (clamped - n * 0.6931471803691238) - n * 1.9082149292705877e-10;
  Doubles p = r * (1.0 / 6227020800.0) + 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  LongVec exponent = (reinterpret_cast<LongVec>(shifted) + 1023) << 52;
  return v >= -708.0 ? p * reinterpret_cast<Doubles>(exponent) : Doubles{};
}

struct DrawJob {
  const float* logits;
  int64_t v;
  double highest, temperature;
};

// weights [8] = exp((logit - highest) / temperature) of `count` logits, 0 from there on.
inline void weigh(const DrawJob& job, const float* logits, int64_t count, double* weights) {
  float last[kDrawLanes];
  if (count < kDrawLanes) {
    for (int64_t i = 0; i < kDrawLanes; i++) last[i] = i < count ? logits[i] : -__builtin_inff();
    logits = last;
  }
#pragma GCC unroll 4
  for (int i = 0; i < kDrawLanes; i += kDoubles) {
    HalfVec values;
    memcpy(&values, logits + i, sizeof values);
    Doubles y = exp_of((__builtin_convertvector(values, Doubles) - job.highest) / job.temperature);
    memcpy(weights + i, &y, sizeof y);
  }
}

// The sum of weights [kDrawBlock] of a block of logits, those below min_p being 0.
double weigh_block(const DrawJob& job, int64_t block, double min_p, double* weights) {
  const float* logits = job.logits + block * kDrawBlock;
  int64_t count = min_of(kDrawBlock, job.v - block * kDrawBlock);
  constexpr int kVecs = kDrawLanes / kDoubles;
  Doubles sums[kVecs] = {};
  for (int64_t j = 0; j < count; j += kDrawLanes) {
    weigh(job, logits + j, count - j, weights + j);
#pragma GCC unroll 4
    for (int i = 0; i < kVecs; i++) {
      Doubles w;
      memcpy(&w, weights + j + i * kDoubles, sizeof w);
      w = w >= min_p ? w : Doubles{};
      memcpy(weights + j + i * kDoubles, &w, sizeof w);
      sums[i] += w;
    }
  }
  double lanes[kDrawLanes];
  memcpy(lanes, sums, sizeof lanes);
  for (int half = kDrawLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

// The first of weights [count] with which `reached` exceeds `wanted`, or the last above 0; without it, `reached` less it.
inline int64_t pick(const double* weights, int64_t count, double wanted, double* reached) {
  int64_t chosen = 0;
  double before = *reached, sum = before;
  for (int64_t i = 0; i < count && sum <= wanted; i++) {
    if (weights[i] > 0) chosen = i, before = sum;
    sum += weights[i];
  }
  *reached = before;
  return chosen;
}

int64_t draw_from_all(const DrawJob& job, double min_p, double number, double* block_sums) {
  double weights[kDrawBlock], total = 0, reached = 0;
  int64_t blocks = (job.v + kDrawBlock - 1) / kDrawBlock;
  for (int64_t i = 0; i < blocks; i++) total += block_sums[i] = weigh_block(job, i, min_p, weights);
  double wanted = number * total;
  int64_t block = pick(block_sums, blocks, wanted, &reached);
  weigh_block(job, block, min_p, weights);
  int64_t begin = block * kDrawBlock;
  return begin + pick(weights, min_of(kDrawBlock, job.v - begin), wanted, &reached);
}

// Numbers that rise as floats fall, and back.
inline uint32_t descending(float value) {
  uint32_t bits;
  value += 0.0f;  // the two zeros are equal
  memcpy(&bits, &value, sizeof bits);
  return bits >> 31 ? bits : ~bits & 0x7fffffff;
}
inline float ascending(uint32_t key) {
  uint32_t bits = key >> 31 ? key : ~key & 0x7fffffff;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// Sorts [count] by the upper half, equal ones staying as they are; the result is in `sorted`.
void sort_by_key(uint64_t* values, uint64_t* sorted, int64_t count) {
  constexpr int kBits = 11, kShifts[] = {32, 43, 54};
  constexpr uint64_t kBuckets = 1 << kBits;
  uint32_t begins[3][kBuckets] = {};
  for (int64_t i = 0; i < count; i++) {
    for (int pass = 0; pass < 3; pass++) begins[pass][values[i] >> kShifts[pass] & (kBuckets - 1)]++;
  }
  for (int pass = 0; pass < 3; pass++) {
    uint32_t begin = 0;
    for (uint64_t b = 0; b < kBuckets; b++) {
      uint32_t size = begins[pass][b];
      begins[pass][b] = begin;
      begin += size;
    }
    const uint64_t* in = pass % 2 ? sorted : values;
    uint64_t* out = pass % 2 ? values : sorted;
    for (int64_t i = 0; i < count; i++) out[begins[pass][in[i] >> kShifts[pass] & (kBuckets - 1)]++] = in[i];
  }
}

int64_t draw_from_top(const DrawJob& job, double top_p, double min_p, double number, uint64_t* memory) {
  double block[kDrawBlock], total = 0;
  for (int64_t i = 0; i * kDrawBlock < job.v; i++) total += weigh_block(job, i, 0, block);
  // Logits up to `limit` have together at most half of what top_p leaves out.
  double rest = (1 - top_p) * total / 2, limit = -__builtin_inf();
  if (top_p < 1 - 1e-6) {
    limit = job.highest + job.temperature * __builtin_log(rest / static_cast<double>(job.v));
    limit -= __builtin_fabs(limit) * 1e-6 + 1e-30;  // more than a float rounds
  }
  float bound = static_cast<float>(limit);
  uint64_t* keys = memory;
  uint64_t* sorted = memory + round_up(job.v, kDrawLanes);
  int64_t count = 0;
  constexpr int64_t kStep = 4 * kLanes;
  for (int64_t i = 0; i < job.v; i += kStep) {
    int64_t end = min_of(i + kStep, job.v);
    if (end - i == kStep && !any_above(job.logits + i, bound)) continue;
    for (int64_t j = i; j < end; j++) {
      keys[count] = static_cast<uint64_t>(descending(job.logits[j])) << 32 | static_cast<uint64_t>(j);
      count += job.logits[j] > bound;
    }
  }
  sort_by_key(keys, sorted, count);
  double* weights = reinterpret_cast<double*>(keys);
  double wanted = top_p * total, reached = 0;
  int64_t kept = 0;
  for (bool is_over = false; !is_over && kept < count;) {
    float logits[kDrawLanes];
    int64_t n = min_of<int64_t>(kDrawLanes, count - kept);
    for (int64_t i = 0; i < n; i++) logits[i] = ascending(static_cast<uint32_t>(sorted[kept + i] >> 32));
    weigh(job, logits, n, weights + kept);
    for (int64_t i = 0; i < n && !is_over; i++) {
      is_over = weights[kept] < min_p;
      if (is_over) break;
      reached += weights[kept++];
      is_over = reached >= wanted;
    }
  }
  double none = 0;
  return static_cast<int64_t>(sorted[pick(weights, kept, number * reached, &none)] & 0xffffffff);
}

int64_t draw(const float* logits, int64_t v, double temperature, double top_p, double min_p, double number,
             uint64_t* memory) {
  Vec highest_lanes = broadcast(-__builtin_inff());
  int64_t i = 0;
  for (; i + kLanes <= v; i += kLanes) highest_lanes = max_of(load(logits + i), highest_lanes);
  float highest = max_lane(highest_lanes);
  for (; i < v; i++) highest = max_of(logits[i], highest);
  if (!(__builtin_fabsf(highest) < __builtin_inff())) return -1;
  DrawJob job{logits, v, static_cast<double>(highest), temperature};
  if (top_p < 1) return draw_from_top(job, top_p, min_p, number, memory);
  return draw_from_all(job, min_p, number, reinterpret_cast<double*>(memory));
}

}  // namespace

void add_sampling(Kernels& kernels) {
  kernels.top_k = top_k;
  kernels.log_softmax_at = log_softmax_at;
  kernels.draw = draw;
}

}  // namespace hearthlm::HEARTHLM_TARGET
