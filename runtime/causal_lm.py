"""Keeps the old name of `fastblt.runtime.huggingface.causal_lm`; new code writes ``from fastblt import ...``."""

from fastblt.runtime.huggingface.causal_lm import ORTBltForCausalLM

__all__ = ["ORTBltForCausalLM"]
