#include "team.h"

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace hasten {
namespace {

// Looks before a thread parks. The busy ones, some ten microseconds, are for calls that follow each other closely: with 300 one process in three ran
// its two threads on one core for good.
constexpr int BUSY = 1000, LOOKS = 1300;

std::atomic<unsigned> forks{0};

void watch_forks() {
#if defined(__unix__) || defined(__APPLE__)
    static const int once = pthread_atfork(nullptr, nullptr, [] { forks.fetch_add(1); });
    (void)once;
#endif
}

}  // namespace

Team::Team(int threads) {
    watch_forks();
    forks_ = forks.load();
    for (int i = 1; i < threads; i++) workers_.emplace_back([this, i] { serve(i); });
}

Team::~Team() {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        stop_ = true;
        calls_.fetch_add(1, std::memory_order_release);
    }
    called_.notify_all();
    for (std::thread &worker : workers_) worker.join();
}

bool Team::lost() const { return forks.load(std::memory_order_relaxed) != forks_; }

void Team::run(Work work, void *context) {
    work_ = work, context_ = context;
    left_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
    calls_.fetch_add(1, std::memory_order_seq_cst);
    if (parked_.load(std::memory_order_seq_cst) > 0) {
        const std::lock_guard<std::mutex> lock(mutex_);
        called_.notify_all();
    }
    work(context, 0);
    Barrier::spin([&] { return left_.load(std::memory_order_acquire) == 0; });
}

void Team::serve(int thread) {
    for (uint32_t seen = 0;; seen++) {
        const auto called = [&] { return calls_.load(std::memory_order_acquire) != seen; };
        if (!Barrier::spin(called, BUSY, LOOKS)) {
            std::unique_lock<std::mutex> lock(mutex_);
            parked_.fetch_add(1, std::memory_order_seq_cst);
            called_.wait(lock, called);
            parked_.fetch_sub(1, std::memory_order_relaxed);
        }
        if (stop_) return;
        work_(context_, thread);
        left_.fetch_sub(1, std::memory_order_release);
    }
}

}  // namespace hasten
