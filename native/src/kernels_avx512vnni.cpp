// AVX-512 with VNNI (and VBMI, which every such processor since Ice Lake has): 64 products and 16 sums in an instruction.
// No C++ library header and no inline function with external linkage may stand here: see kernels.h.
#include <immintrin.h>

#include "kernels.h"
#include "vector_avx512.h"
#include "vector_functions.h"

namespace hasten {
namespace {

using Vec = __m512i;

inline Vec load(const void *p) { return _mm512_loadu_si512(p); }

// Four neighbouring inputs, for all 16 channels of a block.
inline Vec four(const uint8_t *p) {
    int32_t v;
    __builtin_memcpy(&v, p, 4);
    return _mm512_set1_epi32(v);
}

inline Vec lanes_together() { return _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15); }

// Sixteen sums of a pixel as whole numbers near the code, before the zero point: exact, and small enough for what follows.
struct ToCodes {
    __m512 scale;
    Vec factor, shift_even, shift_odd, half_even, half_odd;
    bool fixed;

    ToCodes(bool whole, const float *scales, const int32_t *factors, const uint8_t *shifts, int n) : fixed(whole) {
        if (!fixed) {
            scale = _mm512_loadu_ps(scales + n);
            return;
        }
        factor = load(factors + n);
        const Vec shift = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(shifts + n)));
        const Vec one = _mm512_set1_epi64(1);
        shift_even = _mm512_and_si512(shift, _mm512_set1_epi64(0xffffffff));
        shift_odd = _mm512_srli_epi64(shift, 32);
        half_even = _mm512_sllv_epi64(one, _mm512_sub_epi64(shift_even, one));
        half_odd = _mm512_sllv_epi64(one, _mm512_sub_epi64(shift_odd, one));
    }

    // (sum · factor + half) >> shift in 64 bits, saturated to 32.
    Vec multiply_fixed(Vec sum) const {
        Vec even = _mm512_add_epi64(_mm512_mul_epi32(sum, factor), half_even);
        Vec odd = _mm512_add_epi64(_mm512_mul_epi32(_mm512_srli_epi64(sum, 32), _mm512_srli_epi64(factor, 32)), half_odd);
        const Vec most = _mm512_set1_epi64(INT32_MAX), least = _mm512_set1_epi64(INT32_MIN);
        even = _mm512_max_epi64(_mm512_min_epi64(_mm512_srav_epi64(even, shift_even), most), least);
        odd = _mm512_max_epi64(_mm512_min_epi64(_mm512_srav_epi64(odd, shift_odd), most), least);
        return _mm512_mask_blend_epi32(0xaaaa, even, _mm512_slli_epi64(odd, 32));
    }

    // The clamp of the definition stands before the rounding; here the packing saturates behind it, which gives the same codes as long as the
    // product fits 32 bits (`Conv::fits`). Else what is too large for them becomes the least of them: right below zero, not above.
    template <bool FITS>
    Vec whole(Vec sum) const {
        if (!FITS && fixed) return multiply_fixed(sum);
        const __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), scale);
        return _mm512_cvtps_epi32(FITS ? product : _mm512_min_ps(product, _mm512_set1_ps(2147483520.0f)));
    }
};

// The codes of a sum that goes into another sum, in float32: the definition word for word.
struct Codes {
    __m512 scale, low, high, zero;
    Codes(const Conv &k, __m512 scales) : scale(scales) {
        low = _mm512_set1_ps(static_cast<float>(k.lo - k.zero)), high = _mm512_set1_ps(static_cast<float>(k.hi - k.zero));
        zero = _mm512_set1_ps(static_cast<float>(k.zero));
    }
    __m512 operator()(Vec sum) const {
        const __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), scale);
        return _mm512_add_ps(_mm512_roundscale_ps(_mm512_min_ps(_mm512_max_ps(product, low), high), 0), zero);
    }
};

// Four vectors of whole numbers to codes: + zero with saturation to 16 bits, then to 8. The bytes of vector i end in 128-bit lane i.
// `bare`: the zero point is 0 and every code may occur, so that the saturation is all there is to do.
struct Packed {
    Vec zero, lo, hi;
    bool bare;
    Packed(int z, int least, int most) : bare(z == 0 && least == 0 && most == 255) {
        zero = _mm512_set1_epi16(static_cast<int16_t>(z));
        lo = _mm512_set1_epi8(static_cast<char>(least)), hi = _mm512_set1_epi8(static_cast<char>(most));
    }
    Vec bytes(Vec a, Vec b, Vec c, Vec d) const {
        const Vec ab = _mm512_packs_epi32(a, b), cd = _mm512_packs_epi32(c, d);
        if (bare) return _mm512_packus_epi16(ab, cd);
        return _mm512_min_epu8(_mm512_max_epu8(_mm512_packus_epi16(_mm512_adds_epi16(ab, zero), _mm512_adds_epi16(cd, zero)), lo), hi);
    }
    Vec operator()(Vec a, Vec b, Vec c, Vec d) const { return _mm512_permutexvar_epi32(lanes_together(), bytes(a, b, c, d)); }
};

// Codes of 16 channels as 32-bit numbers.
inline Vec widen(const uint8_t *p, __mmask16 mask) { return _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, p)); }

struct Sum {
    __m512 ra, rb, rc;
    Vec fa, fb, fc;
    __m128i shift;
    bool swapped;

    explicit Sum(const Residual &s) : shift(_mm_cvtsi32_si128(s.shift)), swapped(s.swapped != 0) {
        ra = _mm512_set1_ps(s.ra), rb = _mm512_set1_ps(s.rb), rc = _mm512_set1_ps(s.rc);
        fa = _mm512_set1_epi32(s.fa), fb = _mm512_set1_epi32(s.fb), fc = _mm512_set1_epi32(s.fc);
    }
    Vec operator()(__m512 code, Vec other) const {
        const __m512 beside = _mm512_cvtepi32_ps(other);
        return _mm512_cvtps_epi32(swapped ? _mm512_fmadd_ps(beside, ra, _mm512_fmadd_ps(code, rb, rc))
                                          : _mm512_fmadd_ps(code, ra, _mm512_fmadd_ps(beside, rb, rc)));
    }
    Vec fixed(Vec code, Vec other) const {
        const Vec a = swapped ? other : code, b = swapped ? code : other;
        return _mm512_sra_epi32(_mm512_add_epi32(_mm512_add_epi32(_mm512_mullo_epi32(a, fa), _mm512_mullo_epi32(b, fb)), fc), shift);
    }
};

inline __mmask16 channels_left(int c, int n) { return static_cast<__mmask16>(c - n >= 16 ? 0xffff : (1 << (c - n)) - 1); }

// How a tile ends, known where it is compiled: the common ways stay in registers.
enum End { PLAIN, WITH_RESIDUAL, ANY };

inline End end_of(const Conv &k) { return k.finish != CODES || !k.fits ? ANY : k.add.present ? WITH_RESIDUAL : PLAIN; }

// The lanes of four packed vectors to where they belong: four pixels' 16 channels (V = 1), or two pixels' 32 (V = 2).
template <int V>
[[gnu::always_inline]] inline void store_lanes(uint8_t *y, ptrdiff_t pixel, Vec codes, int pixels, int channels) {
    if (V == 2) {
        const __m256i part[2] = {_mm512_castsi512_si256(codes), _mm512_extracti64x4_epi64(codes, 1)};
        const __mmask32 mask = channels >= 32 ? ~0u : (1u << channels) - 1;
#pragma GCC unroll 2
        for (int i = 0; i < pixels; i++) {
            if (channels >= 32)
                _mm256_storeu_si256(reinterpret_cast<__m256i *>(y + i * pixel), part[i]);
            else
                _mm256_mask_storeu_epi8(y + i * pixel, mask, part[i]);
        }
        return;
    }
    const __m128i part[4] = {_mm512_castsi512_si128(codes), _mm512_extracti32x4_epi32(codes, 1), _mm512_extracti32x4_epi32(codes, 2),
                             _mm512_extracti32x4_epi32(codes, 3)};
    const __mmask16 mask = channels_left(channels, 0);
#pragma GCC unroll 4
    for (int i = 0; i < pixels; i++) {
        if (channels >= 16)
            _mm_storeu_si128(reinterpret_cast<__m128i *>(y + i * pixel), part[i]);
        else
            _mm_mask_storeu_epi8(y + i * pixel, mask, part[i]);
    }
}

// whole(v, q): the whole numbers that stand for block v of pixel q. Four vectors at a time become codes and are stored.
template <int Q, int V, class Whole>
[[gnu::always_inline]] inline void store_codes(const Whole &whole, const Packed &packed, uint8_t *y, ptrdiff_t pixel, int channels) {
    constexpr int AT_ONCE = 4 / V;
    const Vec none = _mm512_setzero_si512();
#pragma GCC unroll 16
    for (int q = 0; q < Q; q += AT_ONCE) {
        Vec v[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) v[i] = q + i / V < Q ? whole(i % V, q + i / V) : none;
        store_lanes<V>(y + q * pixel, pixel, packed(v[0], v[1], v[2], v[3]), Q - q < AT_ONCE ? Q - q : AT_ONCE, channels);
    }
}

// The sums of Q pixels and V blocks from channel n on, finished and stored.
template <int Q, int V, End END>
[[gnu::always_inline]] inline void finish(const Conv &k, const Vec (*sums)[Q], int n, const uint8_t *r, void *out, ptrdiff_t at) {
    const int channels = k.c - n;
    const bool fixed = END == ANY && (k.finish == CODES_FIXED || k.finish == VALUES_FIXED);
    const ToCodes first(fixed, k.scale, k.factor, k.shift, n), second(fixed, k.scale, k.factor, k.shift, n + 16 * (V - 1));
    const auto of = [&](int v) -> const ToCodes & { return v ? second : first; };
    if (END == ANY && k.finish == VALUES_FIXED) {
        float *y = static_cast<float *>(out) + at;
        for (int v = 0; v < V; v++)
            for (int q = 0; q < Q; q++)
                _mm512_mask_storeu_ps(y + q * k.y.pixel + 16 * v, channels_left(channels, 16 * v),
                                      _mm512_mul_ps(_mm512_cvtepi32_ps(of(v).multiply_fixed(sums[v][q])), _mm512_set1_ps(k.unit)));
        return;
    }
    if (END == ANY && (k.finish == VALUES || k.finish == VALUE_CODES)) {
        const float *residual = reinterpret_cast<const float *>(r);
        const auto value = [&](int v, int q) {
            const Floats product = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[v][q]), of(v).scale);
            const int channel = n + 16 * v;
            return begin_end(k.end, product, channel, residual ? residual + q * k.r.pixel + channel : residual, channels_left(k.c, channel));
        };
        if (k.finish == VALUES) {
            float *y = static_cast<float *>(out) + at;
            for (int v = 0; v < V; v++)
                for (int q = 0; q < Q; q++) store(y + q * k.y.pixel + 16 * v, value(v, q), channels_left(channels, 16 * v));
            if (!ended(k.end)) end_rows(k.end, y, k.y.pixel, Q, channels < 16 * V ? channels : 16 * V);
        } else {
            alignas(64) float values[Q * V * 16];
            for (int v = 0; v < V; v++)
                for (int q = 0; q < Q; q++) store(values + (q * V + v) * 16, value(v, q));
            rows_to_codes(k, values, 16 * V, Q, n, static_cast<uint8_t *>(out) + at);
        }
        return;
    }
    uint8_t *y = static_cast<uint8_t *>(out) + at;
    if (END == PLAIN || (END == ANY && !k.add.present)) {
        const auto whole = [&](int v, int q) { return of(v).template whole<END != ANY>(sums[v][q]); };
        store_codes<Q, V>(whole, Packed(k.zero, k.lo, k.hi), y, k.y.pixel, channels);
        return;
    }
    const Sum sum(k.add);
    const auto other = [&](int v, int q) { return widen(r + q * k.r.pixel + n + 16 * v, channels_left(channels, 16 * v)); };
    const Packed packed(0, k.add.lo, k.add.hi);
    if (fixed) {
        const Vec zero = _mm512_set1_epi32(k.zero), lo = _mm512_set1_epi32(k.lo - k.zero), hi = _mm512_set1_epi32(k.hi - k.zero);
        const auto whole = [&](int v, int q) {
            const Vec code = _mm512_min_epi32(_mm512_max_epi32(of(v).multiply_fixed(sums[v][q]), lo), hi);
            return sum.fixed(_mm512_add_epi32(code, zero), other(v, q));
        };
        store_codes<Q, V>(whole, packed, y, k.y.pixel, channels);
    } else {
        const Codes codes[2] = {Codes(k, first.scale), Codes(k, second.scale)};
        const auto whole = [&](int v, int q) { return sum(codes[v](sums[v][q]), other(v, q)); };
        store_codes<Q, V>(whole, packed, y, k.y.pixel, channels);
    }
}

// Q pixels of one row by 16 V channels. Three pixels share a base register: x86 addresses reach base, base + step and base + 2 step.
template <int Q, int V, End END>
void tile(const Conv &k, const uint8_t *x, int n, const uint8_t *r, void *y, ptrdiff_t at) {
    Vec sums[V][Q];
    for (int v = 0; v < V; v++)
        for (int q = 0; q < Q; q++) sums[v][q] = load(k.bias + n + 16 * v);
    const ptrdiff_t step = k.x.pixel, panel = static_cast<ptrdiff_t>(k.segments) * k.groups * 64;
    const int8_t *w = k.weights + n / 16 * panel;
    for (int s = 0; s < k.segments; s++) {
        const uint8_t *base[(Q + 2) / 3];
        for (int b = 0; b < (Q + 2) / 3; b++) base[b] = x + k.segment[s] + 3 * b * step;
#pragma GCC unroll 1
        for (int g = 0; g < k.groups; g++, w += 64) {
            Vec weights[V];
            for (int v = 0; v < V; v++) weights[v] = load(w + v * panel);
#pragma GCC unroll 16
            for (int q = 0; q < Q; q++) {
                const Vec inputs = four(base[q / 3] + q % 3 * step + 4 * g);
                for (int v = 0; v < V; v++) sums[v][q] = _mm512_dpbusd_epi32(sums[v][q], inputs, weights[v]);
            }
        }
    }
    finish<Q, V, END>(k, sums, n, r, y, at);
}

// One pixel (a Gemm of one row): V blocks at once, so that enough sums are under way and each input is read once.
template <int V>
void one_pixel(const Conv &k, const uint8_t *x, int n, const uint8_t *r, void *y, ptrdiff_t at) {
    Vec sums[V], more[V];
    for (int v = 0; v < V; v++) sums[v] = load(k.bias + n + 16 * v), more[v] = _mm512_setzero_si512();
    const ptrdiff_t panel = static_cast<ptrdiff_t>(k.segments) * k.groups * 64;
    const int8_t *w = k.weights + n / 16 * panel;
    for (int s = 0; s < k.segments; s++) {
        const uint8_t *from = x + k.segment[s];
        int g = 0;
        for (; g + 2 <= k.groups; g += 2, w += 128) {
            const Vec a = four(from + 4 * g), b = four(from + 4 * g + 4);
            for (int v = 0; v < V; v++) {
                sums[v] = _mm512_dpbusd_epi32(sums[v], a, load(w + v * panel));
                more[v] = _mm512_dpbusd_epi32(more[v], b, load(w + v * panel + 64));
            }
        }
        for (; g < k.groups; g++, w += 64)
            for (int v = 0; v < V; v++) sums[v] = _mm512_dpbusd_epi32(sums[v], four(from + 4 * g), load(w + v * panel));
    }
    for (int v = 0; v < V; v++) {
        const Vec sum[1][1] = {{_mm512_add_epi32(sums[v], more[v])}};
        finish<1, 1, ANY>(k, sum, n + 16 * v, r, y, at + 16 * v);
    }
}

using Tile = void (*)(const Conv &, const uint8_t *, int, const uint8_t *, void *, ptrdiff_t);

constexpr int WIDE = 14, NARROW = 16;  // pixels of a tile of 32 channels (28 sums, 2 weights, 1 input: 31 registers), of 16 channels

template <int V, End END>
constexpr Tile TILES[NARROW + 1] = {
    nullptr,         tile<1, V, END>, tile<2, V, END>,  tile<3, V, END>,  tile<4, V, END>,  tile<5, V, END>,
    tile<6, V, END>, tile<7, V, END>, tile<8, V, END>,  tile<9, V, END>,  tile<10, V, END>, tile<11, V, END>,
    tile<12, V, END>, tile<13, V, END>, tile<14, V, END>, V == 1 ? tile<15, 1, END> : nullptr, V == 1 ? tile<16, 1, END> : nullptr};
constexpr const Tile *TILES_BY_END[3][2] = {{TILES<1, PLAIN>, TILES<2, PLAIN>}, {TILES<1, WITH_RESIDUAL>, TILES<2, WITH_RESIDUAL>}, {TILES<1, ANY>, TILES<2, ANY>}};
constexpr Tile ONE_PIXEL[9] = {nullptr,      one_pixel<1>, one_pixel<2>, one_pixel<3>, one_pixel<4>,
                               one_pixel<5>, one_pixel<6>, one_pixel<7>, one_pixel<8>};

constexpr ptrdiff_t WEIGHTS_AT_HAND = 256 << 10;  // bytes

// A row of outputs of one or two blocks, in tiles that differ by a pixel at most.
inline void blocks_of_row(const Conv &k, const uint8_t *x, const uint8_t *r, void *y, int row, int block, int blocks) {
    const Tile *const of_width = TILES_BY_END[end_of(k)][blocks - 1];
    const int widest = blocks == 2 ? WIDE : NARROW, tiles = (k.w + widest - 1) / widest;
    for (int t = 0, q = 0; t < tiles; t++) {
        const int pixels = (k.w - q) / (tiles - t);
        const ptrdiff_t beside = (row * k.r.row + q * k.r.pixel) * (k.end.residual ? 4 : 1);
        of_width[pixels](k, x + row * k.x.row + q * k.x.pixel, block * 16, r ? r + beside : r, y,
                         row * k.y.row + q * k.y.pixel + block * 16);
        q += pixels;
    }
}

}  // namespace

void conv_u8s8_avx512vnni(const void *arguments, const void *const *in, void *out, Share share) {
    const Conv &k = *static_cast<const Conv *>(arguments);
    const uint8_t *x = static_cast<const uint8_t *>(in[0]);
    const uint8_t *r = static_cast<const uint8_t *>(in[1]);
    if (k.w == 1 && share.row_end - share.row == 1) {
        const uint8_t *from = x + share.row * k.x.row;
        for (int block = share.block; block < share.block_end;) {
            const int blocks = share.block_end - block < 8 ? share.block_end - block : 8;
            ONE_PIXEL[blocks](k, from, block * 16, r ? r + share.row * k.r.row * (k.end.residual ? 4 : 1) : r, out, share.row * k.y.row + block * 16);
            block += blocks;
        }
        return;
    }
    // Weights that fit the second-level cache are read again for every row, so that a row's outputs are finished together; larger ones once.
    const ptrdiff_t weights = static_cast<ptrdiff_t>(share.block_end - share.block) * k.segments * k.groups * 64;
    const int rows_at_once = weights <= WEIGHTS_AT_HAND ? 1 : share.row_end - share.row;
    for (int row = share.row; row < share.row_end; row += rows_at_once)
        for (int block = share.block; block < share.block_end; block += 2)
            for (int i = row; i < row + rows_at_once; i++) blocks_of_row(k, x, r, out, i, block, share.block_end - block < 2 ? 1 : 2);
}

namespace {

// Bytes of four taps, interleaved for dpbusd: vector v holds channels 16 i + 4 v … + 3 of each run i of 16, four taps each.
struct Interleaved {
    Vec v[4];
    Interleaved(Vec a, Vec b, Vec c, Vec d) {
        const Vec ab_lo = _mm512_unpacklo_epi8(a, b), ab_hi = _mm512_unpackhi_epi8(a, b);
        const Vec cd_lo = _mm512_unpacklo_epi8(c, d), cd_hi = _mm512_unpackhi_epi8(c, d);
        v[0] = _mm512_unpacklo_epi16(ab_lo, cd_lo), v[1] = _mm512_unpackhi_epi16(ab_lo, cd_lo);
        v[2] = _mm512_unpacklo_epi16(ab_hi, cd_hi), v[3] = _mm512_unpackhi_epi16(ab_hi, cd_hi);
    }
};

inline __mmask64 bytes_left(int c, int n) { return c - n >= 64 ? ~UINT64_C(0) : (UINT64_C(1) << (c - n)) - 1; }

// scale, factor, shift and bias of depthwise layers are packed in the order of the interleaved vectors, so they load as they lie.
struct DepthwiseFinish {
    ToCodes to_codes[4];
    Vec bias[4];
    Packed packed;
    bool fits;
    DepthwiseFinish(const Depthwise &k, int n)
        : to_codes{at(k, n), at(k, n + 16), at(k, n + 32), at(k, n + 48)}, packed(k.zero, k.lo, k.hi), fits(k.fits && k.finish == CODES) {
        for (int v = 0; v < 4; v++) bias[v] = load(k.bias + n + 16 * v);
    }
    static ToCodes at(const Depthwise &k, int n) { return {k.finish == CODES_FIXED, k.scale, k.factor, k.shift, n}; }
    Vec operator()(const Vec *sums) const {
        if (fits)
            return packed.bytes(to_codes[0].whole<true>(sums[0]), to_codes[1].whole<true>(sums[1]), to_codes[2].whole<true>(sums[2]),
                                to_codes[3].whole<true>(sums[3]));
        return packed.bytes(to_codes[0].whole<false>(sums[0]), to_codes[1].whole<false>(sums[1]), to_codes[2].whole<false>(sums[2]),
                            to_codes[3].whole<false>(sums[3]));
    }
};

}  // namespace

namespace {

constexpr ptrdiff_t IMAGE_AT_HAND = 128 << 10;  // bytes

inline Interleaved column(const uint8_t *from, const int32_t *tap) {
    return {load(from + tap[0]), load(from + tap[1]), load(from + tap[2]), load(from + tap[3])};
}

inline void add_column(Vec *sums, const Interleaved &in, const int8_t *weights) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; v++) sums[v] = _mm512_dpbusd_epi32(sums[v], in.v[v], load(weights + v * 64));
}

// A row of outputs under a window of three columns that moves by `S` of them: the columns that stay are kept interleaved.
template <int S>
inline void slide(const Depthwise &k, const uint8_t *from, const int8_t *weights, const DepthwiseFinish &finished, uint8_t *y, __mmask64 mask) {
    Interleaved a = column(from, k.tap), b = column(from, k.tap + 4);
    for (int q = 0; q < k.w; q++, from += k.x.pixel, y += k.y.pixel) {
        const Interleaved c = column(from, k.tap + 8);
        Vec sums[4] = {finished.bias[0], finished.bias[1], finished.bias[2], finished.bias[3]};
        add_column(sums, a, weights), add_column(sums, b, weights + 256), add_column(sums, c, weights + 512);
        _mm512_mask_storeu_epi8(y, mask, finished(sums));
        a = S == 1 ? b : c;
        if (S == 1)
            b = c;
        else if (q + 1 < k.w)
            b = column(from + k.x.pixel, k.tap + 4);
    }
}

}  // namespace

void depthwise_u8s8_avx512vnni(const void *arguments, const void *const *in, void *out, Share share) {
    const Depthwise &k = *static_cast<const Depthwise *>(arguments);
    const uint8_t *x = static_cast<const uint8_t *>(in[0]);
    uint8_t *y = static_cast<uint8_t *>(out);
    // Of images that exceed the first-level cache by far, all channels of a row together, so that no line is fetched twice.
    const ptrdiff_t bytes = static_cast<ptrdiff_t>(share.row_end - share.row) * k.w * k.c;
    const int rows_at_once = bytes > IMAGE_AT_HAND ? 1 : share.row_end - share.row;
    for (int first = share.row; first < share.row_end; first += rows_at_once) {
        for (int block = share.block; block < share.block_end; block++) {
            const int n = block * 64;
            const __mmask64 mask = bytes_left(k.c, n);
            const DepthwiseFinish finished(k, n);
            const int8_t *weights = k.weights + static_cast<ptrdiff_t>(block) * k.groups * 256;
            for (int row = first; row < first + rows_at_once; row++) {
                const uint8_t *from = x + row * k.x.row + n;
                uint8_t *to = y + row * k.y.row + n;
                if (k.slide) {
                    (k.slide == 1 ? slide<1> : slide<2>)(k, from, weights, finished, to, mask);
                    continue;
                }
                for (int q = 0; q < k.w; q++, from += k.x.pixel, to += k.y.pixel) {
                    Vec sums[4] = {finished.bias[0], finished.bias[1], finished.bias[2], finished.bias[3]};
                    for (int g = 0; g < k.groups; g++) add_column(sums, column(from, k.tap + 4 * g), weights + g * 256);
                    _mm512_mask_storeu_epi8(to, mask, finished(sums));
                }
            }
        }
    }
}

void add_u8_avx512vnni(const void *arguments, const void *const *in, void *out, Share share) {
    const Add &k = *static_cast<const Add *>(arguments);
    const uint8_t *a = static_cast<const uint8_t *>(in[0]), *b = static_cast<const uint8_t *>(in[1]);
    uint8_t *y = static_cast<uint8_t *>(out);
    const Sum sum(k.sum);
    const Vec lo = _mm512_set1_epi32(k.sum.lo), hi = _mm512_set1_epi32(k.sum.hi);
    for (int row = share.row; row < share.row_end; row++) {
        for (int q = 0; q < k.w; q++) {
            for (int n = 0; n < k.c; n += 16) {
                const __mmask16 mask = channels_left(k.c, n);
                const Vec one = widen(a + row * k.a.row + q * k.a.pixel + n, mask), other = widen(b + row * k.b.row + q * k.b.pixel + n, mask);
                const Vec v = k.fixed ? sum.fixed(one, other) : sum(_mm512_cvtepi32_ps(one), other);
                const Vec code = _mm512_min_epi32(_mm512_max_epi32(v, lo), hi);
                _mm_mask_storeu_epi8(y + row * k.y.row + q * k.y.pixel + n, mask, _mm512_cvtepi32_epi8(code));
            }
        }
    }
}

void pool_u8_avx512vnni(const void *arguments, const void *const *in, void *out, Share share) {
    const Pool &k = *static_cast<const Pool *>(arguments);
    const uint8_t *x = static_cast<const uint8_t *>(in[0]);
    uint8_t *y = static_cast<uint8_t *>(out);
    for (int row = share.row; row < share.row_end; row++) {
        const int up = row * k.stride_h - k.top;
        const int first = up < 0 ? 0 : up, last = up + k.kernel_h > k.in_h ? k.in_h : up + k.kernel_h;
        for (int q = 0; q < k.w; q++) {
            const int back = q * k.stride_w - k.left;
            const int begin = back < 0 ? 0 : back, end = back + k.kernel_w > k.in_w ? k.in_w : back + k.kernel_w;
            uint8_t *to = y + row * k.y.row + q * k.y.pixel;
            if (!k.average) {
                for (int n = 0; n < k.c; n += 64) {
                    const __mmask64 mask = bytes_left(k.c, n);
                    Vec most = _mm512_setzero_si512();
                    for (int i = first; i < last; i++)
                        for (int j = begin; j < end; j++)
                            most = _mm512_max_epu8(most, _mm512_maskz_loadu_epi8(mask, x + i * k.x.row + j * k.x.pixel + n));
                    _mm512_mask_storeu_epi8(to + n, mask, most);
                }
                continue;
            }
            const int inside = (last - first) * (end - begin), count = k.counts_padding ? k.kernel_h * k.kernel_w : inside;
            float scales[16];
            int32_t factors[16];
            uint8_t shifts[16];
            for (int i = 0; i < 16; i++) {
                scales[i] = k.x_scale / (k.y_scale * static_cast<float>(count));
                factors[i] = k.factor;
                shifts[i] = static_cast<uint8_t>(k.shift);
            }
            const ToCodes to_codes(k.fixed != 0, scales, factors, shifts, 0);
            const Vec zero = _mm512_set1_epi32(k.zero), lo = _mm512_set1_epi32(k.lo - k.zero), hi = _mm512_set1_epi32(k.hi - k.zero);
            for (int n = 0; n < k.c; n += 16) {
                const __mmask16 mask = channels_left(k.c, n);
                Vec sum = _mm512_set1_epi32(-inside * k.x_zero);
                for (int i = first; i < last; i++)
                    for (int j = begin; j < end; j++) sum = _mm512_add_epi32(sum, widen(x + i * k.x.row + j * k.x.pixel + n, mask));
                const Vec code = _mm512_add_epi32(_mm512_min_epi32(_mm512_max_epi32(to_codes.whole<false>(sum), lo), hi), zero);
                _mm_mask_storeu_epi8(to + n, mask, _mm512_cvtepi32_epi8(code));
            }
        }
    }
}

void map_u8_avx512vnni(const void *arguments, const void *const *in, void *out, Share share) {
    const Map &k = *static_cast<const Map *>(arguments);
    const uint8_t *x = static_cast<const uint8_t *>(in[0]);
    uint8_t *y = static_cast<uint8_t *>(out);
    Vec table[4];
    for (int i = 0; i < 4; i++) table[i] = k.table ? load(k.table + 64 * i) : _mm512_setzero_si512();
    for (int row = share.row; row < share.row_end; row++) {
        for (int q = 0; q < k.w; q++) {
            for (int n = 0; n < k.c; n += 64) {
                const __mmask64 mask = bytes_left(k.c, n);
                Vec code = _mm512_set1_epi8(static_cast<char>(k.constant));
                if (k.constant < 0) code = _mm512_maskz_loadu_epi8(mask, x + row * k.x.row + q * k.x.pixel + n);
                if (k.constant < 0 && k.table) {  // the lower seven bits choose within two vectors each, the highest between the pairs
                    const Vec below = _mm512_permutex2var_epi8(table[0], code, table[1]), above = _mm512_permutex2var_epi8(table[2], code, table[3]);
                    code = _mm512_mask_blend_epi8(_mm512_movepi8_mask(code), below, above);
                }
                _mm512_mask_storeu_epi8(y + row * k.y.row + q * k.y.pixel + n, mask, code);
            }
        }
    }
}

void quantize_f32u8_avx512vnni(const void *arguments, const void *const *in, void *out, Share share) {
    const Quantize &k = *static_cast<const Quantize *>(arguments);
    const float *x = static_cast<const float *>(in[0]);
    uint8_t *y = static_cast<uint8_t *>(out);
    const __m512 scale = _mm512_set1_ps(k.scale);
    const __m512 low = _mm512_set1_ps(static_cast<float>(k.lo - k.zero)), high = _mm512_set1_ps(static_cast<float>(k.hi - k.zero));
    const Vec zero = _mm512_set1_epi32(k.zero);
    const auto codes = [&](const float *from, __mmask16 mask) {
        const __m512 v = _mm512_div_ps(_mm512_maskz_loadu_ps(mask, from), scale);
        return _mm512_add_epi32(_mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(v, low), high)), zero);
    };
    const ptrdiff_t plane = static_cast<ptrdiff_t>(k.h) * k.w;
    for (int row = share.row; row < share.row_end; row++) {
        const float *from = x + static_cast<ptrdiff_t>(row) * k.w;
        uint8_t *to = y + row * k.y.row;
        if (k.h == 1 && k.w == 1) {  // a vector: its channels lie together
            for (int n = 0; n < k.c; n += 16) {
                const __mmask16 mask = channels_left(k.c, n);
                _mm_mask_storeu_epi8(to + n, mask, _mm512_cvtepi32_epi8(codes(x + n, mask)));
            }
            for (ptrdiff_t n = k.c; k.widen && n < k.y.pixel; n++) to[n] = static_cast<uint8_t>(k.zero);
        } else if (k.c == 1 && k.y.pixel == 1) {
            for (int q = 0; q < k.w; q += 16) {
                const __mmask16 mask = channels_left(k.w, q);
                _mm_mask_storeu_epi8(to + q, mask, _mm512_cvtepi32_epi8(codes(from + q, mask)));
            }
        } else if (k.c <= 4 && k.y.pixel == 4 && (k.c == 4 || k.widen)) {  // up to four planes: a pixel is one 32-bit word
            for (int q = 0; q < k.w; q += 16) {
                const __mmask16 mask = channels_left(k.w, q);
                Vec pixels = _mm512_setzero_si512();
                for (int n = 0; n < 4; n++) {
                    const Vec code = n < k.c ? codes(from + n * plane + q, mask) : zero;
                    pixels = _mm512_or_si512(pixels, _mm512_sll_epi32(code, _mm_cvtsi32_si128(8 * n)));
                }
                _mm512_mask_storeu_epi32(to + 4 * q, mask, pixels);
            }
        } else {
            for (int n = 0; n < k.c; n++) {
                for (int q = 0; q < k.w; q += 16) {
                    const __mmask16 mask = channels_left(k.w, q);
                    uint8_t sixteen[16];
                    _mm_storeu_si128(reinterpret_cast<__m128i *>(sixteen), _mm512_cvtepi32_epi8(codes(from + n * plane + q, mask)));
                    for (int i = 0; i < 16 && q + i < k.w; i++) to[(q + i) * k.y.pixel + n] = sixteen[i];
                }
            }
            for (int q = 0; k.widen && q < k.w; q++)
                for (ptrdiff_t n = k.c; n < k.y.pixel; n++) to[q * k.y.pixel + n] = static_cast<uint8_t>(k.zero);
        }
    }
}

void peak_u8s8_avx512vnni(const void *arguments, const void *const *in, void *out, Share) {
    const Peak &k = *static_cast<const Peak *>(arguments);
    const Vec x = load(in[0]), w = load(in[1]);
    Vec s[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) s[i] = _mm512_add_epi32(x, _mm512_set1_epi32(i));
#pragma GCC unroll 1
    for (int64_t r = 0; r < k.rounds; r++) {
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) s[i] = _mm512_dpbusd_epi32(s[i], x, w);
    }
#pragma GCC unroll 16
    for (int i = 1; i < 16; i++) s[0] = _mm512_xor_si512(s[0], s[i]);
    _mm512_storeu_si512(out, s[0]);
    static_cast<int64_t *>(out)[31] = k.rounds * 16 * 64;
}

}  // namespace hasten
