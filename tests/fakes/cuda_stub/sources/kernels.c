// Kernels: what nvcc makes programs call to register and to launch them. None does anything.
#include "stub.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    const void *function;
    const char *name;
} kernel;

static kernel *kernels;
static size_t count, room, sorted;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

void **__cudaRegisterFatBinary(void *binary) {
    (void)binary;
    static void *handle;
    return &handle;
}

void __cudaRegisterFatBinaryEnd(void **handle) { (void)handle; }

void __cudaUnregisterFatBinary(void **handle) { (void)handle; }

void __cudaRegisterVar(void **handle, char *host, char *address, const char *name, int external, size_t size,
                       int constant, int global) {
    (void)handle, (void)host, (void)address, (void)name, (void)external, (void)size, (void)constant, (void)global;
}

void __cudaRegisterFunction(void **handle, const char *function, char *device, const char *name, int limit, void *tid,
                            void *bid, void *block, void *grid, int *warp) {
    (void)handle, (void)device, (void)limit, (void)tid, (void)bid, (void)block, (void)grid, (void)warp;
    if (count == room) kernels = realloc(kernels, (room = room ? 2 * room : 4096) * sizeof *kernels);
    kernels[count++] = (kernel){function, name};
}

static int by_function(const void *left, const void *right) {
    const void *a = ((const kernel *)left)->function, *b = ((const kernel *)right)->function;
    return (a > b) - (a < b);
}

static const char *name_of(const void *function) {
    pthread_mutex_lock(&lock);
    if (sorted != count) {
        qsort(kernels, count, sizeof *kernels, by_function);
        sorted = count;
    }
    kernel wanted = {function, NULL};
    kernel *found = bsearch(&wanted, kernels, count, sizeof *kernels, by_function);
    pthread_mutex_unlock(&lock);
    return found ? found->name : "unknown";
}

static cudaError_t queue_kernel(const char *name, cudaStream_t stream) {
    if (stub_logs()) stub_log("kernel stream=%d capture=%d name=%s", stub_stream_number(stream), stub_captures(stream), name);
    stub_work work = {.kind = KERNEL};
    return stub_queue("kernel", stream, &work);
}

cudaError_t stub_library_kernel(const char *name, cudaStream_t stream) { return queue_kernel(name, stream); }

static cudaError_t launch(const void *function, cudaStream_t stream) {
    return queue_kernel(stub_logs() ? name_of(function) : NULL, stream);
}

// The <<<grid, block, shared, stream>>> of a launch is pushed by the caller and popped by the kernel's host function.
static __thread struct {
    dim3 grid, block;
    size_t shared;
    cudaStream_t stream;
} pushed;

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, struct CUstream_st *stream) {
    pushed.grid = grid, pushed.block = block, pushed.shared = shared, pushed.stream = stream;
    return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
    *grid = pushed.grid, *block = pushed.block, *shared = pushed.shared;
    *(cudaStream_t *)stream = pushed.stream;
    return cudaSuccess;
}

cudaError_t __cudaGetKernel(cudaKernel_t *found, const void *function) {
    *found = (cudaKernel_t)function;
    return cudaSuccess;
}

cudaError_t __cudaLaunchKernel(cudaKernel_t function, dim3 grid, dim3 block, void **arguments, size_t shared,
                               cudaStream_t stream) {
    (void)grid, (void)block, (void)arguments, (void)shared;
    return launch(function, stream);
}

cudaError_t cudaLaunchKernel(const void *function, dim3 grid, dim3 block, void **arguments, size_t shared,
                             cudaStream_t stream) {
    (void)grid, (void)block, (void)arguments, (void)shared;
    return launch(function, stream);
}

cudaError_t cudaLaunchCooperativeKernel(const void *function, dim3 grid, dim3 block, void **arguments, size_t shared,
                                        cudaStream_t stream) {
    return cudaLaunchKernel(function, grid, block, arguments, shared, stream);
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *configuration, const void *function, void **arguments) {
    (void)arguments;
    return launch(function, configuration->stream);
}

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *found, const void *function) {
    (void)function;
    memset(found, 0, sizeof *found);
    found->maxThreadsPerBlock = 1024;
    found->numRegs = 64;
    found->binaryVersion = found->ptxVersion = (int)stub_setting("CUDA_STUB_SM", 90);
    return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void *function, enum cudaFuncAttribute attribute, int value) {
    (void)function, (void)attribute, (void)value;
    return cudaSuccess;
}

cudaError_t cudaKernelSetAttributeForDevice(cudaKernel_t function, enum cudaFuncAttribute attribute, int value,
                                            int device) {
    (void)function, (void)attribute, (void)value, (void)device;
    return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *function, int threads,
                                                                   size_t shared, unsigned flags) {
    (void)function, (void)threads, (void)shared, (void)flags;
    *blocks = 2;
    return cudaSuccess;
}

cudaError_t cudaLibraryLoadData(cudaLibrary_t *library, const void *code, enum cudaJitOption *options, void **values,
                                unsigned number, enum cudaLibraryOption *library_options, void **library_values,
                                unsigned library_number) {
    (void)code, (void)options, (void)values, (void)number;
    (void)library_options, (void)library_values, (void)library_number;
    *library = (cudaLibrary_t)1;
    return cudaSuccess;
}

cudaError_t cudaLibraryUnload(cudaLibrary_t library) {
    (void)library;
    return cudaSuccess;
}

cudaError_t cudaLibraryGetKernel(cudaKernel_t *found, cudaLibrary_t library, const char *name) {
    (void)library, (void)name;
    *found = (cudaKernel_t)1;
    return cudaSuccess;
}
