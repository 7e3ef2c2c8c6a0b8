// Copies and fills. Work on a stream is done at once, or recorded; page-locked memory could be read any time later.
#include "stub.h"

#include <string.h>

static const char *const KINDS[] = {"H2H", "H2D", "D2H", "D2D", "default"};

// Fail unless what is on the device lies in one allocation; find out whether memory of the host is page-locked.
static cudaError_t check(const char *call, const void *target, size_t target_size, const void *source,
                         size_t source_size, enum cudaMemcpyKind kind, bool *pageable) {
    stub_place to = stub_place_of(target, target_size), from = stub_place_of(source, source_size);
    bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    *pageable = (!to_device && to == NOWHERE) || (!from_device && from == NOWHERE);
    if ((to_device && to != DEVICE) || (from_device && from != DEVICE)) return stub_fail(call, cudaErrorInvalidValue);
    return cudaSuccess;
}

static cudaError_t copy(const char *call, void *target, size_t target_pitch, const void *source, size_t source_pitch,
                        size_t width, size_t rows, enum cudaMemcpyKind kind, cudaStream_t stream) {
    if (!width || !rows) return cudaSuccess;
    bool pageable;
    cudaError_t status = check(call, target, (rows - 1) * target_pitch + width, source,
                               (rows - 1) * source_pitch + width, kind, &pageable);
    if (status != cudaSuccess) return status;
    stub_log("%s stream=%d capture=%d kind=%s bytes=%zu rows=%zu pageable=%d to=%p from=%p", call,
             stub_stream_number(stream), stub_captures(stream), KINDS[kind], width * rows, rows, pageable, target,
             source);
    stub_work work = {.kind = COPY, .target = target, .source = source, .target_pitch = target_pitch,
                      .source_pitch = source_pitch, .width = width, .rows = rows};
    return stub_queue(call, stream, &work);
}

cudaError_t cudaMemcpyAsync(void *target, const void *source, size_t size, enum cudaMemcpyKind kind,
                            cudaStream_t stream) {
    return copy(__func__, target, size, source, size, size, 1, kind, stream);
}

cudaError_t cudaMemcpy2DAsync(void *target, size_t target_pitch, const void *source, size_t source_pitch, size_t width,
                              size_t rows, enum cudaMemcpyKind kind, cudaStream_t stream) {
    return copy(__func__, target, target_pitch, source, source_pitch, width, rows, kind, stream);
}

// Makes the host wait, as does whatever below has no stream.
cudaError_t cudaMemcpy(void *target, const void *source, size_t size, enum cudaMemcpyKind kind) {
    cudaError_t forbidden = stub_forbidden_while_capturing(__func__);
    if (forbidden != cudaSuccess) return forbidden;
    return copy(__func__, target, size, source, size, size, 1, kind, NULL);
}

cudaError_t cudaMemcpyFromSymbol(void *target, const void *symbol, size_t size, size_t offset,
                                 enum cudaMemcpyKind kind) {
    (void)symbol, (void)offset, (void)kind;
    cudaError_t forbidden = stub_forbidden_while_capturing(__func__);
    if (forbidden != cudaSuccess) return forbidden;
    stub_log("%s bytes=%zu", __func__, size);
    memset(target, 0, size);  // a variable of the device, which is nowhere here
    return cudaSuccess;
}

static cudaError_t set(const char *call, void *target, int value, size_t size, cudaStream_t stream) {
    if (!size) return cudaSuccess;
    if (stub_place_of(target, size) != DEVICE) return stub_fail(call, cudaErrorInvalidValue);
    stub_log("%s stream=%d capture=%d bytes=%zu to=%p", call, stub_stream_number(stream), stub_captures(stream), size,
             target);
    stub_work work = {.kind = SET, .target = target, .value = value, .width = size};
    return stub_queue(call, stream, &work);
}

cudaError_t cudaMemsetAsync(void *target, int value, size_t size, cudaStream_t stream) {
    return set(__func__, target, value, size, stream);
}

cudaError_t cudaMemset(void *target, int value, size_t size) {
    cudaError_t forbidden = stub_forbidden_while_capturing(__func__);
    if (forbidden != cudaSuccess) return forbidden;
    return set(__func__, target, value, size, NULL);
}

// Rows count as one call each.
static cudaError_t set_rows(const char *call, void *target, size_t pitch, int value, size_t width, size_t rows,
                            cudaStream_t stream) {
    cudaError_t status = cudaSuccess;
    for (size_t row = 0; row < rows && status == cudaSuccess; row++)
        status = set(call, (char *)target + row * pitch, value, width, stream);
    return status;
}

cudaError_t cudaMemset2DAsync(void *target, size_t pitch, int value, size_t width, size_t rows, cudaStream_t stream) {
    return set_rows(__func__, target, pitch, value, width, rows, stream);
}
