// The mathematics of the cells, once: for scalars, for SIMD vectors (csrc/cpu/simd.h) and for CUDA threads.
//
// V is a number or a vector of numbers with + - * and the functions sigmoid(V) and tanh(V), found by overload.
#pragma once

#if defined(__CUDACC__)
#define FASTRNN_INLINE __host__ __device__ __forceinline__
#elif defined(_MSC_VER)
#define FASTRNN_INLINE __forceinline
#else
#define FASTRNN_INLINE inline __attribute__((always_inline))
#endif

namespace fastrnn {

// Gates after their non-linearities, and the state that they give.
template <class V>
struct Lstm {
    V i, f, o, g, c;
};

// a*: pre-activations. Returns the gates and the new cell state; h = o tanh(c).
template <class V>
FASTRNN_INLINE Lstm<V> lstm_cell(V ai, V af, V ao, V ag, V c_prev, V& h) {
    Lstm<V> s;
    s.i = sigmoid(ai);
    s.f = sigmoid(af);
    s.o = sigmoid(ao);
    s.g = tanh(ag);
    s.c = s.f * c_prev + s.i * s.g;
    h = s.o * tanh(s.c);
    return s;
}

// dh, dc: gradients of the loss by h and by c. Returns the gradients by the pre-activations (i, f, o, g) and, in .c, by
// the cell state before the step. tanh(c) is taken anew, never h / o, which is 0 / 0 where o underflows.
template <class V>
FASTRNN_INLINE Lstm<V> lstm_cell_backward(const Lstm<V>& s, V c_prev, V dh, V dc, V one) {
    Lstm<V> d;
    const V tc = tanh(s.c);
    dc = dc + dh * s.o * (one - tc * tc);
    d.i = dc * s.g * s.i * (one - s.i);
    d.f = dc * c_prev * s.f * (one - s.f);
    d.o = dh * tc * s.o * (one - s.o);
    d.g = dc * s.i * (one - s.g * s.g);
    d.c = dc * s.f;
    return d;
}

// hn: the recurrent part of the candidate's pre-activation, kept for backward.
template <class V>
struct Gru {
    V r, z, n, hn;
};

// x*: input parts of the pre-activations, h*: recurrent parts, each with its bias.
template <class V>
FASTRNN_INLINE Gru<V> gru_cell(V xr, V xz, V xn, V hr, V hz, V hn, V h_prev, V one, V& h) {
    Gru<V> s;
    s.r = sigmoid(xr + hr);
    s.z = sigmoid(xz + hz);
    s.hn = hn;
    s.n = tanh(xn + s.r * hn);
    h = (one - s.z) * s.n + s.z * h_prev;
    return s;
}

// Returns the gradients by the pre-activations r, z, n and by hn; dh_prev: the part that does not pass through Wh.
template <class V>
FASTRNN_INLINE Gru<V> gru_cell_backward(const Gru<V>& s, V h_prev, V dh, V one, V& dh_prev) {
    Gru<V> d;
    d.n = dh * (one - s.z) * (one - s.n * s.n);
    d.z = dh * (h_prev - s.n) * s.z * (one - s.z);
    d.r = d.n * s.hn * s.r * (one - s.r);
    d.hn = d.n * s.r;
    dh_prev = dh * s.z;
    return d;
}

// Gradient by the pre-activation of h = tanh(a).
template <class V>
FASTRNN_INLINE V rnn_cell_backward(V h, V dh, V one) {
    return dh * (one - h * h);
}

}  // namespace fastrnn
