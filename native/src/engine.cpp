// The C interface. Until the engine lands, every plan is refused.
#include "hasten.h"

static const char *const ERROR = "this build has no engine yet";

hasten_status hasten_load(const char *, const hasten_options *, hasten_model **model) {
    if (model == nullptr) return HASTEN_BAD_ARGUMENT;
    *model = nullptr;
    return HASTEN_UNSUPPORTED;
}

hasten_status hasten_load_memory(const void *, size_t, const hasten_options *options, hasten_model **model) {
    return hasten_load(nullptr, options, model);
}

hasten_status hasten_describe(const hasten_model *, hasten_description *) { return HASTEN_UNSUPPORTED; }
hasten_status hasten_input(const hasten_model *, int32_t, hasten_port *) { return HASTEN_UNSUPPORTED; }
hasten_status hasten_output(const hasten_model *, int32_t, hasten_port *) { return HASTEN_UNSUPPORTED; }
hasten_status hasten_run(hasten_model *, const void *const *, void *const *, int32_t) { return HASTEN_UNSUPPORTED; }
const char *hasten_last_error(void) { return ERROR; }
void hasten_free(hasten_model *) {}
int32_t hasten_abi(void) { return HASTEN_ABI; }
const char *hasten_isa(void) { return "scalar"; }
