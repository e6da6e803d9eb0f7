#include "kernels.h"
#include "simd.h"

namespace hearthlm::HEARTHLM_TARGET {
namespace {

void rope(float* x, int64_t m, int64_t heads, int64_t head_dim, const float* cos, const float* sin, int64_t r) {
  for (int64_t i = 0; i < m; i++, cos += r, sin += r) {
    for (int64_t head = 0; head < heads; head++, x += head_dim) {
      int64_t c = 0;
      for (; c + kLanes <= r; c += kLanes) {
        Vec first = load(x + c), second = load(x + c + r), cosine = load(cos + c), sine = load(sin + c);
        store(x + c, first * cosine - second * sine);
        store(x + c + r, second * cosine + first * sine);
      }
      for (; c < r; c++) {
        float first = x[c], second = x[c + r];
        x[c] = first * cos[c] - second * sin[c];
        x[c + r] = second * cos[c] + first * sin[c];
      }
    }
  }
}

}  // namespace

void add_rope(Kernels& kernels) { kernels.rope = rope; }

}  // namespace hearthlm::HEARTHLM_TARGET
