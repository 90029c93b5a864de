"""The files of a comparison: tables that parse back, and a self-contained report."""

import base64
import csv
import importlib.util
import io
import json
import logging
import os
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from PIL import Image
from test_cli import lidar, tiny
from test_evaluation import line

from lidar_sampling.evaluation import figures, publish, publishing, table
from lidar_sampling.evaluation.data import records, tidy
from lidar_sampling.evaluation.gallery import gallery
from lidar_sampling.evaluation.parts import Part, markdown, parts, plain
from lidar_sampling.evaluation.report import _table, headline
from lidar_sampling.evaluation.statistics import Interval
from lidar_sampling.evaluation.tex import escape_tex, tex
from lidar_sampling.evaluation.thumbnails import SIDE, thumbnails

__all__ = ["lidar", "tiny"]  # fixtures

EVIL = "<script>alert('x')</script> & \"quoted\""


def lines(*names):
    found = []
    for k, name in enumerate(names or ("vanilla", "x_1|&")):
        for p in range(4):
            found.append(line(f"p{p}", name, [p + k, p + 2.0 * k], [None, 1.0], tag="one" if p < 2 else "two"))
    return found


class TestTables:
    def test_csv_holds_every_number_of_json(self):
        rows = table(lines())
        read = list(csv.DictReader(io.StringIO(tidy(rows))))
        assert {r["method"] for r in read} == {"vanilla", "x_1|&"}
        for record in records(rows):
            mine = [r for r in read if r["method"] == record["method"]]
            for statistic in ("mean", "best", "gain", "best_gain", "best_lead", "effect", "win", "hacking"):
                for judge, value in record[statistic].items():
                    (found,) = (r for r in mine if (r["statistic"], r["judge"], r["tag"]) == (statistic, judge, ""))
                    for key, number in value.items():
                        assert found[key] == ("" if number is None else repr(number))
            for judge, by_tag in record["tags"].items():
                for tag, value in by_tag.items():
                    (found,) = (r for r in mine if (r["statistic"], r["judge"], r["tag"]) == ("mean", judge, tag))
                    assert float(found["estimate"]) == value["estimate"]
            (peak,) = (r for r in mine if r["statistic"] == "peak_memory")
            assert peak["estimate"] == ""

    def test_json_has_no_nan(self):
        assert json.loads(json.dumps(records(table(lines())), allow_nan=False))[0]["cost"]["peak_memory"] is None

    def test_markdown_has_as_many_cells_as_heads(self):
        text = markdown(parts(table(lines()), prompts=4, images=2))
        blocks = [block for block in text.split("\n\n") if block.startswith("|")]
        assert len(blocks) == 6
        for block in blocks:
            assert len({len(re.findall(r"(?<!\\)\|", row)) for row in block.strip().splitlines()}) == 1

    def test_tex_is_balanced_and_escaped(self):
        text = tex(parts(table(lines()), prompts=4, images=2))
        assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 6
        assert r"x\_1\textbar{}\& " in text
        assert text.count("{") == text.count("}")
        counted = 0
        for columns, body in re.findall(r"\\begin\{tabular\}\{(lr*)\}(.*?)\\end", text, re.DOTALL):
            for row in re.findall(r"^[^\\\n].*&.*$", body, re.MULTILINE):
                assert len(re.findall(r"(?<!\\)&", row)) == len(columns) - 1
                counted += 1
        assert counted == 3 + 3 + 2 + 2 + 2 + 3

    def test_tex_of_every_special(self):
        assert escape_tex("&%$#_{}\\~^<>|") == (
            r"\&\%\$\#\_\{\}\textbackslash{}\textasciitilde{}\textasciicircum{}\textless{}\textgreater{}\textbar{}"
        )

    def test_peaks_are_shown_where_one_is_known(self):
        known = lines()
        assert "peak GiB" not in markdown(parts(table(known), prompts=4, images=2))
        known[0]["cost"]["peak_memory"] = 3 * 2**29
        text = markdown(parts(table(known), prompts=4, images=2))
        assert "peak GiB" in text
        assert "| 1.50 |" in text

    def test_a_single_method_is_compared_with_nothing(self):
        assert "Prompts won" not in [part.title for part in parts(table(lines("a")), prompts=4, images=2)]


ANY = st.text(st.sampled_from("ab_*`~$%&#<>|[](){}\\\\^!?'\"=-:;,./@\n\t ") | st.characters(), max_size=24)


ROW = table([line("p", "a", [1.0], [2.0])])[0]


class TestAnyText:
    """Prompts, tags, and names of judges and methods are shown unchanged, whatever they contain."""

    @given(ANY, ANY)
    def test_in_markdown(self, name, judge):
        page = MarkdownIt("commonmark").enable("table").enable("strikethrough")
        tokens = page.parse(markdown([Part("", f"Of {judge}.", ["method", judge], [[name, "0.5 [0.2, 0.8]"]])]))
        shown = ["".join(inner.content for inner in token.children) for token in tokens if token.type == "inline"]
        assert {inner.type for token in tokens for inner in token.children or ()} <= {"text"}
        assert shown == [plain(f"Of {judge}."), "method", plain(judge), plain(name), "0.5 [0.2, 0.8]"]

    @given(ANY.filter(lambda text: "\0" not in text), ANY.filter(lambda text: "\0" not in text))
    @example("a\rb", "\r")
    def test_in_csv(self, name, judge):
        row = replace(ROW, method=name, mean={judge: Interval(1.0)}, tags={judge: {name: Interval()}})
        found = list(csv.DictReader(io.StringIO(tidy([row]), newline="")))
        assert {row["method"] for row in found} == {name}
        assert [row["judge"] for row in found if row["statistic"] == "mean"] == [judge] * 2
        assert [row["tag"] for row in found if row["statistic"] == "mean"] == ["", name]

    @given(ANY, ANY)
    def test_in_html(self, name, judge):
        page = Page(_table(Part("", "", ["method", judge], [[name, "-"]])))
        assert page.open == []
        assert set(page.tags) == {"p", "div", "table", "thead", "tbody", "tr", "th", "td"}
        assert page.text == f"method{judge}{name}-"

    @given(ANY)
    def test_in_tex(self, text):
        """The text is read back by the rules of TeX: groups close, specials are commands, and no ligature is left."""
        found = escape_tex(text)
        words = r"\\(textbackslash|textasciitilde|textasciicircum|textless|textgreater|textbar)\{\}"
        letters = dict(zip(re.findall(r"\w+", words)[:6], "\\~^<>|", strict=True))
        left = re.sub(words, "", found)
        assert not re.search(r"(?<!\\)[&%$#_~^\\]|--|``|\?`|!`|''|[<>|]", re.sub(r"\\[&%$#_{}]", "", left))
        assert not found.startswith(("[", "*"))
        back = re.sub(words, lambda match: "\0" + letters[match[1]], found)
        back = re.sub(r"\\([&%$#_{}])", "\0\\1", back)
        back = re.sub("(?<!\0)[{}]", "", back).replace("\0", "")
        assert back == plain(text)

    @pytest.mark.parametrize("name", ["a_b [c]", "[a]", "1.0 [x, y]"])
    def test_of_tex_is_no_interval(self, name):
        (row,) = re.findall(r"\\midrule\n(.*)\n", tex([Part("", "", ["method"], [[name]])]))
        assert "scriptsize" not in row
        assert not row.startswith("[")


class Page(HTMLParser):
    """A parser of tags, their targets, and whether they close."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.targets, self.open, self.text = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.targets += [value for key, value in attributes if key in ("src", "href", "xlink:href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def with_pictures(folder, names=("vanilla", "x"), prompt=EVIL, side=300):
    found = lines(*names)
    for k, one in enumerate(x for x in found if x["prompt"] == "p0"):
        one["pictures"] = f"pictures/00000/{k}"
        (folder / one["pictures"]).mkdir(parents=True)
        for i in range(2):
            noise = np.random.default_rng(i).integers(0, 255, (side, side, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / one["pictures"] / f"{i:04d}.png")
    return [{**one, "prompt": prompt} if one["prompt"] == "p0" else one for one in found]


class TestReport:
    def test_stands_alone(self, tmp_path):
        (tmp_path / "run.json").write_text(json.dumps({"steps": 10, "judges": ["<b>"]}))
        publish(with_pictures(tmp_path), tmp_path, command="lidar compare --prompts '<i>'")
        text = (tmp_path / "report.html").read_text()
        page = Page(text)
        assert page.open == []
        assert "script" not in page.tags
        assert EVIL in page.text
        assert "lidar compare --prompts '<i>'" in page.text
        assert "://" not in text
        assert all(target.startswith(("data:image/webp;base64,", "#")) for target in page.targets)
        assert page.tags.count("img") == 4
        assert page.tags.count("svg") == 4
        assert 'name="viewport"' in text
        ids = re.findall(r' id="([^"]+)"', text)
        assert len(ids) == len(set(ids))
        assert {target[1:] for target in page.targets if target.startswith("#")} <= set(ids)

    def test_in_short_leaves_out_a_judge_without_values(self):
        found = [{**one, "rewards": {**one["rewards"], "geneval": [None, None]}} for one in lines()]
        assert headline(table(found)).head[:4] == ["method", "other, gain", "other, prompts won", "other"]
        assert "geneval, gain" not in headline(table(found)).head

    def test_is_bounded(self, tmp_path):
        found = with_pictures(tmp_path)
        assert gallery(found, ["vanilla", "x"], tmp_path, budget=1000) == ""
        whole = gallery(found, ["vanilla", "x"], tmp_path)
        assert len(whole) < 4 * 60_000
        found += [{**one, "prompt": "again"} for one in found if "pictures" in one]
        assert "1 more prompts are in" in gallery(found, ["vanilla", "x"], tmp_path, budget=len(whole) * 3 // 2)

    def test_shows_what_each_picture_got(self, tmp_path):
        text = gallery(with_pictures(tmp_path), ["vanilla", "x"], tmp_path)
        assert "<figcaption>2.00 · 1</figcaption>" in text
        assert text.count('class="best"') == 2

    def test_of_a_mixture_frames_what_the_sum_likes(self, tmp_path):
        found = with_pictures(tmp_path)
        for one in found:
            one["rewards"] = {"a": [1.0, 0.0], "b": [0.0, 1.0]}
            one["guide"] = {
                "name": "both",
                "weights": {"a": 1.0, "b": 2.0},
                "calibration": {"a": [0, 1], "b": [0, 1]},
            }
        text = gallery(found, ["vanilla", "x"], tmp_path)
        assert "Below each: both · a · b." in text
        assert re.findall(r'class="best".*?<figcaption>(.*?)<', text) == ["2.00 · 0 · 1"] * 2

    def test_a_picture_that_is_damaged_or_gone_leaves_the_others_their_rewards(self, tmp_path, caplog):
        found = with_pictures(tmp_path)
        (tmp_path / "pictures/00000/0/0000.png").write_bytes(b"\x89PNG cut off")
        (tmp_path / "pictures/00000/1/0000.png").unlink()
        publish(found, tmp_path)
        text = (tmp_path / "report.html").read_text(encoding="utf-8")
        assert re.findall("<figcaption>([^<]* · [^<]*)</figcaption>", text) == ["0 · 1", "2.00 · 1"]
        (message,) = caplog.messages
        assert "0000.png, which cannot be read" in message

    def test_without_pictures_has_none(self, tmp_path):
        publish(lines(), tmp_path)
        assert "Pictures" not in (tmp_path / "report.html").read_text()

    def test_thumbnails_are_small(self, tmp_path):
        Image.new("RGB", (1024, 512)).save(tmp_path / "0000.png")
        frames = [Image.new("RGB", (64, 64), c) for c in ("red", "blue")]
        frames[0].save(tmp_path / "0001.webp", save_all=True, append_images=frames[1:])
        (tmp_path / "0002.wav").write_bytes(b"RIFF")
        first, second = thumbnails(tmp_path, 4).values()
        assert len(first) < 1000
        assert second.startswith("data:image/webp;base64,")
        with Image.open(io.BytesIO(base64.b64decode(first.partition(",")[2]))) as picture:
            assert picture.size == (SIDE, SIDE // 2)


def drawing(name, rows):
    """Return a small figure at once."""
    return {"svg": b"<svg></svg>", "png": b"\x89PNG"}


def failing(function, *names):
    """Return ``function``, which fails for these first arguments."""

    def run(name, *args, **kwargs):
        if name in names:
            raise ValueError("no\nroom")
        return function(name, *args, **kwargs)

    return run


class TestFailures:
    """Results are kept, whatever happens to their plots."""

    TABLES = ("table.csv", "table.json", "table.md", "table.tex")

    def test_of_a_figure_costs_that_figure(self, tmp_path, monkeypatch, caplog):
        monkeypatch.setattr(figures, "draw_one", drawing)
        publish(lines(), tmp_path)
        assert len(os.listdir(tmp_path / "figures")) == 2 * len(figures.NAMES)
        monkeypatch.setattr(figures, "draw_one", failing(drawing, "hacking"))
        publish(lines(), tmp_path)
        left = sorted(os.listdir(tmp_path / "figures"))
        names = sorted(set(figures.NAMES) - {"hacking"})
        assert left == [f"{name}.{kind}" for name in names for kind in ("png", "svg")]
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert "hacking.png: ValueError: no room" in record.getMessage()
        assert Page((tmp_path / "report.html").read_text(encoding="utf-8")).tags.count("svg") == len(names)

    def test_of_all_figures_leaves_tables_and_report(self, tmp_path, monkeypatch, caplog):
        seen = []

        def draw(name, rows):
            seen.append(sorted(file for file in os.listdir(tmp_path) if file.startswith("table")))
            raise ImportError("matplotlib is broken")

        monkeypatch.setattr(figures, "draw_one", draw)
        publish(lines(), tmp_path)
        assert seen == [list(self.TABLES)] * len(figures.NAMES)  # written before the first figure
        assert len(caplog.messages) == len(figures.NAMES)
        assert "Figures" not in (tmp_path / "report.html").read_text(encoding="utf-8")

    def test_of_the_report_leaves_the_rest(self, tmp_path, monkeypatch, caplog):
        def raising(*args, **kwargs):
            raise ValueError("no\nroom")

        monkeypatch.setattr(figures, "draw_one", drawing)
        (tmp_path / "report.html").write_text("of an earlier run")
        monkeypatch.setattr(publishing, "report", raising)
        publish(lines(), tmp_path)
        assert "report.html: ValueError: no room" in caplog.messages[0]
        assert not (tmp_path / "report.html").exists()
        assert all((tmp_path / name).stat().st_size for name in (*self.TABLES, "figures/tags.svg"))

    @pytest.mark.parametrize("content", ["{", "\xff", "3"])
    def test_of_run_json_names_it_and_the_mend(self, tmp_path, monkeypatch, caplog, content):
        monkeypatch.setattr(figures, "draw_one", drawing)
        (tmp_path / "run.json").write_text(content, encoding="latin-1")
        publish(lines("a"), tmp_path)
        (message,) = caplog.messages
        assert re.search(
            r"report.html: ValueError: .*run\.json (is damaged|holds no settings).*: restore it", message
        )
        assert (tmp_path / "table.md").exists()

    def test_to_write_a_table_name_it(self, tmp_path):
        (tmp_path / "table.csv").mkdir()
        with pytest.raises(OSError, match=r"table\.csv"):
            publish(lines("a"), tmp_path)
        assert (tmp_path / "table.json").exists()


class TestPublishing:
    def test_figures_that_no_longer_apply_go(self, tmp_path):
        publish(lines("a", "b:n=1", "b:n=2"), tmp_path)
        assert (tmp_path / "figures/scaling.svg").exists()
        publish(lines("a", "b:n=1"), tmp_path)
        assert not (tmp_path / "figures/scaling.svg").exists()
        assert (tmp_path / "figures/tags.png").exists()

    def test_counts_the_prompts_that_count(self, tmp_path):
        publish([*lines(), line("p9", "vanilla", [1.0], [1.0], tag="one")], tmp_path)
        assert (tmp_path / "table.md").read_text().startswith("4 prompts")

    def test_without_matplotlib_there_are_tables_and_a_report(self, lidar, tiny, tmp_path, monkeypatch):
        find = importlib.util.find_spec
        monkeypatch.setattr(figures, "find_spec", lambda name: None if name == "matplotlib" else find(name))
        (tmp_path / "p.txt").write_text("p0\np1\np2\np3\n")
        (tmp_path / "results-0.jsonl").write_text(
            "".join(json.dumps(one) + "\n" for one in lines("vanilla", "lidar"))
        )
        code, out, err = lidar(
            "compare", "--table", "--prompts", tmp_path / "p.txt", "--methods", "vanilla,lidar", "--out", tmp_path
        )
        assert code == 0
        assert err.splitlines() == [
            "lidar: no figures without matplotlib: pip install 'lidar-sampling[plot]'",
            f"lidar: table.md and report.html are in {tmp_path}",
        ]
        assert (tmp_path / "report.html").exists()
        assert (tmp_path / "table.md").read_text().rstrip("\n") == out.rstrip("\n")
        assert not list((tmp_path / "figures").glob("*"))


@pytest.mark.parametrize("judges", [1, 2])
def test_few_judges_are_enough(judges, tmp_path):
    found = lines()
    for one in found:
        one["rewards"] = dict(list(one["rewards"].items())[:judges])
    publish(found, tmp_path)
    assert (tmp_path / "report.html").exists()
