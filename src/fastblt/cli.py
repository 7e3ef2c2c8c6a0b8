"""The command line: which commands there are; each one's options and work are in `fastblt.commands`.

A command's module is imported when the command is used, so ``fastblt --help`` needs nothing but typer.
"""

from __future__ import annotations

import sys
from functools import partial
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from fastblt import __version__
from fastblt.commands.errors import exit_status
from fastblt.commands.exit_status import USAGE

#: Every command and one line about it, in the order of ``fastblt --help``; its module is
#: ``fastblt.commands.NAME``, with underscores.
COMMANDS = {
    "export": "Export a checkpoint to a bundle of ONNX graphs.",
    "generate": "Generate text from a bundle.",
    "serve": "Serve a bundle over HTTP: OpenAI's interface, and a page.",
    "bench": "Measure the speed of decoding methods, or of a server.",
    "report": "Write a page about a bundle: speed, cost, drafts, texts.",
    "tune": "Find the fastest settings for this machine, and keep them.",
    "audit": "Check that every method writes the bytes it has to write.",
    "eval": "Measure how well a bundle predicts text, and what it generates.",
    "lm-eval": "Run lm-evaluation-harness over a bundle.",
    "inspect": "Describe a checkpoint or a bundle.",
    "quantize": "Make a bundle smaller, and measure what that costs.",
    "convert": "Write a checkpoint in another layout.",
    "compile": "Compile a bundle to TensorRT engines.",
    "verify": "Compare a bundle on this machine's GPU with the CPU.",
    "doctor": "Report what works on this machine, and what to install.",
    "gpu-campaign": "Check and measure everything on this machine's GPU.",
    "pack": "Write a bundle and its engines to one archive.",
    "unpack": "Unpack an archive of `fastblt pack` and check its files.",
    "fleet": "Configure a fleet of servers, and compute its size.",
    "data": "Build the training corpus.",
    "train": "Train a model from a recipe.",
    "adapt": "Give a BLT block drafts: train a draft decoder beside it.",
}
#: Earlier names of commands.
ALIASES = {"calibrate": "quantize"}

# Markup and pretty tracebacks would import rich at every start.
_PLAIN: dict[str, Any] = {"rich_markup_mode": None, "add_completion": False, "pretty_exceptions_enable": False}


def _complete(module: Any, name: str, summary: str) -> Any:
    """Return the command that a module holds, or the group of those in its ``COMMANDS``, with generated help texts."""
    from fastblt.commands.options import check_values, complete_help

    made = typer.Typer(name=name, help=summary, **_PLAIN)
    below = getattr(module, "COMMANDS", None)
    for each, function in (below or {name: module.command}).items():
        made.command(each, context_settings=getattr(module, "CONTEXT_SETTINGS", None))(function)
    if below is None:
        found: Any = typer.main.get_command(made)
        commands = [found]
    else:
        made.callback()(lambda: None)  # a single command would not be a group
        found = typer.main.get_group(made)
        commands = list(found.commands.values())
    for command in commands:
        complete_help(command)
        check_values(command)
    return found


class CommandGroup(TyperGroup):
    """Finds a command by name and imports its module then."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all commands, aliases excluded."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command of this name; None where there is none."""
        name = ALIASES.get(cmd_name, cmd_name)
        if name not in COMMANDS:
            return None
        return _complete(import_module(f"fastblt.commands.{name.replace('-', '_')}"), cmd_name, COMMANDS[name])

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        """Parse the arguments before a command's name; without any, print the help to standard error."""
        if not args:
            typer.echo(ctx.get_help(), err=True)
            ctx.exit(USAGE)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; the parser would take the early end of a file for that of a dialog."""
        try:
            return super().invoke(ctx)
        except EOFError as error:
            raise ValueError(f"a file ends too early: {error}") from error

    def main(self, args: Any = None, *, standalone_mode: bool = True, **options: Any) -> Any:  # type: ignore[override]
        """Run a command; in standalone mode, print an error as one line and end the process with an exit status."""
        run = partial(super().main, args, standalone_mode=False, **options)
        if not standalone_mode:
            return run()
        sys.exit(exit_status(run))

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


app = typer.Typer(name="fastblt", cls=CommandGroup, **_PLAIN)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fastblt {__version__}")
        raise typer.Exit


@app.callback()
def _fastblt(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Export Byte Latent Transformers (language models that read bytes) to ONNX, and run them fast.

    The usual way: `fastblt export CHECKPOINT BUNDLE`, then `fastblt generate BUNDLE "some text"`.
    """


if __name__ == "__main__":
    app()
