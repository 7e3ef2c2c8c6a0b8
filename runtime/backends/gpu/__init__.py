"""Runs a bundle's graphs on a GPU: memory, streams, engines, and the backend over them.

`backend` implements `fastblt.runtime.backends.protocol.Backend`; `graph` is one graph with its memory at fixed
addresses; an executor (`tensorrt_executor`, `onnxruntime_executor`) runs graphs on bound memory; only `cuda` talks to
the driver.
"""
