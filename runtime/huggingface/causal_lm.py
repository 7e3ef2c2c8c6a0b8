"""Offers a bundle with the conventions of optimum's ``ORTModelForCausalLM``: token ids in, token ids out.

Names, defaults and meanings are those that its users know. What cannot be honored is never ignored, but is one error
that explains why. PyTorch is not needed: tensors come back for tensors, arrays for arrays, text for text.
"""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

from fastblt.models.atomic_folder import replacing_folder, scratch_folder
from fastblt.models.config import BltConfig
from fastblt.runtime.backends.entry import check_capacity, check_sequences
from fastblt.runtime.backends.onnxruntime import load_onnxruntime
from fastblt.runtime.backends.protocol import Ids
from fastblt.runtime.backends.providers import PROVIDERS, choose_provider
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.bundle.bundle import Bundle
from fastblt.runtime.bundle.dtypes import BUNDLE_TYPES
from fastblt.runtime.bundle.manifest import (
    CONFIG_FILE,
    MANIFEST_FILE,
    BundleError,
    is_bundle,
    load_manifest,
)
from fastblt.runtime.generation import ByteStream
from fastblt.runtime.huggingface.generate_settings import (
    UnsupportedArgumentError,
    as_mapping,
    check_settings,
    generation_request,
    is_off,
)
from fastblt.runtime.huggingface.tensors import check_mask, like, prompt_row
from fastblt.runtime.methods import Method
from fastblt.runtime.request import GenerationRequest

if TYPE_CHECKING:
    from fastblt.runtime.backends.onnxruntime import OnnxRuntime


class ORTBltForCausalLM:
    """Holds a loaded bundle; `from_pretrained` is the constructor for users."""

    def __init__(
        self, backend: OnnxRuntime, bundle: Path, name_or_path: str, method: str | Method | None = None
    ) -> None:
        self.runtime = BltRuntime(backend)
        self.name_or_path = name_or_path
        """What it was loaded from: a bundle, or a checkpoint that was exported."""
        self.method = method
        """Method of `generate`; None: as in `GenerationRequest`."""
        self._backend = backend
        self._bundle = bundle

    @classmethod
    def from_pretrained(
        cls,
        model_id: str | Path,
        *,
        export: bool = False,
        provider: str = "CPUExecutionProvider",
        providers: Sequence[str] | None = None,
        provider_options: object = None,
        session_options: Any = None,
        use_io_binding: bool | None = None,
        max_bytes: int = 4096,
        sequences: int | None = None,
        method: str | Method | None = None,
        dtype: object = None,
        hash_tables: str | None = None,
        patcher: str | Path | None = None,
        document_masks: bool | None = None,
        **others: object,
    ) -> ORTBltForCausalLM:
        """Load a bundle, or export a checkpoint and load that.

        Args:
            model_id: folder of a bundle; with ``export`` whatever ``fastblt export`` takes.
            export: export to a temporary folder that lives as long as the object (needs the ``export`` extra).
            provider: ``CPUExecutionProvider`` or ``CUDAExecutionProvider``; ``cpu``, ``cuda`` and ``auto`` too.
            providers: replaces ``provider``; the CPU may follow, which is the fallback anyway.
            provider_options: must be empty: buffers are bound on device 0 with the provider's defaults.
            session_options: an ``onnxruntime.SessionOptions`` for the four sessions, instead of ours.
            use_io_binding: True or None: every tensor is always bound.
            max_bytes: longest prompt plus new tokens.
            sequences: most calls of `generate`, in threads of their own, that have memory at once; None: on the CPU as
                many as it has room for, on a GPU one.
            method: of `generate`, see docs/decoding.md; all but ``d:`` write what ``ar`` writes. None: ``auto``, or
                ``s:8`` where `generate` is given a seed.
            dtype: ``float32``, ``float16``, ``bfloat16``, a torch.dtype or ``fp32``...: of the export (fp32 unless
                given); without ``export`` it must be the bundle's.
            hash_tables: of the export, like the next two: ``host`` (default) or ``graph``.
            patcher: entropy model that replaces the checkpoint's own.
            document_masks: whether self-attention stays inside a document; None: as the checkpoint's origin does.
            others: arguments of ``ORTModelForCausalLM`` that fastblt lacks: only None, False or "" are accepted.

        Raises:
            UnsupportedArgumentError: an argument cannot be honored.
            ValueError: the bundle or checkpoint, the provider, the method or ``max_bytes`` cannot be used.
            ModuleNotFoundError: ``export`` without the ``export`` extra.
        """
        for name, value in others.items():
            if not is_off(value) and name != "use_cache":  # caches are always used
                raise UnsupportedArgumentError(f"{name}: found {value!r}, but fastblt has no such option")
        if use_io_binding is False:
            raise UnsupportedArgumentError("use_io_binding: found False, but every tensor is always bound by address")
        if provider_options:
            raise UnsupportedArgumentError(
                f"provider_options: found {provider_options!r}, but buffers are bound on device 0 with the provider's "
                "defaults"
            )
        if session_options is not None and not isinstance(session_options, ort.SessionOptions):
            raise UnsupportedArgumentError(
                f"session_options: found {type(session_options).__name__}, expected an onnxruntime.SessionOptions"
            )
        check_capacity(max_bytes)
        check_sequences(sequences)
        decoding = GenerationRequest(method=method).decoding_method()
        device = choose_provider(_provider_name([provider] if providers is None else providers))
        kind = _dtype_name(dtype)

        def load(bundle: Path) -> ORTBltForCausalLM:
            backend = load_onnxruntime(
                bundle, device, max_bytes, None, session_options, warm_up=True, sequences=sequences
            )
            decoding.check(backend.config)
            return cls(backend, bundle, str(model_id), method)

        if export:
            return _load_exported(load, model_id, kind or "fp32", hash_tables or "host", patcher, document_masks)
        for name, value in (("hash_tables", hash_tables), ("patcher", patcher), ("document_masks", document_masks)):
            if value is not None:
                raise UnsupportedArgumentError(f"{name}: found {value!r}, an option of export=True, without that")
        model = load(_bundle_folder(model_id))
        if kind not in (None, model._backend.manifest.dtype):
            raise UnsupportedArgumentError(f"dtype: found {dtype}, but {model_id} is a bundle of {model.dtype}")
        return model

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Copy the bundle atomically, and compare the copy with its checksums.

        Raises:
            BundleError: the bundle has changed since it was loaded.
            UnsupportedArgumentError: the folder exists, is not empty and is not a bundle.
            OSError: it cannot be written.
        """
        folder, manifest = Path(save_directory), self._backend.manifest
        if folder.exists() and not is_bundle(folder) and (not folder.is_dir() or any(folder.iterdir())):
            raise UnsupportedArgumentError(
                f"{folder}: exists and is not a bundle, expected a new name or a bundle to replace"
            )
        with replacing_folder(folder) as new:
            for name in (*manifest.files, MANIFEST_FILE):
                shutil.copyfile(self._bundle / name, new / name)
            if load_manifest(new) != manifest:
                raise BundleError(f"{self._bundle / MANIFEST_FILE}: has changed since the bundle was loaded")
            Bundle.open(new)

    @property
    def config(self) -> BltConfig:
        """Return the model's configuration."""
        return self.runtime.config

    @property
    def device(self) -> str:
        """Return ``cpu`` or ``cuda``, which ``tensor.to`` takes too; PyTorch may not be installed."""
        return self._backend.device

    @property
    def dtype(self) -> str:
        """Return the type of weights and caches: ``float32``, ``float16`` or ``bfloat16``; a name, as for `device`."""
        return BUNDLE_TYPES[self._backend.manifest.dtype].name

    @property
    def provider(self) -> str:
        """Return the execution provider that the graphs run on."""
        return self.providers[0]

    @property
    def providers(self) -> list[str]:
        """Return what ONNX Runtime reports of the decoder's session, the fallback included."""
        return self._backend.providers

    @property
    def use_io_binding(self) -> bool:
        """Return True: every tensor is always bound."""
        return True

    def can_generate(self) -> bool:
        """Return True."""
        return True

    def generate(
        self,
        inputs: Any = None,
        generation_config: Any = None,
        *,
        input_ids: Any = None,
        attention_mask: Any = None,
        max_new_tokens: int | None = None,
        max_length: int | None = None,
        do_sample: bool | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        min_p: float | None = None,
        eos_token_id: Any = None,
        streamer: Any = None,
        seed: int | None = None,
        method: str | Method | None = None,
        response_format: Mapping[str, Any] | None = None,
        regex: str | None = None,
        grammar: str | None = None,
        choice: Sequence[str] | None = None,
        **others: Any,
    ) -> Any:
        """Continue a prompt. Arguments that are None come from ``generation_config``, else from transformers' defaults.

        Args:
            inputs: token ids (array, tensor or list; [1, n] or [n]), BOS first, or text (str or bytes) without BOS.
            generation_config: a ``transformers.GenerationConfig``, or a mapping.
            input_ids: another name for ``inputs``.
            attention_mask: as long as the ids, all ones: there is no padding.
            max_new_tokens: most new tokens, default 20; before ``max_length``.
            max_length: the same with the prompt's tokens, BOS included.
            do_sample: sample; default False, greedy.
            temperature: of sampling, > 0.
            top_p: of sampling, see `GenerationRequest`, like the next two.
            top_k: of sampling; default: all tokens (transformers samples from 50 where a model asks for nothing else).
            min_p: of sampling.
            eos_token_id: 2, the model's EOS, ends the generation; -1: nothing does.
            streamer: ``put`` receives the prompt's ids [1, n], then new ids [m] as they are decided; ``end`` follows.
            seed: of sampling.
            method: default: the object's.
            response_format: the form of the new text, see `GenerationRequest`, like the next three.
            regex: a regular expression that it matches.
            grammar: a Lark grammar.
            choice: texts, one of which it is.
            others: arguments of transformers' ``generate`` that are off, or change nothing here.

        Returns:
            Prompt and new tokens, EOS included where it ended the generation: int64 [1, n + new], an array, or a
            tensor on the prompt's device for a tensor; for text, text of the same type (str: invalid UTF-8 replaced).

        Raises:
            UnsupportedArgumentError: an argument cannot be honored.
            BusyError: no place can become free, e.g. since the call comes from a streamer; see `BltRuntime`.
            CapacityError: prompt and new tokens exceed ``max_bytes``.
            GraphError: a graph fails while it runs; see `BltRuntime.generate`.
            ValueError: the ids are not a prompt, or an argument is out of range.
        """
        given = {
            "max_new_tokens": max_new_tokens,
            "max_length": max_length,
            "do_sample": do_sample,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "min_p": min_p,
            "eos_token_id": eos_token_id,
        }
        settings = as_mapping(generation_config)
        settings |= {name: value for name, value in (others | given).items() if value is not None}
        check_settings(settings)
        if (inputs is None) == (input_ids is None):
            raise UnsupportedArgumentError("inputs, input_ids: found both or neither, expected exactly one of them")
        prompt = inputs if input_ids is None else input_ids
        ids = prompt_row(prompt)
        check_mask(attention_mask, len(ids))
        form = {"response_format": response_format, "regex": regex, "grammar": grammar, "choice": choice}
        request = generation_request(settings, len(ids), method or self.method, seed, form)

        def read(stream: ByteStream) -> list[int]:
            _follow(stream, streamer, ids[None], lambda new: like(prompt, new))
            return stream.tokens

        new = self.runtime.generate_into(read, ids, request=request)
        return like(prompt, np.concatenate([ids, np.array(new, dtype=np.int64)])[None], text=True)


def _load_exported(
    load: Callable[[Path], ORTBltForCausalLM],
    checkpoint: str | Path,
    dtype: str,
    hash_tables: str,
    patcher: str | Path | None,
    document_masks: bool | None,
) -> ORTBltForCausalLM:
    """Export to a temporary folder that is deleted with the model, and load that."""
    if is_bundle(Path(checkpoint)):
        raise UnsupportedArgumentError(f"export: found True, but {checkpoint} is a bundle, expected a checkpoint")
    try:
        from fastblt.export.bundle_writer import export_bundle
        from fastblt.models.formats.open import open_checkpoint
    except ModuleNotFoundError as error:
        remedy = "install it with: pip install 'fastblt[export]'"
        raise ModuleNotFoundError(f"export=True needs the package {error.name}, {remedy}", name=error.name) from error
    source = open_checkpoint(checkpoint, patcher=patcher, document_masks=document_masks)
    with ExitStack() as stack:
        bundle = stack.enter_context(scratch_folder()) / "bundle"
        export_bundle(source, bundle, dtype=dtype, hash_tables=hash_tables)
        model = load(bundle)
        weakref.finalize(model, stack.pop_all().close)
    return model


def _bundle_folder(model_id: str | Path) -> Path:
    """Return the folder of a bundle; a checkpoint is refused with the remedy."""
    folder = Path(model_id)
    if not is_bundle(folder) and (folder / CONFIG_FILE).is_file() and not (folder / MANIFEST_FILE).exists():
        raise BundleError(f"{folder}: found a checkpoint, expected a bundle; export=True exports it first")
    return folder


def _provider_name(providers: Sequence[str]) -> str:
    """Return our name of the first of ONNX Runtime's providers; only slower ones may follow it, in order."""
    short = {long: name for name, long in PROVIDERS.items()}
    names = [short.get(name, name) if isinstance(name, str) else name for name in providers]
    fastest_first = ["tensorrt", "cuda", "cpu"]
    known = all(name in fastest_first for name in names)
    if names != ["auto"] and not (names and known and names == sorted(names, key=fastest_first.index)):
        raise UnsupportedArgumentError(
            f"provider: found {', '.join(map(str, providers)) or 'none'}, expected {' or '.join(PROVIDERS.values())} "
            f"(or {', '.join(PROVIDERS)}, auto), after which only slower ones may follow: the buffers are bound for "
            "these"
        )
    return names[0]


def _dtype_name(dtype: object) -> str | None:
    """Return fp32, fp16 or bf16; None where it is not specified."""
    name = str(dtype).removeprefix("torch.")
    for short, kind in BUNDLE_TYPES.items():
        if name in (short, kind.name):
            return short
    if name not in ("None", "auto"):
        known = ", ".join(kind.name for kind in BUNDLE_TYPES.values())
        raise UnsupportedArgumentError(f"dtype: found {name}, expected one of {known}")
    return None


def _follow(stream: ByteStream, streamer: Any, prompt: Ids, convert: Callable[[Ids], Any]) -> None:
    """Run a generation to its end, and hand every new token to a streamer."""
    if streamer is not None:
        streamer.put(convert(prompt))
    sent = 0
    for _ in stream:
        if streamer is not None and len(stream.tokens) > sent:
            streamer.put(convert(np.array(stream.tokens[sent:], dtype=np.int64)))
            sent = len(stream.tokens)
    if streamer is not None:
        if len(stream.tokens) > sent:
            streamer.put(convert(np.array(stream.tokens[sent:], dtype=np.int64)))
        streamer.end()
