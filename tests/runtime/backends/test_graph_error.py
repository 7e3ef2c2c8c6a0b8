"""A graph that fails while it runs: one line that names it, after which the next text is right."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from fakes.cuda import Status

from fastblt.runtime.backends.cpu.backend import OnnxRuntimeBackend
from fastblt.runtime.backends.cpu.sequence import OnnxRuntimeSequence
from fastblt.runtime.backends.eager.backend import EagerBackend
from fastblt.runtime.backends.gpu.backend import DeviceBackend
from fastblt.runtime.backends.graph_error import GraphError, graph_error
from fastblt.runtime.backends.protocol import Backend, DecoderRows
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.sequence.session import Session

PROMPT = b"The quick brown fox"
ONNX = "Error in execution: Non-zero status code returned while running Gather node.\nand more\x1b[2J"
AGAIN = "the runtime can be used again; "


@contextmanager
def failing(owner: Any, name: str, at: int, fail: Callable[[], object]) -> Iterator[None]:
    """Let the call number ``at`` of a function do something else, once."""
    call, left = getattr(owner, name), at

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal left
        left -= 1
        return fail() if left == 0 else call(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, counted)
        yield


def raises(error: Exception) -> Callable[[], object]:
    def fail() -> object:
        raise error

    return fail


class Passing:
    """Passes on to a session of ONNX Runtime, whose own methods cannot be replaced."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run_with_iobinding(self, io: Any) -> None:
        self._session.run_with_iobinding(io)


def failures(backend: Backend) -> list[tuple[Any, str, Callable[[], object], str]]:
    """What can fail in a backend: object, method, what it does instead, and what the error reports."""
    if isinstance(backend, EagerBackend):
        return [
            (
                backend.model.decoder,
                "step",
                raises(RuntimeError(ONNX)),
                r"decoder of tiny: failed while it ran \(Error ",
            ),
            (backend.model.encoder, "step", raises(IndexError("index 9")), r"encoder of tiny: .*\(index 9\)"),
        ]
    if isinstance(backend, OnnxRuntimeBackend):
        found: list[tuple[Any, str, Callable[[], object], str]] = []
        for part, error in zip(
            backend.graphs, (RuntimeError(ONNX), MemoryError(), RuntimeError("x"), OSError("y")), strict=True
        ):
            graph = backend.graphs[part]
            graph.session = Passing(graph.session)
            found.append((graph.session, "run_with_iobinding", raises(error), rf"{graph.path}: failed while it ran"))
        return found
    assert isinstance(backend, DeviceBackend)
    cuda = backend.stream.cuda.api
    executor: Any = backend.executors["decoder"]
    name = "run" if hasattr(executor, "session") else "execute"
    return [
        (
            cuda,
            "cudaStreamSynchronize",
            lambda: (Status.cudaErrorInvalidValue,),
            "failed while it ran .cudaStreamSynch",
        ),
        (cuda, "cudaMemcpyAsync", lambda: (Status.cudaErrorInvalidValue,), r"\.onnx: failed while it ran .cudaMemcpyA"),
        (executor, name, raises(graph_error(executor.path, ONNX)), "failed while it ran .Error in"),
    ]


@pytest.mark.parametrize("kind", ["eager", "onnxruntime", "tensorrt-rtx", "onnxruntime-cuda"])
def test_text_after_a_failure_is_right(open_backend: Callable[[str, str, int], Backend], kind: str) -> None:
    backend = open_backend(kind, "embedding", 80)
    # Every text is read from its beginning: on a GPU, calls of other sizes change the last bits.
    runtime = BltRuntime(backend, reuse_prompts=False)
    expected = runtime.generate(PROMPT, 20, method="ar", stop_at_eos=False).data
    logprobs = runtime.score(PROMPT, b" jumps").logprobs.tolist()
    failed = 0
    for owner, name, fail, message in failures(backend):
        for at, method in ((1, "ar"), (2, "s:4"), (3, "dv:4@one"), (5, "auto")):
            with failing(owner, name, at, fail):
                try:
                    runtime.generate(PROMPT, 20, method=method, stop_at_eos=False)
                except GraphError as error:
                    failed += 1
                    assert_is_one_line(error, message)
            assert runtime.generate(PROMPT, 20, method="s:4", stop_at_eos=False).data == expected
        with failing(owner, name, 1, fail):
            try:
                runtime.score(PROMPT, b" jumps")
            except GraphError:
                failed += 1
        assert runtime.score(PROMPT, b" jumps").logprobs.tolist() == logprobs
    assert failed >= len(failures(backend)) * 3


def assert_is_one_line(error: GraphError, message: str) -> None:
    assert re.search(message, str(error)), str(error)
    assert str(error).isprintable()
    assert AGAIN in str(error)


@pytest.mark.parametrize("kind", ["tensorrt-rtx", "onnxruntime-cuda"])
def test_lost_device_is_reported(open_backend: Callable[[str, str, int], Backend], kind: str) -> None:
    backend: Any = open_backend(kind, "embedding", 80)
    runtime = BltRuntime(backend)
    stream = runtime.stream(PROMPT, 20, method="ar")
    next(stream)
    backend.stream.cuda.api.cudaStreamSynchronize = lambda stream: (Status.cudaErrorInvalidValue,)
    lost = r"\.onnx: failed while it ran .*; the GPU is lost to this process, which has to be started again$"
    with pytest.raises(GraphError, match=lost):
        list(stream)
    assert (stream.open, stream.finish, runtime.sequences_in_use) == (False, "closed", 0)
    with pytest.raises(GraphError, match=lost):
        runtime.generate(PROMPT, 5)


def test_session_that_failed_is_over(open_backend: Callable[[str, str, int], Backend]) -> None:
    backend = open_backend("onnxruntime", "embedding", 80)
    session = Session(backend)
    owner, name, fail, _ = failures(backend)[-1]
    with failing(owner, name, 1, fail), pytest.raises(GraphError):
        session.score()
    with pytest.raises(ValueError, match="or in which a call has failed, expected a new session"):
        session.score()


@pytest.mark.parametrize(
    ("field", "value", "found"),
    [
        ("best", 260, "token 260, expected 0 to 259"),
        ("best", -1, "token -1, expected 0 to 259"),
        ("best", 2**62, f"token {2**62}, expected 0 to 259"),
        ("probability", float("nan"), "a probability that is no number"),
    ],
)
def test_decoder_that_finds_what_does_not_exist_has_failed(
    open_backend: Callable[[str, str, int], Backend],
    monkeypatch: pytest.MonkeyPatch,
    field: str,
    value: float,
    found: str,
) -> None:
    """A hostile graph, or one that overflows, is noticed before a byte is made of its results."""
    backend: Any = open_backend("onnxruntime", "encoder", 80)
    rows = OnnxRuntimeSequence._rows

    def lie(sequence: OnnxRuntimeSequence, count: int) -> DecoderRows:
        found = rows(sequence, count)
        getattr(found, field)[0] = value
        return found

    monkeypatch.setattr(OnnxRuntimeSequence, "_rows", lie)
    with pytest.raises(GraphError, match=rf"^decoder: failed while it ran \(.*{found}") as caught:
        BltRuntime(backend).generate(PROMPT, 20, method="ar")
    assert_is_one_line(caught.value, found)


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        (
            "one\ntwo",
            f"g.onnx: failed while it ran (one); {AGAIN}check the bundle with 'fastblt verify', and report it",
        ),
        ("", f"g.onnx: failed while it ran (no reason); {AGAIN}check"),
        (MemoryError(), f"g.onnx: failed while it ran (MemoryError); {AGAIN}load it with a smaller max_bytes"),
        ("Failed to allocate memory", f"g.onnx: failed while it ran (Failed to allocate memory); {AGAIN}load it with"),
        ("\x1b]0;title\x07" + 900 * "x", "g.onnx: failed while it ran (?]0;title?x"),
    ],
)
def test_error_is_one_short_line(reason: object, expected: str) -> None:
    found = str(graph_error("g.onnx", reason))
    assert found.startswith(expected)
    assert len(found) < 600
    assert found.isprintable()
