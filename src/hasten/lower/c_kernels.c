/* The kernels of exported C code. c_export.py copies the pieces that a model needs, each from its line of the form
   "piece NAME: the pieces it needs" on. Whole numbers alone; the arithmetic is that of native/src/kernels_scalar.cpp in fixed point.
   Written without what C99 leaves to the compiler: no negative number is shifted to the right, no sum overflows. */
/* piece image: */

/* Where an image lies in its memory: numbers from a row to the next, from a pixel to the next. The channels of a pixel lie together. */
typedef struct {
    size h, w, c, row, pixel;
} image;

/* piece window: image */

/* A kernel of h x w that goes over x: y[r][q] reads x from row r * stride_h - top and column q * stride_w - left on. What lies outside
   counts as zero. Codes: value = scale * (code - zero); those of y end at lo and hi. */
typedef struct {
    image x, y;
    size h, w, stride_h, stride_w, dilation_h, dilation_w, top, left;
    int16_t x_zero, zero, lo, hi;
} window;

/* The part of a kernel that lies inside x, at one place of y. */
typedef struct {
    int32_t row, column, first, last, begin, end;
} part;

/* Of places from, from + step, ... the numbers of those in 0 ... inside - 1, of count at most. */
static void inside(int32_t from, int32_t step, int32_t count, int32_t limit, int32_t *first, int32_t *last)
{
    *first = from < 0 ? (step - 1 - from) / step : 0;
    *last = from >= limit ? 0 : (limit - 1 - from) / step + 1;
    if (*last > count) *last = count;
}

static part at(const window *k, int32_t r, int32_t q)
{
    part p;
    p.row = r * k->stride_h - k->top;
    p.column = q * k->stride_w - k->left;
    inside(p.row, k->dilation_h, k->h, k->x.h, &p.first, &p.last);
    inside(p.column, k->dilation_w, k->w, k->x.w, &p.begin, &p.end);
    return p;
}

/* piece fixed: */

/* v / 2^n, rounded down. Compilers make one instruction of it. */
static int64_t shift_right(int64_t v, uint8_t n)
{
    return v < 0 ? ~(~v >> n) : v >> n;
}

/* sum * factor / 2^n, rounded half up. */
static int64_t multiply(int32_t sum, int32_t factor, uint8_t n)
{
    return shift_right((int64_t)sum * factor + ((int64_t)1 << (n - 1)), n);
}

/* piece code: fixed window */

static uint8_t code(int32_t sum, int32_t factor, uint8_t n, const window *k)
{
    const int64_t v = multiply(sum, factor, n) + k->zero;
    return (uint8_t)(v < k->lo ? k->lo : v > k->hi ? k->hi : v);
}

/* piece number: */

/* Sums are kept modulo 2^32; as a number from -2^31 on. */
static int32_t number(uint32_t sum)
{
    return sum <= INT32_MAX ? (int32_t)sum : -(int32_t)(UINT32_MAX - sum) - 1;
}

/* piece sum: number window */

/* bias + the sum over the kernel of (x - zero) * weight; weights (rows, columns, channels of x). */
static int32_t sum(const window *k, const part *p, const uint8_t *x, const int8_t *weights, int32_t bias)
{
    uint32_t s = (uint32_t)bias;
    for (int32_t i = p->first; i < p->last; i++) {
        for (int32_t j = p->begin; j < p->end; j++) {
            const uint8_t *from = x + (p->row + i * k->dilation_h) * k->x.row + (p->column + j * k->dilation_w) * k->x.pixel;
            const int8_t *w = weights + (i * k->w + j) * k->x.c;
            for (int32_t n = 0; n < k->x.c; n++) s += (uint32_t)((from[n] - k->x_zero) * w[n]);
        }
    }
    return number(s);
}

/* piece conv: sum code */

/* Convolutions, and Gemms as convolutions of one place. weights (channels of y, h, w, channels of x). */
static void conv(const window *k, const uint8_t *x, const int8_t *weights, const int32_t *bias, const int32_t *factor,
                 const uint8_t *shift, uint8_t *y)
{
    const int32_t depth = (int32_t)k->h * k->w * k->x.c;
    for (int32_t r = 0; r < k->y.h; r++) {
        for (int32_t q = 0; q < k->y.w; q++) {
            const part p = at(k, r, q);
            uint8_t *to = y + r * k->y.row + q * k->y.pixel;
            for (int32_t n = 0; n < k->y.c; n++) to[n] = code(sum(k, &p, x, weights + n * depth, bias[n]), factor[n], shift[n], k);
        }
    }
}

/* piece residual: image */

/* y = (a * fa + b * fb + fc) / 2^n, rounded down, between lo and hi. other: where the tensor that is added lies. */
typedef struct {
    image other;
    int32_t fa, fb, fc;
    uint8_t n, lo, hi;
} addition;

static uint8_t added(uint8_t a, uint8_t b, const addition *k)
{
    const int32_t v = a * k->fa + b * k->fb + k->fc, s = v < 0 ? ~(~v >> k->n) : v >> k->n;
    return (uint8_t)(s < k->lo ? k->lo : s > k->hi ? k->hi : s);
}

/* piece conv_add: sum code residual */

/* A convolution and the sum behind it: what it makes is a, the other tensor b. */
static void conv_add(const window *k, const uint8_t *x, const int8_t *weights, const int32_t *bias, const int32_t *factor,
                     const uint8_t *shift, const addition *plus, const uint8_t *other, uint8_t *y)
{
    const int32_t depth = (int32_t)k->h * k->w * k->x.c;
    for (int32_t r = 0; r < k->y.h; r++) {
        for (int32_t q = 0; q < k->y.w; q++) {
            const part p = at(k, r, q);
            const uint8_t *b = other + r * plus->other.row + q * plus->other.pixel;
            uint8_t *to = y + r * k->y.row + q * k->y.pixel;
            for (int32_t n = 0; n < k->y.c; n++) {
                const uint8_t a = code(sum(k, &p, x, weights + n * depth, bias[n]), factor[n], shift[n], k);
                to[n] = added(a, b[n], plus);
            }
        }
    }
}

/* piece conv_values: sum fixed */

/* A convolution whose results leave the model: whole numbers of 32 bits, all of one unit. */
static void conv_values(const window *k, const uint8_t *x, const int8_t *weights, const int32_t *bias, const int32_t *factor,
                        const uint8_t *shift, int32_t *y)
{
    const int32_t depth = (int32_t)k->h * k->w * k->x.c;
    for (int32_t r = 0; r < k->y.h; r++) {
        for (int32_t q = 0; q < k->y.w; q++) {
            const part p = at(k, r, q);
            int32_t *to = y + r * k->y.row + q * k->y.pixel;
            for (int32_t n = 0; n < k->y.c; n++) {
                const int64_t v = multiply(sum(k, &p, x, weights + n * depth, bias[n]), factor[n], shift[n]);
                to[n] = v < INT32_MIN ? INT32_MIN : v > INT32_MAX ? INT32_MAX : (int32_t)v;
            }
        }
    }
}

/* piece depthwise: number code */

/* One filter for each channel. weights (channels, h, w). */
static void depthwise(const window *k, const uint8_t *x, const int8_t *weights, const int32_t *bias, const int32_t *factor,
                      const uint8_t *shift, uint8_t *y)
{
    for (int32_t r = 0; r < k->y.h; r++) {
        for (int32_t q = 0; q < k->y.w; q++) {
            const part p = at(k, r, q);
            uint8_t *to = y + r * k->y.row + q * k->y.pixel;
            for (int32_t n = 0; n < k->y.c; n++) {
                const int8_t *w = weights + n * ((int32_t)k->h * k->w);
                uint32_t s = (uint32_t)bias[n];
                for (int32_t i = p.first; i < p.last; i++) {
                    const uint8_t *from = x + (p.row + i * k->dilation_h) * k->x.row + n;
                    for (int32_t j = p.begin; j < p.end; j++)
                        s += (uint32_t)((from[(p.column + j * k->dilation_w) * k->x.pixel] - k->x_zero) * w[i * k->w + j]);
                }
                to[n] = code(number(s), factor[n], shift[n], k);
            }
        }
    }
}

/* piece add: residual */

/* The sum of two tensors: x is a, the other b. */
static void add(const image *x_at, const image *y_at, const addition *k, const uint8_t *x, const uint8_t *other, uint8_t *y)
{
    for (int32_t r = 0; r < y_at->h; r++) {
        for (int32_t q = 0; q < y_at->w; q++) {
            const uint8_t *a = x + r * x_at->row + q * x_at->pixel, *b = other + r * k->other.row + q * k->other.pixel;
            uint8_t *to = y + r * y_at->row + q * y_at->pixel;
            for (int32_t n = 0; n < y_at->c; n++) to[n] = added(a[n], b[n], k);
        }
    }
}

/* piece max_pool: window */

static void max_pool(const window *k, const uint8_t *x, uint8_t *y)
{
    for (int32_t r = 0; r < k->y.h; r++) {
        for (int32_t q = 0; q < k->y.w; q++) {
            const part p = at(k, r, q);
            uint8_t *to = y + r * k->y.row + q * k->y.pixel;
            for (int32_t n = 0; n < k->y.c; n++) {
                uint8_t most = 0;
                for (int32_t i = p.first; i < p.last; i++) {
                    for (int32_t j = p.begin; j < p.end; j++) {
                        const uint8_t v = x[(p.row + i) * k->x.row + (p.column + j) * k->x.pixel + n];
                        if (v > most) most = v;
                    }
                }
                to[n] = most;
            }
        }
    }
}

/* piece average_pool: code */

static void average_pool(const window *k, const uint8_t *x, int32_t factor, uint8_t shift, uint8_t *y)
{
    for (int32_t r = 0; r < k->y.h; r++) {
        for (int32_t q = 0; q < k->y.w; q++) {
            const part p = at(k, r, q);
            uint8_t *to = y + r * k->y.row + q * k->y.pixel;
            for (int32_t n = 0; n < k->y.c; n++) {
                int32_t s = 0;
                for (int32_t i = p.first; i < p.last; i++) {
                    for (int32_t j = p.begin; j < p.end; j++)
                        s += x[(p.row + i) * k->x.row + (p.column + j) * k->x.pixel + n] - k->x_zero;
                }
                to[n] = code(s, factor, shift, k);
            }
        }
    }
}

/* piece map: image */

/* A code for each code. */
static void map(const image *x_at, const image *y_at, const uint8_t *table, const uint8_t *x, uint8_t *y)
{
    for (int32_t r = 0; r < y_at->h; r++) {
        for (int32_t q = 0; q < y_at->w; q++) {
            const uint8_t *from = x + r * x_at->row + q * x_at->pixel;
            uint8_t *to = y + r * y_at->row + q * y_at->pixel;
            for (int32_t n = 0; n < y_at->c; n++) to[n] = table[from[n]];
        }
    }
}

/* piece copy: image */

static void copy(const image *x_at, const image *y_at, const uint8_t *x, uint8_t *y)
{
    for (int32_t r = 0; r < y_at->h; r++) {
        for (int32_t q = 0; q < y_at->w; q++) {
            const uint8_t *from = x + r * x_at->row + q * x_at->pixel;
            uint8_t *to = y + r * y_at->row + q * y_at->pixel;
            for (int32_t n = 0; n < y_at->c; n++) to[n] = from[n];
        }
    }
}

/* piece fill: image */

static void fill(const image *y_at, uint8_t value, uint8_t *y)
{
    for (int32_t r = 0; r < y_at->h; r++) {
        for (int32_t q = 0; q < y_at->w; q++) {
            for (int32_t n = 0; n < y_at->c; n++) y[r * y_at->row + q * y_at->pixel + n] = value;
        }
    }
}
