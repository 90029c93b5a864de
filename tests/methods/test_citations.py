"""What to cite for each method, against the sources that the methods' own modules name."""

import json
import re
import sys

import pytest

import lidar_sampling
from lidar_sampling.cli import main
from lidar_sampling.methods import NAMES, _citations, load, papers
from lidar_sampling.methods._citations import LIDAR, PAPERS

ENTRY = re.compile(r"@(inproceedings|article|misc)\{(\w+),\n((?:  \w+ = \{.*\},\n)+)\}")


def sources(text):
    """Return the numbers in arXiv and the DOIs that a text names by their addresses."""
    return set(re.findall(r"arxiv\.org/abs/([\d.]+\d)", text)) | set(re.findall(r"doi\.org/([^\s,)]+)", text))


@pytest.mark.parametrize("name", NAMES)
def test_every_method_that_is_listed_can_be_cited(name):
    found = papers(name)
    assert found[0] == LIDAR
    assert len(found) > 1 or name in ("vanilla", "lidar", "lidar-paper")


@pytest.mark.parametrize("module", sorted({method.__module__ for method in PAPERS}))
def test_the_papers_are_those_that_the_module_names(module):
    cited = {paper.arxiv or paper.doi for method in PAPERS if method.__module__ == module for paper in PAPERS[method]}
    assert sources(sys.modules[module].__doc__) - {LIDAR.arxiv} == cited - {LIDAR.arxiv}


def test_every_entry_is_bibtex_with_a_key_of_its_own():
    found = list(dict.fromkeys(paper for of_one in PAPERS.values() for paper in of_one))
    assert len(found) == 24
    assert len({paper.key for paper in found}) == len(found)
    for paper in found:
        entry = paper.bibtex()
        kind, key, fields = ENTRY.fullmatch(entry).groups()
        named = dict(re.findall(r"  (\w+) = \{(.*)\},\n", fields))
        assert key == paper.key
        assert (kind == "misc") == (not paper.conference and not paper.journal)
        assert named["title"] == f"{{{paper.title}}}"
        assert all(len(name.split(", ")) == 2 for name in named["author"].split(" and "))
        assert entry.count("{") == entry.count("}")
        assert entry.isascii()
        if paper.arxiv:
            assert re.fullmatch(r"\d{4}\.\d{4,5}", paper.arxiv)
            assert 0 <= paper.year - 2000 - int(paper.arxiv[:2]) <= 1  # the number's year, or the next
        else:
            assert named["doi"] == paper.doi


def test_best_of_n_cites_what_it_selects_from_and_nothing_twice():
    keys = [paper.key for paper in papers("lidar+best-of-8:scale=3", "fk+lidar+best-of-4", "das", "das")]
    assert keys == ["kim2026lidar", "beirami2024theoretical", "singhal2025general", "kim2025testtime"]


def test_without_a_method_lidar_alone_is_cited():
    assert lidar_sampling.citation() == LIDAR.bibtex()


def test_a_method_that_is_missing_from_the_table_would_be_found(monkeypatch):
    monkeypatch.delitem(_citations.PAPERS, type(load("svdd")))
    with pytest.raises(KeyError):
        papers("svdd")


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="unknown method 'svd'; did you mean"):
        lidar_sampling.citation("svd")


def test_the_command_prints_what_the_function_returns(capsys):
    with pytest.raises(SystemExit) as end:
        main(["cite", "svdd-M", "dts-8"])
    assert end.value.code == 0
    assert capsys.readouterr().out == lidar_sampling.citation("svdd", "dts-8") + "\n"
    with pytest.raises(SystemExit):
        main(["cite", "svdd", "--json"])
    assert [row["arxiv"] for row in json.loads(capsys.readouterr().out)] == ["2602.03211", "2408.08252"]
    with pytest.raises(SystemExit) as end:
        main(["cite", "svd"])
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("lidar: unknown method 'svd'; did you mean")
