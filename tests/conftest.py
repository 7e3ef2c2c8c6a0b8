"""Provides the models, checkpoints and bundles that several rooms share; tests read them and change copies."""

from __future__ import annotations

import dataclasses
import gc
import inspect
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes.cuda_stub import build
from properties import load_profile
from shared_files import SharedFiles, shared_root

from fastblt.models.blt import Blt
from fastblt.models.checkpoint import save_checkpoint
from fastblt.models.config import BltConfig
from fastblt.models.presets import preset
from fastblt.models.training.corpus import Split
from fastblt.models.training.loop import initialize
from fastblt.runtime.backends.gpu import kernel_cache

ROOT = Path(__file__).resolve().parents[1]
#: Entropies of the random patcher lie between 4.7 and 5.2 nats: about a third of them are greater.
THRESHOLD = 5.1

load_profile()


def pytest_configure(config: pytest.Config) -> None:
    # Workers share the cores: neither they nor the programs that they start use more than one each.
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def default_signals() -> Iterator[None]:
    """Receive signals that whoever started the tests ignores (nohup, jobs in the background); children do, too."""
    defaults = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
    }
    before = {number: signal.signal(number, handler) for number, handler in defaults.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    no_gpu = pytest.mark.skip(reason="no NVIDIA GPU here (torch.cuda.is_available() is false)")
    for item in items:
        if item.get_closest_marker("gpu") is not None:  # not `keywords`: they hold the names of folders too
            item.add_marker(no_gpu)


def pytest_collection_finish() -> None:
    """Take what has been imported out of the garbage collector's sight, which would look through it again and again."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Report what was compiled: engine sizes and build seconds, which tests record as a property."""
    reports = [report for name in ("passed", "failed") for report in terminalreporter.getreports(name)]
    lines = [value for report in reports for name, value in report.user_properties if name == "engine"]
    if lines:
        terminalreporter.section("engines compiled with TensorRT-RTX")
        for line in lines:
            terminalreporter.write_line(str(line))


def random_model(config: BltConfig, seed: int = 0) -> Blt:
    """A model with random weights, ready to be run; norms are random too, so that a forgotten one shows."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Blt(config)
        initialize(model)
        for name, p in model.named_parameters():
            if p.ndim == 1:
                assert "norm" in name
                torch.nn.init.uniform_(p, 0.8, 1.2)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def tiny_config() -> BltConfig:
    """The ``tiny`` preset (BLT-D) with a threshold that random weights reach."""
    config = preset("tiny")
    return dataclasses.replace(config, patching=dataclasses.replace(config.patching, threshold=THRESHOLD))


@pytest.fixture(scope="session")
def tiny_encoder_config(tiny_config: BltConfig) -> BltConfig:
    """BLT: no block diffusion; three queries a patch, so that the global has an input projection."""
    config = dataclasses.replace(
        tiny_config, name="tiny-encoder", decoder_input="encoder", block_size=0, cross_attn_k=3
    )
    assert config.has_global_projection
    return config


@pytest.fixture(scope="session")
def tiny_mixed_config(tiny_encoder_config: BltConfig) -> BltConfig:
    """The same BLT with a draft decoder: matrices of low rank, blocks of 4 bytes."""
    return dataclasses.replace(
        tiny_encoder_config, name="tiny-mixed", decoder_input="mixed", block_size=4, draft_rank=3
    )


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Blt]:
    """``make_model(config, seed=0)``: random weights."""
    return random_model


@pytest.fixture(scope="session")
def tiny_model(tiny_config: BltConfig) -> Blt:
    """BLT-D: the decoder has its own embedding, with a [MASK] row."""
    return random_model(tiny_config)


@pytest.fixture(scope="session")
def tiny_encoder_model(tiny_encoder_config: BltConfig) -> Blt:
    """BLT: the decoder reads the encoder's byte states."""
    return random_model(tiny_encoder_config)


@pytest.fixture(scope="session")
def tiny_mixed_model(tiny_mixed_config: BltConfig, tiny_encoder_model: Blt) -> Blt:
    """`tiny_encoder_model` with a random draft decoder."""
    model = random_model(tiny_mixed_config, seed=1)
    model.load_state_dict(tiny_encoder_model.state_dict(), strict=False)
    return model


@pytest.fixture(scope="session", params=["embedding", "encoder"])
def either_model(request: pytest.FixtureRequest, tiny_model: Blt, tiny_encoder_model: Blt) -> Blt:
    """Both of them in turn, by where the decoder's input comes from."""
    return {"embedding": tiny_model, "encoder": tiny_encoder_model}[request.param]


@pytest.fixture(scope="session")
def shared_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedFiles]:
    """What is made once per test run; fails in the end if a test has changed any of it."""
    files = SharedFiles(shared_root(tmp_path_factory))
    yield files
    assert files.changed() == [], "tests that change shared files must copy them"


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_model: Blt, shared_files: SharedFiles) -> Path:
    """Folder of `tiny_model`, fp32."""
    return shared_files.make("tiny", lambda folder: save_checkpoint(folder, tiny_model))


@pytest.fixture(scope="session")
def tiny_encoder_checkpoint(tiny_encoder_model: Blt, shared_files: SharedFiles) -> Path:
    """Folder of `tiny_encoder_model`, fp32."""
    return shared_files.make("tiny-encoder", lambda folder: save_checkpoint(folder, tiny_encoder_model))


@pytest.fixture(scope="session")
def tiny_mixed_checkpoint(tiny_mixed_model: Blt, shared_files: SharedFiles) -> Path:
    """Folder of `tiny_mixed_model`, fp32."""
    return shared_files.make("tiny-mixed", lambda folder: save_checkpoint(folder, tiny_mixed_model))


@pytest.fixture(scope="session")
def documents_checkpoint(tiny_config: BltConfig, make_model: Callable[..., Blt], shared_files: SharedFiles) -> Path:
    """A BLT-D whose rows see their own document only."""
    model = make_model(dataclasses.replace(tiny_config, document_masks=True))
    return shared_files.make("tiny-documents", lambda folder: save_checkpoint(folder, model))


@pytest.fixture(scope="session")
def shipped_checkpoint() -> Path:
    """The trained checkpoint of the repository."""
    folder = ROOT / "checkpoints" / "blt-d-8m"
    if not folder.is_dir():
        pytest.fail(f"{folder}: missing, but the repository ships this checkpoint and the tests need it")
    return folder


@pytest.fixture(scope="session")
def exported(shared_files: SharedFiles) -> Callable[..., Path]:
    """``exported(checkpoint, **options)``: the bundle of a shared checkpoint, not verified unless asked for.

    Options are those of `export_bundle`; the checkpoint's name must be its own.
    """

    def make(checkpoint: Path, *, verify: bool = False, **options: Any) -> Path:
        from fastblt.export.bundle_writer import export_bundle  # tests that need no bundle need no onnx

        defaults = inspect.signature(export_bundle).parameters
        changed = [f"{name}={value}" for name, value in sorted(options.items()) if value != defaults[name].default]
        name = "-".join(["bundle", checkpoint.name, *changed, *["verified"] * verify])
        return shared_files.make(name, lambda bundle: export_bundle(checkpoint, bundle, verify=verify, **options))

    return make


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path, exported: Callable[..., Path]) -> Path:
    """`tiny_checkpoint`, exported to fp32 ONNX and verified."""
    return exported(tiny_checkpoint, verify=True)


@pytest.fixture(scope="session")
def tiny_encoder_bundle(tiny_encoder_checkpoint: Path, exported: Callable[..., Path]) -> Path:
    """`tiny_encoder_checkpoint`, exported to fp32 ONNX and verified."""
    return exported(tiny_encoder_checkpoint, verify=True)


@pytest.fixture(scope="session")
def tiny_mixed_bundle(tiny_mixed_checkpoint: Path, exported: Callable[..., Path]) -> Path:
    """`tiny_mixed_checkpoint`, exported to fp32 ONNX and verified."""
    return exported(tiny_mixed_checkpoint, verify=True)


@pytest.fixture(scope="session")
def demo_bundle(shipped_checkpoint: Path, exported: Callable[..., Path]) -> Path:
    """`shipped_checkpoint`, exported to fp32 ONNX and verified."""
    return exported(shipped_checkpoint, verify=True)


@pytest.fixture(scope="session")
def bf16_twin(shipped_checkpoint: Path, exported: Callable[..., Path], shared_files: SharedFiles) -> Path:
    """`shipped_checkpoint` in bf16, emulated so that it runs on a CPU."""
    from fastblt.export.emulation import emulate_bf16

    bundle = exported(shipped_checkpoint, dtype="bf16")
    return shared_files.make("bf16-twin", lambda twin: emulate_bf16(bundle, twin))


@pytest.fixture(scope="session")
def compiled_by_command(tiny_bundle: Path, shared_files: SharedFiles) -> Path:
    """A folder with what ``fastblt compile`` made and printed: `tiny_bundle` with engines for SM 86 and 89, ``stdout``.

    They are for 256 and 512 bytes, and have replaced ``old.engine``.
    """
    trt = pytest.importorskip("tensorrt_rtx")
    from typer.testing import CliRunner

    from fastblt.cli import app
    from fastblt.runtime.bundle.engines import folder_name

    def write(folder: Path) -> None:
        shutil.copytree(tiny_bundle, folder / "bundle")
        old = folder / "bundle" / "engines" / folder_name("tensorrt-rtx", trt.__version__, (86, 89))
        old.mkdir(parents=True)
        (old / "old.engine").touch()
        arguments = ["compile", str(folder / "bundle"), "--sm", "86,89", "--max-bytes", "256,512"]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        (folder / "stdout").write_text(result.stdout, encoding="utf-8")

    return shared_files.make("tiny-engines", write)


@pytest.fixture(scope="session")
def tiny_engines(compiled_by_command: Path) -> Path:
    """`tiny_bundle` with engines that TensorRT-RTX compiled for SM 86 and 89, for 256 and 512 bytes."""
    return compiled_by_command / "bundle"


@pytest.fixture(scope="session")
def cuda_stub(shared_files: SharedFiles) -> Path:
    """Folder of libraries that stand in for CUDA, see `fakes.cuda_stub.build`; skips where they cannot be built."""
    reason = build.missing()
    if reason is not None:
        pytest.skip(reason)
    return shared_files.make("cuda-stub", build.build)


@pytest.fixture(scope="session")
def make_split() -> Callable[..., Split]:
    """``make_split(documents)``: a corpus split in memory."""

    def make(documents: list[bytes]) -> Split:
        lengths = np.array([len(d) for d in documents], dtype=np.int64)
        return Split(
            text=np.frombuffer(b"".join(documents), dtype=np.uint8),
            offsets=np.cumsum(lengths) - lengths,
            lengths=lengths,
            corpus_ids=np.zeros(len(documents), dtype=np.int64),
            names=np.array([f"document {i}" for i in range(len(documents))], dtype=np.str_),
        )

    return make


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests keep nothing in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setattr(kernel_cache, "cache_folder", lambda: folder)
        yield
