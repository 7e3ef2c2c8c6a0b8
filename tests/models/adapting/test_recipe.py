import dataclasses

import pytest

from fastblt.models.adapting.recipe import AdaptConfig
from fastblt.models.config import ConfigError


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "'steps': found 0, expected a positive integer"),
        ({"rank": 0}, "'rank': found 0, expected null or a positive integer"),
        ({"block_size": 65}, "'block_size': found 65, expected a positive integer up to 64"),
        ({"window": 100, "block_size": 64}, "'window': found 100, expected at least 128 tokens, two blocks"),
        ({"accumulate": 3}, "'accumulate': found 3, expected a divisor of batch=32"),
        ({"batch": 2**20}, "'batch': found 1048576, expected at most 16777216 tokens in a step"),
        ({"distilled": 1.5}, "'distilled': found 1.5, expected a part, from 0 to 1"),
        ({"position_decay": 0.0}, "'position_decay': found 0.0, expected a positive, finite number"),
        ({"learning_rate": float("nan")}, "'learning_rate': found nan"),
    ],
)
def test_fields_out_of_range_are_named(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(AdaptConfig(), **changes)  # type: ignore[arg-type]
