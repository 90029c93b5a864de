"""The command line that runs, so that a page names the one that made it."""

from __future__ import annotations

import shlex
import sys


def command() -> str:
    """Return the command that runs, without ``--table``, which draws nothing."""
    module = sys.modules["__main__"].__spec__.name.removesuffix(".__main__")
    return shlex.join(["python", "-m", module, *(word for word in sys.argv[1:] if word != "--table")])
