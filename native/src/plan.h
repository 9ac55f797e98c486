// The plan file: what lower/ (Python) writes and the engine maps. One flat, little-endian file: header, tensors, ops, ports, names, constants.
//
// Activations lie pixel by pixel (N, H, W, C), perhaps with a halo of the value zero around them, so that a padded convolution reads without
// asking where it is. Weights lie packed for 16 output channels and 4 inputs at a time, the layout that every level of instructions reads.
// Every number in a file is checked by load.cpp before a kernel sees it.
#pragma once

#include <cstdint>

#include "hasten.h"

namespace hasten {

constexpr char MAGIC[8] = {'h', 'a', 's', 't', 'e', 'n', 'p', 'l'};
constexpr uint32_t VERSION = 2;
constexpr uint64_t ALIGN = 64;

// Output channels of a block of packed weights, inputs that are multiplied in one step: [block][step][16][4].
constexpr int BLOCK = 16, GROUP = 4;

struct Header {
    char magic[8];
    uint32_t version, header_bytes;
    uint64_t file_bytes;
    uint32_t checksum;  // CRC-32 (as zlib's) of everything behind the header
    uint32_t dynamic_batch;
    uint32_t tensors, ops, inputs, outputs;
    uint64_t tensors_at, ops_at, ports_at, names_at, data_at;
    uint64_t names_bytes, data_bytes;
    uint64_t arena_bytes;  // of one sample
};
static_assert(sizeof(Header) == 112);

enum class Place : uint32_t { ARENA = 0, INPUT = 1, OUTPUT = 2, CONSTANT = 3 };  // a constant's offset counts from data_at

struct Tensor {
    uint32_t place, type;
    uint32_t port;                 // of an input or output: which
    int32_t h, w, c;               // rows, pixels of a row, channels
    int32_t pixel, row, origin;    // elements from pixel to pixel, from row to row, from the beginning to pixel (0, 0)
    int32_t top, left, bottom, right;  // the halo
    int32_t fill;                  // the code of the halo
    uint64_t offset, bytes;        // of one sample: its place in the arena or the constants (a multiple of 64), its size with halo
};
static_assert(sizeof(Tensor) == 72);

struct Blob {
    uint64_t at, bytes;  // from data_at; `at` is a multiple of 64
};

constexpr int MAX_INPUTS = 4, NUMBERS = 24, FLOATS = 8, BLOBS = 6;

struct Op {
    uint32_t kind;
    int32_t halo;                 // the tensor whose halo is written after this op, -1: none
    int32_t in[MAX_INPUTS], out;  // tensors, -1: none
    int32_t p[NUMBERS];
    float f[FLOATS];
    uint32_t pad;
    Blob blob[BLOBS];
};
static_assert(sizeof(Op) == 256);

struct Port {
    uint64_t name_at, name_bytes;  // in the names
    uint32_t type;
    int32_t rank;
    int64_t dims[HASTEN_MAX_DIMS];  // without the batch where it is dynamic: then dims[0] is -1
};
static_assert(sizeof(Port) == 88);

// What an op does. The numbers p, f and blobs of each are named in kernels.h, beside the arguments they become.
enum class Kind : uint32_t {
    QUANTIZE = 1,    // float port, planar -> codes
    CONV = 2,        // u8 codes x s8 weights: convolution, Gemm, MatMul
    DEPTHWISE = 3,   // one filter per channel
    ADD = 4,
    MAX_POOL = 5,
    AVERAGE_POOL = 6,
    MAP = 7,         // a code for a code, pixel by pixel: Slice, Pad, Concat, activations
    DEQUANTIZE = 8,  // codes -> float port, planar
    // On floats:
    CONV_F32 = 20,
    DEPTHWISE_F32 = 21,
    POOL_F32 = 22,
    ELEMENTWISE = 23,
    REDUCE = 24,
    NORM = 25,
    SOFTMAX = 26,
    ATTENTION = 27,
    GATHER = 28,
    CAST = 29,
    ARRANGE = 30,
    QUANTIZE_PIXELS = 31,
    DEQUANTIZE_PIXELS = 32,
    CONV_BF16 = 33,
    MOVE = 34,
};

}  // namespace hasten
