/* hasten's native engine: runs a plan file, a flat list of kernels with packed weights that `hasten` (Python) lowered a model to.
 *
 * Plain C. Every function may be called from any thread; calls of hasten_run on one model wait for each other. Nothing is allocated while a
 * model runs. Arrays are dense, row-major, little-endian, in the order of ONNX (images N, C, H, W).
 */
#ifndef HASTEN_H
#define HASTEN_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define HASTEN_API __declspec(dllexport)
#else
#define HASTEN_API __attribute__((visibility("default")))
#endif

/* The version of this interface; hasten_abi() gives the library's. */
#define HASTEN_ABI 2

#define HASTEN_MAX_DIMS 8

typedef struct hasten_model hasten_model;

typedef enum {
    HASTEN_OK = 0,
    HASTEN_BAD_FILE = 1,     /* not a plan, of another version, truncated, or against the format's rules */
    HASTEN_BAD_ARGUMENT = 2, /* a null pointer, a batch of 0 or above the maximum, a number of threads out of range */
    HASTEN_UNSUPPORTED = 3,  /* the plan has a kernel that this build or this processor lacks */
    HASTEN_NO_MEMORY = 4
} hasten_status;

typedef enum { HASTEN_F32 = 1, HASTEN_U8 = 2, HASTEN_I8 = 3, HASTEN_I32 = 4, HASTEN_I64 = 5 } hasten_type;

/* An input or output. dims[0] is -1 where the model takes any batch; `bytes` are those of one sample then, else of the whole array. */
typedef struct {
    const char *name;
    hasten_type type;
    int32_t rank;
    int64_t dims[HASTEN_MAX_DIMS];
    size_t bytes;
} hasten_port;

typedef struct {
    int32_t threads;   /* 1 to 256; 0: one */
    int32_t max_batch; /* the largest batch that hasten_run will be called with; 0: 1 */
} hasten_options;

typedef struct {
    int32_t inputs, outputs;
    int32_t threads;   /* that are used: a model too small to share gets one */
    int32_t max_batch; /* 1 where the batch is fixed in the model */
    int32_t steps;     /* kernels that run one after the other */
    size_t weights;    /* bytes of constants, in the file's own memory */
    size_t arena;      /* bytes of working memory, taken once when loading */
    const char *isa;   /* the level that the kernels were chosen for: "avx512bf16", "avx512vnni", "avx2vnni", "avx2" or "scalar" */
} hasten_description;

/* Load a plan. The file is mapped and stays so until hasten_free. `options` may be NULL. On failure *model is NULL. */
HASTEN_API hasten_status hasten_load(const char *path, const hasten_options *options, hasten_model **model);

/* The same from memory, which must stay as it is until hasten_free; aligned to 64 bytes, else it is copied. */
HASTEN_API hasten_status hasten_load_memory(const void *data, size_t size, const hasten_options *options, hasten_model **model);

HASTEN_API hasten_status hasten_describe(const hasten_model *model, hasten_description *description);
HASTEN_API hasten_status hasten_input(const hasten_model *model, int32_t index, hasten_port *port);
HASTEN_API hasten_status hasten_output(const hasten_model *model, int32_t index, hasten_port *port);

/* Run `batch` samples: inputs[i] is read and outputs[i] written, `batch` times the port's `bytes` each. */
HASTEN_API hasten_status hasten_run(hasten_model *model, const void *const *inputs, void *const *outputs, int32_t batch);

/* One kernel of the plan: the function that this processor gets, and its multiplications for one sample (0: it only moves or compares). */
typedef struct {
    const char *kernel;
    double products;
} hasten_step_info;

HASTEN_API hasten_status hasten_step(const hasten_model *model, int32_t index, hasten_step_info *step);

/* Run as hasten_run does, all threads on each kernel, and add to seconds[i] what kernel i took. */
HASTEN_API hasten_status hasten_profile(hasten_model *model, const void *const *inputs, void *const *outputs, int32_t batch, double *seconds);

/* Products and sums (two operations each) that one core does in a second when nothing has to be loaded: what kernels are held against. types: "u8s8",
   "f32" or "bf16", as in the kernels' names; 0 for others. */
HASTEN_API double hasten_peak(const char *types);

/* What went wrong in the last call of this thread that did not return HASTEN_OK. Never NULL. */
HASTEN_API const char *hasten_last_error(void);

HASTEN_API void hasten_free(hasten_model *model); /* NULL is allowed */

HASTEN_API int32_t hasten_abi(void);

/* The level that this processor gets. The variable HASTEN_ISA (avx512bf16, avx512vnni, avx2vnni, avx2, scalar) forces a lower one. */
HASTEN_API const char *hasten_isa(void);

#ifdef __cplusplus
}
#endif

#endif
