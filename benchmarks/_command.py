"""The command line that runs, so that a page names the one that made it."""

from __future__ import annotations

import shlex
import sys


def command() -> str:
    """Return the command that runs, without ``--table``, which draws nothing."""
    found = sys.modules["__main__"].__spec__  # None where a script runs
    program = ["-m", found.name.removesuffix(".__main__")] if found else sys.argv[:1]
    return shlex.join(["python", *program, *(word for word in sys.argv[1:] if word != "--table")])
