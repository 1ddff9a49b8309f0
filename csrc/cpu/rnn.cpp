// Vanilla RNN over whole sequences: h' = tanh(x Wx + h Wh + b).
//
// As lstm.cpp with one gate: a panel is up to four groups of hidden units.

#include "recurrent.h"

namespace fastrnn::cpu {

namespace {

constexpr int gates = 1;

// reserve
template <class T>
struct Kept {
    Index ld_y;
    T *xh, *y;  // xh (R, ld); y (R, ld_y): the hidden state after each row
    Index used;

    Kept(const Shape<T>& s, const T* memory) {
        Carver<T> carve(memory);
        ld_y = padded_row<T>(s.units);
        xh = carve.take(s.most_rows() * s.ld);
        y = carve.take(s.most_rows() * ld_y);
        used = carve.used();
    }
};

template <class T>
struct ForwardScratch {
    Index* indices;
    T *panels, *bias, *pre;  // panels: (D + H, lanes) for each group; pre: (rows projected ahead, lanes) for each
    Index ahead, used;

    ForwardScratch(const Shape<T>& s, T* memory) {
        Carver<T> carve(memory);
        ahead = std::min(projected_rows + s.N, s.most_rows());
        indices = carve.take_indices(Rows::indices(s.N, s.steps));
        panels = carve.take((s.D + s.H) * s.units);
        bias = carve.take(s.units);
        pre = carve.take(ahead * s.units);
        used = carve.used();
    }
};

template <class T>
struct BackwardScratch {
    Index* indices;
    T *panels, *da, *db, *spill, *dx_panel;
    Index used;

    BackwardScratch(const Shape<T>& s, Index ld_y, T* memory) {
        Carver<T> carve(memory);
        indices = carve.take_indices(Rows::indices(s.N, s.steps));
        panels = carve.take(s.units * s.units);
        da = carve.take(s.most_rows() * ld_y);
        db = carve.take(2 * s.units);
        spill = carve.take(s.H % s.lanes ? (s.D + s.H) * max_vectors * s.lanes : 0);
        dx_panel = carve.take(ceil_div(s.D, s.lanes) * s.lanes * s.units);
        used = carve.used();
    }
};

}  // namespace

template <class T>
BufferSizes rnn_buffers(Index N, Index steps, Index D, Index H) {
    const Shape<T> s(N, steps, D, H);
    const Kept<T> kept(s, nullptr);
    return {kept.used, ForwardScratch<T>(s, nullptr).used, BackwardScratch<T>(s, kept.ld_y, nullptr).used};
}

template <class T>
void rnn_forward(Sequence sequence, Cube<T> x, Matrix<T> h0, Matrix<T> Wx, Matrix<T> Wh, Vec<T> b, T* h, T* h_n,
                 T* reserve, T* workspace) {
    const Table<T>& t = table<T>();
    const Shape<T> s(sequence);
    const Kept<T> kept(s, reserve);
    const ForwardScratch<T> scratch(s, workspace);
    const Rows rows(sequence, scratch.indices);
    const Index depth = s.D + s.H;
    const bool in_place = weights_in_place(s, rows, Wx, Wh);
    const double operations = 2.0 * rows.total() * depth * s.H;

    run(threads_for(operations, s.groups), [&](const Worker& w) {
        const Range mine = share(s.groups, w);
        gather_inputs(w, s, rows, x, h0, kept.xh, h);
        for (Index g = mine.begin; g < mine.end; g += max_vectors) {
            const Columns c = plain_columns(s.H, s.lanes, g, mine.end);
            if (in_place && s.valid(g + c.vectors - 1) == s.lanes) continue;
            T* panel = scratch.panels + g * s.lanes * depth;
            pack_panel(c, s.D, Wx.data, Wx.row, Wx.col, panel);
            pack_panel(c, s.H, Wh.data, Wh.row, Wh.col, panel + s.D * c.vectors * s.lanes);
        }
        for (Index g = mine.begin; g < mine.end; ++g) interleave_bias(s, g, gates, b, scratch.bias + g * s.lanes);
        w.barrier();

        T tile[max_tile];
        T* out[max_tile_rows];
        for (Index step = 0, until = 0, from = 0; step < rows.steps(); ++step) {
            const Index alive = rows.alive(step);
            const bool look = step == until;
            if (look) {
                from = step;
                until = step + steps_ahead(rows, step);
            }
            const bool projected = until > from + 1;
            for (Index g = mine.begin; g < mine.end; g += max_vectors) {
                const int vectors = static_cast<int>(std::min<Index>(max_vectors, mine.end - g));
                const Index unit = g * s.lanes, width = Index(vectors) * s.lanes;
                const T* panel = scratch.panels + unit * depth;
                T* pre = scratch.pre + unit * scratch.ahead;
                if (look && projected)
                    multiply_panel(t, rows.at(until) - rows.at(step), vectors, s.D, kept.xh + rows.at(step) * s.ld,
                                   s.ld, Index(1), panel, scratch.bias + unit, Index(0), pre, width, Index(s.lanes));
                const int height = tile_height(alive, t.max_rows[vectors]);
                for (Index r = 0; r < alive; r += height) {
                    const int count = static_cast<int>(std::min<Index>(height, alive - r));
                    const Index row = rows.at(step) + r;
                    const T* xh = kept.xh + row * s.ld;
                    if (in_place && s.valid(g + vectors - 1) == s.lanes) {
                        t.stream(count, vectors, s.D, xh, s.ld, Wx.data + unit, Wx.row, s.lanes, scratch.bias + unit, 0,
                                 s.lanes, tile, width, s.lanes);
                        t.stream(count, vectors, s.H, xh + s.D, s.ld, Wh.data + unit, Wh.row, s.lanes, tile, width,
                                 s.lanes, tile, width, s.lanes);
                    } else if (projected)
                        t.tile(count, vectors, s.H, xh + s.D, s.ld, 1, panel + s.D * width,
                               pre + (row - rows.at(from)) * width, width, s.lanes, tile, width, s.lanes);
                    else
                        t.tile(count, vectors, depth, xh, s.ld, 1, panel, scratch.bias + unit, 0, s.lanes, tile, width,
                               s.lanes);
                    h_rows(s, rows, step, r, count, unit, h, out);
                    const int going_on = static_cast<int>(std::clamp<Index>(rows.alive(step + 1) - r, 0, count));
                    T* next = going_on ? kept.xh + (rows.at(step + 1) + r) * s.ld + s.D + unit : nullptr;
                    const Step<T> part = {count, vectors, s.valid(g + vectors - 1), tile, width, out, next,
                                          s.ld,  going_on};
                    t.rnn_forward(part, kept.y + row * kept.ld_y + unit, kept.ld_y);
                }
            }
            w.barrier();
        }
        final_states(w, s, rows, h0, h, h_n);
    });
}

template <class T>
void rnn_backward(Sequence sequence, Cube<T> dh, Matrix<T> dh_n, Matrix<T> Wx, Matrix<T> Wh, const T* reserve,
                  T* workspace, T* dx, T* dh0, T* dWx, T* dWh, T* db) {
    const Table<T>& t = table<T>();
    const Shape<T> s(sequence);
    const Kept<T> kept(s, reserve);
    const BackwardScratch<T> scratch(s, kept.ld_y, workspace);
    const Rows rows(sequence, scratch.indices);
    const Index K = s.units, ld = kept.ld_y;
    const double operations = 4.0 * rows.total() * (s.D + s.H) * s.H;

    run(threads_for(operations, s.groups), [&](const Worker& w) {
        const Range mine = share(s.groups, w);
        const Index begin = mine.begin * s.lanes, end = mine.end * s.lanes;
        T* step_db = scratch.db + s.units;
        for (Index g = mine.begin; g < mine.end; g += max_vectors) {
            const Columns c = plain_columns(s.H, s.lanes, g, mine.end);
            pack_panel_by_gate(s.lanes, c, s.H, gates, Wh.data, Wh.col, Wh.row, scratch.panels + g * s.lanes * K);
        }
        std::fill(scratch.db + begin, scratch.db + end, T(0));

        T tile[max_tile], outside[max_tile];
        const T* out[max_tile_rows];
        for (Index step = rows.steps() - 1; step >= 0; --step) {
            const Index alive = rows.alive(step), going_on = rows.alive(step + 1);
            std::fill(step_db + begin, step_db + end, T(0));
            for (Index g = mine.begin; g < mine.end; g += max_vectors) {
                const int vectors = static_cast<int>(std::min<Index>(max_vectors, mine.end - g));
                const Index unit = g * s.lanes, columns = Index(vectors) * s.lanes;
                // First the rows that have a next step, then those whose last step this is.
                for (Index r = 0; r < alive;) {
                    const bool ends = r >= going_on;
                    const int count = tile_height((ends ? alive : going_on) - r, t.max_rows[vectors]);
                    const Index row = rows.at(step) + r;
                    if (ends)
                        final_gradients(rows, r, count, unit, columns, s.H, dh_n, tile);
                    else
                        t.tile(count, vectors, K, scratch.da + (rows.at(step + 1) + r) * ld, ld, 1,
                               scratch.panels + g * s.lanes * K, nullptr, 0, 0, tile, columns, s.lanes);
                    dh_rows(rows, step, r, count, unit, columns, s.H, dh, outside, out);
                    const Step<T> part = {count, vectors, s.valid(g + vectors - 1), tile, columns, nullptr, nullptr,
                                          0,     0};
                    t.rnn_backward(part, out, kept.y + row * ld + unit, ld, scratch.da + row * ld + unit, ld,
                                   step_db + unit);
                    r += count;
                }
            }
            // Summed step by step, so that rounding grows with N + T and not with N T.
            t.add(end - begin, step_db + begin, scratch.db + begin);
            w.barrier();
        }

        for (Index g = mine.begin; g < mine.end; g += max_vectors) {
            const int vectors = static_cast<int>(std::min<Index>(max_vectors, mine.end - g));
            const Index unit = g * s.lanes, columns = Index(vectors) * s.lanes, units = std::min(columns, s.H - unit);
            const Index started = rows.alive(0);
            for (Index r = 0; r < s.N;) {
                const bool never = r >= started;
                const int count = tile_height((never ? s.N : started) - r, t.max_rows[vectors]);
                if (never)
                    final_gradients(rows, r, count, unit, columns, s.H, dh_n, tile);
                else
                    t.tile(count, vectors, K, scratch.da + r * ld, ld, 1, scratch.panels + g * s.lanes * K, nullptr, 0,
                           0, tile, columns, s.lanes);
                for (int i = 0; i < count; ++i)
                    std::copy_n(tile + i * columns, units, dh0 + rows.sequence(r + i) * s.H + unit);
                r += count;
            }
        }
        for (Index g = mine.begin; g < mine.end; ++g) separate_bias(s, g, gates, scratch.db + g * s.lanes, db);

        T block[k_block * max_vectors * 16];
        weight_gradients(w, s, rows.total(), kept.xh, scratch.da, ld, gates, block, scratch.spill, dWx, dWh);
        T chunk[row_chunk * max_vectors * 16];
        input_gradient(w, s, rows, scratch.da, ld, gates, Wx,
                       scratch.dx_panel + share(ceil_div(s.D, s.lanes), w).begin * s.lanes * K, chunk, dx);
    });
}

template BufferSizes rnn_buffers<float>(Index, Index, Index, Index);
template void rnn_forward<float>(Sequence, Cube<float>, Matrix<float>, Matrix<float>, Matrix<float>, Vec<float>, float*,
                                 float*, float*, float*);
template void rnn_backward<float>(Sequence, Cube<float>, Matrix<float>, Matrix<float>, Matrix<float>, const float*,
                                  float*, float*, float*, float*, float*, float*);
template BufferSizes rnn_buffers<double>(Index, Index, Index, Index);
template void rnn_forward<double>(Sequence, Cube<double>, Matrix<double>, Matrix<double>, Matrix<double>, Vec<double>,
                                  double*, double*, double*, double*);
template void rnn_backward<double>(Sequence, Cube<double>, Matrix<double>, Matrix<double>, Matrix<double>,
                                   const double*, double*, double*, double*, double*, double*, double*);

}  // namespace fastrnn::cpu
