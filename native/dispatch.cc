// Which table of kernels this CPU runs. Compiled for the oldest CPU of its kind.
#include <string.h>

#if defined(HEARTHLM_ARM64) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(HEARTHLM_ARM64) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

#include "kernels.h"

namespace hearthlm {

#define DECLARE_TARGET(target)             \
  namespace target {                       \
  void add_linear(Kernels& kernels);       \
  void add_lora(Kernels& kernels);         \
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
      add_lora(kernels);                   \
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
DECLARE_TARGET(avxvnni)
DECLARE_TARGET(avx512vnni)
#endif
#ifdef HEARTHLM_ARM64
DECLARE_TARGET(neon)
DECLARE_TARGET(neon_dotprod)
DECLARE_TARGET(neon_i8mm)
#endif

namespace {

#ifdef HEARTHLM_X86
// Also asks whether the system saves the registers.
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
#endif

#if defined(HEARTHLM_ARM64) && defined(__linux__)
// The bits of the kernel's interface, which older headers may lack.
bool has_dotprod() { return getauxval(AT_HWCAP) >> 20 & 1; }
bool has_i8mm() { return has_dotprod() && (getauxval(AT_HWCAP2) >> 13 & 1); }
#elif defined(HEARTHLM_ARM64) && defined(__APPLE__)
bool has_feature(const char* name) {
  int value = 0;
  size_t size = sizeof value;
  return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
}
bool has_dotprod() { return has_feature("hw.optional.arm.FEAT_DotProd"); }
bool has_i8mm() { return has_dotprod() && has_feature("hw.optional.arm.FEAT_I8MM"); }
#elif defined(HEARTHLM_ARM64)
bool has_dotprod() { return false; }
bool has_i8mm() { return false; }
#endif

struct Target {
  const char* name;
  bool (*is_supported)();
  const Kernels* (*table)();
};

// Best first.
const Target kTargets[] = {
#ifdef HEARTHLM_X86
    {"avx512vnni",
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
              __builtin_cpu_supports("avx512vnni") && has_avx2();
     },
     avx512vnni::table},
    {"avxvnni", [] { return __builtin_cpu_supports("avxvnni") && has_avx2(); }, avxvnni::table},
    {"avx2", has_avx2, avx2::table},
#endif
#ifdef HEARTHLM_ARM64
    {"neon_i8mm", has_i8mm, neon_i8mm::table},
    {"neon_dotprod", has_dotprod, neon_dotprod::table},
    {"neon", [] { return true; }, neon::table},
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
