// Softmax loss: over rows of scores, and over rows of hidden states together with their projection onto the vocabulary.
//
// temporal_softmax_loss reads a row of scores into dx as exponentials, then scales it, while it is in the cache.
//
// vocab_softmax_loss never holds all scores. Rows that count go through in chunks of up to four vectors, one row a
// lane:
//
//   scores (V, rows)   = W^T h^T + b       each thread some words; W is the left operand, read in place
//   scores             = their gradients   the maximum and the sum of a lane run over words: no vector is taken apart
//   dh^T (H, rows)     = W scores          each thread some hidden units; what the scores lie in is a panel already
//   dW (H, words)     += h^T scores^T      each thread its words again, turned into panels of 64 in place
//
// So W is never packed or transposed, chunk after chunk. Where the caller wants dW with the units of a word side by
// side, as PyTorch has them, its last line is dW (words, H) += scores h: scores are the left operand as they lie,
// nothing is turned, and panels of h are packed. (400, 512, 1004) took 6.4 ms so, 6.6 the other way, with W in the same
// order as dW. In that order a W of 2 KiB a word, whose units fall into the same cache sets, makes dh^T of (2048, 512,
// 10000) take 140 ms instead of 96, packed or not and fetched ahead or not (198 to 287 with 2080 bytes a word): a
// transposed copy of a large W pays. Deeper blocks of h for the scores, 96 and 512 rows, gave 2.2 and 2.0 ms of 2.1.
//
// A chunk is as large as a tenth of the score matrix allows, for
// dW is read and written once a chunk: (400, 512, 1004) in float32 took 10.5 ms with chunks of 16 rows, 6.5 with 32,
// which are within that, and 6.3 with 64, on two cores of an EPYC (Zen 4); 128 rows gained nothing at any size. Panels
// of words as narrow as the chunk made dW take 4.6 ms of them instead of 2.2. While a barrier takes 175 ns instead of
// 34, as if the two cores had no L3 in common, it is 7.8 ms: turning the scores and adding to dW are what gets slower.
// Fetching ahead for writing did not help there. Blocks of h of 240 rows instead of 64, which read and write the scores
// less often, gave 10.43 ms to 10.53 at (1600, 200, 1004), 6.66 to 6.52 and 318 to 317 at the other two: nothing.
#include <limits>

#include "gemm.h"

namespace fastrnn::cpu {

template <class T>
void temporal_softmax_loss(Index R, Index V, Matrix<T> x, Vec<Index> y, Vec<unsigned char> mask, Index count,
                           double* row_loss, T* dx) {
    const Table<T>& t = table<T>();
    const T scale = static_cast<T>(1.0 / static_cast<double>(count));
    // An exponential costs some twenty operations.
    run(threads_for(20.0 * R * V, R), [&](const Worker& w) {
        const Range mine = share(R, w);
        for (Index r = mine.begin; r < mine.end; ++r) {
            T* out = dx + r * V;
            if (mask(r)) {
                row_loss[r] = t.softmax_row(V, x.data + r * x.row, x.col, y(r), scale, out);
            } else {
                row_loss[r] = 0;
                std::fill(out, out + V, T(0));
            }
        }
    });
}

namespace {

// Rows of h^T, and of dh^T, that a thread holds at a time.
constexpr Index h_block = 64;
// Words whose scores a thread goes over again and again: they stay in its L2.
constexpr Index word_block = 512;
// The most rows of a chunk.
constexpr Index max_chunk = max_vectors * 16;
// A W of more bytes than this is not taken to be in a cache, and is fetched ahead.
constexpr Index cached_bytes = 8 << 20;

static_assert(h_block >= max_vectors * 16, "a panel of scores is turned through the same memory");

// How scores (V, rows) are cut.
struct Cut {
    Index V, chunk;  // words; rows of a chunk
    Index panels;    // of max_vectors vectors of words each; a thread owns whole panels
    int lanes;

    template <class T>
    static Cut of(Index R, Index V, const Table<T>& t) {
        const Cut c{V, 0, ceil_div(V, max_vectors * t.lanes), t.lanes};
        // What two threads have on their stacks counts as well.
        const auto elements = [&](Index chunk) { return (c.words() + 2 * c.panels + 2 * h_block + 4) * chunk; };
        Index vectors = max_vectors;
        while (vectors > 1 && elements(vectors * t.lanes) > R * V / 10) vectors /= 2;
        return {V, vectors * t.lanes, c.panels, t.lanes};
    }
    Index words() const { return ceil_div(V, lanes) * lanes; }
    Index start(Index panel) const { return std::min(V, panel * max_vectors * lanes); }
    Columns of(Index panel) const { return plain_columns(V, lanes, panel * max_vectors, ceil_div(V, lanes)); }
};

template <class T>
struct VocabScratch {
    T *scores, *tops, *sums, *chosen;
    Index used;
    VocabScratch(const Cut& c, T* memory) {
        Carver<T> carve(memory);
        scores = carve.take(c.words() * c.chunk);
        tops = carve.take(c.panels * c.chunk);  // of each thread: there are no more of them than panels
        sums = carve.take(c.panels * c.chunk);  // of each panel, whoever computes it
        chosen = carve.take(c.chunk);           // scores of the right words
        used = carve.used();
    }
};

template <class T>
struct VocabProblem {
    Index steps, R, H;
    Cube<T> h;
    Matrix<T> W;
    Vec<T> b;
    Vec<Index> y;
    Vec<unsigned char> mask;
    T scale;
    T* dh;
    Result<T> dW;
    T* db;
};

void fetch_ahead(const void* p) {
#if defined(__GNUC__)
    __builtin_prefetch(p);
#else
    static_cast<void>(p);
#endif
}

// One thread's part, and the chunk that all of them are at.
template <class T>
class VocabWorker {
  public:
    VocabWorker(const VocabProblem<T>& problem, const Cut& cut, const VocabScratch<T>& scratch, const Worker& worker)
        : p_(problem),
          cut_(cut),
          s_(scratch),
          w_(worker),
          panels_(share(cut.panels, worker)),
          first_(cut.start(panels_.begin)),
          last_(cut.start(panels_.end)) {}

    // Loss of all rows that count; their gradients go to dh, dW and db.
    double run() {
        double loss = 0;
        clear_masked();
        for (first_chunk_ = true; next_chunk(); first_chunk_ = false) {
            // A last, narrower chunk is laid out anew, over what others may still be at.
            if (rows_ < cut_.chunk && !first_chunk_) w_.barrier();
            compute_scores();
            w_.barrier();
            exponentials();
            w_.barrier();
            loss += normalise();
            w_.barrier();
            compute_dh();
            w_.barrier();
            if (p_.dW.row == 1) {
                add_to_dW_by_word();
            } else {
                turn();
                add_to_dW();
            }
        }
        return loss;
    }

  private:
    void clear_masked() {
        const Range mine = share(p_.R, w_);
        for (Index r = mine.begin; r < mine.end; ++r)
            if (!p_.mask(r)) std::fill(p_.dh + r * p_.H, p_.dh + (r + 1) * p_.H, T(0));
    }

    // The next rows that count, the same for every thread.
    bool next_chunk() {
        rows_ = 0;
        for (; next_ < p_.R && rows_ < cut_.chunk; ++next_)
            if (p_.mask(next_)) row_[rows_++] = next_;
        vectors_ = static_cast<int>(ceil_div(rows_, cut_.lanes));
        width_ = Index(vectors_) * cut_.lanes;
        return rows_ > 0;
    }

    // block_ (depth, width) = rows k .. k + depth of h^T.
    void pack_h(Index k, Index depth) {
        const T* from[max_chunk];
        for (Index i = 0; i < rows_; ++i) from[i] = p_.h.at(row_[i] / p_.steps, row_[i] % p_.steps) + k * p_.h.s2;
        t_.pack_rows(vectors_, rows_, from, depth, p_.h.s2, block_);
    }

    void compute_scores() {
        const Matrix<T>& W = p_.W;
        const bool far = W.row != 1 && p_.H * cut_.V * Index(sizeof(T)) > cached_bytes;
        const int height = t_.max_rows[vectors_];
        for (Index begin = first_; begin < last_; begin += word_block) {
            const Index end = std::min(last_, begin + word_block);
            Index k = 0;
            do {
                const Index depth = std::min(h_block, p_.H - k);
                pack_h(k, depth);
                for (Index v = begin; v < end; v += height) {
                    const T* A = W.data + v * W.col + k * W.row;
                    // Every k is another line of W, and another page: no processor sees that coming.
                    if (far)
                        for (Index d = 0; d < depth; ++d) fetch_ahead(A + d * W.row + 128 / Index(sizeof(T)) * W.col);
                    T* C = s_.scores + v * width_;
                    t_.tile(static_cast<int>(std::min<Index>(height, end - v)), vectors_, depth, A, W.col, W.row,
                            block_, k ? C : nullptr, width_, cut_.lanes, C, width_, cut_.lanes);
                }
                k += depth;
            } while (k < p_.H);
        }
        T* top = s_.tops + w_.index * cut_.chunk;
        std::fill(top, top + width_, -std::numeric_limits<T>::infinity());
        t_.lanes_top(last_ - first_, vectors_, s_.scores + first_ * width_, p_.b.data + first_ * p_.b.stride,
                     p_.b.stride, top);
    }

    // Calls f(row of the chunk, its element of the scores) where this thread owns the right word.
    template <class F>
    void for_right_words(F&& f) {
        for (Index i = 0; i < rows_; ++i) {
            const Index word = p_.y(row_[i]);
            if (word >= first_ && word < last_) f(i, s_.scores[word * width_ + i]);
        }
    }

    void exponentials() {
        std::copy_n(s_.tops, width_, top_);
        for (int thread = 1; thread < w_.count; ++thread)
            for (Index i = 0; i < width_; ++i) top_[i] = std::max(top_[i], s_.tops[thread * cut_.chunk + i]);
        for_right_words([&](Index i, T score) { s_.chosen[i] = score; });
        for (Index panel = panels_.begin; panel < panels_.end; ++panel)
            t_.lanes_exp(cut_.start(panel + 1) - cut_.start(panel), vectors_, s_.scores + cut_.start(panel) * width_,
                         top_, s_.sums + panel * cut_.chunk);
    }

    // The chunk's loss.
    double normalise() {
        double sum[max_chunk] = {}, log[max_chunk];
        for (Index panel = 0; panel < cut_.panels; ++panel)
            for (Index i = 0; i < width_; ++i) sum[i] += s_.sums[panel * cut_.chunk + i];
        T factor[max_chunk] = {};  // lanes without a row are read by nobody
        for (Index i = 0; i < rows_; ++i) factor[i] = static_cast<T>(static_cast<double>(p_.scale) / sum[i]);
        t_.lanes_scale(last_ - first_, vectors_, s_.scores + first_ * width_, factor);
        for_right_words([&](Index, T& score) { score -= p_.scale; });
        double loss = 0;
        table<double>().log(rows_, sum, log);
        for (Index i = 0; i < rows_; ++i)
            loss += log[i] - (static_cast<double>(s_.chosen[i]) - static_cast<double>(top_[i]));
        return loss;
    }

    void compute_dh() {
        const int height = t_.max_rows[vectors_];
        const Range tiles = share(ceil_div(p_.H, height), w_);
        const Index end = std::min(p_.H, tiles.end * height), step = h_block / height * height;
        for (Index k = tiles.begin * height; k < end; k += step) {
            const Index depth = std::min(step, end - k);
            for (Index i = 0; i < depth; i += height)
                t_.tile(static_cast<int>(std::min<Index>(height, depth - i)), vectors_, cut_.V,
                        p_.W.data + (k + i) * p_.W.row, p_.W.row, p_.W.col, s_.scores, nullptr, Index(0), Index(0),
                        block_ + i * width_, width_, cut_.lanes);
            for (Index r = 0; r < rows_; ++r)
                for (Index i = 0; i < depth; ++i) p_.dh[row_[r] * p_.H + k + i] = block_[i * width_ + r];
        }
    }

    // Panels (words, width) become (rows, words), zeros where a vector has fewer words than lanes; their sums go to db.
    void turn() {
        for (Index panel = panels_.begin; panel < panels_.end; ++panel) {
            const Columns c = cut_.of(panel);
            const Index words = cut_.start(panel + 1) - cut_.start(panel), wide = Index(c.vectors) * cut_.lanes;
            T* scores = s_.scores + cut_.start(panel) * width_;
            std::copy_n(scores, words * width_, block_);
            Index first[max_vectors];
            for (int j = 0; j < c.vectors; ++j) first[j] = Index(j) * cut_.lanes;
            t_.pack(c.vectors, first, c.valid, rows_, block_, Index(1), width_, scores);
            T sum[max_vectors * 16] = {};
            for (Index r = 0; r < rows_; ++r) t_.add(wide, scores + r * wide, sum);
            add_or_copy(words, sum, p_.db + cut_.start(panel));
        }
    }

    void add_to_dW() {
        for (Index k = 0; k < p_.H; k += h_block) {
            const Index depth = std::min(h_block, p_.H - k);
            pack_h(k, depth);
            for (Index panel = panels_.begin; panel < panels_.end; ++panel) add_to_dW(panel, k, depth);
        }
    }

    void add_to_dW(Index panel, Index k, Index depth) {
        const int vectors = cut_.of(panel).vectors, height = t_.max_rows[vectors];
        const Index words = cut_.start(panel + 1) - cut_.start(panel), wide = Index(vectors) * cut_.lanes;
        const T* scores = s_.scores + cut_.start(panel) * width_;
        const bool whole = words == wide;
        T narrow[max_tile];
        for (Index i = 0; i < depth; i += height) {
            const Index rows = std::min<Index>(height, depth - i);
            T* out = p_.dW.data + (k + i) * p_.dW.row + cut_.start(panel);
            for (Index j = height; j < std::min<Index>(2 * height, depth - i); ++j)  // the next tile
                for (Index v = 0; v < words; v += 64 / Index(sizeof(T))) fetch_ahead(out + j * p_.dW.row + v);
            T* C = whole ? out : narrow;
            const Index c_row = whole ? p_.dW.row : wide;
            t_.tile(static_cast<int>(rows), vectors, rows_, block_ + i * width_, width_, Index(1), scores,
                    whole && !first_chunk_ ? C : nullptr, c_row, cut_.lanes, C, c_row, cut_.lanes);
            if (!whole)
                for (Index j = 0; j < rows; ++j) add_or_copy(words, narrow + j * wide, out + j * p_.dW.row);
        }
    }

    // The same where the hidden units of a word follow each other: scores are the left operand as they lie, h is
    // packed.
    void add_to_dW_by_word() {
        const Index vectors = ceil_div(p_.H, cut_.lanes);
        const T* from[max_chunk];
        for (Index i = 0; i < rows_; ++i) from[i] = p_.h.at(row_[i] / p_.steps, row_[i] % p_.steps);
        for (Index begin = first_; begin < last_; begin += word_block) {
            const Index end = std::min(last_, begin + word_block);
            for (Index v = 0; v < vectors; v += max_vectors) {
                const Columns c = plain_columns(p_.H, cut_.lanes, v, vectors);
                const Index wide = Index(c.vectors) * cut_.lanes;
                for (Index i = 0; i < rows_; ++i)
                    t_.pack(c.vectors, c.first, c.valid, Index(1), from[i], Index(0), p_.h.s2, block_ + i * wide);
                add_to_dW_by_word(begin, end, c);
            }
            add_to_db(begin, end);
        }
    }

    void add_to_dW_by_word(Index begin, Index end, const Columns& c) {
        const int height = t_.max_rows[c.vectors];
        const Index wide = Index(c.vectors) * cut_.lanes, row = p_.dW.col;
        const Index units = wide - cut_.lanes + c.valid[c.vectors - 1];
        const bool whole = units == wide;
        T narrow[max_tile];
        for (Index v = begin; v < end; v += height) {
            const Index words = std::min<Index>(height, end - v);
            T* out = p_.dW.data + v * row + c.first[0];
            for (Index j = height; j < std::min<Index>(2 * height, end - v); ++j)  // the next tile
                for (Index i = 0; i < units; i += 64 / Index(sizeof(T))) fetch_ahead(out + j * row + i);
            T* C = whole ? out : narrow;
            const Index c_row = whole ? row : wide;
            t_.tile(static_cast<int>(words), c.vectors, rows_, s_.scores + v * width_, width_, Index(1), block_,
                    whole && !first_chunk_ ? C : nullptr, c_row, cut_.lanes, C, c_row, cut_.lanes);
            if (!whole)
                for (Index j = 0; j < words; ++j) add_or_copy(units, narrow + j * wide, out + j * row);
        }
    }

    // Sums of the scores' rows: their products with a column of ones.
    void add_to_db(Index begin, Index end) {
        T sums[max_tile];
        std::fill_n(block_, rows_ * cut_.lanes, T(1));
        const int height = t_.max_rows[1];
        for (Index v = begin; v < end; v += height) {
            const Index words = std::min<Index>(height, end - v);
            t_.tile(static_cast<int>(words), 1, rows_, s_.scores + v * width_, width_, Index(1), block_, nullptr,
                    Index(0), Index(0), sums, cut_.lanes, cut_.lanes);
            for (Index j = 0; j < words; ++j)
                p_.db[v + j] = first_chunk_ ? sums[j * cut_.lanes] : p_.db[v + j] + sums[j * cut_.lanes];
        }
    }

    void add_or_copy(Index n, const T* from, T* to) const {
        if (first_chunk_)
            std::copy_n(from, n, to);
        else
            t_.add(n, from, to);
    }

    const Table<T>& t_ = table<T>();
    const VocabProblem<T>& p_;
    const Cut& cut_;
    const VocabScratch<T>& s_;
    const Worker& w_;
    const Range panels_;
    const Index first_, last_;  // words
    Index next_ = 0, rows_ = 0, width_ = 0;
    int vectors_ = 0;
    bool first_chunk_ = true;
    Index row_[max_chunk];
    T top_[max_chunk];
    alignas(64) T block_[h_block * max_chunk];
};

}  // namespace

template <class T>
BufferSizes vocab_softmax_loss_buffers(Index R, Index /*H*/, Index V) {
    const Index used = VocabScratch<T>(Cut::of(R, V, table<T>()), nullptr).used;
    return {0, 0, used};
}

template <class T>
void vocab_softmax_loss(Index N, Index steps, Index H, Index V, Cube<T> h, Matrix<T> W, Vec<T> b, Vec<Index> y,
                        Vec<unsigned char> mask, T* workspace, double* loss, T* dh, Result<T> dW, T* db) {
    const Index R = N * steps;
    const Cut cut = Cut::of(R, V, table<T>());
    const VocabScratch<T> scratch(cut, workspace);
    const VocabProblem<T> problem = {steps, R,  H, h, W, b, y, mask, static_cast<T>(1.0 / static_cast<double>(N)),
                                     dh,    dW, db};
    Index counted = 0;
    for (Index r = 0; r < R; ++r) counted += mask(r) != 0;
    if (counted == 0) {
        std::fill(dW.data, dW.data + H * V, T(0));
        std::fill(db, db + V, T(0));
    }
    *loss = 0;
    run(threads_for(6.0 * counted * H * V, cut.panels), [&](const Worker& worker) {
        const double total = VocabWorker<T>(problem, cut, scratch, worker).run();
        if (worker.index == 0) *loss = total;
    });
}

template void temporal_softmax_loss<float>(Index, Index, Matrix<float>, Vec<Index>, Vec<unsigned char>, Index, double*,
                                           float*);
template void temporal_softmax_loss<double>(Index, Index, Matrix<double>, Vec<Index>, Vec<unsigned char>, Index,
                                            double*, double*);
template BufferSizes vocab_softmax_loss_buffers<float>(Index, Index, Index);
template BufferSizes vocab_softmax_loss_buffers<double>(Index, Index, Index);
template void vocab_softmax_loss<float>(Index, Index, Index, Index, Cube<float>, Matrix<float>, Vec<float>, Vec<Index>,
                                        Vec<unsigned char>, float*, double*, float*, Result<float>, float*);
template void vocab_softmax_loss<double>(Index, Index, Index, Index, Cube<double>, Matrix<double>, Vec<double>,
                                         Vec<Index>, Vec<unsigned char>, double*, double*, double*, Result<double>,
                                         double*);

}  // namespace fastrnn::cpu
