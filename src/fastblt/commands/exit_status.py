"""The exit statuses of ``fastblt``; docs/reliability.md describes them for users."""

from __future__ import annotations

#: The command did what it was asked to do.
SUCCESS = 0
#: It could not; one line on standard error, ``error: ...``, states why. A defect of this package ends here, too.
FAILURE = 1
#: Its arguments mean nothing: an unknown command, option, method, backend or provider, or a malformed value.
USAGE = 2
#: Added to the number of the signal that ended the command: 130 after SIGINT, 143 after SIGTERM, as shells report it.
SIGNAL = 128
