// Streams, and the recording of their work as graphs. A launched graph does its copies again and counts as one launch.
#include "stub.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct CUstream_st {
    int number;
};

struct CUgraph_st {
    int number;
    int counts[HOST + 1];
    stub_work *work;
    size_t size, room;
};

// One stream captures at a time; that is all that is needed here.
static struct {
    cudaStream_t stream;
    enum cudaStreamCaptureMode mode;
    struct CUgraph_st *graph;
    bool active, invalid;
} capture;

static int streams, graphs;

int stub_stream_number(cudaStream_t stream) {
    // The default stream has no memory of ours: 0, or one of the two small numbers for its variants.
    return (uintptr_t)stream < 16 ? 0 : stream->number;
}

bool stub_captures(cudaStream_t stream) { return capture.active && capture.stream == stream; }

static cudaError_t invalidate(const char *call, cudaError_t status) {
    stub_log("forbidden call=%s", call);
    capture.invalid = true;
    return stub_fail(call, status);
}

cudaError_t stub_forbidden_while_capturing(const char *call) {
    if (!capture.active || capture.mode == cudaStreamCaptureModeRelaxed) return cudaSuccess;
    return invalidate(call, cudaErrorStreamCaptureUnsupported);
}

static void perform(const stub_work *work) {
    if (work->kind == COPY)
        for (size_t row = 0; row < work->rows; row++)
            memmove(work->target + row * work->target_pitch, work->source + row * work->source_pitch, work->width);
    else if (work->kind == SET)
        memset(work->target, work->value, work->width);
    else if (work->kind == HOST)
        work->function(work->argument);
}

cudaError_t stub_queue(const char *call, cudaStream_t stream, const stub_work *work) {
    if (!stub_captures(stream)) {
        perform(work);
        return cudaSuccess;
    }
    if (capture.invalid) return stub_fail(call, cudaErrorStreamCaptureInvalidated);
    struct CUgraph_st *graph = capture.graph;
    if (graph->size == graph->room)
        graph->work = realloc(graph->work, (graph->room = graph->room ? 2 * graph->room : 64) * sizeof *graph->work);
    graph->work[graph->size++] = *work;
    graph->counts[work->kind]++;
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) {
    *stream = malloc(sizeof **stream);
    (*stream)->number = ++streams;
    stub_log("%s stream=%d flags=%u", __func__, streams, flags);
    return cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t *stream) { return cudaStreamCreateWithFlags(stream, cudaStreamDefault); }

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    stub_log("%s stream=%d", __func__, stub_stream_number(stream));
    free(stream);
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    if (stub_captures(stream)) return invalidate(__func__, cudaErrorStreamCaptureUnsupported);
    stub_log("%s stream=%d", __func__, stub_stream_number(stream));
    return cudaSuccess;
}

cudaError_t cudaStreamQuery(cudaStream_t stream) {
    if (stub_captures(stream)) return invalidate(__func__, cudaErrorStreamCaptureUnsupported);
    return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize(void) {
    if (capture.active) return invalidate(__func__, cudaErrorStreamCaptureUnsupported);
    stub_log("%s", __func__);
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
    *status = !stub_captures(stream) ? cudaStreamCaptureStatusNone
              : capture.invalid      ? cudaStreamCaptureStatusInvalidated
                                     : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode) {
    // The default stream cannot be captured, nor can one that is captured already.
    if ((uintptr_t)stream < 16) return stub_fail(__func__, cudaErrorStreamCaptureUnsupported);
    if (capture.active) return stub_fail(__func__, cudaErrorIllegalState);
    struct CUgraph_st *graph = calloc(1, sizeof *graph);
    graph->number = ++graphs;
    capture.stream = stream, capture.mode = mode, capture.graph = graph;
    capture.active = true, capture.invalid = false;
    stub_log("%s stream=%d mode=%d graph=%d", __func__, stream->number, mode, graph->number);
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    *graph = NULL;
    if (!stub_captures(stream)) return stub_fail(__func__, cudaErrorIllegalState);
    capture.active = false;
    stub_log("%s stream=%d graph=%d invalid=%d", __func__, stream->number, capture.graph->number, capture.invalid);
    if (!capture.invalid) {
        *graph = capture.graph;
        return cudaSuccess;
    }
    cudaGraphDestroy(capture.graph);
    return stub_fail(__func__, cudaErrorStreamCaptureInvalidated);
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *executable, cudaGraph_t graph, unsigned long long flags) {
    // Executables outlive the graph that they are made from.
    struct CUgraph_st *copy = malloc(sizeof *copy);
    *copy = *graph;
    copy->work = malloc(graph->size * sizeof *copy->work + 1);
    memcpy(copy->work, graph->work, graph->size * sizeof *copy->work);
    stub_log("%s graph=%d flags=%llu kernels=%d copies=%d sets=%d", __func__, graph->number, flags,
             graph->counts[KERNEL], graph->counts[COPY], graph->counts[SET]);
    *executable = (cudaGraphExec_t)copy;
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    free(graph->work);
    free(graph);
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) { return cudaGraphDestroy((cudaGraph_t)executable); }

cudaError_t cudaGraphUpload(cudaGraphExec_t executable, cudaStream_t stream) {
    (void)executable, (void)stream;
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
    struct CUgraph_st *graph = (struct CUgraph_st *)executable;
    if (stub_captures(stream)) return invalidate(__func__, cudaErrorStreamCaptureUnsupported);
    stub_log("%s stream=%d graph=%d kernels=%d copies=%d sets=%d", __func__, stub_stream_number(stream), graph->number,
             graph->counts[KERNEL], graph->counts[COPY], graph->counts[SET]);
    for (size_t i = 0; i < graph->size; i++) perform(graph->work + i);
    return cudaSuccess;
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *argument) {
    stub_log("%s stream=%d capture=%d", __func__, stub_stream_number(stream), stub_captures(stream));
    stub_work work = {.kind = HOST, .function = function, .argument = argument};
    return stub_queue(__func__, stream, &work);
}
