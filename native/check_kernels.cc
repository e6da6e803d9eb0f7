// Checks the kernels of every instruction set that this CPU has against what the NumPy reference computed, where Python
// does not run, as in an emulator: `check_kernels FILE NAME...`. FILE is of tests/kernel_cases.py; the names are the
// instruction sets that there must be. Every array ends where memory begins that nobody may touch; every case runs on
// one thread and on three, and where rows are independent on each of them alone, with the same bits.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "kernels.h"

namespace hearthlm {
namespace {

typedef std::vector<char> Bytes;

struct Output {
  bool is_float;
  double relative, absolute;
  Bytes expected, initial;
};

struct Case {
  std::string kernel;
  std::vector<double> numbers;
  std::vector<Bytes> inputs;
  std::vector<Output> outputs;
};

[[noreturn]] void fail(const std::string& message) {
  fprintf(stderr, "check_kernels: %s\n", message.c_str());
  exit(1);
}

class Reader {
 public:
  explicit Reader(const char* path) : file_(path, std::ios::binary) {
    static const char kMagic[] = "hearthlm kernel cases 1\n";
    Bytes magic(sizeof kMagic - 1);
    if (!file_.read(magic.data(), static_cast<std::streamsize>(magic.size())) ||
        memcmp(magic.data(), kMagic, magic.size()) != 0) {
      fail(std::string(path) + ": expected a file of tests/kernel_cases.py");
    }
  }
  bool at_end() { return file_.peek() == std::ifstream::traits_type::eof(); }
  template <class T>
  T take() {
    T value;
    if (!file_.read(reinterpret_cast<char*>(&value), sizeof value)) fail("the file of cases ends within a case");
    return value;
  }
  Bytes bytes(uint64_t size) {
    Bytes data(size);
    if (size > 0 && !file_.read(data.data(), static_cast<std::streamsize>(size))) {
      fail("the file of cases ends within an array");
    }
    return data;
  }
  Case next() {
    Case c;
    Bytes name = bytes(take<uint32_t>());
    c.kernel.assign(name.begin(), name.end());
    c.numbers.resize(take<uint32_t>());
    for (double& number : c.numbers) number = take<double>();
    c.inputs.resize(take<uint32_t>());
    for (Bytes& input : c.inputs) input = bytes(take<uint64_t>());
    c.outputs.resize(take<uint32_t>());
    for (Output& output : c.outputs) {
      output.is_float = take<uint32_t>() != 0;
      output.relative = take<double>();
      output.absolute = take<double>();
      output.expected = bytes(take<uint64_t>());
      output.initial = bytes(take<uint64_t>());
    }
    return c;
  }

 private:
  std::ifstream file_;
};

// Copies of arrays that end at a page which may not be touched.
class GuardedMemory {
 public:
  void* place(size_t size, const Bytes& content) {
    if (size > kSize) fail("an array of a case is too large");
    if (used_ == slots_.size()) {
      size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
      void* memory = mmap(nullptr, kSize + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (memory == MAP_FAILED || mprotect(static_cast<char*>(memory) + kSize, page, PROT_NONE) != 0) fail("mmap");
      slots_.push_back(static_cast<char*>(memory));
    }
    char* data = slots_[used_++] + kSize - size;
    if (content.empty()) memset(data, 0x5a, size);
    else memcpy(data, content.data(), size);
    return data;
  }
  void clear() { used_ = 0; }

 private:
  static constexpr size_t kSize = 4 << 20;
  std::vector<char*> slots_;
  size_t used_ = 0;
};

// One case in guarded memory.
struct Call {
  const Kernels& k;
  ThreadPool& pool;
  const Case& c;
  std::vector<const void*> inputs;  // null for empty ones
  std::vector<void*> outputs;
  bool rows_differ = false;

  int64_t number(size_t i) const { return static_cast<int64_t>(c.numbers.at(i)); }
  float real(size_t i) const { return static_cast<float>(c.numbers.at(i)); }
  template <class T>
  const T* in(size_t i) const {
    return static_cast<const T*>(inputs.at(i));
  }
  template <class T>
  T* out(size_t i) const {
    return static_cast<T*>(outputs.at(i));
  }
  const float* floats(size_t i) const { return in<float>(i); }
  // The matrix of numbers i (type, rows, columns) and inputs j (data, scales, zero points).
  Matrix matrix(size_t i, size_t j) const {
    auto type = static_cast<WeightType>(number(i));
    return {inputs.at(j), type, number(i + 1), number(i + 2), floats(j + 1), floats(j + 2)};
  }
  // Computes `size` floats of one row again, beginning as they did if they were given, and compares them.
  void check_row(const void* whole, const void* initial, int64_t size, const std::function<void(float*)>& compute) {
    std::vector<float> row(static_cast<size_t>(size));
    size_t bytes = static_cast<size_t>(size) * sizeof(float);
    if (initial && bytes) memcpy(row.data(), initial, bytes);
    compute(row.data());
    if (bytes && memcmp(row.data(), whole, bytes) != 0) rows_differ = true;
  }
};

void linear_int8(Call& c) {
  Linear linear{c.matrix(1, 3), c.floats(6), c.out<float>(0)};
  c.k.linear_int8(c.in<int8_t>(0), c.floats(1), c.in<int32_t>(2), c.number(0), &linear, 1, c.pool);
}

void linear_gated(Call& c) {
  const auto* x = c.in<int8_t>(0);
  Matrix gate = c.matrix(1, 3), up = c.matrix(1, 7);
  auto kind = static_cast<Activation>(c.number(4));
  c.k.linear_gated(x, c.floats(1), c.in<int32_t>(2), c.number(0), {gate, c.floats(6), c.out<float>(0)}, up,
                   c.floats(10), kind, c.pool);
  for (int64_t i = 0; i < c.number(0); i++) {
    c.check_row(c.out<float>(0) + i * gate.rows, nullptr, gate.rows, [&](float* y) {
      c.k.linear_gated(x + i * gate.columns, c.floats(1) + i, c.in<int32_t>(2) + i, 1, {gate, c.floats(6), y}, up,
                       c.floats(10), kind, c.pool);
    });
  }
}

void linear_float(Call& c) {
  Matrix w = c.matrix(1, 1);
  c.k.linear_float(c.floats(0), c.number(0), w, c.floats(4), c.out<float>(0), c.pool);
  for (int64_t i = 0; i < c.number(0); i++) {
    c.check_row(c.out<float>(0) + i * w.rows, nullptr, w.rows, [&](float* y) {
      c.k.linear_float(c.floats(0) + i * w.columns, 1, w, c.floats(4), y, c.pool);
    });
  }
}

void lora_add(Call& c) {
  int64_t k = c.number(1), n = c.number(2);
  std::vector<LoraRows> groups;
  for (size_t at = 3, array = 1; at < c.c.numbers.size(); at += 6, array += 2) {
    int64_t rank = c.number(at + 2);
    Matrix down{c.inputs[array], static_cast<WeightType>(c.number(at + 3)), rank, k, nullptr, nullptr};
    Matrix up{c.inputs[array + 1], static_cast<WeightType>(c.number(at + 4)), rank, n, nullptr, nullptr};
    groups.push_back({c.number(at), c.number(at + 1), down, up, c.real(at + 5)});
  }
  c.k.lora_add(c.floats(0), groups.data(), static_cast<int64_t>(groups.size()), c.out<float>(0), c.pool);
  auto* initial = reinterpret_cast<const float*>(c.c.outputs[0].initial.data());
  for (LoraRows group : groups) {
    int64_t begin = group.begin, end = group.end;
    group.begin = 0, group.end = 1;
    for (int64_t i = begin; i < end; i++) {
      c.check_row(c.out<float>(0) + i * n, initial + i * n, n,
                  [&](float* y) { c.k.lora_add(c.floats(0) + i * k, &group, 1, y, c.pool); });
    }
  }
}

void quantize_rows(Call& c) {
  c.k.quantize_rows(c.floats(0), c.number(0), c.number(1), c.out<int8_t>(0), c.out<float>(1), c.out<int32_t>(2),
                    c.pool);
}

void embed_rows(Call& c) {
  c.k.embed_rows(c.in<int32_t>(0), c.number(0), c.matrix(1, 1), c.real(4), c.out<float>(0));
}

// Also what else is computed with it: the same bits as one after the other.
void rms_norm(Call& c) {
  int64_t m = c.number(0), d = c.number(1), size = m * d;
  float* y = c.out<float>(0);
  c.k.rms_norm(c.floats(0), m, d, c.floats(1), c.real(2), y, c.pool);
  auto same = [&](const auto& got, const auto& expected) {
    return got.empty() || memcmp(got.data(), expected.data(), got.size() * sizeof got[0]) == 0;
  };
  std::vector<float> added(static_cast<size_t>(size)), sum(y, y + size);
  c.k.rms_norm_add(c.floats(0), m, d, c.floats(1), c.real(2), c.floats(0), added.data(), c.pool);
  c.k.add(sum.data(), c.floats(0), size, c.pool);
  std::vector<int8_t> values(static_cast<size_t>(size)), expected_values(values);
  std::vector<float> scales(static_cast<size_t>(m)), expected_scales(scales);
  std::vector<int32_t> sums(static_cast<size_t>(m)), expected_sums(sums);
  c.k.rms_norm_quantize(c.floats(0), m, d, c.floats(1), c.real(2), values.data(), scales.data(), sums.data(), c.pool);
  c.k.quantize_rows(y, m, d, expected_values.data(), expected_scales.data(), expected_sums.data(), c.pool);
  c.rows_differ |= !same(added, sum) || !same(values, expected_values) || !same(scales, expected_scales) ||
                   !same(sums, expected_sums);
}

void layer_norm(Call& c) {
  c.k.layer_norm(c.floats(0), c.number(0), c.number(1), c.floats(1), c.floats(2), c.real(2), c.out<float>(0), c.pool);
}

void rope(Call& c) {
  c.k.rope(c.out<float>(0), c.number(0), c.number(1), c.number(2), c.floats(0), c.floats(1), c.number(3));
}

int64_t floats_in(const Bytes& bytes) { return static_cast<int64_t>(bytes.size() / sizeof(float)); }

void activation(Call& c) {
  c.k.activation(c.out<float>(0), c.number(1) ? c.floats(0) : nullptr, floats_in(c.c.outputs[0].expected),
                 static_cast<Activation>(c.number(0)), c.pool);
}

void add(Call& c) { c.k.add(c.out<float>(0), c.floats(0), floats_in(c.c.outputs[0].expected), c.pool); }

void soft_cap(Call& c) { c.k.soft_cap(c.out<float>(0), floats_in(c.c.outputs[0].expected), c.real(0), c.pool); }

// Appends every position, then attends from some rows. The blocks of all sequences lie one after the other.
void attention(Call& c) {
  AttentionOptions options{c.number(0), c.real(1), c.real(2), c.number(3), c.floats(3), c.number(4)};
  Cache cache{};
  cache.sequences = c.number(5), cache.block_size = c.number(6), cache.kv_heads = c.number(7);
  cache.head_dim = c.number(8), cache.layer = c.number(9), cache.type = static_cast<CacheType>(c.number(11));
  cache.block_begin = c.in<int32_t>(8);
  int64_t row_bytes = cache.head_dim * (cache.type == CacheType::kFloat16 ? 2 : 4);
  if (cache.type == CacheType::kInt8) row_bytes = cache.head_dim + static_cast<int64_t>(sizeof(float));
  int64_t block_bytes = c.number(10) * 2 * cache.kv_heads * cache.block_size * row_bytes;
  std::vector<uint64_t> addresses;
  for (int32_t i = 0; i < cache.block_begin[cache.sequences]; i++) {
    addresses.push_back(reinterpret_cast<uint64_t>(c.out<char>(0) + i * block_bytes));
  }
  cache.addresses = addresses.data();
  cache.row_begin = c.in<int32_t>(4), cache.first_positions = c.in<int32_t>(5);
  c.k.kv_append(c.floats(1), c.floats(2), cache);
  cache.row_begin = c.in<int32_t>(6), cache.first_positions = c.in<int32_t>(7);
  if (first_incomplete_sequence(cache, true, options.window) >= 0) fail("a case lacks a block");
  c.k.attention(c.floats(0), cache, options, c.out<float>(1), c.pool);
  int64_t size = options.heads * cache.head_dim;
  for (int64_t i = 0; i < cache.sequences; i++) {
    for (int32_t row = cache.row_begin[i]; row < cache.row_begin[i + 1]; row++) {
      int32_t rows[] = {0, 1}, position = cache.first_positions[i] + row - cache.row_begin[i];
      Cache one = cache;
      one.sequences = 1, one.row_begin = rows, one.first_positions = &position, one.block_begin += i;
      c.check_row(c.out<float>(1) + row * size, nullptr, size,
                  [&](float* y) { c.k.attention(c.floats(0) + row * size, one, options, y, c.pool); });
    }
  }
}

void top_k(Call& c) { c.k.top_k(c.floats(0), c.number(0), c.number(1), c.out<int32_t>(0), c.out<float>(1)); }

void draw(Call& c) {
  std::vector<uint64_t> memory(2 * (static_cast<size_t>(c.number(0)) + 7));
  const std::vector<double>& n = c.c.numbers;
  *c.out<int64_t>(0) = c.k.draw(c.floats(0), c.number(0), n.at(1), n.at(2), n.at(3), n.at(4), memory.data());
}

void log_softmax_at(Call& c) {
  c.k.log_softmax_at(c.floats(0), c.number(0), c.number(1), c.in<int32_t>(1), c.out<float>(0), c.pool);
}

void round_compensated(Call& c) {
  c.k.round_compensated(c.floats(0), c.number(0), c.number(1), c.floats(1), c.floats(2), c.real(2), c.real(3),
                        c.out<int8_t>(0), c.out<float>(1), c.pool);
}

const std::map<std::string, void (*)(Call&)> kCalls = {
    {"linear_int8", linear_int8}, {"linear_gated", linear_gated}, {"linear_float", linear_float},
    {"lora_add", lora_add}, {"quantize_rows", quantize_rows}, {"embed_rows", embed_rows}, {"rms_norm", rms_norm},
    {"layer_norm", layer_norm}, {"rope", rope}, {"activation", activation}, {"add", add}, {"soft_cap", soft_cap},
    {"attention", attention}, {"top_k", top_k}, {"draw", draw}, {"log_softmax_at", log_softmax_at},
    {"round_compensated", round_compensated}};

// Says what is wrong with an output, or nothing.
std::string difference(const Output& output, const void* got) {
  const char* bytes = static_cast<const char*>(got);
  if (output.relative == 0 && output.absolute == 0) {
    for (size_t i = 0; i < output.expected.size(); i++) {
      if (bytes[i] != output.expected[i]) return "byte " + std::to_string(i) + " differs";
    }
    return "";
  }
  for (size_t i = 0; i < output.expected.size() / sizeof(float); i++) {
    float value, expected;
    memcpy(&value, bytes + i * sizeof(float), sizeof value);
    memcpy(&expected, output.expected.data() + i * sizeof(float), sizeof expected);
    double error = fabs(static_cast<double>(value) - static_cast<double>(expected));
    bool is_close = error <= output.absolute + output.relative * fabs(static_cast<double>(expected));
    if (value != expected && !is_close && !(isnan(value) && isnan(expected))) {
      char text[100];
      snprintf(text, sizeof text, "element %zu: expected %.9g, got %.9g", i, static_cast<double>(expected),
               static_cast<double>(value));
      return text;
    }
  }
  return "";
}

// The kernels of every instruction set here on one case; returns the number of failures.
int check(const Case& c, size_t index, ThreadPool& one, ThreadPool& three) {
  static GuardedMemory memory;
  auto found = kCalls.find(c.kernel);
  if (found == kCalls.end()) fail("a case of an unknown kernel: " + c.kernel);
  int failures = 0;
  for (int set = 0; kernels_name(set); set++) {
    std::vector<Bytes> first;
    for (ThreadPool* pool : {&one, &three}) {
      memory.clear();
      Call call{*find_kernels(kernels_name(set)), *pool, c, {}, {}};
      for (const Bytes& input : c.inputs) {
        call.inputs.push_back(input.empty() ? nullptr : memory.place(input.size(), input));
      }
      for (const Output& output : c.outputs) {
        call.outputs.push_back(memory.place(output.expected.size(), output.initial));
      }
      found->second(call);
      std::string wrong = call.rows_differ ? "a row alone, or a kernel that does more, gives another result" : "";
      for (size_t i = 0; i < c.outputs.size(); i++) {
        auto* data = static_cast<const char*>(call.outputs[i]);
        if (wrong.empty()) wrong = difference(c.outputs[i], data);
        Bytes copy(data, data + c.outputs[i].expected.size());
        if (pool == &one) first.push_back(copy);
        else if (wrong.empty() && copy != first[i]) wrong = "three threads give another result than one";
      }
      if (wrong.empty()) continue;
      failures++;
      fprintf(stderr, "%s: case %zu, %s(", kernels_name(set), index, c.kernel.c_str());
      for (double number : c.numbers) fprintf(stderr, " %g", number);
      fprintf(stderr, " ): %s\n", wrong.c_str());
    }
  }
  return failures;
}

int main_of(int count, char** arguments) {
  if (count < 3) fail("expected a file of cases and the instruction sets that there must be");
  std::string wanted, here;
  for (int i = 2; i < count; i++) wanted += std::string(" ") + arguments[i];
  for (int i = 0; kernels_name(i); i++) here += std::string(" ") + kernels_name(i);
  if (wanted != here) fail("expected the instruction sets" + wanted + ", got" + here);
  ThreadPool one(1), three(3);
  Reader reader(arguments[1]);
  size_t cases = 0;
  int failures = 0;
  for (; !reader.at_end() && failures < 20; cases++) failures += check(reader.next(), cases, one, three);
  printf("%zu cases,%s: %d failures\n", cases, here.c_str(), failures);
  return failures || cases == 0 ? 1 : 0;
}

}  // namespace
}  // namespace hearthlm

int main(int count, char** arguments) { return hearthlm::main_of(count, arguments); }
