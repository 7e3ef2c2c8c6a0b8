"""``python -m fastblt``: the command line."""

from fastblt.cli import app

if __name__ == "__main__":
    app(prog_name="fastblt")
