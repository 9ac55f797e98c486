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

constexpr Isa LEVELS[] = {SCALAR, AVX2, AVX2VNNI, AVX512VNNI, AVX512BF16};
constexpr const char *NAMES[] = {"scalar", "avx2", "avx2vnni", "avx512vnni", "avx512bf16"};

bool supported(Isa isa) {
    switch (isa) {
#if defined(__x86_64__) && defined(__GNUC__)
#ifdef HASTEN_HAVE_AVX2
        case AVX2: return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
#ifdef HASTEN_HAVE_AVX2VNNI
        case AVX2VNNI: return supported(AVX2) && __builtin_cpu_supports("avxvnni");
#endif
#ifdef HASTEN_HAVE_AVX512VNNI
        case AVX512VNNI:
            return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                   __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi");
#endif
#ifdef HASTEN_HAVE_AVX512BF16
        case AVX512BF16: return supported(AVX512VNNI) && __builtin_cpu_supports("avx512bf16");
#endif
#endif
        default: return isa == SCALAR;
    }
}

}  // namespace

const char *name(Isa isa) { return NAMES[isa]; }

bool runs(Isa isa) {
    static const bool known[] = {supported(SCALAR), supported(AVX2), supported(AVX2VNNI), supported(AVX512VNNI), supported(AVX512BF16)};
    return known[isa];
}

Isa level() {
    Isa most = SCALAR;
    const char *wish = std::getenv("HASTEN_ISA");
    for (const Isa isa : LEVELS) {
        if (!runs(isa)) continue;
        if (wish && std::strcmp(wish, NAMES[isa]) == 0) return isa;
        most = isa;
    }
    return most;
}

const Row *rows(int *count) {
    *count = static_cast<int>(sizeof TABLE / sizeof *TABLE);
    return TABLE;
}

const Row *best(Operator op, const char *types, Isa at_most) {
    const Row *found = nullptr;
    for (const Row &row : TABLE)
        if (row.op == op && std::strcmp(row.types, types) == 0 && row.isa <= at_most && runs(row.isa) && (!found || row.isa > found->isa)) found = &row;
    return found;
}

}  // namespace hasten
