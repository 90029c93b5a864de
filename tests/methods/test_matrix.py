"""The table of methods on pipelines comes from runs, and its cells distinguish right from wrong."""

import pytest

from benchmarks.methods import METHODS, cell, page, reason
from lidar_sampling.methods import NAMES, Vanilla, load


@pytest.mark.parametrize("name", ["refine-4", "date", "search-1:rounds=1", "spell:worst=2"])
def test_methods_run_on_packed_latents(name):
    assert cell("flux", name) == "yes"


def test_every_kind_of_method_is_in_the_table():
    shown = {type(load(name)) for name in METHODS}
    kinds = {type(load(name.replace("N", "8").replace("BxK", "2x2").replace("-M", "-2"))) for name in NAMES}
    assert shown == kinds


def test_a_cell_is_not_yes_where_costs_are_told_wrong(monkeypatch):
    cost = Vanilla.cost
    monkeypatch.setattr(Vanilla, "cost", lambda *args, **kwargs: cost(*args, **kwargs) + cost(*args, **kwargs))
    assert cell("sd", "vanilla").startswith("wrong: 48 network_evaluations foretold, 24 counted")


def test_reasons_are_numbered_once():
    told = page({"sd": {"a": "yes", "b": "StableDiffusionPipeline has no c"}, "sdxl": {"a": "yes", "b": "yes"}})
    assert "| sd | yes | 1 |" in told
    assert told.endswith("1. the pipeline has no c\n")
    assert reason("x" * 999, "sd") == "x" * 300
