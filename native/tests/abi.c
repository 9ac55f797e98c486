/* The interface as a C program sees it, through the shared library. */
#include <stdio.h>
#include <string.h>

#include "hasten.h"

#define EXPECT(what) \
    if (!(what)) return fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #what, hasten_last_error()), 1

int main(void) {
    static const char *const levels[] = {"avx512bf16", "avx512vnni", "avx2vnni", "avx2", "scalar"};
    hasten_model *model = (hasten_model *)&model;
    int known = 0;
    size_t i;
    for (i = 0; i < sizeof levels / sizeof *levels; i++) known |= strcmp(hasten_isa(), levels[i]) == 0;
    EXPECT(known);
    EXPECT(hasten_abi() == HASTEN_ABI);
    EXPECT(hasten_load("there is no such file", NULL, &model) != HASTEN_OK);
    EXPECT(model == NULL);
    EXPECT(hasten_last_error()[0] != '\0');
    EXPECT(hasten_load_memory("no plan", 7, NULL, &model) != HASTEN_OK);
    EXPECT(model == NULL);
    hasten_free(NULL);
    return 0;
}
