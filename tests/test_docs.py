"""Documentation that runs: every Python block of README and docs, and every example on tiny weights."""

import re
import runpy
import sys
from pathlib import Path

import pytest

from lidar_sampling import testing

ROOT = Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), ROOT / "comfyui/README.md", *sorted((ROOT / "docs").rglob("*.md"))]

# A block that is not run here has one of these above it, or the page has one above its first heading for all of them:
#     <!-- run by tests/FILE -->            it runs there
#     <!-- not run by the tests: WHY -->    it does not run; WHY says where it did, or what it needs
BLOCK = re.compile(r"(?:<!-- (?P<mark>[^>]*) -->\n)?```python\n(?P<code>.*?)```", re.DOTALL)
MARK = re.compile(r"run by (?P<file>tests/[\w/]+\.py)|not run by the tests: .{10,}")


def blocks():
    """Yield (page, number, mark, code) of each Python block; the mark is None for those that run here."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        whole = re.match(r"<!-- (run by [^>]*) -->\n", text)
        for number, found in enumerate(BLOCK.finditer(text)):
            yield page, number, found["mark"] or (whole and whole[1]), found["code"]


def runnable():
    for page, number, mark, code in blocks():
        if mark is None:
            marks = [pytest.mark.hub] if "stabilityai/" in code else []
            yield pytest.param(code, id=f"{page.relative_to(ROOT).as_posix()}-{number}", marks=marks)


@pytest.mark.parametrize("code", list(runnable()))
def test_code_in_the_documentation_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "documentation", "exec"), {})


def test_code_that_does_not_run_here_says_where_it_runs():
    marked = [(page, mark) for page, _, mark, _ in blocks() if mark is not None]
    assert len(marked) >= 3
    for page, mark in marked:
        match = MARK.fullmatch(mark)
        assert match, f"{page}: {mark!r}"
        if match["file"]:
            runs_it = page.name in (ROOT / match["file"]).read_text(encoding="utf-8")
            assert runs_it, f"{match['file']} does not read {page}"


def test_no_python_block_is_overlooked():
    """As many blocks are found as there are fences, so that none is hidden by how it is indented or spelled."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        fences = re.findall(r"^[ >]*(?:```|~~~) *(?:python|py|python3|pycon)\b", text, re.MULTILINE)
        assert len(fences) == len(BLOCK.findall(text)), page


@pytest.mark.parametrize("example", sorted(p.name for p in (ROOT / "examples").glob("[a-z]*.py")))
def test_examples_run_on_tiny_weights(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [example, "--tiny"])
    runpy.run_path(str(ROOT / "examples" / example), run_name="__main__")
    assert list(tmp_path.iterdir())


@pytest.mark.parametrize("key", testing.PIPELINES)
def test_every_pipeline_that_is_tested_is_in_the_table(key):
    pipe = testing.PIPELINES[key].make()
    rows = [line for line in (ROOT / "docs/models.md").read_text().splitlines() if line.startswith("| `")]
    assert any(f"`{type(pipe).__name__}`" in row and f"`{type(pipe.scheduler).__name__}`" in row for row in rows)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_and_named_tests_exist(page):
    text = page.read_text()
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (page.parent / target).exists(), target
    for file, test in re.findall(r"`(test_\w+\.py)(?:::([\w:]+))?", text):
        (source,) = (path.read_text() for path in (ROOT / "tests").rglob(file))
        for name in filter(None, test.split("::")):
            assert re.search(rf"(def|class) {name}\b", source), name


def test_every_page_of_results_is_in_the_index():
    """The index links to it, or a page that the index links to."""
    results = ROOT / "docs/results"
    linked = set()
    todo = [results / "README.md"]
    while todo:
        page = todo.pop()
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            found = (page.parent / target).resolve()
            if found.suffix == ".md" and results in found.parents and found not in linked:
                linked.add(found)
                todo.append(found)
    assert not set(results.rglob("*.md")) - linked - {results / "README.md"}
