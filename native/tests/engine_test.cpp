// The engine behind its C interface: wrong arguments, damaged and hostile files, threads, batches, forks.
//   engine_test PART PLANS [rounds] [seed]      PART: arguments, damage, crafted, hostile, threads, fork; PLANS: the folder of tests/native/plans.py
//   engine_test plan FILE                       one plan, which may be anything
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include <sys/wait.h>
#include <unistd.h>

#include "hasten.h"
#include "plan.h"

namespace {

using Bytes = std::vector<unsigned char>;

std::string plans;
int rounds = 0;
uint64_t seed = 1;

// Unlike assert, it says what was seen.
void expect(bool holds, const std::string &text) {
    if (holds) return;
    std::printf("failed: %s (last error: %s)\n", text.c_str(), hasten_last_error());
    std::exit(1);
}

Bytes read_file(const std::string &path) {
    std::FILE *file = std::fopen(path.c_str(), "rb");
    expect(file != nullptr, path + " is not there: tests/native/plans.py writes it");
    Bytes data(1 << 24);
    data.resize(std::fread(data.data(), 1, data.size(), file));
    std::fclose(file);
    return data;
}

Bytes read(const std::string &name) { return read_file(plans + "/" + name + ".plan"); }

// Bytes at a multiple of 64, so that the engine takes them as they lie, and not one more than there are.
struct Placed {
    void *at = nullptr;
    size_t size;
    explicit Placed(const Bytes &data) : size(data.size()) {
        expect(posix_memalign(&at, 64, std::max<size_t>(1, size)) == 0, "memory");
        if (size) std::memcpy(at, data.data(), size);
    }
    Placed(const Placed &) = delete;
    ~Placed() { std::free(at); }
};

struct Model {
    hasten_model *model = nullptr;
    hasten_status status;
    Model(const Placed &file, int threads, int max_batch) {
        const hasten_options options = {threads, max_batch};
        status = hasten_load_memory(file.at, file.size, &options, &model);
    }
    Model(const Model &) = delete;
    ~Model() { hasten_free(model); }

    hasten_description about() const {
        hasten_description d;
        expect(hasten_describe(model, &d) == HASTEN_OK, "describe");
        return d;
    }
    std::vector<hasten_port> ports(bool inputs) const {
        std::vector<hasten_port> found(size_t(inputs ? about().inputs : about().outputs));
        for (size_t i = 0; i < found.size(); i++)
            expect((inputs ? hasten_input : hasten_output)(model, int32_t(i), &found[i]) == HASTEN_OK, "port");
        return found;
    }
};

using Arrays = std::vector<std::unique_ptr<unsigned char[]>>;

// Arrays that end where they must, for a sanitizer to see. Floats, or the whole numbers 0 and 1: sample `i` is the same in every batch.
Arrays arrays(const std::vector<hasten_port> &ports, int batch, int first = 0, bool fill = true) {
    Arrays made;
    for (const hasten_port &port : ports) {
        made.emplace_back(new unsigned char[std::max<size_t>(1, port.bytes * size_t(batch))]);
        if (!fill) std::memset(made.back().get(), 0xee, port.bytes * size_t(batch));
        for (int b = 0; fill && b < batch; b++) {
            std::mt19937 bits(uint32_t(first + b + 1));
            for (size_t i = 0; port.type == HASTEN_I64 && i + 8 <= port.bytes; i += 8) {
                const int64_t v = int64_t(bits() % 2);
                std::memcpy(made.back().get() + size_t(b) * port.bytes + i, &v, 8);
            }
            if (port.type == HASTEN_I64) continue;
            for (size_t i = 0; i + 4 <= port.bytes; i += 4) {
                const float v = float(int(bits() % 2001) - 1000) / 300;
                std::memcpy(made.back().get() + size_t(b) * port.bytes + i, &v, 4);
            }
        }
    }
    return made;
}

std::vector<void *> pointers(const Arrays &arrays) {
    std::vector<void *> at;
    for (const auto &a : arrays) at.push_back(a.get());
    return at;
}

// The outputs of `batch` samples from `first` on, one after the other. A plan that nobody lowered may refuse the whole numbers that it gets.
Bytes run(const Model &m, int batch, int first = 0, bool refused = false) {
    const auto inputs = m.ports(true), outputs = m.ports(false);
    const Arrays in = arrays(inputs, batch, first), out = arrays(outputs, batch, 0, false);
    const std::vector<void *> from = pointers(in), to = pointers(out);
    const hasten_status status = hasten_run(m.model, from.data(), to.data(), batch);
    expect(status == HASTEN_OK || (refused && status == HASTEN_BAD_ARGUMENT), "run");
    Bytes all;
    for (int b = 0; b < batch; b++)
        for (size_t i = 0; i < outputs.size(); i++) all.insert(all.end(), out[i].get() + outputs[i].bytes * size_t(b), out[i].get() + outputs[i].bytes * size_t(b + 1));
    return all;
}

// ---- arguments

void arguments() {
    const Placed file(read("small"));
    hasten_model *model = reinterpret_cast<hasten_model *>(1);
    expect(hasten_abi() == HASTEN_ABI, "abi");
    expect(hasten_load(nullptr, nullptr, &model) == HASTEN_BAD_ARGUMENT && !model, "a path that is NULL");
    expect(hasten_load("x", nullptr, nullptr) == HASTEN_BAD_ARGUMENT, "a model that is NULL");
    expect(hasten_load("no such file", nullptr, &model) == HASTEN_BAD_FILE && !model, "no file");
    expect(hasten_load("/", nullptr, &model) == HASTEN_BAD_FILE && !model, "a folder");
    expect(hasten_load_memory(nullptr, 10, nullptr, &model) == HASTEN_BAD_ARGUMENT, "data that is NULL");
    expect(hasten_load_memory(file.at, file.size, nullptr, nullptr) == HASTEN_BAD_ARGUMENT, "a model that is NULL");
    expect(hasten_load_memory(file.at, 0, nullptr, &model) == HASTEN_BAD_FILE, "no bytes");
    for (const hasten_options o : {hasten_options{-1, 1}, {257, 1}, {1, -1}, {1, (1 << 20) + 1}, {INT32_MIN, 1}, {1, INT32_MAX}})
        expect(hasten_load_memory(file.at, file.size, &o, &model) == HASTEN_BAD_ARGUMENT && !model, "options out of range");
    hasten_free(nullptr);

    const Model m(file, 0, 3);
    expect(m.status == HASTEN_OK, "small");
    hasten_port port;
    hasten_description about;
    hasten_step_info step;
    double seconds = 0;
    expect(hasten_describe(nullptr, &about) && hasten_describe(m.model, nullptr), "describe of NULL");
    expect(hasten_input(nullptr, 0, &port) && hasten_output(m.model, 0, nullptr), "port of NULL");
    for (const int32_t i : {-1, 1, INT32_MAX, INT32_MIN}) expect(hasten_input(m.model, i, &port) && hasten_output(m.model, i, &port), "no such port");
    for (const int32_t i : {-1, m.about().steps, INT32_MAX, INT32_MIN}) expect(hasten_step(m.model, i, &step), "no such step");
    expect(hasten_step(nullptr, 0, &step) && hasten_step(m.model, 0, nullptr), "step of NULL");
    const Arrays in = arrays(m.ports(true), 3), out = arrays(m.ports(false), 3);
    const std::vector<void *> from = pointers(in), to = pointers(out), none = {nullptr};
    expect(hasten_run(nullptr, from.data(), to.data(), 1) == HASTEN_BAD_ARGUMENT, "run of NULL");
    expect(hasten_run(m.model, nullptr, to.data(), 1) == HASTEN_BAD_ARGUMENT, "inputs NULL");
    expect(hasten_run(m.model, from.data(), nullptr, 1) == HASTEN_BAD_ARGUMENT, "outputs NULL");
    expect(hasten_run(m.model, none.data(), to.data(), 1) == HASTEN_BAD_ARGUMENT, "an input NULL");
    expect(hasten_run(m.model, from.data(), none.data(), 1) == HASTEN_BAD_ARGUMENT, "an output NULL");
    for (const int32_t batch : {0, -1, 4, INT32_MAX, INT32_MIN}) expect(hasten_run(m.model, from.data(), to.data(), batch) == HASTEN_BAD_ARGUMENT, "a wrong batch");
    expect(hasten_profile(m.model, from.data(), to.data(), 1, nullptr) == HASTEN_BAD_ARGUMENT, "seconds NULL");
    expect(hasten_profile(m.model, from.data(), to.data(), 4, &seconds) == HASTEN_BAD_ARGUMENT, "a wrong batch");
    expect(std::strlen(hasten_last_error()) > 0, "a text");
    for (const char *types : {"u8s8", "f32", "bf16"}) expect(hasten_peak(types) > 0, types);
    expect(hasten_peak(nullptr) == 0 && hasten_peak("f64") == 0, "a peak of what there is not");
}

// ---- damage

uint32_t crc32(const unsigned char *data, size_t size) {
    static const std::vector<uint32_t> table = [] {
        std::vector<uint32_t> t;
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t c = i;
            for (int bit = 0; bit < 8; bit++) c = (c >> 1) ^ (0xEDB88320u & (0u - (c & 1)));
            t.push_back(c);
        }
        return t;
    }();
    uint32_t crc = ~0u;
    for (size_t i = 0; i < size; i++) crc = (crc >> 8) ^ table[(crc ^ data[i]) & 255];
    return ~crc;
}

hasten::Header header(const Bytes &data) {
    hasten::Header h;
    std::memcpy(&h, data.data(), sizeof h);
    return h;
}

void repair(Bytes &data) {
    const uint32_t sum = crc32(data.data() + sizeof(hasten::Header), data.size() - sizeof(hasten::Header));
    std::memcpy(data.data() + offsetof(hasten::Header, checksum), &sum, 4);
}

// Load what may be anything. What loads must run, with neither crash nor a byte beyond an array; whether it ran is returned.
bool survives(const Bytes &data) {
    if (data.size() >= sizeof(hasten::Header) && header(data).arena_bytes > 1 << 26) return false;  // allowed, and too much for a test
    const Placed file(data);
    const Model m(file, 2, 3);
    if (m.status != HASTEN_OK) {
        expect(!m.model && std::strlen(hasten_last_error()) > 0, "an error leaves no model and says why");
        return false;
    }
    double products = 0, bytes = 0;
    for (int32_t i = 0; i < m.about().steps; i++) {
        hasten_step_info step;
        expect(hasten_step(m.model, i, &step) == HASTEN_OK, "step");
        products += step.products;
    }
    for (const bool inputs : {true, false})
        for (const hasten_port &port : m.ports(inputs)) bytes += double(port.bytes);
    if (products > 1e7 || bytes > 1e7) return false;
    run(m, m.about().max_batch, 0, true);
    run(m, 1, 0, true);
    return true;
}

void damage() {
    const Bytes whole = read("small");
    expect(survives(whole), "the undamaged plan runs");
    for (size_t size = 0; size < whole.size(); size++) {
        const Placed cut(Bytes(whole.begin(), whole.begin() + ptrdiff_t(size)));
        expect(Model(cut, 1, 1).status == HASTEN_BAD_FILE, "cut to " + std::to_string(size) + " bytes");
    }
    Bytes longer = whole;
    longer.push_back(0);
    expect(Model(Placed(longer), 1, 1).status == HASTEN_BAD_FILE, "a byte too many");
    Bytes changed = whole;
    for (size_t i = 0; i < whole.size(); i++) {
        for (const unsigned char flip : {1, 255}) {
            changed[i] = whole[i] ^ flip;
            const bool ran = survives(changed);
            expect(!ran || i < sizeof(hasten::Header), "byte " + std::to_string(i) + " was changed behind the checksum's back");
        }
        changed[i] = whole[i];
    }
    const uint32_t next = hasten::VERSION + 1;
    std::memcpy(changed.data() + offsetof(hasten::Header, version), &next, 4);
    expect(Model(Placed(changed), 1, 1).status == HASTEN_BAD_FILE && std::strstr(hasten_last_error(), "version"), "another version");
    // From an address that is no multiple of 64.
    Bytes moved(whole.size() + 64);
    const size_t shift = 64 - (reinterpret_cast<uintptr_t>(moved.data()) & 63) + 4;
    moved.resize(whole.size() + shift);
    std::memcpy(moved.data() + shift, whole.data(), whole.size());
    hasten_model *model = nullptr;
    expect(hasten_load_memory(moved.data() + shift, whole.size(), nullptr, &model) == HASTEN_OK, "not aligned");
    hasten_free(model);
}

// ---- crafted

// A plan of our own making: codes of an input, and the floats that they stand for. Tensor 3 is there to be misused, as the halo of the first op.
struct Crafted {
    hasten::Port ports[2] = {};
    hasten::Tensor tensors[4] = {};
    std::vector<hasten::Op> ops;
    uint64_t arena = 128;

    Crafted() {
        const auto u32 = [](hasten::Place place) { return static_cast<uint32_t>(place); };
        for (hasten::Port &port : ports) port = {0, 1, HASTEN_F32, 4, {-1, 4, 3, 5}};
        tensors[0] = {u32(hasten::Place::INPUT), HASTEN_F32, 0, 3, 5, 4, 4, 20, 0, 0, 0, 0, 0, 0, 0, 240};
        tensors[1] = {u32(hasten::Place::ARENA), HASTEN_U8, 0, 3, 5, 4, 4, 20, 0, 0, 0, 0, 0, 0, 0, 64};
        tensors[2] = {u32(hasten::Place::OUTPUT), HASTEN_F32, 0, 3, 5, 4, 4, 20, 0, 0, 0, 0, 0, 0, 0, 240};
        tensors[3] = {u32(hasten::Place::ARENA), HASTEN_U8, 0, 1, 1, 4, 4, 4, 0, 0, 0, 0, 0, 0, 64, 64};
        add(hasten::Kind::QUANTIZE, 0, -1, 1, {128, 0, 255, 0}, {0.1f});
        add(hasten::Kind::DEQUANTIZE, 1, -1, 2, {128}, {0.1f});
        ops[0].halo = 3;
    }

    hasten::Op &add(hasten::Kind kind, int a, int b, int y, std::initializer_list<int32_t> p, std::initializer_list<float> f = {}) {
        hasten::Op op = {};
        op.kind = static_cast<uint32_t>(kind), op.halo = -1;
        op.in[0] = a, op.in[1] = b, op.in[2] = op.in[3] = -1, op.out = y;
        std::copy(p.begin(), p.end(), op.p), std::copy(f.begin(), f.end(), op.f);
        ops.push_back(op);
        return ops.back();
    }

    Bytes bytes() const {
        hasten::Header h = {};
        std::memcpy(h.magic, hasten::MAGIC, sizeof h.magic);
        h.version = hasten::VERSION, h.header_bytes = sizeof h, h.dynamic_batch = 1;
        h.tensors = 4, h.ops = uint32_t(ops.size()), h.inputs = h.outputs = 1;
        h.tensors_at = sizeof h, h.ops_at = h.tensors_at + sizeof tensors, h.ports_at = h.ops_at + ops.size() * sizeof(hasten::Op);
        h.names_at = h.ports_at + sizeof ports, h.names_bytes = 1, h.data_at = (h.names_at + 1 + 63) / 64 * 64, h.data_bytes = 64;
        h.file_bytes = h.data_at + h.data_bytes, h.arena_bytes = arena;
        Bytes data(h.file_bytes);
        std::memcpy(data.data(), &h, sizeof h);
        std::memcpy(data.data() + h.tensors_at, tensors, sizeof tensors);
        std::memcpy(data.data() + h.ops_at, ops.data(), ops.size() * sizeof(hasten::Op));
        std::memcpy(data.data() + h.ports_at, ports, sizeof ports);
        data[h.names_at] = 'x';
        repair(data);
        return data;
    }
};

// Plans that were once taken and should not have been, or that overflowed while they were checked. Each is whole but for what is said.
void crafted() {
    const struct {
        const char *what;
        bool runs;
        void (*attack)(Crafted &);
    } attacks[] = {
        {"nothing", true, [](Crafted &) {}},
        {"a halo of pixels wider than the memory", false, [](Crafted &c) { c.tensors[3].bottom = 1, c.tensors[3].row = 0, c.tensors[3].pixel = 1 << 29; }},
        {"bounds whose products leave 64 bits", false,
         [](Crafted &c) { c.tensors[3].h = c.tensors[3].bottom = c.tensors[3].row = c.tensors[3].w = c.tensors[3].right = c.tensors[3].pixel = INT32_MAX; }},
        {"codes written to an output at any stride", false,
         [](Crafted &c) {
             c.ports[1].type = c.tensors[2].type = HASTEN_U8, c.tensors[2].bytes = 60, c.tensors[2].pixel = 1 << 20;
             c.ops[0].out = 2, c.ops.pop_back();
         }},
        {"2⁴⁰ pixels in four bytes", false, [](Crafted &c) { c.tensors[3].h = c.tensors[3].w = 1 << 20, c.tensors[3].row = c.tensors[3].pixel = 0; }},
        {"more memory than the tensors take", false, [](Crafted &c) { c.arena = UINT64_C(1) << 25; }},
        {"a maximum that counts 2⁴⁰ positions", true,
         [](Crafted &c) { c.add(hasten::Kind::MAX_POOL, 1, -1, 3, {1 << 20, 1 << 20, 1, 1, 0, 0, 1, 0, 0, 0, 255}); }},
        {"weights whose number leaves 64 bits", false,
         [](Crafted &c) {
             c.tensors[3].c = (1 << 30) - 64, c.tensors[3].bytes = 1 << 30, c.arena = (1 << 30) + 64;
             c.add(hasten::Kind::CONV, 1, -1, 3, {1, 1, 1 << 29, 1 << 29, 0, 0, 0, 255}, {1.0f});
         }},
        {"an average whose scale is infinite", false,
         [](Crafted &c) { c.add(hasten::Kind::AVERAGE_POOL, 1, -1, 3, {3, 5, 1, 1, 0, 0, 0, 0, 0, 0, 255}, {1e30f, 1e-30f}); }},
        {"a sum with NaN", false, [](Crafted &c) { c.add(hasten::Kind::ADD, 1, 1, 1, {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255}, {0, NAN, 1, 0}); }},
        {"a sum that leaves 32 bits", false, [](Crafted &c) { c.add(hasten::Kind::ADD, 1, 1, 1, {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255}, {0, 1e30f, 1, 0}); }},
        {"a sum in fixed point that leaves 32 bits", false,
         [](Crafted &c) { c.add(hasten::Kind::ADD, 1, 1, 1, {1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 1 << 23, 1 << 22, 0, 0}); }},
        {"an output that nothing writes", false, [](Crafted &c) { c.ops.pop_back(); }},
        {"an input that is written", false, [](Crafted &c) { c.ops[0].out = 0; }},
    };
    for (const auto &attack : attacks) {
        Crafted made;
        attack.attack(made);
        const Placed file(made.bytes());
        const Model m(file, 2, 3);
        expect(m.status == (attack.runs ? HASTEN_OK : HASTEN_BAD_FILE), std::string(attack.what) + ": status " + std::to_string(m.status));
        if (attack.runs) run(m, 3);
    }
}

// ---- hostile

// Fields set to what nobody expects, the checksum right: what holds then is the validation alone. First each field by itself, then several.
void hostile() {
    std::mt19937_64 bits(seed);
    const auto below = [&](size_t n) { return size_t(bits() % n); };
    size_t tried = 0, ran = 0;
    for (const char *name : {"small", "small_fixed", "image", "vector", "floats", "floats_bf16", "sequence", "mixed"}) {
        const Bytes whole = read(name);
        const hasten::Header h = header(whole);
        const size_t records = size_t(h.names_at) / 4, words = whole.size() / 4;
        const auto extreme = [&](uint32_t was) -> uint32_t {
            const uint32_t values[] = {0, 1, 2, 3, 4, 63, 64, 65, 127, 255, 256, 1 << 16, (1 << 23) + 1, 1 << 29, (1 << 30) - 1, 1 << 30, 0x7fffffff, 0x80000000, 0xffffffff, 0xfffffffe,
                                       0xffffff00, 0x7f800000, 0xff800000, 0x7fc00000, 0x00000001, 0x7f7fffff, was + 1, was - 1, was * 2, was / 2, was + 64, was - 64, 0u - was, was ^ (1u << below(32))};
            return values[below(sizeof values / sizeof *values)];
        };
        Bytes changed = whole;
        const auto set = [&](size_t word) {
            uint32_t v;
            std::memcpy(&v, changed.data() + 4 * word, 4);
            v = extreme(v);
            std::memcpy(changed.data() + 4 * word, &v, 4);
        };
        const auto attempt = [&] {
            repair(changed);
            tried++, ran += survives(changed);
            changed = whole;
        };
        for (size_t word = 3; word < records; word++)
            for (int i = 0; i < 8; i++) set(word), attempt();
        for (int i = 0; i < rounds; i++) {
            for (size_t n = 1 + below(4); n; n--) set(below(8) ? 3 + below(records - 3) : below(words));
            attempt();
        }
        for (int i = 0; i < rounds; i++) {  // fields of one tensor or one op: those that must fit each other
            const bool op = below(2);
            const size_t size = op ? sizeof(hasten::Op) : sizeof(hasten::Tensor), at = size_t(op ? h.ops_at : h.tensors_at) + below(op ? h.ops : h.tensors) * size;
            for (size_t n = 1 + below(5); n; n--) set(at / 4 + below(size / 4));
            attempt();
        }
        for (int i = 0; i < rounds; i++) {  // a record in the place of another, which is right in itself
            const bool op = below(2);
            const size_t size = op ? sizeof(hasten::Op) : sizeof(hasten::Tensor), count = op ? h.ops : h.tensors, first = size_t(op ? h.ops_at : h.tensors_at);
            std::memcpy(changed.data() + first + below(count) * size, whole.data() + first + below(count) * size, size);
            attempt();
        }
    }
    std::printf("hostile: %zu plans tried, %zu of them ran (seed %llu)\n", tried, ran, static_cast<unsigned long long>(seed));
}

void plan() { std::printf("plan: %s\n", survives(read_file(plans)) ? "it ran" : hasten_last_error()); }

// ---- threads

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)  // slow: what shares nothing else is left out
constexpr bool SLOW = true;
#else
constexpr bool SLOW = false;
#endif

void threads() {
    for (const char *name : {"vector", "shared", "sequence", "mixed", "floats", "floats_bf16", "small", "small_fixed", "image", "shared_fixed"}) {
        if (SLOW && std::strcmp(name, "mixed") == 0) return;
        const Placed file(read(name));
        const int most = 40;
        const Model one(file, 1, 1);
        expect(one.status == HASTEN_OK, name);
        Bytes expected;
        for (int i = 0; i < most; i++) {
            const Bytes sample = run(one, 1, i);
            expected.insert(expected.end(), sample.begin(), sample.end());
        }
        const ptrdiff_t each = ptrdiff_t(expected.size()) / most;
        for (const int count : {1, 2, 3, 4}) {
            if (SLOW && count != 2) continue;
            const Model m(file, count, most);
            expect(m.status == HASTEN_OK, name);
            for (int batch = 1; batch <= most; batch += SLOW ? 13 : 1) {
                const Bytes got = run(m, batch);
                expect(std::equal(got.begin(), got.end(), expected.begin()), std::string(name) + ": batch " + std::to_string(batch) + ", " + std::to_string(count) + " threads");
            }
            // Callers from many threads take turns.
            std::vector<std::thread> callers;
            for (int t = 0; t < 4; t++)
                callers.emplace_back([&, t] {
                    for (int i = 0; i < (SLOW ? 2 : 6); i++) {
                        const int batch = 1 + (5 * t + 3 * i) % 9, first = (7 * t + i) % 20;
                        const Bytes got = run(m, batch, first);
                        expect(std::equal(got.begin(), got.end(), expected.begin() + first * each), std::string(name) + ": callers at once");
                    }
                });
            for (std::thread &caller : callers) caller.join();
        }
        // Models side by side, loaded and freed at once.
        std::vector<std::thread> owners;
        for (int t = 0; t < 3; t++)
            owners.emplace_back([&, t] {
                for (int i = 0; i < 3; i++) {
                    const Model m(file, 2, 4);
                    const Bytes got = run(m, 1 + (t + i) % 4);
                    expect(std::equal(got.begin(), got.end(), expected.begin()), std::string(name) + ": models at once");
                }
            });
        for (std::thread &owner : owners) owner.join();
    }
}

// ---- fork

// In a forked process the team's threads are missing: the model runs on alone, and can be freed.
void fork_() {
    const Placed file(read("shared"));
    for (const int wait_us : {0, 50000}) {  // while the team spins, and when it is parked
        Model m(file, 3, 8);
        const Bytes expected = run(m, 8);
        usleep(useconds_t(wait_us));
        std::fflush(stdout);
        const pid_t child = fork();
        if (child == 0) {
            alarm(60);
            const bool same = run(m, 8) == expected;
            hasten_free(m.model);
            const Model own(file, 2, 8);
            _exit(same && run(own, 8) == expected ? 0 : 1);
        }
        int status = 0;
        expect(waitpid(child, &status, 0) == child, "waitpid");
        expect(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the forked process: status " + std::to_string(status) + " (14: it hung)");
        expect(run(m, 8) == expected, "the parent runs on");
    }
}

}  // namespace

int main(int argc, char **argv) {
    const struct {
        const char *name;
        void (*body)();
    } parts[] = {{"arguments", arguments}, {"damage", damage}, {"crafted", crafted}, {"hostile", hostile}, {"threads", threads}, {"fork", fork_}, {"plan", plan}};
    if (argc > 3) rounds = std::atoi(argv[3]);
    if (argc > 4) seed = std::strtoull(argv[4], nullptr, 10);
    for (const auto &part : parts) {
        if (argc < 3 || std::strcmp(argv[1], part.name) != 0) continue;
        plans = argv[2];
        part.body();
        std::printf("%s: well, at level %s\n", part.name, hasten_isa());
        return 0;
    }
    std::printf("engine_test PART PLANS [rounds] [seed]\n");
    return 2;
}
