// A vector of W numbers and the few operations that the inner loops need; then exp, log, sigmoid and tanh on it.
//
// The compiler's vector types do the work, so that one text serves every instruction set: the file that includes this
// is compiled once per set, with that set's flags and its own W. Compilers without vector types (MSVC) get an array and
// loops. Everything is in an anonymous namespace: nothing that is compiled for a newer processor may be merged by the
// linker with code that must run on an older one. For the same reason no standard function is called here.
//
// Accuracy, measured against long double by tests/test_simd_math.py over the whole range (ULP of the result):
// exp_neg, log, sigmoid and tanh stay within the budgets named there. All propagate NaN and are right at +-inf.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

#if defined(__GNUC__) && defined(__SSE2__)
#include <immintrin.h>
#endif

#include "../gates.h"

namespace fastrnn {
namespace {

template <class T>
struct Bits;
template <>
struct Bits<float> {
    using Int = std::int32_t;
    static constexpr int mantissa = 23, bias = 127;
};
template <>
struct Bits<double> {
    using Int = std::int64_t;
    static constexpr int mantissa = 52, bias = 1023;
};

#if defined(__GNUC__)

template <class T, int W>
struct Simd {
    typedef T Raw __attribute__((vector_size(W * sizeof(T))));
    typedef typename Bits<T>::Int IntRaw __attribute__((vector_size(W * sizeof(T))));
    typedef T Unaligned __attribute__((vector_size(W * sizeof(T)), aligned(sizeof(T)), may_alias));
    using Scalar = T;
    static constexpr int lanes = W;

    Raw v;

    FASTRNN_INLINE static Simd all(T x) { return {x - Raw{}}; }
    FASTRNN_INLINE static Simd zero() { return {Raw{}}; }
    FASTRNN_INLINE static Simd load(const T* p) { return {*reinterpret_cast<const Unaligned*>(p)}; }
    FASTRNN_INLINE void store(T* p) const { *reinterpret_cast<Unaligned*>(p) = v; }
    // As store, past the caches; p is aligned to the vector. Whoever hands the memory to another thread fences first.
    FASTRNN_INLINE void stream(T* p) const {
#if defined(__clang__)
        __builtin_nontemporal_store(v, reinterpret_cast<Raw*>(p));
#else
#if defined(__AVX512F__)
        if constexpr (sizeof(Raw) == 64) return _mm512_stream_si512(reinterpret_cast<__m512i*>(p), (__m512i)v);
#endif
#if defined(__AVX__)
        if constexpr (sizeof(Raw) == 32) return _mm256_stream_si256(reinterpret_cast<__m256i*>(p), (__m256i)v);
#endif
#if defined(__SSE2__)
        if constexpr (sizeof(Raw) == 16) return _mm_stream_si128(reinterpret_cast<__m128i*>(p), (__m128i)v);
#endif
        store(p);
#endif
    }
    FASTRNN_INLINE T lane(int i) const { return v[i]; }

    FASTRNN_INLINE friend Simd operator+(Simd a, Simd b) { return {a.v + b.v}; }
    FASTRNN_INLINE friend Simd operator-(Simd a, Simd b) { return {a.v - b.v}; }
    FASTRNN_INLINE friend Simd operator*(Simd a, Simd b) { return {a.v * b.v}; }
    FASTRNN_INLINE friend Simd operator/(Simd a, Simd b) { return {a.v / b.v}; }
    FASTRNN_INLINE friend Simd operator-(Simd a) { return {-a.v}; }

    // where a < b: x, else y. False where either is NaN.
    FASTRNN_INLINE static Simd where_less(Simd a, Simd b, Simd x, Simd y) { return {a.v < b.v ? x.v : y.v}; }
    FASTRNN_INLINE Simd magnitude() const { return {(Raw)((IntRaw)v & ~sign_bit())}; }
    FASTRNN_INLINE Simd with_sign_of(Simd s) const { return {(Raw)((IntRaw)v | ((IntRaw)s.v & sign_bit()))}; }
    // 2^k for the integer that `shifted` holds in its low mantissa bits (see nearest()), k within the normal range.
    FASTRNN_INLINE static Simd power_of_two(IntRaw k) { return {(Raw)((k + Bits<T>::bias) << Bits<T>::mantissa)}; }
    FASTRNN_INLINE IntRaw bits() const { return (IntRaw)v; }
    FASTRNN_INLINE static Simd from_bits(IntRaw x) { return {(Raw)x}; }

    // W vectors as the rows of a square: rows become columns. Halves of ever smaller blocks change places.
    FASTRNN_INLINE static void transpose(Simd (&rows)[W]) { swap_blocks<W / 2>(rows); }

  private:
    FASTRNN_INLINE static IntRaw sign_bit() { return (IntRaw)(-Raw{}); }

    template <int Half>
    FASTRNN_INLINE static void swap_blocks(Simd (&rows)[W]) {
        if constexpr (Half > 0) {
#pragma GCC unroll 16
            for (int i = 0; i < W; ++i)
                if (!(i & Half)) swap_corners<Half>(rows[i], rows[i + Half], std::make_integer_sequence<int, W>());
            swap_blocks<Half / 2>(rows);
        }
    }
    template <int Half, int... J>
    FASTRNN_INLINE static void swap_corners(Simd& a, Simd& b, std::integer_sequence<int, J...>) {
        const Raw upper = a.v, lower = b.v;
        a.v = __builtin_shufflevector(upper, lower, (J & Half ? W + J - Half : J)...);
        b.v = __builtin_shufflevector(upper, lower, (J & Half ? W + J : J + Half)...);
    }
};

#else

template <class T, int W>
struct Simd {
    using Int = typename Bits<T>::Int;
    struct IntRaw {
        Int v[W];
        friend IntRaw operator-(IntRaw a, IntRaw b) {
            for (int i = 0; i < W; ++i) a.v[i] -= b.v[i];
            return a;
        }
        friend IntRaw operator+(IntRaw a, IntRaw b) {
            for (int i = 0; i < W; ++i) a.v[i] += b.v[i];
            return a;
        }
        friend IntRaw operator<<(IntRaw a, int n) {
            for (int i = 0; i < W; ++i) a.v[i] <<= n;
            return a;
        }
        friend IntRaw operator>>(IntRaw a, int n) {
            for (int i = 0; i < W; ++i) a.v[i] >>= n;
            return a;
        }
    };
    using Scalar = T;
    static constexpr int lanes = W;

    T v[W];

    static Simd all(T x) {
        Simd r;
        for (int i = 0; i < W; ++i) r.v[i] = x;
        return r;
    }
    static Simd zero() { return all(T(0)); }
    static Simd load(const T* p) {
        Simd r;
        std::memcpy(r.v, p, sizeof r.v);
        return r;
    }
    void store(T* p) const { std::memcpy(p, v, sizeof v); }
    void stream(T* p) const { store(p); }
    T lane(int i) const { return v[i]; }

    template <class F>
    static Simd map(F f) {
        Simd r;
        for (int i = 0; i < W; ++i) r.v[i] = f(i);
        return r;
    }
    friend Simd operator+(Simd a, Simd b) {
        return map([&](int i) { return a.v[i] + b.v[i]; });
    }
    friend Simd operator-(Simd a, Simd b) {
        return map([&](int i) { return a.v[i] - b.v[i]; });
    }
    friend Simd operator*(Simd a, Simd b) {
        return map([&](int i) { return a.v[i] * b.v[i]; });
    }
    friend Simd operator/(Simd a, Simd b) {
        return map([&](int i) { return a.v[i] / b.v[i]; });
    }
    friend Simd operator-(Simd a) {
        return map([&](int i) { return -a.v[i]; });
    }
    static Simd where_less(Simd a, Simd b, Simd x, Simd y) {
        return map([&](int i) { return a.v[i] < b.v[i] ? x.v[i] : y.v[i]; });
    }
    Simd magnitude() const {
        return map([&](int i) { return from_bits(Int(to_bits(v[i]) & ~sign_bit())); });
    }
    Simd with_sign_of(Simd s) const {
        return map([&](int i) { return from_bits(Int(to_bits(v[i]) | (to_bits(s.v[i]) & sign_bit()))); });
    }
    static Simd power_of_two(IntRaw k) {
        return map([&](int i) { return from_bits(Int((k.v[i] + Bits<T>::bias) << Bits<T>::mantissa)); });
    }
    IntRaw bits() const {
        IntRaw r;
        for (int i = 0; i < W; ++i) r.v[i] = to_bits(v[i]);
        return r;
    }
    static Simd from_bits(IntRaw x) {
        return map([&](int i) { return from_bits(x.v[i]); });
    }
    static void transpose(Simd (&rows)[W]) {
        for (int i = 0; i < W; ++i) {
            for (int j = 0; j < i; ++j) {
                const T t = rows[i].v[j];
                rows[i].v[j] = rows[j].v[i];
                rows[j].v[i] = t;
            }
        }
    }

  private:
    static Int sign_bit() { return to_bits(T(-0.0)); }
    static Int to_bits(T x) {
        Int r;
        std::memcpy(&r, &x, sizeof r);
        return r;
    }
    static T from_bits(Int x) {
        T r;
        std::memcpy(&r, &x, sizeof r);
        return r;
    }
};

#endif

// The first n lanes; the others are 0, respectively left alone.
template <class S>
FASTRNN_INLINE S load_part(const typename S::Scalar* p, int n) {
    if (n >= S::lanes) return S::load(p);
    typename S::Scalar t[S::lanes] = {};
    for (int i = 0; i < n; ++i) t[i] = p[i];
    return S::load(t);
}
template <class S>
FASTRNN_INLINE void store_part(S x, typename S::Scalar* p, int n) {
    if (n >= S::lanes) return x.store(p);
    typename S::Scalar t[S::lanes];
    x.store(t);
    for (int i = 0; i < n; ++i) p[i] = t[i];
}
// As x in the first n lanes; the others are 0.
template <class S>
FASTRNN_INLINE S first_lanes(S x, int n) {
    using T = typename S::Scalar;
    if (n >= S::lanes) return x;
    T number[S::lanes];
    for (int i = 0; i < S::lanes; ++i) number[i] = T(i);
    return S::where_less(S::load(number), S::all(T(n)), x, S::zero());
}

// ---- exp ------------------------------------------------------------------------------------------------------------
// exp(x) = 2^k exp(r), r = x - k ln 2 in +-0.3466, k the integer nearest to x / ln 2. exp(r) - 1 is its Taylor series,
// cut where the next term is below a quarter of the last bit; coefficients 1/2!, 1/3!, … ln 2 is split in two so that
// k times the first part is exact.

template <class T>
struct ExpConstants;
template <>
struct ExpConstants<float> {
    static constexpr float to_nearest =
        12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
    static constexpr float inv_ln2 = 1.44269504088896341f, ln2_high = 0.693145751953125f,
                           ln2_low = 1.42860682030941723e-6f;
    static constexpr float lowest = -104.0f;    // exp is 0 below
    static constexpr float saturated = -20.0f;  // exp(x) is lost beside 1 below
};
template <>
struct ExpConstants<double> {
    static constexpr double to_nearest = 6755399441055744.0;
    static constexpr double inv_ln2 = 1.44269504088896340736, ln2_high = 0.693147180369123816490,
                            ln2_low = 1.90821492927058770002e-10;
    static constexpr double lowest = -746.0;
    static constexpr double saturated = -40.0;
};

template <class S>
struct Reduced {
    typename S::IntRaw k;
    S expm1;  // exp(r) - 1
};

template <class S, int N>
FASTRNN_INLINE S horner(S r, const double (&coefficients)[N]) {
    using T = typename S::Scalar;
    S sum = S::all(T(coefficients[0]));
#if defined(__GNUC__)
#pragma GCC unroll 16
#endif
    for (int i = 1; i < N; ++i) sum = sum * r + S::all(T(coefficients[i]));
    return sum;
}

template <class S>
FASTRNN_INLINE Reduced<S> reduce(S x) {
    using T = typename S::Scalar;
    using C = ExpConstants<T>;
    const S shift = S::all(C::to_nearest);
    const S shifted = x * S::all(C::inv_ln2) + shift;
    const S k = shifted - shift;
    const S r = (x - k * S::all(C::ln2_high)) - k * S::all(C::ln2_low);
    S p;
    if constexpr (sizeof(T) == 4) {
        p = horner(r, {1.0 / 5040, 1.0 / 720, 1.0 / 120, 1.0 / 24, 1.0 / 6, 1.0 / 2});
    } else {
        p = horner(r, {1.0 / 6227020800.0, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320,
                       1.0 / 5040, 1.0 / 720, 1.0 / 120, 1.0 / 24, 1.0 / 6, 1.0 / 2});
    }
    return {shifted.bits() - shift.bits(), p * (r * r) + r};
}

// exp(x) for x <= 0, down to the smallest denormal; NaN stays NaN.
template <class S>
FASTRNN_INLINE S exp_neg(S x) {
    const S lowest = S::all(ExpConstants<typename S::Scalar>::lowest);
    const Reduced<S> e = reduce(S::where_less(x, lowest, lowest, x));
    // Two factors, because 2^k alone would underflow where the result is still a denormal number.
    const auto half = e.k >> 1;
    const S a = S::power_of_two(half), b = S::power_of_two(e.k - half);
    return (e.expm1 * a + a) * b;
}

// ---- log ------------------------------------------------------------------------------------------------------------
// log(x) = k ln 2 + log(1 + f), 1 + f = x / 2^k in [sqrt(1/2), sqrt(2)). With s = f / (2 + f), log(1 + f) is
// 2 artanh(s) = 2s (1 + s^2/3 + s^4/5 + …); 2s is f - s f, whose first term is exact, so that only the smaller second
// one is rounded. The series is cut where the next term is below a quarter of the last bit.

template <class T>
struct LogConstants {
    static constexpr T infinity = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
    static constexpr T least_normal = std::numeric_limits<T>::min();
    static constexpr int denormal_shift = Bits<T>::mantissa + 1;
    static constexpr T denormal_scale = T(std::int64_t(1) << denormal_shift);
};

// log(x); -inf at 0, NaN below.
template <class S>
FASTRNN_INLINE S log(S x) {
    using T = typename S::Scalar;
    using C = LogConstants<T>;
    using E = ExpConstants<T>;
    const S least = S::all(C::least_normal), zero = S::zero();
    const S a = x.magnitude();
    const S y = S::where_less(a, least, a * S::all(C::denormal_scale), a);
    // The exponent, as if sqrt(1/2) had the mantissa 0.
    const auto k = (y.bits() - S::all(T(0.70710678118654752)).bits()) >> Bits<T>::mantissa;
    const auto whole = k << Bits<T>::mantissa;  // not by way of 2^k, whose bits overflow if x is NaN
    const S f = S::from_bits(y.bits() - whole) - S::all(1);
    // To a floating-point number by way of the low bits of one that is large enough.
    const S shift = S::all(E::to_nearest);
    const S n = (S::from_bits(shift.bits() + k) - shift) - S::where_less(a, least, S::all(C::denormal_shift), zero);
    const S s = f / (f + S::all(2)), z = s * s;
    S p;
    if constexpr (sizeof(T) == 4) {
        p = horner(z, {2.0 / 9, 2.0 / 7, 2.0 / 5, 2.0 / 3});
    } else {
        p = horner(z, {2.0 / 21, 2.0 / 19, 2.0 / 17, 2.0 / 15, 2.0 / 13, 2.0 / 11, 2.0 / 9, 2.0 / 7, 2.0 / 5, 2.0 / 3});
    }
    const S small = s * (f - p * z) - n * S::all(E::ln2_low);
    const S r = n * S::all(E::ln2_high) + (f - small);
    const S of_zero = S::where_less(zero, x, r, S::all(-C::infinity));
    const S of_negative = S::where_less(x, zero, S::all(C::nan), of_zero);
    return S::where_less(x, S::all(C::infinity), of_negative, x);
}

// ---- sigmoid and tanh -----------------------------------------------------------------------------------------------

// 1 / (1 + exp(-x)), taken from exp(-|x|) so that nothing overflows and small results keep all their digits.
template <class S>
FASTRNN_INLINE S sigmoid(S x) {
    const S one = S::all(1), e = exp_neg(-x.magnitude());
    return S::where_less(x, S::zero(), e, one) / (one + e);
}

// With e = exp(-2|x|): above 1/2 the result is 1 - 2e / (1 + e), whose second term is small, so that its rounding does
// not count; below, (1 - e) / (1 + e) with 1 - e taken from the series itself, which keeps all digits of a small x.
template <class S>
FASTRNN_INLINE S tanh(S x) {
    using T = typename S::Scalar;
    const S one = S::all(1), two = S::all(2), half = S::all(T(0.54930614433405485)), zero = S::zero();  // atanh(1/2)
    const S floor = S::all(2 * ExpConstants<T>::saturated);
    const S magnitude = x.magnitude(), y = magnitude * -two;
    const Reduced<S> r = reduce(S::where_less(y, floor, floor, y));
    const S scale = S::power_of_two(r.k);
    const S e = r.expm1 * scale + scale;
    const S less = r.expm1 * scale + (scale - one);
    const S q = S::where_less(magnitude, half, -less, -(e + e)) / (one + e);
    return (q + S::where_less(magnitude, half, zero, one)).magnitude().with_sign_of(x);
}

}  // namespace
}  // namespace fastrnn
