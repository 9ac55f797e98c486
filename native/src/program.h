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
        ConvF32 conv_f32;
        ConvBF16 conv_bf16;
        DepthwiseF32 depthwise_f32;
        PoolF32 pool_f32;
        Elementwise elementwise;
        Reduce reduce;
        Norm norm;
        Softmax softmax;
        Attention attention;
        Gather gather;
        Cast cast;
        Arrange arrange;
        Move move;
        QuantizePixels quantize_pixels;
        DequantizePixels dequantize_pixels;
    };
    int32_t in[MAX_INPUTS], out, halo;  // tensors, -1: none
    int32_t rows, blocks;      // how the work can be parted
    bool by_blocks;            // whether a team parts it by blocks of channels, else by rows
    bool matrix;               // one pixel of a sample: samples can be computed as if they were pixels
    size_t scratch;            // bytes of a thread's own memory that it needs
    double products, work;     // multiplications; these, or bytes / 16: what the decision to share goes by
};

struct Program {
    Header header;
    std::vector<Tensor> tensors;
    std::vector<Step> steps;
    std::vector<Port> ports;  // inputs, then outputs
    std::vector<std::string> names;
    std::vector<size_t> port_bytes;  // of one sample
    double work = 0;
    size_t scratch = 0;             // the most that a step needs
    std::vector<size_t> gather_at;  // steps that look numbers up in a table
};

// Check the file in [data, data + size), aligned to 64 bytes, and make it a program. Throws Failure; reads nothing outside.
Program read_program(const unsigned char *data, size_t size, Isa at_most);

}  // namespace hasten
