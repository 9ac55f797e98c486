// Which kernel runs: the row of kernels.inc with the highest level that the processor has.
#pragma once

#include "kernels.h"

namespace hasten {

// Whether this build has the level and this processor runs it. They are no chain: some processors have AVX-512 and not AVX-VNNI.
bool runs(Isa isa);

// The highest level that runs, or the one that HASTEN_ISA asks for, if it runs.
Isa level();
const char *name(Isa isa);

enum class Operator {
    CONV, DEPTHWISE, ADD, POOL, MAP, QUANTIZE, DEQUANTIZE, PEAK,  // on codes
    ELEMENTWISE, REDUCE, NORM, SOFTMAX, ATTENTION, GATHER, CAST, ARRANGE, MOVE  // on floats; CONV, DEPTHWISE, POOL and QUANTIZE, too, by their types
};

struct Row {
    Operator op;
    const char *types;
    Isa isa;
    const char *tile, *function;
    Kernel kernel;
};

// The whole table, and its length.
const Row *rows(int *count);

// The best row for an operator at a level, of those that run; never null, for every operator has a scalar row.
const Row *best(Operator op, const char *types, Isa at_most);

}  // namespace hasten
