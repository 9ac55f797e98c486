// The reference: what every faster kernel is compared with, and what a processor without vector instructions runs. Written to be read.
#include <math.h>

#include "activate.h"
#include "kernels.h"

namespace hasten {
namespace {

int32_t clamp(int32_t v, int32_t lo, int32_t hi) { return v < lo ? lo : v > hi ? hi : v; }

// numerics.requantize: the product in float32, clamped before it is rounded half to even.
uint8_t requantize(int32_t sum, float scale, int32_t zero, int32_t lo, int32_t hi) {
    float v = static_cast<float>(sum) * scale;
    const float low = static_cast<float>(lo - zero), high = static_cast<float>(hi - zero);
    v = v < low ? low : v > high ? high : v;
    return static_cast<uint8_t>(static_cast<int32_t>(rintf(v)) + zero);
}

// numerics.multiply_fixed: (sum · factor + half) >> shift, rounded half up.
int64_t multiply_fixed(int32_t sum, int32_t factor, int32_t shift) {
    return (static_cast<int64_t>(sum) * factor + (INT64_C(1) << (shift - 1))) >> shift;
}

int32_t clamp_wide(int64_t v, int32_t lo, int32_t hi) { return v < lo ? lo : v > hi ? hi : static_cast<int32_t>(v); }

uint8_t requantize_fixed(int32_t sum, int32_t factor, int32_t shift, int32_t zero, int32_t lo, int32_t hi) {
    return static_cast<uint8_t>(clamp_wide(multiply_fixed(sum, factor, shift) + zero, lo, hi));
}

uint8_t add(uint8_t a, uint8_t b, const Residual &s, bool fixed) {
    if (fixed) return static_cast<uint8_t>(clamp((a * s.fa + b * s.fb + s.fc) >> s.shift, s.lo, s.hi));
    const float v = rintf(fmaf(a, s.ra, fmaf(b, s.rb, s.rc)));
    const float low = static_cast<float>(s.lo), high = static_cast<float>(s.hi);
    return static_cast<uint8_t>(v > low ? (v < high ? v : high) : low);
}

// Sums wrap like the vector units' do; what is stored never needs more than 32 bits.
int32_t plus(int32_t sum, int32_t product) { return static_cast<int32_t>(static_cast<uint32_t>(sum) + static_cast<uint32_t>(product)); }

void store(const Conv &k, int32_t sum, int n, const void *residual, void *y) {
    if (k.finish == VALUES || k.finish == VALUE_CODES) {
        float value = static_cast<float>(sum) * k.scale[n];
        if (k.end.bias) value += k.end.bias[n];
        if (k.end.residual) value += *static_cast<const float *>(residual);
        value = activate(k.end.activation, value, k.end.a, k.end.b);
        if (k.finish == VALUES)
            *static_cast<float *>(y) = value;
        else
            *static_cast<uint8_t *>(y) = quantize(value, k.step[n], k.zero, k.lo, k.hi);
        return;
    }
    if (k.finish == VALUES_FIXED) {
        *static_cast<float *>(y) = static_cast<float>(clamp_wide(multiply_fixed(sum, k.factor[n], k.shift[n]), INT32_MIN, INT32_MAX)) * k.unit;
        return;
    }
    const bool fixed = k.finish == CODES_FIXED;
    uint8_t code = fixed ? requantize_fixed(sum, k.factor[n], k.shift[n], k.zero, k.lo, k.hi) : requantize(sum, k.scale[n], k.zero, k.lo, k.hi);
    if (k.add.present) {
        const uint8_t other = *static_cast<const uint8_t *>(residual);
        code = k.add.swapped ? add(other, code, k.add, fixed) : add(code, other, k.add, fixed);
    }
    *static_cast<uint8_t *>(y) = code;
}

}  // namespace

void conv_u8s8_scalar(const void *arguments, const void *const *in, void *out, Share share) {
    const Conv &k = *static_cast<const Conv *>(arguments);
    const uint8_t *x = static_cast<const uint8_t *>(in[0]);
    const char *r = static_cast<const char *>(in[1]);
    const ptrdiff_t each = k.end.residual ? sizeof(float) : 1;
    const size_t size = k.finish == VALUES || k.finish == VALUES_FIXED ? sizeof(float) : 1;
    const int steps = k.segments * k.groups;
    for (int row = share.row; row < share.row_end; row++) {
        for (int q = 0; q < k.w; q++) {
            const uint8_t *from = x + row * k.x.row + q * k.x.pixel;
            for (int n = share.block * 16; n < share.block_end * 16 && n < k.c; n++) {
                const int8_t *w = k.weights + (static_cast<ptrdiff_t>(n / 16) * steps * 16 + n % 16) * 4;
                int32_t sum = k.bias[n];
                for (int s = 0; s < k.segments; s++) {
                    for (int g = 0; g < k.groups; g++, w += 64) {
                        const uint8_t *four = from + k.segment[s] + 4 * g;
                        sum = plus(sum, four[0] * w[0] + four[1] * w[1] + four[2] * w[2] + four[3] * w[3]);
                    }
                }
                const bool beside = k.add.present || k.end.residual;
                const void *residual = beside ? r + (row * k.r.row + q * k.r.pixel + n) * each : nullptr;
                store(k, sum, n, residual, static_cast<char *>(out) + (row * k.y.row + q * k.y.pixel + n) * static_cast<ptrdiff_t>(size));
            }
        }
    }
}

void depthwise_u8s8_scalar(const void *arguments, const void *const *in, void *out, Share share) {
    const Depthwise &k = *static_cast<const Depthwise *>(arguments);
    const uint8_t *x = static_cast<const uint8_t *>(in[0]);
    uint8_t *y = static_cast<uint8_t *>(out);
    for (int row = share.row; row < share.row_end; row++) {
        for (int q = 0; q < k.w; q++) {
            const uint8_t *from = x + row * k.x.row + q * k.x.pixel;
            for (int n = share.block * 64; n < share.block_end * 64 && n < k.c; n++) {
                // Channel n % 64 = 16 run + 4 vector + lane stands in that vector, at 4 run + lane.
                const int within = n % 64, vector = within % 16 / 4, place = within / 16 * 4 + within % 4;
                const int8_t *w = k.weights + ((static_cast<ptrdiff_t>(n / 64) * k.groups * 4 + vector) * 16 + place) * 4;
                const int i = n / 64 * 64 + vector * 16 + place;
                int32_t sum = k.bias[i];
                for (int t = 0; t < 4 * k.groups; t++) sum = plus(sum, from[k.tap[t] + n] * w[t / 4 * 256 + t % 4]);
                y[row * k.y.row + q * k.y.pixel + n] = k.finish == CODES_FIXED
                                                           ? requantize_fixed(sum, k.factor[i], k.shift[i], k.zero, k.lo, k.hi)
                                                           : requantize(sum, k.scale[i], k.zero, k.lo, k.hi);
            }
        }
    }
}

void add_u8_scalar(const void *arguments, const void *const *in, void *out, Share share) {
    const Add &k = *static_cast<const Add *>(arguments);
    const uint8_t *a = static_cast<const uint8_t *>(in[0]), *b = static_cast<const uint8_t *>(in[1]);
    uint8_t *y = static_cast<uint8_t *>(out);
    for (int row = share.row; row < share.row_end; row++)
        for (int q = 0; q < k.w; q++)
            for (int n = 0; n < k.c; n++)
                y[row * k.y.row + q * k.y.pixel + n] =
                    add(a[row * k.a.row + q * k.a.pixel + n], b[row * k.b.row + q * k.b.pixel + n], k.sum, k.fixed != 0);
}

void pool_u8_scalar(const void *arguments, const void *const *in, void *out, Share share) {
    const Pool &k = *static_cast<const Pool *>(arguments);
    const uint8_t *x = static_cast<const uint8_t *>(in[0]);
    uint8_t *y = static_cast<uint8_t *>(out);
    for (int row = share.row; row < share.row_end; row++) {
        const int up = row * k.stride_h - k.top;
        const int first = up < 0 ? 0 : up, last = up + k.kernel_h > k.in_h ? k.in_h : up + k.kernel_h;
        for (int q = 0; q < k.w; q++) {
            const int back = q * k.stride_w - k.left;
            const int begin = back < 0 ? 0 : back, end = back + k.kernel_w > k.in_w ? k.in_w : back + k.kernel_w;
            for (int n = 0; n < k.c; n++) {
                int32_t most = 0, sum = 0;
                for (int i = first; i < last; i++) {
                    for (int j = begin; j < end; j++) {
                        const int32_t code = x[i * k.x.row + j * k.x.pixel + n];
                        most = code > most ? code : most;
                        sum += code - k.x_zero;
                    }
                }
                uint8_t *to = y + row * k.y.row + q * k.y.pixel + n;
                const int count = k.counts_padding ? k.kernel_h * k.kernel_w : (last - first) * (end - begin);
                if (!k.average)
                    *to = static_cast<uint8_t>(most);
                else if (k.fixed)
                    *to = requantize_fixed(sum, k.factor, k.shift, k.zero, k.lo, k.hi);
                else  // as onnxruntime: s_x / (s_y · positions)
                    *to = requantize(sum, k.x_scale / (k.y_scale * static_cast<float>(count)), k.zero, k.lo, k.hi);
            }
        }
    }
}

void map_u8_scalar(const void *arguments, const void *const *in, void *out, Share share) {
    const Map &k = *static_cast<const Map *>(arguments);
    const uint8_t *x = static_cast<const uint8_t *>(in[0]);
    uint8_t *y = static_cast<uint8_t *>(out);
    for (int row = share.row; row < share.row_end; row++) {
        for (int q = 0; q < k.w; q++) {
            for (int n = 0; n < k.c; n++) {
                uint8_t code = static_cast<uint8_t>(k.constant);
                if (k.constant < 0) code = x[row * k.x.row + q * k.x.pixel + n];
                y[row * k.y.row + q * k.y.pixel + n] = k.constant < 0 && k.table ? k.table[code] : code;
            }
        }
    }
}

void quantize_f32u8_scalar(const void *arguments, const void *const *in, void *out, Share share) {
    const Quantize &k = *static_cast<const Quantize *>(arguments);
    const float *x = static_cast<const float *>(in[0]);
    uint8_t *y = static_cast<uint8_t *>(out);
    for (int row = share.row; row < share.row_end; row++) {
        for (int q = 0; q < k.w; q++) {
            uint8_t *to = y + row * k.y.row + q * k.y.pixel;
            for (int n = 0; n < k.c; n++)
                to[n] = quantize(x[(static_cast<ptrdiff_t>(n) * k.h + row) * k.w + q], k.scale, k.zero, k.lo, k.hi);
            for (int n = k.c; k.widen && n < k.y.pixel; n++) to[n] = static_cast<uint8_t>(k.zero);
        }
    }
}

void dequantize_u8f32_scalar(const void *arguments, const void *const *in, void *out, Share share) {
    const Dequantize &k = *static_cast<const Dequantize *>(arguments);
    const uint8_t *x = static_cast<const uint8_t *>(in[0]);
    float *y = static_cast<float *>(out);
    for (int row = share.row; row < share.row_end; row++)
        for (int q = 0; q < k.w; q++)
            for (int n = 0; n < k.c; n++)
                y[(static_cast<ptrdiff_t>(n) * k.h + row) * k.w + q] =
                    static_cast<float>(x[row * k.x.row + q * k.x.pixel + n] - k.zero) * k.scale;
}

void peak_u8s8_scalar(const void *arguments, const void *const *in, void *out, Share) {
    const Peak &k = *static_cast<const Peak *>(arguments);
    const uint8_t *x = static_cast<const uint8_t *>(in[0]);
    const int8_t *w = static_cast<const int8_t *>(in[1]);
    int32_t sums[16] = {};
    for (int64_t r = 0; r < k.rounds; r++)
        for (int i = 0; i < 16; i++) sums[i] = plus(sums[i], (x[i] ^ (sums[i] & 1)) * w[i]);  // of what came before: else one product would do
    for (int i = 0; i < 16; i++) static_cast<int32_t *>(out)[i] = sums[i];
    static_cast<int64_t *>(out)[31] = k.rounds * 16;
}

}  // namespace hasten
