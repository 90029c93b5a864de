"""The notebooks run from their first cell to their last, and are committed without outputs."""

import json
import re
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def code_of(notebook):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.parametrize("notebook", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.name)
class TestANotebook:
    def test_has_no_outputs(self, notebook):
        assert code_of(notebook)
        assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code_of(notebook))

    def test_has_links_that_exist(self, notebook):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", notebook.read_text(encoding="utf-8")):
            assert (notebook.parent / target).exists(), target


def test_the_first_run_guides_by_both_rewards(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    for cell in code_of(EXAMPLES / "first_run.ipynb"):
        exec(compile("".join(cell["source"]), "first_run.ipynb", "exec"), names)
    result, plain, red = names["result"], names["plain"], names["red"]
    assert result.images.shape == plain.images.shape == red.images.shape == (1, 4, 3, 128, 128)
    redness = [names["redness"](images=each.images[0], prompts=result.prompts * 4).mean() for each in (red, plain)]
    assert redness[0] > redness[1]
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("time ") for line in lines) == len(result.trace.steps) > 0
    assert any(re.match(r"glyph: \S+ with guidance, \S+ without", line) for line in lines)
