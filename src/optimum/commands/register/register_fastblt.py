"""``optimum-cli export fastblt``: the same command as ``fastblt export``.

optimum-cli imports every file of this folder at each of its starts, so nothing but argparse is imported before the
command runs. The folders above are shared with optimum (PEP 420): none of them may hold an ``__init__.py``.
"""

from __future__ import annotations

from argparse import ArgumentParser, BooleanOptionalAction

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand


class FastbltExportCommand(BaseOptimumCLICommand):  # type: ignore[misc]  # optimum has no types
    """Hands its arguments to ``fastblt export``, whose output, errors and exit status are this command's."""

    COMMAND = CommandInfo(
        name="fastblt", help="Export a Byte Latent Transformer: four ONNX graphs that fastblt runs over one session."
    )

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Declare the arguments of ``fastblt export``."""
        parser.description = FastbltExportCommand.COMMAND.help
        parser.add_argument(
            "checkpoint",
            help="Checkpoint: a folder, an id of the Hugging Face hub, or random:PRESET (random weights).",
        )
        parser.add_argument("bundle", help="Folder to write, all of it or nothing.")
        parser.add_argument(
            "--dtype", choices=("fp32", "fp16", "bf16"), default="fp32", help="Type of weights and caches (fp32)."
        )
        parser.add_argument(
            "--hash-tables",
            choices=("host", "graph"),
            default="host",
            help="host: memory-mapped beside the graphs (default); graph: inside the encoder.",
        )
        parser.add_argument(
            "--lowered",
            action="store_true",
            help="Write graphs without attention and cache updates, for TensorRT before 10.15.",
        )
        parser.add_argument(
            "--patcher", help="Entropy model to use: its folder or hub id (default: the checkpoint's own)."
        )
        parser.add_argument(
            "--document-masks",
            action=BooleanOptionalAction,
            help="Keep self-attention inside a document, which EOS ends (default: as the checkpoint's origin does).",
        )

    def run(self) -> None:
        """Export; ends the process with the exit status of ``fastblt export``."""
        from fastblt.cli import app

        args = self.args
        options = ["--dtype", args.dtype, "--hash-tables", args.hash_tables]
        if args.lowered:
            options.append("--lowered")
        if args.patcher is not None:
            options += ["--patcher", args.patcher]
        if args.document_masks is not None:
            options.append("--document-masks" if args.document_masks else "--no-document-masks")
        app(["export", *options, "--", args.checkpoint, args.bundle], prog_name="fastblt")


REGISTER_COMMANDS = [(FastbltExportCommand, ExportCommand)]
