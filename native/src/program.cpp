#include "program.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace hasten {
namespace {

constexpr int64_t MOST = INT64_C(1) << 31;          // of any size, stride and offset: products of two of them fit 64 bits
constexpr int32_t LARGEST = 1 << 30;                // of any one number: the sum of two of them, times a third, twice, fits 64 bits
constexpr uint64_t MOST_ARENA = UINT64_C(1) << 36;  // bytes of one sample
constexpr uint32_t MOST_RECORDS = 1 << 20;
constexpr int32_t SHORT = 14;  // pixels: a shorter row does not fill the widest tile

[[noreturn]] void bad(const std::string &text) { throw Failure{HASTEN_BAD_FILE, text}; }

void must(bool holds, const std::string &text) {
    if (!holds) bad(text);
}

uint32_t crc32(const unsigned char *data, size_t size) {
    // Eight tables: eight bytes a step (Kounavis and Berry's slicing-by-8), which checks a file of 10 MB in some milliseconds.
    static const auto tables = [] {
        struct { uint32_t t[8][256]; } made;
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t c = i;
            for (int bit = 0; bit < 8; bit++) c = (c >> 1) ^ (0xEDB88320u & (0u - (c & 1)));
            made.t[0][i] = c;
        }
        for (uint32_t i = 0; i < 256; i++)
            for (int k = 1; k < 8; k++) made.t[k][i] = (made.t[k - 1][i] >> 8) ^ made.t[0][made.t[k - 1][i] & 255];
        return made;
    }();
    uint32_t crc = ~0u;
    for (; size >= 8; data += 8, size -= 8) {
        uint32_t low, high;
        std::memcpy(&low, data, 4);
        std::memcpy(&high, data + 4, 4);
        low ^= crc;
        crc = tables.t[7][low & 255] ^ tables.t[6][low >> 8 & 255] ^ tables.t[5][low >> 16 & 255] ^ tables.t[4][low >> 24] ^
              tables.t[3][high & 255] ^ tables.t[2][high >> 8 & 255] ^ tables.t[1][high >> 16 & 255] ^ tables.t[0][high >> 24];
    }
    for (; size; data++, size--) crc = (crc >> 8) ^ tables.t[0][(crc ^ *data) & 255];
    return ~crc;
}

size_t size_of(uint32_t type) {
    switch (type) {
        case HASTEN_F32: case HASTEN_I32: return 4;
        case HASTEN_U8: case HASTEN_I8: return 1;
        case HASTEN_I64: return 8;
        default: bad("a tensor or port has the unknown type " + std::to_string(type));
    }
}

// The file while it is read: where a section lies, and the constants.
class Reader {
public:
    Reader(const unsigned char *data, size_t size, Isa at_most) : data_(data), size_(size), isa_(at_most) {}

    Program read() {
        header();
        ports();
        tensors();
        for (uint32_t i = 0; i < program_.header.ops; i++) {
            Op op;
            std::memcpy(&op, data_ + program_.header.ops_at + i * sizeof op, sizeof op);
            what_ = "op " + std::to_string(i) + ": ";
            program_.steps.push_back(step(op));
            program_.work += program_.steps.back().work;
            program_.scratch = std::max(program_.scratch, program_.steps.back().scratch);
        }
        for (uint32_t i = 0; i < program_.header.outputs; i++) must(written_[i], "no op writes output " + std::to_string(i));
        return std::move(program_);
    }

private:
    void header() {
        Header &h = program_.header;
        must(size_ >= sizeof h, "it is too short for a plan: " + std::to_string(size_) + " bytes");
        std::memcpy(&h, data_, sizeof h);
        must(std::memcmp(h.magic, MAGIC, sizeof MAGIC) == 0, "it is not a plan: it does not begin with 'hastenpl'");
        must(h.version == VERSION, "it is a plan of version " + std::to_string(h.version) + ", this engine reads version " + std::to_string(VERSION) +
                                       ": lower the model again");
        must(h.header_bytes == sizeof h, "its header has the wrong size");
        must(h.file_bytes == size_, "it should have " + std::to_string(h.file_bytes) + " bytes and has " + std::to_string(size_) + ": truncated?");
        must(h.checksum == crc32(data_ + sizeof h, size_ - sizeof h), "its checksum does not fit: the file was changed or damaged");
        must(h.dynamic_batch <= 1, "its batch is neither fixed nor dynamic");
        must(h.tensors <= MOST_RECORDS && h.ops <= MOST_RECORDS, "it has too many tensors or ops");
        must(h.inputs >= 1 && h.inputs <= 64 && h.outputs >= 1 && h.outputs <= 64, "it must have 1 to 64 inputs and outputs");
        must(h.arena_bytes <= MOST_ARENA, "it asks for too much memory");
        section(h.tensors_at, h.tensors, sizeof(Tensor), "tensors");
        section(h.ops_at, h.ops, sizeof(Op), "ops");
        section(h.ports_at, h.inputs + h.outputs, sizeof(Port), "ports");
        section(h.names_at, h.names_bytes, 1, "names");
        section(h.data_at, h.data_bytes, 1, "constants");
        must(h.data_at % ALIGN == 0, "its constants are not aligned");
    }

    void section(uint64_t at, uint64_t count, uint64_t each, const char *name) {
        must(at >= sizeof(Header) && at <= size_ && count <= (size_ - at) / each, std::string("its ") + name + " reach beyond the file");
    }

    void ports() {
        const Header &h = program_.header;
        written_.assign(h.outputs, false);
        for (uint32_t i = 0; i < h.inputs + h.outputs; i++) {
            Port port;
            std::memcpy(&port, data_ + h.ports_at + i * sizeof port, sizeof port);
            must(port.rank >= 0 && port.rank <= HASTEN_MAX_DIMS, "a port has " + std::to_string(port.rank) + " dimensions");
            must(port.name_at <= h.names_bytes && port.name_bytes <= h.names_bytes - port.name_at, "a port's name reaches beyond the names");
            must(!h.dynamic_batch || (port.rank >= 1 && port.dims[0] == -1), "a port lacks the batch");
            int64_t bytes = static_cast<int64_t>(size_of(port.type));
            for (int d = h.dynamic_batch ? 1 : 0; d < port.rank; d++) {
                must(port.dims[d] >= 1 && port.dims[d] < MOST && bytes * port.dims[d] < MOST, "a port is empty or too large");
                bytes *= port.dims[d];
            }
            program_.ports.push_back(port);
            program_.port_bytes.push_back(static_cast<size_t>(bytes));
            program_.names.emplace_back(reinterpret_cast<const char *>(data_ + h.names_at + port.name_at), port.name_bytes);
        }
    }

    void tensors() {
        const Header &h = program_.header;
        uint64_t arena = 0;
        for (uint32_t i = 0; i < h.tensors; i++) {
            Tensor t;
            std::memcpy(&t, data_ + h.tensors_at + i * sizeof t, sizeof t);
            what_ = "tensor " + std::to_string(i) + ": ";
            const int64_t size = static_cast<int64_t>(size_of(t.type));
            check(t.h >= 1 && t.w >= 1 && t.c >= 1 && t.pixel >= 0 && t.row >= 0 && t.origin >= 0, "its shape or strides are negative");
            check(t.top >= 0 && t.left >= 0 && t.bottom >= 0 && t.right >= 0 && t.fill >= 0 && t.fill <= 255, "its halo is negative");
            check(t.bytes < static_cast<uint64_t>(MOST), "it is too large");
            for (const int32_t n : {t.h, t.w, t.c, t.pixel, t.row, t.origin, t.top, t.left, t.bottom, t.right})
                check(n < LARGEST, "its shape or strides are too large");
            const int64_t elements = static_cast<int64_t>(t.bytes) / size;
            const int64_t first = t.origin - int64_t{t.top} * t.row - int64_t{t.left} * t.pixel;
            // A halo is written in whole pixels, gaps included; without one a pixel ends with its channels: it may be part of wider ones.
            const bool halo = (t.top | t.left | t.bottom | t.right) != 0;
            const int64_t width = halo ? std::max(t.pixel, t.c) : t.c;
            const int64_t last = t.origin + (int64_t{t.h} - 1 + t.bottom) * t.row + (int64_t{t.w} - 1 + t.right) * t.pixel + width;
            check(first >= 0 && last <= elements, "its pixels or halo reach beyond it");
            // Pixels that lay upon each other would let a small file ask for work without end.
            check(int64_t{t.h} * t.w <= elements / t.c, "its pixels overlap");
            if (t.place == static_cast<uint32_t>(Place::ARENA)) {
                check(t.offset % ALIGN == 0 && t.bytes % ALIGN == 0 && t.offset <= h.arena_bytes && t.bytes <= h.arena_bytes - t.offset,
                      "it reaches beyond the arena");
                check(t.type == HASTEN_U8 || t.type == HASTEN_F32, "the arena holds codes and floats");
                check(size == 1 || t.fill == 0, "a halo of floats is zero");
                arena = std::max(arena, t.offset + t.bytes);
            } else if (t.place == static_cast<uint32_t>(Place::CONSTANT)) {
                check(t.type == HASTEN_F32 && !halo && t.offset % ALIGN == 0 && t.offset <= h.data_bytes && t.bytes <= h.data_bytes - t.offset,
                      "it reaches beyond the constants");
            } else {
                const bool input = t.place == static_cast<uint32_t>(Place::INPUT);
                check(input || t.place == static_cast<uint32_t>(Place::OUTPUT), "it lies nowhere");
                check(t.port < (input ? h.inputs : h.outputs), "it has no port");
                const size_t port = t.port + (input ? 0 : h.inputs);
                check(t.type == program_.ports[port].type, "its type is not that of its port");
                check(t.bytes == program_.port_bytes[port] && elements / t.h / t.w == t.c && int64_t{t.c} * t.h * t.w == elements,
                      "its shape is not that of its port");
                check(!halo && t.origin == 0, "a port has no halo");
            }
            program_.tensors.push_back(t);
        }
        must(h.arena_bytes == arena, "it asks for more memory than its tensors take");
    }

    Step step(const Op &op) {
        Step s;
        std::memset(static_cast<void *>(&s), 0, sizeof s);
        s.kind = static_cast<Kind>(op.kind);
        std::copy(op.in, op.in + MAX_INPUTS, s.in);
        s.out = op.out, s.halo = op.halo;
        check(op.out >= 0 && static_cast<uint32_t>(op.out) < program_.header.tensors, "it writes no tensor");
        for (int i = 0; i < MAX_INPUTS; i++)
            check(op.in[i] >= -1 && (op.in[i] < 0 || static_cast<uint32_t>(op.in[i]) < program_.header.tensors), "it reads a tensor that is none");
        check(op.halo >= -1 && (op.halo < 0 || static_cast<uint32_t>(op.halo) < program_.header.tensors), "its halo is no tensor's");
        check(op.halo < 0 || at(op.halo).place == static_cast<uint32_t>(Place::ARENA), "only tensors of the arena have a halo");
        const Tensor &y = at(op.out);
        check(y.place == static_cast<uint32_t>(Place::ARENA) || y.place == static_cast<uint32_t>(Place::OUTPUT), "it writes an input or constant");
        if (y.place == static_cast<uint32_t>(Place::OUTPUT)) written_[y.port] = true;
        s.rows = y.h, s.blocks = 1;
        switch (s.kind) {
            case Kind::QUANTIZE: quantize(op, s); break;
            case Kind::CONV: conv(op, s); break;
            case Kind::DEPTHWISE: depthwise(op, s); break;
            case Kind::ADD: add(op, s); break;
            case Kind::MAX_POOL: case Kind::AVERAGE_POOL: pool(op, s); break;
            case Kind::MAP: map(op, s); break;
            case Kind::DEQUANTIZE: dequantize(op, s); break;
            case Kind::CONV_F32: conv_f32(op, s); break;
            case Kind::CONV_BF16: conv_bf16(op, s); break;
            case Kind::DEPTHWISE_F32: depthwise_f32(op, s); break;
            case Kind::POOL_F32: pool_f32(op, s); break;
            case Kind::ELEMENTWISE: elementwise(op, s); break;
            case Kind::REDUCE: reduce(op, s); break;
            case Kind::NORM: norm(op, s); break;
            case Kind::SOFTMAX: softmax(op, s); break;
            case Kind::ATTENTION: attention(op, s); break;
            case Kind::GATHER: gather(op, s); break;
            case Kind::CAST: cast(op, s); break;
            case Kind::ARRANGE: arrange(op, s); break;
            case Kind::MOVE: move(op, s); break;
            case Kind::QUANTIZE_PIXELS: quantize_pixels(op, s); break;
            case Kind::DEQUANTIZE_PIXELS: dequantize_pixels(op, s); break;
            default: bad(what_ + "this engine does not know its kind " + std::to_string(op.kind));
        }
        s.kernel = s.row->kernel;
        return s;
    }

    // p: zero, lo, hi, widen. f: scale.
    void quantize(const Op &op, Step &s) {
        const Tensor &x = need(op.in[0], HASTEN_F32), &y = need(op.out, HASTEN_U8);
        check(x.place == static_cast<uint32_t>(Place::INPUT), "only an input is quantized");
        arena(y);
        same_shape(x, y);
        check(op.f[0] > 0 && std::isfinite(op.f[0]), "its scale is not positive");
        codes(op.p[0], op.p[1], op.p[2]);
        s.quantize = {strides(y), y.h, y.w, y.c, op.p[3] != 0, op.f[0], op.p[0], op.p[1], op.p[2]};
        if (op.p[3]) check(y.origin + int64_t{y.h - 1} * y.row + int64_t{y.w} * y.pixel <= static_cast<int64_t>(y.bytes), "its pixels reach beyond it");
        s.row = best(Operator::QUANTIZE, "f32u8", isa_);
        s.work = double(y.h) * y.w * y.c * 4 / 16;
    }

    // p: stride h, stride w, segments, groups, finish, zero, lo, hi, the residual's swapped, lo, hi, fa, fb, fc, shift; the end's activation.
    // f: unit, the residual's ra, rb, rc; the end's a, b. blobs: segments (int32), weights, bias (int32), scale (float32) or factor (int32),
    // shift (uint8) or the end's bias (float32), step (float32).
    void conv(const Op &op, Step &s) {
        const Tensor &x = need(op.in[0], HASTEN_U8), &y = at(op.out);
        arena(x);
        Conv &k = s.conv;
        k.x = {ptrdiff_t{positive(op.p[0])} * x.row, ptrdiff_t{positive(op.p[1])} * x.pixel};
        k.y = strides(y);
        k.h = y.h, k.w = y.w, k.c = y.c;
        k.segments = positive(op.p[2]), k.groups = positive(op.p[3]);
        k.finish = finish(op.p[4]);
        const bool floats = k.finish == VALUES || k.finish == VALUES_FIXED, codes_out = !floats;
        check(y.type == (floats ? HASTEN_F32 : HASTEN_U8), "its output has the wrong type");
        check(floats || y.place == static_cast<uint32_t>(Place::ARENA), "codes don't go to an output");
        k.zero = op.p[5], k.lo = op.p[6], k.hi = op.p[7];
        if (codes_out) codes(k.zero, k.lo, k.hi);
        k.unit = op.f[0];
        const int64_t blocks = (int64_t{y.c} + BLOCK - 1) / BLOCK, steps = int64_t{k.segments} * k.groups;
        check(steps < MOST && blocks * steps < MOST, "its sums are too long");
        k.segment = blob<int32_t>(op, 0, k.segments);
        k.weights = blob<int8_t>(op, 1, blocks * steps * BLOCK * GROUP);
        scales(op, 2, blocks * BLOCK, k.finish, &k.bias, &k.scale, &k.factor, &k.shift);
        k.fits = fits(k.bias, k.scale, blocks * BLOCK, steps * GROUP);
        for (int i = 0; i < k.segments; i++) reach(x, k.segment[i], int64_t{k.groups} * GROUP, y, k.x);
        if (k.finish == VALUES || k.finish == VALUE_CODES) k.end = end(op, 4, 15, 4, y, &k.r);
        if (k.finish == VALUE_CODES) k.step = blob<float>(op, 5, blocks * BLOCK);
        if (op.in[1] >= 0 && (k.finish == CODES || k.finish == CODES_FIXED)) {
            const Tensor &r = need(op.in[1], HASTEN_U8);
            arena(r);
            same_shape(r, y);
            k.r = strides(r);
            k.add = residual(op, 8, 1, k.finish == CODES_FIXED);
        } else {
            check(op.in[1] < 0 || k.end.residual, "its residual is not used");
        }
        s.row = best(Operator::CONV, "u8s8", isa_);
        s.products = s.work = double(steps) * GROUP * y.h * y.w * y.c;
        share(s, k, y, blocks, blocks * steps * BLOCK * GROUP > int64_t{x.h} * x.w * x.c);
    }

    // How a convolution's work is parted: by what leaves the least to the thread that has most; where both are alike, by rows while the weights
    // are the smaller part. A column of pixels, a sequence's positions, is computed as a row, so that they share the weights.
    template <class K>
    void share(Step &s, K &k, const Tensor &y, int64_t blocks, bool weights_are_more) const {
        s.blocks = static_cast<int32_t>(blocks);
        s.matrix = y.h == 1 && y.w == 1;
        const bool beside = k.x.row == y.w * k.x.pixel && k.y.row == y.w * k.y.pixel && (s.in[1] < 0 || k.r.row == y.w * k.r.pixel);
        if (k.segments == 1 && beside && y.h > 1 && y.w > 1 && y.w < SHORT) {  // short rows that touch are computed as one
            k.h = 1, k.w = y.h * y.w;
            s.rows = 1;
        }
        if (y.w == 1 && y.h > 1) {
            std::swap(k.h, k.w);
            k.x.pixel = k.x.row, k.y.pixel = k.y.row, k.r.pixel = k.r.row;
            s.rows = 1;
        }
        const auto most = [](int parts) { return double((parts + 1) / 2) / parts; };
        const double rows = most(s.rows), channels = most((s.blocks + 1) / 2);
        s.by_blocks = channels < rows || (channels == rows && weights_are_more);
    }

    // What becomes of a layer's values: activation p, parameters f and f + 1, a bias in a blob (or none), a residual in in[1] (or none).
    End end(const Op &op, int bias, int p, int f, const Tensor &y, Strides *r) const {
        End e = {nullptr, 0, op.p[p], op.f[f], op.f[f + 1]};
        activation(e.activation);
        const int64_t padded = (int64_t{y.c} + BLOCK - 1) / BLOCK * BLOCK;
        if (op.blob[bias].bytes) e.bias = blob<float>(op, bias, padded);
        if (op.in[1] >= 0) {
            const Tensor &t = need(op.in[1], HASTEN_F32);
            of_a_sample(t);
            same_shape(t, y);
            *r = strides(t);
            e.residual = 1;
        }
        return e;
    }

    // p: stride h, stride w, groups, finish, zero, lo, hi, together. blobs: taps (int32), weights, bias, scale or factor, shift.
    // together: pixels that are computed as if their channels were one pixel's, where a pixel has few.
    void depthwise(const Op &op, Step &s) {
        const Tensor &x = need(op.in[0], HASTEN_U8), &y = need(op.out, HASTEN_U8);
        arena(x), arena(y);
        Depthwise &k = s.depthwise;
        k.x = {ptrdiff_t{positive(op.p[0])} * x.row, ptrdiff_t{positive(op.p[1])} * x.pixel};
        k.y = strides(y);
        k.h = y.h, k.w = y.w, k.c = y.c, k.groups = positive(op.p[2]);
        k.finish = finish(op.p[3]);
        check(k.finish == CODES || k.finish == CODES_FIXED, "it gives codes");
        check(x.c == y.c, "it has other channels than its input");
        const int32_t together = positive(op.p[7]);
        if (together > 1) {
            check(op.p[1] == 1 && x.pixel == x.c && y.pixel == y.c && y.w % together == 0 && int64_t{y.c} * together <= 64, "its pixels don't lie together");
            k.w /= together, k.c *= together, k.x.pixel *= together, k.y.pixel *= together;
        }
        k.zero = op.p[4], k.lo = op.p[5], k.hi = op.p[6];
        codes(k.zero, k.lo, k.hi);
        const int64_t blocks = (int64_t{k.c} + 63) / 64;
        k.tap = blob<int32_t>(op, 0, int64_t{k.groups} * GROUP);
        k.weights = blob<int8_t>(op, 1, blocks * k.groups * 256);
        scales(op, 2, blocks * 64, k.finish, &k.bias, &k.scale, &k.factor, &k.shift);
        k.fits = fits(k.bias, k.scale, blocks * 64, int64_t{k.groups} * GROUP);
        for (int i = 0; i < GROUP * k.groups; i++) reach(x, k.tap[i], blocks * 64, y, {k.x.row, ptrdiff_t{op.p[1]} * x.pixel});
        k.slide = k.groups == 3 ? sliding(k) : 0;
        s.row = best(Operator::DEPTHWISE, "u8s8", isa_);
        s.blocks = static_cast<int32_t>(blocks);
        s.products = double(k.groups) * 3 * y.h * y.w * y.c;
        s.work = s.products * 4;
        s.by_blocks = s.rows < 8 && s.blocks % 2 == 0;
    }

    // By how many groups the window moves, if each group is the one before it, moved by a pixel.
    static int32_t sliding(const Depthwise &k) {
        const ptrdiff_t column = ptrdiff_t{k.tap[GROUP]} - k.tap[0];
        for (int i = 0; i < GROUP * k.groups; i++)
            if (k.tap[i] - k.tap[i % GROUP] != i / GROUP * column) return 0;
        return column > 0 && k.x.pixel == column ? 1 : column > 0 && k.x.pixel == 2 * column ? 2 : 0;
    }

    // p: fixed, then the residual's numbers as in conv. f: nothing, ra, rb, rc.
    void add(const Op &op, Step &s) {
        const Tensor &a = need(op.in[0], HASTEN_U8), &b = need(op.in[1], HASTEN_U8), &y = need(op.out, HASTEN_U8);
        arena(a), arena(b), arena(y);
        same_shape(a, y), same_shape(b, y);
        s.add = {strides(a), strides(b), strides(y), y.h, y.w, y.c, op.p[0] != 0, residual(op, 8, 1, op.p[0] != 0)};
        s.add.sum.swapped = 0;
        s.row = best(Operator::ADD, "u8", isa_);
        s.work = double(y.h) * y.w * y.c * 3 / 16;
    }

    // p: kernel h, w, stride h, w, top, left, counts padding, x's zero, zero, lo, hi, fixed, factor, shift. f: x's scale, y's scale.
    void pool(const Op &op, Step &s) {
        const Tensor &x = need(op.in[0], HASTEN_U8), &y = need(op.out, HASTEN_U8);
        arena(x), arena(y);
        check(x.c == y.c, "it has other channels than its input");
        Pool &k = s.pool;
        k.x = strides(x), k.y = strides(y);
        k.h = y.h, k.w = y.w, k.c = y.c, k.in_h = x.h, k.in_w = x.w;
        k.kernel_h = positive(op.p[0]), k.kernel_w = positive(op.p[1]), k.stride_h = positive(op.p[2]), k.stride_w = positive(op.p[3]);
        k.top = op.p[4], k.left = op.p[5];
        k.average = s.kind == Kind::AVERAGE_POOL;
        windows(x, y, k.top, k.left, k.kernel_h, k.kernel_w, k.stride_h, k.stride_w);
        k.counts_padding = k.average && op.p[6], k.x_zero = op.p[7], k.zero = op.p[8], k.lo = op.p[9], k.hi = op.p[10];
        codes(k.zero, k.lo, k.hi);
        codes(k.x_zero, 0, 255);
        k.fixed = op.p[11], k.factor = op.p[12], k.shift = op.p[13];
        k.x_scale = op.f[0], k.y_scale = op.f[1];
        if (k.average) {
            check(int64_t{k.kernel_h} * k.kernel_w < (1 << 23), "its window is too large");
            if (k.fixed) check(k.shift >= 1 && k.shift <= 62, "its shift is none of 1 to 62");
            else check(k.x_scale > 0 && k.y_scale > 0 && std::isfinite(k.x_scale / k.y_scale) && std::isfinite(k.y_scale), "its scale is not positive");
        }
        s.row = best(Operator::POOL, "u8", isa_);
        s.work = double(k.kernel_h) * k.kernel_w * y.h * y.w * y.c / 16;
    }

    // p: stride h, stride w, constant (-1: none), row and pixel where it begins. blobs: the table or none.
    void map(const Op &op, Step &s) {
        const Tensor &y = need(op.out, HASTEN_U8);
        arena(y);
        Map &k = s.map;
        k.y = strides(y);
        k.h = y.h, k.w = y.w, k.c = y.c;
        k.constant = op.p[2];
        check(k.constant >= -1 && k.constant <= 255, "its constant is no code");
        if (k.constant < 0) {
            const Tensor &x = need(op.in[0], HASTEN_U8);
            arena(x);
            k.x = {ptrdiff_t{positive(op.p[0])} * x.row, ptrdiff_t{positive(op.p[1])} * x.pixel};
            check(x.c == y.c, "it has other channels than its input");
            reach(x, 0, x.c, y, k.x);
        }
        k.table = op.blob[0].bytes ? blob<uint8_t>(op, 0, 256) : nullptr;
        s.row = best(Operator::MAP, "u8", isa_);
        s.work = double(y.h) * y.w * y.c * 2 / 16;
    }

    // p: zero. f: scale.
    void dequantize(const Op &op, Step &s) {
        const Tensor &x = need(op.in[0], HASTEN_U8), &y = need(op.out, HASTEN_F32);
        arena(x);
        check(y.place == static_cast<uint32_t>(Place::OUTPUT), "only an output is dequantized");
        same_shape(x, y);
        check(std::isfinite(op.f[0]), "its scale is not finite");
        codes(op.p[0], 0, 255);
        s.dequantize = {strides(x), y.h, y.w, y.c, op.f[0], op.p[0]};
        s.row = best(Operator::DEQUANTIZE, "u8f32", isa_);
        s.work = double(y.h) * y.w * y.c * 4 / 16;
    }

    // p: stride h, stride w, segments, length, activation. f: a, b. blobs: segments (int32), weights, bias.
    void conv_f32(const Op &op, Step &s) {
        const Tensor &x = need(op.in[0], HASTEN_F32), &y = need(op.out, HASTEN_F32);
        of_a_sample(x);
        ConvF32 &k = s.conv_f32;
        k.x = {ptrdiff_t{positive(op.p[0])} * x.row, ptrdiff_t{positive(op.p[1])} * x.pixel};
        k.y = strides(y);
        k.h = y.h, k.w = y.w, k.c = y.c, k.segments = positive(op.p[2]), k.length = positive(op.p[3]);
        const int64_t blocks = (int64_t{y.c} + BLOCK - 1) / BLOCK, steps = int64_t{k.segments} * k.length;
        check(steps < MOST, "its sums are too long");
        k.segment = blob<int32_t>(op, 0, k.segments);
        k.weights = blob<float>(op, 1, blocks * steps * BLOCK);
        k.end = end(op, 2, 4, 0, y, &k.r);
        for (int i = 0; i < k.segments; i++) reach(x, k.segment[i], k.length, y, k.x);
        s.row = best(Operator::CONV, "f32", isa_);
        s.products = double(steps) * y.h * y.w * y.c;
        s.work = s.products * 4;
        share(s, k, y, blocks, blocks * steps * BLOCK > int64_t{x.h} * x.w * x.c);
    }

    // p: stride h, stride w, segments, pairs, activation. f: a, b. blobs: segments (int32), weights (bfloat16), bias.
    void conv_bf16(const Op &op, Step &s) {
        const Tensor &x = need(op.in[0], HASTEN_F32), &y = need(op.out, HASTEN_F32);
        of_a_sample(x);
        ConvBF16 &k = s.conv_bf16;
        k.x = {ptrdiff_t{positive(op.p[0])} * x.row, ptrdiff_t{positive(op.p[1])} * x.pixel};
        k.y = strides(y);
        k.h = y.h, k.w = y.w, k.c = y.c, k.segments = positive(op.p[2]), k.pairs = positive(op.p[3]);
        const int64_t blocks = (int64_t{y.c} + BLOCK - 1) / BLOCK, steps = int64_t{k.segments} * k.pairs;
        check(steps < MOST, "its sums are too long");
        k.segment = blob<int32_t>(op, 0, k.segments);
        k.weights = blob<uint16_t>(op, 1, blocks * steps * BLOCK * 2);
        k.end = end(op, 2, 4, 0, y, &k.r);
        k.least = *std::min_element(k.segment, k.segment + k.segments), k.most = *std::max_element(k.segment, k.segment + k.segments);
        for (int i = 0; i < k.segments; i++) reach(x, k.segment[i], 2 * int64_t{k.pairs}, y, k.x);
        s.scratch = static_cast<size_t>(x.bytes / 2 + 64);
        s.row = best(Operator::CONV, "bf16", isa_);
        s.products = double(steps) * 2 * y.h * y.w * y.c;
        s.work = s.products * 2;
        share(s, k, y, blocks, blocks * steps * BLOCK * 2 > int64_t{x.h} * x.w * x.c);
    }

    // p: stride h, stride w, taps, activation. f: a, b. blobs: taps (int32), weights, bias.
    void depthwise_f32(const Op &op, Step &s) {
        const Tensor &x = need(op.in[0], HASTEN_F32), &y = need(op.out, HASTEN_F32);
        DepthwiseF32 &k = s.depthwise_f32;
        check(x.c == y.c, "it has other channels than its input");
        k.x = {ptrdiff_t{positive(op.p[0])} * x.row, ptrdiff_t{positive(op.p[1])} * x.pixel};
        k.y = strides(y);
        k.h = y.h, k.w = y.w, k.c = y.c, k.taps = positive(op.p[2]);
        k.tap = blob<int32_t>(op, 0, k.taps);
        k.weights = blob<float>(op, 1, (int64_t{y.c} + BLOCK - 1) / BLOCK * BLOCK * k.taps);
        k.end = end(op, 2, 3, 0, y, &k.r);
        for (int i = 0; i < k.taps; i++) reach(x, k.tap[i], x.c, y, k.x);
        s.row = best(Operator::DEPTHWISE, "f32", isa_);
        s.products = double(k.taps) * y.h * y.w * y.c;
        s.work = s.products * 8;
    }

    // p: kernel h, w, stride h, w, top, left, counts padding, average.
    void pool_f32(const Op &op, Step &s) {
        const Tensor &x = need(op.in[0], HASTEN_F32), &y = need(op.out, HASTEN_F32);
        check(x.c == y.c, "it has other channels than its input");
        PoolF32 &k = s.pool_f32;
        k.x = strides(x), k.y = strides(y);
        k.h = y.h, k.w = y.w, k.c = y.c, k.in_h = x.h, k.in_w = x.w;
        k.kernel_h = positive(op.p[0]), k.kernel_w = positive(op.p[1]), k.stride_h = positive(op.p[2]), k.stride_w = positive(op.p[3]);
        k.top = op.p[4], k.left = op.p[5], k.counts_padding = op.p[6], k.average = op.p[7];
        check(int64_t{k.kernel_h} * k.kernel_w < (1 << 23), "its window is too large");
        windows(x, y, k.top, k.left, k.kernel_h, k.kernel_w, k.stride_h, k.stride_w);
        s.row = best(Operator::POOL, "f32", isa_);
        s.work = double(k.kernel_h) * k.kernel_w * y.h * y.w * y.c / 4;
    }

    // p: operation, activation. f: a, b. What has size 1 where y has more is repeated.
    void elementwise(const Op &op, Step &s) {
        const Tensor &a = need(op.in[0], HASTEN_F32), &y = need(op.out, HASTEN_F32);
        Elementwise &k = s.elementwise;
        k.operation = op.p[0], k.activation = op.p[1], k.alpha = op.f[0], k.beta = op.f[1];
        check(k.operation >= ONLY && k.operation < BINARIES, "its operation is unknown");
        activation(k.activation);
        k.h = y.h, k.w = y.w, k.c = y.c, k.y = strides(y);
        broadcast(a, y, &k.a, &k.a_channel);
        if (k.operation != ONLY) broadcast(need(op.in[1], HASTEN_F32), y, &k.b, &k.b_channel);
        if (y.c < BLOCK && y.h * y.w > 1 && dense(a, y) && dense(y, y) && (k.operation == ONLY || dense(at(op.in[1]), y))) {  // few channels: all as one pixel
            check(int64_t{y.h} * y.w * y.c < LARGEST, "it is too large");
            k.c = y.h * y.w * y.c, k.h = k.w = 1, s.rows = 1;
            k.a_channel = k.b_channel = 1;
        }
        s.row = best(Operator::ELEMENTWISE, "f32", isa_);
        s.work = double(y.h) * y.w * y.c * (k.activation == NO_ACTIVATION || k.activation == CLIP ? 1 : 8);
    }

    // Whether t's numbers lie together, one for each of y's.
    static bool dense(const Tensor &t, const Tensor &y) {
        return t.h == y.h && t.w == y.w && t.c == y.c && t.pixel == t.c && int64_t{t.row} == int64_t{t.w} * t.c;
    }

    void broadcast(const Tensor &t, const Tensor &y, Strides *step, ptrdiff_t *channel) const {
        check((t.h == y.h || t.h == 1) && (t.w == y.w || t.w == 1) && (t.c == y.c || t.c == 1), "its operands' shapes don't fit");
        *step = {t.h == 1 ? 0 : t.row, t.w == 1 ? 0 : t.pixel};
        *channel = t.c == 1 ? 0 : 1;
    }

    // p: over h, over w, over c, operation.
    void reduce(const Op &op, Step &s) {
        const Tensor &x = need(op.in[0], HASTEN_F32), &y = need(op.out, HASTEN_F32);
        Reduce &k = s.reduce;
        k.x = strides(x), k.y = strides(y);
        k.h = x.h, k.w = x.w, k.c = x.c, k.over_h = op.p[0] != 0, k.over_w = op.p[1] != 0, k.over_c = op.p[2] != 0, k.operation = op.p[3];
        check(k.operation >= TOTAL && k.operation < REDUCTIONS, "its operation is unknown");
        check(y.h == (k.over_h ? 1 : x.h) && y.w == (k.over_w ? 1 : x.w) && y.c == (k.over_c ? 1 : x.c), "its output has the wrong shape");
        s.row = best(Operator::REDUCE, "f32", isa_);
        s.rows = 1;
        s.work = double(x.h) * x.w * x.c;
    }

    // p: rms. f: epsilon. blobs: gamma, beta.
    void norm(const Op &op, Step &s) {
        const Tensor &x = need(op.in[0], HASTEN_F32), &y = need(op.out, HASTEN_F32);
        same_shape(x, y);
        Norm &k = s.norm;
        k.x = strides(x), k.y = strides(y);
        k.h = y.h, k.w = y.w, k.c = y.c, k.rms = op.p[0] != 0, k.epsilon = op.f[0];
        if (op.in[1] >= 0) {
            const Tensor &second = need(op.in[1], HASTEN_F32);
            same_shape(second, y);
            k.s = strides(second), k.has_second = 1;
        }
        k.gamma = blob<float>(op, 0, y.c);
        k.beta = op.blob[1].bytes ? blob<float>(op, 1, y.c) : nullptr;
        s.row = best(Operator::NORM, "f32", isa_);
        s.work = double(y.h) * y.w * y.c * 4;
    }

    void softmax(const Op &op, Step &s) {
        const Tensor &x = need(op.in[0], HASTEN_F32), &y = need(op.out, HASTEN_F32);
        same_shape(x, y);
        s.softmax = {strides(x), strides(y), y.h, y.w, y.c};
        s.row = best(Operator::SOFTMAX, "f32", isa_);
        s.work = double(y.h) * y.w * y.c * 16;
    }

    // in: queries, keys, values (positions as rows), bias (rows: heads or 1, pixels: queries or 1, channels: keys). p: heads. f: scale.
    void attention(const Op &op, Step &s) {
        const Tensor &q = need(op.in[0], HASTEN_F32), &keys = need(op.in[1], HASTEN_F32), &v = need(op.in[2], HASTEN_F32);
        const Tensor &y = need(op.out, HASTEN_F32);
        Attention &k = s.attention;
        k.heads = positive(op.p[0]);
        check(q.w == 1 && keys.w == 1 && v.w == 1 && y.w == 1 && keys.h == v.h && q.h == y.h, "its positions don't fit");
        check(q.c == keys.c && v.c == y.c && q.c % k.heads == 0 && v.c % k.heads == 0, "its heads don't fit");
        k.q = q.row, k.k = keys.row, k.v = v.row, k.y = y.row;
        k.queries = q.h, k.keys = keys.h, k.size = q.c / k.heads, k.value_size = v.c / k.heads, k.scale = op.f[0];
        if (op.in[3] >= 0) {
            const Tensor &bias = need(op.in[3], HASTEN_F32);
            check((bias.h == 1 || bias.h == k.heads) && (bias.w == 1 || bias.w == k.queries) && bias.c == k.keys, "its bias doesn't fit");
            k.has_bias = 1, k.bias_head = bias.h == 1 ? 0 : bias.row, k.bias_row = bias.w == 1 ? 0 : bias.pixel;
        }
        const int64_t columns = (int64_t{k.keys} + 15) / 16 * 16, wide = (int64_t{k.value_size} + 15) / 16 * 16;
        check(columns * (k.size + wide + 16) < MOST / 4, "its heads are too large");
        s.scratch = static_cast<size_t>(columns * (k.size + wide + 16)) * sizeof(float);
        s.row = best(Operator::ATTENTION, "f32", isa_);
        s.rows = 1, s.blocks = k.heads, s.by_blocks = true;
        s.products = double(k.heads) * k.queries * k.keys * (k.size + k.value_size);
        s.work = s.products * 4;
    }

    // p: rows of the table. blobs: the table.
    void gather(const Op &op, Step &s) {
        const Tensor &x = need(op.in[0], HASTEN_I64), &y = need(op.out, HASTEN_F32);
        check(x.place == static_cast<uint32_t>(Place::INPUT) && x.h == 1 && x.w == 1 && x.c == y.h && y.w == 1, "its numbers are no vector of an input");
        s.gather = {blob<float>(op, 0, int64_t{positive(op.p[0])} * y.c), op.p[0], y.h, y.c, y.row};
        s.row = best(Operator::GATHER, "f32", isa_);
        s.work = double(y.h) * y.c;
        program_.gather_at.push_back(program_.steps.size());
    }

    void cast(const Op &op, Step &s) {
        const Tensor &x = need(op.in[0], HASTEN_I64), &y = need(op.out, HASTEN_F32);
        same_shape(x, y);
        s.cast = {strides(x), strides(y), y.h, y.w, y.c};
        s.row = best(Operator::CAST, "i64f32", isa_);
        s.work = double(y.h) * y.w * y.c;
    }

    // p: to planes.
    void arrange(const Op &op, Step &s) {
        const Tensor &x = need(op.in[0], HASTEN_F32), &y = need(op.out, HASTEN_F32);
        same_shape(x, y);
        const bool back = op.p[0] != 0;
        check(back || x.place == static_cast<uint32_t>(Place::INPUT), "only an input lies in planes");
        check(!back || (y.place == static_cast<uint32_t>(Place::OUTPUT) && dense(y, y)), "only an output gets planes");
        s.arrange = {strides(back ? x : y), y.h, y.w, y.c, back};
        s.row = best(Operator::ARRANGE, "f32", isa_);
        s.work = double(y.h) * y.w * y.c;
    }

    // p: four sizes, four strides of x.
    void move(const Op &op, Step &s) {
        const Tensor &x = need(op.in[0], HASTEN_F32), &y = need(op.out, HASTEN_F32);
        int64_t count = 1, last = x.origin;
        for (int i = 0; i < 4; i++) {
            check(op.p[4 + i] >= 0 && op.p[4 + i] < LARGEST, "a stride is negative or too large");
            s.move.size[i] = positive(op.p[i]), s.move.stride[i] = op.p[4 + i];
            check(count * op.p[i] < MOST, "it moves too much");
            count *= op.p[i], last += (int64_t{op.p[i]} - 1) * op.p[4 + i];
        }
        check(count == int64_t{y.h} * y.w * y.c && dense(y, y), "its output has another size, or gaps");
        check(last < static_cast<int64_t>(x.bytes) / 4, "it reads outside of its input");
        s.row = best(Operator::MOVE, "f32", isa_);
        s.rows = op.p[0];
        s.work = double(count) * 2;
    }

    // p: zero, lo, hi. blobs: scale, padded to blocks.
    void quantize_pixels(const Op &op, Step &s) {
        const Tensor &x = need(op.in[0], HASTEN_F32), &y = need(op.out, HASTEN_U8);
        arena(y);
        same_shape(x, y);
        codes(op.p[0], op.p[1], op.p[2]);
        const float *scale = blob<float>(op, 0, (int64_t{y.c} + BLOCK - 1) / BLOCK * BLOCK);
        s.quantize_pixels = {strides(x), strides(y), y.h, y.w, y.c, scale, op.p[0], op.p[1], op.p[2]};
        s.row = best(Operator::QUANTIZE, "pixels", isa_);
        s.work = double(y.h) * y.w * y.c * 2;
    }

    // p: zero. f: scale.
    void dequantize_pixels(const Op &op, Step &s) {
        const Tensor &x = need(op.in[0], HASTEN_U8), &y = need(op.out, HASTEN_F32);
        arena(x);
        same_shape(x, y);
        codes(op.p[0], 0, 255);
        s.dequantize_pixels = {strides(x), strides(y), y.h, y.w, y.c, op.f[0], op.p[0]};
        s.row = best(Operator::DEQUANTIZE, "pixels", isa_);
        s.work = double(y.h) * y.w * y.c / 4;
    }

    // Samples that are computed together need one each.
    void of_a_sample(const Tensor &t) const { check(t.place != static_cast<uint32_t>(Place::CONSTANT), "it works on a constant"); }

    void activation(int32_t a) const { check(a >= NO_ACTIVATION && a < ACTIVATIONS, "its activation is unknown"); }

    // That every window has a pixel inside, and every pixel's number fits an int32.
    void windows(const Tensor &x, const Tensor &y, int32_t top, int32_t left, int32_t kernel_h, int32_t kernel_w, int32_t stride_h,
                 int32_t stride_w) const {
        check(top >= 0 && left >= 0 && top < kernel_h && left < kernel_w, "its padding is not less than its window");
        check(int64_t{y.h - 1} * stride_h - top < x.h && int64_t{y.w - 1} * stride_w - left < x.w, "a window lies outside");
        check(int64_t{x.h} + kernel_h < MOST / 2 && int64_t{x.w} + kernel_w < MOST / 2, "its window is too large");
    }

    void check(bool holds, const char *text) const {
        if (!holds) bad(what_ + text);
    }

    int32_t positive(int32_t v) const {
        check(v >= 1 && v < (1 << 30), "a size or stride is not positive");
        return v;
    }

    const Tensor &at(int32_t i) const { return program_.tensors[static_cast<size_t>(i)]; }

    const Tensor &need(int32_t i, uint32_t type) const {
        check(i >= 0, "a tensor is missing");
        check(at(i).type == type, "a tensor has the wrong type");
        return at(i);
    }

    void arena(const Tensor &t) const { check(t.place == static_cast<uint32_t>(Place::ARENA), "it works on an input or output"); }

    void same_shape(const Tensor &a, const Tensor &b) const { check(a.h == b.h && a.w == b.w && a.c == b.c, "its tensors differ in shape"); }

    static Strides strides(const Tensor &t) { return {t.row, t.pixel}; }

    void codes(int32_t zero, int32_t lo, int32_t hi) const {
        check(zero >= 0 && zero <= 255 && lo >= 0 && lo <= hi && hi <= 255, "its zero point or bounds are no codes");
    }

    Finish finish(int32_t v) const {
        check(v >= CODES && v <= VALUE_CODES, "its sums end in an unknown way");
        return static_cast<Finish>(v);
    }

    // That every output's `length` inputs from `offset` on lie within x. Of codes up to 64 bytes more may be read: the arena ends with as many.
    void reach(const Tensor &x, int64_t offset, int64_t length, const Tensor &y, Strides step) const {
        check(offset > -MOST && offset < MOST && length < MOST, "an offset is too large");
        check(step.row < MOST && step.pixel < MOST, "a stride is too large");
        const int64_t first = x.origin + offset, last = first + (y.h - 1) * int64_t{step.row} + (y.w - 1) * int64_t{step.pixel} + length;
        const int64_t bytes = static_cast<int64_t>(x.bytes), size = static_cast<int64_t>(size_of(x.type));
        check(first >= 0 && last <= (x.type == HASTEN_U8 ? bytes + 64 : bytes / size), "it reads outside of its input");
    }

    template <class T>
    const T *blob(const Op &op, int i, int64_t count) const {
        const Blob &b = op.blob[i];
        const Header &h = program_.header;
        check(b.at % ALIGN == 0 && b.at <= h.data_bytes && b.bytes <= h.data_bytes - b.at, "a constant reaches beyond the constants");
        check(count >= 0 && static_cast<uint64_t>(count) <= UINT64_C(1) << 40 && b.bytes == static_cast<uint64_t>(count) * sizeof(T),
              "a constant has the wrong size");
        return reinterpret_cast<const T *>(data_ + h.data_at + b.at);
    }

    void scales(const Op &op, int i, int64_t count, Finish how, const int32_t **bias, const float **scale, const int32_t **factor,
                const uint8_t **shift) const {
        *bias = blob<int32_t>(op, i, count);
        if (how == CODES || how == VALUES || how == VALUE_CODES) {
            *scale = blob<float>(op, i + 1, count);
            for (int64_t n = 0; n < count; n++) check(std::isfinite((*scale)[n]), "a scale is not finite");
            return;
        }
        *factor = blob<int32_t>(op, i + 1, count);
        *shift = blob<uint8_t>(op, i + 2, count);
        for (int64_t n = 0; n < count; n++) check((*shift)[n] >= 1 && (*shift)[n] <= 62, "a shift is none of 1 to 62");
    }

    // Whether no sum of so many products, times its scale, can leave 32 bits.
    static bool fits(const int32_t *bias, const float *scale, int64_t count, int64_t products) {
        for (int64_t n = 0; scale && n < count; n++)
            if (!((double(products) * 255 * 128 + std::abs(double(bias[n]))) * std::abs(double(scale[n])) < 2e9)) return false;
        return true;
    }

    Residual residual(const Op &op, int p, int f, bool fixed) const {
        const Residual r = {1, op.p[p] != 0, op.p[p + 1], op.p[p + 2], op.f[f], op.f[f + 1], op.f[f + 2], op.p[p + 3], op.p[p + 4], op.p[p + 5], op.p[p + 6]};
        codes(0, r.lo, r.hi);
        // What the kernels round must fit 32 bits. (A NaN is not less than anything.)
        check((std::abs(r.ra) + std::abs(r.rb)) * 255 + std::abs(r.rc) < 2e9f, "its sum does not fit 32 bits");
        if (fixed) {
            check(r.shift >= 0 && r.shift <= 30, "its shift is none of 0 to 30");
            const int64_t fa = r.fa, fb = r.fb, most = (fa < 0 ? -fa : fa) * 255 + (fb < 0 ? -fb : fb) * 255 + (r.fc < 0 ? -int64_t{r.fc} : r.fc);
            check(most < MOST, "its sum does not fit 32 bits");
        }
        return r;
    }

    const unsigned char *data_;
    size_t size_;
    Isa isa_;
    Program program_;
    std::vector<bool> written_;
    std::string what_;
};

}  // namespace

Program read_program(const unsigned char *data, size_t size, Isa at_most) { return Reader(data, size, at_most).read(); }

}  // namespace hasten
