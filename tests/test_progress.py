"""Progress of long work says how long the rest takes, by a clock that the tests set."""

import io
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console

from lidar_sampling import Cost
from lidar_sampling.cli import _progress
from lidar_sampling.cli._progress import progress_bar, show_progress
from lidar_sampling.cli._reproduce import _of_run
from lidar_sampling.runs import Progress


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(_progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


@pytest.fixture
def screen(monkeypatch):
    """Return a function that gives what a fake terminal has received."""
    sent = io.StringIO()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(
        _progress, "console", lambda *, stderr: Console(file=sent, force_terminal=True, width=200, color_system=None)
    )
    return sent.getvalue


def at(done, **more):
    return Progress(done, 4, "a cat", "sampling", 0.5, Cost(network_evaluations=100 * done), **more)


def test_a_file_gets_a_line_a_minute_with_the_time_left(clock, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    with show_progress(quiet=False) as tell:
        for seconds in range(0, 150, 10):
            clock[0] = float(seconds)
            tell(at(1, left=300.0 - seconds))
    assert capsys.readouterr().err.splitlines() == [
        "lidar: 1/4, 100 network evaluations, about 4 min left; a cat, sampling 50%",
        "lidar: 1/4, 100 network evaluations, about 3 min left; a cat, sampling 50%",
    ]


def test_the_first_prompt_has_the_time_of_its_phase(clock, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    with show_progress(quiet=False) as tell:
        clock[0] = 60.0
        tell(at(0, phase_left=60.0))
    assert "about 1 min of sampling left; a cat" in capsys.readouterr().err


def test_the_bar_of_a_run_has_the_time_left(clock, screen):
    with show_progress(quiet=False) as tell:
        tell(at(1, left=75.0))
    assert "a cat sampling  [1/4, 100 network evaluations, about 1 min 15 s left]" in screen()


def test_the_bar_of_other_work_estimates_by_its_pace(clock, screen):
    with progress_bar(quiet=False) as update:
        for seconds, done in ((0.0, 0), (10.0, 50), (20.0, 75)):  # 25 in the last 10 seconds, and 25 are left
            clock[0] = seconds
            update("sampling", done, 100)
    assert "left 0:00:10" in screen()


def test_nothing_is_told_where_nobody_asked(screen):
    with show_progress(quiet=True) as tell, progress_bar(quiet=True) as update:
        assert tell is None
        assert update is None
    assert screen() == ""


def test_a_plan_of_several_runs_says_which_one_is_under_way():
    seen = []
    plan = SimpleNamespace(jobs={"figures": None, "ours": None})
    _of_run(seen.append, 2, plan)(at(1, left=75.0))
    assert (seen[0].what, seen[0].left) == ("run 2 of 2, a cat", 75.0)
    assert _of_run(None, 1, plan) is None
