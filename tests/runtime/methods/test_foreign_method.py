"""A method of another package that drafts without the decoder: found by name, lossless, audited and measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest
from fakes.installed_package import install_package

from fastblt.models.config import BltConfig
from fastblt.models.tokens import encode
from fastblt.runtime.backends.protocol import Backend
from fastblt.runtime.batching.round_scheduler import RoundScheduler
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.measure.audit.comparison import audit
from fastblt.runtime.measure.bench.plan import make_bench_plan
from fastblt.runtime.measure.bench.timing import measure
from fastblt.runtime.measure.replay.rates import ReplayRates
from fastblt.runtime.methods import Method, MethodError, Round, parse_method, registry
from fastblt.runtime.methods.ar import sample_next
from fastblt.runtime.methods.replay_profile import ReplayError
from fastblt.runtime.sequence.requests import Request, Steps
from fastblt.runtime.sequence.sampling import Sampler
from fastblt.runtime.sequence.session import Session

Scripted = Callable[..., Backend]

SOURCE = '''
"""Drafts what followed the last occurrence of the last byte, and lets the model verify it."""

from dataclasses import dataclass

from fastblt.runtime.methods import MethodEntry, MethodError
from fastblt.runtime.methods.ar import sample_next
from fastblt.runtime.methods.verification import verify
from fastblt.runtime.sequence.sampling import Draft


@dataclass(frozen=True)
class Echo:
    k: int
    lossless: bool = True

    @classmethod
    def parse(cls, argument):
        if not argument.isdigit():
            raise MethodError(f"method 'echo:{argument}': found {argument!r}, expected a number")
        return cls(int(argument))

    @property
    def name(self):
        return f"echo:{self.k}"

    def check(self, config):
        pass

    def rounds(self, session, sampler):
        yield sample_next(session, sampler)
        while True:
            tokens = session.tokens.tolist()
            earlier = [i for i, token in enumerate(tokens[:-1]) if token == tokens[-1]]
            at = earlier[-1] + 1 if earlier else 0
            yield verify(session, sampler, Draft(tokens[at : at + self.k]), in_parts=True)


ENTRY = MethodEntry(
    name="echo",
    syntax="echo:K",
    examples=("echo:4",),
    summary="repeats the text so far, the model verifies it",
    parse=Echo.parse,
    audited=("echo:4",),
    benchmarked=("echo:4",),
)
'''
PROMPT = b"one fish two fish red fish blue "


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_methods: None) -> None:
    """Install the method's package, as pip would, for the time of a test."""
    install_package(tmp_path, "echo_method", SOURCE, {"fastblt.methods": {"echo": "echo_method:ENTRY"}})
    monkeypatch.syspath_prepend(tmp_path)


def test_text_is_the_models_and_drafts_are_kept(scripted: Scripted) -> None:
    text = PROMPT * 4
    found = BltRuntime(scripted(text)).generate(text[: len(PROMPT)], 64, method="echo:4")
    assert found.data == text[len(PROMPT) :][:64]
    assert found.stats.drafted > found.stats.accepted > 20


def test_real_backends_write_what_they_write_byte_by_byte(backend: Backend) -> None:
    runtime = BltRuntime(backend)
    expected = runtime.generate(PROMPT, 50, method="ar", stop_at_eos=False)
    found = runtime.generate(PROMPT, 50, method="echo:3", stop_at_eos=False)
    assert found.data == expected.data
    assert found.stats.drafted > 0
    assert runtime.generate(PROMPT, 50, method=parse_method("echo:3"), stop_at_eos=False).data == expected.data


def test_audit_and_benchmark_know_it(scripted: Scripted) -> None:
    text = PROMPT * 4
    runtime = BltRuntime(scripted(text))
    methods = registry.audit_methods(runtime.config).names
    assert methods[-1] == "echo:4"
    (row,) = audit(runtime, [(runtime, "echo:4")], [("fish", PROMPT)], 40, 1e-4)
    assert (row.method, row.identical, row.prompts) == ("echo:4", 1, 1)
    assert registry.bench_methods(runtime.config).names[-1] == "echo:4"
    plan = make_bench_plan("onnxruntime", ("ar", "echo:4"), ())
    rows = measure({"onnxruntime": runtime}, plan, [PROMPT], 40, 1).rows()
    assert [(row.method, row.lossless, row.identical_to_ar) for row in rows] == [
        ("ar", True, True),
        ("echo:4", True, True),
    ]


def test_bad_argument_and_replay_are_refused_in_its_name(scripted: Scripted) -> None:
    with pytest.raises(MethodError, match="method 'echo:x': found 'x', expected a number"):
        parse_method("echo:x")
    with pytest.raises(ReplayError, match="found method echo:4, which has no replay profile"):
        ReplayRates.parse("acceptance=0.9", ["echo:4"]).profile("echo:4", scripted(PROMPT).config)


class Bare:
    """Yields nothing in place of its second request."""

    name, lossless = "bare", True

    def check(self, config: BltConfig) -> None:
        """Runs on every model."""

    def rounds(self, session: Session, sampler: Sampler) -> Iterator[Steps[Round]]:
        yield sample_next(session, sampler)
        yield self._round(session, sampler)

    def _round(self, session: Session, sampler: Sampler) -> Steps[Round]:
        yield cast("Request", None)
        return (yield from sample_next(session, sampler))


def test_what_is_no_request_ends_a_text_alone_and_among_others(tiny_bundle: Path) -> None:
    runtime = BltRuntime.from_pretrained(tiny_bundle, max_bytes=300, threads=1, sequences=3)
    method = cast("Method", Bare())
    message = (
        "method 'bare': found a NoneType among its requests, expected ScoreRequest, DraftRequest or DenoiseRequest"
    )
    with pytest.raises(MethodError, match=message):
        runtime.generate(PROMPT, 5, method=method)
    with pytest.raises(MethodError, match=message):
        runtime.generate_many([PROMPT, PROMPT[4:]], 5, method=method)
    scheduler = RoundScheduler(runtime.backend, 3)
    names: list[Method | str] = ["ar", method, "s:4"]
    streams = [runtime.stream(PROMPT[i:], 9, method=each, stop_at_eos=False) for i, each in enumerate(names)]
    found = [b"", b"", b""]
    errors: dict[int, BaseException | None] = {}
    while growing := [index for index, each in enumerate(streams) if each.open]:
        for index, step in zip(growing, scheduler.step([streams[index] for index in growing]), strict=True):
            found[index] += step.chunk.data if step.chunk else b""
            errors[index] = step.error or errors.get(index)
    assert [index for index, error in errors.items() if isinstance(error, MethodError)] == [1]
    assert [each.finish for each in streams] == ["length", "closed", "length"]
    for index in (0, 2):
        expected = runtime.generate(PROMPT[index:], 9, method=names[index], stop_at_eos=False)
        assert found[index] == expected.data
    scheduler.close()


def test_a_method_learns_what_it_has_asked_for_in_vain(tiny_bundle: Path) -> None:
    """The error is raised where it has yielded, so that it may ask for something else."""

    class Careful(Bare):
        def _round(self, session: Session, sampler: Sampler) -> Steps[Round]:
            with pytest.raises(MethodError, match="found a NoneType among its requests"):
                yield cast("Request", None)
            return (yield from sample_next(session, sampler))

    runtime = BltRuntime.from_pretrained(tiny_bundle, max_bytes=300, threads=1, sequences=1)
    found = runtime.generate(PROMPT, 2, method=cast("Method", Careful()), stop_at_eos=False)
    assert found.data == runtime.generate(PROMPT, 2, method="ar", stop_at_eos=False).data


def test_a_method_that_yields_rounds_in_place_of_requests_is_refused(scripted: Scripted) -> None:
    class Earlier:
        name, lossless = "earlier", True

        def check(self, config: BltConfig) -> None:
            """Runs on every model."""

        def rounds(self, session: Session, sampler: Sampler) -> Iterator[Round]:
            yield Round((70,), ("sampled",))

    runtime = BltRuntime(scripted(encode(PROMPT, bos=False).tolist()))
    method = cast("Method", Earlier())
    with pytest.raises(MethodError, match="method 'earlier': found a Round among its rounds, expected generators of"):
        runtime.generate(PROMPT[:4], 5, method=method)
