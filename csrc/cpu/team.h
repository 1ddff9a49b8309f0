// The thread team: workers that are parked between calls, and a barrier that costs well under a microsecond when all
// arrive together.
//
// One team a process. A call that finds it busy (another Python thread is in a kernel) runs on its own thread alone:
// results do not depend on the number of threads. After fork the child starts with a new team.
#pragma once

#include <atomic>

#include "../kernels.h"

namespace fastrnn::cpu {

void set_num_threads(int n);
int num_threads();
// Threads that took part in the last kernel that this thread called.
int threads_used();

class Barrier {
  public:
    explicit Barrier(int parties) : parties_(parties) {}
    void wait();

  private:
    const int parties_;
    std::atomic<int> arrived_{0};
    std::atomic<unsigned> generation_{0};
};

// One thread's part in a piece of work.
struct Worker {
    int index, count;
    Barrier* meeting;
    void barrier() const {
        if (count > 1) meeting->wait();
    }
};

struct Range {
    Index begin, end;
};
// The part of n equal pieces that falls to this worker.
inline Range share(Index n, const Worker& w) {
    return {n * w.index / w.count, n * (w.index + 1) / w.count};
}

// Wakes the workers for a call of so many operations that is about to come, while its arguments are still being
// checked: waking takes some 40 microseconds. They wait as long as at a barrier, then sleep again.
void rouse(double operations);

namespace detail {
void run(int threads, void (*work)(void*, const Worker&), void* context);
}

// Threads worth using for so many floating-point operations, at most `most`.
int threads_for(double operations, Index most);

// Calls work(worker) on so many threads, or fewer, and returns when all are done.
template <class F>
void run(int threads, F&& work) {
    detail::run(threads, [](void* context, const Worker& w) { (*static_cast<F*>(context))(w); }, &work);
}

}  // namespace fastrnn::cpu
