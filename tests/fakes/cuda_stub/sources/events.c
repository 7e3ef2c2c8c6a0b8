// Events: whatever was queued is done, so that there is nothing to wait for.
#include "stub.h"

#include <stdlib.h>

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
    (void)flags;
    *event = malloc(1);
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, 0); }

cudaError_t cudaEventDestroy(cudaEvent_t event) {
    free(event);
    return cudaSuccess;
}

cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags) {
    (void)event, (void)flags;
    stub_log("cudaEventRecord stream=%d capture=%d", stub_stream_number(stream), stub_captures(stream));
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    return cudaEventRecordWithFlags(event, stream, 0);
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    (void)event;
    cudaError_t forbidden = stub_forbidden_while_capturing(__func__);
    if (forbidden != cudaSuccess) return forbidden;
    stub_log("%s", __func__);
    return cudaSuccess;
}

cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t begin, cudaEvent_t end) {
    (void)begin, (void)end;
    *milliseconds = 0.01f;
    return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
    (void)event, (void)flags;
    stub_log("%s stream=%d capture=%d", __func__, stub_stream_number(stream), stub_captures(stream));
    return cudaSuccess;
}
