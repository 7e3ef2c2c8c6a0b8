// cuBLAS: matrix products. Only what ONNX Runtime's CUDA provider refers to.
#include "library.h"

CREATES(cublasCreate_v2)
DESTROYS(cublasDestroy_v2)
SETS_STREAM(cublasSetStream_v2)
SUCCEEDS(cublasSetMathMode)

int cublasGetMathMode(void *handle, int *mode) {
    (void)handle;
    *mode = 0;
    return 0;
}

const char *cublasGetStatusName(int status) {
    (void)status;
    return "CUBLAS_STATUS";
}

const char *cublasGetStatusString(int status) { return cublasGetStatusName(status); }

COMPUTES(cublasGemmEx)
COMPUTES(cublasGemmBatchedEx)
COMPUTES(cublasGemmStridedBatchedEx)
COMPUTES(cublasSgemm_v2)
COMPUTES(cublasSgemmBatched)
COMPUTES(cublasSgemmStridedBatched)
COMPUTES(cublasDgemm_v2)
COMPUTES(cublasDgemmBatched)
COMPUTES(cublasDgemmStridedBatched)
COMPUTES(cublasSgeam)
COMPUTES(cublasDgeam)
COMPUTES(cublasScopy_v2)
COMPUTES(cublasSscal_v2)
COMPUTES(cublasSgetrfBatched)
COMPUTES(cublasDgetrfBatched)
COMPUTES(cublasSgetriBatched)
COMPUTES(cublasDgetriBatched)
