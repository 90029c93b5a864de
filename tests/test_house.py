"""The structure of the package: imports point one way, and no name has two homes."""

import ast
import re
from pathlib import Path

import pytest

import lidar_sampling

ROOT = Path(lidar_sampling.__file__).parent

# From the ground up. A module imports from its own floor and those below. Whatever is not named is the ground floor.
FLOORS = [[], ["_sampler", "_forecast"], ["methods"], ["runs"], ["evaluation", "service"], ["app"], ["cli"]]


def modules():
    return sorted(path for path in ROOT.rglob("*.py"))


def floor(parts):
    return next((number for number, rooms in enumerate(FLOORS) if parts[:1] and parts[0] in rooms), 0)


def imported(path):
    """Yield (line, parts) of all that a file imports of the package, wherever in it, but for types alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = [
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for child in node.body
        for line in range(child.lineno, child.end_lineno + 1)
    ]
    here = path.relative_to(ROOT).with_suffix("").parts
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or node.lineno in for_types:
            continue
        if node.level:
            base = here[: len(here) - node.level]
            names = [*base, *(node.module.split(".") if node.module else [])]
            for alias in node.names:
                yield node.lineno, (*names, alias.name)
        elif node.module and node.module.split(".")[0] == "lidar_sampling":
            yield node.lineno, tuple(node.module.split(".")[1:])


def test_imports_never_point_up_the_house():
    wrong = []
    for path in modules():
        here = path.relative_to(ROOT).with_suffix("").parts
        if here in {("__init__",), ("__main__",)}:  # the doors of the house
            continue
        for line, parts in imported(path):
            if floor(parts) > floor(here):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {'.'.join(parts)}")
    assert not wrong, "\n".join(wrong)


def test_an_import_that_points_up_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr("test_house.ROOT", tmp_path)
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "mine.py").write_text(
        "def f():\n    from ..cli import main\n    from .._bank import Bank\n"
    )
    found = list(imported(tmp_path / "methods" / "mine.py"))
    assert found == [(2, ("cli", "main")), (3, ("_bank", "Bank"))]
    assert [floor(parts) for _, parts in found] == [6, 0]
    with pytest.raises(AssertionError, match=r"mine.py:2 imports cli.main"):
        test_imports_never_point_up_the_house()


def test_nothing_imports_the_command_line_but_itself():
    """A program may run the command, by its ``main``."""
    rooms = [ROOT.parents[1] / name for name in ("benchmarks", "examples", "training")]
    programs = [path for room in rooms for path in room.rglob("*.py")]
    assert len(programs) > 30
    assert not [path for path in programs if re.search(r"lidar_sampling\.cli\._", path.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("word", [r"\blocals\(\)", r"\*\*how: Any"])
def test_no_interface_takes_whatever_it_is_given(word):
    assert not [path for path in modules() if re.search(word, path.read_text(encoding="utf-8"))]


def functions(path):
    """Yield every function of a file with the names of its decorators."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node, " ".join(map(ast.unparse, node.decorator_list))


def test_no_function_is_called_by_a_participle():
    """The exceptions: one public name, a score of molecules, and a verb."""
    known = {"profiled", "qed", "_embed"}
    names = {node.name for path in modules() for node, decorators in functions(path) if "property" not in decorators}
    found = {
        name for name in names if re.fullmatch(r"_?[a-z]*[^e]ed|_?(told|broken|kept|drawn|said|shown|gone)", name)
    }
    assert found <= known, sorted(found - known)
