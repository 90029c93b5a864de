"""GenEval's captions and rules, against hand-worked cases and, where it is given, GenEval's own file."""

import itertools
import json
import os

import pytest
import torch

from lidar_sampling._geneval import (
    CLASSES,
    HARD_TAGS,
    Detection,
    caption,
    parse,
    read_requirements,
    relative_position,
    verdict,
)
from lidar_sampling.glyph import (
    Judge,
    generate_hard_prompts,
    generate_prompts,
    held_out_pairs,
    prompts,
    read_metadata,
)
from lidar_sampling.rewards import check_prompts


def found(label, x=0.0, y=0.0, *, size=10.0, score=0.95, color=None):
    return Detection(label, score, (x, y, x + size, y + size), color)


def wants(prompt):
    metadata = parse(prompt)
    assert metadata is not None
    return metadata


DOG, CAT = found("dog", 0, 0), found("cat", 50, 0)

CASES = [
    # objects
    ("a photo of a dog", [DOG], True),
    ("a photo of a dog", [CAT], False),
    ("a photo of a dog", [], False),
    ("a photo of a dog", [DOG, found("dog", 40)], True),  # more than asked is right
    ("a photo of a dog", [found("dog", score=0.3)], False),  # the threshold itself is not above it
    ("a photo of a dog", [found("dog", score=0.31)], True),
    ("a photo of a dog and a cat", [DOG, CAT], True),
    ("a photo of a dog and a cat", [DOG], False),
    # counting: at least the number, and not one more; only confident detections count
    ("a photo of two dogs", [DOG, found("dog", 40)], True),
    ("a photo of two dogs", [DOG], False),
    ("a photo of two dogs", [DOG, found("dog", 40), found("dog", 80)], False),
    ("a photo of two dogs", [DOG, found("dog", 40), found("dog", 80, score=0.8)], True),
    ("a photo of two dogs", [DOG, found("dog", 40, score=0.8)], False),
    ("a photo of two dogs", [DOG, found("dog", 40), CAT], True),
    # colours: as many as asked among the best detections
    ("a photo of a red dog", [found("dog", color="red")], True),
    ("a photo of a red dog", [found("dog", color="blue")], False),
    ("a photo of a red dog", [found("dog", color="blue"), found("dog", 40, color="red", score=0.9)], False),
    ("a photo of a red dog", [found("dog", color="red"), found("dog", 40, color="blue", score=0.9)], True),
    (
        "a photo of a red dog and a blue cat",
        [found("dog", color="red"), found("cat", 40, color="blue")],
        True,
    ),
    (
        "a photo of a red dog and a blue cat",
        [found("dog", color="blue"), found("cat", 40, color="red")],
        False,
    ),
    # position: of the first object relative to the second
    ("a photo of a dog left of a cat", [DOG, CAT], True),
    ("a photo of a dog right of a cat", [DOG, CAT], False),
    ("a photo of a cat right of a dog", [DOG, CAT], True),
    ("a photo of a dog above a cat", [found("dog", 0, 0), found("cat", 0, 50)], True),
    ("a photo of a dog below a cat", [found("dog", 0, 0), found("cat", 0, 50)], False),
    ("a photo of a dog left of a cat", [DOG], False),
    ("a photo of a dog left of a cat", [CAT], False),
    ("a photo of a dog left of a cat", [DOG, found("cat", 2, 0)], False),  # inside the margin
    (
        "a photo of a dog left of a cat",
        [found("dog", 0, 0), found("cat", 50, 50)],
        True,
    ),  # a diagonal is both
    ("a photo of a dog above a cat", [found("dog", 0, 0), found("cat", 50, 50)], True),
    ("a photo of a dog left of a cat", [DOG, CAT, found("dog", 90, score=0.5)], True),  # only the best counts
    # the hard tags
    ("a photo of a red dog left of a blue cat", [found("dog", color="red"), found("cat", 40, color="blue")], True),
    ("a photo of a red dog left of a blue cat", [found("dog", color="red"), found("cat", 40, color="red")], False),
    ("a photo of a red dog right of a blue cat", [found("dog", color="red"), found("cat", 40, color="blue")], False),
    ("a photo of two dogs and a cat", [DOG, found("dog", 40), CAT], True),
    ("a photo of two dogs and a cat", [DOG, CAT], False),
    ("a photo of two dogs and a cat", [DOG, found("dog", 40), CAT, found("cat", 80)], False),  # a cat too many
    ("a photo of a dog and a cat and a cup", [DOG, CAT, found("cup", 80)], True),
    ("a photo of a dog and a cat and a cup", [DOG, CAT], False),
    ("a photo of a dog left of a cat", [found("dog", 90), found("dog", 0, score=0.5), CAT], False),
]


@pytest.mark.parametrize(("prompt", "detections", "correct"), CASES)
def test_verdicts(prompt, detections, correct):
    assert verdict(detections, wants(prompt)) is correct
    assert verdict(detections[::-1], wants(prompt)) is correct


@pytest.mark.parametrize(
    ("a", "b", "relations"),
    [
        ((0, 0, 10, 10), (0, 0, 10, 10), set()),
        ((0, 0, 10, 10), (2, 0, 12, 10), set()),  # offset 2 = 0.1 (10 + 10): nothing beyond the margin
        ((0, 0, 10, 10), (4, 0, 14, 10), set()),  # beyond by 2 of 4: exactly one half is not more
        ((0, 0, 10, 10), (5, 0, 15, 10), {"left of"}),  # beyond by 3 of 5
        ((5, 0, 15, 10), (0, 0, 10, 10), {"right of"}),
        ((0, 0, 10, 10), (0, 20, 10, 30), {"above"}),
        ((0, 20, 10, 30), (0, 0, 10, 10), {"below"}),
        ((0, 0, 10, 10), (30, 30, 40, 40), {"left of", "above"}),
        ((0, 0, 10, 10), (30, 10, 40, 20), {"left of"}),  # 8 of 31.6 downwards
    ],
)
def test_relative_position(a, b, relations):
    assert relative_position(a, b) == relations


def test_captions_and_metadata_agree_both_ways():
    for metadata in [*prompts(), *prompts("hard")]:
        assert parse(metadata["prompt"]) == metadata
        assert caption(metadata) == metadata["prompt"]


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "a dog",
        "a photo of a unicorn",
        "a photo of five dogs",
        "a photo of a dog near a cat",
        "a photo of dogs",
        "a photo of two dogs left of a cat",
        "a photo of a red dog and two cats",
        "a photo of a dog and a cat and a red cup",
        "a photo of a dog and a cat left of a cup",
        "a photo of a dog and a cat and a cup and a bed",
    ],
)
def test_other_prompts_have_no_metadata(prompt):
    assert parse(prompt) is None


def test_the_shipped_prompts_are_what_the_generator_wrote():
    shipped = prompts()
    assert shipped == generate_prompts()
    sizes = [sum(m["tag"] == tag for m in shipped) for tag in dict.fromkeys(m["tag"] for m in shipped)]
    assert sizes == [80, 99, 80, 94, 100, 100]
    assert len({m["prompt"] for m in shipped}) == 553
    assert generate_prompts(1) != shipped


def test_the_hard_prompts_are_what_their_generator_wrote():
    shipped = prompts("hard")
    assert shipped == generate_hard_prompts()
    assert [sum(m["tag"] == tag for m in shipped) for tag in HARD_TAGS] == [100, 50, 50]
    assert len({m["prompt"] for m in shipped}) == 200
    assert generate_hard_prompts(1) != shipped
    assert all(sum(o["count"] for o in m["include"]) <= 4 for m in shipped)
    with pytest.raises(ValueError, match="split must be one of geneval, hard, got 'harder'"):
        prompts("harder")


def test_two_object_prompts_name_only_pairs_that_the_model_never_saw():
    held_out = set(map(frozenset, held_out_pairs()))
    pairs = [frozenset(o["class"] for o in m["include"]) for m in prompts() if len(m["include"]) == 2]
    assert len(pairs) == 299
    assert set(pairs) <= held_out


def test_the_classes_are_those_of_the_detector():
    from lidar_sampling.glyph import DATA, Detector

    assert Detector.from_pretrained(DATA / "detector").classes == CLASSES
    assert tuple(json.loads((DATA / "classes.json").read_text())) == CLASSES


def test_a_file_that_is_not_metadata_is_named(tmp_path):
    path = tmp_path / "m.jsonl"
    for text in ('{"prompt": "x"}\nno json', '{"prompt": "x"}\n{"tag": "colors"}', '{"prompt": "x"}\n[1]'):
        path.write_text(text)
        with pytest.raises(ValueError, match="line 2: expected a JSON object"):
            read_metadata(path)


@pytest.mark.skipif("GENEVAL_METADATA" not in os.environ, reason="GENEVAL_METADATA does not name GenEval's file")
def test_genevals_own_file_is_parsed_exactly():
    for metadata in read_metadata(os.environ["GENEVAL_METADATA"]):
        assert parse(metadata["prompt"]) == metadata
        assert read_requirements(metadata) == metadata


DOG_LINE = {"class": "dog", "count": 1}


def near(position):
    return {"tag": "mine", "include": [DOG_LINE, {"class": "cat", "count": 1, "position": position}]}


def dogs(**changes):
    return {"tag": "mine", "include": [{**DOG_LINE, **changes}]}


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (near(["on top of", 0]), "unknown relation 'on top of' .*; known are left of, right of, above, below"),
        (near(["LEFT OF", 0]), "unknown relation 'LEFT OF'"),
        (near([["left of"], 0]), r"unknown relation \['left of'\]"),
        (near(["left of", 5]), r"the position of 'cat' .* an earlier object of include by its index \(0\), got 5"),
        (near(["left of", 1]), "got 1"),  # itself
        (near(["left of", -1]), "got -1"),  # Python would count from the end
        (near(["left of", True]), "got True"),
        (near(["left of", "0"]), "got '0'"),
        (near(["left of", 0.0]), "got 0.0"),
        (near(["left of", None]), "got None"),
        (
            near("left of"),
            r"a position .* must be \[relation, index of an earlier object of include\], got 'left of'",
        ),
        (near(["left of"]), r"got \['left of'\]"),
        (near(["left of", 0, 1]), r"got \['left of', 0, 1\]"),
        (near(None), "got None"),
        (dogs(position=["left of", 0]), "none, for the object is the first"),
        (dogs(count="2"), "the count of 'dog' in GenEval metadata must be a positive integer, got '2'"),
        (dogs(count=1.0), "got 1.0"),
        (dogs(count=True), "got True"),
        (dogs(count=0), "got 0"),
        (dogs(count=-1), "got -1"),
        (dogs(count=None), "got None"),
        (dogs(colour="red"), "unknown 'colour' in include of GenEval metadata; did you mean 'color'"),
        (dogs(color=None), "unknown color None"),
        (dogs(color=["red"]), r"unknown color \['red'\]"),
        ({"tag": "mine", "include": [{"class": "dog"}]}, "in include of GenEval metadata must have a count"),
        ({"tag": "mine", "include": [{"count": 1}]}, "must have a class"),
        ({"tag": "mine", "include": ["dog"]}, "must hold objects with a class and a count, got 'dog'"),
        (
            {"tag": "mine", "include": None, "prompt": "a photo of a dog"},
            "include .* must be a list of objects, got None",
        ),
        ({"tag": "mine", "include": DOG_LINE}, "include .* must be a list of objects"),
        ({"tag": "mine", "include": "dog"}, "got 'dog'"),
        ({"tag": "mine", "include": [DOG_LINE], "exclude": None}, "exclude of GenEval metadata must be a list"),
        ({"tag": "mine", "exclude": [{"class": "dog"}]}, "in exclude of GenEval metadata must have a count"),
        ({"tag": "mine", "exclude": [{**DOG_LINE, "count": "1"}]}, "positive integer, got '1'"),
        (
            {"tag": "mine", "exclude": [{**DOG_LINE, "color": "red"}]},
            "unknown 'color' in exclude .*; known are class, count",
        ),
        ({"tag": None, "include": [DOG_LINE]}, "the tag of GenEval metadata must be a string, got None"),
        ({"tag": 3, "prompt": "a photo of a dog"}, "must be a string, got 3"),
        ({"include": [DOG_LINE], "prompt": "a dog"}, "must have a tag"),
        ({}, "must have a tag"),
        ({"tag": "mine", "prompt": None}, "the prompt of GenEval metadata must be a string, got None"),
        (3, "expected a prompt or GenEval metadata, got 3"),
    ],
)
def test_metadata_that_cannot_hold_is_refused_before_anything_is_judged(metadata, message):
    with pytest.raises(ValueError, match=message):
        read_requirements(metadata)


def test_metadata_that_can_hold():
    for metadata in [*prompts(), *prompts("hard"), near(["left of", 0]), near(("above", 0))]:
        assert read_requirements(metadata) == metadata
    assert read_requirements({"prompt": "a photo of a dog", "note": "mine"}) == read_requirements("a photo of a dog")
    assert read_requirements({"prompt": "an oil painting"}) is None


def test_judges_check_metadata_and_read_it():
    from lidar_sampling.rewards.geneval import GenEvalJudge

    for judge in (Judge(), GenEvalJudge(None, None)):
        assert judge.reads_metadata
        check_prompts(judge, [*prompts("hard"), "an oil painting", {"prompt": "an oil painting"}])
        with pytest.raises(ValueError, match="reward 'geneval' cannot read the prompt 'my dogs': the count of 'dog'"):
            check_prompts(judge, [{**dogs(count="2"), "prompt": "my dogs"}])
    with pytest.raises(ValueError, match="same length, got 1 and 2"):
        Judge()(images=torch.zeros(1, 3, 128, 128), prompts=["a photo of a dog"] * 2)


CAT_LINE = {"class": "cat", "count": 1}


@pytest.mark.parametrize(
    ("include", "exclude", "message"),
    [
        ([{**DOG_LINE, "count": 2}], [{**DOG_LINE, "count": 2}], "includes 2 of 'dog' and excludes 2 or more"),
        ([{**DOG_LINE, "count": 2}], [DOG_LINE], "includes 2 of 'dog' and excludes 1 or more"),
        ([DOG_LINE, {**DOG_LINE, "position": ["left of", 0]}], [], "places 'dog' relative to 'dog'"),
        ([{**DOG_LINE, "color": "red"}, {**DOG_LINE, "color": "blue", "count": 2}], [], "'dog' in red and in blue"),
        (
            [DOG_LINE, {**CAT_LINE, "position": ["left of", 0]}, {**CAT_LINE, "position": ["right of", 0]}],
            [],
            "places 'cat' left of 'dog' and 'dog' left of 'cat'|places 'dog' left of 'cat' and 'cat' left of 'dog'",
        ),
        ([DOG_LINE, {**CAT_LINE, "position": ["above", 0]}, {**DOG_LINE, "position": ["above", 1]}], [], "above"),
    ],
)
def test_metadata_that_no_picture_can_meet_is_refused(include, exclude, message):
    metadata = {"tag": "mine", "include": include, "exclude": exclude}
    with pytest.raises(ValueError, match=f"no picture can be right by this GenEval metadata: it .*({message})"):
        read_requirements(metadata)
    boxes = ((0, 0, 9, 9), (50, 0, 59, 9), (0, 50, 9, 59), (50, 50, 59, 59))
    for colors in itertools.product(("red", "blue"), repeat=2):
        for placed in itertools.permutations(boxes, 3):
            found = [
                Detection(name, score, box, color)
                for name, score, box, color in zip(
                    ("dog", "dog", "cat"), (0.95, 0.94, 0.95), placed, (*colors, None), strict=True
                )
            ]
            assert not verdict(found, metadata)


def test_metadata_that_some_picture_meets_stays():
    for include, exclude in (
        ([{**DOG_LINE, "count": 2}], [{**DOG_LINE, "count": 3}]),
        ([{**DOG_LINE, "color": "red"}, {**DOG_LINE, "count": 3}], []),
        ([DOG_LINE, {**CAT_LINE, "position": ["left of", 0]}, {**CAT_LINE, "position": ["above", 0]}], []),
    ):
        metadata = {"tag": "mine", "include": include, "exclude": exclude}
        assert read_requirements(metadata) == metadata


@pytest.mark.parametrize(
    "prompt",
    [
        "a photo of a dog left of a dog",
        "a photo of a red dog and a blue dog",
        "a photo of two dogs and three dogs",
    ],
)
def test_a_text_that_the_rules_cannot_judge_has_no_metadata(prompt):
    assert read_requirements(prompt) is None
