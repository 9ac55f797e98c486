// Functions of vectors of floats: include it behind vector_avx512.h or vector_avx2.h. activate.h has the same, number by number.
#pragma once

#include "kernels.h"

namespace hasten {
namespace {

// 2^n e^r with n whole and |r| ≤ ln 2 / 2; the polynomial in r is fitted: 3e-9, and what the rounding adds, one unit in the last place. For x from
// NOTHING, where it is zero, to 89, where it is infinite.
inline Floats exponential_within(Floats x) {
    const Floats n = nearest(x * all(1.44269504f));
    const Floats r = fnma(n, all(-2.12194440e-4f), fnma(n, all(0.693359375f), x));
    Floats p = all(1.38143206e-3f);
    constexpr float POLYNOMIAL[] = {8.36885069e-3f, 4.16684002e-2f, 0.166665196f, 0.49999994f, 1.0f, 1.0f};
    for (const float c : POLYNOMIAL) p = fma(p, r, all(c));
    return times_power(p, n);
}

inline Floats exponential(Floats x) { return exponential_within(max(all(NOTHING), min(all(89.0f), x))); }  // NaN stays

// 1 − e^(a R(a)) with a = |x| up to 4, where it is 1; R is fitted for the least error: 2e-8, and what the rounding adds, 1e-7 in all.
inline Floats error_function(Floats x) {
    const Floats size = min(all(4.0f), magnitude(x));
    Floats odd = all(-3.14401877e-5f), even = all(3.0880241e-4f);
    constexpr float ODD[] = {-1.0324025e-3f, 1.95839591e-2f, -0.636597753f}, EVEN[] = {-5.3693197e-4f, -0.102919616f, -1.1283803f};
    const Floats square = size * size;
    for (int i = 0; i < 3; i++) odd = fma(odd, square, all(ODD[i])), even = fma(even, square, all(EVEN[i]));
    const Floats p = fma(odd, size, even);
    return with_sign(all(1.0f) - exponential_within(p * size), x);
}

inline Floats sigmoid(Floats x) { return all(1.0f) / (all(1.0f) + exponential(zeros() - x)); }

// 1 − 2 / (e^2x + 1); where that cancels, x − x³/3 + 2 x⁵/15.
inline Floats hyperbolic_tangent(Floats x) {
    const Floats far = fnma(all(2.0f), sigmoid(x * all(-2.0f)), all(1.0f)), square = x * x;
    const Floats near = x * fma(square, fma(square, all(2.0f / 15), all(-1.0f / 3)), all(1.0f));
    return choose(less(magnitude(x), all(0.1f)), near, far);
}

inline Floats activate(int32_t activation, Floats x, float a, float b) {
    const Floats one = all(1.0f), half = all(0.5f);
    switch (activation) {
        case CLIP: return min(all(b), max(all(a), x));
        case GELU: return half * x * (one + error_function(x * all(0.70710678f)));
        case GELU_TANH: return half * x * (one + hyperbolic_tangent(all(0.79788456f) * fma(all(0.044715f), x * x * x, x)));
        case SIGMOID: return sigmoid(x);
        case TANH: return hyperbolic_tangent(x);
        case SILU: return x * sigmoid(x);
        case HARD_SIGMOID: return max(zeros(), min(one, fma(all(a), x, all(b))));
        case HARD_SWISH: return x * max(zeros(), min(one, fma(x, all(1.0f / 6), half)));
        case LEAKY_RELU: return choose(less(x, zeros()), x * all(a), x);
        case ELU: return choose(less(x, zeros()), (exponential(x) - one) * all(a), x);
        case EXP: return exponential(x);
        case SQRT: return root(x);
        case ERF: return error_function(x);
        case ABS: return magnitude(x);
        case NEG: return zeros() - x;
        default: return x;
    }
}

inline Floats combine(int32_t operation, Floats a, Floats b) {
    switch (operation) {
        case ADD_F32: return a + b;
        case SUB: return a - b;
        case MUL: return a * b;
        case DIV: return a / b;
        case MAX: return max(a, b);
        case MIN: return min(a, b);
        default: return a;
    }
}

// clip(round(x / s) + z), as numerics.quantize: NaN becomes the least code.
struct ToCode {
    Floats low, high, zero;
    ToCode(int z, int lo, int hi) : low(all(static_cast<float>(lo - z))), high(all(static_cast<float>(hi - z))), zero(all(static_cast<float>(z))) {}
    Floats operator()(Floats x, Floats scale) const { return nearest(min(high, max(x / scale, low))) + zero; }
};

// A layer's values for the channels from n on, but for activations that take their time; r: the residual's address for them.
[[gnu::always_inline]] inline Floats begin_end(const End &end, Floats value, int n, const float *r, Mask mask) {
    if (end.bias) value = value + load(end.bias + n);
    if (end.residual) value = value + load(r, mask);
    return end.activation == CLIP ? min(all(end.b), max(all(end.a), value)) : value;
}

inline bool ended(const End &end) { return end.activation == NO_ACTIVATION || end.activation == CLIP; }

// And these, where the values lie: a tile that called them for each of its sums would be mostly they.
[[gnu::noinline]] inline void end_rows(const End &end, float *y, ptrdiff_t pixel, int pixels, int channels) {
    for (int q = 0; q < pixels; q++, y += pixel)
        for (int n = 0; n < channels; n += LANES) store(y + n, activate(end.activation, load(y + n, first(channels - n)), end.a, end.b), first(channels - n));
}

// Values of a tile (`wide` apart) through the activation to codes.
[[gnu::noinline]] inline void rows_to_codes(const Conv &k, float *values, int wide, int pixels, int n, uint8_t *y) {
    const int channels = k.c - n < wide ? k.c - n : wide;
    if (!ended(k.end)) end_rows(k.end, values, wide, pixels, wide);
    const ToCode code(k.zero, k.lo, k.hi);
    for (int q = 0; q < pixels; q++, values += wide, y += k.y.pixel)
        for (int i = 0; i < channels; i += LANES) store_codes(y + i, code(load(values + i), load(k.step + n + i)), first(channels - i));
}

}  // namespace
}  // namespace hasten
