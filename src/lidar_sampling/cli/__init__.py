"""The command ``lidar``. Results go to stdout, progress and errors to stderr.

Exit status: 0 done, 2 wrong use, 1 failure, 130 stopped by Ctrl-C. A failure is one line that names the mend; with
``--debug`` the traceback comes with it. Once a run is saved, its status is 0 even if printing then fails
(:mod:`._screen`).
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress

import typer

from ._app import app as page
from ._check_reward import check_reward
from ._cite import cite
from ._compare import compare, methods
from ._doctor import doctor
from ._evaluate import evaluate
from ._explain import explain
from ._generate import generate, guide
from ._lists import models, rewards, solvers
from ._look import look
from ._molecules import molecules
from ._panels import GroupedCommand
from ._reproduce import reproduce
from ._run import run
from ._score import score
from ._screen import close_quietly, escape_unknown_letters, guard_printing, one_line, show_usage, warn
from ._serve import serve, serve_rewards

app = typer.Typer(
    help="Reward-guided sampling for diffusers pipelines, without backpropagation (LiDAR, arXiv 2602.03211).",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for command in (
    generate,
    look,
    guide,
    run,
    molecules,
    compare,
    reproduce,
    evaluate,
    explain,
    score,
    check_reward,
    serve,
    serve_rewards,
    models,
    rewards,
    solvers,
    methods,
    cite,
    doctor,
):
    app.command(cls=GroupedCommand)(command)
app.command("app", cls=GroupedCommand)(page)

_WELCOME = """Make a diffusion model draw what a reward likes. Try these three commands with the embedded model:

  lidar generate "a photo of a cat left of a cup" --beside-vanilla    # pictures in out/, the plain ones beside
  lidar app                                                           # a page to draw, look and compare
  lidar compare --prompts glyph:6 --methods vanilla,best-of-9,lidar   # methods beside one another in report/

lidar --help lists all commands, lidar doctor checks the installation."""

_INTERRUPTED = 130  # typer turns Ctrl-C into this
_WRONG_USE = (ValueError, TypeError, FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError)


@app.callback(invoke_without_command=True)
def _before_any(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and stop."),
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of a failure."),
) -> None:
    if version:
        from .. import __version__

        with guard_printing(saved=False):
            typer.echo(__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        with guard_printing(saved=False):
            typer.echo(_WELCOME)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit with its status."""
    escape_unknown_letters()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    if debug:  # these two may stand anywhere
        arguments.remove("--debug")
    for place in [k for k, word in enumerate(arguments) if word == "--ray"]:
        if arguments[place + 1 : place + 2] in ([], [""]) or arguments[place + 1].startswith("-"):
            arguments[place] = "--ray=here"  # typer knows no option with an optional value
    status = _run(arguments, debug)
    close_quietly()
    sys.exit(status)


def _run(arguments: list[str], debug: bool) -> int:
    try:
        if (here := os.getcwd()) not in sys.path:
            sys.path.append(here)  # for a reward given as module:function
        status = typer.main.get_command(app).main(arguments, prog_name="lidar", standalone_mode=False) or 0
    except Exception as error:
        if hasattr(error, "exit_code") and hasattr(error, "show"):  # wrong use, in typer's own words
            show_usage(error)
            return error.exit_code
        if debug and sys.stderr is not None:
            with suppress(OSError, ValueError):  # it is full or closed
                traceback.print_exc()
        warn(one_line(error))
        cause: BaseException | None = error
        while type(cause).__name__ == "RewardError":  # a reward's error has its cause in the chain
            cause = cause.__cause__  # type: ignore[union-attr]
        return 2 if isinstance(cause, _WRONG_USE) else 1
    if status == _INTERRUPTED:
        warn("stopped; finished work is kept, and commands with --resume go on from it")
    return status
