"""Packed lines: what is published is read as it was written, and a run goes on from it."""

import gzip
import json
import shutil
from pathlib import Path

import pytest
from test_cli import lidar

from lidar_sampling.runs import _lines

RESULTS = Path(__file__).parents[2] / "docs/results"
LINES = [{"n": n, "square": n * n} for n in range(4)]

__all__ = ["lidar"]  # a fixture


@pytest.fixture
def folder(tmp_path):
    """Three lines in two plain files, out of the order in which names sort as text."""
    for name, lines in (("results-10.jsonl", LINES[2:3]), ("results-9.jsonl", LINES[:2])):
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def read(folder):
    return _lines.read_objects(*_lines.files_of(folder))


def test_packing_keeps_every_line_in_one_file(folder):
    before = read(folder)
    assert before == LINES[:3]
    packed = _lines.pack(folder)
    assert list(folder.iterdir()) == [packed] == [folder / "results-9.jsonl.gz"]
    assert read(folder) == before


def test_packing_again_changes_no_byte(folder):
    first = _lines.pack(folder).read_bytes()
    assert _lines.pack(folder).read_bytes() == first


def test_packing_that_was_stopped_is_mended_by_packing_again(folder):
    kept = {path: path.read_bytes() for path in folder.iterdir()}
    packed = _lines.pack(folder)
    for path, content in kept.items():  # as if the kill had come before the plain files were removed
        path.write_bytes(content)
    _lines.pack(folder)
    assert list(folder.iterdir()) == [packed]
    assert read(folder) == LINES[:3]


def test_lines_are_added_beside_packed_ones_and_packed_with_them(folder):
    path = folder / "results-9.jsonl"
    _lines.pack(folder)
    drawn = []
    found = list(_lines.fill(path, [{"n": n} for n in range(4)], lambda unit: drawn.append(unit) or {"square": 9}))
    assert drawn == [{"n": 3}]
    assert found == LINES
    assert path.read_text() == '{"n": 3, "square": 9}\n'
    assert read(folder) == LINES
    _lines.pack(folder)
    assert not path.exists()
    assert read(folder) == LINES


def test_a_packed_file_that_is_damaged_is_named(folder):
    packed = _lines.pack(folder)
    whole = packed.read_bytes()
    for damaged in (whole[:-9], b"not packed", whole[:20] + b"\xff" * 8 + whole[28:]):
        packed.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"results-9\.jsonl\.gz is damaged: fetch it again"):
            read(folder)


def test_a_damaged_line_in_a_packed_file_is_named_and_nothing_is_removed(folder):
    path = folder / "results-9.jsonl"
    path.write_text('{"n": 1}\n[]\n')
    with pytest.raises(ValueError, match=r"results-9\.jsonl, line 2 is damaged"):
        _lines.pack(folder)
    assert path.exists()
    (folder / "results-9.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    with pytest.raises(ValueError, match=r"results-9\.jsonl\.gz, line 2 is damaged"):
        read(folder)


def test_a_folder_without_lines_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no results\*\.jsonl: name a folder that holds one"):
        _lines.pack(tmp_path)


def test_published_lines_are_packed():
    # The others are written by measurements that go on.
    plain = [path for path in RESULTS.rglob("results*.jsonl") if path.parts[-2] not in ("many", "fronts")]
    assert not plain, "run `python -m benchmarks.pack` on their folders"


def test_compare_makes_the_published_table_of_packed_lines(lidar, tmp_path):
    shutil.copy(RESULTS / "targets/results-0.jsonl.gz", tmp_path)
    settings = ["--steps", "10", "--n", "16", "--scale", "2", "--images", "1"]
    prompts = ["--prompts", "glyph-hard:18", "--tags", "color_position"]
    run = ["compare", "--table", *prompts, *settings, "--methods", "vanilla,lidar", "--out", tmp_path]
    code, _, err = lidar(*run)
    assert code == 0, err
    drawn, published = ((folder / "table.md").read_text().splitlines() for folder in (tmp_path, RESULTS / "targets"))
    for name in ("vanilla", "lidar"):
        (row, *_), (expected, *_) = (
            [row for row in rows if row.startswith(f"| {name} |")] for rows in (drawn, published)
        )
        assert row == expected
