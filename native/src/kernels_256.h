// What the units of 256-bit vectors share: how eight sums become what is stored. Everything has internal linkage, as kernels.h asks for.
#pragma once

#include <immintrin.h>

#include "kernels.h"
#include "vector_avx2.h"
#include "vector_functions.h"

namespace hasten {
namespace {

using Vec = __m256i;

inline Vec load(const void *p) { return _mm256_loadu_si256(static_cast<const Vec *>(p)); }
inline Vec clamp(Vec v, Vec lo, Vec hi) { return _mm256_min_epi32(_mm256_max_epi32(v, lo), hi); }

// Codes of eight channels as 32-bit numbers. Reads eight bytes, however many channels there are.
inline Vec widen(const uint8_t *p) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p))); }

// The first n of sixteen bytes, and not one more.
inline void store_some(uint8_t *y, __m128i v, int n) {
    if (n >= 16) {
        _mm_storeu_si128(reinterpret_cast<__m128i *>(y), v);
        return;
    }
    if (n & 8) {
        _mm_storel_epi64(reinterpret_cast<__m128i *>(y), v);
        v = _mm_srli_si128(v, 8), y += 8;
    }
    uint64_t rest = static_cast<uint64_t>(_mm_cvtsi128_si64(v));
    if (n & 4) {
        __builtin_memcpy(y, &rest, 4);
        rest >>= 32, y += 4;
    }
    if (n & 2) {
        __builtin_memcpy(y, &rest, 2);
        rest >>= 16, y += 2;
    }
    if (n & 1) *y = static_cast<uint8_t>(rest);
}

inline void store_some(uint8_t *y, Vec v, int n) {
    store_some(y, _mm256_castsi256_si128(v), n);
    if (n > 16) store_some(y + 16, _mm256_extracti128_si256(v, 1), n - 16);
}

// What eight channels' sums are multiplied with, in float32 or in fixed point.
struct Scales {
    __m256 scale;
    Vec factor, shift_even, shift_odd, half_even, half_odd, least_even, least_odd;

    Scales(bool fixed, const float *scales, const int32_t *factors, const uint8_t *shifts, int n) {
        if (fixed)
            fix(load(factors + n), widen(shifts + n));
        else
            scale = _mm256_loadu_ps(scales + n);
    }
    Scales(bool fixed, float one_scale, int32_t one_factor, int32_t one_shift) {
        if (fixed)
            fix(_mm256_set1_epi32(one_factor), _mm256_set1_epi32(one_shift));
        else
            scale = _mm256_set1_ps(one_scale);
    }

    // (sum · factor + half) >> shift in 64 bits, saturated to 32. AVX2 shifts 64 bits to the right without a sign only: moved up by 2⁶³, the
    // number has none, and (v + 2⁶³) >> s = (v >> s) + (2⁶³ >> s).
    Vec multiply_fixed(Vec sum) const {
        const Vec even = shifted(_mm256_mul_epi32(sum, factor), half_even, shift_even, least_even);
        const Vec odd = shifted(_mm256_mul_epi32(_mm256_srli_epi64(sum, 32), _mm256_srli_epi64(factor, 32)), half_odd, shift_odd, least_odd);
        return _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
    }

private:
    void fix(Vec factors, Vec shift) {
        const Vec one = _mm256_set1_epi64x(1), sign = _mm256_set1_epi64x(INT64_MIN);
        factor = factors;
        shift_even = _mm256_and_si256(shift, _mm256_set1_epi64x(0xffffffff)), shift_odd = _mm256_srli_epi64(shift, 32);
        half_even = _mm256_add_epi64(sign, _mm256_sllv_epi64(one, _mm256_sub_epi64(shift_even, one)));
        half_odd = _mm256_add_epi64(sign, _mm256_sllv_epi64(one, _mm256_sub_epi64(shift_odd, one)));
        least_even = _mm256_srlv_epi64(sign, shift_even), least_odd = _mm256_srlv_epi64(sign, shift_odd);
    }
    static Vec shifted(Vec product, Vec half, Vec shift, Vec least) {
        const Vec v = _mm256_sub_epi64(_mm256_srlv_epi64(_mm256_add_epi64(product, half), shift), least);
        const Vec most = _mm256_set1_epi64x(INT32_MAX), lowest = _mm256_set1_epi64x(INT32_MIN);
        const Vec below = _mm256_blendv_epi8(v, most, _mm256_cmpgt_epi64(v, most));
        return _mm256_blendv_epi8(below, lowest, _mm256_cmpgt_epi64(lowest, below));
    }
};

// Sums to codes, the definition word for word: as floats that hold whole numbers, or as 32-bit numbers.
struct Codes {
    __m256 low, high, zero;
    Vec least, most, whole_zero;
    bool fixed;

    Codes(bool in_fixed, int z, int lo, int hi) : fixed(in_fixed) {
        low = _mm256_set1_ps(static_cast<float>(lo - z)), high = _mm256_set1_ps(static_cast<float>(hi - z));
        zero = _mm256_set1_ps(static_cast<float>(z));
        least = _mm256_set1_epi32(lo - z), most = _mm256_set1_epi32(hi - z), whole_zero = _mm256_set1_epi32(z);
    }
    __m256 clipped(const Scales &s, Vec sum) const {
        return _mm256_min_ps(_mm256_max_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(sum), s.scale), low), high);
    }
    __m256 floats(const Scales &s, Vec sum) const {
        return _mm256_add_ps(_mm256_round_ps(clipped(s, sum), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), zero);
    }
    Vec whole(const Scales &s, Vec sum) const {
        return _mm256_add_epi32(fixed ? clamp(s.multiply_fixed(sum), least, most) : _mm256_cvtps_epi32(clipped(s, sum)), whole_zero);
    }
};

// A residual sum, and its bounds.
struct Sum {
    __m256 ra, rb, rc, low, high;
    Vec fa, fb, fc, lo, hi;
    __m128i shift;
    bool swapped;

    explicit Sum(const Residual &s) : shift(_mm_cvtsi32_si128(s.shift)), swapped(s.swapped != 0) {
        ra = _mm256_set1_ps(s.ra), rb = _mm256_set1_ps(s.rb), rc = _mm256_set1_ps(s.rc);
        low = _mm256_set1_ps(static_cast<float>(s.lo)), high = _mm256_set1_ps(static_cast<float>(s.hi));
        fa = _mm256_set1_epi32(s.fa), fb = _mm256_set1_epi32(s.fb), fc = _mm256_set1_epi32(s.fc);
        lo = _mm256_set1_epi32(s.lo), hi = _mm256_set1_epi32(s.hi);
    }
    Vec operator()(__m256 code, Vec other) const {
        const __m256 beside = _mm256_cvtepi32_ps(other), a = swapped ? beside : code, b = swapped ? code : beside;
        const __m256 v = _mm256_fmadd_ps(a, ra, _mm256_fmadd_ps(b, rb, rc));
        return _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(v, low), high));  // bounds are whole numbers: before the rounding or behind it
    }
    Vec in_fixed(Vec code, Vec other) const {
        const Vec a = swapped ? other : code, b = swapped ? code : other;
        const Vec v = _mm256_add_epi32(_mm256_add_epi32(_mm256_mullo_epi32(a, fa), _mm256_mullo_epi32(b, fb)), fc);
        return clamp(_mm256_sra_epi32(v, shift), lo, hi);
    }
};

// Whole numbers of two pixels' 16 channels to bytes: + zero with saturation to 16 bits, then to 8, then the bounds. Pixels end in a half each.
struct Packed {
    Vec zero, lo, hi;
    Packed(int z, int least, int most) {
        zero = _mm256_set1_epi16(static_cast<int16_t>(z));
        lo = _mm256_set1_epi8(static_cast<char>(least)), hi = _mm256_set1_epi8(static_cast<char>(most));
    }
    // The bytes of a, b, c and d, of four each in either half.
    Vec bytes(Vec a, Vec b, Vec c, Vec d) const {
        const Vec ab = _mm256_adds_epi16(_mm256_packs_epi32(a, b), zero), cd = _mm256_adds_epi16(_mm256_packs_epi32(c, d), zero);
        return _mm256_min_epu8(_mm256_max_epu8(_mm256_packus_epi16(ab, cd), lo), hi);
    }
    Vec operator()(Vec a, Vec b, Vec c, Vec d) const {
        return _mm256_permutevar8x32_epi32(bytes(a, b, c, d), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    }
};

}  // namespace
}  // namespace hasten
