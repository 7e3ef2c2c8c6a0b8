// What the stubs of cuBLAS and cuDNN share: a handle remembers its stream, and calls that compute count as one kernel.
#pragma once
#include <stdlib.h>

typedef struct CUstream_st *stream_t;
int stub_library_kernel(const char *name, stream_t stream);

typedef struct {
    stream_t stream;
} handle_t;

#define CREATES(name)                                   \
    int name(void **made) {                             \
        *made = calloc(1, 4096);                        \
        return 0;                                       \
    }
#define DESTROYS(name)                                  \
    int name(void *made) {                              \
        free(made);                                     \
        return 0;                                       \
    }
#define SETS_STREAM(name)                               \
    int name(handle_t *handle, stream_t stream) {       \
        handle->stream = stream;                        \
        return 0;                                       \
    }
// What computes takes the handle first; its other arguments do not matter.
#define COMPUTES(name)                                  \
    int name(handle_t *handle) {                        \
        return stub_library_kernel(#name, handle->stream); \
    }
// Does nothing that shows.
#define SUCCEEDS(name)                                  \
    int name(void) { return 0; }
