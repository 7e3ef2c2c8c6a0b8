"""Everything that is measured on a GPU, in one go: the steps, what they found, and the report of it."""
