// The reference for floats. What a faster kernel gives may differ in the last bits, for it sums in another order.
#include <math.h>

#include "activate.h"
#include "kernels.h"

namespace hasten {
namespace {

float finish(const End &end, float value, int n, const float *residual) {
    if (end.bias) value += end.bias[n];
    if (end.residual) value += *residual;
    return activate(end.activation, value, end.a, end.b);
}

}  // namespace

void conv_f32_scalar(const void *arguments, const void *const *in, void *out, Share share) {
    const ConvF32 &k = *static_cast<const ConvF32 *>(arguments);
    const float *x = static_cast<const float *>(in[0]), *r = static_cast<const float *>(in[1]);
    float *y = static_cast<float *>(out);
    const ptrdiff_t panel = static_cast<ptrdiff_t>(k.segments) * k.length * 16;
    for (int row = share.row; row < share.row_end; row++) {
        for (int q = 0; q < k.w; q++) {
            const float *from = x + row * k.x.row + q * k.x.pixel;
            for (int n = share.block * 16; n < share.block_end * 16 && n < k.c; n++) {
                const float *w = k.weights + n / 16 * panel + n % 16;
                float sum = 0;
                for (int s = 0; s < k.segments; s++)
                    for (int i = 0; i < k.length; i++, w += 16) sum += from[k.segment[s] + i] * *w;
                y[row * k.y.row + q * k.y.pixel + n] = finish(k.end, sum, n, k.end.residual ? r + row * k.r.row + q * k.r.pixel + n : nullptr);
            }
        }
    }
}

// To the nearest number of 8 significant bits; of two as near, to the even one.
static float bfloat16(float value) {
    uint32_t bits;
    __builtin_memcpy(&bits, &value, 4);
    if (value != value) return value;
    bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;
    __builtin_memcpy(&value, &bits, 4);
    return value;
}

void conv_bf16_scalar(const void *arguments, const void *const *in, void *out, Share share) {
    const ConvBF16 &k = *static_cast<const ConvBF16 *>(arguments);
    const float *x = static_cast<const float *>(in[0]), *r = static_cast<const float *>(in[1]);
    float *y = static_cast<float *>(out);
    const ptrdiff_t panel = static_cast<ptrdiff_t>(k.segments) * k.pairs * 32;
    for (int row = share.row; row < share.row_end; row++) {
        for (int q = 0; q < k.w; q++) {
            const float *from = x + row * k.x.row + q * k.x.pixel;
            for (int n = share.block * 16; n < share.block_end * 16 && n < k.c; n++) {
                const uint16_t *w = k.weights + n / 16 * panel + n % 16 * 2;
                float sum = 0;
                for (int s = 0; s < k.segments; s++) {
                    for (int i = 0; i < 2 * k.pairs; i++) {
                        const uint32_t bits = static_cast<uint32_t>(w[i % 2]) << 16;
                        float weight;
                        __builtin_memcpy(&weight, &bits, 4);
                        sum += bfloat16(from[k.segment[s] + i]) * weight;
                        if (i % 2) w += 32;
                    }
                }
                y[row * k.y.row + q * k.y.pixel + n] = finish(k.end, sum, n, k.end.residual ? r + row * k.r.row + q * k.r.pixel + n : nullptr);
            }
        }
    }
}

void depthwise_f32_scalar(const void *arguments, const void *const *in, void *out, Share share) {
    const DepthwiseF32 &k = *static_cast<const DepthwiseF32 *>(arguments);
    const float *x = static_cast<const float *>(in[0]), *r = static_cast<const float *>(in[1]);
    float *y = static_cast<float *>(out);
    const int padded = (k.c + 15) / 16 * 16;
    for (int row = share.row; row < share.row_end; row++) {
        for (int q = 0; q < k.w; q++) {
            for (int n = 0; n < k.c; n++) {
                float sum = 0;
                for (int t = 0; t < k.taps; t++) sum += x[row * k.x.row + q * k.x.pixel + k.tap[t] + n] * k.weights[t * padded + n];
                y[row * k.y.row + q * k.y.pixel + n] = finish(k.end, sum, n, k.end.residual ? r + row * k.r.row + q * k.r.pixel + n : nullptr);
            }
        }
    }
}

void pool_f32_scalar(const void *arguments, const void *const *in, void *out, Share share) {
    const PoolF32 &k = *static_cast<const PoolF32 *>(arguments);
    const float *x = static_cast<const float *>(in[0]);
    float *y = static_cast<float *>(out);
    for (int row = share.row; row < share.row_end; row++) {
        const int up = row * k.stride_h - k.top;
        const int first = up < 0 ? 0 : up, last = up + k.kernel_h > k.in_h ? k.in_h : up + k.kernel_h;
        for (int q = 0; q < k.w; q++) {
            const int back = q * k.stride_w - k.left;
            const int begin = back < 0 ? 0 : back, end = back + k.kernel_w > k.in_w ? k.in_w : back + k.kernel_w;
            const int count = k.counts_padding ? k.kernel_h * k.kernel_w : (last - first) * (end - begin);
            for (int n = 0; n < k.c; n++) {
                float most = -INFINITY, sum = 0;
                for (int i = first; i < last; i++) {
                    for (int j = begin; j < end; j++) {
                        const float v = x[i * k.x.row + j * k.x.pixel + n];
                        most = v > most ? v : most;
                        sum += v;
                    }
                }
                y[row * k.y.row + q * k.y.pixel + n] = k.average ? sum / static_cast<float>(count) : most;
            }
        }
    }
}

void elementwise_f32_scalar(const void *arguments, const void *const *in, void *out, Share share) {
    const Elementwise &k = *static_cast<const Elementwise *>(arguments);
    const float *a = static_cast<const float *>(in[0]), *b = static_cast<const float *>(in[1]);
    float *y = static_cast<float *>(out);
    for (int row = share.row; row < share.row_end; row++) {
        for (int q = 0; q < k.w; q++) {
            for (int n = 0; n < k.c; n++) {
                const float left = a[row * k.a.row + q * k.a.pixel + n * k.a_channel];
                const float right = k.operation == ONLY ? 0 : b[row * k.b.row + q * k.b.pixel + n * k.b_channel];
                y[row * k.y.row + q * k.y.pixel + n] = activate(k.activation, combine(k.operation, left, right), k.alpha, k.beta);
            }
        }
    }
}

void reduce_f32_scalar(const void *arguments, const void *const *in, void *out, Share) {
    const Reduce &k = *static_cast<const Reduce *>(arguments);
    const float *x = static_cast<const float *>(in[0]);
    float *y = static_cast<float *>(out);
    const int rows = k.over_h ? 1 : k.h, pixels = k.over_w ? 1 : k.w, channels = k.over_c ? 1 : k.c;
    const double count = (k.over_h ? k.h : 1.0) * (k.over_w ? k.w : 1.0) * (k.over_c ? k.c : 1.0);
    for (int row = 0; row < rows; row++) {
        for (int q = 0; q < pixels; q++) {
            for (int n = 0; n < channels; n++) {
                double sum = 0;
                float most = -INFINITY;
                for (int i = k.over_h ? 0 : row; i < (k.over_h ? k.h : row + 1); i++) {
                    for (int j = k.over_w ? 0 : q; j < (k.over_w ? k.w : q + 1); j++) {
                        for (int m = k.over_c ? 0 : n; m < (k.over_c ? k.c : n + 1); m++) {
                            const float v = x[i * k.x.row + j * k.x.pixel + m];
                            sum += k.operation == L2 ? static_cast<double>(v) * v : v;
                            most = v > most ? v : most;
                        }
                    }
                }
                const double found = k.operation == MEAN ? sum / count : k.operation == L2 ? sqrt(sum) : k.operation == LARGEST ? most : sum;
                y[row * k.y.row + q * k.y.pixel + n] = static_cast<float>(found);
            }
        }
    }
}

void norm_f32_scalar(const void *arguments, const void *const *in, void *out, Share share) {
    const Norm &k = *static_cast<const Norm *>(arguments);
    const float *x = static_cast<const float *>(in[0]), *second = static_cast<const float *>(in[1]);
    float *y = static_cast<float *>(out);
    for (int row = share.row; row < share.row_end; row++) {
        for (int q = 0; q < k.w; q++) {
            const float *v = x + row * k.x.row + q * k.x.pixel, *s = k.has_second ? second + row * k.s.row + q * k.s.pixel : nullptr;
            float *to = y + row * k.y.row + q * k.y.pixel;
            double sum = 0, squares = 0;
            for (int n = 0; n < k.c; n++) {
                to[n] = s ? v[n] + s[n] : v[n];
                sum += to[n];
            }
            const double mean = k.rms ? 0 : sum / k.c;
            for (int n = 0; n < k.c; n++) squares += (to[n] - mean) * (to[n] - mean);
            const double scale = 1 / sqrt(squares / k.c + static_cast<double>(k.epsilon));
            for (int n = 0; n < k.c; n++) to[n] = static_cast<float>((to[n] - mean) * scale) * k.gamma[n] + (k.beta ? k.beta[n] : 0);
        }
    }
}

void softmax_f32_scalar(const void *arguments, const void *const *in, void *out, Share share) {
    const Softmax &k = *static_cast<const Softmax *>(arguments);
    const float *x = static_cast<const float *>(in[0]);
    float *y = static_cast<float *>(out);
    for (int row = share.row; row < share.row_end; row++) {
        for (int q = 0; q < k.w; q++) {
            const float *from = x + row * k.x.row + q * k.x.pixel;
            float *to = y + row * k.y.row + q * k.y.pixel;
            float most = from[0], sum = 0;
            for (int n = 1; n < k.c; n++) most = from[n] > most ? from[n] : most;
            for (int n = 0; n < k.c; n++) sum += to[n] = expf(from[n] - most);
            for (int n = 0; n < k.c; n++) to[n] /= sum;
        }
    }
}

void attention_f32_scalar(const void *arguments, const void *const *in, void *out, Share share) {
    const Attention &k = *static_cast<const Attention *>(arguments);
    const float *queries = static_cast<const float *>(in[0]), *keys = static_cast<const float *>(in[1]);
    const float *values = static_cast<const float *>(in[2]), *bias = static_cast<const float *>(in[3]);
    float *scores = static_cast<float *>(const_cast<void *>(in[SCRATCH])), *y = static_cast<float *>(out);
    for (int head = share.block; head < share.block_end; head++) {
        for (int i = 0; i < k.queries; i++) {
            const float *q = queries + i * k.q + head * k.size;
            float most = -INFINITY, sum = 0;
            for (int j = 0; j < k.keys; j++) {
                float dot = 0;
                for (int d = 0; d < k.size; d++) dot += q[d] * keys[j * k.k + head * k.size + d];
                scores[j] = dot * k.scale + (k.has_bias ? bias[head * k.bias_head + i * k.bias_row + j] : 0);
                most = scores[j] > most ? scores[j] : most;
            }
            for (int j = 0; j < k.keys; j++) sum += scores[j] = expf(scores[j] - most);
            for (int d = 0; d < k.value_size; d++) {
                float mix = 0;
                for (int j = 0; j < k.keys; j++) mix += scores[j] * values[j * k.v + head * k.value_size + d];
                y[i * k.y + head * k.value_size + d] = mix / sum;
            }
        }
    }
}

void gather_f32_scalar(const void *arguments, const void *const *in, void *out, Share share) {
    const Gather &k = *static_cast<const Gather *>(arguments);
    const int64_t *ids = static_cast<const int64_t *>(in[0]);
    float *y = static_cast<float *>(out);
    for (int row = share.row; row < share.row_end; row++) {
        const int64_t id = ids[row] < 0 ? ids[row] + k.rows : ids[row];
        __builtin_memcpy(y + row * k.y, k.table + id * k.c, sizeof(float) * static_cast<size_t>(k.c));
    }
}

void cast_i64f32_scalar(const void *arguments, const void *const *in, void *out, Share share) {
    const Cast &k = *static_cast<const Cast *>(arguments);
    const int64_t *x = static_cast<const int64_t *>(in[0]);
    float *y = static_cast<float *>(out);
    for (int row = share.row; row < share.row_end; row++)
        for (int q = 0; q < k.w; q++)
            for (int n = 0; n < k.c; n++) y[row * k.y.row + q * k.y.pixel + n] = static_cast<float>(x[row * k.x.row + q * k.x.pixel + n]);
}

void arrange_f32_scalar(const void *arguments, const void *const *in, void *out, Share share) {
    const Arrange &k = *static_cast<const Arrange *>(arguments);
    const float *x = static_cast<const float *>(in[0]);
    float *y = static_cast<float *>(out);
    const ptrdiff_t plane = static_cast<ptrdiff_t>(k.h) * k.w;
    for (int row = share.row; row < share.row_end; row++) {
        for (int q = 0; q < k.w; q++) {
            const ptrdiff_t pixel = row * k.pixels.row + q * k.pixels.pixel, place = static_cast<ptrdiff_t>(row) * k.w + q;
            for (int n = 0; n < k.c; n++) {
                if (k.to_planes)
                    y[n * plane + place] = x[pixel + n];
                else
                    y[pixel + n] = x[n * plane + place];
            }
        }
    }
}

void move_f32_scalar(const void *arguments, const void *const *in, void *out, Share share) {
    const Move &k = *static_cast<const Move *>(arguments);
    const float *x = static_cast<const float *>(in[0]);
    float *y = static_cast<float *>(out) + share.row * (static_cast<ptrdiff_t>(k.size[1]) * k.size[2] * k.size[3]);
    for (int a = share.row; a < share.row_end; a++) {
        for (int b = 0; b < k.size[1]; b++) {
            for (int c = 0; c < k.size[2]; c++, y += k.size[3]) {
                const float *from = x + static_cast<ptrdiff_t>(a) * k.stride[0] + static_cast<ptrdiff_t>(b) * k.stride[1] + static_cast<ptrdiff_t>(c) * k.stride[2];
                if (k.stride[3] == 1)
                    __builtin_memcpy(y, from, sizeof(float) * static_cast<size_t>(k.size[3]));
                else
                    for (int d = 0; d < k.size[3]; d++) y[d] = from[static_cast<ptrdiff_t>(d) * k.stride[3]];
            }
        }
    }
}

void quantize_pixels_scalar(const void *arguments, const void *const *in, void *out, Share share) {
    const QuantizePixels &k = *static_cast<const QuantizePixels *>(arguments);
    const float *x = static_cast<const float *>(in[0]);
    uint8_t *y = static_cast<uint8_t *>(out);
    for (int row = share.row; row < share.row_end; row++)
        for (int q = 0; q < k.w; q++)
            for (int n = 0; n < k.c; n++)
                y[row * k.y.row + q * k.y.pixel + n] = quantize(x[row * k.x.row + q * k.x.pixel + n], k.scale[n], k.zero, k.lo, k.hi);
}

void dequantize_pixels_scalar(const void *arguments, const void *const *in, void *out, Share share) {
    const DequantizePixels &k = *static_cast<const DequantizePixels *>(arguments);
    const uint8_t *x = static_cast<const uint8_t *>(in[0]);
    float *y = static_cast<float *>(out);
    for (int row = share.row; row < share.row_end; row++)
        for (int q = 0; q < k.w; q++)
            for (int n = 0; n < k.c; n++)
                y[row * k.y.row + q * k.y.pixel + n] = static_cast<float>(x[row * k.x.row + q * k.x.pixel + n] - k.zero) * k.scale;
}

void peak_f32_scalar(const void *arguments, const void *const *in, void *out, Share) {
    const Peak &k = *static_cast<const Peak *>(arguments);
    const float *x = static_cast<const float *>(in[0]), *w = static_cast<const float *>(in[1]);
    float sums[16] = {};
    for (int64_t r = 0; r < k.rounds; r++)
        for (int i = 0; i < 16; i++) sums[i] = sums[i] * w[i] + x[i];  // of what came before: else one product would do
    for (int i = 0; i < 16; i++) static_cast<float *>(out)[i] = sums[i];
    static_cast<int64_t *>(out)[31] = k.rounds * 16;
}

}  // namespace hasten
