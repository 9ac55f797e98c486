// What a kernel gets, and the table of kernels. Included by the units of each instruction set, which must not see C++ library headers:
// an inline function of such a header, compiled here with AVX-512, could be the one the linker keeps for all.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace hasten {

// How sums become what is stored.
enum Finish : int32_t {
    CODES = 0,         // clip(round(sum · scale) + zero), in float32: bit for bit onnxruntime's fused kernels
    CODES_FIXED = 1,   // clip(((sum · factor + half) >> shift) + zero), whole numbers alone (arXiv 1712.05877)
    VALUES = 2,        // sum · scale, float32
    VALUES_FIXED = 3,  // ((sum · factor + half) >> shift) · unit, unit a power of two
};

// The residual sum that follows a convolution or stands alone: y = clip(round(a · ra + (b · rb + rc))), each product and sum a fused one.
// `swapped`: a is the other operand. In fixed point: y = clip((a · fa + b · fb + fc) >> shift).
struct Residual {
    int32_t present, swapped, lo, hi;
    float ra, rb, rc;
    int32_t fa, fb, fc, shift;
};

struct Strides {
    ptrdiff_t row, pixel;  // elements
};

// y[r, q, n] = finish(bias[n] + Σ_s Σ_g Σ_4 x[r · x.row + q · x.pixel + segment[s] + 4 g + i] · w[n / 16][s · groups + g][n % 16][i])
// A segment is a run of inputs that lie together: a row of the kernel's window, or all of a Gemm's.
struct Conv {
    Strides x, y, r;  // x: between what neighbouring outputs read, strides included
    int32_t h, w, c;
    int32_t segments, groups;
    const int32_t *segment;
    const int8_t *weights;
    const int32_t *bias;  // zero point of x folded in; padded to whole blocks, like scale, factor and shift
    const float *scale;
    const int32_t *factor;
    const uint8_t *shift;
    Finish finish;
    int32_t zero, lo, hi;
    float unit;
    Residual add;
};

// The same with one filter per channel. Weights: [c / 64][⌈taps / 4⌉][4][16][4], the order in which bytes of four taps interleave
// (64 channels in four vectors: of each run of 16, the first four in vector 0, the next in vector 1, …); bias and scales in the same order.
struct Depthwise {
    Strides x, y;
    int32_t h, w, c;
    int32_t taps;
    const int32_t *tap;  // elements from an output's first input to each tap
    const int8_t *weights;
    const int32_t *bias;
    const float *scale;
    const int32_t *factor;
    const uint8_t *shift;
    Finish finish;
    int32_t zero, lo, hi;
};

struct Add {
    Strides a, b, y;
    int32_t h, w, c, fixed;
    Residual sum;
};

// Maximum, or sum times scale, over the part of the window that lies inside.
struct Pool {
    Strides x, y;
    int32_t h, w, c;
    int32_t in_h, in_w, kernel_h, kernel_w, stride_h, stride_w, top, left;
    int32_t average, counts_padding;
    int32_t x_zero, zero, lo, hi;
    float x_scale, y_scale;
    int32_t fixed, factor, shift;
};

// y = table[x], x = pixels at any stride; table may be null: a copy.
struct Map {
    Strides x, y;
    int32_t h, w, c;
    const uint8_t *table;
    int32_t constant;  // >= 0: no x is read, this code is written
};

// Floats in planes (c, h, w) to codes in pixels; channels from c up to y.pixel are written as zero points where `widen` is set.
struct Quantize {
    Strides y;
    int32_t h, w, c, widen;
    float scale;
    int32_t zero, lo, hi;
};

struct Dequantize {
    Strides x;
    int32_t h, w, c;
    float scale;
    int32_t zero;
};

// One step of a plan: its arguments, and how its work is shared. Rows [row, row_end), blocks of channels [block, block_end).
struct Share {
    int32_t row, row_end, block, block_end;
};

using Kernel = void (*)(const void *arguments, const void *const *in, void *out, Share share);

enum Isa : int32_t { SCALAR = 0, AVX2 = 1, AVX2VNNI = 2, AVX512VNNI = 3 };

#define KERNEL(op, type, isa, tile, function) \
    void function(const void *arguments, const void *const *in, void *out, Share share);
#include "kernels.inc"
#undef KERNEL

}  // namespace hasten
