// Products of bfloat16 with AVX-512: 32 of them in an instruction, summed in float32.
// No C++ library header and no inline function with external linkage may stand here: see kernels.h.
#include "vector_avx512.h"
#include "vector_functions.h"

namespace hasten {
namespace {

using Pairs = __m512bh;

inline Pairs both(const uint16_t *p) {  // two neighbouring inputs, for all 16 channels
    int32_t v;
    __builtin_memcpy(&v, p, 4);
    return reinterpret_cast<Pairs>(_mm512_set1_epi32(v));
}

inline Pairs weights(const uint16_t *p) { return reinterpret_cast<Pairs>(_mm512_loadu_si512(p)); }

// Q pixels of one row by 16 V channels.
template <int Q, int V>
void tile(const ConvBF16 &k, const uint16_t *x, int n, const float *r, float *y) {
    Floats sums[V][Q];
    for (int v = 0; v < V; v++)
        for (int q = 0; q < Q; q++) sums[v][q] = zeros();
    const ptrdiff_t panel = static_cast<ptrdiff_t>(k.segments) * k.pairs * 32, step = k.x.pixel;
    const uint16_t *w = k.weights + n / 16 * panel;
    for (int s = 0; s < k.segments; s++) {
        const uint16_t *base[(Q + 2) / 3];
        for (int b = 0; b < (Q + 2) / 3; b++) base[b] = x + k.segment[s] + 3 * b * step;
#pragma GCC unroll 1
        for (int i = 0; i < k.pairs; i++, w += 32) {
            Pairs columns[V];
            for (int v = 0; v < V; v++) columns[v] = weights(w + v * panel);
#pragma GCC unroll 16
            for (int q = 0; q < Q; q++) {
                const Pairs row = both(base[q / 3] + q % 3 * step + 2 * i);
                for (int v = 0; v < V; v++) sums[v][q] = _mm512_dpbf16_ps(sums[v][q], row, columns[v]);
            }
        }
    }
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) {
        const int channel = n + 16 * v;
        const Mask mask = first(k.c - channel);
#pragma GCC unroll 16
        for (int q = 0; q < Q; q++)
            store(y + q * k.y.pixel + 16 * v, begin_end(k.end, sums[v][q], channel, r ? r + q * k.r.pixel + 16 * v : r, mask), mask);
    }
    if (!ended(k.end)) end_rows(k.end, y, k.y.pixel, Q, k.c - n < 16 * V ? k.c - n : 16 * V);
}

// One pixel: V blocks at once, each in the order in which a tile sums, for the same bits.
template <int V>
void one_pixel(const ConvBF16 &k, const uint16_t *x, int n, const float *r, float *y) {
    Floats sums[V];
    for (int v = 0; v < V; v++) sums[v] = zeros();
    const ptrdiff_t panel = static_cast<ptrdiff_t>(k.segments) * k.pairs * 32;
    const uint16_t *w = k.weights + n / 16 * panel;
    for (int s = 0; s < k.segments; s++) {
        const uint16_t *from = x + k.segment[s];
#pragma GCC unroll 1
        for (int i = 0; i < k.pairs; i++, w += 32) {
            const Pairs row = both(from + 2 * i);
            for (int v = 0; v < V; v++) sums[v] = _mm512_dpbf16_ps(sums[v], row, weights(w + v * panel));
        }
    }
    for (int v = 0; v < V; v++) {
        const int channel = n + 16 * v;
        const Mask mask = first(k.c - channel);
        store(y + 16 * v, begin_end(k.end, sums[v], channel, r ? r + 16 * v : r, mask), mask);
    }
    if (!ended(k.end)) end_rows(k.end, y, 0, 1, k.c - n < 16 * V ? k.c - n : 16 * V);
}

using Tile = void (*)(const ConvBF16 &, const uint16_t *, int, const float *, float *);

constexpr int WIDEST = 14;
template <int V>
constexpr Tile TILES[WIDEST + 1] = {nullptr,    tile<1, V>, tile<2, V>,  tile<3, V>,  tile<4, V>,  tile<5, V>,  tile<6, V>, tile<7, V>,
                                    tile<8, V>, tile<9, V>, tile<10, V>, tile<11, V>, tile<12, V>, tile<13, V>, tile<14, V>};
constexpr Tile ONE_PIXEL[9] = {nullptr,      one_pixel<1>, one_pixel<2>, one_pixel<3>, one_pixel<4>,
                               one_pixel<5>, one_pixel<6>, one_pixel<7>, one_pixel<8>};
constexpr ptrdiff_t WEIGHTS_AT_HAND = 256 << 10;  // bytes

void round_to_pairs(const float *x, uint16_t *to, ptrdiff_t count) {
    ptrdiff_t i = 0;
    for (; i + 32 <= count; i += 32) _mm512_storeu_si512(to + i, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(load(x + i + 16), load(x + i))));
    for (; i < count; i += 16) {
        const Mask mask = first(static_cast<int>(count - i));
        _mm256_mask_storeu_epi16(to + i, mask, reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(load(x + i, mask))));
    }
}

}  // namespace

void conv_bf16_avx512bf16(const void *arguments, const void *const *in, void *out, Share share) {
    const ConvBF16 &k = *static_cast<const ConvBF16 *>(arguments);
    const float *from = static_cast<const float *>(in[0]), *r = k.end.residual ? static_cast<const float *>(in[1]) : nullptr;
    float *y = static_cast<float *>(out);
    // What these rows read, once: the rounded numbers lie as the inputs do.
    const ptrdiff_t begin = share.row * k.x.row + k.least;
    const ptrdiff_t end = (share.row_end - 1) * k.x.row + (k.w - 1) * k.x.pixel + k.most + 2 * static_cast<ptrdiff_t>(k.pairs);
    uint16_t *rounded = static_cast<uint16_t *>(const_cast<void *>(in[SCRATCH]));
    round_to_pairs(from + begin, rounded, end - begin);
    const uint16_t *x = rounded - begin;
    if (k.w == 1 && share.row_end - share.row == 1) {
        for (int block = share.block; block < share.block_end; block += 8) {
            const int blocks = share.block_end - block < 8 ? share.block_end - block : 8;
            ONE_PIXEL[blocks](k, x + share.row * k.x.row, block * 16, r ? r + share.row * k.r.row + block * 16 : r, y + share.row * k.y.row + block * 16);
        }
        return;
    }
    const ptrdiff_t bytes = static_cast<ptrdiff_t>(share.block_end - share.block) * k.segments * k.pairs * 64;
    const int rows_at_once = bytes <= WEIGHTS_AT_HAND ? 1 : share.row_end - share.row, tiles = (k.w + WIDEST - 1) / WIDEST;
    for (int group = share.row; group < share.row_end; group += rows_at_once) {
        for (int block = share.block; block < share.block_end; block += 2) {
            const Tile *const of_width = share.block_end - block < 2 ? TILES<1> : TILES<2>;
            for (int row = group; row < group + rows_at_once; row++) {
                for (int t = 0, q = 0; t < tiles; t++) {
                    const int pixels = (k.w - q) / (tiles - t);
                    of_width[pixels](k, x + row * k.x.row + q * k.x.pixel, block * 16, r ? r + row * k.r.row + q * k.r.pixel + block * 16 : r,
                                     y + row * k.y.row + q * k.y.pixel + block * 16);
                    q += pixels;
                }
            }
        }
    }
}

void peak_bf16_avx512bf16(const void *arguments, const void *const *in, void *out, Share) {
    const Peak &k = *static_cast<const Peak *>(arguments);
    const Pairs x = weights(static_cast<const uint16_t *>(in[0])), w = weights(static_cast<const uint16_t *>(in[1]));
    Floats s[12];
#pragma GCC unroll 12
    for (int i = 0; i < 12; i++) s[i] = all(static_cast<float>(i));
#pragma GCC unroll 1
    for (int64_t r = 0; r < k.rounds; r++) {
#pragma GCC unroll 12
        for (int i = 0; i < 12; i++) s[i] = _mm512_dpbf16_ps(s[i], x, w);
    }
#pragma GCC unroll 12
    for (int i = 1; i < 12; i++) s[0] = s[0] + s[i];
    store(static_cast<float *>(out), s[0]);
    static_cast<int64_t *>(out)[31] = k.rounds * 12 * 32;
}

}  // namespace hasten
