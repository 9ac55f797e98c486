// Kernels on floats against the scalar ones, within the tolerances of kernels_test.h. Inputs of floats end exactly where their last number does.
#include <algorithm>
#include <cstdio>
#include <cstring>

#include "kernels_test.h"

using namespace hasten;

namespace {

template <class W>
Exactly<W> some_weights(size_t n) {
    auto made = floats(n);
    if constexpr (sizeof(W) == 4) {
        return made;
    } else {
        Exactly<W> halves(n);
        for (size_t i = 0; i < n; i++) std::memcpy(&halves[i], reinterpret_cast<const char *>(&made[i]) + 2, 2);  // bfloat16: the upper half
        return halves;
    }
}

Exactly<uint16_t> magnitudes(Exactly<uint16_t> &of) {
    Exactly<uint16_t> made(of.size);
    for (size_t i = 0; i < of.size; i++) made[i] = of[i] & 0x7fff;
    return made;
}

// A kernel that ends in `k.end`: how far it may be off depends on how large its sums of `products` are; the same kernel tells, on magnitudes.
template <class K, class W>
void compare_sums(const Test &test, const K &k, Exactly<float> &x, Exactly<W> &w, Exactly<float> &bias, Exactly<float> &r, double products, Share share) {
    Exactly<uint16_t> scratch(x.size + 32);  // as program.cpp has it, of bfloat16
    const void *in[SCRATCH + 1] = {x.data(), k.end.residual ? r.data() : nullptr, nullptr, nullptr, scratch.data()};
    const size_t count = extent(k.y, k.h, k.w, k.c);
    auto x_size = magnitudes(x), w_size = magnitudes(w), bias_size = magnitudes(bias), r_size = magnitudes(r);
    const void *in_sizes[SCRATCH + 1] = {x_size.data(), r_size.data()};
    K plain = k, sizes = k;
    plain.end.activation = sizes.end.activation = NO_ACTIVATION;
    sizes.weights = w_size.data();
    if (k.end.bias) sizes.end.bias = bias_size.data();
    auto value = test.outputs(&plain, in, count, share), size = test.outputs(&sizes, in_sizes, count, share);
    test.compare<float>(&k, in, count, share, [&](size_t i, float, float got) {
        return Range(k.end.activation, k.end.a, k.end.b, double(value[i]), of_sums(products) * double(size[i])).holds(got);
    });
}

void some_end(End &end, Exactly<float> &bias) {
    end.activation = some_activation();
    some_parameters(end.activation, end.a, end.b);
    if (once_in(2)) end.bias = bias.data();
    end.residual = once_in(2);
}

// A convolution on floats, or one that rounds them to bfloat16 and reads them in pairs.
template <class K, class W>
void conv(const Test &test) {
    constexpr bool PAIRS = sizeof(W) == 2;
    K k = {};
    const bool gemm = once_in(5), one = gemm && once_in(2);
    const int kernel_h = gemm ? 1 : one_of({1, 1, 2, 3, 3, 5}), kernel_w = gemm ? 1 : once_in(4) ? number(1, 4) : kernel_h;
    const int stride_h = number(1, 2), stride_w = number(1, 2), dilation = once_in(5) ? 2 : 1;
    k.h = one ? 1 : number(1, 4), k.w = one ? 1 : once_in(8) ? number(15, 70) : number(1, 16), k.c = once_in(20) ? number(130, 300) : some_channels();
    const int inputs = gemm ? number(1, 600) : one_of({1, 2, 3, 4, 5, 8, 13, 16, 31}), pixel = inputs + (once_in(2) ? number(0, 9) : 0);
    const int in_w = (k.w - 1) * stride_w + (kernel_w - 1) * dilation + 1;
    const ptrdiff_t row = ptrdiff_t(in_w) * pixel + (once_in(2) ? number(0, 40) : 0);
    k.x = {row * stride_h, ptrdiff_t(pixel) * stride_w};
    const bool runs = dilation == 1 && once_in(2);
    std::vector<int32_t> segment;
    for (int i = 0; i < kernel_h; i++)
        for (int j = 0; j < (runs ? 1 : kernel_w); j++) segment.push_back(int32_t(i * dilation * row + j * dilation * pixel));
    const int run = runs ? (kernel_w - 1) * pixel + inputs : inputs, length = PAIRS ? (run + 1) / 2 * 2 : run, blocks = (k.c + 15) / 16;
    k.segment = segment.data(), k.segments = int32_t(segment.size());
    if constexpr (PAIRS) k.pairs = length / 2, k.least = segment.front(), k.most = segment.back();
    else k.length = length;
    auto x = floats(extent(k.x, k.h, k.w, segment.back() + length)), bias = floats(size_t(blocks) * 16);
    auto w = some_weights<W>(size_t(blocks) * size_t(k.segments * length) * 16);
    k.weights = w.data();
    some_end(k.end, bias);
    k.y = some_strides(k.w, k.c), k.r = some_strides(k.w, k.c);
    auto r = floats(extent(k.r, k.h, k.w, k.c));
    tell("conv f32 h %d w %d c %d, inputs %d pixel %d, kernel %dx%d stride %dx%d dilation %d, end %d %g %g bias %d residual %d", k.h, k.w, k.c, inputs, pixel,
         kernel_h, kernel_w, stride_h, stride_w, dilation, k.end.activation, double(k.end.a), double(k.end.b), k.end.bias != nullptr, k.end.residual);
    compare_sums(test, k, x, w, bias, r, k.segments * length, some_share(k.h, blocks));
}

void depthwise(const Test &test) {
    DepthwiseF32 k = {};
    const int kernel_h = one_of({1, 3, 3, 5, 7}), kernel_w = once_in(4) ? 3 : kernel_h, stride_h = number(1, 2), stride_w = number(1, 2), dilation = once_in(5) ? 2 : 1;
    k.h = number(1, 5), k.w = number(1, 20), k.c = some_channels();
    const int pixel = k.c + (once_in(3) ? number(0, 9) : 0);
    const ptrdiff_t row = ptrdiff_t((k.w - 1) * stride_w + (kernel_w - 1) * dilation + 1) * pixel + (once_in(2) ? number(0, 40) : 0);
    k.x = {row * stride_h, ptrdiff_t(pixel) * stride_w};
    std::vector<int32_t> tap;
    for (int i = 0; i < kernel_h; i++)
        for (int j = 0; j < kernel_w; j++) tap.push_back(int32_t(i * dilation * row + j * dilation * pixel));
    k.tap = tap.data(), k.taps = int32_t(tap.size());
    const size_t padded = size_t(k.c + 15) / 16 * 16;
    auto x = floats(extent(k.x, k.h, k.w, tap.back() + k.c)), w = floats(padded * tap.size()), bias = floats(padded);
    k.weights = w.data();
    some_end(k.end, bias);
    k.y = some_strides(k.w, k.c), k.r = some_strides(k.w, k.c);
    auto r = floats(extent(k.r, k.h, k.w, k.c));
    tell("depthwise f32 h %d w %d c %d pixel %d, kernel %dx%d stride %dx%d dilation %d, end %d %g %g bias %d residual %d", k.h, k.w, k.c, pixel, kernel_h, kernel_w,
         stride_h, stride_w, dilation, k.end.activation, double(k.end.a), double(k.end.b), k.end.bias != nullptr, k.end.residual);
    compare_sums(test, k, x, w, bias, r, k.taps, some_share(k.h, 1));
}

// What has no end: sums that are off by a part of the sum of magnitudes.
template <class K>
void compare_totals(const Test &test, const K &k, Exactly<float> &x, size_t count, double terms, Share share) {
    const void *in[SCRATCH + 1] = {x.data()};
    auto x_size = magnitudes(x);
    const void *in_sizes[SCRATCH + 1] = {x_size.data()};
    auto size = test.outputs(&k, in_sizes, count, share);
    test.compare<float>(&k, in, count, share, [&](size_t i, float must, float got) { return std::abs(got - must) <= of_sums(terms) * double(size[i]); });
}

void pool(const Test &test) {
    PoolF32 k = {};
    k.c = some_channels();
    const bool global = once_in(4);
    k.in_h = number(1, 12), k.in_w = number(1, 30);
    k.kernel_h = global ? k.in_h : number(1, 5), k.kernel_w = global ? k.in_w : number(1, 5), k.stride_h = number(1, 3), k.stride_w = number(1, 3);
    k.top = number(0, k.kernel_h - 1), k.left = number(0, k.kernel_w - 1);
    k.h = global ? 1 : (k.in_h + k.top - 1) / k.stride_h + 1, k.w = global ? 1 : (k.in_w + k.left - 1) / k.stride_w + 1;
    k.h = number(1, k.h), k.w = number(1, k.w);
    k.average = once_in(2), k.counts_padding = k.average && once_in(2);
    k.x = some_strides(k.in_w, k.c), k.y = some_strides(k.w, k.c);
    auto x = floats(extent(k.x, k.in_h, k.in_w, k.c));
    const void *in[SCRATCH + 1] = {x.data()};
    tell("pool f32 of %dx%d to %dx%d, c %d, kernel %dx%d stride %dx%d pads %d %d, average %d padding %d", k.in_h, k.in_w, k.h, k.w, k.c, k.kernel_h, k.kernel_w,
         k.stride_h, k.stride_w, k.top, k.left, k.average, k.counts_padding);
    const size_t count = extent(k.y, k.h, k.w, k.c);
    const Share share = some_share(k.h, 1);
    if (k.average) compare_totals(test, k, x, count, k.kernel_h * k.kernel_w, share);
    else test.compare<float>(&k, in, count, share);
}

void elementwise(const Test &test) {
    Elementwise k = {};
    k.h = number(1, 4), k.w = number(1, 20), k.c = some_channels();
    k.operation = number(ONLY, BINARIES - 1), k.activation = number(NO_ACTIVATION, ACTIVATIONS - 1);
    some_parameters(k.activation, k.alpha, k.beta);
    const auto operand = [&](Strides &step, ptrdiff_t &channel) {
        const bool wide = !once_in(4), long_rows = !once_in(4), high = !once_in(4);
        step = some_strides(long_rows ? k.w : 1, wide ? k.c : 1);
        auto made = floats(extent(step, high ? k.h : 1, long_rows ? k.w : 1, wide ? k.c : 1));
        const int how = number(0, 3);
        for (size_t i = 0; i < made.size; i++) {
            if (how == 0) made[i] *= power(-30, 7);  // to where functions are flat, or overflow
            if (how == 1) made[i] *= 5;
            if (once_in(60)) made[i] = once_in(3) ? NAN : once_in(2) ? INFINITY : -INFINITY;
            if (once_in(60)) made[i] = once_in(2) ? 0.0f : -0.0f;
        }
        if (!high) step.row = 0;
        if (!long_rows) step.pixel = 0;
        channel = wide;
        return made;
    };
    auto a = operand(k.a, k.a_channel), b = operand(k.b, k.b_channel);
    const void *in[SCRATCH + 1] = {a.data(), k.operation == ONLY ? nullptr : b.data()};
    k.y = some_strides(k.w, k.c);
    tell("elementwise h %d w %d c %d, operation %d, steps %td %td %td, %td %td %td, activation %d %g %g", k.h, k.w, k.c, k.operation, k.a.row, k.a.pixel, k.a_channel,
         k.b.row, k.b.pixel, k.b_channel, k.activation, double(k.alpha), double(k.beta));
    const size_t count = extent(k.y, k.h, k.w, k.c);
    const Share share = some_share(k.h, 1);
    Elementwise plain = k;
    plain.activation = NO_ACTIVATION;
    auto value = test.outputs(&plain, in, count, share);
    test.compare<float>(&k, in, count, share, [&](size_t i, float, float got) { return Range(k.activation, k.alpha, k.beta, double(value[i]), 0).holds(got); });
}

void reduce(const Test &test) {
    Reduce k = {};
    k.h = number(1, 12), k.w = number(1, 30), k.c = some_channels();
    k.over_h = once_in(2), k.over_w = once_in(2), k.over_c = once_in(2);
    k.operation = number(TOTAL, REDUCTIONS - 1);
    const int h = k.over_h ? 1 : k.h, w = k.over_w ? 1 : k.w, c = k.over_c ? 1 : k.c;
    k.x = some_strides(k.w, k.c), k.y = some_strides(w, c);
    auto x = floats(extent(k.x, k.h, k.w, k.c));
    const void *in[SCRATCH + 1] = {x.data()};
    tell("reduce h %d w %d c %d over %d %d %d, operation %d", k.h, k.w, k.c, k.over_h, k.over_w, k.over_c, k.operation);
    const size_t count = extent(k.y, h, w, c);
    const double terms = (k.over_h ? k.h : 1.0) * (k.over_w ? k.w : 1.0) * (k.over_c ? k.c : 1.0);
    if (k.operation == LARGEST) test.compare<float>(&k, in, count, {0, 1, 0, 1});
    else compare_totals(test, k, x, count, terms, {0, 1, 0, 1});
}

void norm(const Test &test) {
    Norm k = {};
    k.h = number(1, 4), k.w = number(1, 12), k.c = once_in(8) ? number(130, 1000) : some_channels();
    k.rms = once_in(2), k.has_second = once_in(2), k.epsilon = power(-40, -5);
    k.x = some_strides(k.w, k.c), k.s = some_strides(k.w, k.c), k.y = some_strides(k.w, k.c);
    auto x = floats(extent(k.x, k.h, k.w, k.c)), s = floats(extent(k.s, k.h, k.w, k.c)), gamma = floats(size_t(k.c)), beta = floats(size_t(k.c));
    k.gamma = gamma.data();
    if (once_in(2)) k.beta = beta.data();
    const void *in[SCRATCH + 1] = {x.data(), k.has_second ? s.data() : nullptr};
    tell("norm h %d w %d c %d second %d rms %d beta %d epsilon %g", k.h, k.w, k.c, k.has_second, k.rms, k.beta != nullptr, double(k.epsilon));
    test.compare<float>(&k, in, extent(k.y, k.h, k.w, k.c), some_share(k.h, 1), [&](size_t i, float must, float got) {
        const ptrdiff_t row = ptrdiff_t(i) / k.y.row, q = ptrdiff_t(i) % k.y.row / k.y.pixel, n = ptrdiff_t(i) % k.y.row % k.y.pixel;
        // The mean is off by a part of the mean magnitude, which the scale then enlarges.
        double sum = 0, size = 0, squares = 0;
        const auto v = [&](int m) { return double(x[size_t(row * k.x.row + q * k.x.pixel + m)] + (k.has_second ? s[size_t(row * k.s.row + q * k.s.pixel + m)] : 0)); };
        for (int m = 0; m < k.c; m++) sum += v(m), size += std::abs(v(m)), squares += v(m) * v(m);
        const double mean = k.rms ? 0 : sum / k.c, scale = 1 / std::sqrt(std::max(0.0, squares / k.c - mean * mean) + double(k.epsilon));
        const double at = (std::abs(v(int(n)) - mean) + size / k.c) * scale * double(std::abs(gamma[size_t(n)])) + double(k.beta ? std::abs(beta[size_t(n)]) : 0);
        return std::abs(double(got) - double(must)) <= of_sums(k.c) * at;
    });
}

void softmax(const Test &test) {
    Softmax k = {};
    k.h = number(1, 4), k.w = number(1, 12), k.c = some_channels();
    k.x = some_strides(k.w, k.c), k.y = some_strides(k.w, k.c);
    auto x = floats(extent(k.x, k.h, k.w, k.c));
    const float wide = power(-3, 6);
    const bool masked = once_in(3);
    for (size_t i = 0; i < x.size; i++) x[i] = masked && once_in(3) ? (once_in(2) ? -INFINITY : -10000) : x[i] * wide;
    const void *in[SCRATCH + 1] = {x.data()};
    tell("softmax h %d w %d c %d times %g masked %d", k.h, k.w, k.c, double(wide), masked);
    test.compare<float>(&k, in, extent(k.y, k.h, k.w, k.c), some_share(k.h, 1), [&](size_t, float must, float got) {
        if (std::isnan(must)) return std::isnan(got);  // nothing but −∞
        return std::abs(got - must) <= (of_sums(k.c) + FUNCTIONS) * double(must) + 2e-38;  // below, floats lose their digits
    });
}

void attention(const Test &test) {
    Attention k = {};
    k.queries = once_in(4) ? 1 : number(1, 40), k.keys = once_in(4) ? number(1, 4) : number(1, 70), k.heads = number(1, 4);
    k.size = once_in(3) ? number(1, 70) : one_of({1, 2, 8, 15, 16, 24, 32, 64}), k.value_size = once_in(2) ? k.size : number(1, 70);
    k.scale = once_in(4) ? 1 : 1 / std::sqrt(float(k.size));
    const auto step = [&](int size) { return ptrdiff_t(k.heads) * size + (once_in(2) ? number(0, 40) : 0); };
    k.q = step(k.size), k.k = step(k.size), k.v = step(k.value_size), k.y = step(k.value_size);
    k.has_bias = once_in(2);
    const bool of_heads = once_in(2), of_queries = once_in(2);
    k.bias_row = of_queries ? k.keys + (once_in(3) ? number(0, 9) : 0) : 0;
    k.bias_head = of_heads ? (of_queries ? k.queries * k.bias_row : k.keys) + (once_in(3) ? number(0, 9) : 0) : 0;
    const auto rows = [](int count, ptrdiff_t step, int size) { return size_t((count - 1) * step + size); };
    auto q = floats(rows(k.queries, k.q, k.heads * k.size)), keys = floats(rows(k.keys, k.k, k.heads * k.size)), v = floats(rows(k.keys, k.v, k.heads * k.value_size));
    auto bias = floats(size_t((k.heads - 1) * k.bias_head + (k.queries - 1) * k.bias_row + k.keys));
    const int masked = once_in(3) ? number(1, 3) : 0;
    for (size_t i = 0; masked && i < bias.size; i++)
        if (once_in(masked)) bias[i] = once_in(2) ? -INFINITY : -10000;
    const size_t columns = size_t(k.keys + 15) / 16 * 16, wide = size_t(k.value_size + 15) / 16 * 16;  // as program.cpp has it
    Exactly<float> scratch(columns * (size_t(k.size) + wide + 16));
    std::fill_n(scratch.data(), scratch.size, NAN);
    const void *in[SCRATCH + 1] = {q.data(), keys.data(), v.data(), k.has_bias ? bias.data() : nullptr, scratch.data()};
    tell("attention queries %d keys %d heads %d size %d values %d, scale %g, bias %d (%td, %td) masked %d", k.queries, k.keys, k.heads, k.size, k.value_size,
         double(k.scale), k.has_bias, k.bias_head, k.bias_row, masked);
    // What a score is off by, the weights of the values are, relatively.
    double most = 0;
    for (size_t i = 0; i < v.size; i++) most = std::max(most, double(std::abs(v[i])));
    const double score = 4.0 * 4.0 * k.size * double(k.scale) + 1, masks = k.has_bias && masked ? 10000 * LAST_BIT : 0;
    const double slack = most * (2 * (of_sums(k.size) * score + masks) + of_sums(k.keys) + FUNCTIONS);
    test.compare<float>(&k, in, rows(k.queries, k.y, k.heads * k.value_size), some_share(1, k.heads), [&](size_t, float must, float got) {
        return std::isnan(must) ? std::isnan(got) : std::abs(got - must) <= slack;
    });
}

void quantize_pixels(const Test &test) {
    QuantizePixels k = {};
    k.h = number(1, 4), k.w = number(1, 20), k.c = some_channels();
    k.x = some_strides(k.w, k.c), k.y = some_strides(k.w, k.c);
    some_bounds(k.zero, k.lo, k.hi);
    auto scale = floats(size_t(k.c + 15) / 16 * 16), x = floats(extent(k.x, k.h, k.w, k.c));
    const bool far = once_in(5);
    for (size_t i = 0; i < scale.size; i++) scale[i] = far ? power(-140, 120) : power(-10, 3);
    for (size_t i = 0; i < x.size; i++) {
        const float step = scale[i % size_t(k.x.row) % size_t(k.x.pixel) % scale.size];
        x[i] = float(once_in(10) ? number(-300, 300) + 0.5 : real(-300, 300)) * step;
        if (once_in(50)) x[i] = once_in(2) ? NAN : once_in(2) ? INFINITY : -INFINITY;
    }
    k.scale = scale.data();
    const void *in[SCRATCH + 1] = {x.data()};
    tell("quantize pixels h %d w %d c %d, zero %d lo %d hi %d", k.h, k.w, k.c, k.zero, k.lo, k.hi);
    test(&k, in, extent(k.y, k.h, k.w, k.c), some_share(k.h, 1));
}

void dequantize_pixels(const Test &test) {
    DequantizePixels k = {};
    k.h = number(1, 4), k.w = number(1, 20), k.c = some_channels();
    k.x = some_strides(k.w, k.c), k.y = some_strides(k.w, k.c);
    k.scale = power(-20, 5), k.zero = number(0, 255);
    auto x = codes(extent(k.x, k.h, k.w, k.c) + SLACK);
    const void *in[SCRATCH + 1] = {x.data()};
    tell("dequantize pixels h %d w %d c %d, scale %g zero %d", k.h, k.w, k.c, double(k.scale), k.zero);
    test.compare<float>(&k, in, extent(k.y, k.h, k.w, k.c), some_share(k.h, 1));
}

}  // namespace

const std::vector<Tested> TESTED_ON_FLOATS = {
    {Operator::CONV, "f32", conv<ConvF32, float>}, {Operator::CONV, "bf16", conv<ConvBF16, uint16_t>}, {Operator::DEPTHWISE, "f32", depthwise}, {Operator::POOL, "f32", pool},           {Operator::ELEMENTWISE, "f32", elementwise},
    {Operator::REDUCE, "f32", reduce}, {Operator::NORM, "f32", norm},           {Operator::SOFTMAX, "f32", softmax},     {Operator::ATTENTION, "f32", attention},
    {Operator::QUANTIZE, "pixels", quantize_pixels}, {Operator::DEQUANTIZE, "pixels", dequantize_pixels},
};
