// Sixteen floats at a time, for units that are compiled for AVX-512; vector_avx2.h has the same words for eight. The arithmetic of + − × ÷ is the
// compiler's own. Everything is in an anonymous namespace: nothing here may be shared by the linker.
#pragma once

#include <immintrin.h>

#include "kernels.h"

namespace hasten {
namespace {

using Floats = __m512;
using Mask = __mmask16;
constexpr int LANES = 16;

inline Floats all(float v) { return _mm512_set1_ps(v); }
inline Floats zeros() { return _mm512_setzero_ps(); }
inline Mask first(int count) { return static_cast<Mask>(count >= 16 ? 0xffff : (1 << count) - 1); }
inline Floats load(const float *p) { return _mm512_loadu_ps(p); }
inline Floats load(const float *p, Mask mask) { return _mm512_maskz_loadu_ps(mask, p); }
inline void store(float *p, Floats v) { _mm512_storeu_ps(p, v); }
inline void store(float *p, Floats v, Mask mask) { _mm512_mask_storeu_ps(p, mask, v); }
inline Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline Floats fnma(Floats a, Floats b, Floats c) { return _mm512_fnmadd_ps(a, b, c); }  // c − a b
inline Floats max(Floats a, Floats b) { return _mm512_max_ps(a, b); }                   // b where one is NaN
inline Floats min(Floats a, Floats b) { return _mm512_min_ps(a, b); }
inline Floats root(Floats v) { return _mm512_sqrt_ps(v); }
inline Floats magnitude(Floats v) { return _mm512_abs_ps(v); }
inline Floats nearest(Floats v) { return _mm512_roundscale_ps(v, 0); }
inline Floats times_power(Floats v, Floats n) { return _mm512_scalef_ps(v, n); }  // v 2^n, n whole
constexpr float NOTHING = -104.0f;  // e^x is zero: less than half of the least float
inline Mask less(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
inline Floats choose(Mask mask, Floats yes, Floats no) { return _mm512_mask_blend_ps(mask, no, yes); }
inline Floats with_sign(Floats size, Floats of) { return _mm512_xor_ps(size, _mm512_and_ps(of, all(-0.0f))); }  // size, negated where `of` is
inline float total(Floats v) { return _mm512_reduce_add_ps(v); }
inline float largest(Floats v) { return _mm512_reduce_max_ps(v); }

// Whole numbers from 0 to 255, as floats, to bytes.
inline void store_codes(uint8_t *p, Floats v, Mask mask) { _mm_mask_storeu_epi8(p, mask, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v))); }
inline Floats load_codes(const uint8_t *p, Mask mask) { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, p))); }

// Rows to columns: exchanges of 1, 2, 4 and 8 places, each between halves of vectors.
inline void transpose(Floats (&m)[16]) {
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

}  // namespace
}  // namespace hasten
