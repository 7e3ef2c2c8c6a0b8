"""Runs the tasks of lm-evaluation-harness over a bundle; importing this module registers its model ``fastblt``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.utils import simple_parse_args_string
from tqdm import tqdm

from fastblt.models.shown import shown
from fastblt.models.tokens import utf8
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.machine import usable_cores
from fastblt.runtime.measure.harness.requests import generation_request
from fastblt.runtime.measure.harness.texts import fit_context, rolling_windows
from fastblt.runtime.methods import Method, parse_method
from fastblt.runtime.sequence.likelihood import Score

T = TypeVar("T")
R = TypeVar("R")

#: Keys of ``--model_args``; the harness itself adds the other arguments of the constructor.
KEYS = ("bundle", "method", "backend", "provider", "max_bytes", "threads", "bytes_per_token", "seed")


@register_model("fastblt")
class HarnessModel(LM):  # type: ignore[misc]
    """Answers the requests of the harness's tasks; in their words, a byte is a token.

    Args:
        bundle: folder of a bundle, or a loaded runtime.
        method: method of generated text, as in `GenerationRequest`. Log-likelihoods do not depend on it.
        backend: what runs the model, as in `BltRuntime.from_pretrained`; so are the next three.
        provider: where the backend runs it.
        max_bytes: longest text. A longer context loses its beginning, a longer document is scored in windows.
        threads: threads of one operator.
        batch_size: texts at once, each on a thread of its own; ``auto``: as many as the process may use cores.
        bytes_per_token: bytes that each of the tokens stands for by which a task limits generated text.
        seed: of sampled text: the first request's; the next one's is one greater.
        device: without effect, since the harness passes ``cuda:0`` where it was told nothing; ``provider`` chooses.
        max_batch_size: without effect.

    Raises:
        MethodError: the method does not exist, or the model cannot run it.
        ValueError: a number is out of range; and what `BltRuntime.from_pretrained` raises.
    """

    def __init__(
        self,
        bundle: str | Path | BltRuntime,
        method: str | Method | None = None,
        backend: str = "onnxruntime",
        provider: str = "auto",
        max_bytes: int = 4096,
        threads: int | None = None,
        batch_size: int | str = 1,
        bytes_per_token: int = 1,
        seed: int = 0,
        device: str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        self._at_once = _texts_at_once(batch_size)
        for name, value, least in (
            ("bytes_per_token", bytes_per_token, 1),
            ("max_bytes", max_bytes, 2),
            ("seed", seed, 0),
        ):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name}: found {shown(value)}, expected an integer >= {least}")
        wanted = None if method is None else parse_method(method)
        self._method = method
        self._bytes_per_token = bytes_per_token
        self._seed = seed
        if isinstance(bundle, BltRuntime):
            self.runtime = bundle
        else:
            self.runtime = BltRuntime.from_pretrained(
                bundle,
                backend=backend,
                provider=provider,
                max_bytes=max_bytes,
                threads=threads,
                sequences=self._at_once,
            )
        if wanted is not None:
            wanted.check(self.runtime.config)

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> HarnessModel:
        """Return the model that a text such as ``bundle=BUNDLE,method=s:8`` describes, see `create_from_arg_obj`."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> HarnessModel:
        """Return the model that ``--model_args`` describes.

        Args:
            arg_dict: values of `KEYS`.
            additional_config: what other options of the harness set; None is not passed on.

        Raises:
            ValueError: a key is unknown, ``bundle`` is missing, or as in the constructor.
        """
        for key in arg_dict:
            if key not in KEYS:
                raise ValueError(f"model_args: found {shown(key)}, expected {', '.join(KEYS)}")
        if "bundle" not in arg_dict:
            raise ValueError("model_args: found no bundle, expected bundle=FOLDER")
        # The harness turns values that look like numbers into numbers.
        bundle = arg_dict["bundle"]
        named = arg_dict | {"bundle": str(bundle) if isinstance(bundle, int | float) else bundle}
        found: HarnessModel = super().create_from_arg_obj(named, additional_config)
        return found

    @property
    def max_length(self) -> int:
        """Return the longest text, bytes."""
        return self.runtime.backend.max_bytes

    def get_model_info(self) -> dict[str, Any]:
        """Return what the harness writes about the model into its results."""
        backend = self.runtime.backend
        return {"model_name": self.runtime.config.name, "backend": backend.name, "backend_device": backend.device}

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return for each pair of context and continuation: log-probability in nats, and whether it is greedy.

        Contexts are read in alphabetical order and each continues where it differs from the one before, so that the
        choices of a question, and the examples before all questions, are read once.

        Args:
            requests: whose ``args`` are context and continuation.
            disable_tqdm: show no progress.

        Raises:
            ValueError: a continuation alone is longer than ``max_bytes``.
        """
        pairs = [self._pair(*request.args) for request in requests]
        order = sorted(range(len(pairs)), key=pairs.__getitem__)
        share = -(-len(order) // self._at_once) or 1
        shares = [order[start : start + share] for start in range(0, len(order), share)]
        answers: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
        with tqdm(total=len(pairs), desc="loglikelihood", disable=disable_tqdm) as bar:

            def work(indices: Sequence[int]) -> None:
                with self.runtime.sequence() as sequence:
                    for index in indices:
                        answers[index] = _answer(sequence.score(*pairs[index]))
                        self.cache_hook.add_partial("loglikelihood", requests[index].args, answers[index])
                        bar.update()

            list(self._in_order(work, shares))
        return answers

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-probability of each document in nats, every byte given as many before it as its window has.

        Args:
            requests: whose ``args`` are a document alone.
            disable_tqdm: show no progress.
        """

        def work(request: Any) -> float:
            windows = rolling_windows(utf8(request.args[0], "document"), self.max_length)
            total = sum((self.runtime.score(*window).total for window in windows), 0.0)
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
            return total

        return self._all(work, requests, "loglikelihood_rolling", disable_tqdm)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Return the text that follows each context, up to a stop string, the end of the document or its length.

        Args:
            requests: whose ``args`` are a context and the task's ``generation_kwargs``.
            disable_tqdm: show no progress.

        Raises:
            ValueError: a setting cannot be honored, or so many new bytes exceed ``max_bytes``.
        """

        def work(item: tuple[int, Any]) -> str:
            index, request = item
            context, settings = request.args
            wanted = generation_request(settings, self._method, self._bytes_per_token, self._seed + index)
            room = self.max_length - wanted.max_new_bytes
            if room < 1:
                raise ValueError(
                    f"max_gen_toks: found {wanted.max_new_bytes} new bytes, expected fewer than "
                    f"max_bytes={self.max_length}, which model_args sets"
                )
            text = str(self.runtime.generate(fit_context(utf8(context, "context"), room), request=wanted))
            self.cache_hook.add_partial("generate_until", request.args, text)
            return text

        return self._all(work, list(enumerate(requests)), "generate_until", disable_tqdm)

    def _pair(self, context: str, continuation: str) -> tuple[bytes, bytes]:
        """Return both as bytes, without the beginning of a context that is too long."""
        after = utf8(continuation, "continuation")
        room = self.max_length - len(after)
        if room < 0:
            raise ValueError(
                f"continuation: found {len(after)} bytes, expected at most max_bytes={self.max_length}, which "
                "model_args sets"
            )
        return fit_context(utf8(context, "context"), room), after

    def _all(self, work: Callable[[T], R], items: Sequence[T], name: str, hidden: bool) -> list[R]:
        """Return the results in the order of the items, and show how many there are so far."""
        return list(tqdm(self._in_order(work, items), name, len(items), disable=hidden))

    def _in_order(self, work: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
        """Yield the results in the order of the items; as many at once as ``batch_size`` allows."""
        if self._at_once == 1:
            yield from map(work, items)
        else:
            with ThreadPoolExecutor(self._at_once) as threads:
                yield from threads.map(work, items)


def _answer(score: Score) -> tuple[float, bool]:
    return score.total, bool(score.greedy.all())


def _texts_at_once(batch_size: int | str) -> int:
    """Return the number of texts at once."""
    if isinstance(batch_size, str) and batch_size.partition(":")[0] == "auto":
        return usable_cores()
    try:
        count = int(batch_size)
    except ValueError:
        count = 0
    if count < 1:
        raise ValueError(f"batch_size: found {shown(batch_size)}, expected an integer >= 1, or auto")
    return count
