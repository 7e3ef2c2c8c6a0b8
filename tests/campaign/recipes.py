"""Parts whose tries are recipes: plain JSON, kept in the corpus once it has found something."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Protocol

from campaign.part import Counts, Limits, Part, Place, Recipe


class RecipePart(Part, Protocol):
    """Makes tries from recipes."""

    def recipe(self, rng: random.Random, fixtures: Path) -> Recipe:
        """Return what to try next."""
        ...

    def run(self, recipe: Recipe, place: Place) -> Counts:
        """Try it."""
        ...


class MakesRecipes:
    """Implements the rest of `Part` for classes that have `RecipePart.recipe` and `RecipePart.run`."""

    weight = 1.0
    limits = Limits()
    at_once = False

    def prepare(self, fixtures: Path) -> None:
        """Implement `Part.prepare`: there is nothing to make."""

    def attempt(self: RecipePart, rng: random.Random, seconds: float, place: Place) -> Counts:
        """Implement `Part.attempt`."""
        recipe = self.recipe(rng, place.fixtures)
        place.announce(recipe)
        return self.run(recipe, place)
