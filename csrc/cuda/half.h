// Numbers of half precision, IEEE 754's binary16, as arrays hold them; nothing is computed in them.
#pragma once

#include <cstdint>
#include <type_traits>

namespace fastrnn::cuda {

struct Half {
    std::uint16_t bits;
};

// What is computed in where arrays are of type A, and what their kernels keep: float32 for halves.
template <class A>
using Computed = std::conditional_t<std::is_same_v<A, Half>, float, A>;

}  // namespace fastrnn::cuda
