#include "activation.h"
#include "kernels.h"
#include "simd.h"

namespace hearthlm::HEARTHLM_TARGET {
namespace {

constexpr int64_t kGrain = 1 << 14;  // elements; a multiple of the lanes

struct Job {
  float* x;
  const float* up;
  int64_t size;
  Activation kind;
  float cap;
};

void activate_part(const void* context, int64_t begin, int64_t end, int) {
  const Job& job = *static_cast<const Job*>(context);
  begin *= kGrain;
  int64_t size = min_of(end * kGrain, job.size) - begin;
  activate(job.kind, job.x + begin, 0, job.up ? job.up + begin : nullptr, 1, size);
}

void cap_part(const void* context, int64_t begin, int64_t end, int) {
  const Job& job = *static_cast<const Job*>(context);
  begin *= kGrain;
  auto capped = [cap = job.cap](Vec v) { return tanh_of(v / cap) * cap; };
  apply(job.x + begin, 0, nullptr, 1, min_of(end * kGrain, job.size) - begin, capped);
}

void activation(float* gate, const float* up, int64_t size, Activation kind, ThreadPool& pool) {
  Job job{gate, up, size, kind, 0};
  pool.run((size + kGrain - 1) / kGrain, 1, activate_part, &job);
}

void soft_cap(float* x, int64_t size, float cap, ThreadPool& pool) {
  Job job{x, nullptr, size, {}, cap};
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
