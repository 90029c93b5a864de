"""Documentation that runs: every Python block of README and docs, and every example on tiny weights."""

import re
import runpy
import sys
from pathlib import Path

import pytest

from lidar_sampling import testing

ROOT = Path(__file__).parent.parent
PAGES = [
    "README.md",
    "docs/discrete.md",
    "docs/methods.md",
    "docs/howto.md",
    "docs/mixtures-and-services.md",
    "docs/performance.md",
    "docs/rewards.md",
    "docs/scale.md",
]


def blocks():
    for page in PAGES:
        for k, code in enumerate(re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)):
            yield pytest.param(code, id=f"{page}-{k}", marks=[pytest.mark.hub] if "stabilityai/" in code else [])


@pytest.mark.parametrize("code", list(blocks()))
def test_code_in_the_documentation_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "documentation", "exec"), {})


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


@pytest.mark.parametrize(
    "page",
    [ROOT / "README.md", ROOT / "comfyui/README.md", *sorted((ROOT / "docs").glob("*.md"))],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_links_and_named_tests_exist(page):
    text = page.read_text()
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (page.parent / target).exists(), target
    for file, test in re.findall(r"`(test_\w+\.py)(?:::([\w:]+))?", text):
        (source,) = (path.read_text() for path in (ROOT / "tests").rglob(file))
        for name in filter(None, test.split("::")):
            assert re.search(rf"(def|class) {name}\b", source), name
