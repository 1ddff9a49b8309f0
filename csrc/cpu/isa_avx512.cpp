// Inner loops for AVX-512 F, DQ, BW and VL: vectors of 64 bytes, 32 registers.
#include "inner_loops.h"

namespace fastrnn::cpu {
extern const Isa isa_avx512;
const Isa isa_avx512 = {"avx512", make_table<Simd<float, 16>, 32>(), make_table<Simd<double, 8>, 32>(), {}, {},
                        nullptr};
}  // namespace fastrnn::cpu
