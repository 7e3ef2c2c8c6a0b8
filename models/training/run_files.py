"""Names the files in the folder of a training run."""

from __future__ import annotations

STATE_FILE = "state.safetensors"
LOG_FILE = "log.jsonl"
RECIPE_FILE = "recipe.json"
CHECKPOINT_FOLDER = "checkpoint"
PATCH_ENDS_FILE = "patch-ends.safetensors"
