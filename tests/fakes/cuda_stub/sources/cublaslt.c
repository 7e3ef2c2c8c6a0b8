// cuBLASLt: matrix products with layouts, of which the stream is the last argument.
#include "library.h"

#include <stddef.h>

CREATES(cublasLtCreate)
DESTROYS(cublasLtDestroy)
CREATES(cublasLtMatmulDescCreate)
DESTROYS(cublasLtMatmulDescDestroy)
CREATES(cublasLtMatmulPreferenceCreate)
DESTROYS(cublasLtMatmulPreferenceDestroy)
CREATES(cublasLtMatrixLayoutCreate)
DESTROYS(cublasLtMatrixLayoutDestroy)
CREATES(cublasLtMatrixTransformDescCreate)
DESTROYS(cublasLtMatrixTransformDescDestroy)
SUCCEEDS(cublasLtMatmulAlgoConfigSetAttribute)
SUCCEEDS(cublasLtMatmulAlgoInit)
SUCCEEDS(cublasLtMatmulDescSetAttribute)
SUCCEEDS(cublasLtMatmulPreferenceSetAttribute)
SUCCEEDS(cublasLtMatrixLayoutSetAttribute)

int cublasLtMatmulAlgoGetHeuristic(void *handle, void *product, void *a, void *b, void *c, void *d, void *preference,
                                   int wanted, void *found, int *number) {
    (void)handle, (void)product, (void)a, (void)b, (void)c, (void)d, (void)preference, (void)wanted, (void)found;
    *number = 1;
    return 0;
}

int cublasLtMatmul(void *handle, void *product, const void *alpha, const void *A, void *a, const void *B, void *b,
                   const void *beta, const void *C, void *c, void *D, void *d, const void *algorithm, void *workspace,
                   size_t size, stream_t stream) {
    (void)handle, (void)product, (void)alpha, (void)A, (void)a, (void)B, (void)b, (void)beta, (void)C, (void)c;
    (void)D, (void)d, (void)algorithm, (void)workspace, (void)size;
    return stub_library_kernel("cublasLtMatmul", stream);
}

int cublasLtMatrixTransform(void *handle, void *transform, const void *alpha, const void *A, void *a, const void *beta,
                            const void *B, void *b, void *C, void *c, stream_t stream) {
    (void)handle, (void)transform, (void)alpha, (void)A, (void)a, (void)beta, (void)B, (void)b, (void)C, (void)c;
    return stub_library_kernel("cublasLtMatrixTransform", stream);
}
