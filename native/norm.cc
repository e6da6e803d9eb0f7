#include "kernels.h"
#include "simd.h"

namespace hearthlm::HEARTHLM_TARGET {
namespace {

constexpr int64_t kGrainElements = 1 << 15;  // below this, waking a worker costs more than the work

// The sum over a row of f(x), in four accumulators.
template <class F>
inline float sum_row(const float* x, int64_t d, F f) {
  Vec a{}, b{}, c{}, e{};
  int64_t i = 0;
  for (; i + 4 * kLanes <= d; i += 4 * kLanes) {
    a += f(load(x + i));
    b += f(load(x + i + kLanes));
    c += f(load(x + i + 2 * kLanes));
    e += f(load(x + i + 3 * kLanes));
  }
  float total = sum_of((a + b) + (c + e));
  for (; i < d; i++) total += f(x[i]);
  return total;
}

struct Norm {
  const float *x, *weight, *bias;
  float* y;
  int64_t d;
  float eps;
};

// y = x * inverse * weight, to which f may add something for the elements from i on.
template <class F>
inline void rms_norm_row(const float* x, int64_t d, const float* weight, float eps, float* y, F f) {
  float mean = sum_row(x, d, [](auto v) { return v * v; }) / static_cast<float>(d);
  float inverse = 1.0f / __builtin_sqrtf(mean + eps);
  int64_t i = 0;
  for (; i + kLanes <= d; i += kLanes) store(y + i, f(load(x + i) * inverse * load(weight + i), i));
  for (; i < d; i++) y[i] = f(x[i] * inverse * weight[i], i);
}

void rms_norm_rows(const void* context, int64_t begin, int64_t end, int) {
  const Norm& n = *static_cast<const Norm*>(context);
  for (int64_t row = begin; row < end; row++) {
    rms_norm_row(n.x + row * n.d, n.d, n.weight, n.eps, n.y + row * n.d, [](auto v, int64_t) { return v; });
  }
}

struct NormAdd {
  Norm norm;
  const float* residual;
};

inline Vec at(const float* x, Vec) { return load(x); }
inline float at(const float* x, float) { return *x; }

void rms_norm_add_rows(const void* context, int64_t begin, int64_t end, int) {
  const NormAdd& job = *static_cast<const NormAdd*>(context);
  const Norm& n = job.norm;
  for (int64_t row = begin; row < end; row++) {
    const float* residual = job.residual + row * n.d;
    rms_norm_row(n.x + row * n.d, n.d, n.weight, n.eps, n.y + row * n.d,
                 [residual](auto v, int64_t i) { return v + at(residual + i, v); });
  }
}

struct NormQuantize {
  Norm norm;
  int8_t* values;
  float* scales;
  int32_t* sums;
  ThreadPool& pool;
};

void rms_norm_quantize_rows(const void* context, int64_t begin, int64_t end, int worker) {
  const NormQuantize& job = *static_cast<const NormQuantize*>(context);
  const Norm& n = job.norm;
  float* y = static_cast<float*>(job.pool.scratch(worker, 0, n.d * 4));
  for (int64_t row = begin; row < end; row++) {
    rms_norm_row(n.x + row * n.d, n.d, n.weight, n.eps, y, [](auto v, int64_t) { return v; });
    QuantizedRow quantized = quantize_row(y, n.d, job.values + row * n.d);
    job.scales[row] = quantized.scale;
    job.sums[row] = quantized.sum;
  }
}

void layer_norm_rows(const void* context, int64_t begin, int64_t end, int) {
  const Norm& n = *static_cast<const Norm*>(context);
  for (int64_t row = begin; row < end; row++) {
    const float* x = n.x + row * n.d;
    float* y = n.y + row * n.d;
    float mean = sum_row(x, n.d, [](auto v) { return v; }) / static_cast<float>(n.d);
    float variance = sum_row(x, n.d, [mean](auto v) { return (v - mean) * (v - mean); }) / static_cast<float>(n.d);
    float inverse = 1.0f / __builtin_sqrtf(variance + n.eps);
    int64_t i = 0;
    for (; i + kLanes <= n.d; i += kLanes) {
      Vec v = (load(x + i) - mean) * inverse * load(n.weight + i);
      store(y + i, n.bias ? v + load(n.bias + i) : v);
    }
    for (; i < n.d; i++) {
      float v = (x[i] - mean) * inverse * n.weight[i];
      y[i] = n.bias ? v + n.bias[i] : v;
    }
  }
}

void rms_norm(const float* x, int64_t m, int64_t d, const float* weight, float eps, float* y, ThreadPool& pool) {
  Norm norm{x, weight, nullptr, y, d, eps};
  pool.run(m, kGrainElements / (d + 1) + 1, rms_norm_rows, &norm);
}

void rms_norm_add(const float* x, int64_t m, int64_t d, const float* weight, float eps, const float* residual, float* y,
                  ThreadPool& pool) {
  NormAdd job{{x, weight, nullptr, y, d, eps}, residual};
  pool.run(m, kGrainElements / (d + 1) + 1, rms_norm_add_rows, &job);
}

void rms_norm_quantize(const float* x, int64_t m, int64_t d, const float* weight, float eps, int8_t* values,
                       float* scales, int32_t* sums, ThreadPool& pool) {
  NormQuantize job{{x, weight, nullptr, nullptr, d, eps}, values, scales, sums, pool};
  pool.run(m, kGrainElements / (d + 1) + 1, rms_norm_quantize_rows, &job);
}

void layer_norm(const float* x, int64_t m, int64_t d, const float* weight, const float* bias, float eps, float* y,
                ThreadPool& pool) {
  Norm norm{x, weight, bias, y, d, eps};
  pool.run(m, kGrainElements / (d + 1) + 1, layer_norm_rows, &norm);
}

}  // namespace

void add_norm(Kernels& kernels) {
  kernels.rms_norm = rms_norm;
  kernels.rms_norm_add = rms_norm_add;
  kernels.rms_norm_quantize = rms_norm_quantize;
  kernels.layer_norm = layer_norm;
}

}  // namespace hearthlm::HEARTHLM_TARGET
