// Which kernel runs: the row of kernels.inc with the highest level that the processor has.
#pragma once

#include "kernels.h"

namespace hasten {

// The processor's level, or the lower one that HASTEN_ISA asks for.
Isa level();
const char *name(Isa isa);

enum class Operator { CONV, DEPTHWISE, ADD, POOL, MAP, QUANTIZE, DEQUANTIZE };

struct Row {
    Operator op;
    const char *types;
    Isa isa;
    const char *tile, *function;
    Kernel kernel;
};

// The whole table, and its length.
const Row *rows(int *count);

// The best row for an operator at a level; never null, for every operator has a scalar row.
const Row *best(Operator op, const char *types, Isa at_most);

}  // namespace hasten
