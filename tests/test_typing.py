"""The public face under a type checker: a program of a user (``tests/typing/user.py``) is checked by mypy."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lidar_sampling

ROOT = Path(__file__).parent.parent
USER = ROOT / "tests/typing/user.py"


def test_mypy_takes_a_users_program_and_refuses_its_mistakes_alone(tmp_path):
    pytest.importorskip("mypy")
    text = USER.read_text()
    wanted = {
        (number, found[1])
        for number, line in enumerate(text.splitlines(), 1)
        if (found := re.search(r"# type: ignore\[([\w-]+)\]", line))
    }
    assert len(wanted) == 4
    bare = tmp_path / "user.py"
    bare.write_text(re.sub(r"  # type: ignore\[[\w-]+\]", "", text))
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT / "packages/glyph/src")])
    run = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-error-summary", str(bare)],
        cwd=ROOT,
        env={**os.environ, "MYPYPATH": paths},
        capture_output=True,
        text=True,
    )
    errors = re.findall(r"user\.py:(\d+): error: .*\[([\w-]+)\]$", run.stdout, re.MULTILINE)
    assert {(int(number), code) for number, code in errors} == wanted, run.stdout + run.stderr
    assert run.stdout.count(" error: ") == len(errors), run.stdout  # none elsewhere


def test_the_list_of_public_names_is_whole():
    assert sorted(lidar_sampling.__all__) == sorted([*lidar_sampling._HOMES, *lidar_sampling._ROOMS, "__version__"])
    assert all(getattr(lidar_sampling, name) is not None for name in lidar_sampling.__all__)
