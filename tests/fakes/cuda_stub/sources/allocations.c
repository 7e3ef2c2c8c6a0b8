// Allocations on the device and of page-locked memory, in one list ordered by address.
#include "stub.h"

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    char *address;
    size_t size;
    stub_place place;
} allocation;

static allocation *list;
static size_t count, room, on_device;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

// The number of allocations that begin at `address` or before it.
static size_t upper_bound(const char *address) {
    size_t first = 0, end = count;
    while (first < end) {
        size_t middle = (first + end) / 2;
        if (list[middle].address <= address)
            first = middle + 1;
        else
            end = middle;
    }
    return first;
}

stub_place stub_place_of(const void *address, size_t size) {
    pthread_mutex_lock(&lock);
    size_t end = upper_bound(address);
    stub_place place = NOWHERE;
    if (end) {
        allocation found = list[end - 1];
        if ((const char *)address + size <= found.address + found.size) place = found.place;
    }
    pthread_mutex_unlock(&lock);
    return place;
}

static cudaError_t allocate(const char *call, void **address, size_t size, stub_place place) {
    size_t total = (size_t)stub_setting("CUDA_STUB_MEMORY", 80LL << 30);
    *address = NULL;
    pthread_mutex_lock(&lock);
    if (place == DEVICE && size > total - on_device) {
        pthread_mutex_unlock(&lock);
        return stub_fail(call, cudaErrorMemoryAllocation);
    }
    // Zeros that are never touched take no memory; 256 is the alignment of the device.
    char *raw = calloc(1, size + 256 + sizeof(void *));
    if (!raw) {
        pthread_mutex_unlock(&lock);
        return stub_fail(call, cudaErrorMemoryAllocation);
    }
    char *aligned = (char *)(((uintptr_t)raw + sizeof(void *) + 255) & ~(uintptr_t)255);
    ((void **)aligned)[-1] = raw;
    if (stub_setting("CUDA_STUB_POISON", 0)) memset(aligned, 0xFF, size);
    if (count == room) list = realloc(list, (room = room ? 2 * room : 1024) * sizeof *list);
    size_t at = upper_bound(aligned);
    memmove(list + at + 1, list + at, (count++ - at) * sizeof *list);
    list[at] = (allocation){aligned, size, place};
    if (place == DEVICE) on_device += size;
    pthread_mutex_unlock(&lock);
    *address = aligned;
    stub_log("%s bytes=%zu address=%p", call, size, *address);
    return cudaSuccess;
}

static cudaError_t release(const char *call, void *address, stub_place place) {
    if (!address) return cudaSuccess;
    pthread_mutex_lock(&lock);
    size_t end = upper_bound(address);
    bool known = end && list[end - 1].address == address && list[end - 1].place == place;
    if (known) {
        if (place == DEVICE) on_device -= list[end - 1].size;
        memmove(list + end - 1, list + end, (count-- - end) * sizeof *list);
    }
    pthread_mutex_unlock(&lock);
    if (!known) return stub_fail(call, cudaErrorInvalidValue);
    free(((void **)address)[-1]);
    stub_log("%s address=%p", call, address);
    return cudaSuccess;
}

#define UNLESS_CAPTURING                                            \
    cudaError_t forbidden = stub_forbidden_while_capturing(__func__); \
    if (forbidden != cudaSuccess) return forbidden

cudaError_t cudaMalloc(void **address, size_t size) {
    UNLESS_CAPTURING;
    return allocate(__func__, address, size, DEVICE);
}

cudaError_t cudaFree(void *address) {
    UNLESS_CAPTURING;
    return release(__func__, address, DEVICE);
}

cudaError_t cudaHostAlloc(void **address, size_t size, unsigned flags) {
    (void)flags;
    UNLESS_CAPTURING;
    return allocate(__func__, address, size, PINNED);
}

cudaError_t cudaMallocHost(void **address, size_t size) {
    UNLESS_CAPTURING;
    return allocate(__func__, address, size, PINNED);
}

cudaError_t cudaFreeHost(void *address) {
    UNLESS_CAPTURING;
    return release(__func__, address, PINNED);
}

cudaError_t cudaMallocFromPoolAsync(void **address, size_t size, cudaMemPool_t pool, cudaStream_t stream) {
    (void)pool, (void)stream;
    return allocate(__func__, address, size, DEVICE);
}

cudaError_t cudaFreeAsync(void *address, cudaStream_t stream) {
    (void)stream;
    return release(__func__, address, DEVICE);
}

cudaError_t cudaMemPoolCreate(cudaMemPool_t *pool, const struct cudaMemPoolProps *properties) {
    (void)properties;
    *pool = (cudaMemPool_t)1;
    return cudaSuccess;
}

cudaError_t cudaMemPoolDestroy(cudaMemPool_t pool) {
    (void)pool;
    return cudaSuccess;
}

cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t pool, enum cudaMemPoolAttr attribute, void *value) {
    (void)pool, (void)attribute;
    memset(value, 0, sizeof(uint64_t));
    return cudaSuccess;
}

cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t pool, enum cudaMemPoolAttr attribute, void *value) {
    (void)pool, (void)attribute, (void)value;
    return cudaSuccess;
}

cudaError_t cudaMemPoolTrimTo(cudaMemPool_t pool, size_t size) {
    (void)pool, (void)size;
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *available, size_t *total) {
    *total = (size_t)stub_setting("CUDA_STUB_MEMORY", 80LL << 30);
    *available = *total - on_device;
    return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *found, const void *address) {
    stub_place place = stub_place_of(address, 1);
    memset(found, 0, sizeof *found);
    found->type = place == DEVICE   ? cudaMemoryTypeDevice
                  : place == PINNED ? cudaMemoryTypeHost
                                    : cudaMemoryTypeUnregistered;
    if (place != NOWHERE) found->devicePointer = (void *)address;
    if (place != DEVICE) found->hostPointer = (void *)address;
    return cudaSuccess;
}
