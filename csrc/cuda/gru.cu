// GRU over whole sequences, in the form whose reset gate acts after the recurrent product (cuDNN's and PyTorch's): the
// cell of recurrent.cuh's time loop.
#include "recurrent.cuh"

namespace fastrnn::cuda {

namespace {

using namespace recurrent;

constexpr int gates = 3;

// reserve: pre-activations and then gates (R,3H), h_prev (R,H), hn (R,H): the recurrent part of the candidate.
template <class A>
struct GruForward {
    using Array = A;
    using T = Computed<A>;
    static constexpr int columns = gates;
    static constexpr bool along_k = false;
    Steps steps;
    Index H;
    Matrix<A> h0, Wh;
    Vec<A> b, bh;
    A *h, *h_n;
    T* h_state;  // h_n's own memory, which is so when the loop ends; or apart from it, see state_of
    T *saved, *h_prev, *hn;

    struct Inputs {
        T pre[gates], bias[gates], h;
        Index at;  // n T + t
        bool runs;
    };
    struct Outputs {
        T r, z, n, hn, h;
    };

    __host__ __device__ __forceinline__ Index depth() const { return H; }
    __device__ __forceinline__ T weight(Index k, Index unit, int gate) const { return widened(Wh(k, gate * H + unit)); }
    __device__ __forceinline__ T initial(Index row, Index k) const { return widened(h0(row, k)); }
    __device__ __forceinline__ void begin(Index row, Index unit) const {
        const T h = widened(h0(row, unit));
        h_state[row * H + unit] = h;
        put_state_out(h_n, row * H + unit, h);
    }
    __device__ __forceinline__ bool multiplies(Index) const { return true; }

    __device__ __forceinline__ Inputs load(Index step, Index row, Index unit) const {
        Inputs in;
        const Index t = steps.forward(step);
        in.at = row * steps.T + t;
        in.runs = steps.runs(row, t);
#pragma unroll
        for (int g = 0; g < gates; ++g) {
            in.pre[g] = saved[in.at * gates * H + g * H + unit] + widened(b(g * H + unit));
            in.bias[g] = bh.data ? widened(bh(g * H + unit)) : T(0);
        }
        in.h = h_state[row * H + unit];
        return in;
    }
    __device__ __forceinline__ Outputs finish(const Inputs& in, const T (&sums)[gates]) const {
        using V = Number<T>;
        V h;
        const Gru<V> s = gru_cell(V{in.pre[0]}, V{in.pre[1]}, V{in.pre[2]}, V{sums[0] + in.bias[0]},
                                  V{sums[1] + in.bias[1]}, V{sums[2] + in.bias[2]}, V{in.h}, V{T(1)}, h);
        return {s.r.x, s.z.x, s.n.x, s.hn.x, in.runs ? h.x : in.h};
    }
    template <class E>
    __device__ __forceinline__ void pass_on(typename E::Word* row, const Outputs& out, Index unit) const {
        E::put_state(row, unit, out.h);
    }
    __device__ __forceinline__ void store(Index step, Index row, Index unit, const Inputs& in,
                                          const Outputs& out) const {
        if (in.runs) {
            T* to = saved + in.at * gates * H + unit;
            to[0] = out.r, to[H] = out.z, to[2 * H] = out.n;
            hn[in.at * H + unit] = out.hn;
        }
        h[in.at * H + unit] = rounded<A>(in.runs ? out.h : T(0));
        h_prev[in.at * H + unit] = in.runs ? in.h : T(0);
        h_state[row * H + unit] = out.h;
        if (step + 1 == steps.T) put_state_out(h_n, row * H + unit, out.h);
    }
};

// One step more than there are: the last only hands the gradient on to dh0.
template <class A>
struct GruBackward {
    using Array = A;
    using T = Computed<A>;
    static constexpr int columns = 1;
    static constexpr bool along_k = true;
    Steps steps;
    Index H;
    Cube<A> dh;
    Matrix<A> dh_n, Wh;
    const T *saved, *h_prev, *hn;
    T *dax, *dah;
    A* dh0;
    T* dh_state;  // dh0's own memory, or apart from it: what passes steps that are not run, and past the products

    struct Inputs {
        T r, z, n, hn, h_prev, dh, dh_state;
        Index at;
        bool runs, ran, exists;  // this step; the one that was run before, which is later in forward's order
    };
    struct Outputs {
        T r, z, n, hn, dh_state;
    };

    __host__ __device__ __forceinline__ Index depth() const { return gates * H; }
    __device__ __forceinline__ T weight(Index k, Index unit, int) const { return widened(Wh(unit, k)); }
    __device__ __forceinline__ T initial(Index, Index) const { return T(0); }
    __device__ __forceinline__ void begin(Index row, Index unit) const {
        const T dh = dh_n.data ? widened(dh_n(row, unit)) : T(0);
        dh_state[row * H + unit] = dh;
        put_state_out(dh0, row * H + unit, dh);
    }
    __device__ __forceinline__ bool multiplies(Index step) const { return step > 0; }

    __device__ __forceinline__ Inputs load(Index step, Index row, Index unit) const {
        Inputs in;
        const Index t = steps.backward(step);
        in.at = row * steps.T + t;
        in.exists = step < steps.T;
        in.runs = in.exists && steps.runs(row, t);
        in.ran = step > 0 && steps.runs(row, steps.backward(step - 1));
        const T* from = saved + in.at * gates * H + unit;
        in.r = in.runs ? from[0] : T(0);
        in.z = in.runs ? from[H] : T(0);
        in.n = in.runs ? from[2 * H] : T(0);
        in.hn = in.runs ? hn[in.at * H + unit] : T(0);
        in.h_prev = in.runs ? h_prev[in.at * H + unit] : T(0);
        in.dh = in.runs ? widened(dh.at(row, t)[unit * dh.s2]) : T(0);
        in.dh_state = dh_state[row * H + unit];
        return in;
    }
    __device__ __forceinline__ Outputs finish(const Inputs& in, const T (&sums)[1]) const {
        using V = Number<T>;
        const T through = in.ran ? sums[0] + in.dh_state : in.dh_state;
        if (!in.runs) return {T(0), T(0), T(0), T(0), through};
        const Gru<V> s{V{in.r}, V{in.z}, V{in.n}, V{in.hn}};
        V past;
        const Gru<V> d = gru_cell_backward(s, V{in.h_prev}, V{in.dh + through}, V{T(1)}, past);
        return {d.r.x, d.z.x, d.n.x, d.hn.x, past.x};
    }
    template <class E>
    __device__ __forceinline__ void pass_on(typename E::Word* row, const Outputs& out, Index unit) const {
        E::put_state(row, unit, out.r);
        E::put_state(row, H + unit, out.z);
        E::put_state(row, 2 * H + unit, out.hn);
    }
    __device__ __forceinline__ void store(Index, Index row, Index unit, const Inputs& in, const Outputs& out) const {
        if (in.exists) {
            const Index at = in.at * gates * H + unit;
            dax[at] = dah[at] = out.r;
            dax[at + H] = dah[at + H] = out.z;
            dax[at + 2 * H] = out.n;
            dah[at + 2 * H] = out.hn;
        }
        dh_state[row * H + unit] = out.dh_state;
        if (!in.exists) put_state_out(dh0, row * H + unit, out.dh_state);
    }
};

}  // namespace

template <class A>
Error gru_buffers(Index N, Index steps, Index H, BufferSizes& sizes) {
    return buffers<A>(N, steps, H, gates, 5 * H, 2 * gates * H, 1, sizes);
}

template <class A>
Error gru_forward(Stream stream, Precision precision, Sequence s, Matrix<A> h0, Matrix<A> Wh, Vec<A> b, Vec<A> bh, A* h,
                  A* h_n, A* reserve, A* workspace) {
    using T = Computed<A>;
    const Index R = s.N * s.T;
    T *saved = reinterpret_cast<T*>(reserve), *free = reinterpret_cast<T*>(workspace);
    T *h_prev = saved + R * gates * s.H, *hn = h_prev + R * s.H;
    T* h_state = state_of(s, h_n, free);
    const GruForward<A> task{steps_of(s), s.H, h0, Wh, b, bh, h, h_n, h_state, saved, h_prev, hn};
    return run_forward(stream, precision, task, s, free);
}

template <class A>
Error gru_backward(Stream stream, Precision precision, Sequence s, Cube<A> dh, Matrix<A> dh_n, Matrix<A> Wh,
                   const A* reserve, A* workspace, A* dh0, A* db, A* dbh) {
    using T = Computed<A>;
    const Index R = s.N * s.T;
    const T* saved = reinterpret_cast<const T*>(reserve);
    const T *h_prev = saved + R * gates * s.H, *hn = h_prev + R * s.H;
    T *dax = reinterpret_cast<T*>(workspace), *dah = dax + R * gates * s.H,
      *free = dax + aligned<T>(2 * R * gates * s.H);
    T* dh_state = state_of(s, dh0, free);
    const GruBackward<A> task{steps_of(s), s.H, dh, dh_n, Wh, saved, h_prev, hn, dax, dah, dh0, dh_state};
    cudaError_t error = run_backward(stream, precision, task, s, free);
    const auto queue = static_cast<cudaStream_t>(stream);
    if (error == cudaSuccess) error = column_sums(queue, R, gates * s.H, dax, db);
    if (error == cudaSuccess) error = column_sums(queue, R, gates * s.H, dah, dbh);
    return error;
}

template Error gru_buffers<Half>(Index, Index, Index, BufferSizes&);
template Error gru_buffers<float>(Index, Index, Index, BufferSizes&);
template Error gru_buffers<double>(Index, Index, Index, BufferSizes&);
template Error gru_forward<Half>(Stream, Precision, Sequence, Matrix<Half>, Matrix<Half>, Vec<Half>, Vec<Half>, Half*,
                                 Half*, Half*, Half*);
template Error gru_forward<float>(Stream, Precision, Sequence, Matrix<float>, Matrix<float>, Vec<float>, Vec<float>,
                                  float*, float*, float*, float*);
template Error gru_forward<double>(Stream, Precision, Sequence, Matrix<double>, Matrix<double>, Vec<double>,
                                   Vec<double>, double*, double*, double*, double*);
template Error gru_backward<Half>(Stream, Precision, Sequence, Cube<Half>, Matrix<Half>, Matrix<Half>, const Half*,
                                  Half*, Half*, Half*, Half*);
template Error gru_backward<float>(Stream, Precision, Sequence, Cube<float>, Matrix<float>, Matrix<float>, const float*,
                                   float*, float*, float*, float*);
template Error gru_backward<double>(Stream, Precision, Sequence, Cube<double>, Matrix<double>, Matrix<double>,
                                    const double*, double*, double*, double*, double*);

}  // namespace fastrnn::cuda
