// AVX-VNNI: the 256-bit form of the instruction that multiplies bytes, on processors without AVX-512. What multiplies nothing is AVX2's.
// No C++ library header and no inline function with external linkage may stand here: see kernels.h.
#include "kernels_256.h"

#define CONV_KERNEL conv_u8s8_avx2vnni
#define DEPTHWISE_KERNEL depthwise_u8s8_avx2vnni

namespace hasten {
namespace {

constexpr int PIXELS = 6;  // 12 sums, 2 weights, 1 input: 15 of 16 registers

struct Inputs {
    Vec v;
    explicit Inputs(Vec four) : v(four) {}
};
struct Weights {
    Vec v;
    explicit Weights(const int8_t *p) : v(load(p)) {}
};
inline Vec dot(Vec sums, const Inputs &x, const Weights &w) { return _mm256_dpbusd_avx_epi32(sums, x.v, w.v); }

#include "kernels_256_products.inc"

void peak_u8s8_avx2vnni(const void *arguments, const void *const *in, void *out, Share) {
    const Peak &k = *static_cast<const Peak *>(arguments);
    const Vec x = load(in[0]), w = load(in[1]);
    Vec s[12];
#pragma GCC unroll 12
    for (int i = 0; i < 12; i++) s[i] = _mm256_add_epi32(x, _mm256_set1_epi32(i));
#pragma GCC unroll 1
    for (int64_t r = 0; r < k.rounds; r++) {
#pragma GCC unroll 12
        for (int i = 0; i < 12; i++) s[i] = _mm256_dpbusd_avx_epi32(s[i], x, w);
    }
#pragma GCC unroll 12
    for (int i = 1; i < 12; i++) s[0] = _mm256_xor_si256(s[0], s[i]);
    _mm256_storeu_si256(static_cast<Vec *>(out), s[0]);
    static_cast<int64_t *>(out)[31] = k.rounds * 12 * 32;
}

}  // namespace hasten
