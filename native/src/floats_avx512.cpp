// Floats with AVX-512. No C++ library header and no inline function with external linkage may stand here: see kernels.h.
#include "vector_avx512.h"

namespace hasten {
namespace {
constexpr int WIDEST = 14, QUERIES = 12;  // of 32 registers
}
}  // namespace hasten

#define FLOATS(name) name##_avx512vnni
#include "floats.inc"
