// The kernels of AVX-VNNI for the tests, with the instruction's EVEX form: the same arithmetic, on processors that have AVX-512 VNNI instead.
#define conv_u8s8_avx2vnni conv_u8s8_avx2vnni_evex
#define depthwise_u8s8_avx2vnni depthwise_u8s8_avx2vnni_evex
#define peak_u8s8_avx2vnni peak_u8s8_avx2vnni_evex
#define _mm256_dpbusd_avx_epi32 _mm256_dpbusd_epi32
#include "../src/kernels_avx2vnni.cpp"
