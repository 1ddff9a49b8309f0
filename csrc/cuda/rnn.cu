// Vanilla RNN over whole sequences: the cell of recurrent.cuh's time loop.
#include "recurrent.cuh"

namespace fastrnn::cuda {

namespace {

using namespace recurrent;

// reserve: pre-activations and then h (R,H), h_prev (R,H).
template <class A>
struct RnnForward {
    using Array = A;
    using T = Computed<A>;
    static constexpr int columns = 1;
    static constexpr bool along_k = false;
    Steps steps;
    Index H;
    Matrix<A> h0, Wh;
    Vec<A> b;
    A *h, *h_n;
    T* h_state;  // h_n's own memory, which is so when the loop ends; or apart from it, see state_of
    T *saved, *h_prev;

    struct Inputs {
        T pre, h;
        Index at;  // n T + t
        bool runs;
    };
    struct Outputs {
        T h;
    };

    __host__ __device__ __forceinline__ Index depth() const { return H; }
    __device__ __forceinline__ T weight(Index k, Index unit, int) const { return widened(Wh(k, unit)); }
    __device__ __forceinline__ T initial(Index row, Index k) const { return widened(h0(row, k)); }
    __device__ __forceinline__ void begin(Index row, Index unit) const {
        const T h = widened(h0(row, unit));
        h_state[row * H + unit] = h;
        put_state_out(h_n, row * H + unit, h);
    }
    __device__ __forceinline__ bool multiplies(Index) const { return true; }

    __device__ __forceinline__ Inputs load(Index step, Index row, Index unit) const {
        const Index t = steps.forward(step), at = row * steps.T + t;
        return {saved[at * H + unit] + widened(b(unit)), h_state[row * H + unit], at, steps.runs(row, t)};
    }
    __device__ __forceinline__ Outputs finish(const Inputs& in, const T (&sums)[1]) const {
        return {in.runs ? tanh(Number<T>{in.pre + sums[0]}).x : in.h};
    }
    template <class E>
    __device__ __forceinline__ void pass_on(typename E::Word* row, const Outputs& out, Index unit) const {
        E::put_state(row, unit, out.h);
    }
    __device__ __forceinline__ void store(Index step, Index row, Index unit, const Inputs& in,
                                          const Outputs& out) const {
        saved[in.at * H + unit] = out.h;
        h[in.at * H + unit] = rounded<A>(in.runs ? out.h : T(0));
        h_prev[in.at * H + unit] = in.runs ? in.h : T(0);
        h_state[row * H + unit] = out.h;
        if (step + 1 == steps.T) put_state_out(h_n, row * H + unit, out.h);
    }
};

// One step more than there are: the last only hands the gradient on to dh0.
template <class A>
struct RnnBackward {
    using Array = A;
    using T = Computed<A>;
    static constexpr int columns = 1;
    static constexpr bool along_k = true;
    Steps steps;
    Index H;
    Cube<A> dh;
    Matrix<A> dh_n, Wh;
    const T* saved;
    T* da;
    A* dh0;
    T* dh_state;  // dh0's own memory, or apart from it; only what passes steps that are not run

    struct Inputs {
        T h, dh, dh_state;
        Index at;
        bool runs, ran, exists;  // this step; the one that was run before, which is later in forward's order
    };
    struct Outputs {
        T da, dh_state;
    };

    __host__ __device__ __forceinline__ Index depth() const { return H; }
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
        in.h = in.runs ? saved[in.at * H + unit] : T(0);
        in.dh = in.runs ? widened(dh.at(row, t)[unit * dh.s2]) : T(0);
        in.dh_state = dh_state[row * H + unit];
        return in;
    }
    __device__ __forceinline__ Outputs finish(const Inputs& in, const T (&sums)[1]) const {
        using V = Number<T>;
        const T through = in.ran ? sums[0] : in.dh_state;
        if (!in.runs) return {T(0), through};
        return {rnn_cell_backward(V{in.h}, V{in.dh + through}, V{T(1)}).x, through};
    }
    template <class E>
    __device__ __forceinline__ void pass_on(typename E::Word* row, const Outputs& out, Index unit) const {
        E::put_state(row, unit, out.da);
    }
    __device__ __forceinline__ void store(Index, Index row, Index unit, const Inputs& in, const Outputs& out) const {
        if (in.exists) da[in.at * H + unit] = out.da;
        dh_state[row * H + unit] = out.dh_state;
        if (!in.exists) put_state_out(dh0, row * H + unit, out.dh_state);
    }
};

}  // namespace

// For all three rows.
Error recurrent::current_limits(Limits& limits) {
    Device device{};
    const cudaError_t error = current_device(device);
    limits = {device.sms, device.shared, device.major, device.minor};
    return error;
}

template <class A>
Error rnn_buffers(Index N, Index steps, Index H, BufferSizes& sizes) {
    return buffers<A>(N, steps, H, 1, 2 * H, H, 1, sizes);
}

template <class A>
Error rnn_forward(Stream stream, Precision precision, Sequence s, Matrix<A> h0, Matrix<A> Wh, Vec<A> b, A* h, A* h_n,
                  A* reserve, A* workspace) {
    using T = Computed<A>;
    T *saved = reinterpret_cast<T*>(reserve), *free = reinterpret_cast<T*>(workspace);
    T* h_state = state_of(s, h_n, free);
    const RnnForward<A> task{steps_of(s), s.H, h0, Wh, b, h, h_n, h_state, saved, saved + s.N * s.T * s.H};
    return run_forward(stream, precision, task, s, free);
}

template <class A>
Error rnn_backward(Stream stream, Precision precision, Sequence s, Cube<A> dh, Matrix<A> dh_n, Matrix<A> Wh,
                   const A* reserve, A* workspace, A* dh0, A* db) {
    using T = Computed<A>;
    const Index R = s.N * s.T;
    T *da = reinterpret_cast<T*>(workspace), *free = da + aligned<T>(R * s.H);
    T* dh_state = state_of(s, dh0, free);
    const RnnBackward<A> task{steps_of(s), s.H, dh, dh_n, Wh, reinterpret_cast<const T*>(reserve), da, dh0, dh_state};
    const cudaError_t error = run_backward(stream, precision, task, s, free);
    if (error != cudaSuccess) return error;
    return column_sums(static_cast<cudaStream_t>(stream), R, s.H, da, db);
}

template Error rnn_buffers<Half>(Index, Index, Index, BufferSizes&);
template Error rnn_buffers<float>(Index, Index, Index, BufferSizes&);
template Error rnn_buffers<double>(Index, Index, Index, BufferSizes&);
template Error rnn_forward<Half>(Stream, Precision, Sequence, Matrix<Half>, Matrix<Half>, Vec<Half>, Half*, Half*,
                                 Half*, Half*);
template Error rnn_forward<float>(Stream, Precision, Sequence, Matrix<float>, Matrix<float>, Vec<float>, float*, float*,
                                  float*, float*);
template Error rnn_forward<double>(Stream, Precision, Sequence, Matrix<double>, Matrix<double>, Vec<double>, double*,
                                   double*, double*, double*);
template Error rnn_backward<Half>(Stream, Precision, Sequence, Cube<Half>, Matrix<Half>, Matrix<Half>, const Half*,
                                  Half*, Half*, Half*);
template Error rnn_backward<float>(Stream, Precision, Sequence, Cube<float>, Matrix<float>, Matrix<float>, const float*,
                                   float*, float*, float*);
template Error rnn_backward<double>(Stream, Precision, Sequence, Cube<double>, Matrix<double>, Matrix<double>,
                                    const double*, double*, double*, double*);

}  // namespace fastrnn::cuda
