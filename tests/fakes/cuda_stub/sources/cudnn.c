// cuDNN: only what ONNX Runtime's CUDA provider looks up by name. It looks for all of it when it loads the library.
#include "library.h"

#include <string.h>

CREATES(cudnnCreate)
DESTROYS(cudnnDestroy)
SETS_STREAM(cudnnSetStream)
COMPUTES(cudnnReduceTensor)
COMPUTES(cudnnSoftmaxForward)

size_t cudnnGetVersion(void) { return 91000; }

const char *cudnnGetErrorString(int status) {
    (void)status;
    return "CUDNN_STATUS";
}

void cudnnGetLastErrorString(char *text, size_t size) {
    if (size) *text = 0;
}

// A reduction that needs memory is what the real one may need.
int cudnnGetReductionIndicesSize(void *handle, void *reduction, void *from, void *to, size_t *size) {
    (void)handle, (void)reduction, (void)from, (void)to;
    *size = 1024;
    return 0;
}

int cudnnGetReductionWorkspaceSize(void *handle, void *reduction, void *from, void *to, size_t *size) {
    return cudnnGetReductionIndicesSize(handle, reduction, from, to, size);
}

CREATES(cudnnCreateActivationDescriptor)
CREATES(cudnnCreateConvolutionDescriptor)
CREATES(cudnnCreateDropoutDescriptor)
CREATES(cudnnCreateFilterDescriptor)
CREATES(cudnnCreateLRNDescriptor)
CREATES(cudnnCreatePoolingDescriptor)
CREATES(cudnnCreateRNNDataDescriptor)
CREATES(cudnnCreateRNNDescriptor)
CREATES(cudnnCreateReduceTensorDescriptor)
CREATES(cudnnCreateTensorDescriptor)
DESTROYS(cudnnDestroyActivationDescriptor)
DESTROYS(cudnnDestroyConvolutionDescriptor)
DESTROYS(cudnnDestroyDropoutDescriptor)
DESTROYS(cudnnDestroyFilterDescriptor)
DESTROYS(cudnnDestroyLRNDescriptor)
DESTROYS(cudnnDestroyPoolingDescriptor)
DESTROYS(cudnnDestroyRNNDataDescriptor)
DESTROYS(cudnnDestroyRNNDescriptor)
DESTROYS(cudnnDestroyReduceTensorDescriptor)
DESTROYS(cudnnDestroyTensorDescriptor)
SUCCEEDS(cudnnActivationForward)
SUCCEEDS(cudnnAddTensor)
SUCCEEDS(cudnnBackendCreateDescriptor)
SUCCEEDS(cudnnBackendDestroyDescriptor)
SUCCEEDS(cudnnBackendExecute)
SUCCEEDS(cudnnBackendFinalize)
SUCCEEDS(cudnnBackendGetAttribute)
SUCCEEDS(cudnnBackendSetAttribute)
SUCCEEDS(cudnnBatchNormalizationForwardInference)
SUCCEEDS(cudnnBatchNormalizationForwardTraining)
SUCCEEDS(cudnnConvolutionBiasActivationForward)
SUCCEEDS(cudnnConvolutionForward)
SUCCEEDS(cudnnDeriveBNTensorDescriptor)
SUCCEEDS(cudnnDropoutGetStatesSize)
SUCCEEDS(cudnnFindConvolutionForwardAlgorithmEx)
SUCCEEDS(cudnnGetConvolutionForwardAlgorithm_v7)
SUCCEEDS(cudnnGetConvolutionForwardWorkspaceSize)
SUCCEEDS(cudnnGetRNNTempSpaceSizes)
SUCCEEDS(cudnnGetRNNWeightParams)
SUCCEEDS(cudnnGetStream)
SUCCEEDS(cudnnGetTensorNdDescriptor)
SUCCEEDS(cudnnLRNCrossChannelForward)
SUCCEEDS(cudnnPoolingForward)
SUCCEEDS(cudnnRNNForward)
SUCCEEDS(cudnnSetActivationDescriptor)
SUCCEEDS(cudnnSetConvolutionGroupCount)
SUCCEEDS(cudnnSetConvolutionMathType)
SUCCEEDS(cudnnSetConvolutionNdDescriptor)
SUCCEEDS(cudnnSetDropoutDescriptor)
SUCCEEDS(cudnnSetFilterNdDescriptor)
SUCCEEDS(cudnnSetLRNDescriptor)
SUCCEEDS(cudnnSetPoolingNdDescriptor)
SUCCEEDS(cudnnSetRNNDataDescriptor)
SUCCEEDS(cudnnSetRNNDescriptor_v8)
SUCCEEDS(cudnnSetReduceTensorDescriptor)
SUCCEEDS(cudnnSetTensorNdDescriptor)
