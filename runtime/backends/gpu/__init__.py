"""Runs a bundle's graphs on a GPU.

`backend` implements `fastblt.runtime.backends.protocol.Backend`: what is loaded once, and a fixed number of slots.
`sequence` lends a slot to one text, under the model's lock. `slot` puts together the calls of each part
(`patcher_calls`, `encoder_calls`, `global_calls`, `decoder_calls`) and `drafting`; `slot_state` copies what a text has
left there to the host and back. `graph` binds one graph to memory at fixed addresses, and `device_rows` keeps what
passes from graph to graph. An executor (`tensorrt_executor`, `onnxruntime_executor`) runs a graph on the memory that is
bound to it. Only `cuda` talks to the driver.
"""
