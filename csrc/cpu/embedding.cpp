// Word embedding: gather rows, and add them back.
//
// Backward sorts the positions by word, by counting: ids are small integers, so nothing is compared. It takes as few
// passes over the ids as digits of at most 11 bits allow, two for any vocabulary up to four million, and so the costs
// depend on the number of ids but not on that of words. Then every row of the gradient belongs to one thread, which
// adds its rows of dout in order of position, in registers. No two threads write one element, so there are no atomics
// on results.
//
// The words are cut into pieces, which threads take one by one, beginning at their share: a thread that wakes up late
// leaves pieces to the others. A word with more than a piece's positions, as languages have, is cut into parts that are
// summed apart and then added up in order. How it is cut depends on the ids alone, so that results are the same at any
// number of threads. (Giving every thread some columns of such a word instead would keep one order of additions, but
// two threads then read halves of the same rows of memory: with all of (512·512, 100000, 128) ids equal, it took 16.6
// ms where one thread took 6.6; in parts, two take 4.6.)
//
// Bytes set the speed. Results larger than the caches are written past them (zeros above all: two cores of Zen 4 write
// them at 70 GB/s, and at 37 GB/s through the caches).
#include <atomic>
#include <bit>

#include "gemm.h"
#if defined(__SSE2__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace fastrnn::cpu {
namespace {

using Key = std::uint64_t;  // a word's id above, its position in the low bits

constexpr int most_digit_bits = 11;  // of an id, in one pass: the counters of a pass stay in the L1
constexpr Index ids_per_sorter = 8192;
constexpr Index most_sorters = 64;
constexpr Index most_pieces = 128;
constexpr Index smallest_piece = 256;  // ids and rows
constexpr Index smallest_part = 128;   // positions of a word
constexpr Index fetch_bytes = 8192;    // how far ahead of their use rows are fetched
constexpr double stream_bytes = 16e6;  // results above this are written past the caches
// Additions wait for memory: one is worth so many of the operations that threads_for counts.
constexpr double operations_per_element = 4;

Index rows_ahead(Index row_bytes) {
    return std::clamp<Index>(fetch_bytes / std::max<Index>(1, row_bytes), 1, 16);
}

// Into the L2: see prefetch_l2 in inner_loops.h.
void fetch(const void* p, Index bytes) {
#if defined(__GNUC__)
    const char* at = static_cast<const char*>(p);
    for (Index b = 0; b < bytes; b += 64) __builtin_prefetch(at + b, 0, 2);
    __builtin_prefetch(at + bytes - 1, 0, 2);
#else
    static_cast<void>(p), static_cast<void>(bytes);
#endif
}

// A view of the workspace.
struct Sort {
    Sort(Index n_, Index V, Index D, Index itemsize, Index* workspace) : n(n_) {
        position_bits = n > 1 ? std::bit_width(static_cast<Key>(n - 1)) : 0;
        const int word_bits = V > 1 ? std::bit_width(static_cast<Key>(V - 1)) : 0;
        passes = std::max(1, static_cast<int>(ceil_div(word_bits, most_digit_bits)));
        digit_bits = static_cast<int>(ceil_div(word_bits, passes));
        mask = (Key(1) << position_bits) - 1;
        pieces = std::clamp<Index>(n / smallest_piece, 1, most_pieces);
        part = std::max(smallest_part, ceil_div(n, most_pieces));
        most_threads = std::clamp<Index>(n / ids_per_sorter, 1, most_sorters);
        Carver<Index> carve(workspace);
        keys[0] = reinterpret_cast<Key*>(carve.take(n));
        keys[1] = reinterpret_cast<Key*>(carve.take(n));
        words_of_piece = carve.take(pieces);
        counts = carve.take(most_threads << digit_bits);
        starts = carve.take(most_threads << digit_bits);
        part_sums = carve.take(n / part * ceil_div(D * itemsize, sizeof(Index)));
        size = carve.used();
    }
    Index word(Index k) const { return static_cast<Index>(keys[0][k] >> position_bits); }
    // The first place in the sorted list whose word is v or above.
    Index first(Index v) const {
        const auto below = [this](Key key, Index word) { return static_cast<Index>(key >> position_bits) < word; };
        return std::lower_bound(keys[0], keys[0] + n, v, below) - keys[0];
    }
    // Where piece p begins if the sorted list is cut into pieces of so many ids, and no word is cut.
    Index border(Index p) const {
        const Index k = n * p / pieces;
        return k == 0 || k == n || word(k) != word(k - 1) ? k : first(word(k) + 1);
    }

    Index n, pieces, most_threads, size;
    Index part;  // a word with more positions is summed in parts of at least so many
    int position_bits, digit_bits, passes;
    Key mask;
    Key* keys[2];  // keys[0]: sorted, in the end
    Index *words_of_piece, *counts, *starts, *part_sums;
};

// One pass: keys sorted by one digit of their words, equal ones in the order that they had. All sorters call it.
template <class GetKey>
void sort_by_digit(const Sort& s, int number, const Worker& w, int sorters, GetKey key) {
    const Range mine = share(s.n, {w.index, sorters, nullptr});
    const int shift = s.position_bits + number * s.digit_bits;
    const Index digits = Index(1) << s.digit_bits;
    const auto digit = [=](Key k) { return (k >> shift) & static_cast<Key>(digits - 1); };
    Index* count = s.counts + w.index * digits;
    Index* start = s.starts + w.index * digits;
    std::fill(count, count + digits, Index(0));
    for (Index i = mine.begin; i < mine.end; ++i) ++count[digit(key(i))];
    if (sorters > 1) w.barrier();
    Index before = 0;
    for (Index d = 0; d < digits; ++d)
        for (int t = 0; t < sorters; ++t) {
            if (t == w.index) start[d] = before;
            before += s.counts[t * digits + d];
        }
    Key* to = s.keys[(s.passes - 1 - number) % 2];
    for (Index i = mine.begin; i < mine.end; ++i) {
        const Key k = key(i);
        to[start[digit(k)]++] = k;
    }
    if (sorters > 1) w.barrier();
}

void sort_by_word(const Sort& s, Vec<Index> ids, const Worker& w, int sorters) {
    sort_by_digit(s, 0, w, sorters,
                  [&](Index i) { return static_cast<Key>(ids(i)) << s.position_bits | static_cast<Key>(i); });
    for (int number = 1; number < s.passes; ++number) {
        const Key* from = s.keys[(s.passes - number) % 2];
        sort_by_digit(s, number, w, sorters, [from](Index i) { return from[i]; });
    }
}

// Every worker calls it. Few ids are sorted by the first worker alone, while the others wake up; it waits for nobody.
void sort(const Sort& s, Vec<Index> ids, const Worker& w, std::atomic<bool>& sorted) {
    const int sorters = static_cast<int>(std::min<Index>(w.count, s.most_threads));
    if (s.most_threads > 1) {
        if (w.index < sorters)
            sort_by_word(s, ids, w, sorters);
        else
            for (int barriers = 0; barriers < 2 * s.passes; ++barriers) w.barrier();
    } else if (w.index == 0) {
        sort_by_word(s, ids, w, 1);
        sorted.store(true, std::memory_order_release);
        sorted.notify_all();
    } else {
        sorted.wait(false, std::memory_order_acquire);
    }
}

// Where sums go: row r of the result is that of word r, or of the r-th different word if `rows` is to be written.
template <class T>
struct Sums {
    Index D;
    Matrix<T> dout;
    T* out;
    Index row, col;
    bool add;  // to what is there
    Index* rows;
};

// A word that is summed in parts: `parts` of them, whose sums begin at the place in part_sums that the entry itself
// has in the list. No two such words fall on one place, and no sums overlap, because a word of p parts has at least p
// times Sort::part positions.
struct Frequent {
    Index begin, end, row, parts;
};

// What the workers of one call share.
struct Shared {
    std::atomic<bool> piece_taken[most_pieces] = {};
    std::atomic<bool> part_taken[most_pieces] = {};
    std::atomic<bool> sorted = false;
    std::atomic<bool> any_frequent = false;
    Frequent frequent[most_pieces] = {};
};

// Calls f(piece) for pieces that nobody else has taken, beginning with this worker's share.
template <class F>
void take_pieces(std::atomic<bool>* taken, Index pieces, const Worker& w, F&& f) {
    const Index first = share(pieces, w).begin;
    for (Index i = 0; i < pieces; ++i) {
        const Index p = first + i < pieces ? first + i : first + i - pieces;
        if (!taken[p].load(std::memory_order_relaxed) && !taken[p].exchange(true, std::memory_order_relaxed)) f(p);
    }
}

template <class T>
class Summer {
  public:
    Summer(const Sort& s, const Sums<T>& to, Index rows_written)
        : s_(s), to_(to), t_(table<T>()), part_sums_(reinterpret_cast<T*>(s.part_sums)) {
        const Index row_bytes = to.D * static_cast<Index>(sizeof(T));
        const bool large = !to.add && static_cast<double>(rows_written) * static_cast<double>(row_bytes) > stream_bytes;
        gather_ = {to.dout.data, to.dout.row,    s.mask, rows_ahead(row_bytes), large, to.add ? to.out : nullptr,
                   to.row,       s.position_bits};
    }

    // All rows [begin, end) of a whole gradient.
    void dense(Shared& shared, Index begin, Index end) const {
        Index row = begin;
        for (Index k = s_.first(begin); k < s_.n && s_.word(k) < end;) {
            const Index v = s_.word(k);
            zero(row, v);
            k = word(shared, k, v);
            row = v + 1;
        }
        zero(row, end);
    }

    // The words in piece p of the sorted list; the first of them is the r-th of all.
    void listed(Shared& shared, Index p, Index r) const {
        const Index end = s_.border(p + 1);
        for (Index k = s_.border(p); k < end; ++r) {
            const Index v = s_.word(k);
            if (to_.rows) to_.rows[r] = v;
            k = word(shared, k, to_.rows ? r : v);
        }
    }

    // The words that were left for last. Every worker of the team calls it.
    void frequent(Shared& shared, const Worker& w) const {
        if (s_.n <= s_.part) return;
        w.barrier();
        if (!shared.any_frequent.load(std::memory_order_relaxed)) return;
        take_pieces(shared.part_taken, s_.n / s_.part, w, [&](Index place) {
            Index of = place;
            while (of > 0 && shared.frequent[of].parts == 0) --of;
            const Frequent& f = shared.frequent[of];
            const Index n = f.end - f.begin, part = place - of;
            if (part >= f.parts) return;
            const Index begin = f.begin + n * part / f.parts, end = f.begin + n * (part + 1) / f.parts;
            sum(begin, end - begin, nullptr, part_sums_ + place * to_.D, 1);
        });
        w.barrier();
        for (Index of = w.index; of < s_.n / s_.part; of += w.count) {
            const Frequent& f = shared.frequent[of];
            if (f.parts == 0) continue;
            T* out = to_.out + f.row * to_.row;
            if (!to_.add)
                for (Index d = 0; d < to_.D; ++d) out[d * to_.col] = 0;
            for (Index part = 0; part < f.parts; ++part) {
                const T* x = part_sums_ + (of + part) * to_.D;
                for (Index d = 0; d < to_.D; ++d) out[d * to_.col] += x[d];
            }
        }
    }

  private:
    // Sums the word at place k, and returns the place of the next.
    Index word(Shared& shared, Index k, Index row) const {
        const Index v = s_.word(k);
        if (k + s_.part < s_.n && s_.word(k + s_.part) == v) {
            const Index end = s_.first(v + 1);
            shared.frequent[k / s_.part] = {k, end, row, (end - k) / s_.part};
            shared.any_frequent.store(true, std::memory_order_relaxed);
            return end;
        }
        T* out = to_.out + row * to_.row;
        return k + sum(k, s_.n - k, to_.add ? out : nullptr, out, to_.col);
    }

    // out (D) = init + the rows of the word at place k, at most so many of them. Returns how many.
    Index sum(Index k, Index most, const T* init, T* out, Index col) const {
        const Key* keys = s_.keys[0] + k;
        if (to_.dout.col == 1 && col == 1 && to_.D > 0)
            return t_.sum_rows(gather_, to_.D, keys, most, s_.n - k, init, out);
        if (!init)
            for (Index d = 0; d < to_.D; ++d) out[d * col] = 0;
        Index i = 0;
        for (; i < most && s_.word(k + i) == s_.word(k); ++i)
            for (Index d = 0; d < to_.D; ++d) out[d * col] += to_.dout(static_cast<Index>(keys[i] & s_.mask), d);
        return i;
    }

    // Rows without a word.
    void zero(Index begin, Index end) const {
        T* at = to_.out + begin * to_.D;
        T* const stop = to_.out + end * to_.D;
        for (; at < stop && reinterpret_cast<std::uintptr_t>(at) % 64 != 0; ++at) *at = 0;
        if (at < stop) t_.sum_rows(gather_, stop - at, nullptr, 0, 0, nullptr, at);
    }

    const Sort& s_;
    const Sums<T>& to_;
    const Table<T>& t_;
    T* const part_sums_;
    Gather<T> gather_;
};

// Rows of a whole gradient are cut where rows to write plus rows to add reach a piece's share.
Index row_border(const Sort& s, Index V, Index pieces, Index p) {
    const Index goal = (s.n + V) * p / pieces;
    Index low = 0, high = s.n;
    while (low < high) {
        const Index middle = (low + high) / 2;
        if (middle + s.word(middle) < goal)
            low = middle + 1;
        else
            high = middle;
    }
    return goal - low;
}

// Stores past the caches are seen by other threads only after this.
void fence() {
#if defined(__SSE2__) || defined(_M_X64)
    _mm_sfence();
#endif
}

// Threads for so many rows to read or write.
int threads(Index rows, Index D) {
    return threads_for(operations_per_element * static_cast<double>(rows) * static_cast<double>(D), rows);
}

}  // namespace

Index word_embedding_buffers(Index n, Index V, Index D, Index itemsize) {
    return Sort(n, V, D, itemsize, nullptr).size;
}

template <class T>
void word_embedding_forward(Index n, Index D, Vec<Index> ids, Matrix<T> W, T* out) {
    const Table<T>& t = table<T>();
    const Index row_bytes = D * static_cast<Index>(sizeof(T)), ahead = rows_ahead(row_bytes);
    const bool large = static_cast<double>(n) * static_cast<double>(row_bytes) > stream_bytes;
    const Gather<T> copy = {nullptr, 0, 0, 1, large, nullptr, 0, 0};  // sums of no rows, which begin at a row of W
    const Index pieces = std::clamp<Index>(n / smallest_piece, 1, most_pieces);
    std::atomic<bool> taken[most_pieces] = {};
    // Copying an element takes as long as some eight operations (fastrnn/ops/embedding.py knows that number too).
    run(threads_for(8.0 * static_cast<double>(n) * static_cast<double>(D), n), [&](const Worker& w) {
        take_pieces(taken, pieces, w, [&](Index p) {
            for (Index i = n * p / pieces; i < n * (p + 1) / pieces; ++i) {
                const T* row = W.data + ids(i) * W.row;
                if (W.col == 1) {
                    if (i + ahead < n) fetch(W.data + ids(i + ahead) * W.row, row_bytes);
                    t.sum_rows(copy, D, nullptr, 0, 0, row, out + i * D);
                } else {
                    for (Index d = 0; d < D; ++d) out[i * D + d] = row[d * W.col];
                }
            }
        });
        fence();
    });
}

template <class T>
void word_embedding_backward(Index n, Index V, Index D, Vec<Index> ids, Matrix<T> dout, Index* workspace, T* dW,
                             Index dW_row, Index dW_col, bool add) {
    const Sort s(n, V, D, sizeof(T), workspace);
    const Index written = add ? std::min(n, V) : V;
    const Sums<T> to{D, dout, dW, dW_row, dW_col, add, nullptr};
    const Summer<T> summer(s, to, written);
    const Index pieces = std::clamp<Index>((n + V) / smallest_piece, 1, most_pieces);
    Shared shared;
    run(threads(n + written, D), [&](const Worker& w) {
        sort(s, ids, w, shared.sorted);
        if (add)
            take_pieces(shared.piece_taken, s.pieces, w, [&](Index p) { summer.listed(shared, p, 0); });
        else
            take_pieces(shared.piece_taken, pieces, w, [&](Index p) {
                summer.dense(shared, row_border(s, V, pieces, p), row_border(s, V, pieces, p + 1));
            });
        summer.frequent(shared, w);
        fence();
    });
}

Index word_embedding_sort(Index n, Index V, Index D, Index itemsize, Vec<Index> ids, Index* workspace) {
    const Sort s(n, V, D, itemsize, workspace);
    std::atomic<bool> sorted = false;
    run(static_cast<int>(std::min<Index>(num_threads(), s.most_threads)), [&](const Worker& w) {
        sort(s, ids, w, sorted);
        const Range mine = share(s.pieces, w);
        for (Index p = mine.begin; p < mine.end; ++p) {
            const Index begin = s.border(p), end = s.border(p + 1);
            Index words = 0;
            for (Index k = begin; k < end; ++k) words += k == begin || s.word(k) != s.word(k - 1);
            s.words_of_piece[p] = words;
        }
    });
    Index k = 0;
    for (Index p = 0; p < s.pieces; ++p) k += s.words_of_piece[p];
    return k;
}

template <class T>
void word_embedding_sparse(Index n, Index V, Index D, Matrix<T> dout, Index* workspace, Index k, Index* rows,
                           T* values) {
    const Sort s(n, V, D, sizeof(T), workspace);
    const Sums<T> to{D, dout, values, D, 1, false, rows};
    const Summer<T> summer(s, to, k);
    Shared shared;
    run(threads(n + k, D), [&](const Worker& w) {
        take_pieces(shared.piece_taken, s.pieces, w, [&](Index p) {
            Index before = 0;
            for (Index i = 0; i < p; ++i) before += s.words_of_piece[i];
            summer.listed(shared, p, before);
        });
        summer.frequent(shared, w);
        fence();
    });
}

template void word_embedding_forward<float>(Index, Index, Vec<Index>, Matrix<float>, float*);
template void word_embedding_backward<float>(Index, Index, Index, Vec<Index>, Matrix<float>, Index*, float*, Index,
                                             Index, bool);
template void word_embedding_sparse<float>(Index, Index, Index, Matrix<float>, Index*, Index, Index*, float*);
template void word_embedding_forward<double>(Index, Index, Vec<Index>, Matrix<double>, double*);
template void word_embedding_backward<double>(Index, Index, Index, Vec<Index>, Matrix<double>, Index*, double*, Index,
                                              Index, bool);
template void word_embedding_sparse<double>(Index, Index, Index, Matrix<double>, Index*, Index, Index*, double*);

}  // namespace fastrnn::cpu
