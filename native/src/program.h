// A plan made ready to run: every number checked, every kernel chosen, every pointer into the constants set.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "dispatch.h"
#include "kernels.h"
#include "plan.h"

namespace hasten {

// Thrown inside the engine; the C interface turns it into a status and a text.
struct Failure {
    hasten_status status;
    std::string text;
};

struct Step {
    Kind kind;
    Kernel kernel;
    const Row *row;
    union {
        Conv conv;
        Depthwise depthwise;
        Add add;
        Pool pool;
        Map map;
        Quantize quantize;
        Dequantize dequantize;
    };
    int32_t in[2], out, halo;  // tensors, -1: none
    int32_t rows, blocks;      // how the work can be parted
    bool by_blocks;            // whether a team parts it by blocks of channels, else by rows
    bool matrix;               // one pixel of a sample: samples can be computed as if they were pixels
    double work;               // products, or bytes / 16: what the decision to share goes by
};

struct Program {
    Header header;
    std::vector<Tensor> tensors;
    std::vector<Step> steps;
    std::vector<Port> ports;  // inputs, then outputs
    std::vector<std::string> names;
    std::vector<size_t> port_bytes;  // of one sample
    double work = 0;
};

// Check the file in [data, data + size), aligned to 64 bytes, and make it a program. Throws Failure; reads nothing outside.
Program read_program(const unsigned char *data, size_t size, Isa at_most);

}  // namespace hasten
