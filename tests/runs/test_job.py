"""A Job: plain JSON both ways, and refused in one line before anything is loaded."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lidar_sampling.runs import Job

TEXTS = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=20)
VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
JSON = st.recursive(VALUES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5)
PROMPTS = st.lists(
    TEXTS | st.builds(lambda text, more: {**more, "prompt": text}, TEXTS, st.fixed_dictionaries({"note": JSON})),
    min_size=1,
)
JOBS = st.builds(
    Job,
    prompts=PROMPTS,
    model=TEXTS,
    reward=st.sampled_from([None, "clip", {"image-reward": 0.9, "clip": 0.1}]),
    metrics=st.sampled_from([None, [], ["brightness"]]),
    methods=st.sampled_from([["lidar"], ["vanilla", "best-of-4@10"], ["lidar:scale=3.0"]]),
    settings=st.fixed_dictionaries(
        {}, optional={"n": st.integers(1, 99), "window": st.just((1.0, 0.5)), "lookahead": st.just("dpm:4")}
    ),
    images=st.integers(1, 64),
    seeds=st.lists(st.integers(), min_size=1, max_size=1),
    call=st.dictionaries(st.text(), JSON, max_size=3),
    dtype=st.sampled_from(["float32", "auto"]),
    fast=st.sampled_from([None, "overlap,preview"]),
    batch_size=st.integers(0, 64),
)


@given(JOBS)
def test_is_json_both_ways(job):
    told = json.dumps(job.to_json(), allow_nan=False)
    assert Job.from_json(told) == Job.from_json(json.loads(told)) == job
    assert json.dumps(Job.from_json(told).to_json()) == told


@pytest.mark.parametrize("name", ["steered-N@10:islands=3", "steered-N:islands=48", "best-of-N@10", "dts-N"])
def test_takes_a_name_whose_number_a_budget_sets(name):
    assert Job(task="compare", prompts=["a cat"], methods=[name], budget="240").methods == (name,)


def test_of_a_file_names_its_prompts_beside_it(tmp_path):
    (tmp_path / "p.txt").write_text("a cat\na dog\n")
    (tmp_path / "job.json").write_text('{"prompts": "p.txt", "images": 2}')
    job = Job.read(tmp_path / "job.json")
    assert (job.texts(), job.images) == (["a cat", "a dog"], 2)
    assert job.to_json()["prompts"] == ["a cat", "a dog"]


def test_knows_what_a_prompt_asks_for():
    job = Job(prompts=["a photo of a dog", {"prompt": "mine", "include": [], "tag": "t"}, "something else"])
    assert job.line(0)["include"] == [{"class": "dog", "count": 1}]
    assert job.lines()[1:] == [{"prompt": "mine", "include": [], "tag": "t"}, {"prompt": "something else"}]


WRONG = [
    ({}, "a Job needs prompts"),
    ({"prompts": []}, "at least one prompt"),
    ({"prompts": None}, "prompts must be a list of texts"),
    ({"prompts": [3]}, "a prompt must be a text, or an object with a prompt, got 3"),
    ({"prompts": [{"text": "a cat"}]}, "a prompt must be a text that is not empty, got null"),
    ({"prompts": ["x" * 10_000_000]}, "has 10000000 characters"),
    ({"prompts": [{"prompt": "a", "id": 1}, {"prompt": "b", "id": 1}]}, "two prompts have the id 1: 'a' and 'b'"),
    ({"prompts": [{"prompt": "a", "id": [1]}]}, "an id must be a text or a whole number"),
    ({"promts": ["a"]}, "no field 'promts'; did you mean 'prompts'"),
    ({"images": 0}, "images must be at least 1, got 0"),
    ({"images": "4"}, "images must be int, got '4'"),
    ({"images": True}, "images must be int, got True"),
    ({"batch_size": -1}, "batch_size must be at least 0"),
    ({"task": "draw"}, "task must be 'generate' or 'compare' or 'look', got 'draw'"),
    ({"methods": ["steerd-4"]}, "unknown method 'steerd-4'; did you mean 'steered-N'"),
    ({"methods": []}, "methods must be different names"),
    ({"methods": "lidar"}, "methods must be"),
    ({"methods": ["lidar", "fk"]}, "generate draws by one method"),
    ({"methods": ["best-of-N"]}, "best-of-N needs a number for its N"),
    ({"methods": ["lidar:scala=3"]}, "scala"),
    ({"task": "look", "methods": ["fk"]}, "look draws banks by lidar alone"),
    ({"reward": "glyf"}, "did you mean 'glyph'"),
    ({"reward": {}}, "reward must name at least one"),
    ({"reward": {"clip": "much"}}, "reward must be str or dict[str, float] or None, got {'clip': 'much'}"),
    ({"reward": {"clip": 1e999}}, "the weight of 'clip' must be a finite number, got inf"),
    ({"reward": 3}, "reward must be"),
    ({"metrics": ["hspv2"]}, "did you mean 'hpsv2'"),
    ({"settings": {"scala": 3}}, "unknown setting 'scala'; did you mean 'scale'"),
    ({"settings": {"source": "x"}}, "unknown setting 'source'"),
    ({"settings": {"n": 0}}, "n must be at least 1, got 0"),
    ({"settings": {"n": "4"}}, "n must be int, got '4'"),
    ({"settings": {"window": [0.2, 1.0]}}, "window must be"),
    ({"settings": {"lookahead": "dmp:5"}}, "unknown solver 'dmp:5'"),
    ({"seeds": []}, "seeds must be different whole numbers"),
    ({"seeds": [1, 2]}, "generate takes one seed"),
    ({"seeds": [1.5]}, "seeds must be"),
    ({"dtype": "int8"}, "--dtype must be"),
    ({"fast": "warp"}, "--fast knows"),
    ({"scheduler": "Euler"}, "names no scheduler"),
    ({"preset": "paper"}, "no preset 'paper'"),
    ({"call": {"height": float("nan")}}, "call must hold only JSON values"),
    ({"budget": "480"}, "a budget belongs to compare"),
    ({"task": "compare", "budget": "much"}, "--budget takes network evaluations"),
    ({"task": "compare", "banks": ["b"]}, "banks guide the method lidar of generate alone"),
]


@pytest.mark.parametrize(("fields", "message"), WRONG)
def test_that_cannot_be_drawn_is_refused_in_one_line(fields, message):
    given = fields if {"prompts", "promts"} & set(fields) or not fields else {"prompts": ["a cat"], **fields}
    with pytest.raises(ValueError, match=r".") as refused:
        Job.from_json(given)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 600


@pytest.mark.parametrize("text", ["", "[]", "3", "{", "[" * 100_000, '{"prompts": ["a"], "n": 1}'])
def test_that_is_no_job_is_refused(text, tmp_path):
    with pytest.raises(ValueError, match="Job"):
        Job.from_json(text)
    (tmp_path / "job.json").write_text(text)
    with pytest.raises(ValueError, match=r"job\.json"):
        Job.read(tmp_path / "job.json")
