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
    VALUE_CODES = 4,   // a float as in VALUES, through its End, quantized by clip(round(value / step) + zero)
};

// What a float becomes behind a layer: activation(value + bias + residual), with the activation's parameters a and b.
enum Activation : int32_t {
    NO_ACTIVATION = 0,
    CLIP = 1,          // to [a, b]; Relu
    GELU = 2,          // x Φ(x), by erf
    GELU_TANH = 3,
    SIGMOID = 4,
    TANH = 5,
    SILU = 6,
    HARD_SIGMOID = 7,  // max(0, min(1, a x + b))
    HARD_SWISH = 8,
    LEAKY_RELU = 9,    // a x below 0
    ELU = 10,
    EXP = 11,
    SQRT = 12,
    ERF = 13,
    ABS = 14,
    NEG = 15,
    ACTIVATIONS = 16,
};

struct End {
    const float *bias;  // null: none; padded to whole blocks
    int32_t residual, activation;
    float a, b;
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
    int32_t fits;  // whether every sum · scale fits 32 bits
    float unit;
    Residual add;
    End end;            // of VALUES and VALUE_CODES
    const float *step;  // of VALUE_CODES: the codes' scale for each channel
};

// The same with one filter per channel. Taps come in groups of four, one column of the window each if it is not higher than that; a group is
// filled up with taps of weight 0. Weights: [c / 64][groups][4][16][4], the order in which bytes of four taps interleave (64 channels in four
// vectors: of each run of 16, the first four in vector 0, the next in vector 1, …); bias and scales in the same order.
struct Depthwise {
    Strides x, y;
    int32_t h, w, c;
    int32_t groups;
    const int32_t *tap;  // elements from an output's first input to each of 4 · groups taps
    int32_t slide;       // 0, or by how many groups the window moves from one pixel to the next: the others are seen again
    const int8_t *weights;
    const int32_t *bias;
    const float *scale;
    const int32_t *factor;
    const uint8_t *shift;
    Finish finish;
    int32_t zero, lo, hi;
    int32_t fits;
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

// ---- floats

// As Conv: y[r, q, n] = end(Σ_s Σ_i x[r · x.row + q · x.pixel + segment[s] + i] · w[n / 16][s · length + i][n % 16])
struct ConvF32 {
    Strides x, y, r;
    int32_t h, w, c;
    int32_t segments, length;
    const int32_t *segment;
    const float *weights;
    End end;
};

// The same with bfloat16 weights, two inputs at a time, w[n / 16][s · pairs + i / 2][n % 16][i % 2]: the inputs a kernel rounds to bfloat16 itself,
// into its thread's memory, and sums in float32.
struct ConvBF16 {
    Strides x, y, r;
    int32_t h, w, c;
    int32_t segments, pairs;
    const int32_t *segment;
    const uint16_t *weights;
    End end;
    int32_t least, most;  // of the segments
};

// Weights: [taps][c, padded to 16].
struct DepthwiseF32 {
    Strides x, y, r;
    int32_t h, w, c;
    int32_t taps;
    const int32_t *tap;
    const float *weights;
    End end;
};

struct PoolF32 {
    Strides x, y;
    int32_t h, w, c;
    int32_t in_h, in_w, kernel_h, kernel_w, stride_h, stride_w, top, left;
    int32_t average, counts_padding;
};

// y = activation(a ∘ b); strides of 0 repeat what is broadcast. One operand alone: y = activation(a).
enum Binary : int32_t { ONLY = 0, ADD_F32 = 1, SUB = 2, MUL = 3, DIV = 4, MAX = 5, MIN = 6, BINARIES = 7 };

struct Elementwise {
    Strides a, b, y;
    ptrdiff_t a_channel, b_channel;
    int32_t h, w, c, operation, activation;
    float alpha, beta;
};

enum Reduction : int32_t { TOTAL = 0, MEAN = 1, LARGEST = 2, L2 = 3, REDUCTIONS = 4 };

// Over rows, pixels, channels where the flag is set; y has size 1 there.
struct Reduce {
    Strides x, y;
    int32_t h, w, c, over_h, over_w, over_c, operation;
};

// Each pixel's channels: (v − mean) / √(variance + ε) · γ + β with v = x + s; RMS normalization leaves the mean in.
struct Norm {
    Strides x, s, y;
    int32_t h, w, c, has_second, rms;
    const float *gamma, *beta;  // beta may be null
    float epsilon;
};

struct Softmax {
    Strides x, y;
    int32_t h, w, c;
};

// For each head: softmax(scale · Q Kᵀ + bias) V; rows are positions, a head's channels lie together. bias: (heads or 1, queries or 1, keys).
struct Attention {
    ptrdiff_t q, k, v, y;  // elements from position to position
    int32_t queries, keys, heads, size, value_size;
    float scale;
    int32_t has_bias;
    ptrdiff_t bias_head, bias_row;
};

// Rows of a table by 64-bit numbers, which the engine has checked.
struct Gather {
    const float *table;
    int32_t rows, h, c;
    ptrdiff_t y;
};

// 64-bit whole numbers to floats.
struct Cast {
    Strides x, y;
    int32_t h, w, c;
};

// Planes (c, h, w) to pixels, or back.
struct Arrange {
    Strides pixels;
    int32_t h, w, c, to_planes;
};

// Axes in another order: y[a][b][c][d] = x[a · stride[0] + b · stride[1] + c · stride[2] + d · stride[3]], y without gaps.
struct Move {
    int32_t size[4];
    int32_t stride[4];
};

// Pixels of floats to pixels of codes, with a scale for each channel (padded to 16).
struct QuantizePixels {
    Strides x, y;
    int32_t h, w, c;
    const float *scale;
    int32_t zero, lo, hi;
};

// Pixels of codes to pixels of floats.
struct DequantizePixels {
    Strides x, y;
    int32_t h, w, c;
    float scale;
    int32_t zero;
};

// `rounds` times 16 instructions that multiply and wait for nothing. out: 256 bytes, whose last eight are the number of products.
struct Peak {
    int64_t rounds;
};

// One step of a plan: its arguments, and how its work is shared. Rows [row, row_end), blocks of channels [block, block_end).
struct Share {
    int32_t row, row_end, block, block_end;
};

// in: the inputs, then (at SCRATCH) this thread's own memory, as much as scratch_of asks for.
constexpr int SCRATCH = 4;

using Kernel = void (*)(const void *arguments, const void *const *in, void *out, Share share);

enum Isa : int32_t { SCALAR = 0, AVX2 = 1, AVX2VNNI = 2, AVX512VNNI = 3, AVX512BF16 = 4 };

#define KERNEL(op, type, isa, tile, function) \
    void function(const void *arguments, const void *const *in, void *out, Share share);
#include "kernels.inc"
#undef KERNEL

}  // namespace hasten
