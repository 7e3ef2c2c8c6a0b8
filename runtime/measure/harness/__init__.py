"""Offers bundles to lm-evaluation-harness (package ``lm-eval``, extra ``eval``) as its model ``fastblt``.

`model` is the harness's interface over a runtime, `texts` cuts what exceeds the room for a text, `requests` turns the
harness's settings of a generation into ours. Only `model` imports the harness, which registers the name.
"""
