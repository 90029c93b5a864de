"""GenEval's captions and rules, against hand-worked cases and, where it is given, GenEval's own file."""

import json
import os

import pytest

from lidar_sampling._geneval import CLASSES, HARD_TAGS, Detection, caption, parse, relative_position, verdict
from lidar_sampling.glyph import generate_hard_prompts, generate_prompts, prompts, read_metadata


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
    from lidar_sampling.glyph import DATA

    held_out = {frozenset(pair) for pair in json.loads((DATA / "heldout_pairs.json").read_text())}
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
