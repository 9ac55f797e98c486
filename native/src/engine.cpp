// The C interface: loading, running, describing.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>

#if defined(__unix__) || defined(__APPLE__)
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

#include "hasten.h"
#include "program.h"
#include "team.h"

namespace hasten {
namespace {

thread_local std::string last_error = "no error";

constexpr double SHARED_WORK = 400e3;   // products above which one sample's work is shared: below, threads cost more than they bring
constexpr size_t BLOCK_BYTES = 1 << 18; // working memory of the samples that go through the layers together
constexpr int MOST_TOGETHER = 16, MOST_THREADS = 256;
constexpr int64_t MOST_BATCH = 1 << 20;

struct Aligned {
    unsigned char *data = nullptr;
    Aligned() = default;
    explicit Aligned(size_t bytes) : data(static_cast<unsigned char *>(::operator new(bytes, std::align_val_t{64}))) {}
    Aligned(Aligned &&other) noexcept : data(other.data) { other.data = nullptr; }
    Aligned &operator=(Aligned &&other) noexcept {
        std::swap(data, other.data);
        return *this;
    }
    ~Aligned() { ::operator delete(data, std::align_val_t{64}); }
};

// The file's bytes: mapped, or a copy.
struct Source {
    const unsigned char *data = nullptr;
    size_t size = 0;
    Aligned copy;
    bool mapped = false;
    Source() = default;
    Source(const Source &) = delete;
    Source &operator=(const Source &) = delete;
    ~Source() {
#if defined(__unix__) || defined(__APPLE__)
        if (mapped) munmap(const_cast<unsigned char *>(data), size);
#endif
    }
};

void open_file(Source &source, const char *path) {
    const std::string name = path;
#if defined(__unix__) || defined(__APPLE__)
    const int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) throw Failure{HASTEN_BAD_FILE, name + ": can't be opened: " + std::strerror(errno)};
    struct stat about;
    const bool regular = fstat(file, &about) == 0 && S_ISREG(about.st_mode) && about.st_size > 0;
    void *at = regular ? mmap(nullptr, static_cast<size_t>(about.st_size), PROT_READ, MAP_PRIVATE, file, 0) : MAP_FAILED;
    close(file);
    if (at == MAP_FAILED) throw Failure{HASTEN_BAD_FILE, name + ": is empty, or no file that can be mapped"};
    source.data = static_cast<const unsigned char *>(at), source.size = static_cast<size_t>(about.st_size), source.mapped = true;
#else
    std::FILE *file = std::fopen(path, "rb");
    if (!file) throw Failure{HASTEN_BAD_FILE, name + ": can't be opened"};
    std::fseek(file, 0, SEEK_END);
    source.size = static_cast<size_t>(std::max(0L, std::ftell(file)));
    std::rewind(file);
    source.copy = Aligned(source.size + 1);
    source.size = std::fread(source.copy.data, 1, source.size, file);
    source.data = source.copy.data;
    std::fclose(file);
#endif
}

}  // namespace
}  // namespace hasten

using namespace hasten;

struct hasten_model {
    Source source;
    Program program;
    std::unique_ptr<Team> team;
    std::vector<Aligned> arenas, scratch;  // one for each thread
    int threads = 1, max_batch = 1, together = 1;
    bool shares_samples = false;  // whether one sample is worth sharing
    size_t arena_bytes = 0;       // of one thread
    Isa isa = SCALAR;             // that the kernels were chosen for
    Barrier barrier;
    std::atomic<int32_t> next{0};  // the first sample that no thread has taken
    std::mutex busy;

    // The call that is running.
    const void *const *inputs = nullptr;
    void *const *outputs = nullptr;
    int32_t batch = 0;
    double *seconds = nullptr;  // of each step, while it is profiled

    // In a forked process the team's threads are not there, and what they waited on can't be destroyed: it is left to the process's end.
    ~hasten_model() {
        if (team && team->lost()) (void)team.release();
    }

    void prepare(const hasten_options *options);
    void run(const void *const *in, void *const *out, int32_t samples);
    void profile(const void *const *in, void *const *out, int32_t samples, double *spent);

private:
    unsigned char *place(const Tensor &t, unsigned char *arena, int32_t first, int32_t sample) const;
    void steps(int arena, int32_t first, int32_t samples, int thread, int members);
    void check_numbers() const;
    void fill_halo(const Tensor &t, unsigned char *origin, int begin, int end) const;
    static void all_together(void *self, int thread);
    static void each_its_own(void *self, int thread);
};

void hasten_model::prepare(const hasten_options *options) {
    const int32_t wished = options && options->threads ? options->threads : 1, most = options && options->max_batch ? options->max_batch : 1;
    if (wished < 1 || wished > MOST_THREADS) throw Failure{HASTEN_BAD_ARGUMENT, "threads is " + std::to_string(wished) + ", must be 1 to 256"};
    if (most < 1 || most > MOST_BATCH) throw Failure{HASTEN_BAD_ARGUMENT, "max_batch is " + std::to_string(most) + ", must be 1 to 1048576"};
    isa = level();
    program = read_program(source.data, source.size, isa);
    max_batch = program.header.dynamic_batch ? most : 1;
    const size_t sample = program.header.arena_bytes;
    together = static_cast<int>(std::min<size_t>({std::max<size_t>(1, BLOCK_BYTES / std::max<size_t>(1, sample)), MOST_TOGETHER, size_t(max_batch)}));
    shares_samples = program.work >= SHARED_WORK;
    threads = shares_samples || program.work * max_batch >= 2 * SHARED_WORK ? wished : 1;
    if (sample > (SIZE_MAX >> 8) / size_t(together)) throw Failure{HASTEN_NO_MEMORY, "the working memory is too large"};
    arena_bytes = sample * size_t(together) + 128;  // kernels may read up to 64 bytes behind a tensor
    for (int i = 0; i < threads; i++) {
        arenas.emplace_back(arena_bytes);
        std::memset(arenas.back().data, 0, arena_bytes);
        scratch.emplace_back(program.scratch * size_t(together) + 64);
    }
    if (threads > 1) team = std::make_unique<Team>(threads);
}

unsigned char *hasten_model::place(const Tensor &t, unsigned char *arena, int32_t first, int32_t sample) const {
    switch (static_cast<Place>(t.place)) {
        case Place::INPUT: return static_cast<unsigned char *>(const_cast<void *>(inputs[t.port])) + size_t(first + sample) * t.bytes;
        case Place::OUTPUT: return static_cast<unsigned char *>(outputs[t.port]) + size_t(first + sample) * t.bytes;
        case Place::CONSTANT: return const_cast<unsigned char *>(source.data) + program.header.data_at + t.offset + 4 * size_t(t.origin);
        default: return arena + t.offset * size_t(together) + size_t(sample) * t.bytes + (t.type == HASTEN_U8 ? 1 : 4) * size_t(t.origin);
    }
}

// Run all steps for `samples` samples from `first` on, as one of a team that works on the same arena.
void hasten_model::steps(int number, int32_t first, int32_t samples, int thread, int members) {
    unsigned char *const arena = arenas[size_t(number)].data;
    const void *const own = scratch[size_t(members > 1 ? thread : number)].data;
    using Clock = std::chrono::steady_clock;
    const bool timed = seconds && thread == 0;
    Clock::time_point begun = timed ? Clock::now() : Clock::time_point();
    for (size_t i = 0; i < program.steps.size(); i++) {
        const Step &step = program.steps[i];
        const Tensor &y = program.tensors[size_t(step.out)];
        const int parts = step.by_blocks ? step.blocks : step.rows;
        const int begin = int(int64_t{parts} * thread / members), end = int(int64_t{parts} * (thread + 1) / members);
        const Share share = step.by_blocks ? Share{0, step.rows, begin, end} : Share{begin, end, 0, step.blocks};
        const auto call = [&](const void *arguments, int32_t sample) {
            const void *in[SCRATCH + 1] = {nullptr, nullptr, nullptr, nullptr, own};
            for (int i = 0; i < MAX_INPUTS; i++)
                if (step.in[i] >= 0) in[i] = place(program.tensors[size_t(step.in[i])], arena, first, sample);
            step.kernel(arguments, in, place(y, arena, first, sample), share);
        };
        if (begin < end) {
            const auto as_row = [&](auto row) {  // one row whose pixels are the samples
                const auto apart = [&](int32_t t) {
                    const Tensor &of = program.tensors[size_t(t)];
                    return ptrdiff_t(of.bytes / (of.type == HASTEN_F32 ? 4 : 1));
                };
                row.w = samples;
                row.x.pixel = apart(step.in[0]), row.y.pixel = apart(step.out);
                if (step.in[1] >= 0) row.r.pixel = apart(step.in[1]);
                call(&row, 0);
            };
            if (step.matrix && samples > 1) {
                step.kind == Kind::CONV ? as_row(step.conv) : step.kind == Kind::CONV_F32 ? as_row(step.conv_f32) : as_row(step.conv_bf16);
            } else {
                for (int32_t sample = 0; sample < samples; sample++) call(&step.conv, sample);
            }
        }
        if (step.halo >= 0) {
            const Tensor &t = program.tensors[size_t(step.halo)];
            const int up = int(int64_t{t.h} * thread / members), down = int(int64_t{t.h} * (thread + 1) / members);
            for (int32_t sample = 0; sample < samples; sample++) fill_halo(t, place(t, arena, first, sample), up, down);
        }
        if (members > 1) barrier.wait(members);
        if (timed) {
            const Clock::time_point now = Clock::now();
            seconds[i] += std::chrono::duration<double>(now - begun).count();
            begun = now;
        }
    }
}

// Numbers that name rows of a table must name some that are there.
void hasten_model::check_numbers() const {
    for (const size_t at : program.gather_at) {
        const Step &step = program.steps[at];
        const Tensor &t = program.tensors[size_t(step.in[0])];
        const int64_t *numbers = static_cast<const int64_t *>(inputs[t.port]), rows = step.gather.rows;
        for (int64_t i = 0; i < int64_t{batch} * t.c; i++)
            if (numbers[i] < -rows || numbers[i] >= rows)
                throw Failure{HASTEN_BAD_ARGUMENT, "input '" + program.names[t.port] + "' has the number " + std::to_string(numbers[i]) +
                                                       ", the table behind it has " + std::to_string(rows) + " rows"};
    }
}

void hasten_model::fill_halo(const Tensor &t, unsigned char *origin, int begin, int end) const {
    const ptrdiff_t size = t.type == HASTEN_U8 ? 1 : 4, row = t.row * size, pixel = t.pixel * size, left = t.left * pixel, width = (ptrdiff_t{t.left} + t.w + t.right) * pixel;
    const auto whole = [&](ptrdiff_t at) { std::memset(origin + at * row - left, t.fill, size_t(width)); };
    if (begin == 0)
        for (int i = 1; i <= t.top; i++) whole(-i);
    if (t.left || t.right) {
        for (int i = begin; i < end; i++) {
            std::memset(origin + i * row - left, t.fill, size_t(left));
            std::memset(origin + i * row + t.w * pixel, t.fill, size_t(t.right * pixel));
        }
    }
    if (end == t.h)
        for (int i = 0; i < t.bottom; i++) whole(t.h + i);
}

void hasten_model::all_together(void *self, int thread) {
    hasten_model &m = *static_cast<hasten_model *>(self);
    for (int32_t i = 0; i < m.batch; i++) m.steps(0, i, 1, thread, m.threads);
}

void hasten_model::each_its_own(void *self, int thread) {
    hasten_model &m = *static_cast<hasten_model *>(self);
    // As many together as fit, but few enough that every thread gets some.
    const int32_t some = std::max(1, std::min(m.together, (m.batch + m.threads - 1) / m.threads));
    for (;;) {
        const int32_t first = m.next.fetch_add(some, std::memory_order_relaxed);
        if (first >= m.batch) return;
        m.steps(thread, first, std::min(some, m.batch - first), 0, 1);
    }
}

void hasten_model::run(const void *const *in, void *const *out, int32_t samples) {
    const std::lock_guard<std::mutex> lock(busy);
    inputs = in, outputs = out, batch = samples;
    check_numbers();
    const bool alone = threads == 1 || team->lost() || program.work * samples < SHARED_WORK;
    if (alone) {
        for (int32_t first = 0; first < samples; first += together) steps(0, first, std::min(together, samples - first), 0, 1);
    } else if (shares_samples && samples < 2 * threads && samples % threads != 0) {
        team->run(all_together, this);
    } else {
        next.store(0, std::memory_order_relaxed);
        team->run(each_its_own, this);
    }
}

void hasten_model::profile(const void *const *in, void *const *out, int32_t samples, double *spent) {
    const std::lock_guard<std::mutex> lock(busy);
    inputs = in, outputs = out, batch = samples;
    check_numbers();
    seconds = spent;
    if (threads == 1 || team->lost())
        for (int32_t i = 0; i < samples; i++) steps(0, i, 1, 0, 1);
    else
        team->run(all_together, this);
    seconds = nullptr;
}

namespace {

template <class Body>
hasten_status guarded(const Body &body) {
    try {
        body();
        return HASTEN_OK;
    } catch (const Failure &failure) {
        last_error = failure.text;
        return failure.status;
    } catch (const std::bad_alloc &) {
        last_error = "there is not enough memory";
        return HASTEN_NO_MEMORY;
    } catch (const std::exception &e) {
        last_error = e.what();
        return HASTEN_NO_MEMORY;
    }
}

[[noreturn]] void bad_argument(const char *text) { throw Failure{HASTEN_BAD_ARGUMENT, text}; }

void check_call(const hasten_model *model, const void *const *inputs, void *const *outputs, int32_t batch) {
    if (!model || !inputs || !outputs) bad_argument("model, inputs or outputs is NULL");
    if (batch < 1 || batch > model->max_batch)
        throw Failure{HASTEN_BAD_ARGUMENT, "the batch is " + std::to_string(batch) + ", the model was loaded for 1 to " + std::to_string(model->max_batch)};
    const Header &h = model->program.header;
    for (uint32_t i = 0; i < h.inputs; i++)
        if (!inputs[i]) bad_argument("an input is NULL");
    for (uint32_t i = 0; i < h.outputs; i++)
        if (!outputs[i]) bad_argument("an output is NULL");
}

hasten_status port(const hasten_model *model, int32_t index, bool input, hasten_port *about) {
    return guarded([&] {
        if (!model || !about) bad_argument("model or port is NULL");
        const Header &h = model->program.header;
        if (index < 0 || uint32_t(index) >= (input ? h.inputs : h.outputs)) bad_argument("there is no port of that number");
        const size_t i = size_t(index) + (input ? 0 : h.inputs);
        const Port &p = model->program.ports[i];
        *about = {model->program.names[i].c_str(), static_cast<hasten_type>(p.type), p.rank, {}, model->program.port_bytes[i]};
        std::copy(p.dims, p.dims + HASTEN_MAX_DIMS, about->dims);
    });
}

}  // namespace

extern "C" {

hasten_status hasten_load(const char *path, const hasten_options *options, hasten_model **model) {
    if (model) *model = nullptr;
    return guarded([&] {
        if (!path || !model) bad_argument("path or model is NULL");
        auto made = std::make_unique<hasten_model>();
        open_file(made->source, path);
        try {
            made->prepare(options);
        } catch (Failure &failure) {
            if (failure.status == HASTEN_BAD_FILE) failure.text = std::string(path) + ": " + failure.text;
            throw;
        }
        *model = made.release();
    });
}

hasten_status hasten_load_memory(const void *data, size_t size, const hasten_options *options, hasten_model **model) {
    if (model) *model = nullptr;
    return guarded([&] {
        if (!data || !model) bad_argument("data or model is NULL");
        auto made = std::make_unique<hasten_model>();
        Source &source = made->source;
        source.data = static_cast<const unsigned char *>(data), source.size = size;
        if (reinterpret_cast<uintptr_t>(data) % ALIGN != 0) {
            source.copy = Aligned(std::max<size_t>(1, size));
            std::memcpy(source.copy.data, data, size);
            source.data = source.copy.data;
        }
        made->prepare(options);
        *model = made.release();
    });
}

hasten_status hasten_describe(const hasten_model *model, hasten_description *description) {
    return guarded([&] {
        if (!model || !description) bad_argument("model or description is NULL");
        const Header &h = model->program.header;
        *description = {int32_t(h.inputs), int32_t(h.outputs), model->threads, model->max_batch, int32_t(h.ops), size_t(h.data_bytes),
                        model->arena_bytes * size_t(model->threads), name(model->isa)};
    });
}

hasten_status hasten_input(const hasten_model *model, int32_t index, hasten_port *about) { return port(model, index, true, about); }
hasten_status hasten_output(const hasten_model *model, int32_t index, hasten_port *about) { return port(model, index, false, about); }

hasten_status hasten_run(hasten_model *model, const void *const *inputs, void *const *outputs, int32_t batch) {
    return guarded([&] {
        check_call(model, inputs, outputs, batch);
        model->run(inputs, outputs, batch);
    });
}

hasten_status hasten_profile(hasten_model *model, const void *const *inputs, void *const *outputs, int32_t batch, double *seconds) {
    return guarded([&] {
        check_call(model, inputs, outputs, batch);
        if (!seconds) bad_argument("seconds is NULL");
        model->profile(inputs, outputs, batch, seconds);
    });
}

hasten_status hasten_step(const hasten_model *model, int32_t index, hasten_step_info *about) {
    return guarded([&] {
        if (!model || !about) bad_argument("model or step is NULL");
        if (index < 0 || size_t(index) >= model->program.steps.size()) bad_argument("there is no step of that number");
        const Step &step = model->program.steps[size_t(index)];
        *about = {step.row->function, step.products};
    });
}

double hasten_peak(const char *types) {
    using Clock = std::chrono::steady_clock;
    const Row *const row = types ? best(Operator::PEAK, types, level()) : nullptr;
    if (!row) return 0;
    const Kernel kernel = row->kernel;
    alignas(64) unsigned char x[64], w[64], out[256];
    std::memset(x, 1, sizeof x), std::memset(w, 1, sizeof w);  // as floats they are some 1e-38: no number on the way is slow
    const void *in[2] = {x, w};
    double most = 0;
    const Peak rounds{2000};
    for (int i = 0; i < 2000; i++) {
        const Clock::time_point begun = Clock::now();
        kernel(&rounds, in, out, {});
        const double seconds = std::chrono::duration<double>(Clock::now() - begun).count();
        int64_t products;
        std::memcpy(&products, out + 248, 8);
        most = std::max(most, 2.0 * double(products) / seconds);
    }
    return most;
}

const char *hasten_last_error(void) { return last_error.c_str(); }
void hasten_free(hasten_model *model) { delete model; }
int32_t hasten_abi(void) { return HASTEN_ABI; }
const char *hasten_isa(void) { return name(level()); }

}  // extern "C"
