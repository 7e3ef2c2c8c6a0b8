// What the files of the stub share. "Device" memory is memory of the host, a kernel does nothing, and every call is
// written to the file that CUDA_STUB_LOG names, one line each: the name, then key=value pairs.
//
// Environment:
//   CUDA_STUB_LOG      file that the calls are appended to; none: nothing is written
//   CUDA_STUB_SM       compute capability, e.g. 89; default 90
//   CUDA_STUB_MEMORY   bytes of device memory; default 80 GiB
//   CUDA_STUB_DRIVER   CUDA version of the driver, e.g. 12040; default 13000. An older one fails as it does on a GPU
//   CUDA_STUB_DEVICES  number of GPUs; default 1
//   CUDA_STUB_POISON   1: memory that is allocated holds 0xFF bytes instead of zeros
#pragma once
#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stddef.h>

// log.c
bool stub_logs(void);
void stub_log(const char *format, ...) __attribute__((format(printf, 1, 2)));
void stub_log_to(bool on);
void stub_flush(void);
long long stub_setting(const char *name, long long otherwise);

// errors.c: every call that fails goes through here, so that cudaGetLastError knows.
cudaError_t stub_fail(const char *call, cudaError_t status);

// allocations.c
typedef enum { NOWHERE, DEVICE, PINNED } stub_place;
// Where `size` bytes from `address` on are; NOWHERE also where they leave their allocation.
stub_place stub_place_of(const void *address, size_t size);

// capture.c
typedef enum { KERNEL, COPY, SET, HOST } stub_kind;
typedef struct {
    stub_kind kind;
    char *target;
    const char *source;  // of a copy
    size_t target_pitch, source_pitch, width, rows;
    int value;  // of a set
    cudaHostFn_t function;
    void *argument;
} stub_work;
// The number of a stream, as it is in the log; 0 is the default stream.
int stub_stream_number(cudaStream_t stream);
bool stub_captures(cudaStream_t stream);
// Run work now, or record it where the stream captures.
cudaError_t stub_queue(const char *call, cudaStream_t stream, const stub_work *work);
// Fail with `call` where a capture forbids it (whatever allocates, frees, or waits), and make the capture invalid.
cudaError_t stub_forbidden_while_capturing(const char *call);

// kernels.c: a kernel of a library (cuBLAS, cuDNN), which launches at least one.
cudaError_t stub_library_kernel(const char *name, cudaStream_t stream);
