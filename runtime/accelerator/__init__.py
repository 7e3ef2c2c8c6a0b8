"""Running a bundle's graphs on a GPU: memory, streams, engines, and the backend over them.

`backend` is the `fastblt.runtime.backend.Backend`; `part` one graph with its memory at fixed addresses; an executor
(`tensorrt_executor`, `onnxruntime_executor`) runs graphs on bound memory; `cuda` is all that touches the driver.
"""
