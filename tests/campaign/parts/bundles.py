"""Opens, inspects, loads and runs bundles whose files were changed, signed again or not."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

from campaign.changes import apply
from campaign.command_line import run_command
from campaign.fixtures import BUNDLE
from campaign.judge import Judge
from campaign.part import HOSTILE_GRAPH, Counts, Place, Recipe
from campaign.recipes import MakesRecipes

from fastblt.commands.doctor import bundle_notes
from fastblt.commands.inspect_facts import read_facts
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.bundle.bundle import Bundle
from fastblt.runtime.bundle.engines import choose_engines, engine_folders, load_engine_folder
from fastblt.runtime.doctor.facts import MachineFacts, probe

_PROMPT = b"In the beginning "
_NEW_BYTES = 8
_METHODS = ("ar", "s:4")
_TARGET, _VERSION, _SM = "tensorrt-rtx", "1.7.1", 86
_ENGINES = f"engines/{_TARGET}-{_VERSION}-sm{_SM}"
_FIXTURE = "bundle-with-engines"
_REFERENCE = "bundle-bytes.json"
#: Files that no backend computes with: a bundle that is accepted although they changed still writes the same bytes.
_DESCRIPTIONS = ("manifest.json", f"{_ENGINES}/engines.json")


class Bundles(MakesRecipes):
    """Changes a bundle with a folder of engines."""

    name = "bundles"
    summary = "changed manifests, configurations, tables, graphs and engine folders: open, inspect, load, generate"
    weight = 3.0

    def __init__(self) -> None:
        self._facts: MachineFacts | None = None

    def prepare(self, fixtures: Path) -> None:
        """Add a folder of engines to a copy of the bundle, and keep the bytes that the bundle writes."""
        if not (fixtures / _FIXTURE).exists():
            shutil.copytree(fixtures / BUNDLE, fixtures / _FIXTURE)
            write_engines(fixtures / _FIXTURE)
        bytes_of = {method: generated(fixtures / _FIXTURE, method).hex() for method in _METHODS}
        (fixtures / _REFERENCE).write_text(json.dumps(bytes_of), encoding="utf-8")

    def recipe(self, rng: random.Random, fixtures: Path) -> Recipe:
        """Choose one to three changes, most of them signed, because the digests refuse the others at once."""
        names = (*["manifest.json"] * 3, *["config.json"] * 2, "embeddings.safetensors")
        graphs = ("decoder.onnx", "encoder.onnx", "entropy.onnx", "global.onnx")
        files = rng.choices((*names, *graphs, f"{_ENGINES}/engines.json"), k=rng.choice((1, 1, 1, 2, 3)))
        changes = [apply.propose(rng, fixtures / _FIXTURE, file) for file in files]
        if rng.random() < 0.15:
            changes = _agreeing(rng, fixtures / _FIXTURE)
        return {
            HOSTILE_GRAPH: any(_changes_nodes(change) for change in changes),
            "changes": changes,
            "sign": rng.random() < 0.9,
            "eager": rng.random() < 0.1,
            "commands": rng.random() < 0.15,
        }

    def run(self, recipe: Recipe, place: Place) -> Counts:
        """Change a copy, and go every way into it."""
        bundle = place.scratch / "bundle"
        shutil.copytree(place.fixtures / _FIXTURE, bundle, copy_function=os.link)
        for name in {change["file"] for change in recipe["changes"]} | {"manifest.json"}:
            (bundle / name).unlink()
            shutil.copyfile(place.fixtures / _FIXTURE / name, bundle / name)
        apply.apply(bundle, recipe["changes"])
        if recipe["sign"]:
            sign(bundle)
        judge = Judge()
        opened = judge.call(Bundle.open, bundle)
        judge.call(read_facts, str(bundle), 64)
        judge.call(bundle_notes, bundle, self._machine())
        for folder in engine_folders(bundle):
            judge.call(load_engine_folder, folder)
        judge.call(choose_engines, bundle, _TARGET, _VERSION, _SM, 64)
        reference = json.loads((place.fixtures / _REFERENCE).read_text(encoding="utf-8"))
        only_described = all(change["file"] in _DESCRIPTIONS for change in recipe["changes"])
        for method in _METHODS:
            found = judge.call(generated, bundle, method)
            if found is not None and opened is None:
                judge.fail("other", "the backend loads what Bundle.open refuses")
            if found is not None and only_described and found.hex() != reference[method]:
                judge.fail("wrong bytes", f"{method}: found other bytes, although only descriptions were changed")
        if recipe.get("eager"):
            judge.call(generated, bundle, "ar", backend="eager")
        if recipe.get("commands"):
            run_command(judge, ["inspect", str(bundle), "--json", "facts.json"])
            if run_command(judge, ["pack", str(bundle), "bundle.tar"]) and Path("bundle.tar").exists():
                judge.fail("lost files", "pack has failed and left an archive")
        return judge.result()

    def _machine(self) -> MachineFacts:
        if self._facts is None:
            self._facts = probe()
        return self._facts


def _changes_nodes(change: dict[str, Any]) -> bool:
    """Return whether a change reaches into a graph, beyond its inputs and outputs."""
    border = {f"onnx {kind}" for kind in ("type", "size", "rank", "name", "remove tensor", "cast", "weight external")}
    return str(change["file"]).endswith(".onnx") and change["op"] not in border


def _agreeing(rng: random.Random, bundle: Path) -> list[dict[str, Any]]:
    """Return changes of a type or a size that manifest and graph agree on: only the configuration contradicts."""
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    part = rng.choice(tuple(manifest["graphs"]))
    side = rng.choice(("input", "output"))
    tensors = manifest["graphs"][part][f"{side}s"]
    index = rng.randrange(len(tensors))
    tensor: dict[str, Any] = {"side": side, "index": index}
    place = ["graphs", part, f"{side}s", index]
    file = manifest["graphs"][part]["file"]
    if rng.random() < 0.7:
        name, number = rng.choice((("float32", 1), ("int64", 7), ("float16", 10), ("bfloat16", 16)))
        return [
            {"file": "manifest.json", "op": "json set", "at": [*place, "dtype"], "value": name},
            {"file": file, "op": "onnx cast", **tensor, "type": number},
        ]
    axis = rng.randrange(max(len(tensors[index]["shape"]), 1))
    size = rng.choice((1, 2, 63, 128, 4096, "rows", "other"))
    return [
        {"file": "manifest.json", "op": "json set", "at": [*place, "shape", axis], "value": size},
        {"file": file, "op": "onnx size", **tensor, "axis": axis, "size": size},
    ]


def generated(bundle: Path, method: str, backend: str = "onnxruntime") -> bytes:
    """Return some bytes of a bundle."""
    runtime = BltRuntime.from_pretrained(bundle, provider="cpu", backend=backend, max_bytes=64, threads=1)
    return runtime.generate(_PROMPT, _NEW_BYTES, method=method).data


def sign(bundle: Path) -> None:
    """Write size and digest of every file into the manifest, as who made the changes would."""
    path = bundle / "manifest.json"
    if not path.is_file():
        return  # a pipe would block
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for name, entry in manifest["files"].items():
            if (bundle / name).is_file() and not (bundle / name).is_symlink():
                data = (bundle / name).read_bytes()
                entry.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        text = json.dumps(manifest)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return  # the change has left no manifest
    path.write_text(text, encoding="utf-8", errors="surrogatepass")


def write_engines(bundle: Path) -> None:
    """Write a folder of engines that describes files which no GPU has ever seen."""
    folder = bundle / _ENGINES
    folder.mkdir(parents=True)
    parts = ("patcher", "encoder", "global", "decoder")
    engines = []
    for part in parts:
        data = part.encode() * 16
        (folder / f"{part}-64.engine").write_bytes(data)
        shapes = {"ids": [[1, 1], [1, 8], [1, 32]], "key_0": [[1, 64, 64], [1, 64, 64], [1, 64, 64]]}
        engines.append(
            {
                "part": part,
                "file": f"{part}-64.engine",
                "bytes": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
                "slots": 64,
                "pool_slots": 32 if part == "encoder" else 0,
                "profiles": [{"name": "byte", "shapes": shapes}, {"name": "prefill", "shapes": shapes}],
                "aliases": {"key_0_out": "key_0"},
                "decomposed": False,
                "build_seconds": 1.5,
            }
        )
    document = {
        "format": "fastblt-engines",
        "format_version": 1,
        "target": _TARGET,
        "version": _VERSION,
        "sms": [_SM],
        "dtype": "fp32",
        "operators": "standard",
        "bundle_sha256": hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest(),
        "engines": engines,
        "capacities": {"64": {part: index for index, part in enumerate(parts)}},
    }
    (folder / "engines.json").write_text(json.dumps(document), encoding="utf-8")
