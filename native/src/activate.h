// Functions of one float and two, as the scalar kernels compute them. Each unit gets its own copy: nothing here may be shared by the linker.
#pragma once

#include <math.h>

#include "kernels.h"

namespace hasten {
namespace {

// To [lo, hi]; NaN stays.
inline float clip(float x, float lo, float hi) {
    const float v = lo > x ? lo : x;
    return hi < v ? hi : v;
}

inline float activate(int32_t activation, float x, float a, float b) {
    switch (activation) {
        case CLIP: return clip(x, a, b);
        case GELU: return 0.5f * x * (1 + erff(x * 0.70710678118654752f));
        case GELU_TANH: return 0.5f * x * (1 + tanhf(0.7978845608028654f * (x + 0.044715f * x * x * x)));
        case SIGMOID: return 1 / (1 + expf(-x));
        case TANH: return tanhf(x);
        case SILU: return x / (1 + expf(-x));
        case HARD_SIGMOID: return clip(a * x + b, 0, 1);
        case HARD_SWISH: return x * clip(x / 6 + 0.5f, 0, 1);
        case LEAKY_RELU: return x < 0 ? a * x : x;
        case ELU: return x < 0 ? a * expm1f(x) : x;
        case EXP: return expf(x);
        case SQRT: return sqrtf(x);
        case ERF: return erff(x);
        case ABS: return fabsf(x);
        case NEG: return -x;
        default: return x;
    }
}

inline float combine(int32_t operation, float a, float b) {
    switch (operation) {
        case ADD_F32: return a + b;
        case SUB: return a - b;
        case MUL: return a * b;
        case DIV: return a / b;
        case MAX: return a > b ? a : b;
        case MIN: return a < b ? a : b;
        default: return a;
    }
}

// numerics.quantize: clip(round(x / s) + z), clamped before it is rounded; NaN becomes the least code.
inline uint8_t quantize(float x, float scale, int32_t zero, int32_t lo, int32_t hi) {
    const float low = static_cast<float>(lo - zero), high = static_cast<float>(hi - zero);
    float v = x / scale;
    v = v > low ? (v < high ? v : high) : low;
    return static_cast<uint8_t>(static_cast<int32_t>(rintf(v)) + zero);
}

}  // namespace
}  // namespace hasten
