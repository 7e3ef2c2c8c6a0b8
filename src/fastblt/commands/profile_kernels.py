"""Lists the kernels of generating with ONNX Runtime on a GPU.

``python -m fastblt.commands.profile_kernels BUNDLE FILE`` writes JSON. PyTorch's profiler watches the driver, and so
sees every kernel of the process, whoever launches it. It is what `fastblt gpu-campaign` uses where Nsight Systems is
not installed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from fastblt.commands.prompts import default_prompt
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.measure.report import write_json

NEW_BYTES, METHOD = 64, "s:8"


def profile_kernels(bundle: Path) -> dict[str, Any]:
    """Generate under the profiler, after one generation that records the CUDA graphs.

    Args:
        bundle: folder of the bundle.

    Returns:
        ``kernels``: name, count and microseconds of each kind of work on the GPU, the longest in all first; ``bytes``
        and ``method`` of the generation.

    Raises:
        ValueError: the bundle cannot be used, or there is no GPU.
        ModuleNotFoundError: PyTorch is not installed.
    """
    from torch._C._autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile, supported_activities

    runtime = BltRuntime.from_pretrained(bundle, provider="cuda", max_bytes=512, reuse_prompts=False)
    prompt = default_prompt().data
    for _ in range(2):
        runtime.generate(prompt, NEW_BYTES, method=METHOD)
    wanted = {ProfilerActivity.CPU, ProfilerActivity.CUDA} & set(supported_activities())
    with profile(activities=wanted) as profiled:
        generated = runtime.generate(prompt, NEW_BYTES, method=METHOD)
    kernels = [
        {"name": event.key, "count": event.count, "microseconds": round(event.self_device_time_total, 1)}
        for event in profiled.key_averages()
        if event.device_type == DeviceType.CUDA
    ]
    kernels.sort(key=lambda kernel: -kernel["microseconds"])
    return {"kernels": kernels, "bytes": len(generated.data), "method": METHOD}


if __name__ == "__main__":
    write_json(Path(sys.argv[2]), profile_kernels(Path(sys.argv[1])))
