// AVX2 with FMA: every x86 processor since 2013.
// No C++ library header and no inline function with external linkage may stand here: see kernels.h.
#include "kernels_256.h"

#define CONV_KERNEL conv_u8s8_avx2
#define DEPTHWISE_KERNEL depthwise_u8s8_avx2

namespace hasten {
namespace {

constexpr int PIXELS = 4;  // 8 sums, 4 weights, 2 inputs, a product: 15 of 16 registers

// vpmaddubsw multiplies bytes but saturates the sum of two products in 16 bits: 2 · 255 · 127 doesn't fit. So both sides become 16-bit numbers,
// the even ones and the odd ones of four apart, and vpmaddwd sums two products in 32 bits: x₀w₀ + x₂w₂, then x₁w₁ + x₃w₃.
struct Inputs {
    Vec even, odd;
    explicit Inputs(Vec four) : even(_mm256_and_si256(four, _mm256_set1_epi16(255))), odd(_mm256_srli_epi16(four, 8)) {}
};
struct Weights {
    Vec even, odd;
    explicit Weights(const int8_t *p) {
        const Vec four = load(p);
        even = _mm256_srai_epi16(_mm256_slli_epi16(four, 8), 8), odd = _mm256_srai_epi16(four, 8);
    }
};
inline Vec dot(Vec sums, const Inputs &x, const Weights &w) {
    return _mm256_add_epi32(_mm256_add_epi32(sums, _mm256_madd_epi16(x.even, w.even)), _mm256_madd_epi16(x.odd, w.odd));
}

#include "kernels_256_products.inc"

void add_u8_avx2(const void *arguments, const void *const *in, void *out, Share share) {
    const Add &k = *static_cast<const Add *>(arguments);
    const uint8_t *a = static_cast<const uint8_t *>(in[0]), *b = static_cast<const uint8_t *>(in[1]);
    uint8_t *y = static_cast<uint8_t *>(out);
    const Sum sum(k.sum);
    const Packed packed(0, 0, 255);
    // Where pixels lie side by side in all three, a row is one run of numbers.
    const bool dense = k.a.pixel == k.c && k.b.pixel == k.c && k.y.pixel == k.c;
    const int pixels = dense ? 1 : k.w, run = dense ? k.w * k.c : k.c;
    for (int row = share.row; row < share.row_end; row++) {
        for (int q = 0; q < pixels; q++) {
            const uint8_t *one = a + row * k.a.row + q * k.a.pixel, *other = b + row * k.b.row + q * k.b.pixel;
            uint8_t *to = y + row * k.y.row + q * k.y.pixel;
            const auto codes = [&](int n) {
                const Vec v = widen(one + n), w = widen(other + n);
                return k.fixed ? sum.in_fixed(v, w) : sum(_mm256_cvtepi32_ps(v), w);
            };
            for (int n = 0; n < run; n += 16) {
                const Vec low = codes(n), high = codes(n + 8);
                store_some(to + n, _mm256_castsi256_si128(packed(low, high, low, high)), run - n);
            }
        }
    }
}

namespace {

// The largest code of a window, for 32 channels.
inline Vec largest(const Pool &k, const uint8_t *x, int rows, int columns) {
    Vec most = _mm256_setzero_si256();
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < columns; j++) most = _mm256_max_epu8(most, load(x + i * k.x.row + j * k.x.pixel));
    return most;
}

}  // namespace

void pool_u8_avx2(const void *arguments, const void *const *in, void *out, Share share) {
    const Pool &k = *static_cast<const Pool *>(arguments);
    const uint8_t *x = static_cast<const uint8_t *>(in[0]);
    uint8_t *y = static_cast<uint8_t *>(out);
    const Codes codes(k.fixed != 0, k.zero, k.lo, k.hi);
    const Packed packed(0, 0, 255);
    for (int row = share.row; row < share.row_end; row++) {
        const int up = row * k.stride_h - k.top;
        const int first = up < 0 ? 0 : up, rows = (up + k.kernel_h > k.in_h ? k.in_h : up + k.kernel_h) - first;
        for (int q = 0; q < k.w; q++) {
            const int back = q * k.stride_w - k.left;
            const int begin = back < 0 ? 0 : back, columns = (back + k.kernel_w > k.in_w ? k.in_w : back + k.kernel_w) - begin;
            const uint8_t *from = x + first * k.x.row + begin * k.x.pixel;
            uint8_t *to = y + row * k.y.row + q * k.y.pixel;
            if (!k.average) {
                for (int n = 0; n < k.c; n += 32) store_some(to + n, largest(k, from + n, rows, columns), k.c - n);
                continue;
            }
            const int inside = rows * columns, count = k.counts_padding ? k.kernel_h * k.kernel_w : inside;
            const Scales scale(k.fixed != 0, k.x_scale / (k.y_scale * static_cast<float>(count)), k.factor, k.shift);
            for (int n = 0; n < k.c; n += 16) {
                Vec low = _mm256_set1_epi32(-inside * k.x_zero), high = low;
                for (int i = 0; i < rows; i++) {
                    for (int j = 0; j < columns; j++) {
                        const uint8_t *p = from + i * k.x.row + j * k.x.pixel + n;
                        low = _mm256_add_epi32(low, widen(p)), high = _mm256_add_epi32(high, widen(p + 8));
                    }
                }
                low = codes.whole(scale, low), high = codes.whole(scale, high);
                store_some(to + n, _mm256_castsi256_si128(packed(low, high, low, high)), k.c - n);
            }
        }
    }
}

namespace {

// table[code] for 32 codes. A shuffle looks up 16 entries by the lower four bits and gives 0 where the highest is set. So for the 16 entries
// from 16 i on: code ^ 16 i is below 16 just where the code is one of them, and + 112, saturated, sets the highest bit everywhere else.
inline Vec look_up(const Vec (&table)[16], Vec code) {
    Vec found = _mm256_setzero_si256();
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) {
        const Vec place = _mm256_adds_epu8(_mm256_xor_si256(code, _mm256_set1_epi8(static_cast<char>(16 * i))), _mm256_set1_epi8(112));
        found = _mm256_or_si256(found, _mm256_shuffle_epi8(table[i], place));
    }
    return found;
}

}  // namespace

void map_u8_avx2(const void *arguments, const void *const *in, void *out, Share share) {
    const Map &k = *static_cast<const Map *>(arguments);
    const uint8_t *x = static_cast<const uint8_t *>(in[0]);
    uint8_t *y = static_cast<uint8_t *>(out);
    Vec table[16];
    for (int i = 0; i < 16 && k.table; i++) table[i] = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i *>(k.table + 16 * i)));
    const bool dense = k.y.pixel == k.c && (k.constant >= 0 || k.x.pixel == k.c);
    const int pixels = dense ? 1 : k.w, run = dense ? k.w * k.c : k.c;
    for (int row = share.row; row < share.row_end; row++) {
        for (int q = 0; q < pixels; q++) {
            uint8_t *to = y + row * k.y.row + q * k.y.pixel;
            for (int n = 0; n < run; n += 32) {
                Vec code = _mm256_set1_epi8(static_cast<char>(k.constant));
                if (k.constant < 0) code = load(x + row * k.x.row + q * k.x.pixel + n);
                if (k.constant < 0 && k.table) code = look_up(table, code);
                store_some(to + n, code, run - n);
            }
        }
    }
}

void quantize_f32u8_avx2(const void *arguments, const void *const *in, void *out, Share share) {
    const Quantize &k = *static_cast<const Quantize *>(arguments);
    const float *x = static_cast<const float *>(in[0]);
    uint8_t *y = static_cast<uint8_t *>(out);
    const __m256 scale = _mm256_set1_ps(k.scale);
    const __m256 low = _mm256_set1_ps(static_cast<float>(k.lo - k.zero)), high = _mm256_set1_ps(static_cast<float>(k.hi - k.zero));
    const Vec zero = _mm256_set1_epi32(k.zero);
    const Packed packed(0, 0, 255);
    // The first `left` of eight floats: nothing behind the caller's array is read.
    const auto codes = [&](const float *from, int left) {
        const __m256 v = _mm256_div_ps(load(from, first(left)), scale);
        return _mm256_add_epi32(_mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(v, low), high)), zero);  // NaN becomes low
    };
    const auto run = [&](uint8_t *to, const float *from, int count) {
        for (int i = 0; i < count; i += 16) {
            const Vec one = codes(from + i, count - i), other = count - i > 8 ? codes(from + i + 8, count - i - 8) : one;
            store_some(to + i, _mm256_castsi256_si128(packed(one, other, one, other)), count - i);
        }
    };
    const ptrdiff_t plane = static_cast<ptrdiff_t>(k.h) * k.w;
    for (int row = share.row; row < share.row_end; row++) {
        const float *from = x + static_cast<ptrdiff_t>(row) * k.w;
        uint8_t *to = y + row * k.y.row;
        if (plane == 1) {  // a vector: its channels lie together
            run(to, x, k.c);
        } else if (k.c == 1 && k.y.pixel == 1) {
            run(to, from, k.w);
        } else if (k.c <= 4 && k.y.pixel == 4 && (k.c == 4 || k.widen)) {  // up to four planes: a pixel is one 32-bit word
            for (int q = 0; q < k.w; q += 8) {
                Vec pixels = _mm256_setzero_si256();
                for (int n = 0; n < 4; n++) {
                    const Vec code = n < k.c ? codes(from + n * plane + q, k.w - q) : zero;
                    pixels = _mm256_or_si256(pixels, _mm256_sll_epi32(code, _mm_cvtsi32_si128(8 * n)));
                }
                store_some(to + 4 * q, pixels, k.w - q < 8 ? 4 * (k.w - q) : 32);
            }
            continue;
        } else {
            for (int n = 0; n < k.c; n++) {
                for (int q = 0; q < k.w; q += 8) {
                    int32_t eight[8];
                    _mm256_storeu_si256(reinterpret_cast<Vec *>(eight), codes(from + n * plane + q, k.w - q));
                    for (int i = 0; i < 8 && q + i < k.w; i++) to[(q + i) * k.y.pixel + n] = static_cast<uint8_t>(eight[i]);
                }
            }
        }
        for (int q = 0; k.widen && q < k.w; q++)
            for (ptrdiff_t n = k.c; n < k.y.pixel; n++) to[q * k.y.pixel + n] = static_cast<uint8_t>(k.zero);
    }
}

void peak_u8s8_avx2(const void *arguments, const void *const *in, void *out, Share) {
    const Peak &k = *static_cast<const Peak *>(arguments);
    const Vec x = load(in[0]), w = load(in[1]);
    Vec s[12];
#pragma GCC unroll 12
    for (int i = 0; i < 12; i++) s[i] = _mm256_add_epi32(x, _mm256_set1_epi32(i));
#pragma GCC unroll 1
    for (int64_t r = 0; r < k.rounds; r++) {
#pragma GCC unroll 12
        for (int i = 0; i < 12; i++) s[i] = _mm256_add_epi32(s[i], _mm256_madd_epi16(s[i], w));
    }
#pragma GCC unroll 12
    for (int i = 1; i < 12; i++) s[0] = _mm256_xor_si256(s[0], s[i]);
    _mm256_storeu_si256(static_cast<Vec *>(out), s[0]);
    static_cast<int64_t *>(out)[31] = k.rounds * 12 * 16;
}

}  // namespace hasten
