"""Generation behind transformers' interface: token ids, text, lengths, sampling, streamers and bad arguments."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from fastblt.models.blt import Blt
from fastblt.models.tokens import BOS_ID, BYTE_OFFSET, EOS_ID, VOCAB_SIZE, encode
from fastblt.runtime.backends.protocol import CapacityError
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.bundle.manifest import load_manifest
from fastblt.runtime.huggingface.causal_lm import ORTBltForCausalLM
from fastblt.runtime.huggingface.generate_settings import DEFAULT_NEW_TOKENS, UnsupportedArgumentError
from fastblt.runtime.methods import MethodError

TEXT = b"my name is"
IDS = [1, 113, 125, 36, 114, 101, 113, 105, 36, 109, 119]
SPECIAL = [1, 42, 21, 12, 43, 23, 1, 4]
METHODS = ("ar", "s:3")


class Streamer:
    """Keeps what it is told, as transformers' streamers are told it."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self.ended = 0

    def put(self, value: Any) -> None:
        self.values.append(value)

    def end(self) -> None:
        self.ended += 1


@pytest.mark.parametrize("method", METHODS)
def test_greedy_ids_are_the_bytes_of_the_runtime(model: ORTBltForCausalLM, bundle: Path, method: str) -> None:
    expected = BltRuntime.from_pretrained(bundle, max_bytes=300).generate(TEXT, 40, stop_at_eos=False)
    ids = model.generate(np.array([IDS]), max_new_tokens=40, eos_token_id=-1, method=method)
    assert ids.dtype == np.int64
    assert ids.shape == (1, len(IDS) + 40)
    assert ids[0, : len(IDS)].tolist() == IDS
    assert ids[0, len(IDS) :].tolist() == list(expected.tokens)
    new = ids[0, len(IDS) :]
    assert (new[new >= BYTE_OFFSET] - BYTE_OFFSET).astype(np.uint8).tobytes() == expected.data


@pytest.mark.parametrize("prompt", [IDS, [BOS_ID], SPECIAL, [1, 0, 3, 259, 1, 1, 70]], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_any_ids_after_bos_are_a_prompt(
    model: ORTBltForCausalLM, tiny_model: Blt, tiny_encoder_model: Blt, prompt: list[int], method: str
) -> None:
    eager = tiny_model if model.config.decoder_input == "embedding" else tiny_encoder_model
    expected = list(prompt)
    for _ in range(20):
        expected.append(int(eager(torch.tensor([expected]))[0][0, -1].argmax()))
    found = model.generate(np.array([prompt]), max_new_tokens=20, eos_token_id=-1, method=method)
    assert found[0].tolist() == expected


def test_call_sites_of_transformers_work_unchanged(model: ORTBltForCausalLM) -> None:
    input_ids = torch.tensor([IDS])
    outputs = model.generate(input_ids, max_new_tokens=12, do_sample=False, use_cache=False)
    assert isinstance(outputs, torch.Tensor)
    assert outputs.dtype == torch.int64
    assert outputs.device == input_ids.device
    assert torch.equal(outputs[:, : input_ids.shape[1]], input_ids)
    inputs: dict[str, Any] = {"input_ids": input_ids.to(model.device), "attention_mask": torch.ones_like(input_ids)}
    assert torch.equal(model.generate(**inputs, max_new_tokens=12, pad_token_id=0, num_beams=1), outputs)
    assert torch.equal(model.generate(inputs=input_ids, max_length=len(IDS) + 12, top_k=50), outputs)
    config = GenerationConfig(max_new_tokens=12, do_sample=False, eos_token_id=2, pad_token_id=0, bos_token_id=1)
    assert torch.equal(model.generate(input_ids, generation_config=config), outputs)
    assert torch.equal(model.generate(input_ids, config, max_new_tokens=3), outputs[:, : len(IDS) + 3])
    assert model.can_generate()


@pytest.mark.parametrize(
    "prompt",
    [IDS, [IDS], np.array(IDS, dtype=np.int32), np.array([IDS]), torch.tensor(IDS), torch.tensor([IDS]).int()],
    ids=["list", "list of list", "int32 [n]", "array", "tensor [n]", "int32 tensor"],
)
def test_ids_come_back_as_they_are_given(tiny_causal_lm: ORTBltForCausalLM, prompt: Any) -> None:
    found = tiny_causal_lm.generate(prompt, max_new_tokens=5, eos_token_id=-1)
    assert isinstance(found, torch.Tensor if isinstance(prompt, torch.Tensor) else np.ndarray)
    assert tuple(found.shape) == (1, len(IDS) + 5)
    expected = tiny_causal_lm.generate([IDS], max_new_tokens=5, eos_token_id=-1)
    assert found.tolist() == expected.tolist()
    assert str(found.dtype).endswith("int64")


def test_text_comes_back_for_text(scripted_lm: Callable[..., ORTBltForCausalLM]) -> None:
    model = scripted_lm("naïve “text”, and more".encode())
    assert model.generate("naïve", max_new_tokens=5) == "naïve “t"
    assert model.generate("naïve", max_new_tokens=2) == "naïve �"
    assert model.generate("naïve".encode(), max_new_tokens=2) == "naïve ".encode() + b"\xe2"


@pytest.mark.parametrize("method", METHODS)
def test_eos_is_the_last_token_when_it_ends_generation(
    scripted_lm: Callable[..., ORTBltForCausalLM], method: str
) -> None:
    script = [*encode(b"abc", bos=False).tolist(), EOS_ID, *encode(b"defghijklmnopqrst", bos=False).tolist()]
    model = scripted_lm(script)
    prompt = np.array([[BOS_ID, script[0]]])
    found = model.generate(prompt, max_new_tokens=10, method=method)
    assert found.tolist() == [[BOS_ID, *script[:4]]]
    assert model.generate(prompt, max_new_tokens=10, eos_token_id=[2], method=method).tolist() == found.tolist()
    assert model.generate(b"a", max_new_tokens=10, method=method) == b"abc"
    found = model.generate(prompt, max_new_tokens=10, eos_token_id=-1, method=method)
    assert found.tolist() == [[BOS_ID, *script[:11]]]


def test_lengths_are_those_of_transformers(tiny_causal_lm: ORTBltForCausalLM) -> None:
    def count(**options: Any) -> int:
        return int(tiny_causal_lm.generate([IDS], eos_token_id=-1, **options).shape[1])

    assert count() == len(IDS) + DEFAULT_NEW_TOKENS == len(IDS) + 20
    assert count(max_length=15) == 15
    assert count(max_length=15, max_new_tokens=7) == len(IDS) + 7
    assert count(generation_config={"max_new_tokens": 7}, max_length=15) == len(IDS) + 7


def test_sampling_is_that_of_the_runtime(tiny_causal_lm: ORTBltForCausalLM, tiny_bundle: Path) -> None:
    runtime = BltRuntime.from_pretrained(tiny_bundle, max_bytes=100)
    for method in METHODS:
        expected = runtime.generate(TEXT, 30, temperature=0.8, top_p=0.9, seed=3, method=method).tokens
        options: dict[str, Any] = {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "top_k": 0}
        found = tiny_causal_lm.generate([IDS], max_new_tokens=30, seed=3, method=method, **options)
        assert found[0, len(IDS) :].tolist() == list(expected)
        expected = runtime.generate(TEXT, 30, temperature=1.4, top_k=12, min_p=0.3, seed=5, method=method).tokens
        options = {"do_sample": True, "temperature": 1.4, "top_k": 12}
        config = GenerationConfig(min_p=0.3, top_k=99)
        found = tiny_causal_lm.generate([IDS], config, max_new_tokens=30, seed=5, method=method, **options)
        assert found[0, len(IDS) :].tolist() == list(expected)
    greedy = tiny_causal_lm.generate([IDS], max_new_tokens=30)
    assert tiny_causal_lm.generate([IDS], max_new_tokens=30, temperature=0.8, top_p=0.5).tolist() == greedy.tolist()


def test_method_is_the_runtimes_default_unless_given(tiny_bundle: Path, tiny_causal_lm: ORTBltForCausalLM) -> None:
    options: dict[str, Any] = {"max_new_tokens": 30, "do_sample": True, "seed": 3}
    by_default = tiny_causal_lm.generate([IDS], **options)
    assert by_default.tolist() == tiny_causal_lm.generate([IDS], method="s:8", **options).tolist()
    assert tiny_causal_lm.method is None
    model = ORTBltForCausalLM.from_pretrained(tiny_bundle, max_bytes=100, method="ar")
    assert model.generate([IDS], **options).tolist() == model.generate([IDS], method="ar", **options).tolist()
    greedy = [m.generate([IDS], max_new_tokens=30).tolist() for m in (model, tiny_causal_lm)]
    assert greedy[0] == greedy[1]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make", [np.array, torch.tensor], ids=["array", "tensor"])
def test_streamer_gets_prompt_then_every_token(
    scripted_lm: Callable[..., ORTBltForCausalLM], make: Callable[..., Any], method: str
) -> None:
    script = [*encode(b"ab", bos=False).tolist(), BOS_ID, 70, 71, 72, 0, EOS_ID, *[80] * 20]
    streamer = Streamer()
    prompt = make([[BOS_ID, script[0]]])
    found = scripted_lm(script).generate(prompt, streamer=streamer, max_new_tokens=9, method=method)
    first, *rest = streamer.values
    assert first.tolist() == prompt.tolist()
    assert all(type(v) is type(prompt) and v.ndim == 1 for v in rest)
    assert [token for v in rest for token in v.tolist()] == found[0, 2:].tolist() == script[1:8]
    assert len(rest) > 1
    assert streamer.ended == 1


BAD_CALLS: list[tuple[dict[str, Any], type[ValueError], str]] = [
    ({"num_beams": 4}, UnsupportedArgumentError, "num_beams: found 4, but generate"),
    ({"repetition_penalty": 1.2}, UnsupportedArgumentError, "repetition_penalty: found 1.2"),
    ({"do_sample": True, "typical_p": 0.5}, UnsupportedArgumentError, r"typical_p: found 0\.5"),
    ({"do_sample": True, "top_k": -1}, ValueError, "top_k: found -1, expected an integer >= 0"),
    ({"do_sample": True, "min_p": 2.0}, ValueError, r"min_p: found 2\.0, expected a number in"),
    ({"num_return_sequences": 2}, UnsupportedArgumentError, "num_return_sequences: found 2"),
    ({"return_dict_in_generate": True}, UnsupportedArgumentError, "return_dict_in_generate: found True"),
    ({"logits_processor": [print]}, UnsupportedArgumentError, "logits_processor"),
    ({"generation_config": GenerationConfig(num_beams=2)}, UnsupportedArgumentError, "num_beams: found 2"),
    ({"generation_config": 3}, UnsupportedArgumentError, "generation_config: found int"),
    ({"eos_token_id": [[2], [14]]}, UnsupportedArgumentError, r"eos_token_id: found \[\[2\], \[14\]\]"),
    ({"do_sample": True, "temperature": "hot"}, ValueError, "temperature: found 'hot', expected a number > 0"),
    ({"do_sample": True, "temperature": 10**400}, ValueError, "temperature: found 'an integer of 1329 bits'"),
    ({"eos_token_id": 14}, UnsupportedArgumentError, "eos_token_id: found 14, expected 2"),
    ({"eos_token_id": [2, 14]}, UnsupportedArgumentError, r"eos_token_id: found \[2, 14\]"),
    ({"inputs": [IDS, IDS]}, UnsupportedArgumentError, "input_ids: found 2 rows, expected 1"),
    ({"input_ids": [IDS]}, UnsupportedArgumentError, "inputs, input_ids: found both or neither"),
    ({"inputs": None}, UnsupportedArgumentError, "inputs, input_ids: found both or neither"),
    ({"attention_mask": [[0, *[1] * 10]]}, UnsupportedArgumentError, r"attention_mask: .* with 1 zeros, expected 11 o"),
    ({"attention_mask": [[1] * 10]}, UnsupportedArgumentError, r"attention_mask: found shape \[1, 10\]"),
    ({"inputs": [IDS[1:]]}, ValueError, r"prompt ids: found first id 113, expected 1 \(BOS\) first"),
    ({"inputs": np.zeros((1, 0), dtype=np.int64)}, ValueError, "prompt ids: found no id, expected 1"),
    ({"inputs": [[1, VOCAB_SIZE]]}, ValueError, r"prompt ids: found 260, expected ids in 0\.\.259"),
    ({"inputs": [[1, -1]]}, ValueError, "prompt ids: found -1"),
    ({"inputs": [[1.0, 70.0]]}, ValueError, r"prompt ids: found float64 \[2\], expected integers"),
    ({"inputs": [[[1, 70]]]}, ValueError, r"prompt ids: found int64 \[1, 1, 2\]"),
    ({"inputs": 1}, UnsupportedArgumentError, r"input_ids: found 1, expected ids \[n\] or \[1, n\]"),
    ({"attention_mask": np.ones((11, 1))}, UnsupportedArgumentError, r"attention_mask: found shape \[11, 1\]"),
    ({"max_new_tokens": 2.7}, ValueError, "max_new_tokens: found 2.7, expected a positive integer"),
    ({"max_length": 15.5}, ValueError, "max_length: found 15.5, expected more than the prompt's 11 ids, an integer"),
    ({"do_sample": "false"}, ValueError, "do_sample: found 'false', expected True or False"),
    ({"max_new_tokens": 0}, ValueError, "max_new_tokens: found 0, expected a positive"),
    ({"max_length": 11}, ValueError, "max_length: found 11, expected more than the prompt's 11 ids"),
    ({"max_new_tokens": 91}, CapacityError, "found 10 bytes and max_new_bytes=91, expected at most max_bytes=100"),
    ({"do_sample": True, "temperature": 0.0}, ValueError, "temperature: found 0.0, expected a number > 0"),
    ({"do_sample": True, "top_p": 1.5}, ValueError, r"top_p: found 1\.5"),
    ({"method": "q"}, MethodError, "method 'q': unknown"),
]


@pytest.mark.parametrize(("bad", "error", "message"), BAD_CALLS)
def test_bad_argument_of_generate_is_one_clear_error(
    tiny_causal_lm: ORTBltForCausalLM, bad: dict[str, Any], error: type[ValueError], message: str
) -> None:
    with pytest.raises(error, match=message):
        tiny_causal_lm.generate(**({"inputs": [IDS]} | bad))


@pytest.mark.parametrize(
    "options",
    [
        {"provider": "cpu"},
        {"provider": "auto"},
        {"provider": "cuda", "providers": ["CPUExecutionProvider"]},
        {"use_io_binding": True, "provider_options": {}, "trust_remote_code": False, "use_cache": True},
        {"dtype": torch.float32},
        {"dtype": "fp32"},
    ],
    ids=str,
)
def test_properties_tell_how_it_runs(tiny_bundle: Path, options: dict[str, Any]) -> None:
    model = ORTBltForCausalLM.from_pretrained(str(tiny_bundle), max_bytes=20, **options)
    assert model.providers == ["CPUExecutionProvider"]
    assert model.provider == "CPUExecutionProvider"
    assert torch.device(model.device) == torch.device("cpu")
    assert getattr(torch, model.dtype) == torch.float32
    assert model.use_io_binding
    assert model.config.name == load_manifest(tiny_bundle).model
    assert model.name_or_path == str(tiny_bundle)


def test_threads_generate_at_the_same_time(tiny_bundle: Path) -> None:
    model = ORTBltForCausalLM.from_pretrained(tiny_bundle, max_bytes=100, method="ar", sequences=2)
    both = threading.Barrier(2)

    class Meeting:
        """A streamer that waits for that of the other call."""

        def put(self, ids: object) -> None:
            if not self.met:
                self.met = True
                both.wait(10)

        def end(self) -> None: ...

        met = False

    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(model.generate, text, max_new_tokens=8, streamer=Meeting()) for text in (b"one", b"two")]
        found = [call.result() for call in calls]
    assert found == [model.generate(text, max_new_tokens=8) for text in (b"one", b"two")]
    assert model.runtime.sequences == 2


def test_a_text_may_have_a_form(model: ORTBltForCausalLM) -> None:
    for form, texts in (({"choice": ["yes", "no"]}, ("yes", "no")), ({"regex": "ab{3}"}, ("abbb",))):
        assert model.generate("a", max_new_tokens=12, method="s:4", **form) in {"a" + text for text in texts}
