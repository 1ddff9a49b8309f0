#include "team.h"

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#if !defined(_WIN32)
#include <pthread.h>
#include <signal.h>
#endif
#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

#include "isa.h"

namespace fastrnn::cpu {

namespace {

// Below this a second thread costs more to wake (some 10 microseconds) than it saves.
constexpr double operations_per_thread = 1e6;
// How long a thread that waits at a barrier, or was roused for work to come, looks before it sleeps: long enough for
// the others' share of a step, short enough to give the processor up if one of them has lost its own.
constexpr int spins = 4000;

void pause() {
#if defined(__x86_64__) || defined(_M_X64)
    _mm_pause();
#elif defined(__aarch64__) && defined(__GNUC__)
    __asm__ __volatile__("yield");
#endif
}

// A worker that wakes on its caller's processor would wait there until the kernel moves it, which takes milliseconds:
// measured, half of the calls then ran at the speed of one thread. It moves itself away, and is then free to be moved
// again.
int processor() {
#if defined(__linux__)
    return sched_getcpu();
#else
    return -1;
#endif
}
void leave_processor(int caller) {
#if defined(__linux__)
    if (caller < 0 || sched_getcpu() != caller) return;
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
    cpu_set_t others = allowed;
    CPU_CLR(caller, &others);
    if (CPU_COUNT(&others) == 0) return;
    if (sched_setaffinity(0, sizeof others, &others) == 0) sched_setaffinity(0, sizeof allowed, &allowed);
#else
    static_cast<void>(caller);
#endif
}

// A thread's part of a kernel. Registers of the instruction set that other code of this thread does not expect in use
// are given back at its end.
void perform(void (*work)(void*, const Worker&), void* context, const Worker& w) {
    work(context, w);
    if (isa().leave) isa().leave();
}

// While it lives, threads that this thread starts take none of the process's signals: those are for the threads of the
// program. One that waits for a signal (sigwait, signalfd) blocks it in its own threads, and a worker that did not
// would be handed it instead, and end the process. What a thread's own faults raise is left, and what profilers count
// with.
class SignalsBlocked {
  public:
#if defined(_WIN32)
    SignalsBlocked() {}
#else
    SignalsBlocked() {
        sigset_t all;
        sigfillset(&all);
        for (int own : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGSYS, SIGPROF}) sigdelset(&all, own);
        pthread_sigmask(SIG_SETMASK, &all, &before_);
    }
    ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

  private:
    sigset_t before_;
#endif
};

std::atomic<int> wanted_threads{1};
thread_local int last_used = 1;

struct Team {
    std::mutex busy;
    std::vector<std::thread> workers;
    // What workers sleep on: rung for every piece of work, and by rouse() before one.
    std::atomic<unsigned> bell{0};
    // The number of the piece of work, and how many of its parts nobody has taken yet, which are parts 1 to that.
    std::atomic<std::uint64_t> ticket{0};
    std::atomic<int> unfinished{0};  // parts of workers
    // Of the piece of work: stable while a part of it is unfinished.
    void (*work)(void*, const Worker&) = nullptr;
    void* context = nullptr;
    Barrier* meeting = nullptr;
    int count = 0;
    std::atomic<int> caller{-1};  // processor that the caller was on

    static int untaken(std::uint64_t t) { return static_cast<int>(t & 0xffffffff); }

    // Takes a part; 0 if there is none.
    int take() {
        std::uint64_t t = ticket.load(std::memory_order_acquire);
        while (untaken(t) > 0)
            if (ticket.compare_exchange_weak(t, t - 1, std::memory_order_acq_rel, std::memory_order_acquire))
                return untaken(t);
        return 0;
    }

    void loop() {
        for (;;) {
            // The bell is read before the ticket: work that is announced in between has then rung a later bell.
            const unsigned rung = bell.load(std::memory_order_acquire);
            int part = take();
            if (part == 0) {
                bell.wait(rung, std::memory_order_acquire);
                leave_processor(caller.load(std::memory_order_relaxed));
                for (int i = 0; i < spins && (part = take()) == 0; ++i) pause();
                if (part == 0) continue;
            }
            perform(work, context, Worker{part, count, meeting});
            finish();
        }
    }

    void ring() {
        bell.fetch_add(1, std::memory_order_release);
        bell.notify_all();
    }

    void finish() {
        if (unfinished.fetch_sub(1, std::memory_order_acq_rel) == 1) unfinished.notify_one();
    }

    // Threads that there are for a piece of work, the caller's among them: fewer than asked for if the operating system
    // gives no more.
    int grow(int threads) {
        if (static_cast<int>(workers.size()) + 1 < threads) {
            const SignalsBlocked blocked;
            try {
                while (static_cast<int>(workers.size()) + 1 < threads) workers.emplace_back([this] { loop(); });
            } catch (...) {  // std::system_error, or no memory for the list
            }
        }
        return std::min(threads, static_cast<int>(workers.size()) + 1);
    }

    void run(int threads, void (*f)(void*, const Worker&), void* c) {
        Barrier barrier(threads);
        work = f;
        context = c;
        meeting = &barrier;
        count = threads;
        caller.store(processor(), std::memory_order_relaxed);
        unfinished.store(threads - 1, std::memory_order_relaxed);
        const std::uint64_t number = (ticket.load(std::memory_order_relaxed) >> 32) + 1;
        ticket.store(number << 32 | static_cast<std::uint64_t>(threads - 1), std::memory_order_release);
        ring();
        perform(f, c, Worker{0, threads, &barrier});
        // Parts that nobody has come for are done here: a sleeping worker takes longer to come than small ones take.
        // There are none where parts meet at the barrier, since this one could not have ended then.
        for (int part; (part = take()) != 0; finish()) perform(f, c, Worker{part, threads, &barrier});
        for (int i = 0; i < spins; ++i) {
            if (unfinished.load(std::memory_order_acquire) == 0) return;
            pause();
        }
        for (int left; (left = unfinished.load(std::memory_order_acquire)) != 0;) unfinished.wait(left);
    }
};

// Never destroyed: at exit its workers sleep until the process is gone.
std::atomic<Team*> team{nullptr};

Team& the_team() {
    Team* t = team.load(std::memory_order_acquire);
    if (t) return *t;
    Team* fresh = new Team;
    if (team.compare_exchange_strong(t, fresh)) {
#if !defined(_WIN32)
        // The child of a fork has none of the workers, and perhaps a lock that a thread which is gone had taken: it
        // leaves that team alone and makes another.
        static std::once_flag once;
        std::call_once(once, [] { pthread_atfork(nullptr, nullptr, [] { team.store(nullptr); }); });
#endif
        return *fresh;
    }
    delete fresh;
    return *t;
}

}  // namespace

void set_num_threads(int n) {
    wanted_threads.store(std::max(n, 1));
}
int num_threads() {
    return wanted_threads.load();
}
int threads_used() {
    return last_used;
}

void rouse(double operations) {
    Team* t = team.load(std::memory_order_acquire);
    if (!t || threads_for(operations, num_threads()) < 2) return;
    t->caller.store(processor(), std::memory_order_relaxed);
    t->ring();
}

int threads_for(double operations, Index most) {
    const double worth = std::min(operations / operations_per_thread, 1e6);
    return static_cast<int>(std::clamp<Index>(static_cast<Index>(worth), 1, std::clamp<Index>(most, 1, num_threads())));
}

void Barrier::wait() {
    const unsigned generation = generation_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == parties_) {
        arrived_.store(0, std::memory_order_relaxed);
        generation_.fetch_add(1, std::memory_order_release);
        generation_.notify_all();
        return;
    }
    for (int i = 0; i < spins; ++i) {
        if (generation_.load(std::memory_order_acquire) != generation) return;
        pause();
    }
    generation_.wait(generation, std::memory_order_acquire);
}

namespace detail {

void run(int threads, void (*work)(void*, const Worker&), void* context) {
    if (threads > 1) {
        Team& t = the_team();
        std::unique_lock<std::mutex> lock(t.busy, std::try_to_lock);
        if (lock.owns_lock() && (threads = t.grow(threads)) > 1) {
            last_used = threads;
            t.run(threads, work, context);
            return;
        }
    }
    last_used = 1;
    perform(work, context, Worker{0, 1, nullptr});
}

}  // namespace detail

}  // namespace fastrnn::cpu
