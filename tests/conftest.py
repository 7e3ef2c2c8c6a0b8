"""Models, checkpoints and bundles that several tests share; all of them are read only."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

from fastblt.models.blt import Blt
from fastblt.models.checkpoint import save_checkpoint
from fastblt.models.config import BltConfig
from fastblt.models.presets import preset
from fastblt.models.training.corpus import Split
from fastblt.models.training.loop import initialise
from fastblt.runtime.backends.gpu import kernel_cache

ROOT = Path(__file__).resolve().parents[1]
#: Entropies of the random patcher lie between 4.7 and 5.2 nats: about a third of them are greater.
THRESHOLD = 5.1

# The suite tells the same thing at every run, and a crowded machine is no failure.
settings.register_profile(
    "fastblt",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("fastblt")


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    no_gpu = pytest.mark.skip(reason="no NVIDIA GPU here (torch.cuda.is_available() is false)")
    for item in items:
        if item.get_closest_marker("gpu") is not None:  # not `keywords`: they hold the names of folders too
            item.add_marker(no_gpu)


def random_model(config: BltConfig, seed: int = 0) -> Blt:
    """A model with random weights, ready to be run; norms are random too, so that a forgotten one shows."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Blt(config)
        initialise(model)
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


@pytest.fixture(scope="session", params=["embedding", "encoder"])
def either_model(request: pytest.FixtureRequest, tiny_model: Blt, tiny_encoder_model: Blt) -> Blt:
    """Both of them in turn, by where the decoder's input comes from."""
    return {"embedding": tiny_model, "encoder": tiny_encoder_model}[request.param]


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_model: Blt, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of `tiny_model`, fp32."""
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    save_checkpoint(folder, tiny_model)
    return folder


@pytest.fixture(scope="session")
def shipped_checkpoint() -> Path:
    """The trained checkpoint of the repository."""
    folder = ROOT / "checkpoints" / "blt-d-8m"
    if not folder.is_dir():
        pytest.fail(f"{folder}: missing, but the repository ships this checkpoint and the tests need it")
    return folder


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_checkpoint`, exported to fp32 ONNX."""
    return _export(tiny_checkpoint, tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="session")
def tiny_encoder_bundle(tiny_encoder_model: Blt, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_encoder_model`, exported to fp32 ONNX."""
    folder = tmp_path_factory.mktemp("bundles")
    save_checkpoint(folder / "checkpoint", tiny_encoder_model)
    return _export(folder / "checkpoint", folder / "tiny-encoder")


@pytest.fixture(scope="session")
def demo_bundle(shipped_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`shipped_checkpoint`, exported to fp32 ONNX."""
    return _export(shipped_checkpoint, tmp_path_factory.mktemp("bundles") / "demo")


def _export(checkpoint: Path, bundle: Path) -> Path:
    from fastblt.export.bundle_writer import export_bundle  # tests that need no bundle need no onnx

    export_bundle(checkpoint, bundle)
    return bundle


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
