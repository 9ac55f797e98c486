// A team of threads that a model keeps: they spin for a while after a run, then park.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace hasten {

// A place where all threads of a team wait for the last one. On a machine with fewer free cores than threads a waiting thread yields.
class Barrier {
public:
    void wait(int threads) {
        const uint32_t phase = phase_.load(std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
            arrived_.store(0, std::memory_order_relaxed);
            phase_.store(phase + 1, std::memory_order_release);
            return;
        }
        spin([&] { return phase_.load(std::memory_order_acquire) != phase; });
    }

    // Until `done`: busily for a microsecond, then giving the core away between looks, for the thread that is waited for may want this very
    // core. (With a thousand busy looks at each step, two threads that shared a core took fifteen times as long as one; now three times.)
    template <class Done>
    static void spin(const Done &done) {
        while (!spin(done, BUSY, 1 << 30)) {
        }
    }

    // The same, with so many busy looks and so many looks in all; whether it is done.
    template <class Done>
    static bool spin(const Done &done, int busy, int looks) {
        for (int i = 0; i < looks; i++) {
            if (done()) return true;
            if (i < busy)
                pause();
            else
                std::this_thread::yield();
        }
        return done();
    }

    static void pause() {
#if defined(__x86_64__) || defined(__i386__)
        __builtin_ia32_pause();
#elif defined(__aarch64__)
        __asm__ __volatile__("yield");
#endif
    }

private:
    static constexpr int BUSY = 50;
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<uint32_t> phase_{0};
};

class Team {
public:
    using Work = void (*)(void *context, int thread);

    explicit Team(int threads);  // the caller's included: threads - 1 are started
    ~Team();
    Team(const Team &) = delete;
    Team &operator=(const Team &) = delete;

    int threads() const { return static_cast<int>(workers_.size()) + 1; }
    // Whether this process was forked after the team was made: then its threads are not here, and it must neither run nor be
    // destroyed.
    bool lost() const;
    // work(context, i) for every thread i at once; returns when all have.
    void run(Work work, void *context);

private:
    void serve(int thread);

    std::vector<std::thread> workers_;
    Work work_ = nullptr;
    void *context_ = nullptr;
    bool stop_ = false;
    unsigned forks_ = 0;
    alignas(64) std::atomic<uint32_t> calls_{0};
    alignas(64) std::atomic<int> left_{0};
    std::atomic<int> parked_{0};
    std::mutex mutex_;
    std::condition_variable called_;
};

}  // namespace hasten
