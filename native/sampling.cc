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

}  // namespace

void add_sampling(Kernels& kernels) {
  kernels.top_k = top_k;
  kernels.log_softmax_at = log_softmax_at;
}

}  // namespace hearthlm::HEARTHLM_TARGET
