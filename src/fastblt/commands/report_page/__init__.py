"""The page of ``fastblt report`` and ``fastblt bench --html``: one HTML file that needs nothing else."""
