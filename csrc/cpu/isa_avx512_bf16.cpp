// Inner loops for AVX-512 with bfloat16 dot products: those of AVX-512, and products of rounded operands.
#include "bf16.h"

namespace fastrnn::cpu {
extern const Isa isa_avx512_bf16;
const Isa isa_avx512_bf16 = {"avx512_bf16",
                             make_table<Simd<float, 16>, 32>(),
                             make_table<Simd<double, 8>, 32>(),
                             with_bf16_products(make_table<Simd<float, 16>, 32>()),
                             {},
                             nullptr};
}  // namespace fastrnn::cpu
