"""Offers bundles behind the conventions of transformers and optimum."""
