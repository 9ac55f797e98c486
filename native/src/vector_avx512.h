// Functions of sixteen floats, for the AVX-512 units. Everything is in an anonymous namespace: nothing here may be shared by the linker.
#pragma once

#include <immintrin.h>

#include "kernels.h"

namespace hasten {
namespace {

using Floats = __m512;

inline Floats all(float v) { return _mm512_set1_ps(v); }

inline __mmask16 first(int count) { return static_cast<__mmask16>(count >= 16 ? 0xffff : (1 << count) - 1); }

// 2^n e^r with n whole and |r| ≤ ln 2 / 2, e^r by its series to r^7: an error of about one unit in the last place.
inline Floats exp16(Floats x) {
    x = _mm512_max_ps(_mm512_min_ps(x, all(88.72f)), all(-104.0f));
    const Floats n = _mm512_roundscale_ps(_mm512_mul_ps(x, all(1.44269504f)), 0);
    const Floats r = _mm512_fnmadd_ps(n, all(-2.12194440e-4f), _mm512_fnmadd_ps(n, all(0.693359375f), x));
    Floats p = all(1.0f / 5040);
    constexpr float SERIES[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
    for (const float c : SERIES) p = _mm512_fmadd_ps(p, r, all(c));
    return _mm512_scalef_ps(p, n);
}

// Abramowitz and Stegun, 7.1.26: within 1.5e-7.
inline Floats erf16(Floats x) {
    const Floats size = _mm512_abs_ps(x), t = _mm512_div_ps(all(1.0f), _mm512_fmadd_ps(size, all(0.3275911f), all(1.0f)));
    Floats p = all(1.061405429f);
    constexpr float POLYNOMIAL[] = {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f};
    for (const float c : POLYNOMIAL) p = _mm512_fmadd_ps(p, t, all(c));
    const Floats value = _mm512_fnmadd_ps(_mm512_mul_ps(p, t), exp16(_mm512_mul_ps(_mm512_sub_ps(all(0.0f), size), size)), all(1.0f));
    const __m512i sign = _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(INT32_MIN));
    return _mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(value), sign));
}

inline Floats sigmoid16(Floats x) { return _mm512_div_ps(all(1.0f), _mm512_add_ps(all(1.0f), exp16(_mm512_sub_ps(all(0.0f), x)))); }

// 1 − 2 / (e^2x + 1); where that cancels, x − x³/3 + 2 x⁵/15.
inline Floats tanh16(Floats x) {
    const Floats far = _mm512_fnmadd_ps(all(2.0f), sigmoid16(_mm512_mul_ps(x, all(-2.0f))), all(1.0f)), square = _mm512_mul_ps(x, x);
    const Floats near = _mm512_mul_ps(x, _mm512_fmadd_ps(square, _mm512_fmadd_ps(square, all(2.0f / 15), all(-1.0f / 3)), all(1.0f)));
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(_mm512_abs_ps(x), all(0.1f), _CMP_LT_OQ), far, near);
}

inline Floats activate16(int32_t activation, Floats x, float a, float b) {
    const Floats zero = _mm512_setzero_ps(), one = all(1.0f), half = all(0.5f);
    switch (activation) {
        case CLIP: return _mm512_min_ps(all(b), _mm512_max_ps(all(a), x));  // the second operand where one is NaN
        case GELU: return _mm512_mul_ps(_mm512_mul_ps(half, x), _mm512_add_ps(one, erf16(_mm512_mul_ps(x, all(0.70710678f)))));
        case GELU_TANH: {
            const Floats cube = _mm512_mul_ps(_mm512_mul_ps(x, x), x);
            const Floats inner = _mm512_mul_ps(all(0.79788456f), _mm512_fmadd_ps(all(0.044715f), cube, x));
            return _mm512_mul_ps(_mm512_mul_ps(half, x), _mm512_add_ps(one, tanh16(inner)));
        }
        case SIGMOID: return sigmoid16(x);
        case TANH: return tanh16(x);
        case SILU: return _mm512_mul_ps(x, sigmoid16(x));
        case HARD_SIGMOID: return _mm512_max_ps(zero, _mm512_min_ps(one, _mm512_fmadd_ps(all(a), x, all(b))));
        case HARD_SWISH: return _mm512_mul_ps(x, _mm512_max_ps(zero, _mm512_min_ps(one, _mm512_fmadd_ps(x, all(1.0f / 6), half))));
        case LEAKY_RELU: return _mm512_mask_mul_ps(x, _mm512_cmp_ps_mask(x, zero, _CMP_LT_OQ), x, all(a));
        case ELU: return _mm512_mask_mul_ps(x, _mm512_cmp_ps_mask(x, zero, _CMP_LT_OQ), _mm512_sub_ps(exp16(x), one), all(a));
        case EXP: return exp16(x);
        case SQRT: return _mm512_sqrt_ps(x);
        case ERF: return erf16(x);
        case ABS: return _mm512_abs_ps(x);
        case NEG: return _mm512_sub_ps(zero, x);
        default: return x;
    }
}

// What becomes of a layer's values for the channels from n on; r: the residual's address for them.
[[gnu::always_inline]] inline Floats end16(const End &end, Floats value, int n, const float *r, __mmask16 mask) {
    if (end.bias) value = _mm512_add_ps(value, _mm512_loadu_ps(end.bias + n));
    if (end.residual) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, r));
    return end.activation == NO_ACTIVATION ? value : activate16(end.activation, value, end.a, end.b);
}

// Codes of floats: clip(round(x / s) + z).
struct ToCodes16 {
    Floats low, high;
    __m512i zero;
    ToCodes16(int z, int lo, int hi) : low(all(static_cast<float>(lo - z))), high(all(static_cast<float>(hi - z))), zero(_mm512_set1_epi32(z)) {}
    __m512i wide(Floats x, Floats scale) const {
        return _mm512_add_epi32(_mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(_mm512_div_ps(x, scale), low), high)), zero);
    }
    __m128i operator()(Floats x, Floats scale) const { return _mm512_cvtepi32_epi8(wide(x, scale)); }
};

}  // namespace
}  // namespace hasten
