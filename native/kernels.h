// Every kernel, on one page. No Python, no allocation that a caller sees, no checks: sizes and pointers come checked.
//
// The sources linear, lora, attention, norm, rope, activation, sampling and rounding are compiled once per instruction
// set, with HEARTHLM_TARGET naming a namespace; `find_kernels` picks a table at run time. Arrays are dense and
// row-major, with no alignment beyond that of their elements, and nothing outside of them is read.
//
// Order of sums: the lanes and accumulators of a float sum are fixed by the length summed alone, in attention by the
// absolute positions, so results do not depend on rows per call, threads or batch. They differ between instruction
// sets, except for `quantize_rows`, `linear_int8`, `embed_rows`, `rope`, `add`, `kv_append`, `top_k`,
// `draw` and `round_compensated`, whose results are the same everywhere.
#pragma once

#include <stdint.h>

#include "thread_pool.h"

namespace hearthlm {

enum class WeightType : int32_t { kFloat32, kFloat16, kBfloat16, kInt8, kInt4 };

// A weight matrix as it lies on disk, see quantization.py.
struct Matrix {
  const void* data;          // [rows, columns]; int4: bytes [rows, (columns + 1) / 2], q + 8, the even column low
  WeightType type;
  int64_t rows, columns;
  const float* scales;       // [rows]; null unless int8 or int4
  const float* zero_points;  // [rows] or null
};

// y [m, w.rows] = x [m, w.columns] * w^T + bias.
struct Linear {
  Matrix w;
  const float* bias;  // [w.rows] or null
  float* y;
};

enum class CacheType : int32_t { kFloat32, kFloat16, kInt8 };

// The rows of a call grouped by sequence, and their cache blocks, see cache_batch.py. The rows of an int8 block are
// head_dim bytes and the 4 of a float, their scale.
struct Cache {
  const int32_t* row_begin;        // [sequences + 1]
  const int32_t* first_positions;  // [sequences]
  const uint64_t* addresses;       // [block_begin[sequences]], of blocks [layers, 2, kv_heads, block_size, row]
  const int32_t* block_begin;      // [sequences + 1]
  int64_t sequences, block_size, kv_heads, head_dim;
  int64_t layer;
  CacheType type;
};

struct AttentionOptions {
  int64_t heads;
  float scale, soft_cap;     // soft_cap 0: none
  int64_t window;            // 0: none
  const float* key_bias;     // [heads, key_bias_stride] or null
  int64_t key_bias_stride;
};

// Rows [begin, end) of a call, and the adapter that they go through; the factors are of a float type.
struct LoraRows {
  int64_t begin, end;
  Matrix down, up;  // A [rank, k] and B transposed, [rank, n]
  float scale;
};

enum class Activation : int32_t { kGeluTanh, kGelu, kSilu, kRelu };

struct Kernels {
  // scale = max|row| / 127, value = round half to even(row * (127 / max|row|)); 0 where 127 / max|row| overflows.
  void (*quantize_rows)(const float* x, int64_t m, int64_t k, int8_t* values, float* scales, int32_t* sums,
                        ThreadPool& pool);

  // y [m, n] = x [m, k] * w^T + bias. Float rows: w is widened to float. Bias may be null.
  void (*linear_float)(const float* x, int64_t m, const Matrix& w, const float* bias, float* y, ThreadPool& pool);

  // Exact integer sums: y = float(sum x q - zero_point * sum x) * (x_scale * w_scale) + bias, for each of `count`, all
  // int8 or all int4, of as many columns.
  void (*linear_int8)(const int8_t* x, const float* x_scales, const int32_t* x_sums, int64_t m, const Linear* linears,
                      int64_t count, ThreadPool& pool);

  // gate.y = act(linear_int8 by gate) * linear_int8 by up, both of one type and shape.
  void (*linear_gated)(const int8_t* x, const float* x_scales, const int32_t* x_sums, int64_t m, const Linear& gate,
                       const Matrix& up, const float* up_bias, Activation kind, ThreadPool& pool);

  // y [m, n] += scale * (x [m, k] * down^T) * up, for the rows of each of `count` groups.
  void (*lora_add)(const float* x, const LoraRows* groups, int64_t count, float* y, ThreadPool& pool);

  // y [m, columns] = dequantised rows `ids` of w, times scale.
  void (*embed_rows)(const int32_t* ids, int64_t m, const Matrix& w, float scale, float* y);

  // y = x * (1 / sqrt(mean(x^2) + eps)) * weight over rows of length d.
  void (*rms_norm)(const float* x, int64_t m, int64_t d, const float* weight, float eps, float* y, ThreadPool& pool);

  // y = rms_norm(x) + residual.
  void (*rms_norm_add)(const float* x, int64_t m, int64_t d, const float* weight, float eps, const float* residual,
                       float* y, ThreadPool& pool);

  // quantize_rows of rms_norm(x).
  void (*rms_norm_quantize)(const float* x, int64_t m, int64_t d, const float* weight, float eps, int8_t* values,
                            float* scales, int32_t* sums, ThreadPool& pool);

  // y = (x - mean) / sqrt(variance + eps) * weight + bias over rows of length d; bias may be null.
  void (*layer_norm)(const float* x, int64_t m, int64_t d, const float* weight, const float* bias, float eps, float* y,
                     ThreadPool& pool);

  // In place on x [m, heads, head_dim]: channels c and c + r of every head turn by the angle of cos, sin [m, r].
  void (*rope)(float* x, int64_t m, int64_t heads, int64_t head_dim, const float* cos, const float* sin, int64_t r);

  // gate = act(gate) * up over `size` elements; up may be null for 1.
  void (*activation)(float* gate, const float* up, int64_t size, Activation kind, ThreadPool& pool);

  // x = x + y over `size` elements.
  void (*add)(float* x, const float* y, int64_t size, ThreadPool& pool);

  // x = cap * tanh(x / cap) over `size` elements.
  void (*soft_cap)(float* x, int64_t size, float cap, ThreadPool& pool);

  // Stores keys, values [m, kv_heads, head_dim] at the positions of the batch's rows: float16 rounds half to even,
  // int8 as quantize_rows does.
  void (*kv_append)(const float* keys, const float* values, const Cache& cache);

  // Causal attention of queries [m, heads, head_dim] over the cache, see interface.py.
  void (*attention)(const float* queries, const Cache& cache, const AttentionOptions& options, float* y,
                    ThreadPool& pool);

  // The k <= v highest of logits [v], descending, the lowest id first among equals; NaN counts as minus infinity.
  void (*top_k)(const float* logits, int64_t v, int64_t k, int32_t* ids, float* values);

  // y[i] = log of the softmax of row i of logits [m, v] at ids[i].
  void (*log_softmax_at)(const float* logits, int64_t m, int64_t v, const int32_t* ids, float* y, ThreadPool& pool);

  // The token that `number` in [0, 1) draws from logits [v] by top_p and min_p, see interface.py; -1 if the highest is not
  // finite. `memory` has 2 * (v + 7) elements.
  int64_t (*draw)(const float* logits, int64_t v, double temperature, double top_p, double min_p, double number,
                  uint64_t* memory);

  // q [m, k] = w [m, k] / scales [m], column by column: each is clipped to [lowest, highest], integers, and rounded half
  // to even; its error over u[j, j], times u[j, c], is taken from every later column c, and its square added to the row's loss.
  // u is [k, k], upper triangular.
  void (*round_compensated)(const float* w, int64_t m, int64_t k, const float* u, const float* scales, float lowest,
                            float highest, int8_t* q, float* losses, ThreadPool& pool);
};

// The instruction sets that this build has and this CPU runs, best first; name(i) is null past the last.
const char* kernels_name(int i);
const Kernels* find_kernels(const char* name);  // null if the CPU or the build lacks it

// The first sequence that needs a dropped or missing block for its rows (and, with `reads`, for the keys in sight of
// them), or -1.
int64_t first_incomplete_sequence(const Cache& cache, bool reads, int64_t window);

// The index of the first id outside [0, limit), or -1.
int64_t first_id_outside(const int32_t* ids, int64_t count, int64_t limit);

#ifdef HEARTHLM_TARGET
// Each source fills in its part of the table. Nothing else in it has external linkage: the linker merges equal inline
// functions, and might keep the copy that only newer CPUs can run.
namespace HEARTHLM_TARGET {
void add_linear(Kernels& kernels);
void add_lora(Kernels& kernels);
void add_attention(Kernels& kernels);
void add_norm(Kernels& kernels);
void add_rope(Kernels& kernels);
void add_activation(Kernels& kernels);
void add_sampling(Kernels& kernels);
void add_rounding(Kernels& kernels);
}  // namespace HEARTHLM_TARGET
#endif

}  // namespace hearthlm
