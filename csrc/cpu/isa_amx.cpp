// Inner loops for AMX with bfloat16: those of AVX-512, and products on tile registers.
#include "amx.h"

namespace fastrnn::cpu {
extern const Isa isa_amx;
const Isa isa_amx = {"amx",
                     make_table<Simd<float, 16>, 32>(),
                     make_table<Simd<double, 8>, 32>(),
                     with_amx_products<1>(make_table<Simd<float, 16>, 32>()),
                     with_amx_products<2>(make_table<Simd<float, 16>, 32>()),
                     leave_tiles};
}  // namespace fastrnn::cpu
