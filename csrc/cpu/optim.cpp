// Update rules: one pass over the weights, their gradient and their state.
#include <cmath>

#include "gemm.h"

namespace fastrnn::cpu {

template <class T>
void sgd(Index n, const T* w, const T* dw, double lr, T* out) {
    run(threads_for(2.0 * n, n), [&](const Worker& worker) {
        const Range mine = share(n, worker);
        const Index b = mine.begin;
        table<T>().sgd(mine.end - b, w + b, dw + b, static_cast<T>(lr), out + b);
    });
}

template <class T>
void sgd_momentum(Index n, const T* w, const T* dw, const T* v, double lr, double momentum, T* out, T* v_out) {
    run(threads_for(4.0 * n, n), [&](const Worker& worker) {
        const Range mine = share(n, worker);
        const Index b = mine.begin;
        table<T>().sgd_momentum(mine.end - b, w + b, dw + b, v + b, static_cast<T>(lr), static_cast<T>(momentum),
                                out + b, v_out + b);
    });
}

template <class T>
void rmsprop(Index n, const T* w, const T* dw, const T* cache, double lr, double decay, double epsilon, T* out,
             T* cache_out) {
    run(threads_for(10.0 * n, n), [&](const Worker& worker) {
        const Range mine = share(n, worker);
        const Index b = mine.begin;
        table<T>().rmsprop(mine.end - b, w + b, dw + b, cache + b, static_cast<T>(lr), static_cast<T>(decay),
                           static_cast<T>(1 - decay), static_cast<T>(epsilon), out + b, cache_out + b);
    });
}

template <class T>
void adam(Index n, const T* w, const T* dw, const T* m, const T* v, double lr, double beta1, double beta2,
          double epsilon, double t, T* out, T* m_out, T* v_out) {
    const double correction1 = 1 / (1 - std::pow(beta1, t)), correction2 = 1 / (1 - std::pow(beta2, t));
    const double exact[] = {lr * correction1, beta1, 1 - beta1, beta2, 1 - beta2, epsilon, correction2};
    T settings[7];
    for (int i = 0; i < 7; ++i) settings[i] = static_cast<T>(exact[i]);
    run(threads_for(15.0 * n, n), [&](const Worker& worker) {
        const Range mine = share(n, worker);
        const Index b = mine.begin;
        table<T>().adam(mine.end - b, w + b, dw + b, m + b, v + b, settings, out + b, m_out + b, v_out + b);
    });
}

template void sgd<float>(Index, const float*, const float*, double, float*);
template void sgd_momentum<float>(Index, const float*, const float*, const float*, double, double, float*, float*);
template void rmsprop<float>(Index, const float*, const float*, const float*, double, double, double, float*, float*);
template void adam<float>(Index, const float*, const float*, const float*, const float*, double, double, double, double,
                          double, float*, float*, float*);
template void sgd<double>(Index, const double*, const double*, double, double*);
template void sgd_momentum<double>(Index, const double*, const double*, const double*, double, double, double*,
                                   double*);
template void rmsprop<double>(Index, const double*, const double*, const double*, double, double, double, double*,
                              double*);
template void adam<double>(Index, const double*, const double*, const double*, const double*, double, double, double,
                           double, double, double*, double*, double*);

}  // namespace fastrnn::cpu
