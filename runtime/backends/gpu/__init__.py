"""Runs a bundle's graphs on a GPU.

`backend` implements `fastblt.runtime.backends.protocol.Backend` with the calls of each part (`patcher_calls`,
`encoder_calls`, `global_calls`, `decoder_calls`) and with `drafting`. `graph` binds one graph to memory at fixed
addresses, and `device_rows` keeps what passes from graph to graph. An executor (`tensorrt_executor`,
`onnxruntime_executor`) runs a graph on the memory that is bound to it. Only `cuda` talks to the driver.
"""
