// LSTM over whole sequences: the cell of recurrent.cuh's time loop.
#include "recurrent.cuh"

namespace fastrnn::cuda {

namespace {

using namespace recurrent;

constexpr int gates = 4;

// reserve: pre-activations and then gates (R,4H), h_prev (R,H), c_prev (R,H).
template <class A>
struct LstmForward {
    using Array = A;
    using T = Computed<A>;
    static constexpr int columns = gates;
    static constexpr bool along_k = false;
    Steps steps;
    Index H;
    Matrix<A> h0, c0, Wh;
    Vec<A> b;
    A *h, *h_n, *c_n;
    T *h_state, *c_state;  // h_n's and c_n's own memory, which is so when the loop ends; or apart, see state_of
    T *saved, *h_prev, *c_prev;

    struct Inputs {
        T pre[gates], h, c;
        Index at;  // n T + t
        bool runs;
    };
    struct Outputs {
        T gates[4], h, c;
    };

    __host__ __device__ __forceinline__ Index depth() const { return H; }
    __device__ __forceinline__ T weight(Index k, Index unit, int gate) const { return widened(Wh(k, gate * H + unit)); }
    __device__ __forceinline__ T initial(Index row, Index k) const { return widened(h0(row, k)); }
    __device__ __forceinline__ void begin(Index row, Index unit) const {
        const T h = widened(h0(row, unit)), c = c0.data ? widened(c0(row, unit)) : T(0);
        h_state[row * H + unit] = h;
        c_state[row * H + unit] = c;
        put_state_out(h_n, row * H + unit, h);
        put_state_out(c_n, row * H + unit, c);
    }
    __device__ __forceinline__ bool multiplies(Index) const { return true; }

    __device__ __forceinline__ Inputs load(Index step, Index row, Index unit) const {
        Inputs in;
        const Index t = steps.forward(step);
        in.at = row * steps.T + t;
        in.runs = steps.runs(row, t);
#pragma unroll
        for (int g = 0; g < gates; ++g) in.pre[g] = saved[in.at * gates * H + g * H + unit] + widened(b(g * H + unit));
        in.h = h_state[row * H + unit];
        in.c = c_state[row * H + unit];
        return in;
    }
    __device__ __forceinline__ Outputs finish(const Inputs& in, const T (&sums)[gates]) const {
        using V = Number<T>;
        V h;
        const Lstm<V> s = lstm_cell(V{in.pre[0] + sums[0]}, V{in.pre[1] + sums[1]}, V{in.pre[2] + sums[2]},
                                    V{in.pre[3] + sums[3]}, V{in.c}, h);
        return {{s.i.x, s.f.x, s.o.x, s.g.x}, in.runs ? h.x : in.h, in.runs ? s.c.x : in.c};
    }
    template <class E>
    __device__ __forceinline__ void pass_on(typename E::Word* row, const Outputs& out, Index unit) const {
        E::put_state(row, unit, out.h);
    }
    __device__ __forceinline__ void store(Index step, Index row, Index unit, const Inputs& in,
                                          const Outputs& out) const {
        if (in.runs) {
#pragma unroll
            for (int g = 0; g < gates; ++g) saved[in.at * gates * H + g * H + unit] = out.gates[g];
        }
        h[in.at * H + unit] = rounded<A>(in.runs ? out.h : T(0));
        h_prev[in.at * H + unit] = in.runs ? in.h : T(0);
        c_prev[in.at * H + unit] = in.c;
        h_state[row * H + unit] = out.h;
        c_state[row * H + unit] = out.c;
        if (step + 1 == steps.T) {
            put_state_out(h_n, row * H + unit, out.h);
            put_state_out(c_n, row * H + unit, out.c);
        }
    }
};

// One step more than there are: the last only hands the gradient on to dh0.
template <class A>
struct LstmBackward {
    using Array = A;
    using T = Computed<A>;
    static constexpr int columns = 1;
    static constexpr bool along_k = true;
    Steps steps;
    Index H;
    Cube<A> dh;
    Matrix<A> dh_n, dc_n, Wh;
    const T *saved, *c_prev;
    T* da;
    A *dh0, *dc0;
    T *dh_state, *dc_state;  // theirs, or apart from them; that of h only what passes steps that are not run

    struct Inputs {
        T gates[4], c_prev, dh, dh_state, dc;
        Index at;
        bool runs, ran, exists;  // this step; the one that was run before, which is later in forward's order
    };
    struct Outputs {
        T da[gates], dh_state, dc;
    };

    __host__ __device__ __forceinline__ Index depth() const { return gates * H; }
    __device__ __forceinline__ T weight(Index k, Index unit, int) const { return widened(Wh(unit, k)); }
    __device__ __forceinline__ T initial(Index, Index) const { return T(0); }
    __device__ __forceinline__ void begin(Index row, Index unit) const {
        const T dh = dh_n.data ? widened(dh_n(row, unit)) : T(0), dc = dc_n.data ? widened(dc_n(row, unit)) : T(0);
        dh_state[row * H + unit] = dh;
        dc_state[row * H + unit] = dc;
        put_state_out(dh0, row * H + unit, dh);
        put_state_out(dc0, row * H + unit, dc);
    }
    __device__ __forceinline__ bool multiplies(Index step) const { return step > 0; }

    __device__ __forceinline__ Inputs load(Index step, Index row, Index unit) const {
        Inputs in;
        const Index t = steps.backward(step);
        in.at = row * steps.T + t;
        in.exists = step < steps.T;
        in.runs = in.exists && steps.runs(row, t);
        in.ran = step > 0 && steps.runs(row, steps.backward(step - 1));
#pragma unroll
        for (int g = 0; g < gates; ++g) in.gates[g] = in.runs ? saved[in.at * gates * H + g * H + unit] : T(0);
        in.c_prev = in.runs ? c_prev[in.at * H + unit] : T(0);
        in.dh = in.runs ? widened(dh.at(row, t)[unit * dh.s2]) : T(0);
        in.dh_state = dh_state[row * H + unit];
        in.dc = dc_state[row * H + unit];
        return in;
    }
    __device__ __forceinline__ Outputs finish(const Inputs& in, const T (&sums)[1]) const {
        using V = Number<T>;
        const T through = in.ran ? sums[0] : in.dh_state;
        if (!in.runs) return {{T(0), T(0), T(0), T(0)}, through, in.dc};
        const V i{in.gates[0]}, f{in.gates[1]}, o{in.gates[2]}, g{in.gates[3]}, c_before{in.c_prev};
        const Lstm<V> s{i, f, o, g, f * c_before + i * g};
        const Lstm<V> d = lstm_cell_backward(s, c_before, V{in.dh + through}, V{in.dc}, V{T(1)});
        return {{d.i.x, d.f.x, d.o.x, d.g.x}, through, d.c.x};
    }
    template <class E>
    __device__ __forceinline__ void pass_on(typename E::Word* row, const Outputs& out, Index unit) const {
#pragma unroll
        for (int g = 0; g < gates; ++g) E::put_state(row, g * H + unit, out.da[g]);
    }
    __device__ __forceinline__ void store(Index, Index row, Index unit, const Inputs& in, const Outputs& out) const {
        if (in.exists) {
#pragma unroll
            for (int g = 0; g < gates; ++g) da[in.at * gates * H + g * H + unit] = out.da[g];
        }
        dh_state[row * H + unit] = out.dh_state;
        dc_state[row * H + unit] = out.dc;
        if (!in.exists) {
            put_state_out(dh0, row * H + unit, out.dh_state);
            put_state_out(dc0, row * H + unit, out.dc);
        }
    }
};

}  // namespace

template <class A>
Error lstm_buffers(Index N, Index steps, Index H, BufferSizes& sizes) {
    return buffers<A>(N, steps, H, gates, 6 * H, gates * H, 2, sizes);
}

template <class A>
Error lstm_forward(Stream stream, Precision precision, Sequence s, Matrix<A> h0, Matrix<A> c0, Matrix<A> Wh, Vec<A> b,
                   A* h, A* h_n, A* c_n, A* reserve, A* workspace) {
    using T = Computed<A>;
    const Index R = s.N * s.T;
    T *saved = reinterpret_cast<T*>(reserve), *free = reinterpret_cast<T*>(workspace);
    T *h_prev = saved + R * gates * s.H, *c_prev = h_prev + R * s.H;
    T *h_state = state_of(s, h_n, free), *c_state = state_of(s, c_n, free);
    const LstmForward<A> task{steps_of(s), s.H, h0, c0, Wh, b, h, h_n, c_n, h_state, c_state, saved, h_prev, c_prev};
    return run_forward(stream, precision, task, s, free);
}

template <class A>
Error lstm_backward(Stream stream, Precision precision, Sequence s, Cube<A> dh, Matrix<A> dh_n, Matrix<A> dc_n,
                    Matrix<A> Wh, const A* reserve, A* workspace, A* dh0, A* dc0, A* db) {
    using T = Computed<A>;
    const Index R = s.N * s.T;
    const T *saved = reinterpret_cast<const T*>(reserve), *c_prev = saved + R * (gates + 1) * s.H;
    T *da = reinterpret_cast<T*>(workspace), *free = da + aligned<T>(R * gates * s.H);
    T *dh_state = state_of(s, dh0, free), *dc_state = state_of(s, dc0, free);
    const LstmBackward<A> task{steps_of(s), s.H, dh, dh_n, dc_n, Wh, saved, c_prev, da, dh0, dc0, dh_state, dc_state};
    const cudaError_t error = run_backward(stream, precision, task, s, free);
    if (error != cudaSuccess) return error;
    return column_sums(static_cast<cudaStream_t>(stream), R, gates * s.H, da, db);
}

template Error lstm_buffers<Half>(Index, Index, Index, BufferSizes&);
template Error lstm_buffers<float>(Index, Index, Index, BufferSizes&);
template Error lstm_buffers<double>(Index, Index, Index, BufferSizes&);
template Error lstm_forward<Half>(Stream, Precision, Sequence, Matrix<Half>, Matrix<Half>, Matrix<Half>, Vec<Half>,
                                  Half*, Half*, Half*, Half*, Half*);
template Error lstm_forward<float>(Stream, Precision, Sequence, Matrix<float>, Matrix<float>, Matrix<float>, Vec<float>,
                                   float*, float*, float*, float*, float*);
template Error lstm_forward<double>(Stream, Precision, Sequence, Matrix<double>, Matrix<double>, Matrix<double>,
                                    Vec<double>, double*, double*, double*, double*, double*);
template Error lstm_backward<Half>(Stream, Precision, Sequence, Cube<Half>, Matrix<Half>, Matrix<Half>, Matrix<Half>,
                                   const Half*, Half*, Half*, Half*, Half*);
template Error lstm_backward<float>(Stream, Precision, Sequence, Cube<float>, Matrix<float>, Matrix<float>,
                                    Matrix<float>, const float*, float*, float*, float*, float*);
template Error lstm_backward<double>(Stream, Precision, Sequence, Cube<double>, Matrix<double>, Matrix<double>,
                                     Matrix<double>, const double*, double*, double*, double*, double*);

}  // namespace fastrnn::cuda
