// Which table of kernels this CPU runs. Compiled for the oldest CPU.
#include <string.h>

#include "kernels.h"

namespace hearthlm {

#define DECLARE_TARGET(target)             \
  namespace target {                       \
  void add_linear(Kernels& kernels);       \
  void add_attention(Kernels& kernels);    \
  void add_norm(Kernels& kernels);         \
  void add_rope(Kernels& kernels);         \
  void add_activation(Kernels& kernels);   \
  void add_sampling(Kernels& kernels);     \
  void add_rounding(Kernels& kernels);     \
  static const Kernels* table() {          \
    static const Kernels filled = [] {     \
      Kernels kernels{};                   \
      add_linear(kernels);                 \
      add_attention(kernels);              \
      add_norm(kernels);                   \
      add_rope(kernels);                   \
      add_activation(kernels);             \
      add_sampling(kernels);               \
      add_rounding(kernels);               \
      return kernels;                      \
    }();                                   \
    return &filled;                        \
  }                                        \
  }

DECLARE_TARGET(portable)
#ifdef HEARTHLM_X86
DECLARE_TARGET(avx2)
DECLARE_TARGET(avx512vnni)
#endif

namespace {

struct Target {
  const char* name;
  bool (*is_supported)();
  const Kernels* (*table)();
};

// Best first. __builtin_cpu_supports also asks whether the system saves the registers.
const Target kTargets[] = {
#ifdef HEARTHLM_X86
    {"avx512vnni",
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
              __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
     },
     avx512vnni::table},
    {"avx2",
     [] {
       return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
     },
     avx2::table},
#endif
    {"portable", [] { return true; }, portable::table},
};

}  // namespace

const char* kernels_name(int i) {
  for (const Target& target : kTargets) {
    if (target.is_supported() && i-- == 0) return target.name;
  }
  return nullptr;
}

const Kernels* find_kernels(const char* name) {
  for (const Target& target : kTargets) {
    if (strcmp(target.name, name) == 0 && target.is_supported()) return target.table();
  }
  return nullptr;
}

int64_t first_incomplete_sequence(const Cache& cache, bool reads, int64_t window) {
  for (int64_t i = 0; i < cache.sequences; i++) {
    int64_t rows = cache.row_begin[i + 1] - cache.row_begin[i];
    if (rows == 0) continue;
    int64_t first = cache.first_positions[i], last = first + rows - 1;
    if (reads) first = window == 0 || first < window ? 0 : first - window + 1;
    const uint64_t* table = cache.addresses + cache.block_begin[i];
    if (last / cache.block_size >= cache.block_begin[i + 1] - cache.block_begin[i]) return i;
    for (int64_t block = first / cache.block_size; block <= last / cache.block_size; block++) {
      if (table[block] == 0) return i;
    }
  }
  return -1;
}

int64_t first_id_outside(const int32_t* ids, int64_t count, int64_t limit) {
  for (int64_t i = 0; i < count; i++) {
    if (ids[i] < 0 || ids[i] >= limit) return i;
  }
  return -1;
}

}  // namespace hearthlm
