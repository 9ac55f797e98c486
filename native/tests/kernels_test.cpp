// Every kernel of the table that this processor runs, against the scalar one: random shapes with the awkward ones among them. Codes must be the
// same bit for bit; kernels on floats are in kernels_floats_test.cpp.
//   kernels_test [rounds] [seed]
// Guards lie around the outputs; inputs end where the engine's may (64 bytes behind codes may be read), so that a sanitizer sees what goes too far.
#include "kernels_test.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>

#include "activate.h"

#ifdef HASTEN_TEST_EVEX
namespace hasten {
void conv_u8s8_avx2vnni_evex(const void *, const void *const *, void *, Share);
void depthwise_u8s8_avx2vnni_evex(const void *, const void *const *, void *, Share);
}  // namespace hasten
#endif

using namespace hasten;

static std::mt19937_64 random_bits;

int64_t between(int64_t lo, int64_t hi) { return lo + static_cast<int64_t>(random_bits() % static_cast<uint64_t>(hi - lo + 1)); }
int number(int lo, int hi) { return static_cast<int>(between(lo, hi)); }
bool once_in(int n) { return between(1, n) == 1; }
double real(double lo, double hi) { return lo + (hi - lo) * double(random_bits() >> 11) / double(UINT64_C(1) << 53); }
float power(double lo, double hi) { return float(std::exp2(real(lo, hi))); }

int one_of(std::initializer_list<int> values) { return values.begin()[between(0, int64_t(values.size()) - 1)]; }

int some_channels() { return once_in(3) ? number(1, 130) : one_of({1, 2, 3, 4, 7, 8, 10, 15, 16, 17, 31, 32, 33, 47, 48, 63, 64, 65, 96, 100, 127, 129}); }

Exactly<uint8_t> codes(size_t n) {
    Exactly<uint8_t> made(n);
    const int how = number(0, 5);
    for (size_t i = 0; i < n; i++) made[i] = uint8_t(how == 0 ? 255 : how == 1 ? 255 * number(0, 1) : number(0, 255));
    return made;
}

Exactly<float> floats(size_t n) {
    Exactly<float> made(n);
    const int how = number(0, 5);  // some behind a Relu, some far from zero
    for (size_t i = 0; i < n; i++) made[i] = float(how == 0 ? std::max(0.0, real(-1, 1)) : how == 1 ? real(2, 4) : real(-2, 2));
    return made;
}

Exactly<float> magnitudes(Exactly<float> &of) {
    Exactly<float> made(of.size);
    for (size_t i = 0; i < of.size; i++) made[i] = std::abs(of[i]);
    return made;
}

void some_bounds(int32_t &zero, int32_t &lo, int32_t &hi) {
    zero = once_in(2) ? one_of({0, 255, 128, 1, 254}) : number(0, 255);
    lo = 0, hi = 255;
    if (once_in(3)) lo = number(0, 255), hi = number(lo, 255);
    if (once_in(10)) lo = zero, hi = 255;
}

Share some_share(int rows, int blocks) {
    Share share = {0, rows, 0, blocks};
    if (once_in(3)) share.row = number(0, rows - 1), share.row_end = number(share.row + 1, rows);
    if (once_in(3)) share.block = number(0, blocks - 1), share.block_end = number(share.block + 1, blocks);
    return share;
}

Strides some_strides(int w, int c) {
    const int pixel = c + (once_in(3) ? number(0, 20) : 0);
    return {ptrdiff_t(w) * pixel + (once_in(3) ? number(0, 40) : 0), pixel};
}

size_t extent(Strides s, int h, int w, int c) { return size_t((h - 1) * s.row + (w - 1) * s.pixel + c); }

int some_activation() { return once_in(3) ? NO_ACTIVATION : number(0, ACTIVATIONS - 1); }

void some_parameters(int activation, float &a, float &b) {
    a = float(real(-1, 1)), b = float(real(-1, 1));
    if (activation == CLIP) a = once_in(2) ? 0 : a, b = once_in(2) ? INFINITY : once_in(2) ? 6 : std::max(a, b);
}

Range::Range(int activation, float a, float b, double value, double slack) {
    for (const int side : {-1, 0, 1}) {
        const float v = activate(activation, float(value + side * slack), a, b);
        if (std::isnan(v)) nan = true;
        else least = std::min(least, double(v)), most = std::max(most, double(v));
    }
    // Between the three, a function that has no derivative there can go a little further.
    least -= slack + FUNCTIONS * std::max(1.0, std::abs(least)), most += slack + FUNCTIONS * std::max(1.0, std::abs(most));
}

std::string what;
static int failures = 0, compared = 0;

template <class T>
void Test::compare(const void *arguments, const void *const *in, size_t count, Share share, const May<T> &may) const {
    const size_t bytes = count * sizeof(T);
    std::vector<uint8_t> before(bytes + 2 * GUARD);
    for (size_t i = 0; i < before.size(); i++) before[i] = uint8_t(i * 151 + 17);
    std::vector<uint8_t> expected = before;
    scalar(arguments, in, expected.data() + GUARD, share);
    if (!std::equal(before.begin(), before.begin() + GUARD, expected.begin()) || !std::equal(before.end() - GUARD, before.end(), expected.end() - GUARD)) {
        failures++;
        std::printf("the scalar kernel writes outside: %s\n", what.c_str());
        return;
    }
    for (const Row &row : rows) {
        std::vector<uint8_t> got = before;
        row.kernel(arguments, in, got.data() + GUARD, share);
        compared++;
        for (size_t at = 0; at < got.size(); at += sizeof(T)) {
            const auto same = [&](const std::vector<uint8_t> &one, const std::vector<uint8_t> &other) { return std::memcmp(&one[at], &other[at], sizeof(T)) == 0; };
            if (same(got, expected)) continue;
            T is, must;
            std::memcpy(&is, &got[at], sizeof is), std::memcpy(&must, &expected[at], sizeof must);
            if (may && !same(expected, before) && may((at - GUARD) / sizeof(T), must, is)) continue;
            failures++;
            std::printf("%s differs at %td of %zu (is %.9g, must be %.9g): %s\n", row.function, (ptrdiff_t(at) - ptrdiff_t(GUARD)) / ptrdiff_t(sizeof(T)), count,
                        double(is), double(must), what.c_str());
            break;
        }
    }
}
template void Test::compare(const void *, const void *const *, size_t, Share, const May<uint8_t> &) const;
template void Test::compare(const void *, const void *const *, size_t, Share, const May<float> &) const;

Exactly<float> Test::outputs(const void *arguments, const void *const *in, size_t count, Share share) const {
    Exactly<float> made(count);
    std::fill_n(made.data(), count, 0.0f);
    scalar(arguments, in, made.data(), share);
    return made;
}

namespace {

Exactly<int8_t> weights(size_t n) {
    Exactly<int8_t> made(n);
    const int how = number(0, 7);
    for (size_t i = 0; i < n; i++) made[i] = int8_t(how == 0 ? 127 : how == 1 ? -128 : how == 2 ? one_of({-128, 127}) : how == 3 ? number(-3, 3) : number(-128, 127));
    return made;
}

struct Ends {
    Exactly<int32_t> bias, factor;
    Exactly<float> scale;
    Exactly<uint8_t> shift;
    bool fits;

    Ends(size_t n, double products) : bias(n), factor(n), scale(n), shift(n) {
        const int how = number(0, 6);
        const double typical = 8 - std::log2(products * 3000 + 1);
        for (size_t i = 0; i < n; i++) {
            bias[i] = how == 0 ? one_of({INT32_MIN, INT32_MAX, 0}) : int32_t(between(-(int64_t(1) << 18), int64_t(1) << 18));
            scale[i] = how == 1 ? power(-149, 100) : how == 2 ? power(-40, 10) : power(typical - 3, typical + 4);
            if (how == 2 && once_in(2)) scale[i] = -scale[i];
            factor[i] = how == 3 ? one_of({INT32_MIN, INT32_MAX, 0, 1, -1}) : number(1 << 29, INT32_MAX);
            shift[i] = uint8_t(how == 3 || how == 4 ? number(1, 62) : std::min(62.0, 31 - typical + number(-4, 3)));
        }
        fits = true;  // as program.cpp has it
        for (size_t i = 0; i < n; i++) fits = fits && (products * 255 * 128 + std::abs(double(bias[i]))) * std::abs(double(scale[i])) < 2e9;
        fits = fits && !once_in(4);
    }
};

Residual some_residual(bool fixed) {
    Residual r = {1, once_in(2), 0, 255, 0, 0, 0, 0, 0, 0, 0};
    if (once_in(3)) r.lo = number(0, 255), r.hi = number(r.lo, 255);
    if (fixed) {
        r.shift = number(0, 30);
        const int most = once_in(2) ? 3 << 20 : 300;
        r.fa = number(-most, most), r.fb = number(-most, most), r.fc = number(-(1 << 28), 1 << 28);
        if (once_in(3)) r.fc = number(-(1 << 10), 1 << 10), r.shift = number(0, 12);
    } else if (once_in(4)) {
        r.ra = power(-30, 21), r.rb = -power(-30, 21), r.rc = power(-10, 28) * float(one_of({-1, 1}));
    } else {
        r.ra = power(-3, 1), r.rb = power(-3, 1), r.rc = float(real(-200, 200));
    }
    return r;
}

void conv(const Test &test) {
    Conv k = {};
    const int kernel_h = one_of({1, 1, 3, 3, 5, 7}), kernel_w = once_in(6) ? 7 : kernel_h == 1 ? 1 : kernel_h;
    const int stride_h = number(1, 2), stride_w = number(1, 2), dilation = once_in(5) ? 2 : 1;
    const bool gemm = once_in(6);
    k.h = gemm ? 1 : number(1, 4), k.w = gemm ? 1 : once_in(12) ? number(30, 70) : number(1, 30), k.c = once_in(20) ? number(130, 300) : some_channels();
    const int inputs = gemm ? number(1, 600) : one_of({1, 2, 3, 4, 5, 8, 13, 16, 24, 64}), pixel = inputs + (once_in(2) ? number(0, 9) : 0);
    const int in_w = (k.w - 1) * stride_w + (kernel_w - 1) * dilation + 1;
    const ptrdiff_t row = ptrdiff_t(in_w) * pixel + (once_in(2) ? number(0, 40) : 0);
    k.x = {row * stride_h, ptrdiff_t(pixel) * stride_w};
    std::vector<int32_t> segment;
    const bool runs = dilation == 1 && once_in(2);
    for (int i = 0; i < kernel_h; i++)
        for (int j = 0; j < (runs ? 1 : kernel_w); j++) segment.push_back(int32_t(i * dilation * row + j * dilation * pixel));
    k.segment = segment.data(), k.segments = int32_t(segment.size()), k.groups = ((runs ? kernel_w * pixel : inputs) + 3) / 4;
    const size_t reach = size_t((k.h - 1) * k.x.row + (k.w - 1) * k.x.pixel + segment.back() + 4 * k.groups);
    const int blocks = (k.c + 15) / 16;
    auto x = codes(reach + SLACK);
    auto w = weights(size_t(blocks) * k.segments * k.groups * 64);
    Ends ends(size_t(blocks) * 16, double(k.segments) * k.groups * 4);
    k.weights = w.data(), k.bias = ends.bias.data();
    k.finish = Finish(number(0, 4));
    const bool fixed = k.finish == CODES_FIXED || k.finish == VALUES_FIXED, values = k.finish == VALUES || k.finish == VALUES_FIXED;
    const bool ends_in_floats = k.finish == VALUES || k.finish == VALUE_CODES;
    if (fixed) k.factor = ends.factor.data(), k.shift = ends.shift.data();
    else k.scale = ends.scale.data(), k.fits = ends.fits;
    if (!values) some_bounds(k.zero, k.lo, k.hi);
    k.unit = power(-30, 2);
    const int y_pixel = k.c + (once_in(3) ? number(0, 20) : 0), r_pixel = k.c + (once_in(3) ? number(0, 20) : 0);
    k.y = {ptrdiff_t(k.w) * y_pixel + (once_in(3) ? number(0, 40) : 0), y_pixel};
    k.r = {ptrdiff_t(k.w) * r_pixel + (once_in(3) ? number(0, 40) : 0), r_pixel};
    auto r = codes(size_t((k.h - 1) * k.r.row + (k.w - 1) * k.r.pixel + k.c) + SLACK);
    const void *in[2] = {x.data(), nullptr};
    if (!ends_in_floats && !values && once_in(2)) k.add = some_residual(fixed), in[1] = r.data();
    auto beside = floats(extent(k.r, k.h, k.w, k.c)), bias = floats(size_t(blocks) * 16), step = floats(size_t(blocks) * 16);
    if (ends_in_floats) {
        k.end.activation = some_activation();
        some_parameters(k.end.activation, k.end.a, k.end.b);
        if (once_in(2)) k.end.bias = bias.data();
        if (once_in(2)) k.end.residual = 1, in[1] = beside.data();
        const float narrow = once_in(2) ? 1 : 1.0f / 128;  // to where activations bend
        for (size_t i = 0; i < step.size; i++) step[i] = power(-8, 0), ends.scale[i] *= narrow;
        k.step = step.data();
    }
    tell("conv h %d w %d c %d, inputs %d pixel %d, kernel %dx%d stride %dx%d dilation %d, finish %d fits %d zero %d lo %d hi %d, residual %d swapped %d, "
         "end %d %g %g bias %d residual %d",
         k.h, k.w, k.c, inputs, pixel, kernel_h, kernel_w, stride_h, stride_w, dilation, k.finish, k.fits, k.zero, k.lo, k.hi, k.add.present, k.add.swapped, k.end.activation, double(k.end.a),
         double(k.end.b), k.end.bias != nullptr, k.end.residual);
    const size_t count = extent(k.y, k.h, k.w, k.c);
    const Share share = some_share(k.h, blocks);
    if (k.end.activation == NO_ACTIVATION || k.end.activation == CLIP) return test(&k, in, count * (values ? 4 : 1), share);
    // The numbers before the activation are the same bit for bit.
    Conv plain = k;
    plain.finish = VALUES, plain.end.activation = NO_ACTIVATION;
    auto value = test.outputs(&plain, in, count, share);
    const auto range = [&](size_t i) { return Range(k.end.activation, k.end.a, k.end.b, double(value[i]), 0); };
    if (values) return test.compare<float>(&k, in, count, share, [&](size_t i, float, float got) { return range(i).holds(got); });
    test.compare<uint8_t>(&k, in, count, share, [&](size_t i, uint8_t, uint8_t got) {
        const Range of = range(i);
        const auto code = [&](double v) { return quantize(float(v), step[size_t(ptrdiff_t(i) % k.y.row % k.y.pixel)], k.zero, k.lo, k.hi); };
        return (of.nan && got == code(NAN)) || (got >= code(of.least) && got <= code(of.most));
    });
}

void depthwise(const Test &test) {
    Depthwise k = {};
    const int kernel = one_of({1, 3, 3, 3, 5, 7}), kernel_w = once_in(6) ? 3 : kernel, stride_h = number(1, 2), stride_w = number(1, 2), dilation = once_in(5) ? 2 : 1;
    k.h = number(1, 5), k.w = number(1, 30), k.c = some_channels();
    const int pixel = k.c + (once_in(3) ? number(0, 9) : 0), high = (kernel + 3) / 4 * 4;
    const ptrdiff_t row = ptrdiff_t((k.w - 1) * stride_w + (kernel_w - 1) * dilation + 1) * pixel + (once_in(2) ? number(0, 40) : 0);
    k.x = {row * stride_h, ptrdiff_t(pixel) * stride_w};
    std::vector<int32_t> tap;  // column by column, as lower/ops.py lays them
    for (int j = 0; j < kernel_w; j++)
        for (int i = 0; i < high; i++) tap.push_back(int32_t(j * dilation * pixel + std::min(i, kernel - 1) * dilation * row));
    if (once_in(8)) std::shuffle(tap.begin(), tap.end(), random_bits);
    k.tap = tap.data(), k.groups = int32_t(tap.size() / 4);
    if (k.groups == 3) {  // as program.cpp has it
        const ptrdiff_t column = ptrdiff_t{tap[4]} - tap[0];
        bool columns = column > 0;
        for (int i = 0; i < 12; i++) columns = columns && tap[size_t(i)] - tap[size_t(i % 4)] == i / 4 * column;
        k.slide = columns && k.x.pixel == column ? 1 : columns && k.x.pixel == 2 * column ? 2 : 0;
    }
    const int blocks = (k.c + 63) / 64;
    auto x = codes(size_t((k.h - 1) * k.x.row + (k.w - 1) * k.x.pixel + *std::max_element(tap.begin(), tap.end()) + blocks * 64));
    auto w = weights(size_t(blocks) * k.groups * 256);
    Ends ends(size_t(blocks) * 64, k.groups * 4);
    k.weights = w.data(), k.bias = ends.bias.data();
    k.finish = Finish(number(0, 1));
    if (k.finish == CODES_FIXED) k.factor = ends.factor.data(), k.shift = ends.shift.data();
    else k.scale = ends.scale.data(), k.fits = ends.fits;
    some_bounds(k.zero, k.lo, k.hi);
    const int y_pixel = k.c + (once_in(3) ? number(0, 20) : 0);
    k.y = {ptrdiff_t(k.w) * y_pixel + (once_in(3) ? number(0, 40) : 0), y_pixel};
    const void *in[2] = {x.data(), nullptr};
    tell("depthwise h %d w %d c %d pixel %d, kernel %dx%d stride %dx%d dilation %d slide %d, finish %d fits %d zero %d lo %d hi %d", k.h, k.w, k.c, pixel,
         kernel, kernel_w, stride_h, stride_w, dilation, k.slide, k.finish, k.fits, k.zero, k.lo, k.hi);
    test(&k, in, size_t((k.h - 1) * k.y.row + (k.w - 1) * k.y.pixel + k.c), some_share(k.h, blocks));
}

void add(const Test &test) {
    Add k = {};
    k.h = number(1, 4), k.w = number(1, 30), k.c = some_channels();
    k.fixed = once_in(2);
    k.sum = some_residual(k.fixed != 0), k.sum.swapped = 0;
    k.a = some_strides(k.w, k.c), k.b = some_strides(k.w, k.c), k.y = some_strides(k.w, k.c);
    if (once_in(2)) k.a = k.b = k.y = {ptrdiff_t(k.w) * k.c, k.c};
    auto a = codes(extent(k.a, k.h, k.w, k.c) + SLACK), b = codes(extent(k.b, k.h, k.w, k.c) + SLACK);
    const void *in[2] = {a.data(), b.data()};
    tell("add h %d w %d c %d fixed %d, %g %g %g, %d %d %d >> %d, lo %d hi %d", k.h, k.w, k.c, k.fixed, double(k.sum.ra), double(k.sum.rb), double(k.sum.rc),
         k.sum.fa, k.sum.fb, k.sum.fc, k.sum.shift, k.sum.lo, k.sum.hi);
    test(&k, in, extent(k.y, k.h, k.w, k.c), some_share(k.h, 1));
}

void pool(const Test &test) {
    Pool k = {};
    k.c = some_channels();
    const bool global = once_in(4);
    k.in_h = number(1, 12), k.in_w = number(1, 30);
    k.kernel_h = global ? k.in_h : number(1, 5), k.kernel_w = global ? k.in_w : number(1, 5), k.stride_h = number(1, 3), k.stride_w = number(1, 3);
    k.top = number(0, k.kernel_h - 1), k.left = number(0, k.kernel_w - 1);
    k.h = global ? 1 : (k.in_h + k.top - 1) / k.stride_h + 1, k.w = global ? 1 : (k.in_w + k.left - 1) / k.stride_w + 1;  // windows may reach beyond
    k.h = number(1, k.h), k.w = number(1, k.w);
    k.average = once_in(2), k.counts_padding = k.average && once_in(2);
    some_bounds(k.zero, k.lo, k.hi);
    k.x_zero = number(0, 255), k.x_scale = power(-10, 3), k.y_scale = once_in(5) ? power(-40, 20) : power(-10, 3);
    k.fixed = k.average && once_in(2), k.factor = once_in(5) ? one_of({INT32_MIN, INT32_MAX}) : number(1, INT32_MAX), k.shift = once_in(2) ? number(1, 62) : number(28, 36);
    k.x = some_strides(k.in_w, k.c), k.y = some_strides(k.w, k.c);
    auto x = codes(extent(k.x, k.in_h, k.in_w, k.c) + SLACK);
    const void *in[2] = {x.data(), nullptr};
    tell("pool of %dx%d to %dx%d, c %d, kernel %dx%d stride %dx%d pads %d %d, average %d padding %d fixed %d factor %d shift %d, zero %d lo %d hi %d", k.in_h,
         k.in_w, k.h, k.w, k.c, k.kernel_h, k.kernel_w, k.stride_h, k.stride_w, k.top, k.left, k.average, k.counts_padding, k.fixed, k.factor, k.shift, k.zero, k.lo, k.hi);
    test(&k, in, extent(k.y, k.h, k.w, k.c), some_share(k.h, 1));
}

void map(const Test &test) {
    Map k = {};
    k.h = number(1, 4), k.w = number(1, 30), k.c = some_channels();
    k.constant = once_in(4) ? number(0, 255) : -1;
    const int stride = number(1, 2);
    k.x = some_strides(k.w * stride, k.c), k.y = some_strides(k.w, k.c);
    if (once_in(2)) k.x = k.y = {ptrdiff_t(k.w) * stride * k.c, k.c};
    k.x.pixel *= stride;
    auto x = codes(extent(k.x, k.h, k.w, k.c) + SLACK);
    auto table = codes(256);
    if (once_in(2)) k.table = table.data();
    const void *in[2] = {k.constant < 0 ? x.data() : nullptr, nullptr};
    tell("map h %d w %d c %d stride %d constant %d table %d", k.h, k.w, k.c, stride, k.constant, k.table != nullptr);
    test(&k, in, extent(k.y, k.h, k.w, k.c), some_share(k.h, 1));
}

void quantize(const Test &test) {
    Quantize k = {};
    k.h = number(1, 4), k.w = number(1, 40), k.c = once_in(2) ? number(1, 4) : some_channels();
    if (once_in(4)) k.h = k.w = 1;
    k.scale = once_in(5) ? power(-140, 120) : power(-10, 3);
    some_bounds(k.zero, k.lo, k.hi);
    const int pixel = once_in(2) ? std::max(4, k.c) : k.c + (once_in(3) ? number(0, 5) : 0);
    k.widen = once_in(2);
    k.y = {ptrdiff_t(k.w) * pixel + (once_in(2) ? number(0, 20) : 0), pixel};
    Exactly<float> x(size_t(k.h) * k.w * k.c);
    for (size_t i = 0; i < x.size; i++) {
        x[i] = float(real(-300, 300)) * k.scale;
        if (once_in(10)) x[i] = (float(number(-300, 300)) + 0.5f) * k.scale;
        if (once_in(50)) x[i] = once_in(2) ? NAN : once_in(2) ? INFINITY : -INFINITY;
    }
    const void *in[2] = {x.data(), nullptr};
    tell("quantize h %d w %d c %d pixel %d widen %d, scale %g zero %d lo %d hi %d", k.h, k.w, k.c, pixel, k.widen, double(k.scale), k.zero, k.lo, k.hi);
    test(&k, in, size_t((k.h - 1) * k.y.row + k.w * k.y.pixel), some_share(k.h, 1));
}

void dequantize(const Test &test) {
    Dequantize k = {};
    k.h = number(1, 4), k.w = number(1, 30), k.c = some_channels();
    k.scale = power(-20, 5), k.zero = number(0, 255);
    k.x = some_strides(k.w, k.c);
    auto x = codes(extent(k.x, k.h, k.w, k.c) + SLACK);
    const void *in[2] = {x.data(), nullptr};
    tell("dequantize h %d w %d c %d", k.h, k.w, k.c);
    test(&k, in, size_t(k.h) * k.w * k.c * 4, some_share(k.h, 1));
}

const std::vector<Tested> TESTED = {
    {Operator::CONV, "u8s8", conv}, {Operator::DEPTHWISE, "u8s8", depthwise}, {Operator::ADD, "u8", add},
    {Operator::POOL, "u8", pool},   {Operator::MAP, "u8", map},               {Operator::QUANTIZE, "f32u8", quantize},
    {Operator::DEQUANTIZE, "u8f32", dequantize},
};

}  // namespace

int main(int argc, char **argv) {
    const int rounds = argc > 1 ? std::atoi(argv[1]) : 3000;
    const uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1;
    int count;
    const Row *table = hasten::rows(&count);
    std::vector<Row> rows(table, table + count);
#ifdef HASTEN_TEST_EVEX
    if (runs(AVX512VNNI)) {
        rows.push_back({Operator::CONV, "u8s8", AVX512VNNI, "6x16", "conv_u8s8_avx2vnni_evex", conv_u8s8_avx2vnni_evex});
        rows.push_back({Operator::DEPTHWISE, "u8s8", AVX512VNNI, "1x32", "depthwise_u8s8_avx2vnni_evex", depthwise_u8s8_avx2vnni_evex});
    }
#endif
    std::vector<Tested> all = TESTED;
    all.insert(all.end(), TESTED_ON_FLOATS.begin(), TESTED_ON_FLOATS.end());
    for (const Tested &tested : all) {
        Test test = {};
        Row alone = {};
        for (const Row &row : rows) {
            if (row.op != tested.op || std::strcmp(row.types, tested.types) != 0) continue;
            if (row.isa == SCALAR) alone = row;
            else if (runs(row.isa) && row.isa <= level()) test.rows.push_back(row);
        }
        test.scalar = alone.kernel;
        if (test.rows.empty()) test.rows.push_back(alone);  // then a sanitizer sees what it reads, at least
        for (int i = 0; i < rounds; i++) {
            random_bits.seed(seed * 1000003 + uint64_t(i));
            const int before = failures;
            tested.draw(test);
            if (failures != before) std::printf("    round %d, seed %llu\n", i, static_cast<unsigned long long>(seed));
            if (failures >= 20) return 1;
        }
        std::printf("as the scalar kernel:");
        for (const Row &row : test.rows) std::printf(" %s", row.function);
        std::printf("\n");
    }
    std::printf("%d comparisons at level %s, %d failures\n", compared, name(level()), failures);
    return failures ? 1 : 0;
}
