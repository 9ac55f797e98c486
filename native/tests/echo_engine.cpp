// An engine that takes nearly no time: every output is the rectified (float) or unchanged input of the same index. So tests can hold the Python
// binding to its rules, and time it, without a plan. A plan for it is text, line by line:
//
//   input NAME TYPE DIMS…     output NAME TYPE DIMS…     weights BYTES     sleep MILLISECONDS     fail STATUS
#include <chrono>
#include <cstring>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "hasten.h"

namespace {

thread_local std::string error;

struct Named {
    std::string name;
    hasten_port port;
};

size_t size_of(hasten_type type) { return type == HASTEN_I64 ? 8 : type == HASTEN_U8 || type == HASTEN_I8 ? 1 : 4; }

hasten_status refuse(hasten_status status, const std::string &why) {
    error = why;
    return status;
}

}  // namespace

struct hasten_model {
    std::vector<Named> inputs, outputs;
    hasten_description description{};
    int sleep = 0;
};

hasten_status hasten_load(const char *path, const hasten_options *options, hasten_model **model) {
    std::ifstream file(path);
    *model = nullptr;
    if (!file) return refuse(HASTEN_BAD_FILE, std::string(path) + ": there is no such file");
    const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    return hasten_load_memory(text.data(), text.size(), options, model);
}

hasten_status hasten_load_memory(const void *data, size_t size, const hasten_options *options, hasten_model **model) {
    std::istringstream lines(std::string(static_cast<const char *>(data), size));
    auto made = new hasten_model;
    *model = nullptr;
    for (std::string line; std::getline(lines, line);) {
        std::istringstream words(line);
        std::string what;
        words >> what;
        if (what == "input" || what == "output") {
            Named named;
            int type = 0;
            words >> named.name >> type;
            named.port = {nullptr, static_cast<hasten_type>(type), 0, {}, size_of(static_cast<hasten_type>(type))};
            for (int64_t dim; words >> dim;) {
                named.port.dims[named.port.rank++] = dim;
                if (dim > 0) named.port.bytes *= static_cast<size_t>(dim);
            }
            (what == "input" ? made->inputs : made->outputs).push_back(named);
        } else if (what == "weights") {
            words >> made->description.weights;
        } else if (what == "sleep") {
            words >> made->sleep;
        } else {
            int status = HASTEN_BAD_FILE;
            words >> status;
            delete made;
            return refuse(static_cast<hasten_status>(status), "refused: " + line);
        }
    }
    for (auto *ports : {&made->inputs, &made->outputs})
        for (Named &named : *ports) named.port.name = named.name.c_str();
    auto &d = made->description;
    d.inputs = static_cast<int32_t>(made->inputs.size());
    d.outputs = static_cast<int32_t>(made->outputs.size());
    d.threads = options != nullptr && options->threads > 0 ? options->threads : 1;
    d.max_batch = options != nullptr && options->max_batch > 0 ? options->max_batch : 1;
    d.steps = d.outputs;
    d.isa = "scalar";
    *model = made;
    return HASTEN_OK;
}

hasten_status hasten_describe(const hasten_model *model, hasten_description *description) {
    *description = model->description;
    return HASTEN_OK;
}

hasten_status hasten_input(const hasten_model *model, int32_t index, hasten_port *port) {
    *port = model->inputs[static_cast<size_t>(index)].port;
    return HASTEN_OK;
}

hasten_status hasten_output(const hasten_model *model, int32_t index, hasten_port *port) {
    *port = model->outputs[static_cast<size_t>(index)].port;
    return HASTEN_OK;
}

hasten_status hasten_run(hasten_model *model, const void *const *inputs, void *const *outputs, int32_t batch) {
    if (model->sleep > 0) std::this_thread::sleep_for(std::chrono::milliseconds(model->sleep));
    for (size_t i = 0; i < model->outputs.size(); i++) {
        const hasten_port &port = model->outputs[i].port;
        const size_t bytes = port.bytes * static_cast<size_t>(port.rank > 0 && port.dims[0] < 0 ? batch : 1);
        if (port.type == HASTEN_F32) {
            const float *x = static_cast<const float *>(inputs[i]);
            float *y = static_cast<float *>(outputs[i]);
            for (size_t j = 0; j < bytes / 4; j++) y[j] = x[j] > 0 ? x[j] : 0;
        } else {
            std::memcpy(outputs[i], inputs[i], bytes);
        }
    }
    return HASTEN_OK;
}

hasten_status hasten_profile(hasten_model *model, const void *const *inputs, void *const *outputs, int32_t batch, double *seconds) {
    seconds[0] += 1e-6;
    return hasten_run(model, inputs, outputs, batch);
}

hasten_status hasten_step(const hasten_model *, int32_t, hasten_step_info *step) {
    *step = {"echo", 0.0};
    return HASTEN_OK;
}

double hasten_peak(const char *) { return 1e9; }

const char *hasten_last_error(void) { return error.c_str(); }
void hasten_free(hasten_model *model) { delete model; }
int32_t hasten_abi(void) { return HASTEN_ABI; }
const char *hasten_isa(void) { return "scalar"; }
