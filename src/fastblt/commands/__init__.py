"""What the subcommands of ``fastblt`` do, one module each; `fastblt.cli` declares their arguments.

A module here is imported when its command runs, so it may import at its top whatever that command needs.
"""
