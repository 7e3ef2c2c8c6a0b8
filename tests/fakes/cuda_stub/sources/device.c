// The one GPU and its properties: those of an H100, unless the environment chooses another compute capability.
#include "stub.h"

#include <stdio.h>
#include <string.h>

#undef cudaGetDeviceProperties

static int sm(void) { return (int)stub_setting("CUDA_STUB_SM", 90); }

cudaError_t cudaGetDeviceCount(int *count) {
    *count = 0;
    // The runtime asks the driver first: one that is older than the runtime has no devices for it.
    if (stub_setting("CUDA_STUB_DRIVER", 13000) < 13000) return stub_fail(__func__, cudaErrorInsufficientDriver);
    *count = (int)stub_setting("CUDA_STUB_DEVICES", 1);
    return *count ? cudaSuccess : stub_fail(__func__, cudaErrorNoDevice);
}

cudaError_t cudaSetDevice(int device) {
    int count;
    cudaError_t status = cudaGetDeviceCount(&count);
    if (status != cudaSuccess) return status;
    return device >= 0 && device < count ? cudaSuccess : stub_fail(__func__, cudaErrorInvalidDevice);
}

cudaError_t cudaGetDevice(int *device) {
    *device = 0;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version) {
    *version = 13000;
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version) {
    *version = (int)stub_setting("CUDA_STUB_DRIVER", 13000);
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *found, int device) {
    (void)device;
    memset(found, 0, sizeof *found);
    snprintf(found->name, sizeof found->name, "stub of a GPU");
    found->major = sm() / 10;
    found->minor = sm() % 10;
    found->totalGlobalMem = (size_t)stub_setting("CUDA_STUB_MEMORY", 80LL << 30);
    found->multiProcessorCount = 132;
    found->warpSize = 32;
    found->sharedMemPerBlock = 48 << 10;
    found->sharedMemPerBlockOptin = 227 << 10;
    found->sharedMemPerMultiprocessor = 228 << 10;
    found->regsPerBlock = found->regsPerMultiprocessor = 64 << 10;
    found->maxThreadsPerBlock = found->maxThreadsDim[0] = found->maxThreadsDim[1] = 1024;
    found->maxThreadsDim[2] = 64;
    found->maxThreadsPerMultiProcessor = 2048;
    found->maxGridSize[0] = 2147483647;
    found->maxGridSize[1] = found->maxGridSize[2] = 65535;
    found->l2CacheSize = 50 << 20;
    found->unifiedAddressing = found->memoryPoolsSupported = 1;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
    struct cudaDeviceProp found;
    cudaGetDeviceProperties(&found, device);
    switch (attribute) {
        case cudaDevAttrComputeCapabilityMajor: *value = found.major; break;
        case cudaDevAttrComputeCapabilityMinor: *value = found.minor; break;
        case cudaDevAttrMultiProcessorCount: *value = found.multiProcessorCount; break;
        case cudaDevAttrWarpSize: *value = found.warpSize; break;
        case cudaDevAttrMaxThreadsPerBlock: *value = found.maxThreadsPerBlock; break;
        case cudaDevAttrMaxSharedMemoryPerBlock: *value = (int)found.sharedMemPerBlock; break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = (int)found.sharedMemPerBlockOptin; break;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = (int)found.sharedMemPerMultiprocessor; break;
        case cudaDevAttrMaxGridDimX: *value = found.maxGridSize[0]; break;
        case cudaDevAttrMaxGridDimY:
        case cudaDevAttrMaxGridDimZ: *value = found.maxGridSize[1]; break;
        case cudaDevAttrIntegrated: *value = 0; break;
        default: *value = 1;
    }
    return cudaSuccess;
}

cudaError_t cudaGetDriverEntryPointByVersion(const char *symbol, void **function, unsigned version,
                                             unsigned long long flags, enum cudaDriverEntryPointQueryResult *status) {
    (void)symbol, (void)version, (void)flags, (void)status;
    *function = NULL;
    return cudaErrorNotSupported;
}
