"""Provides forms of text, and compares what methods write of them with masked `ar`."""

from __future__ import annotations

from functools import partial
from typing import Any

from fakes.batches import rounds_of

from fastblt.calibration.schemas import load_expressions, load_schemas
from fastblt.runtime.batching.together import generate_together
from fastblt.runtime.blt_runtime import BltRuntime


def json_format(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the ``response_format`` of a schema."""
    return {"type": "json_schema", "json_schema": {"schema": schema}}


#: Options of `generate` by name.
FORMS: dict[str, dict[str, Any]] = {
    "chart-lock": {"response_format": json_format(load_schemas()["chart-lock"])},
    "emoji": {"regex": load_expressions()["emoji"]},
    "IPv4": {"regex": load_expressions()["IPv4"]},
    "choice": {"choice": ["tiger", "tigers", "日本", "日本語"]},
    "grammar": {"grammar": 'start: "(" inner ")"\ninner: start | /[0-9]{1,4}/'},
}
NEW_BYTES = 24


def check_forms(runtime: BltRuntime, methods: tuple[str, ...]) -> None:
    """Compare every form and method with masked `ar`, and see that forced bytes are written unless told otherwise."""
    forced = 0
    for name, form in FORMS.items():
        expected = runtime.generate(b"The record: ", NEW_BYTES, method="ar", **form)
        for method in methods:
            found = runtime.generate(b"The record: ", NEW_BYTES, method=method, **form)
            assert (found.data, found.finish) == (expected.data, expected.finish), (name, method)
            forced += found.stats.forced
        unforced = runtime.generate(b"The record: ", NEW_BYTES, method=methods[-1], forced_bytes=False, **form)
        assert (unforced.data, unforced.stats.forced) == (expected.data, 0), name
    assert forced > 50


def check_together(runtime: BltRuntime, methods: tuple[str, ...]) -> None:
    """Write texts of all forms in rounds that they share, one without a form among them, with each method in turn."""
    forms: list[dict[str, Any]] = [{}, *FORMS.values(), {"response_format": {"type": "json_object"}}]
    options = [form | {"method": methods[i % len(methods)]} for i, form in enumerate(forms)]
    texts = [(f"text {i}: ".encode(), each) for i, each in enumerate(options)]
    alone = [runtime.generate(prompt, NEW_BYTES, **each | {"method": "ar"}) for prompt, each in texts]
    with rounds_of(runtime) as scheduler:
        assert scheduler.shares_calls
        openers = [partial(runtime.stream, prompt, NEW_BYTES, **each) for prompt, each in texts]
        together = generate_together(scheduler, openers)
    assert [(each.data, each.finish) for each in together] == [(each.data, each.finish) for each in alone]
