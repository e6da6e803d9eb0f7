#include "kernels.h"
#include "simd.h"

namespace hearthlm::HEARTHLM_TARGET {
namespace {

constexpr int64_t kGrain = 1 << 14;  // elements; a multiple of the lanes

// x / (1 + e^-2u), which is x (1 + tanh u) / 2 without its cancellation.
inline Vec times_sigmoid(Vec x, Vec minus_two_u) { return x / (exp_of(minus_two_u) + 1.0f); }

inline Vec gelu_tanh(Vec x) {
  return times_sigmoid(x, x * fma(x * x, broadcast(-2 * 0.7978845608f * 0.044715f), broadcast(-2 * 0.7978845608f)));
}

inline Vec silu(Vec x) { return times_sigmoid(x, -x); }

// erf within 2 units in the last place: an odd polynomial below 0.9277, else 1 - e^p(|v|) (minimax, N. Juffa).
inline Vec erf_of(Vec v) {
  Vec t = abs_of(v), s = v * v;
  Vec far = fma(broadcast(-1.72853470e-5f), t, broadcast(3.83197126e-4f));
  Vec even = fma(broadcast(-3.88396438e-3f), t, broadcast(2.42546219e-2f));
  far = fma(far, s, even);
  far = fma(far, t, broadcast(-1.06777877e-1f));
  far = fma(far, t, broadcast(-6.34846687e-1f));
  far = fma(far, t, broadcast(-1.28717512e-1f));
  far = 1.0f - exp_of(fma(far, t, -t));
  Vec near = broadcast(-5.96761703e-4f);
  near = fma(near, s, broadcast(4.99119423e-3f));
  near = fma(near, s, broadcast(-2.67681349e-2f));
  near = fma(near, s, broadcast(1.12819925e-1f));
  near = fma(near, s, broadcast(-3.76125336e-1f));
  near = fma(near, s, broadcast(1.28379166e-1f));
  near = fma(near, v, v);
  Vec signed_far = as_float(as_int(far) | (as_int(v) & INT32_MIN));
  return t > 0.927734375f ? signed_far : near;
}

inline Vec gelu(Vec x) { return x * 0.5f * (erf_of(x * 0.70710678f) + 1.0f); }

inline Vec relu(Vec x) { return max_of(x, Vec{}); }

struct Job {
  float* x;
  const float* up;
  int64_t size;
  float cap;
};

// Applies f lane by lane; a shorter last register gives the same values as a full one.
template <class F>
inline void apply(const Job& job, int64_t begin, int64_t end, F f) {
  begin *= kGrain;
  end = min_of(end * kGrain, job.size);
  int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes) {
    Vec y = f(load(job.x + i));
    store(job.x + i, job.up ? y * load(job.up + i) : y);
  }
  if (i < end) {
    Vec y = f(load_first(job.x + i, end - i));
    store_first(job.x + i, job.up ? y * load_first(job.up + i, end - i) : y, end - i);
  }
}

template <Vec (*f)(Vec)>
void activate(const void* context, int64_t begin, int64_t end, int) {
  apply(*static_cast<const Job*>(context), begin, end, f);
}

void cap_part(const void* context, int64_t begin, int64_t end, int) {
  const Job& job = *static_cast<const Job*>(context);
  apply(job, begin, end, [cap = job.cap](Vec v) { return tanh_of(v / cap) * cap; });
}

void activation(float* gate, const float* up, int64_t size, Activation kind, ThreadPool& pool) {
  Job job{gate, up, size, 0};
  const ThreadPool::Part parts[] = {activate<gelu_tanh>, activate<gelu>, activate<silu>, activate<relu>};
  pool.run((size + kGrain - 1) / kGrain, 1, parts[static_cast<int>(kind)], &job);
}

void soft_cap(float* x, int64_t size, float cap, ThreadPool& pool) {
  Job job{x, nullptr, size, cap};
  pool.run((size + kGrain - 1) / kGrain, 1, cap_part, &job);
}

struct AddJob {
  float* x;
  const float* y;
  int64_t size;
};

void add_part(const void* context, int64_t begin, int64_t end, int) {
  const AddJob& job = *static_cast<const AddJob*>(context);
  begin *= kGrain;
  end = min_of(end * kGrain, job.size);
  int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes) store(job.x + i, load(job.x + i) + load(job.y + i));
  if (i < end) store_first(job.x + i, load_first(job.x + i, end - i) + load_first(job.y + i, end - i), end - i);
}

void add(float* x, const float* y, int64_t size, ThreadPool& pool) {
  AddJob job{x, y, size};
  pool.run((size + kGrain - 1) / kGrain, 1, add_part, &job);
}

}  // namespace

void add_activation(Kernels& kernels) {
  kernels.activation = activation;
  kernels.add = add;
  kernels.soft_cap = soft_cap;
}

}  // namespace hearthlm::HEARTHLM_TARGET
