// Inner loops for AVX2 and FMA: vectors of 32 bytes, 16 registers.
#include "inner_loops.h"

namespace fastrnn::cpu {
extern const Isa isa_avx2;
const Isa isa_avx2 = {"avx2", make_table<Simd<float, 8>, 16>(), make_table<Simd<double, 4>, 16>(), {}, {}, nullptr};
}  // namespace fastrnn::cpu
