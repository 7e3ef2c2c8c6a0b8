// The last error, as the runtime keeps it.
#include "stub.h"

#include <stdio.h>

static cudaError_t last = cudaSuccess;

cudaError_t stub_fail(const char *call, cudaError_t status) {
    stub_log("failed call=%s status=%d", call, status);
    return last = status;
}

cudaError_t cudaPeekAtLastError(void) { return last; }

cudaError_t cudaGetLastError(void) {
    cudaError_t found = last;
    last = cudaSuccess;
    return found;
}

const char *cudaGetErrorName(cudaError_t status) {
    static char text[64];
    snprintf(text, sizeof text, "cudaError %d", status);
    return text;
}

// The sentences of the real runtime where tests read them.
const char *cudaGetErrorString(cudaError_t status) {
    switch (status) {
        case cudaSuccess: return "no error";
        case cudaErrorInvalidValue: return "invalid argument";
        case cudaErrorMemoryAllocation: return "out of memory";
        case cudaErrorInsufficientDriver: return "CUDA driver version is insufficient for CUDA runtime version";
        case cudaErrorNoDevice: return "no CUDA-capable device is detected";
        case cudaErrorInvalidDevice: return "invalid device ordinal";
        case cudaErrorNotSupported: return "operation not supported";
        case cudaErrorStreamCaptureUnsupported: return "operation not permitted when stream is capturing";
        case cudaErrorStreamCaptureInvalidated: return "operation failed due to a previous error during capture";
        default: return cudaGetErrorName(status);
    }
}
