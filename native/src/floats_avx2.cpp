// Floats with AVX2 and FMA. No C++ library header and no inline function with external linkage may stand here: see kernels.h.
#include "vector_avx2.h"

namespace hasten {
namespace {
constexpr int WIDEST = 6, QUERIES = 6;  // of 16 registers
}
}  // namespace hasten

#define FLOATS(name) name##_avx2
#include "floats.inc"
