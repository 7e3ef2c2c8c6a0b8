"""A bundle behind the conventions of optimum's ``ORTModelForCausalLM``: token ids in, token ids out.

Names, defaults and meanings are those that its users know. What cannot be honoured is one error that says why,
never ignored. PyTorch is not needed: tensors come back for tensors, arrays for arrays, text for text.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

from fastblt.models.atomic_folder import replacing_folder
from fastblt.models.config import BltConfig
from fastblt.models.tokens import EOS_ID, decode, encode
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
    is_off,
    new_tokens,
    samples,
    sampling_temperature,
    stops_at_eos,
)
from fastblt.runtime.methods import parse_method

if TYPE_CHECKING:
    from fastblt.runtime.backends.onnxruntime import OnnxRuntime


class ORTBltForCausalLM:
    """A loaded bundle; `from_pretrained` is the constructor for users."""

    def __init__(self, backend: OnnxRuntime, bundle: Path, name_or_path: str, method: str = "ar") -> None:
        self.runtime = BltRuntime(backend)
        self.name_or_path = name_or_path
        """What it was loaded from: a bundle, or a checkpoint that was exported."""
        self.method = method
        """Way of decoding of `generate`."""
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
        method: str = "ar",
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
            providers: takes the place of ``provider``; the CPU may follow as the fallback that it is anyway.
            provider_options: none can be given: buffers are bound on device 0 with the provider's defaults.
            session_options: an ``onnxruntime.SessionOptions`` for the four sessions, in the place of ours.
            use_io_binding: True or None: every tensor is always bound.
            max_bytes: longest prompt plus new tokens.
            method: way of decoding of `generate`, see docs/decoding.md; all but ``d:`` give ``ar``'s output.
            dtype: ``float32``, ``float16``, ``bfloat16``, a torch.dtype or ``fp32``...: of the export (fp32 unless
                given); without ``export`` it must be the bundle's.
            hash_tables: of the export, like the next two: ``host`` (default) or ``graph``.
            patcher: entropy model in the place of the checkpoint's own.
            document_masks: whether self-attention stays inside a document; None: as the checkpoint's origin does.
            others: arguments of ``ORTModelForCausalLM`` that fastblt lacks: only None, False or "" will do.

        Raises:
            UnsupportedArgumentError: an argument cannot be honoured.
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
        if max_bytes < 1:
            raise ValueError(f"max_bytes: found {max_bytes}, expected a positive integer")
        parse_method(method)
        device = choose_provider(_provider_name([provider] if providers is None else providers))
        kind = _dtype_name(dtype)

        def load(bundle: Path) -> ORTBltForCausalLM:
            backend = load_onnxruntime(bundle, device, max_bytes, None, session_options)
            parse_method(method).check(backend.config)
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
        """Copy the bundle: all of it, compared with its checksums, or nothing.

        Raises:
            BundleError: the bundle has changed since it was loaded.
            UnsupportedArgumentError: the folder exists, is not empty and is no bundle.
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
        """The model's configuration."""
        return self.runtime.config

    @property
    def device(self) -> str:
        """``cpu`` or ``cuda``, which ``tensor.to`` takes too; no torch.device, as PyTorch may not be there."""
        return self._backend.device

    @property
    def dtype(self) -> str:
        """Type of weights and caches: ``float32``, ``float16`` or ``bfloat16``; no torch.dtype, as above."""
        return BUNDLE_TYPES[self._backend.manifest.dtype].name

    @property
    def provider(self) -> str:
        """The execution provider that the graphs run on."""
        return self.providers[0]

    @property
    def providers(self) -> list[str]:
        """What ONNX Runtime says of the decoder's session, the fallback included."""
        return self._backend.providers

    @property
    def use_io_binding(self) -> bool:
        """True."""
        return True

    def can_generate(self) -> bool:
        """True."""
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
        eos_token_id: Any = None,
        streamer: Any = None,
        seed: int | None = None,
        method: str | None = None,
        **others: Any,
    ) -> Any:
        """Go on from a prompt. Arguments that are None come from ``generation_config``, else from transformers.

        Args:
            inputs: token ids (array, tensor or list; [1, n] or [n]), BOS first, or text (str or bytes) without BOS.
            generation_config: a ``transformers.GenerationConfig``, or a mapping.
            input_ids: another name for ``inputs``.
            attention_mask: as long as the ids, all ones: there is no padding.
            max_new_tokens: most new tokens, default 20; before ``max_length``.
            max_length: the same with the prompt's tokens, BOS included.
            do_sample: sample; default False, greedy.
            temperature: of sampling, > 0.
            top_p: nucleus of sampling.
            eos_token_id: 2, the model's EOS, ends the generation; -1: nothing does.
            streamer: ``put`` gets the prompt's ids [1, n], then new ids [m] as they are decided; then ``end``.
            seed: of sampling.
            method: way of decoding, default the object's.
            others: arguments of transformers' ``generate`` that are off, or change nothing here.

        Returns:
            Prompt and new tokens, EOS included where it ended the generation: int64 [1, n + new], an array, or a
            tensor on the prompt's device for a tensor; for text, text of the same type (str: invalid UTF-8 replaced).

        Raises:
            UnsupportedArgumentError: an argument cannot be honoured.
            CapacityError: prompt and new tokens exceed ``max_bytes``.
            ValueError: the prompt is none, or an argument is out of range.
        """
        given = {
            "max_new_tokens": max_new_tokens,
            "max_length": max_length,
            "do_sample": do_sample,
            "temperature": temperature,
            "top_p": top_p,
            "eos_token_id": eos_token_id,
        }
        settings = as_mapping(generation_config)
        settings |= {name: value for name, value in (others | given).items() if value is not None}
        check_settings(settings)
        if (inputs is None) == (input_ids is None):
            raise UnsupportedArgumentError("inputs, input_ids: found both or neither, expected exactly one of them")
        prompt = inputs if input_ids is None else input_ids
        ids = _prompt_row(prompt)
        _check_mask(attention_mask, len(ids))
        sampled = samples(settings)
        run = self.runtime.stream(
            ids,
            new_tokens(settings, len(ids)),
            method=method or self.method,
            temperature=sampling_temperature(settings) if sampled else 0.0,
            top_p=settings.get("top_p", 1.0) if sampled else 1.0,
            seed=seed,
            stop_at_eos=stops_at_eos(settings.get("eos_token_id", EOS_ID)),
        )
        _follow(run, streamer, ids[None], lambda new: _like(prompt, new))
        return _like(prompt, np.concatenate([ids, np.array(run.tokens, dtype=np.int64)])[None], text=True)


def _load_exported(
    load: Callable[[Path], ORTBltForCausalLM],
    checkpoint: str | Path,
    dtype: str,
    hash_tables: str,
    patcher: str | Path | None,
    document_masks: bool | None,
) -> ORTBltForCausalLM:
    """Export to a temporary folder that goes when the model goes."""
    if is_bundle(Path(checkpoint)):
        raise UnsupportedArgumentError(f"export: found True, but {checkpoint} is a bundle, expected a checkpoint")
    try:
        from fastblt.export.bundle_writer import export_bundle
        from fastblt.models.formats.open import open_checkpoint
    except ModuleNotFoundError as error:
        remedy = "install it with: pip install 'fastblt[export]'"
        raise ModuleNotFoundError(f"export=True needs the package {error.name}, {remedy}", name=error.name) from error
    source = open_checkpoint(checkpoint, patcher=patcher, document_masks=document_masks)
    folder = tempfile.mkdtemp(prefix="fastblt-")
    try:
        bundle = Path(folder) / "bundle"
        export_bundle(source, bundle, dtype=dtype, hash_tables=hash_tables)
        model = load(bundle)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(model, shutil.rmtree, folder, ignore_errors=True)
    return model


def _bundle_folder(model_id: str | Path) -> Path:
    folder = Path(model_id)
    if not is_bundle(folder) and (folder / CONFIG_FILE).is_file() and not (folder / MANIFEST_FILE).exists():
        raise BundleError(f"{folder}: found a checkpoint, expected a bundle; export=True exports it first")
    return folder


def _provider_name(providers: Sequence[str]) -> str:
    """Our name of the first of ONNX Runtime's; those that may follow it are the slower ones, in order."""
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
    """fp32, fp16 or bf16; None: not said."""
    name = str(dtype).removeprefix("torch.")
    for short, kind in BUNDLE_TYPES.items():
        if name in (short, kind.name):
            return short
    if name not in ("None", "auto"):
        known = ", ".join(kind.name for kind in BUNDLE_TYPES.values())
        raise UnsupportedArgumentError(f"dtype: found {name}, expected one of {known}")
    return None


def _is_tensor(value: object) -> bool:
    """Whether it is a PyTorch tensor; there is none where PyTorch has not been imported."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _to_numpy(value: Any) -> Any:
    return value.detach().cpu().numpy() if _is_tensor(value) else np.asarray(value)


def _prompt_row(prompt: Any) -> Ids:
    """Ids int64 [n] of a prompt of any kind; whether they are a prompt is told where they are used."""
    if isinstance(prompt, str | bytes):
        return encode(prompt)
    ids = _to_numpy(prompt)
    if ids.ndim == 0:
        raise UnsupportedArgumentError(f"input_ids: found {prompt!r}, expected ids [n] or [1, n]")
    if ids.ndim == 2 and len(ids) != 1:
        raise UnsupportedArgumentError(
            f"input_ids: found {len(ids)} rows, expected 1: sequences run one at a time, call generate() for each"
        )
    row: Ids = ids[0] if ids.ndim == 2 else ids
    return row


def _check_mask(mask: Any, count: int) -> None:
    if mask is None:
        return
    found = _to_numpy(mask)
    if found.shape not in ((count,), (1, count)) or not (found == 1).all():
        raise UnsupportedArgumentError(
            f"attention_mask: found shape {list(found.shape)} with {int((found == 0).sum())} zeros, expected {count} "
            "ones: a model of patches cannot leave padding out, give ids without it"
        )


def _like(prompt: Any, ids: Ids, *, text: bool = False) -> Any:
    """Ids as what the prompt is: a tensor on its device, or an array; ``text``: for text, text."""
    if text and isinstance(prompt, str | bytes):
        data = decode(ids[0])
        return data if isinstance(prompt, bytes) else data.decode("utf-8", errors="replace")
    return sys.modules["torch"].from_numpy(ids).to(prompt.device) if _is_tensor(prompt) else ids


def _follow(run: ByteStream, streamer: Any, prompt: Ids, convert: Callable[[Ids], Any]) -> None:
    """Run a generation to its end, telling a streamer of every new token."""
    if streamer is not None:
        streamer.put(convert(prompt))
    sent = 0
    for _ in run:
        if streamer is not None and len(run.tokens) > sent:
            streamer.put(convert(np.array(run.tokens[sent:], dtype=np.int64)))
            sent = len(run.tokens)
    if streamer is not None:
        if len(run.tokens) > sent:
            streamer.put(convert(np.array(run.tokens[sent:], dtype=np.int64)))
        streamer.end()
