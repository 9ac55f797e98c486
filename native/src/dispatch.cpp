#include "dispatch.h"

#include <cstdlib>
#include <cstring>

namespace hasten {
namespace {

const Row TABLE[] = {
#define KERNEL(op, types, isa, tile, function) {Operator::op, #types, isa, #tile, #function, function},
#include "kernels.inc"
#undef KERNEL
};

constexpr const char *NAMES[] = {"scalar", "avx2", "avx2vnni", "avx512vnni"};

Isa processor() {
#if defined(__x86_64__) && defined(__GNUC__)
    __builtin_cpu_init();
#ifdef HASTEN_HAVE_AVX512VNNI
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi"))
        return AVX512VNNI;
#endif
#ifdef HASTEN_HAVE_AVX2
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
#ifdef HASTEN_HAVE_AVX2VNNI
        if (__builtin_cpu_supports("avxvnni")) return AVX2VNNI;
#endif
        return AVX2;
    }
#endif
#endif
    return SCALAR;
}

}  // namespace

const char *name(Isa isa) { return NAMES[isa]; }

Isa level() {
    const Isa most = processor();
    if (const char *wish = std::getenv("HASTEN_ISA"))
        for (int i = 0; i <= most; i++)
            if (std::strcmp(wish, NAMES[i]) == 0) return static_cast<Isa>(i);
    return most;
}

const Row *rows(int *count) {
    *count = static_cast<int>(sizeof TABLE / sizeof *TABLE);
    return TABLE;
}

const Row *best(Operator op, const char *types, Isa at_most) {
    const Row *found = nullptr;
    for (const Row &row : TABLE)
        if (row.op == op && std::strcmp(row.types, types) == 0 && row.isa <= at_most && (!found || row.isa > found->isa)) found = &row;
    return found;
}

}  // namespace hasten
