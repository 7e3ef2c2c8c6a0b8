"""Texts of several forms that share calls on a GPU are those of masked `ar` alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fakes.masked_texts import check_together

from fastblt.runtime.backends.gpu.backend import DeviceBackend
from fastblt.runtime.blt_runtime import BltRuntime


@pytest.mark.parametrize(
    ("bundle", "methods"),
    [
        ("BLT-D engines", ("s:4", "ar", "dv:4@one", "auto")),
        ("BLT-D sessions", ("s:8", "dv:4@one")),
        ("BLT engines", ("s:4", "ar")),
        ("draft decoder, engines", ("dv:4@one", "s:4")),
    ],
)
def test_texts_of_several_forms_share_calls(
    load: Callable[..., DeviceBackend], bundle: str, methods: tuple[str, ...]
) -> None:
    check_together(BltRuntime(load(bundle, 4)), methods)
