// libcuda: the driver's own interface, as far as anything here asks for it.
#include <stdlib.h>

// Status 100 is CUDA_ERROR_NO_DEVICE.
int cuInit(unsigned flags) {
    (void)flags;
    const char *devices = getenv("CUDA_STUB_DEVICES");
    return devices && !atoi(devices) ? 100 : 0;
}

int cuDriverGetVersion(int *version) {
    const char *text = getenv("CUDA_STUB_DRIVER");
    *version = text && *text ? atoi(text) : 13000;
    return 0;
}

int cuTensorMapEncodeTiled(void) { return 0; }
