#include "thread_pool.h"

#include <pthread.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

namespace hearthlm {
namespace {

constexpr uint32_t kClosed = 0xffffffff;  // no part to take: the job is being written
constexpr auto kSpin = std::chrono::microseconds(100);

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// How many forks lie between the first process and this one.
std::atomic<int> forks{0};
void count_fork() { forks.fetch_add(1, std::memory_order_relaxed); }

struct alignas(64) Scratch {
  void* data[ThreadPool::kSlots] = {};
  int64_t bytes[ThreadPool::kSlots] = {};
};

}  // namespace

struct ThreadPool::State {
  // The job: its number in the upper half, the next part in the lower. Taking a part is one compare-and-swap, which
  // fails if the job changed meanwhile. The fields are written only while the lower half is kClosed, so a successful
  // swap proves that the fields read before it belong to that job; release and acquire on them order this.
  alignas(64) std::atomic<uint64_t> next{kClosed};
  std::atomic<int64_t> count{0}, grain{1};
  std::atomic<uint32_t> parts{0};
  std::atomic<Part> part{nullptr};
  std::atomic<const void*> context{nullptr};
  alignas(64) std::atomic<uint32_t> done{0};

  alignas(64) std::mutex turn;  // held for a whole kernel
  std::mutex sleep;
  std::condition_variable wake;
  std::atomic<int> sleepers{0};
  std::atomic<bool> stop{false};
  const int threads;
  bool started = false, closed = false;
  int born_after = forks.load(std::memory_order_relaxed);  // forks: the process that the workers live in
  std::vector<std::thread> workers;
  std::vector<Scratch> scratch;

  // Computes one part; false if there is none, with the number of the job that has none left in `finished_job`.
  bool take_part(int worker, uint32_t& finished_job) {
    uint64_t seen = next.load(std::memory_order_acquire);
    for (;;) {
      uint32_t index = static_cast<uint32_t>(seen);
      finished_job = static_cast<uint32_t>(seen >> 32) - (index == kClosed);
      if (index == kClosed) return false;
      Part job = part.load(std::memory_order_acquire);
      const void* job_context = context.load(std::memory_order_acquire);
      int64_t job_count = count.load(std::memory_order_acquire), job_grain = grain.load(std::memory_order_acquire);
      if (index >= parts.load(std::memory_order_acquire)) return false;
      if (!next.compare_exchange_weak(seen, seen + 1, std::memory_order_acq_rel)) continue;
      int64_t begin = index * job_grain, end = begin + job_grain;
      job(job_context, begin, end < job_count ? end : job_count, worker);
      done.fetch_add(1, std::memory_order_release);
      return true;
    }
  }

  void work(int worker) {
    uint32_t finished_job = 0;
    while (!stop.load(std::memory_order_relaxed)) {
      while (take_part(worker, finished_job)) {
      }
      auto until = std::chrono::steady_clock::now() + kSpin;
      bool is_new = false;
      do {
        for (int i = 0; i < 64 && !is_new; i++) {
          is_new = has_new(finished_job);
          if (!is_new) pause();
        }
      } while (!is_new && std::chrono::steady_clock::now() < until);
      if (is_new) continue;
      std::unique_lock<std::mutex> guard(sleep);
      sleepers.fetch_add(1);
      wake.wait(guard, [&] { return has_new(finished_job); });
      sleepers.fetch_sub(1);
    }
  }

  bool has_new(uint32_t finished_job) const {
    uint64_t seen = next.load();
    return stop.load(std::memory_order_relaxed) ||
           (static_cast<uint32_t>(seen >> 32) != finished_job && static_cast<uint32_t>(seen) != kClosed);
  }

  explicit State(int threads) : threads(threads), scratch(static_cast<size_t>(threads)) {}

  // A forked child has a copy of this, but no workers, and perhaps locks that nobody will open.
  bool is_copy() const { return born_after != forks.load(std::memory_order_relaxed); }

  void start() {
    started = true;
    for (int worker = 1; worker < threads; worker++) {
      try {
        workers.emplace_back([this, worker] { work(worker); });
      } catch (...) {  // the system refuses another thread: fewer workers give the same result
        break;
      }
    }
  }
};

ThreadPool::ThreadPool(int threads) {
  static const int registered = pthread_atfork(nullptr, nullptr, count_fork);
  (void)registered;
  state_ = new State(threads);
}

// The state, in a forked child a new one: of the old one nothing can be used, not even freed.
ThreadPool::State& ThreadPool::state() {
  State* current = __atomic_load_n(&state_, __ATOMIC_ACQUIRE);
  if (!current->is_copy()) return *current;
  State* fresh = new State(current->threads);
  fresh->closed = current->closed;
  if (__atomic_compare_exchange_n(&state_, &current, fresh, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) return *fresh;
  delete fresh;  // another thread of the child was first
  return *current;
}

ThreadPool::~ThreadPool() {
  if (state_->is_copy()) return;  // even to destroy the locks would wait for those that wait for them
  close();
  for (Scratch& scratch : state_->scratch) {
    for (void* data : scratch.data) std::free(data);
  }
  delete state_;
}

int ThreadPool::threads() const { return state_->threads; }
void ThreadPool::lock() { state().turn.lock(); }
bool ThreadPool::try_lock() { return state().turn.try_lock(); }
void ThreadPool::unlock() { state_->turn.unlock(); }

void ThreadPool::run(int64_t count, int64_t grain, Part part, const void* context) {
  State& s = state();
  if (count <= 0) return;
  if (grain < 1) grain = 1;
  int64_t parts = (count + grain - 1) / grain;
  if (parts == 1 || s.threads == 1 || s.closed) {
    part(context, 0, count, 0);
    return;
  }
  if (parts > 0x7fffffff) {
    grain = (count + 0x7ffffffe) / 0x7fffffff;
    parts = (count + grain - 1) / grain;
  }
  if (!s.started) s.start();
  uint64_t job = (s.next.load(std::memory_order_relaxed) >> 32) + 1;
  s.next.store(job << 32 | kClosed, std::memory_order_release);
  s.count.store(count, std::memory_order_release);
  s.grain.store(grain, std::memory_order_release);
  s.parts.store(static_cast<uint32_t>(parts), std::memory_order_release);
  s.part.store(part, std::memory_order_release);
  s.context.store(context, std::memory_order_release);
  s.done.store(0, std::memory_order_release);
  s.next.store(job << 32);  // sequentially consistent, as is has_new under `sleepers`: one of the two sees the other
  if (s.sleepers.load() > 0) {
    std::lock_guard<std::mutex> guard(s.sleep);
    s.wake.notify_all();
  }
  uint32_t finished_job = 0;
  while (s.take_part(0, finished_job)) {
  }
  for (int spins = 0; s.done.load(std::memory_order_acquire) != parts; spins++) {
    if (spins < 20000) {
      pause();
    } else {
      std::this_thread::yield();
    }
  }
}

void* ThreadPool::scratch(int worker, int slot, int64_t bytes) {
  Scratch& s = state_->scratch[static_cast<size_t>(worker)];
  if (s.bytes[slot] < bytes) {
    std::free(s.data[slot]);
    s.bytes[slot] = 0;
    int64_t rounded = (bytes + bytes / 4 + 4095) / 4096 * 4096;
    s.data[slot] = std::aligned_alloc(64, static_cast<size_t>(rounded));
    if (s.data[slot] == nullptr) throw std::bad_alloc();
    s.bytes[slot] = rounded;
  }
  return s.data[slot];
}

void ThreadPool::close() {
  State& s = state();
  std::lock_guard<std::mutex> turn(s.turn);
  if (s.closed) return;
  s.closed = true;
  s.stop.store(true);
  {
    std::lock_guard<std::mutex> guard(s.sleep);
    s.wake.notify_all();
  }
  for (std::thread& worker : s.workers) worker.join();
  s.workers.clear();
}

}  // namespace hearthlm
