"""Lists the steps of a campaign: the command of each, how long it may take, and why it cannot run on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastblt.runtime.bundle.manifest import is_bundle

#: Minutes that the time boxes below are for.
MINUTES = 25
#: What blocks at the paper's acceptance rates are measured with.
REPLAY_CHECKPOINT = "random:blt-d-1b"
#: Types that are verified.
DTYPES = ("fp32", "fp16", "bf16")
_ENGINES = ("tensorrt-rtx", "tensorrt")
_METHODS = ("ar", "s:4", "s:8", "dv:8@one", "d:8@0.7", "auto")
_REPLAYED = ("ar", "s:4", "s:8", "s:16", "dv:8@one", "d:8@0.7", "d:16@0.7", "auto")
#: Stands for this interpreter in the command of a step.
PYTHON = "python"
_FASTBLT = ("-m", "fastblt")
#: Of bundles that are measured with engines; long enough for the prompts of `verify`.
_ENGINE_BYTES = "2048"


@dataclass(frozen=True)
class Step:
    """Describes one step."""

    name: str
    """E.g. ``verify-fp16``."""
    shows: str
    """One line about what it is for."""
    command: tuple[str, ...]
    """Arguments of this interpreter, or a program and its arguments."""
    seconds: int
    """Time box in a campaign of `MINUTES`."""
    needs: tuple[str, ...] = ()
    """Steps that must be done before."""
    lacks: str = ""
    """What this machine lacks for it; empty: nothing."""
    result: Path | None = None
    """JSON file that it writes."""
    makes: Path | None = None
    """Bundle that it writes; where that exists already there is nothing to do."""
    bundle: Path | None = None
    """Bundle that it reads."""
    methods: tuple[str, ...] = ()
    """Methods to add to the command, those that the bundle's model cannot run left out."""

    @property
    def already_there(self) -> bool:
        """Return whether the bundle that it would write exists."""
        return self.makes is not None and is_bundle(self.makes)


@dataclass(frozen=True)
class Site:
    """Describes where a campaign runs."""

    folder: Path
    """For everything that it writes."""
    checkpoint: str | None
    """None: there is none, and the bundles must be in the folder."""
    replay: str
    """Checkpoint of the replay."""
    doctor: Mapping[str, Any]
    """The JSON of `fastblt doctor`."""
    profiler: str | None
    """Path of Nsight Systems (``nsys``); None: it is not installed."""

    def bundle(self, name: str) -> Path:
        """Return the folder of a bundle."""
        return self.folder / "bundles" / name

    def result(self, step: str) -> Path:
        """Return the JSON file of a step."""
        return self.folder / "steps" / f"{step}.json"

    def lacks(self, use: str) -> str:
        """Return why something that `fastblt doctor` judges does not work here; empty: it works."""
        verdict = next(found for found in self.doctor["verdicts"] if found["way"] == use)
        return "" if verdict["works"] else f"{verdict['reason']}{verdict['remedy'] and ': '}{verdict['remedy']}"


def plan(site: Site) -> list[Step]:
    """Return all steps in the order in which they run: what is wanted most comes first."""
    cuda = site.lacks("onnxruntime --provider cuda")
    steps = [_latency(site), _export(site, "fp16"), _verify(site, "fp16", cuda), _bench(site, cuda)]
    steps += [_export(site, "fp32"), _verify(site, "fp32", cuda), _audit(site, "fp32", cuda)]
    steps += [_export(site, "bf16"), _verify(site, "bf16", cuda)]
    steps += [_baselines(site, cuda), _profile(site, cuda)]
    steps += [_export(site, "replay", site.replay, 480), _replay(site, cuda)]
    return [*steps, *(step for target in _ENGINES for step in _engine_steps(site, target))]


def _latency(site: Site) -> Step:
    file = site.result("latency")
    command = ("-m", "fastblt.runtime.measure.gpu_campaign.latency", str(file))
    return Step("latency", "launches, waits and small copies, without a model", command, 60, result=file)


def _export(site: Site, name: str, checkpoint: str | None = None, seconds: int = 100) -> Step:
    """Return the step that exports a bundle: the campaign's checkpoint in the type that the name begins with."""
    bundle, source = site.bundle(name), checkpoint or site.checkpoint
    lacks = site.lacks("eager on the CPU")  # that is PyTorch
    if source is None:
        lacks = "found no checkpoint, expected one: --checkpoint"
    dtype, _, kind = name.partition("-")
    options = ("--dtype", dtype if dtype in DTYPES else "fp16", "--force", *(["--lowered"] if kind else []))
    command = (*_FASTBLT, "export", str(source), str(bundle), *options)
    shows = f"graphs of {source}, {options[1]}{kind and ', '}{kind}"
    return Step(f"export-{name}", shows, command, seconds, (), lacks, makes=bundle)


def _of_bundle(
    site: Site, name: str, kind: str, bundle: str, options: tuple[str, ...], seconds: int, lacks: str, shows: str
) -> Step:
    """Return a step that runs a command of fastblt on a bundle and keeps its JSON."""
    file = site.result(name)
    command = (*_FASTBLT, kind, str(site.bundle(bundle)), *options, "--json", str(file))
    return Step(name, shows, command, seconds, (f"export-{bundle}",), lacks, file, bundle=site.bundle(bundle))


def _verify(site: Site, dtype: str, lacks: str) -> Step:
    options = ("--backend", "onnxruntime", "--provider", "cuda")
    shows = f"GPU against CPU, {dtype}: tensors, then texts"
    return _of_bundle(site, f"verify-{dtype}", "verify", dtype, options, 150, lacks, shows)


def _audit(site: Site, dtype: str, lacks: str) -> Step:
    # Without PyTorch on the GPU the methods can still be compared with `ar` of the same backend.
    reference = ("--reference", "onnxruntime") if site.lacks("eager --provider cuda") else ()
    options = ("--provider", "cuda", "--prompts", "8", *reference)
    shows = f"bytes of every method, {dtype}, against {'ar' if reference else 'eager PyTorch'}"
    return _of_bundle(site, f"audit-{dtype}", "audit", dtype, options, 150, lacks, shows)


def _bench(site: Site, lacks: str) -> Step:
    options = ("--provider", "cuda", "--prompts", "8", "--max-new-bytes", "256")
    step = _of_bundle(site, "bench", "bench", "fp16", options, 120, lacks, "speed of the methods, fp16")
    return replace(step, methods=_METHODS)


def _baselines(site: Site, lacks: str) -> Step:
    options = ("--provider", "cuda", "--methods", "ar,s:8,auto", "--against", "eager,eager-compiled", "--prompts", "4")
    lacks = lacks or site.lacks("eager --provider cuda")
    shows = "speed against PyTorch, eager and compiled, fp16"
    return _of_bundle(site, "baselines", "bench", "fp16", options, 360, lacks, shows)


def _replay(site: Site, lacks: str) -> Step:
    options = ("--provider", "cuda", "--replay", "paper", "--prompts", "4", "--max-new-bytes", "256")
    shows = f"cost of the methods at the paper's rates, {site.replay}, fp16"
    return replace(_of_bundle(site, "replay", "bench", "replay", options, 180, lacks, shows), methods=_REPLAYED)


def _profile(site: Site, lacks: str) -> Step:
    """Return the step that lists what the GPU ran: with Nsight Systems, else with PyTorch's profiler."""
    bundle, file = str(site.bundle("fp16")), site.result("profile")
    if site.profiler is not None:
        traced = ("--trace=cuda", "--cuda-graph-trace=node", "--stats=true", "--force-overwrite=true")
        run = ("bench", bundle, "--provider", "cuda", "--methods", "ar,s:8", "--prompts", "1", "--max-new-bytes", "64")
        output = f"--output={file.with_suffix('')}"
        traced_run = (site.profiler, "profile", *traced, output, PYTHON, *_FASTBLT, *run)
        shows = "kernels, by Nsight Systems: steps/profile.log"
        return Step("profile", shows, traced_run, 120, ("export-fp16",), lacks)
    if site.lacks("eager --provider cuda"):
        lacks = "found neither Nsight Systems (nsys) nor a PyTorch with CUDA, expected one of them"
    command = ("-m", "fastblt.commands.profile_kernels", bundle, str(file))
    return Step("profile", "kernels, by PyTorch's profiler", command, 120, ("export-fp16",), lacks, file)


def _engine_steps(site: Site, target: str) -> list[Step]:
    """Return the steps of TensorRT or TensorRT-RTX: compiling, verifying and measuring engines."""
    use = "compile and run, tensorrt" if target == "tensorrt" else "run --backend tensorrt-rtx"
    lacks = site.lacks(use) or (site.lacks("compile --target tensorrt-rtx") if target == "tensorrt-rtx" else "")
    libraries = {found["target"]: found for found in site.doctor["facts"]["libraries"]}
    lowered = target in libraries and not libraries[target]["updates_caches"]
    name = "fp16-lowered" if lowered else "fp16"
    command = (*_FASTBLT, "compile", str(site.bundle(name)), "--target", target, "--max-bytes", _ENGINE_BYTES)
    compiling = Step(f"compile-{target}", f"engines of {target}, {name}", command, 120, (f"export-{name}",), lacks)
    backend = ("--backend", target)
    kinds = (("verify", backend, "GPU against CPU"), ("bench", (*backend, "--prompts", "8"), "speed of the methods"))
    others = [
        _of_bundle(site, f"{kind}-{target}", kind, name, options, 120, lacks, f"{shows}, {target}, {name}")
        for kind, options, shows in kinds
    ]
    exporting = [_export(site, name)] if lowered else []
    after = (replace(step, needs=(*step.needs, compiling.name)) for step in others)
    return [*exporting, compiling, *after]
