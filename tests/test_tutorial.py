"""The tutorial, from its first block to its last: every block of docs/tutorial.md runs, in order, in one folder."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_cli import lidar

PAGE = (Path(__file__).parent.parent / "docs/tutorial.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"(?:<!-- (not run [^>]*) -->\n)?```(\w+)\n(.*?)```", PAGE, re.DOTALL)

__all__ = ["lidar"]  # a fixture


def without_figures(text):
    return re.sub(r"\d+(\.\d+)?", "#", text).strip()


def test_every_block_is_run_or_compared():
    assert PAGE.count("```") == 2 * len(BLOCKS)
    assert {language for _, language, _ in BLOCKS} == {"sh", "text", "python"}
    assert [code for mark, _, code in BLOCKS if mark] == ["pip install packages/glyph .\n"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tutorial")


def test_the_tutorial(lidar, folder, monkeypatch):
    monkeypatch.chdir(folder)
    said, names, results = "", {}, []
    for mark, language, code in BLOCKS:
        if mark:
            continue
        if language == "sh":
            words = shlex.split(code)
            assert words[0] == "lidar"
            status, said, err = lidar(*words[1:])
            assert status == 0, err
        elif language == "text":  # what the command before it said; figures differ a little between machines
            assert without_figures(said) == without_figures(code)
        else:
            exec(compile(code, "docs/tutorial.md", "exec"), names)
            results.append(names["result"])

    with Image.open("first/grid.png") as grid, Image.open("fork.png") as fork:
        assert grid.width > 600
        assert fork.size == (128, 128)
    first, _, red, tiny = results
    # What the page says: the pictures are those of the command, guidance helped the judge, and the bank was found.
    assert first.cost["lookahead"].network_evaluations == 0
    with Image.open("first/00000/samples/0000.png") as drawn, Image.open("fork.png") as again:
        apart = np.asarray(drawn, dtype=int) - np.asarray(again, dtype=int)
    assert np.abs(apart).max() <= 2
    assert first.rewards["geneval"].mean() == 1
    assert red.rewards["redness"].mean() > names["plain"].rewards["redness"].mean() + 0.02
    assert tiny.images.shape == (1, 2, 3, 16, 16)
