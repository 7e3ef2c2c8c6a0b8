// cuRAND: ONNX Runtime's CUDA provider is linked against it, and calls nothing of it here.
int curandGetVersion(int *version) {
    *version = 100400;
    return 0;
}
