// Eight floats at a time, for units that are compiled for AVX2 and FMA: the words of vector_avx512.h.
#pragma once

#include <immintrin.h>

#include "kernels.h"

namespace hasten {
namespace {

using Floats = __m256;
using Mask = __m256i;  // all bits of a lane, or none
constexpr int LANES = 8;

inline Floats all(float v) { return _mm256_set1_ps(v); }
inline Floats zeros() { return _mm256_setzero_ps(); }
inline Mask first(int count) { return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)); }
inline Floats load(const float *p) { return _mm256_loadu_ps(p); }
inline Floats load(const float *p, Mask mask) { return _mm256_maskload_ps(p, mask); }
inline void store(float *p, Floats v) { _mm256_storeu_ps(p, v); }
// A masked store takes some processors a dozen cycles: whole vectors go without.
inline void store(float *p, Floats v, Mask mask) {
    if (_mm256_movemask_ps(_mm256_castsi256_ps(mask)) == 0xff)
        store(p, v);
    else
        _mm256_maskstore_ps(p, mask, v);
}
inline Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
inline Floats fnma(Floats a, Floats b, Floats c) { return _mm256_fnmadd_ps(a, b, c); }
inline Floats max(Floats a, Floats b) { return _mm256_max_ps(a, b); }
inline Floats min(Floats a, Floats b) { return _mm256_min_ps(a, b); }
inline Floats root(Floats v) { return _mm256_sqrt_ps(v); }
inline Floats magnitude(Floats v) { return _mm256_andnot_ps(all(-0.0f), v); }
inline Floats nearest(Floats v) { return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// v 2^n, n whole, from −126 on, where it is zero: floats with fewer digits cost some processors a hundred cycles. 2^(n − 1) twice: 2^128 is no float.
inline Floats times_power(Floats v, Floats n) {
    return (v + v) * _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(126)), 23));
}
constexpr float NOTHING = -87.4f;  // e^x is zero: 2^-126 by the above
inline Mask less(Floats a, Floats b) { return _mm256_castps_si256(_mm256_cmp_ps(a, b, _CMP_LT_OQ)); }
inline Floats choose(Mask mask, Floats yes, Floats no) { return _mm256_blendv_ps(no, yes, _mm256_castsi256_ps(mask)); }
inline Floats with_sign(Floats size, Floats of) { return _mm256_xor_ps(size, _mm256_and_ps(of, all(-0.0f))); }

inline float total(Floats v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

inline float largest(Floats v) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

inline void store_codes(uint8_t *p, Floats v, Mask mask) {
    const __m256i whole = _mm256_cvtps_epi32(v);
    const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    const int64_t bytes = _mm_cvtsi128_si64(_mm_packus_epi16(words, words));
    const int count = __builtin_popcount(static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(mask))));
    if (count == 8)
        __builtin_memcpy(p, &bytes, 8);
    else
        for (int i = 0; i < count; i++) p[i] = static_cast<uint8_t>(bytes >> (8 * i));
}

inline Floats load_codes(const uint8_t *p, Mask mask) {
    int64_t bytes = 0;
    const int count = __builtin_popcount(static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(mask))));
    if (count == 8)
        __builtin_memcpy(&bytes, p, 8);
    else
        for (int i = 0; i < count; i++) bytes |= int64_t{p[i]} << (8 * i);
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(bytes)));
}

inline void transpose(Floats (&m)[8]) {
    Floats t[8];
    for (int i = 0; i < 8; i += 2) t[i] = _mm256_unpacklo_ps(m[i], m[i + 1]), t[i + 1] = _mm256_unpackhi_ps(m[i], m[i + 1]);
    for (int i = 0; i < 8; i += 4) {
        for (int j = 0; j < 2; j++) {
            m[i + 2 * j] = _mm256_shuffle_ps(t[i + j], t[i + j + 2], 0x44);
            m[i + 2 * j + 1] = _mm256_shuffle_ps(t[i + j], t[i + j + 2], 0xee);
        }
    }
    for (int i = 0; i < 4; i++) t[i] = _mm256_permute2f128_ps(m[i], m[4 + i], 0x20), t[4 + i] = _mm256_permute2f128_ps(m[i], m[4 + i], 0x31);
    for (int i = 0; i < 8; i++) m[i] = t[i];
}

}  // namespace
}  // namespace hasten
