"""Explains the words of the page: a tooltip where one is used, and a list of all that are used at the end."""

from __future__ import annotations

from typing import NamedTuple
from xml.etree.ElementTree import Element

from fastblt.commands.report_page.markup import Child, element


class Term(NamedTuple):
    """Holds a word and what it means."""

    name: str
    meaning: str


TERMS = {
    "acceptance": Term("Drafts kept", "The part of all drafted bytes that the model would have written itself."),
    "agreement": Term(
        "Agreement", "How often the quantized model and the one it was made from expect the same next byte."
    ),
    "ar": Term("ar", "One byte at a time: each byte waits for the one before it. Other methods are compared with it."),
    "auto": Term("auto", "Chooses method and length of drafts as it goes, by what is fastest on this machine."),
    "bits": Term(
        "Bits per byte", "How well the model predicts text: bits needed to store a byte with its help. Less is better."
    ),
    "blocks": Term(
        "Block diffusion", "Several bytes are hidden and uncovered together, the surest first, instead of one by one."
    ),
    "calls": Term("Calls per byte", "How often a part of the model is run for each new byte. Fewer calls, less work."),
    "compiled": Term("eager-compiled", "The same model in PyTorch through torch.compile: PyTorch at its fastest here."),
    "decoder": Term("Decoder", "The small part of the model that writes bytes, with what the large one made of them."),
    "draft": Term(
        "Draft", "Bytes guessed ahead cheaply. The model checks all of them in one call and keeps those that are right."
    ),
    "draft_decoder": Term("Draft decoder", "A decoder trained to guess several bytes at once, beside the model's own."),
    "eager": Term("eager", "The same model in PyTorch, one operation after the other, with its caches prepared."),
    "encoder": Term("Encoder", "The small part of the model that turns the bytes of a patch into one vector."),
    "estimate": Term(
        "Paper's estimate",
        "Cost by the formula of arXiv 2605.08044: the weights that calls read, 16 bits each, without patcher and "
        "caches. It knows no clock.",
    ),
    "fingerprint": Term(
        "Fingerprint", "The SHA-256 of a text's bytes. Two texts with the same one are the same, byte for byte."
    ),
    "first": Term("First byte", "From the question to the first new byte: the time to read the prompt, mostly."),
    "global": Term("Global transformer", "The large part of the model. It runs once per patch, not once per byte."),
    "host": Term("Python", "Time between the calls of the model: choosing bytes, checking drafts, bookkeeping."),
    "limit": Term(
        "Memory limit",
        "Each byte needs weights and caches to be read. This would be the speed, the prompt included, if reading "
        "them from main memory took all the time. Small models stay in the processor's own memory and can pass it.",
    ),
    "lossless": Term("Lossless", "Promises exactly the bytes of ar. It is checked here, byte for byte."),
    "onnxruntime": Term("onnxruntime", "Runs the exported model with ONNX Runtime, without PyTorch."),
    "patch": Term(
        "Patch",
        "Neighboring bytes that the large transformer reads as one. One ends where the next byte is hard to guess.",
    ),
    "patcher": Term("Patcher", "A small model that guesses how surprising the next byte is, and so where patches end."),
    "quantization": Term("Quantization", "Storing weights in fewer bits: less to read per byte, a little less exact."),
    "replay": Term(
        "Replay", "The real model runs, but drafts are kept at given rates: it shows cost, and nothing about quality."
    ),
    "round": Term("Round", "One draft and its check. A round writes at least one byte."),
    "speed": Term("Bytes/s", "New bytes per second, from the first one on: reading the prompt is left out."),
    "threads": Term("Threads", "How many cores share the work of one operation."),
    "transformers": Term(
        "transformers", "BltForCausalLM.generate of Hugging Face: the same weights, read without caches."
    ),
    "type": Term("Type", "How a number is stored: fp32 takes 32 bits, fp16 and bf16 take 16."),
    "weights": Term("Weights", "The numbers that training found; every call of a part reads all of its own."),
}
#: The terms of what methods and backends are called.
OF_METHODS = {"ar": "ar", "s": "draft", "dv": "blocks", "d": "blocks", "auto": "auto"}
OF_BACKENDS = {
    "onnxruntime": "onnxruntime",
    "eager": "eager",
    "eager-compiled": "compiled",
    "transformers": "transformers",
}


def term(key: str, shown: str | None = None) -> Element:
    """Return a word with its tooltip, which the keyboard reaches, too.

    Args:
        key: of `TERMS`.
        shown: another form of the word.
    """
    name, meaning = TERMS[key]
    tip = element("span", element("b", name), f": {meaning}", class_="tip", role="tooltip")
    return element("span", shown or name, tip, class_="term", tabindex="0", data_term=key, aria_describedby=_id(key))


def method_term(method: str) -> Child:
    """Return a method's name as the user wrote it, with a tooltip where its kind is known."""
    key = OF_METHODS.get(method.partition(":")[0])
    return element("code", term(key, method) if key else method)


def backend_term(backend: str) -> Child:
    """Return a backend's or a peer's name, with a tooltip where it is known."""
    key = OF_BACKENDS.get(backend)
    return term(key, backend) if key else backend


def glossary(page: Element) -> Element:
    """Return a list of the terms that a page uses, which paper has instead of tooltips."""
    used = {found for each in page.iter() if (found := each.get("data-term"))}
    keys = sorted(used, key=lambda key: TERMS[key].name.lower())
    pairs = (
        element("div", element("dt", TERMS[key].name), element("dd", TERMS[key].meaning, id=_id(key))) for key in keys
    )
    return element(
        "section", element("h2", "Words"), element("dl", *pairs, class_="words"), class_="glossary", id="words"
    )


def _id(key: str) -> str:
    return f"term-{key}"
