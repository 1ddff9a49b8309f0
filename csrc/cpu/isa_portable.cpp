// Inner loops for baseline processors of the platform (SSE2 on x86-64, NEON on arm64): vectors of 16 bytes, 16
// registers.
#include "inner_loops.h"

namespace fastrnn::cpu {
extern const Isa isa_portable;
const Isa isa_portable = {"portable", make_table<Simd<float, 4>, 16>(), make_table<Simd<double, 2>, 16>(), {}, {},
                          nullptr};
}  // namespace fastrnn::cpu
