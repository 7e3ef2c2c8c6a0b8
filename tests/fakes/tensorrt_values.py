"""Holds the values of TensorRT's interface that builder and engines share: types, levels, flags and settings."""

from __future__ import annotations

from enum import Enum, IntEnum

from onnx import TensorProto

MAGIC = b"fake engine\n"


class DataType(Enum):
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"
    int64 = "int64"


TYPES = {
    TensorProto.FLOAT: DataType.float32,
    TensorProto.FLOAT16: DataType.float16,
    TensorProto.BFLOAT16: DataType.bfloat16,
    TensorProto.INT64: DataType.int64,
}


class Severity(IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class ILogger:
    Severity = Severity


class LayerType(Enum):
    ATTENTION_INPUT = 1
    KV_CACHE_UPDATE = 2
    OTHER = 3


class TensorIOMode(Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class ExecutionContextAllocationStrategy(Enum):
    STATIC = 0
    ON_PROFILE_CHANGE = 1
    USER_MANAGED = 2


class NetworkDefinitionCreationFlag(IntEnum):
    STRONGLY_TYPED = 1


class BuilderFlag(Enum):
    TF32 = 1
    REQUIRE_USER_ALLOCATION = 2


class DynamicShapesKernelSpecializationStrategy(Enum):
    LAZY = 0
    EAGER = 1
    NONE = 2


class IRuntimeCache:
    """Holds kernels; here only their number matters."""

    def __init__(self) -> None:
        self.kernels = b""

    def serialize(self) -> bytes:
        return b"kernels:" + self.kernels

    def deserialize(self, blob: bytes) -> bool:
        if not blob.startswith(b"kernels:"):
            return False
        self.kernels = blob.removeprefix(b"kernels:")
        return True


class IRuntimeConfig:
    def __init__(self) -> None:
        self.strategy: ExecutionContextAllocationStrategy | None = None
        self.dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY
        self.cache: IRuntimeCache | None = None

    def set_execution_context_allocation_strategy(self, strategy: ExecutionContextAllocationStrategy) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache()

    def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
        self.cache = cache
        return True


class ComputeCapability(Enum):
    SM86 = 86
    SM89 = 89
    SM120 = 120


class IStreamReaderV2:
    pass


class IProgressMonitor:
    pass
