"""Pages of benchmarks name the command that made them."""

import sys
from importlib.machinery import ModuleSpec

import pytest

from benchmarks._command import command


@pytest.mark.parametrize("module", ["benchmarks.noise", "benchmarks.noise.__main__"])
def test_a_page_names_its_command_with_all_options_but_table(monkeypatch, module):
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", ModuleSpec(module, None))
    monkeypatch.setattr(sys, "argv", ["noise.py", "--prompts", "12", "--table", "--out", "two words"])
    assert command() == "python -m benchmarks.noise --prompts 12 --out 'two words'"
