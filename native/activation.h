// Activations lane by lane: a shorter last register gives the same values as a full one.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace hearthlm::HEARTHLM_TARGET {
namespace {

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

// Rows of x, `stride` apart, become f(x) * up, whose rows of `size` lie one after the other; up may be null for 1.
template <class F>
inline void apply(float* x, int64_t stride, const float* up, int64_t rows, int64_t size, F f) {
  for (; rows > 0; rows--, x += stride) {
    int64_t i = 0;
    for (; i + kLanes <= size; i += kLanes) {
      Vec y = f(load(x + i));
      store(x + i, up ? y * load(up + i) : y);
    }
    if (i < size) {
      Vec y = f(load_first(x + i, size - i));
      store_first(x + i, up ? y * load_first(up + i, size - i) : y, size - i);
    }
    if (up) up += size;
  }
}

inline void activate(Activation kind, float* x, int64_t stride, const float* up, int64_t rows, int64_t size) {
  switch (kind) {
    case Activation::kGeluTanh: return apply(x, stride, up, rows, size, [](Vec v) { return gelu_tanh(v); });
    case Activation::kGelu: return apply(x, stride, up, rows, size, [](Vec v) { return gelu(v); });
    case Activation::kSilu: return apply(x, stride, up, rows, size, [](Vec v) { return silu(v); });
    case Activation::kRelu: return apply(x, stride, up, rows, size, [](Vec v) { return relu(v); });
  }
}

}  // namespace
}  // namespace hearthlm::HEARTHLM_TARGET
