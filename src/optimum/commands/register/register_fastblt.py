"""``optimum-cli export fastblt``: the same command as ``fastblt export``.

optimum-cli imports every file of this folder at each of its starts, so nothing but argparse is imported before the
command runs. The folders above are shared with optimum (PEP 420): none of them may hold an ``__init__.py``.
"""

from __future__ import annotations

from argparse import ArgumentParser, BooleanOptionalAction

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand


class FastbltExportCommand(BaseOptimumCLICommand):  # type: ignore[misc]  # optimum has no types
    """Passes its arguments to ``fastblt export``, whose output, errors and exit status are this command's."""

    COMMAND = CommandInfo(
        name="fastblt", help="Export a Byte Latent Transformer to a bundle: one ONNX graph for each part of the model."
    )

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Declare the arguments of ``fastblt export``."""
        parser.description = FastbltExportCommand.COMMAND.help
        parser.add_argument(
            "checkpoint",
            help="Checkpoint: a folder, an id of the Hugging Face hub (hf://OWNER/MODEL), or random:PRESET (random "
            "weights).",
        )
        parser.add_argument("bundle", help="Folder to write the bundle to.")
        parser.add_argument(
            "--dtype",
            choices=("fp32", "fp16", "bf16"),
            default="fp32",
            help="Type of weights, activations and caches (default: fp32). CPUs run fp32 and fp16.",
        )
        parser.add_argument(
            "--hash-tables",
            choices=("host", "graph"),
            default="host",
            help="Where the tables of byte n-grams are: host: in a file that is mapped into memory, beside the graphs "
            "(default); graph: inside the encoder's graph.",
        )
        parser.add_argument(
            "--lowered",
            action="store_true",
            help="Use only operators that TensorRT before version 10.15 knows.",
        )
        parser.add_argument(
            "--force", action="store_true", help="Replace a bundle that is already in the target folder."
        )
        parser.add_argument(
            "--patcher",
            help="Folder or hub id (hf://OWNER/MODEL[@REVISION]) of the entropy model that ends patches (default: the "
            "checkpoint's own).",
        )
        parser.add_argument(
            "--revision",
            help="Commit, tag or branch of a checkpoint on the hub (default: the newest of the main branch).",
        )
        parser.add_argument(
            "--document-masks",
            action=BooleanOptionalAction,
            help="Let self-attention see only the current document; an end-of-document token ends one (default: as "
            "the model was trained, by its layout).",
        )
        parser.add_argument(
            "--polygraphy",
            help="Write calls of every graph to this new folder, inputs and outputs, for polygraphy run and polygraphy "
            "debug, and print their command lines.",
        )

    def run(self) -> None:
        """Export; end the process with the exit status of ``fastblt export``."""
        from fastblt.cli import app

        args = self.args
        options = ["--dtype", args.dtype, "--hash-tables", args.hash_tables]
        options += [f"--{name}" for name in ("lowered", "force") if getattr(args, name)]
        for name in ("patcher", "revision", "polygraphy"):
            if getattr(args, name) is not None:
                options += [f"--{name}", getattr(args, name)]
        if args.document_masks is not None:
            options.append("--document-masks" if args.document_masks else "--no-document-masks")
        app(["export", *options, "--", args.checkpoint, args.bundle], prog_name="fastblt")


REGISTER_COMMANDS = [(FastbltExportCommand, ExportCommand)]
