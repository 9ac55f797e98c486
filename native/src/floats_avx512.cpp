// Floats with AVX-512: sixteen of them in an instruction.
// No C++ library header and no inline function with external linkage may stand here: see kernels.h.
#include <immintrin.h>

#include "kernels.h"
#include "vector_avx512.h"

namespace hasten {
namespace {

// Two matrices: Q rows of `a` (`a_row` apart, `depth` long) times V vectors of 16 columns of `b` (a row `b_row`, a vector `b_vector` apart).
template <int Q, int V>
[[gnu::always_inline]] inline void multiply(Floats (&sums)[V][Q], const float *a, ptrdiff_t a_row, const float *b, ptrdiff_t b_row,
                                            ptrdiff_t b_vector, int depth) {
    const float *base[(Q + 2) / 3];
    for (int i = 0; i < (Q + 2) / 3; i++) base[i] = a + 3 * i * a_row;
#pragma GCC unroll 1
    for (int d = 0; d < depth; d++, b += b_row) {
        Floats columns[V];
        for (int v = 0; v < V; v++) columns[v] = _mm512_loadu_ps(b + v * b_vector);
#pragma GCC unroll 16
        for (int q = 0; q < Q; q++) {
            const Floats row = all(base[q / 3][q % 3 * a_row + d]);
            for (int v = 0; v < V; v++) sums[v][q] = _mm512_fmadd_ps(row, columns[v], sums[v][q]);
        }
    }
}

template <int Q, int V>
void tile(const ConvF32 &k, const float *x, int n, const float *r, float *y) {
    Floats sums[V][Q];
    for (int v = 0; v < V; v++)
        for (int q = 0; q < Q; q++) sums[v][q] = _mm512_setzero_ps();
    const ptrdiff_t panel = static_cast<ptrdiff_t>(k.segments) * k.length * 16;
    const float *w = k.weights + n / 16 * panel;
    for (int s = 0; s < k.segments; s++, w += static_cast<ptrdiff_t>(k.length) * 16)
        multiply<Q, V>(sums, x + k.segment[s], k.x.pixel, w, 16, panel, k.length);
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) {
        const int channel = n + 16 * v;
        const __mmask16 mask = first(k.c - channel);
#pragma GCC unroll 16
        for (int q = 0; q < Q; q++)
            _mm512_mask_storeu_ps(y + q * k.y.pixel + 16 * v, mask, end16(k.end, sums[v][q], channel, r ? r + q * k.r.pixel + channel : r, mask));
    }
}

// One pixel: V vectors of outputs, each with two sums under way.
template <int V>
void one_pixel(const ConvF32 &k, const float *x, int n, const float *r, float *y) {
    Floats sums[V], more[V];
    for (int v = 0; v < V; v++) sums[v] = more[v] = _mm512_setzero_ps();
    const ptrdiff_t panel = static_cast<ptrdiff_t>(k.segments) * k.length * 16;
    const float *w = k.weights + n / 16 * panel;
    for (int s = 0; s < k.segments; s++) {
        const float *from = x + k.segment[s];
        int i = 0;
        for (; i + 2 <= k.length; i += 2, w += 32) {
            const Floats a = all(from[i]), b = all(from[i + 1]);
            for (int v = 0; v < V; v++) {
                sums[v] = _mm512_fmadd_ps(a, _mm512_loadu_ps(w + v * panel), sums[v]);
                more[v] = _mm512_fmadd_ps(b, _mm512_loadu_ps(w + v * panel + 16), more[v]);
            }
        }
        for (; i < k.length; i++, w += 16)
            for (int v = 0; v < V; v++) sums[v] = _mm512_fmadd_ps(all(from[i]), _mm512_loadu_ps(w + v * panel), sums[v]);
    }
    for (int v = 0; v < V; v++) {
        const int channel = n + 16 * v;
        const __mmask16 mask = first(k.c - channel);
        _mm512_mask_storeu_ps(y + 16 * v, mask, end16(k.end, _mm512_add_ps(sums[v], more[v]), channel, r ? r + channel : r, mask));
    }
}

using Tile = void (*)(const ConvF32 &, const float *, int, const float *, float *);

constexpr int WIDEST = 14;
template <int V>
constexpr Tile TILES[WIDEST + 1] = {nullptr,    tile<1, V>, tile<2, V>,  tile<3, V>,  tile<4, V>,  tile<5, V>,  tile<6, V>, tile<7, V>,
                                    tile<8, V>, tile<9, V>, tile<10, V>, tile<11, V>, tile<12, V>, tile<13, V>, tile<14, V>};
constexpr Tile ONE_PIXEL[5] = {nullptr, one_pixel<1>, one_pixel<2>, one_pixel<3>, one_pixel<4>};
constexpr ptrdiff_t WEIGHTS_AT_HAND = 256 << 10;  // bytes

}  // namespace

void conv_f32_avx512vnni(const void *arguments, const void *const *in, void *out, Share share) {
    const ConvF32 &k = *static_cast<const ConvF32 *>(arguments);
    const float *x = static_cast<const float *>(in[0]), *r = k.end.residual ? static_cast<const float *>(in[1]) : nullptr;
    float *y = static_cast<float *>(out);
    if (k.w == 1 && share.row_end - share.row == 1) {
        for (int block = share.block; block < share.block_end; block += 4) {
            const int blocks = share.block_end - block < 4 ? share.block_end - block : 4;
            ONE_PIXEL[blocks](k, x + share.row * k.x.row, block * 16, r ? r + share.row * k.r.row : r, y + share.row * k.y.row + block * 16);
        }
        return;
    }
    const ptrdiff_t weights = static_cast<ptrdiff_t>(share.block_end - share.block) * k.segments * k.length * 64;
    const int rows_at_once = weights <= WEIGHTS_AT_HAND ? 1 : share.row_end - share.row, tiles = (k.w + WIDEST - 1) / WIDEST;
    for (int group = share.row; group < share.row_end; group += rows_at_once) {
        for (int block = share.block; block < share.block_end; block += 2) {
            const Tile *const of_width = share.block_end - block < 2 ? TILES<1> : TILES<2>;
            for (int row = group; row < group + rows_at_once; row++) {
                for (int t = 0, q = 0; t < tiles; t++) {
                    const int pixels = (k.w - q) / (tiles - t);
                    of_width[pixels](k, x + row * k.x.row + q * k.x.pixel, block * 16, r ? r + row * k.r.row + q * k.r.pixel : r,
                                     y + row * k.y.row + q * k.y.pixel + block * 16);
                    q += pixels;
                }
            }
        }
    }
}

namespace {

// Q neighbouring pixels of sixteen channels; each tap's weights are loaded once for all of them.
template <int Q>
inline void depthwise_pixels(const DepthwiseF32 &k, const float *x, int n, const float *r, float *y) {
    const int padded = (k.c + 15) / 16 * 16;
    const __mmask16 mask = first(k.c - n);
    Floats sums[Q];
    for (int i = 0; i < Q; i++) sums[i] = _mm512_setzero_ps();
    for (int t = 0; t < k.taps; t++) {
        const Floats w = _mm512_loadu_ps(k.weights + static_cast<ptrdiff_t>(t) * padded + n);
        for (int i = 0; i < Q; i++) sums[i] = _mm512_fmadd_ps(w, _mm512_maskz_loadu_ps(mask, x + k.tap[t] + i * k.x.pixel), sums[i]);
    }
    for (int i = 0; i < Q; i++) _mm512_mask_storeu_ps(y + i * k.y.pixel, mask, end16(k.end, sums[i], n, r ? r + i * k.r.pixel : r, mask));
}

}  // namespace

void depthwise_f32_avx512vnni(const void *arguments, const void *const *in, void *out, Share share) {
    const DepthwiseF32 &k = *static_cast<const DepthwiseF32 *>(arguments);
    const float *x = static_cast<const float *>(in[0]), *r = k.end.residual ? static_cast<const float *>(in[1]) : nullptr;
    float *y = static_cast<float *>(out);
    for (int row = share.row; row < share.row_end; row++) {
        for (int n = 0; n < k.c; n += 16) {
            for (int q = 0; q < k.w;) {
                const bool four = q + 4 <= k.w;
                (four ? depthwise_pixels<4> : depthwise_pixels<1>)(k, x + row * k.x.row + q * k.x.pixel + n, n,
                                                                   r ? r + row * k.r.row + q * k.r.pixel + n : r,
                                                                   y + row * k.y.row + q * k.y.pixel + n);
                q += four ? 4 : 1;
            }
        }
    }
}

void pool_f32_avx512vnni(const void *arguments, const void *const *in, void *out, Share share) {
    const PoolF32 &k = *static_cast<const PoolF32 *>(arguments);
    const float *x = static_cast<const float *>(in[0]);
    float *y = static_cast<float *>(out);
    for (int row = share.row; row < share.row_end; row++) {
        const int up = row * k.stride_h - k.top;
        const int top = up < 0 ? 0 : up, bottom = up + k.kernel_h > k.in_h ? k.in_h : up + k.kernel_h;
        for (int q = 0; q < k.w; q++) {
            const int back = q * k.stride_w - k.left;
            const int begin = back < 0 ? 0 : back, end = back + k.kernel_w > k.in_w ? k.in_w : back + k.kernel_w;
            const Floats count = all(static_cast<float>(k.counts_padding ? k.kernel_h * k.kernel_w : (bottom - top) * (end - begin)));
            for (int n = 0; n < k.c; n += 16) {
                const __mmask16 mask = first(k.c - n);
                Floats found = k.average ? _mm512_setzero_ps() : all(-__builtin_inff());
                for (int i = top; i < bottom; i++) {
                    for (int j = begin; j < end; j++) {
                        const Floats v = _mm512_maskz_loadu_ps(mask, x + i * k.x.row + j * k.x.pixel + n);
                        found = k.average ? _mm512_add_ps(found, v) : _mm512_max_ps(v, found);
                    }
                }
                _mm512_mask_storeu_ps(y + row * k.y.row + q * k.y.pixel + n, mask, k.average ? _mm512_div_ps(found, count) : found);
            }
        }
    }
}

void elementwise_f32_avx512vnni(const void *arguments, const void *const *in, void *out, Share share) {
    const Elementwise &k = *static_cast<const Elementwise *>(arguments);
    const float *a = static_cast<const float *>(in[0]), *b = static_cast<const float *>(in[1]);
    float *y = static_cast<float *>(out);
    for (int row = share.row; row < share.row_end; row++) {
        for (int q = 0; q < k.w; q++) {
            const float *left = a + row * k.a.row + q * k.a.pixel, *right = k.operation == ONLY ? left : b + row * k.b.row + q * k.b.pixel;
            for (int n = 0; n < k.c; n += 16) {
                const __mmask16 mask = first(k.c - n);
                const Floats u = k.a_channel ? _mm512_maskz_loadu_ps(mask, left + n) : all(*left);
                const Floats v = k.operation == ONLY ? u : k.b_channel ? _mm512_maskz_loadu_ps(mask, right + n) : all(*right);
                Floats found = u;
                switch (k.operation) {
                    case ADD_F32: found = _mm512_add_ps(u, v); break;
                    case SUB: found = _mm512_sub_ps(u, v); break;
                    case MUL: found = _mm512_mul_ps(u, v); break;
                    case DIV: found = _mm512_div_ps(u, v); break;
                    case MAX: found = _mm512_max_ps(u, v); break;
                    case MIN: found = _mm512_min_ps(u, v); break;
                    default: break;
                }
                _mm512_mask_storeu_ps(y + row * k.y.row + q * k.y.pixel + n, mask, activate16(k.activation, found, k.alpha, k.beta));
            }
        }
    }
}

void norm_f32_avx512vnni(const void *arguments, const void *const *in, void *out, Share share) {
    const Norm &k = *static_cast<const Norm *>(arguments);
    const float *x = static_cast<const float *>(in[0]), *second = static_cast<const float *>(in[1]);
    float *y = static_cast<float *>(out);
    for (int row = share.row; row < share.row_end; row++) {
        for (int q = 0; q < k.w; q++) {
            const float *v = x + row * k.x.row + q * k.x.pixel, *s = k.has_second ? second + row * k.s.row + q * k.s.pixel : nullptr;
            float *to = y + row * k.y.row + q * k.y.pixel;
            Floats sum = _mm512_setzero_ps(), squares = _mm512_setzero_ps();
            for (int n = 0; n < k.c; n += 16) {
                const __mmask16 mask = first(k.c - n);
                Floats value = _mm512_maskz_loadu_ps(mask, v + n);
                if (s) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, s + n));
                _mm512_mask_storeu_ps(to + n, mask, value);
                sum = _mm512_add_ps(sum, value);
            }
            const Floats mean = all(k.rms ? 0.0f : _mm512_reduce_add_ps(sum) / static_cast<float>(k.c));
            for (int n = 0; n < k.c; n += 16) {
                const __mmask16 mask = first(k.c - n);
                const Floats off = _mm512_maskz_sub_ps(mask, _mm512_maskz_loadu_ps(mask, to + n), mean);
                squares = _mm512_fmadd_ps(off, off, squares);
            }
            const Floats scale = all(1.0f / __builtin_sqrtf(_mm512_reduce_add_ps(squares) / static_cast<float>(k.c) + k.epsilon));
            for (int n = 0; n < k.c; n += 16) {
                const __mmask16 mask = first(k.c - n);
                const Floats off = _mm512_mul_ps(_mm512_sub_ps(_mm512_maskz_loadu_ps(mask, to + n), mean), scale);
                const Floats beta = k.beta ? _mm512_maskz_loadu_ps(mask, k.beta + n) : _mm512_setzero_ps();
                _mm512_mask_storeu_ps(to + n, mask, _mm512_fmadd_ps(off, _mm512_maskz_loadu_ps(mask, k.gamma + n), beta));
            }
        }
    }
}

namespace {

// Rows of 16 floats to columns: exchanges of 1, 2, 4 and 8 places, each between halves of vectors.
inline void transpose16(Floats (&m)[16]) {
    Floats t[16];
    for (int i = 0; i < 16; i += 2) t[i] = _mm512_unpacklo_ps(m[i], m[i + 1]), t[i + 1] = _mm512_unpackhi_ps(m[i], m[i + 1]);
    for (int i = 0; i < 16; i += 4) {
        for (int j = 0; j < 2; j++) {
            const __m512d low = _mm512_castps_pd(t[i + j]), high = _mm512_castps_pd(t[i + j + 2]);
            m[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high)), m[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
        }
    }
    for (int i = 0; i < 4; i++) {  // now m[4 g + i], lane l holds column 4 l + i of rows 4 g … 4 g + 3
        t[i] = _mm512_shuffle_f32x4(m[i], m[4 + i], 0x88), t[4 + i] = _mm512_shuffle_f32x4(m[i], m[4 + i], 0xdd);
        t[8 + i] = _mm512_shuffle_f32x4(m[8 + i], m[12 + i], 0x88), t[12 + i] = _mm512_shuffle_f32x4(m[8 + i], m[12 + i], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        m[i] = _mm512_shuffle_f32x4(t[i], t[8 + i], 0x88), m[8 + i] = _mm512_shuffle_f32x4(t[i], t[8 + i], 0xdd);
        m[4 + i] = _mm512_shuffle_f32x4(t[4 + i], t[12 + i], 0x88), m[12 + i] = _mm512_shuffle_f32x4(t[4 + i], t[12 + i], 0xdd);
    }
}

// Keys of one head as columns: [keys / 16][size][16]; those behind the last are zero.
inline void pack_keys(const Attention &k, const float *keys, float *packed) {
    for (int j = 0; j < k.keys; j += 16) {
        for (int d = 0; d < k.size; d += 16) {
            const __mmask16 mask = first(k.size - d);
            Floats m[16];
            for (int i = 0; i < 16; i++) m[i] = j + i < k.keys ? _mm512_maskz_loadu_ps(mask, keys + (j + i) * k.k + d) : _mm512_setzero_ps();
            transpose16(m);
            for (int i = 0; i < 16 && d + i < k.size; i++) _mm512_storeu_ps(packed + static_cast<ptrdiff_t>(j) * k.size + (d + i) * 16, m[i]);
        }
    }
}

// e^(scores − the largest) of one row; the sum is returned.
inline float soften(float *scores, int keys, const float *bias, float scale) {
    Floats most = all(-__builtin_inff());
    for (int j = 0; j < keys; j += 16) {
        const __mmask16 mask = first(keys - j);
        Floats v = _mm512_mul_ps(_mm512_loadu_ps(scores + j), all(scale));
        if (bias) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(mask, bias + j));
        most = _mm512_mask_max_ps(most, mask, most, v);
        _mm512_storeu_ps(scores + j, v);
    }
    const Floats largest = all(_mm512_reduce_max_ps(most));
    Floats sum = _mm512_setzero_ps();
    for (int j = 0; j < keys; j += 16) {
        const Floats v = _mm512_maskz_mov_ps(first(keys - j), exp16(_mm512_sub_ps(_mm512_loadu_ps(scores + j), largest)));
        sum = _mm512_add_ps(sum, v);
        _mm512_storeu_ps(scores + j, v);
    }
    return _mm512_reduce_add_ps(sum);
}

template <int Q>
void attend(const Attention &k, const float *q, const float *packed, const float *values, const float *bias, float *scores, float *y) {
    const int columns = (k.keys + 15) / 16 * 16;
    for (int j = 0; j < columns; j += 32) {
        const bool two = j + 16 < columns;
        Floats sums[2][Q];
        for (int i = 0; i < Q; i++) sums[0][i] = sums[1][i] = _mm512_setzero_ps();
        // A lone last vector is computed twice: the second time into what is not stored.
        const float *from = packed + static_cast<ptrdiff_t>(j) * k.size;
        multiply<Q, 2>(sums, q, k.q, from, 16, two ? static_cast<ptrdiff_t>(k.size) * 16 : 0, k.size);
        for (int i = 0; i < Q; i++) {
            _mm512_storeu_ps(scores + i * columns + j, sums[0][i]);
            if (two) _mm512_storeu_ps(scores + i * columns + j + 16, sums[1][i]);
        }
    }
    float total[Q];
    for (int i = 0; i < Q; i++) total[i] = 1.0f / soften(scores + i * columns, k.keys, bias ? bias + i * k.bias_row : bias, k.scale);
    const int wide = (k.value_size + 15) / 16 * 16;
    for (int d = 0; d < wide; d += 32) {
        const bool two = d + 16 < wide;
        Floats sums[2][Q];
        for (int i = 0; i < Q; i++) sums[0][i] = sums[1][i] = _mm512_setzero_ps();
        multiply<Q, 2>(sums, scores, columns, values + d, wide, two ? 16 : 0, k.keys);
        for (int i = 0; i < Q; i++) {
            _mm512_mask_storeu_ps(y + i * k.y + d, first(k.value_size - d), _mm512_mul_ps(sums[0][i], all(total[i])));
            if (two) _mm512_mask_storeu_ps(y + i * k.y + d + 16, first(k.value_size - d - 16), _mm512_mul_ps(sums[1][i], all(total[i])));
        }
    }
}

using Attend = void (*)(const Attention &, const float *, const float *, const float *, const float *, float *, float *);
constexpr int QUERIES = 12;
constexpr Attend ATTEND[QUERIES + 1] = {nullptr,   attend<1>, attend<2>, attend<3>,  attend<4>,  attend<5>, attend<6>,
                                        attend<7>, attend<8>, attend<9>, attend<10>, attend<11>, attend<12>};

}  // namespace

void attention_f32_avx512vnni(const void *arguments, const void *const *in, void *out, Share share) {
    const Attention &k = *static_cast<const Attention *>(arguments);
    const float *bias = k.has_bias ? static_cast<const float *>(in[3]) : nullptr;
    const ptrdiff_t columns = (k.keys + 15) / 16 * 16, wide = (k.value_size + 15) / 16 * 16;
    float *packed = static_cast<float *>(const_cast<void *>(in[SCRATCH])), *values = packed + columns * k.size, *scores = values + columns * wide;
    for (int head = share.block; head < share.block_end; head++) {
        const float *v = static_cast<const float *>(in[2]) + head * k.value_size;
        pack_keys(k, static_cast<const float *>(in[1]) + head * k.size, packed);
        for (int j = 0; j < k.keys; j++)
            for (int d = 0; d < wide; d += 16)
                _mm512_storeu_ps(values + j * wide + d, _mm512_maskz_loadu_ps(first(k.value_size - d), v + j * k.v + d));
        const int tiles = (k.queries + QUERIES - 1) / QUERIES;
        for (int t = 0, i = 0; t < tiles; t++) {
            const int some = (k.queries - i) / (tiles - t);
            ATTEND[some](k, static_cast<const float *>(in[0]) + i * k.q + head * k.size, packed, values,
                         bias ? bias + head * k.bias_head + i * k.bias_row : bias, scores,
                         static_cast<float *>(out) + i * k.y + head * k.value_size);
            i += some;
        }
    }
}

void quantize_pixels_avx512vnni(const void *arguments, const void *const *in, void *out, Share share) {
    const QuantizePixels &k = *static_cast<const QuantizePixels *>(arguments);
    const float *x = static_cast<const float *>(in[0]);
    uint8_t *y = static_cast<uint8_t *>(out);
    const ToCodes16 to_codes(k.zero, k.lo, k.hi);
    for (int row = share.row; row < share.row_end; row++) {
        for (int q = 0; q < k.w; q++) {
            for (int n = 0; n < k.c; n += 16) {
                const __mmask16 mask = first(k.c - n);
                const Floats v = _mm512_maskz_loadu_ps(mask, x + row * k.x.row + q * k.x.pixel + n);
                _mm_mask_storeu_epi8(y + row * k.y.row + q * k.y.pixel + n, mask, to_codes(v, _mm512_loadu_ps(k.scale + n)));
            }
        }
    }
}

}  // namespace hasten
