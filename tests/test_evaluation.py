"""Comparisons: resumable, sharded, and with intervals that mean what they say."""

import gzip
import json
from fractions import Fraction
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from test_cli import failure, lidar, tiny

from lidar_sampling import LiDAR, glyph, methods, testing
from lidar_sampling.evaluation import compare, table
from lidar_sampling.evaluation.budget import with_numbers, within
from lidar_sampling.evaluation.comparison import read
from lidar_sampling.evaluation.guide import with_guide
from lidar_sampling.evaluation.parts import judge_of_tags, markdown, parts
from lidar_sampling.evaluation.report import _table, headline
from lidar_sampling.evaluation.statistics import bootstrap, interval
from lidar_sampling.evaluation.tex import tex
from lidar_sampling.rewards import Mixture

__all__ = ["lidar", "tiny"]  # fixtures

PROMPTS = [{"prompt": "a cat", "tag": "one"}, {"prompt": "a dog", "tag": "one"}, {"prompt": "two cats", "tag": "two"}]


def contrast(*, images, prompts):
    return images.flatten(1).std(1)


def sampler(**options):
    settings = {"reward": "brightness", "n": 4, "steps": 3, "lookahead": "dpm:2", "scale": 1.0, "reward_scale": 50.0}
    return LiDAR(testing.tiny_stable_diffusion(), metrics=[contrast], **{**settings, **options})


def chosen(*names):
    return {name: methods.load(name) for name in names}


def counted(method):
    class Counted:
        draws = 0

        def draw(self, *args, **kwargs):
            Counted.draws += 1
            return method.draw(*args, **kwargs)

    return Counted()


class TestRuns:
    def test_go_on_where_they_were(self, tmp_path):
        method = counted(methods.Vanilla())
        first = compare(sampler(), PROMPTS, {"vanilla": method}, out=tmp_path, images=2)
        next(first)
        first.close()
        assert method.draws == 1
        with (tmp_path / "results-0.jsonl").open("a") as file:
            file.write('{"prompt": "a dog", "se')  # cut off
        lines = list(compare(sampler(), PROMPTS, {"vanilla": method}, out=tmp_path, images=2))
        assert method.draws == 3
        assert [line["prompt"] for line in lines] == ["a cat", "a dog", "two cats"]
        again = list(compare(sampler(), PROMPTS, {"vanilla": method}, out=tmp_path, images=2))
        assert method.draws == 3
        assert again == lines == read(tmp_path / "results-0.jsonl")

    def test_hold_what_the_methods_did(self, tmp_path):
        (line,) = compare(sampler(), PROMPTS[:1], chosen("best-of-3"), out=tmp_path, images=2, seeds=[5])
        direct = sampler()
        kept = direct.judge(methods.load("best-of-3").draw(direct, ["a cat"], images=2, seed=5))
        assert line["rewards"]["brightness"] == pytest.approx(kept.rewards["brightness"][0].tolist(), abs=1e-5)
        assert list(line["rewards"]) == ["brightness", "contrast"]
        assert line["cost"]["reward_calls"] == 3
        assert line["cost"]["network_evaluations"] == 3 * 4 * 2
        assert len(list((tmp_path / line["pictures"]).iterdir())) == 2

    def test_leave_the_pictures_of_another_prompt_alone(self, tmp_path):
        """A folder continued with another list of prompts has another prompt at the same index."""
        (first,) = compare(sampler(), PROMPTS[:1], chosen("vanilla"), out=tmp_path, images=1)
        before = (tmp_path / first["pictures"] / "0000.png").read_bytes()
        (second,) = compare(sampler(), PROMPTS[1:2], chosen("vanilla"), out=tmp_path, images=1)
        assert "pictures" not in second
        assert (tmp_path / first["pictures"] / "0000.png").read_bytes() == before

    def test_share_a_folder_by_shards(self, tmp_path):
        for rank in range(2):
            list(compare(sampler(), PROMPTS, chosen("vanilla"), out=tmp_path, images=2, shard=(rank, 2)))
        parts = [read(tmp_path / f"results-{rank}.jsonl") for rank in range(2)]
        assert [[line["prompt"] for line in part] for part in parts] == [["a cat", "two cats"], ["a dog"]]

    def test_help_others_when_their_own_share_is_done(self, tmp_path):
        draw = {"out": tmp_path, "images": 2, "help_others": True}
        method = counted(methods.Vanilla())
        lines = list(compare(sampler(), PROMPTS, {"vanilla": method}, shard=(1, 2), **draw))
        assert [line["prompt"] for line in lines] == ["a dog", "two cats", "a cat"]
        assert len(list(compare(sampler(), PROMPTS, {"vanilla": method}, shard=(0, 2), **draw))) == 3
        assert method.draws == 3

    @pytest.mark.parametrize("shard", [(2, 2), (-1, 2), (0, 0)])
    def test_have_a_rank_among_their_number(self, tmp_path, shard):
        with pytest.raises(ValueError, match="RANK must be 0 to WORLD_SIZE - 1"):
            next(compare(sampler(), PROMPTS, chosen("vanilla"), out=tmp_path / "out", shard=shard))
        assert not (tmp_path / "out").exists()

    def test_by_another_method_of_the_same_name_are_refused(self, tmp_path):
        list(compare(sampler(), PROMPTS[:1], {"mine": methods.load("best-of-2")}, out=tmp_path, images=1))
        with pytest.raises(ValueError, match="holds lines of 'mine' with other settings than it has now"):
            list(compare(sampler(), PROMPTS, {"mine": methods.load("best-of-3")}, out=tmp_path, images=1))
        assert (
            len(list(compare(sampler(), PROMPTS, {"mine": methods.load("best-of-2")}, out=tmp_path, images=1))) == 3
        )

    def test_with_a_store_of_banks_warn_that_costs_do_not_compare(self, tmp_path, caplog):
        both = chosen("lidar", "lidar:scale=2.0")
        costs = {}
        for name, store in (("without", None), ("with", tmp_path / "banks")):
            lines = compare(sampler(store=store), PROMPTS[:1], both, out=tmp_path / name, images=1)
            costs[name] = [one["cost"]["network_evaluations"] for one in lines]
            told = [message for message in caplog.messages if "do not compare costs" in message]
            assert len(told) == (store is not None)
        assert costs["without"][0] == costs["without"][1] == costs["with"][0] > costs["with"][1]
        assert told == [
            "a store holds banks for several methods, so only the first of them pays for one: do not compare costs"
        ]

    def test_name_a_line_that_is_damaged(self, tmp_path):
        (line,) = compare(sampler(), PROMPTS[:1], chosen("vanilla"), out=tmp_path, images=1)
        path = tmp_path / "results-0.jsonl"
        for damaged in ("[1, 2]", '{"prompt": "a cat"}', '{"prompt" "a cat"}'):
            path.write_text(json.dumps(line) + f"\n{damaged}\n")
            with pytest.raises(ValueError, match=r"results-0\.jsonl, line 2 is damaged: remove it"):
                read(path)

    WHOLE: ClassVar = {
        "prompt": "a cat",
        "tag": "one",
        "seed": 0,
        "method": "m",
        "images": 2,
        "guide": {"name": "both", "weights": {"r": 1.5}, "calibration": {"r": [0.0, 2.5e-3]}},
        "rewards": {"r": [1.0, None], "clip": [-0.5, 2e-7]},
        "diversity": 0.25,
        "cost": dict.fromkeys(("network_evaluations", "backward_passes", "decodes", "reward_calls", "seconds"), 1.5),
        "drawn_by": "0f",
        "pictures": "pictures/\u00e9/\\",
    }

    @given(st.integers(1, len(json.dumps(WHOLE)) - 1))
    @example(1)
    def test_pass_over_exactly_the_beginnings_of_a_line(self, tmp_path_factory, end):
        path = tmp_path_factory.mktemp("r") / "results-0.jsonl"
        text = json.dumps(self.WHOLE)
        path.write_text(f"{text[:end]}\n{text}\n{text[:end]}")
        assert read(path) == [self.WHOLE]
        for damaged in (f"{text}{text[:end]}", f"<<<<<<< {text[:end]}", text[end:]):
            path.write_text(f"{text}\n{damaged}\n")
            with pytest.raises(ValueError, match=r"results-0\.jsonl, line 2 is damaged: remove it"):
                read(path)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"prompt": None}, "its 'prompt' must be text"),
            ({"seed": "0"}, "its 'seed' must be a whole number"),
            ({"seed": True}, "its 'seed' must be a whole number"),
            ({"method": ["m"]}, "its 'method' must be text"),
            ({"images": 0}, "its 'images' must be a whole number of at least 1"),
            ({"images": 3}, "it has 3 images but 2 rewards of 'r'"),
            ({"rewards": {}}, "its 'rewards' must be lists"),
            ({"rewards": {"r": 1.0}}, "its 'rewards' must be lists"),
            ({"rewards": {"r": ["1", 2]}}, "its 'rewards' must be lists"),
            ({"rewards": {"r": [float("nan"), 2]}}, "its 'rewards' must be lists"),
            ({"rewards": {"r": [10**400, 2]}}, "its 'rewards' must be lists"),
            ({"diversity": "much"}, "its 'diversity' must be"),
            ({"cost": {"seconds": 1}}, "its 'cost' must be numbers, by network_evaluations"),
            ({"cost": None}, "its 'cost' must be numbers"),
            ({"tag": None}, "its 'tag' must be text"),
            ({"tag": ["one"]}, "its 'tag' must be text"),
            ({"guide": "r"}, "its 'guide' must be a name"),
            ({"guide": {"name": "m", "weights": {"r": "1"}}}, "its 'guide' must be a name"),
            (
                {"guide": {"name": "m", "weights": {"r": 1}, "calibration": {"r": [0, 0]}}},
                "its 'guide' must be a name",
            ),
            ({"pictures": 3}, "its 'pictures' must be text"),
        ],
    )
    def test_say_what_is_wrong_with_a_line(self, tmp_path, change, message):
        path = tmp_path / "results-0.jsonl"
        path.write_text(json.dumps(self.WHOLE) + "\n" + json.dumps({**self.WHOLE, "method": "n", **change}) + "\n")
        with pytest.raises(ValueError, match=rf"results-0\.jsonl, line 2 is damaged: remove it, .*; {message}"):
            read(path)

    @pytest.mark.parametrize("field", [f for f in WHOLE if f not in ("guide", "drawn_by", "pictures")])
    def test_say_what_a_line_lacks(self, tmp_path, field):
        path = tmp_path / "results-0.jsonl"
        path.write_text(json.dumps({k: v for k, v in self.WHOLE.items() if k != field}))
        with pytest.raises(ValueError, match=f"it has no '{field}'"):
            read(path)

    @pytest.mark.parametrize(
        "content",
        [b"\x00\x01\xff\xfe", '{"prompt": 1}'.encode("utf-16"), b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}"],
    )
    def test_name_a_file_that_is_none(self, tmp_path, content):
        path = tmp_path / "results-0.jsonl"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"results-0\.jsonl, line 1 is damaged: remove it") as failed:
            read(path)
        assert len(str(failed.value)) < 300

    def test_that_are_published_can_be_read(self):
        packed = sorted((Path(__file__).parent.parent / "docs/results").rglob("results-*.jsonl.gz"))
        assert len(packed) >= 6
        for path in packed:
            assert len(read(path.with_suffix(""))) == len(gzip.decompress(path.read_bytes()).splitlines())

    def test_that_came_twice_count_once_and_the_first(self, tmp_path):
        first, second = self.WHOLE, {**self.WHOLE, "rewards": {"r": [5.0, 5.0], "clip": [5.0, 5.0]}}
        for rank, one in enumerate((first, second)):
            (tmp_path / f"results-{rank}.jsonl").write_text(json.dumps(one) + "\n")
        assert read(*sorted(tmp_path.iterdir())) == [first]
        assert table([first, second])[0].mean["r"].estimate == 1.0

    def test_in_memory_are_those_that_are_read(self, tmp_path):
        """A table mixes lines drawn now and earlier; weights may be any numbers."""
        mixture = Mixture(
            {"brightness": Fraction(1, 3)}, calibration={"brightness": (np.float32(0.5), torch.tensor(0.25))}
        )
        draw = {"out": tmp_path, "images": 1}
        list(compare(sampler(reward=mixture), PROMPTS[:1], chosen("vanilla"), **draw))
        lines = list(compare(sampler(reward=mixture), PROMPTS[:2], chosen("vanilla"), **draw))
        assert lines == read(tmp_path / "results-0.jsonl")
        assert lines[0]["guide"] == lines[1]["guide"]
        assert table(lines)[0].guide == "mixture"

    @pytest.mark.parametrize("tag", [None, ["one"]])
    def test_of_tags_that_are_no_text_are_not_drawn(self, tmp_path, tag):
        with pytest.raises(ValueError, match="the tag of 'a cat' is "):
            next(compare(sampler(), [{"prompt": "a cat", "tag": tag}], chosen("vanilla"), out=tmp_path / "out"))
        assert not (tmp_path / "out").exists()

    def test_hold_prompts_with_any_line_end_of_unicode(self, tmp_path):
        prompts = [{"prompt": "a cat\u2028on a mat"}]
        (line,) = compare(sampler(), prompts, chosen("vanilla"), out=tmp_path, images=1)
        path = tmp_path / "results-0.jsonl"
        path.write_text(json.dumps(line, ensure_ascii=False) + "\n", encoding="utf-8")
        assert read(path) == [line]

    def test_say_what_guided(self, tmp_path):
        mixture = Mixture({"brightness": 0.5}, calibration={"brightness": (0.5, 0.1)})
        (line,) = compare(sampler(reward=mixture), PROMPTS[:1], chosen("vanilla"), out=tmp_path / "a", images=1)
        calibration = {"brightness": [0.5, 0.1]}
        kept = read(tmp_path / "a" / "results-0.jsonl")[0]["guide"]
        assert kept == {"name": "mixture", "weights": {"brightness": 0.5}, "calibration": calibration}
        (line,) = compare(sampler(), PROMPTS[:1], chosen("vanilla"), out=tmp_path / "b", images=1)
        assert line["guide"] == {"name": "brightness"}

    def test_of_other_settings_are_refused(self, tmp_path):
        list(compare(sampler(), PROMPTS[:1], chosen("vanilla"), out=tmp_path, images=2))
        with pytest.raises(ValueError, match=r"drawn with steps=3, now it is 4"):
            list(compare(sampler(steps=4), PROMPTS, chosen("vanilla"), out=tmp_path, images=2))
        with pytest.raises(ValueError, match=r"drawn with images=2, now it is 3"):
            list(compare(sampler(), PROMPTS, chosen("vanilla"), out=tmp_path, images=3))


def line(prompt, method, guide, other, *, seed=0, tag="t"):
    cost = dict.fromkeys(("network_evaluations", "backward_passes", "decodes", "reward_calls", "seconds"), 1)
    rewards = {"guide": guide, "other": other}
    return {
        "prompt": prompt,
        "tag": tag,
        "seed": seed,
        "method": method,
        "images": 2,
        "rewards": rewards,
        "diversity": 0.5,
        "cost": cost,
    }


class TestTables:
    def test_a_mean_is_of_the_same_prompts_for_all_methods(self):
        """The judge reads what vanilla drew of 2 of 10 prompts alone, and there both methods do equally well."""
        lines = [line(f"p{k}", "vanilla", [1.0], [0.9 if k < 2 else None]) for k in range(10)]
        lines += [line(f"p{k}", "lidar", [2.0], [0.9 if k < 2 else 0.5]) for k in range(10)]
        rows = vanilla, lidar = table(lines)
        assert vanilla.mean["other"].estimate == lidar.mean["other"].estimate == 0.9
        assert vanilla.best["other"].estimate == lidar.best["other"].estimate == 0.9
        assert lidar.gain["other"].estimate == lidar.best_lead["other"].estimate == 0
        assert (lidar.tags["other"]["t"].estimate, lidar.mean["guide"].estimate) == (0.9, 2)
        assert (lidar.prompts, lidar.counted) == (10, {"guide": 10, "other": 2})
        found = {part.title: part.note for part in parts(rows, prompts=10, images=1)}
        note = "other: 2 of 10 prompts have a value by every method."
        assert found["Rewards"] == found["Gain over vanilla"] == found["Prompts won"] == headline(rows).note == note
        assert found["Best image beside vanilla's"] == f"other, best{note.removeprefix('other')}"
        assert found["Diversity and cost"] == ""
        text = markdown(parts(rows, prompts=10, images=1))
        assert "\n| lidar | 2.000 [2.000, 2.000] | 0.900 [0.900, 0.900] |" in text
        assert text.count(f" |\n\n{note}\n") == 3
        assert note in tex(parts(rows, prompts=10, images=1))
        assert f"<p>{note}</p>" in _table(headline(rows))

    def test_a_gain_is_of_the_same_prompts_for_all_methods(self):
        """Of the second prompt the third method has no value; that prompt would double the second method's gain."""
        values = {"vanilla": (0.0, 0.0), "x": (1.0, 3.0), "y": (1.0, None)}
        rows = table([line(p, m, [1.0], [v]) for m, both in values.items() for p, v in zip("pq", both, strict=True)])
        assert [row.gain["other"].estimate for row in rows] == [0, 1, 1]

    def test_diversity_is_of_the_same_prompts_for_all_methods(self):
        lines = [{**line(p, m, [1.0], [1.0]), "diversity": d} for p, d in (("p", 0.2), ("q", 0.6)) for m in "ab"]
        lines[-1]["diversity"] = None
        rows = table(lines)
        assert [row.diversity.estimate for row in rows] == [0.2, 0.2]
        note = parts(rows, prompts=2, images=1)[1].note
        assert note == headline(rows).note == "diversity: 1 of 2 prompts have a value by every method."

    def test_the_best_image_may_lack_a_value_that_others_have(self):
        lines = [line(p, m, [1.0, 2.0], [3.0, None if p == "q" else 4.0]) for p in "pqr" for m in "ab"]
        rows = table(lines)
        assert (rows[0].mean["other"].estimate, rows[0].best["other"].estimate) == (pytest.approx(10 / 3), 4)
        assert parts(rows, prompts=3, images=2)[0].note == (
            "other, best: 2 of 3 prompts have a value by every method."
        )

    def test_a_method_without_any_value_takes_no_prompts_from_the_others(self):
        values = {"a": (1.0, 3.0), "b": (2.0, 4.0), "c": (None, None)}
        lines = [line(p, m, [1.0], [v]) for m, both in values.items() for p, v in zip("pq", both, strict=True)]
        rows = table(lines)
        assert [str(row.mean["other"])[:5] for row in rows] == ["2.000", "3.000", "-"]
        assert parts(rows, prompts=2, images=1)[0].note == ""
        lines[3]["rewards"]["other"] = [None]
        (note,) = {part.note for part in parts(table(lines), prompts=2, images=1)[2::2]}
        assert note == "other: 1 of 2 prompts have a value by every method that has any."

    def test_a_judge_without_any_value_has_dashes_and_no_note(self):
        rows = table([{**line(p, m, [1.0], [None]), "diversity": None} for p in "pq" for m in "ab"])
        assert (str(rows[1].mean["other"]), str(rows[1].diversity)) == ("-", "-")
        assert {part.note for part in parts(rows, prompts=2, images=1)} == {""}

    def test_mean_and_best_are_two_promises(self):
        rows = table([line("p", "vanilla", [1.0, 3.0], [10.0, 20.0]), line("p", "x", [5.0, 4.0], [30.0, 50.0])])
        assert rows[0].mean["other"].estimate == 15
        assert rows[0].best["other"].estimate == 20  # that of the image with the best guide
        assert rows[1].best["other"].estimate == 30
        assert rows[1].gain["guide"].estimate == 2.5
        assert rows[1].best_gain["other"].estimate == 15
        assert rows[1].best_lead["other"].estimate == 10

    def test_only_prompts_that_all_methods_have_count(self):
        lines = [line(p, "a", [v], [v]) for p, v in (("p", 1.0), ("q", 100.0))] + [line("p", "b", [2.0], [2.0])]
        rows = table(lines)
        assert rows[0].mean["guide"].estimate == 1
        assert rows[1].gain["guide"].estimate == 1

    def test_what_does_not_apply_is_left_out(self):
        lines = [line("p", "a", [1.0, 2.0], [None, None]), line("q", "a", [1.0, 2.0], [1.0, None])]
        (row,) = table(lines)
        assert row.mean["other"].estimate == 1

    def test_a_method_that_wins_on_its_own_reward_alone_is_hacking(self):
        lines = [line(f"p{k}", "vanilla", [float(k)], [float(k)]) for k in range(10)]
        lines += [line(f"p{k}", "honest", [k + 2.0], [k + 2.0]) for k in range(10)]
        lines += [line(f"p{k}", "hacker", [k + 2.0], [float(k)]) for k in range(10)]
        _, honest, hacker = table(lines)
        assert honest.hacking["other"] == pytest.approx((0, 0, 0))
        assert hacker.hacking["other"].estimate == pytest.approx(2 / np.std(range(10)))

    def test_of_equal_values_there_is_no_deviation_to_divide_by(self):
        """The deviation of six times 0.1 computes to 1e-17, not 0; a gain of 1 must stay 1, not 1e17."""
        lines = [line(f"p{k}", m, [v], [0.1]) for k in range(6) for m, v in (("a", 0.1), ("b", 1.1))]
        assert table(lines)[1].effect["guide"].estimate == pytest.approx(1)

    def test_without_a_verdict_of_the_guide_no_image_is_best(self):
        (row,) = table([line("p", "a", [None, None], [1.0, 2.0]), line("q", "a", [1.0, 2.0], [3.0, 4.0])])
        assert row.best["other"].estimate == 4

    def test_tags_are_shown_of_a_judge_with_values(self):
        lines = [line("p", "a", [1.0], [2.0]), line("p", "b", [1.0], [2.0])]
        assert judge_of_tags(table(lines)) == "other"
        judged = [{**one, "rewards": {**one["rewards"], "geneval": [1.0]}} for one in lines]
        assert judge_of_tags(table(judged)) == "geneval"
        free = [{**one, "rewards": {**one["rewards"], "geneval": [None]}} for one in lines]
        assert judge_of_tags(table(free)) == "other"

    def test_prompts_won_by_hand(self):
        """Means 3, 2, 1, 3 against 2 each are won, tied, lost, won: (1 + .5 + 0 + 1) / 4."""
        lines = [line(f"p{k}", "vanilla", [1.0, 3.0], [0.0, 0.0]) for k in range(4)]
        lines += [line(f"p{k}", "x", [v - 1, v + 1], [None, None]) for k, v in enumerate((3.0, 2.0, 1.0, 3.0))]
        vanilla, x = table(lines)
        assert vanilla.win["guide"] == (0.5, 0.5, 0.5)
        assert x.win["guide"].estimate == 0.625
        assert x.win["guide"].low < 0.625 < x.win["guide"].high <= 1
        assert str(x.win["other"]) == str(x.gain["other"]) == "-"

    def test_gains_are_paired(self):
        """Prompts differ by 1000, gains do not differ, so only a paired interval is narrow."""
        lines = [line(f"p{k}", "vanilla", [1000.0 * k], [0.0]) for k in range(5)]
        lines += [line(f"p{k}", "x", [1000.0 * k + 1], [0.0]) for k in range(5)]
        _, x = table(lines)
        assert x.gain["guide"] == (1, 1, 1)
        assert x.mean["guide"].high - x.mean["guide"].low > 1000

    def test_tags_hold_their_own_prompts(self):
        values = {"one": [1.0, 3.0], "two": [10.0]}
        lines = [line(f"{t}{v}", "a", [v], [0.0], tag=t) for t, vs in values.items() for v in vs]
        (row,) = table(lines)
        assert row.tags["guide"]["one"] == (2, 1, 3)
        assert str(row.tags["guide"]["two"]) == "10.000"  # the spread of one prompt is unknown
        assert row.mean["guide"].estimate == 6  # tags have equal weight

    def test_the_baseline_comes_first(self):
        lines = [line("p", m, [v], [v]) for m, v in (("a", 1.0), ("b", 3.0))]
        rows = table(lines, baseline="b")
        assert [row.method for row in rows] == ["b", "a"]
        assert rows[1].gain["guide"].estimate == -2

    def test_an_unknown_peak_is_not_a_peak_of_zero(self):
        lines = [line("p", "old", [1.0], [1.0]), line("p", "new", [1.0], [1.0]), line("q", "new", [1.0], [1.0])]
        lines += [line("q", "old", [1.0], [1.0])]
        lines[1]["cost"]["peak_memory"], lines[2]["cost"]["peak_memory"] = 3 * 2**30, 2**30
        old, new = table(lines)
        assert np.isnan(old.cost["peak_memory"])
        assert new.cost["peak_memory"] == 3 * 2**30

    @pytest.mark.parametrize(
        ("lines", "message"),
        [
            ([], "no results to tabulate"),
            ([line("p", "a", [1.0], [1.0]), line("q", "b", [1.0], [1.0])], "no prompt has results of all methods"),
        ],
    )
    def test_refusals(self, lines, message):
        with pytest.raises(ValueError, match=message):
            table(lines)
        for tag in (None, ["t"]):
            with pytest.raises(ValueError, match=r"the line of a, 'p', seed 0, has the tag .* not text"):
                table([line("p", "a", [1.0], [1.0], tag=tag)])
        if lines:
            with pytest.raises(ValueError, match="no results of the baseline 'z'"):
                table(lines, baseline="z")

    def test_the_interval_covers_as_often_as_it_says(self):
        """95 % intervals of the mean of 40 normal prompts, 200 times: coverage .95 +- 3 * .0154, a little less for
        the bootstrap of so few."""
        rng = np.random.default_rng(0)
        hits = 0
        for k in range(200):
            draws = bootstrap(rng.normal(size=(40, 1)), ["t"] * 40, draws=400, seed=k)[1:, 0]
            low, high = np.percentile(draws, [2.5, 97.5])
            hits += low <= 0 <= high
        assert 0.88 <= hits / 200 <= 0.99


def mixed(lines, calibration=None, **weights):
    guide = {"name": "mix", "weights": weights, "calibration": calibration}
    return [{**one, "guide": guide} for one in lines]


class TestGuides:
    def test_of_a_calibrated_mixture_by_hand(self):
        """Sums of 1 (a - 1) / 2 + 10 (b - 0) / 1 are -.5 + 10 and 1 + 0, then 2 + 20 and 0 + 30."""
        scale = {"guide": [1.0, 2.0], "other": [0.0, 1.0]}
        lines = [line("p", "vanilla", [0.0, 3.0], [1.0, 0.0]), line("p", "x", [5.0, 1.0], [2.0, 3.0])]
        vanilla, x = table(mixed(lines, scale, guide=1.0, other=10.0))
        assert (vanilla.guide, vanilla.unguided) == ("mix", [])
        assert list(vanilla.mean) == ["mix", "guide", "other"]
        assert (vanilla.mean["mix"].estimate, x.mean["mix"].estimate) == (5.25, 26)
        assert (vanilla.best["mix"].estimate, x.best["mix"].estimate) == (9.5, 30)
        assert (vanilla.best["guide"].estimate, x.best["guide"].estimate) == (0, 1)  # not 3 and 5, the first part's
        assert (vanilla.best["other"].estimate, x.best["other"].estimate) == (1, 3)
        assert x.hacking == {}

    def test_without_a_calibration_all_methods_share_one_scale(self):
        """Parts 0, 0, 4, 4 and 1, 3, 1, 3 of four images: deviations 2 and 1, sums -2, 0, 0, 2."""
        lines = [line("p", "vanilla", [0.0, 0.0], [1.0, 3.0]), line("p", "x", [4.0, 4.0], [1.0, 3.0])]
        for one in lines:
            one["rewards"]["held-out"] = [7.0, 8.0]
        vanilla, x = table(mixed(lines, guide=1.0, other=1.0))
        assert (vanilla.mean["mix"].estimate, vanilla.best["mix"].estimate) == (-1, 0)
        assert (x.mean["mix"].estimate, x.best["mix"].estimate) == (1, 2)
        assert x.gain["mix"].estimate == 2
        assert x.best["held-out"].estimate == 8
        assert list(x.hacking) == x.unguided == ["held-out"]
        assert x.hacking["held-out"].estimate == 2  # 2 deviations, where that of a single prompt counts as 1

    def test_scales_are_of_each_prompt_and_seed(self):
        lines = [line("p", "a", [0.0, 2.0], [0.1, 0.1], seed=seed) for seed in (0, 1)]
        lines += [line("q", "a", [100.0, 300.0], [None, 0.1])]
        found, guide = with_guide(mixed(lines, guide=1.0, other=5.0))
        assert guide == ("mix", ("guide", "other"))
        # A constant part adds nothing, and an image that lacks a part has no sum.
        assert [one["rewards"]["mix"] for one in found] == [[-1, 1], [-1, 1], [None, 1]]

    def test_of_one_judge_need_not_be_the_first(self):
        lines = [{**line("p", "a", [1.0, 2.0], [2.0, 1.0]), "guide": {"name": "other"}}]
        (row,) = table(lines)
        assert (row.guide, row.unguided) == ("other", ["guide"])
        assert row.best["guide"].estimate == 1

    def test_that_old_lines_do_not_name_is_the_first_judge(self):
        old, new = line("p", "a", [1.0], [1.0]), line("p", "b", [2.0], [2.0])
        new["guide"] = {"name": "guide"}
        assert [row.guide for row in table([old, new])] == ["guide", "guide"]

    def test_that_a_mixture_follows_stand_in_the_captions(self):
        rows = table(mixed([line(p, m, [1.0, 2.0], [1.0, 2.0]) for p in "pq" for m in "ab"], guide=1.0, other=2.0))
        captions = " ".join(part.caption for part in parts(rows, prompts=2, images=2))
        assert "by the guiding reward, mix, a mixture of guide and other." in captions
        assert "gain on mix minus" in captions

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"guide": {"name": "other"}}, "b, 'p', seed 0, by other: make a table only"),
            (
                {"guide": {"name": "mix", "weights": {"guide": 1.0, "other": 2.0}}},
                r"a, 'p', seed 0, was guided by guide, .* by mix \(1 guide, 2 other\)",
            ),
            ({"rewards": {"guide": [1.0]}}, "b, 'p', seed 0, was judged by guide, others by guide, other"),
        ],
    )
    def test_that_differ_are_refused(self, change, message):
        with pytest.raises(ValueError, match=message):
            table([line("p", "a", [1.0], [1.0]), {**line("p", "b", [1.0], [1.0]), **change}])

    def test_in_other_types_are_the_same(self):
        one = mixed([line("p", "a", [1.0], [1.0])], {"guide": [0.0, 2.0]}, guide=0.5)
        weights, calibration = {"guide": Fraction(1, 2)}, {"guide": (torch.tensor(0), np.float32(2))}
        other = mixed([line("p", "b", [3.0], [1.0])], calibration, **weights)
        assert [row.mean["mix"].estimate for row in table([*one, *other])] == [0.25, 0.75]

    def test_that_cannot_be_are_refused(self):
        one = line("p", "a", [1.0], [1.0])
        with pytest.raises(ValueError, match="guided by 'absent' but has no rewards of it"):
            table([{**one, "guide": {"name": "absent"}}])
        with pytest.raises(ValueError, match="seed 0, has different numbers of rewards by its judges"):
            table([line("p", "a", [1.0, 2.0], [1.0])])
        with pytest.raises(ValueError, match="'guide' is both the mixture that guided and a judge"):
            table([{**one, "guide": {"name": "guide", "weights": {"other": 1.0}}}])


class TestStrata:
    def test_of_one_prompt_are_resampled_together(self):
        """There are six tags with one prompt each; resampling within tags would give an interval of zero width."""
        draws = bootstrap(np.arange(6.0)[:, None], list("abcdef"), draws=4000)[:, 0]
        assert draws[0] == 2.5
        assert draws[1:].std() == pytest.approx(np.std(range(6)) / 6**0.5, rel=0.05)

    def test_a_lone_one_of_one_prompt_hides_no_spread(self):
        found = interval(bootstrap(np.array([[1.0], [3.0], [8.0]]), ["a", "a", "b"])[:, 0])
        assert str(found) == "5.000"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("vanilla@25", "Vanilla(steps=25, solver=None)"),
        ("best-of-12@10", "BestOf(method=Vanilla(steps=10, solver=None), n=12, diverse=0.0)"),
        ("fk+best-of-8", "n=8, diverse=0.0)"),
        ("refine-50", "Refine(n=50"),
        (
            "lidar:n=9,lookahead=dpm:8",
            "Guided(n=9, scale=None, reward_scale=None, steps=None, lookahead='dpm:8', ess=None, grid=None)",
        ),
        ("lidar+best-of-8:n=9,scale=3", "BestOf(method=Guided(n=9, scale=3"),
        ("fk:potential=difference,adaptive=True", "FKSteering(potential='difference'"),
        ("best-of-50@dpm:5", "n=50, diverse=0.0)"),
        ("ug:reward_scale=3", "UniversalGuidance(reward_scale=3,"),
        ("ug-backward", "UniversalGuidance(reward_scale=0.0, backward_steps=5,"),
        ("ug-backward:backward_steps=10", "UniversalGuidance(reward_scale=0.0, backward_steps=10,"),
        ("fk+lidar", "guided=True"),
        ("fk+lidar+best-of-8", "guided=True), n=8, diverse=0.0)"),
        ("das", "DAS(reward_scale=200.0, gamma=0.008"),
        ("date:every=2", "DATE(rho=0.1, every=2)"),
        ("fmrg:rule=adam", "FMRG(step_size=3.0, end=0.25, rule='adam')"),
        ("reno", "ReNO(n=50, steps=None, solver=None, rate=5.0, momentum=0.9, clip=0.1, penalty=0.01)"),
        ("reno-20@2", "ReNO(n=20, steps=2,"),
        ("reno-20@dpm:1", "solver=Solver(name='dpm:1'"),
        ("beam-4x2", "BeamSearch(beams=4, candidates=2, lookahead=1)"),
        ("beam-4x2@6", "lookahead=6)"),
        ("search-5", "NoiseSearch(rounds=4, neighbours=5, cosine=0.95"),
        ("search-5:rounds=8", "NoiseSearch(rounds=8"),
        ("safe-denoiser", "SafeDenoiser(scale=1.0, worst=15, beta=0.05)"),
        ("spell:worst=10", "Spell(scale=1.0, worst=10, radius=100.0)"),
    ],
)
def test_names(name, shown):
    assert shown in repr(methods.load(name))


@pytest.mark.parametrize(
    "name", ["vanila", "best-of-0", "lidar+best-of-4@3", "best-of", "ug-", "beam-4", "date:nothing=1"]
)
def test_names_that_are_none(name):
    with pytest.raises(ValueError, match=r"unknown method|has no .nothing."):
        methods.load(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fk:lambda_=2", "FKSteering has no 'lambda_'; it has adaptive, end"),
        ("lidar+best-of-8:m=2", "Guided has no 'm'"),
        ("fk:reward_scale=", "reward_scale must be float, got ''"),
        ("svdd:m=0", "m must be at least 1"),
    ],
)
def test_settings_that_are_wrong(name, message):
    with pytest.raises(ValueError, match=message):
        methods.load(name)


def test_settings_reach_the_sampler():
    """The settings are a bank of two and another solver; the sampler itself is unchanged."""
    direct = sampler()
    result = methods.load("lidar:n=2,lookahead=dpm:3").draw(direct, ["a cat"], images=1, seed=0)
    assert result.cost["lookahead"].network_evaluations == 2 * 3 * 2
    assert (direct.settings.n, direct.settings.lookahead) == (4, "dpm:2")
    twin = sampler(n=2, lookahead="dpm:3")
    assert torch.equal(result.images, twin.draw_guided(["a cat"], 1, 0, None).images)


class TestBudgets:
    @pytest.mark.parametrize(
        ("name", "budget", "found"),
        [
            ("best-of-N@3", 100, "best-of-12@3"),  # 8 per sample: PNDM takes 4 evaluations in 3 steps, twice with CFG
            ("vanilla@N", 24, "vanilla@5"),  # 4 (N + 1) for two images
            ("reno-N@dpm:2", 100, "reno-12@dpm:2"),  # 8 per iterate of both; backward passes are not counted here
            ("lidar:n=N", 40, "lidar:n=6"),  # 4 per member, and 16 for two images
            ("vanilla", 1, "vanilla"),
        ],
    )
    def test_are_used_up(self, name, budget, found):
        assert within(sampler(), name, budget, prompt="a cat", images=2, unit="network_evaluations") == found

    def test_that_are_too_small_or_do_not_matter(self):
        with pytest.raises(ValueError, match="5 network_evaluations per prompt is too small for best-of-N"):
            within(sampler(), "best-of-N", 5, prompt="a cat", images=1, unit="network_evaluations")
        with pytest.raises(ValueError, match="does not cost more backward_passes with a larger N"):
            within(sampler(), "best-of-N", 5, prompt="a cat", images=1, unit="backward_passes")

    def test_are_remembered(self, tmp_path):
        file = tmp_path / "new" / "budget.json"
        assert with_numbers(file, "30s", ["best-of-N"], lambda name: "best-of-7") == ["best-of-7"]
        assert with_numbers(file, "30s", ["best-of-N", "x"], str) == ["best-of-7", "x"]
        with pytest.raises(ValueError, match="has the budget 30s, not 40"):
            with_numbers(file, "40", ["x"], str)

    @pytest.mark.parametrize(
        "content",
        [
            "[]",
            "{}",
            "null",
            '"30s"',
            "[" * 100_000,
            '{"budget": "30s"}',
            '{"budget": 30, "names": {}}',
            '{"budget": "30s", "names": []}',
            '{"budget": "30s", "names": {"best-of-N": 7}}',
            '{"budget": "30s", "names": {"best-of-N": "vanilla"}}',
            '{"budget": "30s", "names": {"best-of-N@10": "best-of-9"}}',
        ],
    )
    def test_that_are_damaged_are_named(self, tmp_path, content):
        (tmp_path / "budget.json").write_text(content)
        with pytest.raises(ValueError, match=r"budget\.json is damaged \(.*\): remove it, and") as failed:
            with_numbers(tmp_path / "budget.json", "30s", ["best-of-N"], str)
        assert len(str(failed.value)) < 300


class TestCommand:
    OPTIONS = ("--n", "4", "--lookahead", "dpm:2", "--steps", "3", "--images", "2", "--reward-scale", "5")

    def test_compares(self, lidar, tiny, tmp_path):
        (tmp_path / "p.txt").write_text("a cat\na dog\n")
        arguments = [
            "compare",
            "--prompts",
            tmp_path / "p.txt",
            "--methods",
            "vanilla,best-of-3,lidar",
            *tiny,
            *self.OPTIONS,
        ]
        code, out, err = lidar(*arguments, "--out", tmp_path / "r")
        assert code == 0, err
        assert "| best-of-3 |" in out
        assert (tmp_path / "r/table.md").read_text() == out.rstrip("\n") + "\n"
        assert f"table.md, report.html and pictures are in {tmp_path / 'r'}" in " ".join(err.split())
        for name in ("table.csv", "table.tex", "table.json", "report.html", "figures/quality-cost.svg"):
            assert (tmp_path / "r" / name).stat().st_size > 0
        assert len(read(tmp_path / "r/results-0.jsonl")) == 6
        code, out, _ = lidar(*arguments, "--out", tmp_path / "r", "--table", "--json")
        assert [row["method"] for row in json.loads(out)] == ["vanilla", "best-of-3", "lidar"]
        assert json.loads(out) == json.loads((tmp_path / "r/table.json").read_text())
        err = failure(lidar(*arguments, "--steps", "4", "--out", tmp_path / "r"))
        assert "drawn with steps=3" in err

    def test_shares_the_prompts(self, lidar, tiny, tmp_path, monkeypatch):
        (tmp_path / "p.txt").write_text("a cat\na dog\n")
        arguments = ["compare", "--prompts", tmp_path / "p.txt", "--methods", "vanilla", *tiny, *self.OPTIONS]
        monkeypatch.setenv("WORLD_SIZE", "2")
        for rank in ("0", "1"):
            monkeypatch.setenv("RANK", rank)
            code, out, err = lidar(*arguments, "--out", tmp_path / "r")
            assert (code, out) == (0, "")
            assert f"share {int(rank) + 1} of 2 is done" in err
        code, out, _ = lidar(*arguments, "--out", tmp_path / "r", "--table")
        assert code == 0
        assert out.startswith("2 prompts")

    def test_a_budget_makes_methods_equal(self, lidar, tiny, tmp_path):
        (tmp_path / "p.txt").write_text("a cat\na dog\n")
        arguments = [
            "compare",
            "--prompts",
            tmp_path / "p.txt",
            "--methods",
            "vanilla,best-of-N",
            *tiny,
            *self.OPTIONS,
        ]
        out = tmp_path / "r"
        code, _, err = lidar(*arguments, "--budget", "100", "--out", out)
        assert code == 0, err
        name = json.loads((out / "budget.json").read_text())["names"]["best-of-N"]
        costs = {
            line["cost"]["network_evaluations"] for line in read(out / "results-0.jsonl") if line["method"] == name
        }
        assert len(costs) == 1
        assert 80 < costs.pop() <= 100
        assert lidar(*arguments, "--budget", "100", "--out", out, "--table")[0] == 0
        wrong = lidar(*arguments, "--budget", "90", "--out", out, "--table")
        assert "has the budget 100, not 90" in " ".join(failure(wrong).split())
        assert "best-of-N needs a number for its N" in " ".join(failure(lidar(*arguments, "--out", out)).split())

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--methods", "vanila"], "did you mean 'vanilla'"),
            (["--budget", "much"], "--budget takes network evaluations as 480, or seconds as 30s; got 'much'"),
            (["--budget", "-3"], "got '-3'"),
            (["--prompts", "glyph-hard:2"], "at least 3 prompts"),
            (["--tags", "colours"], "glyph:18 has no prompts of these tags"),
            (["--table", "--budget", "9", "--methods", "best-of-N"], "nothing was drawn of best-of-N"),
            (["--prompts", "glyph:3"], "at least 6 prompts"),
            (["--prompts", "nowhere.txt"], "nowhere.txt"),
            (["--table", "--out", "nowhere"], "no results to tabulate"),
        ],
    )
    def test_wrong_use(self, lidar, tmp_path, monkeypatch, arguments, message):
        monkeypatch.chdir(tmp_path)
        assert message in " ".join(failure(lidar("compare", *arguments)).split())

    def folder(self, path, prompts, size=128):
        for k, (prompt, tag) in enumerate(prompts):
            samples = path / f"{k:05d}/samples"
            samples.mkdir(parents=True)
            for i in range(2):
                Image.new("RGB", (size, size), (100 * i, 0, 0)).save(samples / f"{i:04d}.png")
            (samples.parent / "metadata.jsonl").write_text(json.dumps({"prompt": prompt, "tag": tag}) + "\n")
        return path

    def test_evaluates_a_folder_by_the_rules(self, lidar, tmp_path, monkeypatch):
        """Pictures of cats with red in them are right; overall is the mean of the tags."""

        class Judge:
            def __init__(self, *, device):
                pass

            def __call__(self, *, images, prompts):
                cats = ["cat" in line["prompt"] for line in prompts]
                return torch.tensor([float(cat and i.max() > 0) for i, cat in zip(images, cats, strict=True)])

        monkeypatch.setattr(glyph, "Judge", Judge)
        prompts = [("a photo of a cat", "one"), ("a photo of a dog", "one"), ("a photo of two cats", "two")]
        found = lidar("evaluate", self.folder(tmp_path / "f", prompts), "--json")
        assert found[0] == 0, found[2]
        result = json.loads(found[1])
        assert result["tags"]["one"].startswith("0.250")
        assert result["tags"]["two"].startswith("0.500")
        assert result["overall"].startswith("0.375")
        assert (result["prompts"], result["pictures"]) == (3, 6)
        code, out, _ = lidar("evaluate", tmp_path / "f")
        assert (code, out.count("\n")) == (0, 3)

    def test_noise_is_judged_wrong_by_the_detector(self, lidar, tmp_path):
        code, out, _ = lidar(
            "evaluate", self.folder(tmp_path / "f", [("a photo of a cat", "single_object")]), "--json"
        )
        assert code == 0
        assert json.loads(out)["overall"].startswith("0.000")

    def test_folders_that_cannot_be_evaluated(self, lidar, tmp_path):
        assert "no folder at" in failure(lidar("evaluate", tmp_path / "x"))
        (tmp_path / "e").mkdir()
        assert "holds no pictures" in " ".join(failure(lidar("evaluate", tmp_path / "e")).split())
        small = self.folder(tmp_path / "s", [("a photo of a cat", "one")], size=64)
        assert "judges pictures of 128 x 128" in " ".join(failure(lidar("evaluate", small)).split())

    def test_methods_are_listed(self, lidar):
        code, out, _ = lidar("methods")
        assert code == 0
        assert "lidar+best-of-N" in out
