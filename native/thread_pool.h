// Threads that share the parts of one call at a time.
#pragma once

#include <stdint.h>

namespace hearthlm {

// `threads` - 1 workers and the caller. Workers start with the first shared call, spin briefly after each and then
// sleep. A caller never waits for a worker that has not taken a part, so a worker that the system does not schedule
// costs nothing. A forked child has a copy without workers, and starts its own. Which thread computes which part is
// left to chance: parts must not depend on it.
class ThreadPool {
 public:
  // Computes items [begin, end). `worker` is in [0, threads).
  using Part = void (*)(const void* context, int64_t begin, int64_t end, int worker);

  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const;

  // Calls of several threads take turns: hold from before the first use of `scratch` to after the last.
  void lock();
  bool try_lock();
  void unlock();

  // Computes items [0, count) in parts of `grain`, the last part shorter. With one part, on the caller alone.
  void run(int64_t count, int64_t grain, Part part, const void* context);

  // Memory of one worker, 64-byte aligned, not initialised, valid until that worker's next call with the same slot.
  static constexpr int kSlots = 4;
  void* scratch(int worker, int slot, int64_t bytes);

  // Ends the workers; the caller works alone from then on.
  void close();

 private:
  struct State;
  State& state();
  State* state_;
};

}  // namespace hearthlm
