// The only source that knows Python: unpacks arrays, releases the interpreter lock, calls. native.py checks arguments.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "kernels.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace hearthlm {
namespace {

template <class T>
using In = nb::ndarray<const T, nb::c_contig, nb::device::cpu>;
template <class T>
using Out = nb::ndarray<T, nb::c_contig, nb::device::cpu>;
using Any = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;
template <class T>
using OptionalIn = std::optional<In<T>>;

template <class T>
const T* data_or_null(const OptionalIn<T>& array) {
  return array ? array->data() : nullptr;
}

// For the length of a call: the pool is this caller's, and for long calls other Python threads run. Taking the lock
// back may wait for a whole switch interval of another thread, so short calls keep it.
class Turn {
 public:
  Turn(ThreadPool& pool, bool is_long) : pool_(pool) {
    if (is_long) release_.emplace();
    if (is_long) {
      pool_.lock();
      return;
    }
    if (pool_.try_lock()) return;
    release_.emplace();  // the holder may need the interpreter lock to end
    pool_.lock();
  }
  ~Turn() { pool_.unlock(); }
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

 private:
  ThreadPool& pool_;
  std::optional<nb::gil_scoped_release> release_;
};

constexpr size_t kLong = 1 << 16;  // elements or weights; about 20 us

Matrix matrix(const Any& data, int type, int64_t rows, int64_t columns, const OptionalIn<float>& scales,
              const OptionalIn<float>& zero_points) {
  return {data.data(), static_cast<WeightType>(type), rows, columns, data_or_null(scales), data_or_null(zero_points)};
}

// Weights of int8 or int4, scales, zero points, bias and result.
using LinearArrays = std::tuple<Any, In<float>, OptionalIn<float>, OptionalIn<float>, Out<float>>;

Linear linear(const LinearArrays& arrays, int type, int64_t columns) {
  const auto& [data, scales, zero_points, bias, y] = arrays;
  Matrix w = matrix(data, type, static_cast<int64_t>(scales.size()), columns, scales, zero_points);
  return {w, data_or_null(bias), y.data()};
}

// The arrays of a CacheBatch, held for its lifetime.
struct CacheView {
  In<int32_t> row_begin, first_positions;
  In<uint64_t> addresses;
  In<int32_t> block_begin;
  Cache cache;
  int64_t layers;
};

// The arrays of a LoraFactors, held for its lifetime.
struct LoraView {
  Any down, up;
  LoraRows rows;
};

Cache at_layer(const CacheView& view, int64_t layer) {
  Cache cache = view.cache;
  cache.layer = layer;
  return cache;
}

const Kernels& kernels_of(const char* name) {
  const Kernels* kernels = find_kernels(name);
  if (!kernels) throw std::invalid_argument(std::string("no kernels for ") + name);
  return *kernels;
}

// Calls on fixed memory, whoever owns that, to be made again in the same order.
struct Recording {
  std::vector<std::function<void()>> calls;
};

// A table of kernels; with a recording, every call is also noted there.
struct Set {
  const Kernels& k;
  Recording* recording;

  template <class Call>
  void perform(bool is_long, const Call& call) const {
    if (recording) recording->calls.emplace_back(call);
    std::optional<nb::gil_scoped_release> release;
    if (is_long) release.emplace();
    call();
  }
  template <class Call>
  void perform(ThreadPool& pool, bool is_long, const Call& call) const {
    if (recording) recording->calls.emplace_back(call);
    Turn turn(pool, is_long);
    call();
  }
};

template <class Array>
int64_t length_of(const Array& array, size_t axis) {
  return static_cast<int64_t>(array.shape(axis));
}

}  // namespace

NB_MODULE(_native, m) {
  nb::set_leak_warnings(false);  // at exit a running generation may still hold its threads; a library stays quiet
  m.def("instruction_sets", [] {
    nb::list names;
    for (int i = 0; kernels_name(i); i++) names.append(kernels_name(i));
    return nb::tuple(names);
  });

  nb::class_<ThreadPool>(m, "ThreadPool")
      .def(nb::init<int>(), "num_threads"_a)
      .def("close", &ThreadPool::close, nb::call_guard<nb::gil_scoped_release>());

  nb::class_<CacheView>(m, "CacheView")
      .def(
          "__init__",
          [](CacheView* self, In<int32_t> row_begin, In<int32_t> first_positions, In<uint64_t> addresses,
             In<int32_t> block_begin, int64_t block_size, int64_t layers, int64_t kv_heads, int64_t head_dim,
             int type) {
            Cache cache{row_begin.data(), first_positions.data(), addresses.data(), block_begin.data(),
                        static_cast<int64_t>(first_positions.size()), block_size, kv_heads, head_dim, 0,
                        static_cast<CacheType>(type)};
            new (self) CacheView{row_begin, first_positions, addresses, block_begin, cache, layers};
          },
          "row_begin"_a.noconvert(), "first_positions"_a.noconvert(), "addresses"_a.noconvert(),
          "block_begin"_a.noconvert(), "block_size"_a, "layers"_a, "kv_heads"_a, "head_dim"_a, "type"_a)
      .def("fits",
           [](const CacheView& view, int64_t layer, int64_t kv_heads, int64_t head_dim) {
             return 0 <= layer && layer < view.layers && kv_heads == view.cache.kv_heads &&
                    head_dim == view.cache.head_dim;
           })
      .def(
          "rebind",
          [](CacheView& view, const CacheView& other) {
            view.row_begin = other.row_begin;
            view.first_positions = other.first_positions;
            view.addresses = other.addresses;
            view.block_begin = other.block_begin;
            view.cache = other.cache;
          })
      .def("first_incomplete_sequence", [](const CacheView& view, bool reads, int64_t window) {
        return first_incomplete_sequence(view.cache, reads, window);
      });

  nb::class_<LoraView>(m, "LoraView")
      .def(
          "__init__",
          [](LoraView* self, Any down, int down_type, Any up, int up_type, int64_t rank, int64_t columns, int64_t rows,
             float scale) {
            Matrix a = matrix(down, down_type, rank, columns, std::nullopt, std::nullopt);
            Matrix b = matrix(up, up_type, rank, rows, std::nullopt, std::nullopt);
            new (self) LoraView{down, up, {0, 0, a, b, scale}};
          },
          "down"_a.noconvert(), "down_type"_a, "up"_a.noconvert(), "up_type"_a, "rank"_a, "columns"_a, "rows"_a,
          "scale"_a);

  m.def(
      "first_id_outside", [](In<int32_t> ids, int64_t limit) {
        return first_id_outside(ids.data(), static_cast<int64_t>(ids.size()), limit);
      },
      nb::arg().noconvert(), nb::arg());

  nb::class_<Recording>(m, "Recording")
      .def(nb::init<>())
      .def("__len__", [](const Recording& recording) { return recording.calls.size(); })
      .def("repeat", [](const Recording& recording, ThreadPool& pool) {
        Turn turn(pool, true);
        for (const auto& call : recording.calls) call();
      });

  nb::class_<Set>(m, "Kernels")
      .def(
          "__init__",
          [](Set* self, const char* name, Recording* recording) { new (self) Set{kernels_of(name), recording}; },
          "instruction_set"_a, "recording"_a.none() = nullptr, nb::keep_alive<1, 3>())
      .def(
          "quantize_rows",
          [](const Set& set, In<float> x, Out<int8_t> values, Out<float> scales, Out<int32_t> sums, ThreadPool& pool) {
            set.perform(pool, x.size() > kLong,
                        [&k = set.k, &pool, x = x.data(), m = length_of(x, 0), n = length_of(x, 1),
                         values = values.data(), scales = scales.data(), sums = sums.data()] {
                          k.quantize_rows(x, m, n, values, scales, sums, pool);
                        });
          },
          nb::arg().noconvert(), nb::arg().noconvert(), nb::arg().noconvert(), nb::arg().noconvert(), nb::arg())
      .def(
          "linear_float",
          [](const Set& set, In<float> x, Any data, int type, int64_t rows, int64_t columns, OptionalIn<float> scales,
             OptionalIn<float> zero_points, OptionalIn<float> bias, Out<float> y, ThreadPool& pool) {
            set.perform(pool, data.size() > kLong,
                        [&k = set.k, &pool, x = x.data(), m = length_of(x, 0),
                         w = matrix(data, type, rows, columns, scales, zero_points), bias = data_or_null(bias),
                         y = y.data()] { k.linear_float(x, m, w, bias, y, pool); });
          },
          nb::arg().noconvert(), nb::arg().noconvert(), nb::arg(), nb::arg(), nb::arg(), nb::arg().none().noconvert(),
          nb::arg().none().noconvert(), nb::arg().none().noconvert(), nb::arg().noconvert(), nb::arg())
      .def(
          "linear_int8",
          [](const Set& set, In<int8_t> x, In<float> x_scales, In<int32_t> x_sums, int type, int64_t columns,
             const std::vector<LinearArrays>& arrays, ThreadPool& pool) {
            std::vector<Linear> linears;
            int64_t weights = 0;
            for (const LinearArrays& each : arrays) {
              linears.push_back(linear(each, type, columns));
              weights += linears.back().w.rows * columns;
            }
            set.perform(pool, weights > static_cast<int64_t>(kLong),
                        [&k = set.k, &pool, x = x.data(), x_scales = x_scales.data(), x_sums = x_sums.data(),
                         m = length_of(x, 0), linears = std::move(linears)] {
                          k.linear_int8(x, x_scales, x_sums, m, linears.data(), static_cast<int64_t>(linears.size()),
                                        pool);
                        });
          },
          nb::arg().noconvert(), nb::arg().noconvert(), nb::arg().noconvert(), nb::arg(), nb::arg(),
          nb::arg().noconvert(), nb::arg())
      .def(
          "linear_gated",
          [](const Set& set, In<int8_t> x, In<float> x_scales, In<int32_t> x_sums, int type, int64_t columns,
             const LinearArrays& gate, Any up, In<float> up_scales, OptionalIn<float> up_zero_points,
             OptionalIn<float> up_bias, int kind, ThreadPool& pool) {
            set.perform(pool, up.size() > kLong,
                        [&k = set.k, &pool, x = x.data(), x_scales = x_scales.data(), x_sums = x_sums.data(),
                         m = length_of(x, 0), gate = linear(gate, type, columns),
                         up = matrix(up, type, length_of(up_scales, 0), columns, up_scales, up_zero_points),
                         up_bias = data_or_null(up_bias), kind = static_cast<Activation>(kind)] {
                          k.linear_gated(x, x_scales, x_sums, m, gate, up, up_bias, kind, pool);
                        });
          },
          nb::arg().noconvert(), nb::arg().noconvert(), nb::arg().noconvert(), nb::arg(), nb::arg(),
          nb::arg().noconvert(), nb::arg().noconvert(), nb::arg().noconvert(), nb::arg().none().noconvert(),
          nb::arg().none().noconvert(), nb::arg(), nb::arg())
      .def(
          "lora_add",
          [](const Set& set, In<float> x, const std::vector<std::tuple<int64_t, int64_t, const LoraView*>>& adapted,
             Out<float> y, ThreadPool& pool) {
            std::vector<LoraRows> groups;
            int64_t products = 0;
            for (const auto& [begin, end, view] : adapted) {
              groups.push_back(view->rows);
              groups.back().begin = begin;
              groups.back().end = end;
              products += (end - begin) * view->rows.down.rows * (view->rows.down.columns + view->rows.up.columns);
            }
            set.perform(pool, products > static_cast<int64_t>(kLong),
                        [&k = set.k, &pool, x = x.data(), groups = std::move(groups), y = y.data()] {
                          k.lora_add(x, groups.data(), static_cast<int64_t>(groups.size()), y, pool);
                        });
          },
          nb::arg().noconvert(), nb::arg(), nb::arg().noconvert(), nb::arg())
      .def(
          "embed_rows",
          [](const Set& set, In<int32_t> ids, Any data, int type, int64_t rows, int64_t columns,
             OptionalIn<float> scales, OptionalIn<float> zero_points, float scale, Out<float> y) {
            set.perform(y.size() > kLong,
                        [&k = set.k, ids = ids.data(), m = length_of(ids, 0),
                         w = matrix(data, type, rows, columns, scales, zero_points), scale, y = y.data()] {
                          k.embed_rows(ids, m, w, scale, y);
                        });
          },
          nb::arg().noconvert(), nb::arg().noconvert(), nb::arg(), nb::arg(), nb::arg(), nb::arg().none().noconvert(),
          nb::arg().none().noconvert(), nb::arg(), nb::arg().noconvert())
      .def(
          "rms_norm",
          [](const Set& set, In<float> x, In<float> weight, float eps, Out<float> y, ThreadPool& pool) {
            set.perform(pool, x.size() > kLong,
                        [&k = set.k, &pool, x = x.data(), m = length_of(x, 0), d = length_of(x, 1),
                         weight = weight.data(), eps, y = y.data()] { k.rms_norm(x, m, d, weight, eps, y, pool); });
          },
          nb::arg().noconvert(), nb::arg().noconvert(), nb::arg(), nb::arg().noconvert(), nb::arg())
      .def(
          "rms_norm_add",
          [](const Set& set, In<float> x, In<float> weight, float eps, In<float> residual, Out<float> y,
             ThreadPool& pool) {
            set.perform(pool, x.size() > kLong,
                        [&k = set.k, &pool, x = x.data(), m = length_of(x, 0), d = length_of(x, 1),
                         weight = weight.data(), eps, residual = residual.data(), y = y.data()] {
                          k.rms_norm_add(x, m, d, weight, eps, residual, y, pool);
                        });
          },
          nb::arg().noconvert(), nb::arg().noconvert(), nb::arg(), nb::arg().noconvert(), nb::arg().noconvert(),
          nb::arg())
      .def(
          "rms_norm_quantize",
          [](const Set& set, In<float> x, In<float> weight, float eps, Out<int8_t> values, Out<float> scales,
             Out<int32_t> sums, ThreadPool& pool) {
            set.perform(pool, x.size() > kLong,
                        [&k = set.k, &pool, x = x.data(), m = length_of(x, 0), d = length_of(x, 1),
                         weight = weight.data(), eps, values = values.data(), scales = scales.data(),
                         sums = sums.data()] {
                          k.rms_norm_quantize(x, m, d, weight, eps, values, scales, sums, pool);
                        });
          },
          nb::arg().noconvert(), nb::arg().noconvert(), nb::arg(), nb::arg().noconvert(), nb::arg().noconvert(),
          nb::arg().noconvert(), nb::arg())
      .def(
          "layer_norm",
          [](const Set& set, In<float> x, In<float> weight, OptionalIn<float> bias, float eps, Out<float> y,
             ThreadPool& pool) {
            set.perform(pool, x.size() > kLong,
                        [&k = set.k, &pool, x = x.data(), m = length_of(x, 0), d = length_of(x, 1),
                         weight = weight.data(), bias = data_or_null(bias), eps, y = y.data()] {
                          k.layer_norm(x, m, d, weight, bias, eps, y, pool);
                        });
          },
          nb::arg().noconvert(), nb::arg().noconvert(), nb::arg().none().noconvert(), nb::arg(), nb::arg().noconvert(),
          nb::arg())
      .def(
          "rope",
          [](const Set& set, Out<float> x, In<float> cos, In<float> sin) {
            set.perform(x.size() > kLong,
                        [&k = set.k, x = x.data(), m = length_of(x, 0), heads = length_of(x, 1),
                         head_dim = length_of(x, 2), cos = cos.data(), sin = sin.data(), r = length_of(cos, 1)] {
                          k.rope(x, m, heads, head_dim, cos, sin, r);
                        });
          },
          nb::arg().noconvert(), nb::arg().noconvert(), nb::arg().noconvert())
      .def(
          "add",
          [](const Set& set, Out<float> x, In<float> y, ThreadPool& pool) {
            set.perform(pool, x.size() > kLong,
                        [&k = set.k, &pool, x = x.data(), y = y.data(), size = static_cast<int64_t>(x.size())] {
                          k.add(x, y, size, pool);
                        });
          },
          nb::arg().noconvert(), nb::arg().noconvert(), nb::arg())
      .def(
          "round_compensated",
          [](const Set& set, In<float> w, In<float> u, In<float> scales, float lowest, float highest, Out<int8_t> q,
             Out<float> losses, ThreadPool& pool) {
            Turn turn(pool, true);
            set.k.round_compensated(w.data(), length_of(w, 0), length_of(w, 1), u.data(), scales.data(), lowest,
                                    highest, q.data(), losses.data(), pool);
          },
          nb::arg().noconvert(), nb::arg().noconvert(), nb::arg().noconvert(), nb::arg(), nb::arg(),
          nb::arg().noconvert(), nb::arg().noconvert(), nb::arg())
      .def(
          "activation",
          [](const Set& set, Out<float> x, OptionalIn<float> up, int kind, ThreadPool& pool) {
            set.perform(pool, x.size() > kLong,
                        [&k = set.k, &pool, x = x.data(), up = data_or_null(up), size = static_cast<int64_t>(x.size()),
                         kind = static_cast<Activation>(kind)] { k.activation(x, up, size, kind, pool); });
          },
          nb::arg().noconvert(), nb::arg().none().noconvert(), nb::arg(), nb::arg())
      .def(
          "soft_cap",
          [](const Set& set, Out<float> x, float cap, ThreadPool& pool) {
            set.perform(pool, x.size() > kLong,
                        [&k = set.k, &pool, x = x.data(), size = static_cast<int64_t>(x.size()), cap] {
                          k.soft_cap(x, size, cap, pool);
                        });
          },
          nb::arg().noconvert(), nb::arg(), nb::arg())
      .def(
          "kv_append",
          [](const Set& set, In<float> keys, In<float> values, const CacheView& view, int64_t layer) {
            set.perform(keys.size() > kLong, [&k = set.k, &view, keys = keys.data(), values = values.data(), layer] {
              k.kv_append(keys, values, at_layer(view, layer));
            });
          },
          nb::arg().noconvert(), nb::arg().noconvert(), nb::arg(), nb::arg())
      .def(
          "attention",
          [](const Set& set, In<float> queries, const CacheView& view, int64_t layer, float scale, float soft_cap,
             int64_t window, OptionalIn<float> key_bias, Out<float> y, ThreadPool& pool) {
            AttentionOptions options{length_of(queries, 1),  scale,
                                     soft_cap,               window,
                                     data_or_null(key_bias), key_bias ? length_of(*key_bias, 1) : 0};
            set.perform(pool, true,
                        [&k = set.k, &pool, &view, queries = queries.data(), layer, options, y = y.data()] {
                          k.attention(queries, at_layer(view, layer), options, y, pool);
                        });
          },
          nb::arg().noconvert(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg().none().noconvert(),
          nb::arg().noconvert(), nb::arg())
      .def(
          "top_k",
          [](const Set& set, In<float> logits, Out<int32_t> ids, Out<float> values) {
            nb::gil_scoped_release release;
            set.k.top_k(logits.data(), static_cast<int64_t>(logits.size()), static_cast<int64_t>(ids.size()),
                        ids.data(), values.data());
          },
          nb::arg().noconvert(), nb::arg().noconvert(), nb::arg().noconvert())
      .def(
          "draw",
          [](const Set& set, In<float> logits, double temperature, double top_p, double min_p, double number) {
            nb::gil_scoped_release release;
            std::unique_ptr<uint64_t[]> memory(new uint64_t[2 * (logits.size() + 7)]);
            return set.k.draw(logits.data(), static_cast<int64_t>(logits.size()), temperature, top_p, min_p, number,
                              memory.get());
          },
          nb::arg().noconvert(), nb::arg(), nb::arg(), nb::arg(), nb::arg())
      .def(
          "log_softmax_at",
          [](const Set& set, In<float> logits, In<int32_t> ids, Out<float> y, ThreadPool& pool) {
            Turn turn(pool, logits.size() > kLong);
            set.k.log_softmax_at(logits.data(), static_cast<int64_t>(logits.shape(0)),
                                 static_cast<int64_t>(logits.shape(1)), ids.data(), y.data(), pool);
          },
          nb::arg().noconvert(), nb::arg().noconvert(), nb::arg().noconvert(), nb::arg());
}

}  // namespace hearthlm
