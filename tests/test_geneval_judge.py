"""GenEval's judge: its arithmetic against hand-worked cases, numpy and OpenCV; the whole on tiny weights."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pictures import CLIP_MEAN, CLIP_STD, by_pillow, pictures
from PIL import Image
from test_cli import failure, lidar
from transformers import CLIPModel, CLIPTokenizer, Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

from lidar_sampling import LiDAR, rewards, testing
from lidar_sampling._geneval import CLASSES, COLORS, read_requirements, relative_position
from lidar_sampling.glyph import DATA
from lidar_sampling.rewards import geneval
from lidar_sampling.rewards._colors import ColorNames, cut_out
from lidar_sampling.rewards._mask2former import MEAN, STD, Instances, Mask2Former, boxes, fit, instances
from lidar_sampling.rewards._weights import CLIP_L
from lidar_sampling.rewards.geneval import GenEvalJudge

__all__ = ["lidar"]  # a fixture

# From logits to objects


def logit(p):
    return math.log(p / (1 - p))


def objects_of(probabilities, masks, most=100):
    """Return objects without resizing, from probabilities (Q, K + 1) and masks as P(pixel), (Q, h, w)."""
    masks = torch.tensor(masks).logit()
    size = (masks.shape[1], masks.shape[2])
    logits = torch.tensor(probabilities).log() + 7  # softmax ignores a shift
    return instances(logits, masks, padded=size, unpadded=size, original=size, most=most)


SURE = [[0.8, 0.8], [0.8, 0.8]]


@pytest.mark.parametrize(
    ("probabilities", "masks", "expected"),
    [
        ([[0.6, 0.1, 0.3]], [SURE], [(0, 0.48), (1, 0.08)]),  # a query gives an object of every class
        ([[0.1, 0.6, 0.3]], [SURE], [(1, 0.48), (0, 0.08)]),
        ([[0.04, 0.06, 0.9]], [SURE], [(1, 0.048), (0, 0.032)]),  # no object wins, and is dropped
        ([[0.5, 0.25, 0.25]], [[[0.7, 0.9], [0.7, 0.9]]], [(0, 0.4), (1, 0.2)]),  # mean .8
        ([[0.5, 0.25, 0.25]], [[[0.9, 0.1], [0.7, 0.3]]], [(0, 0.4), (1, 0.2)]),  # of what is inside alone
        ([[0.5, 0.25, 0.25]], [[[0.5, 0.8], [0.5, 0.5]]], [(0, 0.4), (1, 0.2)]),  # a logit of 0 is outside
        ([[0.5, 0.25, 0.25]], [[[0.5, 0.5], [0.5, 0.5]]], [(0, 0.0), (1, 0.0)]),
        ([[0.5, 0.25, 0.25]], [[[0.1, 0.2], [0.3, 0.4]]], [(0, 0.0), (1, 0.0)]),  # nothing inside
        # likeliest class first, not best score
        ([[0.9, 0.1], [0.8, 0.2]], [[[0.6, 0.1]], [[0.9, 0.9]]], [(0, 0.54), (0, 0.72)]),
        ([[0.5, 0.4, 0.1], [0.45, 0.05, 0.5]], [SURE, SURE], [(0, 0.4), (0, 0.36), (1, 0.32), (1, 0.04)]),
    ],
)
def test_scores(probabilities, masks, expected):
    found = objects_of(probabilities, masks)
    assert found.labels.tolist() == [label for label, _ in expected]
    assert found.scores.tolist() == pytest.approx([score for _, score in expected], abs=2e-6)


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (1, [0.5]),
        (2, [0.5, 0.45]),  # one of each query
        (3, [0.5, 0.45, 0.4]),  # and the second class of the first
        (4, [0.5, 0.45, 0.4, 0.05]),
        (9, [0.5, 0.45, 0.4, 0.05]),  # no more than there are
    ],
)
def test_the_likeliest_pairs_stay_whatever_their_masks(most, expected):
    worse, better = [[0.6, 0.1]], [[0.95, 0.95]]
    found = objects_of([[0.5, 0.4, 0.1], [0.45, 0.05, 0.5]], [worse, better], most)
    sure = [0.95 if p in (0.45, 0.05) else 0.6 for p in expected]
    assert found.scores.tolist() == pytest.approx([p * s for p, s in zip(expected, sure, strict=True)], abs=2e-6)
    assert found.boxes[:, 2].tolist() == [2 if p in (0.45, 0.05) else 1 for p in expected]


def test_of_ties_exactly_a_hundred_stay():
    found = objects_of([[1 / 81] * 81] * 2, [SURE, SURE])
    assert found.scores.tolist() == pytest.approx([0.8 / 81] * 100)


@pytest.mark.parametrize(
    ("pixels", "box"),
    [
        ([(0, 0)], [0, 0, 1, 1]),
        ([(3, 4)], [4, 3, 5, 4]),
        ([(3, 0)], [0, 3, 1, 4]),
        ([(1, 1), (1, 2)], [1, 1, 3, 2]),
        ([(1, 1), (2, 1)], [1, 1, 2, 3]),
        ([(0, 4), (3, 0)], [0, 0, 5, 4]),  # two parts, one box
        ([(1, 3), (2, 1), (3, 2)], [1, 1, 4, 4]),
        ([], [0, 0, 0, 0]),
    ],
)
def test_boxes(pixels, box):
    masks = torch.zeros(2, 4, 5, dtype=torch.bool)
    for row, column in pixels:
        masks[1, row, column] = True
    assert boxes(masks).tolist() == [[0, 0, 0, 0], box]


# Columns [left, right] become, over eight, left * (1, 1, 7/8, 5/8, 3/8, 1/8, 0, 0) + right * the mirror image.
@pytest.mark.parametrize(
    ("left", "right", "padded", "unpadded", "original", "box"),
    [
        (1.0, -1.0, (8, 8), (8, 8), (8, 8), [0, 0, 4, 8]),
        (-1.0, 1.0, (8, 8), (8, 8), (8, 8), [4, 0, 8, 8]),
        (3.0, -1.0, (8, 8), (8, 8), (8, 8), [0, 0, 5, 8]),  # 3 * 3/8 > 5/8, 3 * 1/8 < 7/8
        (1.0, -1.0, (8, 8), (8, 4), (8, 4), [0, 0, 4, 8]),  # the padding is cut off, not squeezed in
        (1.0, -1.0, (8, 8), (8, 4), (16, 8), [0, 0, 8, 16]),
        (-1.0, 1.0, (8, 8), (8, 4), (16, 8), [0, 0, 0, 0]),  # an object in the padding
        (1.0, -1.0, (8, 8), (4, 8), (4, 8), [0, 0, 4, 4]),
        (1.0, -1.0, (8, 8), (8, 8), (4, 16), [0, 0, 8, 4]),  # of another shape
        # (1, 1, .75, .25, -.25, -.75) of six columns, halved: (1, .5, -.5)
        (1.0, -1.0, (8, 8), (8, 6), (4, 3), [0, 0, 2, 4]),
    ],
)
def test_masks_come_back_to_the_picture(left, right, padded, unpadded, original, box):
    masks = torch.tensor([[[left, right]] * 2])
    found = instances(torch.tensor([[5.0, 0.0]]), masks, padded=padded, unpadded=unpadded, original=original)
    assert found.masks.shape == (1, *original)
    assert found.boxes.tolist() == [box]


def weights_of(old, new):
    """Return the matrix that resizes a line bilinearly, with half-pixel centres and the edge repeated."""
    matrix = np.zeros((new, old))
    for i in range(new):
        place = min(max((i + 0.5) * old / new - 0.5, 0), old - 1)
        matrix[i, int(place)] += 1 - place % 1
        matrix[i, min(int(place) + 1, old - 1)] += place % 1
    return matrix


def resized(mask, height, width):
    return weights_of(mask.shape[0], height) @ mask @ weights_of(mask.shape[1], width).T


def restated(class_logits, mask_logits, padded, unpadded, original, most=100):
    """Return the sorted rows (label, score, area, x1, y1, x2, y2), by loops in float64."""
    pairs, masks = [], []
    for q, logits in enumerate(class_logits.double().numpy()):
        weights = np.exp(logits - logits.max())
        pairs += [(weights[k] / weights.sum(), q, k) for k in range(len(logits) - 1)]
        mask = resized(mask_logits[q].double().numpy(), *padded)
        masks.append(resized(mask[: unpadded[0], : unpadded[1]], *original))
    rows = []
    for probability, q, k in sorted(pairs, reverse=True)[:most]:
        ys, xs = np.nonzero(masks[q] > 0)
        if len(xs) == 0:
            rows.append((k, 0.0, 0, 0, 0, 0, 0))
            continue
        sure = np.mean(1 / (1 + np.exp(-masks[q][ys, xs])))
        rows.append((k, probability * sure, len(xs), xs.min(), ys.min(), xs.max() + 1, ys.max() + 1))
    return np.array(sorted(rows))


def rows_of(found):
    columns = (found.labels, found.scores, found.masks.sum((1, 2)), *found.boxes.T)
    return np.array(sorted(zip(*(column.tolist() for column in columns), strict=True)))


@pytest.mark.parametrize(
    ("padded", "unpadded", "original"),
    [((32, 32), (32, 32), (32, 32)), ((32, 32), (32, 21), (50, 33)), ((32, 64), (20, 64), (10, 31))],
)
def test_objects_are_those_of_loops(padded, unpadded, original):
    generator = torch.Generator().manual_seed(0)
    class_logits = torch.randn(7, 6, generator=generator) * 2
    mask_logits = torch.randn(7, padded[0] // 4, padded[1] // 4, generator=generator) * 3
    mask_logits[3] = -mask_logits[3].abs()
    geometry = (padded, unpadded, original)
    found = instances(class_logits, mask_logits, most=20, **dict(zip(NAMES, geometry, strict=True)))
    expected = restated(class_logits, mask_logits, *geometry, most=20)
    assert len(expected) == 20
    assert (expected[:, 1] == 0).any()
    np.testing.assert_allclose(rows_of(found), expected, atol=2e-6)


NAMES = ("padded", "unpadded", "original")


@given(st.integers(0, 2**31))
def test_a_mirrored_picture_has_mirrored_boxes(seed):
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randn(3, 5, generator=generator)
    masks = torch.randn(3, 6, 9, generator=generator) - 1
    one, other = (instances(classes, m, **dict.fromkeys(NAMES, (6, 9))) for m in (masks, masks.flip(2)))
    assert torch.equal(one.masks.flip(2), other.masks)
    torch.testing.assert_close(one.scores, other.scores)
    mirrored = one.boxes[:, [2, 1, 0, 3]] * torch.tensor([-1, 1, -1, 1]) + torch.tensor([9, 0, 9, 0])
    whole = one.masks.any((1, 2))
    assert torch.equal(mirrored[whole], other.boxes[whole])
    assert (one.scores <= classes.softmax(1)[:, :-1].flatten().sort(descending=True)[0]).all()


# From a picture to the network's input


@pytest.mark.parametrize(
    ("given_size", "size", "padded"),
    [
        ((512, 512), (800, 800), (800, 800)),
        ((1024, 1024), (800, 800), (800, 800)),
        ((480, 640), (800, 1067), (800, 1088)),  # 640 / .6 = 1066.67
        ((640, 480), (1067, 800), (1088, 800)),
        ((256, 1024), (333, 1333), (352, 1344)),  # the longer side rules: 256 * 1333 / 1024 = 333.25
        ((768, 1344), (762, 1333), (768, 1344)),  # 761.71
        ((800, 1333), (800, 1333), (800, 1344)),
    ],
)
def test_sizes(given_size, size, padded):
    pixels, unpadded = fit(torch.full((3, *given_size), 0.2))
    assert unpadded == size
    assert pixels.shape == (1, 3, *padded)
    inside = pixels[0, :, : size[0], : size[1]]
    expected = (0.2 - torch.tensor(MEAN)) / torch.tensor(STD)
    torch.testing.assert_close(inside, expected.view(3, 1, 1).expand_as(inside))
    assert pixels.count_nonzero() == inside.numel()


@pytest.mark.parametrize("size", [(96, 96), (1000, 1100), (60, 250)])
def test_resizing_is_opencvs_to_a_grey_level(size):
    cv2 = pytest.importorskip("cv2")
    noise = torch.randint(256, (*size, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    pixels, (height, width) = fit(noise.movedim(2, 0) / 255)
    resized = cv2.resize(noise.numpy(), (width, height), interpolation=cv2.INTER_LINEAR)
    ours = pixels[0, :, :height, :width].movedim(0, 2) * torch.tensor(STD) + torch.tensor(MEAN)
    difference = (ours * 255 - torch.from_numpy(resized)).abs()
    assert difference.max() < 1.01
    assert (difference > 0.5).float().mean() < 0.15  # .13, on noise


# From objects to a verdict


def find(name, score=0.95, x=0, y=0, *, side=10, color=None):
    return name, score, (x, y, x + side, y + side), color


def seen(objects, height=200, width=200):
    """Return a picture of these objects as coloured squares on blue, and a detector that finds them."""
    image = torch.zeros(3, height, width)
    image[2] = 1
    masks = torch.zeros(len(objects), height, width, dtype=torch.bool)
    for mask, (_, _, (x1, y1, x2, y2), color) in zip(masks, objects, strict=True):
        mask[y1:y2, x1:x2] = True
        if color:
            image[:, mask] = torch.tensor(PAINTS[color])[:, None]
    found = Instances(
        torch.tensor([CLASSES.index(o[0]) for o in objects], dtype=torch.long),
        torch.tensor([o[1] for o in objects]),
        torch.tensor([o[2] for o in objects], dtype=torch.long).view(-1, 4),
        masks,
    )
    return image, lambda given_image: found


PAINTS = {"red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0), "white": (1.0, 1.0, 1.0)}


def nearest_paint(crops, name):
    """Return the paint nearest to a crop's mean, in place of CLIP."""
    means = [crop.mean((1, 2)) for crop in crops]
    return [min(PAINTS, key=lambda p: float((mean - torch.tensor(PAINTS[p])).norm())) for mean in means]


def judged(asks, objects, **settings):
    image, detector = seen(objects)
    return GenEvalJudge(detector, nearest_paint, **settings)(images=image[None], prompts=[asks]).item()


def wants(*include, tag="mine", exclude=()):
    keys = ("class", "count", "color", "position")
    lines = [{k: v for k, v in zip(keys, item, strict=False) if v is not None} for item in include]
    return {"tag": tag, "include": lines, "exclude": [dict(zip(keys, item, strict=False)) for item in exclude]}


def crowd(count, **options):
    return [find("dog", 0.99 - 0.001 * k, 11 * (k % 15), 11 * (k // 15), **options) for k in range(count)]


DOG, CAT = find("dog"), find("cat", x=100)
CHAIN = wants(("dog", 1), ("cat", 1, None, ["right of", 0]), ("cup", 1, None, ["below", 1]))

CASES = [
    ("a photo of a dog", [DOG], 1),
    ("a photo of a dog", [find("dog", 0.31)], 1),
    ("a photo of a dog", [find("dog", 0.29)], 0),
    ("a photo of a dog", [CAT], 0),
    ("a photo of a dog", [], 0),
    ("a photo of a dog and a cat", [DOG, CAT], 1),
    ("a photo of a dog and a cat", [DOG, find("cat", 0.2, 100)], 0),
    # one place, two classes: no suppression
    ("a photo of a dog and a cat", [DOG, find("cat", 0.5)], 1),
    # counting: at least, surer, and not one more
    ("a photo of two dogs", crowd(2), 1),
    ("a photo of two dogs", crowd(1), 0),
    ("a photo of two dogs", crowd(3), 0),
    ("a photo of two dogs", [*crowd(1), find("dog", 0.89, 50)], 0),
    ("a photo of two dogs", [*crowd(2), find("dog", 0.89, 50)], 1),
    ("a photo of two dogs", [*crowd(2), find("dog", 0.91, 50)], 0),
    ("a photo of two dogs", [find("dog", 0.95), find("dog", 0.94)], 1),  # in one place they are two
    (wants(("dog", 2)), crowd(3), 1),  # without an exclusion more is right
    (wants(("dog", 2), tag="counting"), crowd(3), 1),
    (wants(("dog", 2)), [*crowd(1), find("dog", 0.31, 50)], 1),  # of another tag .3 is enough
    (wants(("dog", 1), exclude=[("cat", 1)]), [DOG], 1),
    (wants(("dog", 1), exclude=[("cat", 1)]), [DOG, CAT], 0),
    (wants(("dog", 1), exclude=[("cat", 2)]), [DOG, CAT], 1),
    (wants(("dog", 1), exclude=[("cup", 1), ("cat", 1)]), [DOG, CAT], 0),  # any of them
    (wants(exclude=[("cat", 1)]), [DOG], 1),
    ({"tag": "x", "prompt": "a photo of a cat"}, [DOG], 0),  # what its prompt says
    # the first sixteen
    (wants(("dog", 16)), crowd(20), 1),
    (wants(("dog", 17)), crowd(20), 0),
    (wants(("dog", 1), exclude=[("dog", 17)]), crowd(20), 1),
    (wants(("dog", 1), exclude=[("dog", 16)]), crowd(20), 0),
    (wants(("dog", 16), ("cat", 1)), [*crowd(20), find("cat", 0.4, 190, 190)], 1),  # of each class
    # colours: of the surest objects, as many as asked, the picture around them blue
    ("a photo of a red dog", [find("dog", color="red")], 1),
    ("a photo of a white dog", [find("dog", color="red")], 0),
    ("a photo of a red dog", [find("dog", 0.9, color="green"), find("dog", 0.8, 50, color="red")], 0),
    ("a photo of a red dog", [find("dog", 0.8, color="green"), find("dog", 0.9, 50, color="red")], 1),
    ("a photo of a red dog", [find("cat", color="red"), find("dog", 0.9, 50, color="green")], 0),
    ("a photo of a red dog and a green cat", [find("dog", color="red"), find("cat", x=50, color="green")], 1),
    ("a photo of a green dog and a red cat", [find("dog", color="red"), find("cat", x=50, color="green")], 0),
    (wants(("dog", 2, "red")), crowd(2, color="red"), 1),
    (wants(("dog", 2, "red")), [find("dog", color="red"), find("dog", 0.9, 50, color="green")], 0),
    (wants(("dog", 2, "red")), crowd(1, color="red"), 0),
    # positions, which chain
    ("a photo of a dog left of a cat", [DOG, CAT], 1),
    ("a photo of a dog right of a cat", [DOG, CAT], 0),
    ("a photo of a dog above a cat", [DOG, find("cat", y=100)], 1),
    ("a photo of a dog left of a cat", [DOG], 0),
    ("a photo of a dog left of a cat", [DOG, find("cat", x=2)], 0),
    (CHAIN, [DOG, CAT, find("cup", x=100, y=100)], 1),
    (CHAIN, [DOG, CAT, find("cup", x=100)], 0),
    (CHAIN, [find("dog", x=180), CAT, find("cup", x=100, y=100)], 0),  # the cat is wrong, so the cup has no target
    (CHAIN, [CAT, find("cup", x=100, y=100)], 0),
    (wants(("dog", 2), ("cat", 1, None, ["right of", 0])), [*crowd(2), CAT], 1),  # of every dog
    (wants(("dog", 2), ("cat", 1, None, ["right of", 0])), [*crowd(1), find("dog", 0.9, 150), CAT], 0),
    (wants(("dog", 1, "red"), ("cat", 1, None, ["right of", 0])), [find("dog", color="green"), CAT], 0),
]


@pytest.mark.parametrize(("asks", "objects", "verdict"), CASES)
def test_verdicts(asks, objects, verdict):
    assert judged(asks, objects) == verdict
    assert judged(asks, objects[::-1]) == verdict


NOTHING = {"tag": "mine", "prompt": "a dog"}  # neither included nor excluded


@pytest.mark.parametrize("prompt", ["a dog", "a photo of five dogs", "a photo of a unicorn", "", NOTHING])
def test_other_prompts_have_no_verdict(prompt):
    assert math.isnan(judged(prompt, [DOG]))


@pytest.mark.parametrize(
    ("settings", "prompt", "objects", "verdict"),
    [
        ({"threshold": 0.5}, "a photo of a dog", [find("dog", 0.4)], 0),
        ({"threshold": 0.1}, "a photo of a dog", [find("dog", 0.2)], 1),
        ({"threshold": 0.1}, "a photo of two dogs", [*crowd(1), find("dog", 0.5, 50)], 0),
        ({"counting_threshold": 0.3}, "a photo of two dogs", [*crowd(1), find("dog", 0.5, 50)], 1),
        ({"max_objects": 2}, "a photo of two dogs", crowd(3), 1),
    ],
)
def test_settings(settings, prompt, objects, verdict):
    assert judged(prompt, objects, **settings) == verdict


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (wants(("dgo", 1)), "unknown class 'dgo' in GenEval metadata; did you mean 'dog'"),
        (wants(exclude=[("mouse", 1)]), "did you mean 'computer mouse'"),
        (wants(("dog", 1, "rde")), "unknown color 'rde' in GenEval metadata; did you mean 'red'"),
        ({"include": [{"class": "dog", "count": 1}]}, "must have a tag, got"),
        (wants(("qqqqq", 1)), "unknown class 'qqqqq' in GenEval metadata$"),
    ],
)
def test_metadata_that_cannot_be_judged(metadata, message):
    with pytest.raises(ValueError, match=message):
        read_requirements(metadata)


def test_images_and_prompts_are_as_many():
    image, detector = seen([DOG])
    with pytest.raises(ValueError, match="must have the same length, got 1 and 2"):
        GenEvalJudge(detector, nearest_paint)(images=image[None], prompts=["a photo of a dog"] * 2)


BOX = st.tuples(*[st.integers(0, 60)] * 2, *[st.integers(1, 40)] * 2).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


@given(BOX, BOX, st.integers(-50, 50))
def test_relations_are_antisymmetric_and_know_no_place(a, b, shift):
    relations = relative_position(a, b)
    assert relative_position(b, a) == {OPPOSITE[r] for r in relations}
    assert relative_position(*([v + shift for v in box] for box in (a, b))) == relations
    assert not any({r, OPPOSITE[r]} <= relations for r in relations)


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        (wants(("dog", 1)), [("dog", 0.95, None), ("dog", 0.91, None), ("dog", 0.4, None)]),
        (wants(("dog", 1), tag="counting"), [("dog", 0.95, None), ("dog", 0.91, None)]),
        (wants(("dog", 2, "red")), [("dog", 0.95, "green"), ("dog", 0.91, "red"), ("dog", 0.4, None)]),
        (wants(("cup", 1), exclude=[("cat", 1)]), [("cup", 0.7, None), ("cat", 0.6, None)]),
        (wants(("dog", 1), ("dog", 1, "red"), tag="counting"), [("dog", 0.95, "green"), ("dog", 0.91, None)]),
        (wants(("bus", 1)), []),
    ],
)
def test_what_decides(metadata, expected):
    dogs = [
        find("dog", s, 20 * k, color=c) for k, (s, c) in enumerate([(0.4, "red"), (0.95, "green"), (0.91, "red")])
    ]
    image, detector = seen([*dogs, find("cat", 0.6, 100), find("cup", 0.7, y=100), find("dog", 0.2, 150)])
    found = GenEvalJudge(detector, nearest_paint).detections(image, metadata)
    assert [(d.label, round(d.score, 4), d.color) for d in found] == expected
    assert all(d.box[2] - d.box[0] == 10 for d in found)


# Colours


@pytest.mark.parametrize(
    ("box", "inside", "expected"),
    [
        (
            (1, 0, 3, 2),
            [(0, 1), (1, 2)],
            [[1.0, 0.6], [0.6, 6.0]],
        ),  # (row, column); pixels count 0, 1, 2, ... by rows
        ((0, 0, 1, 1), [(0, 0)], [[0.0]]),
        ((2, 1, 4, 2), [(1, 2), (1, 3)], [[6.0, 7.0]]),
    ],
)
def test_crops_are_grey_around_the_object(box, inside, expected):
    image = torch.arange(8.0).view(1, 2, 4).expand(3, 2, 4)
    mask = torch.zeros(2, 4, dtype=torch.bool)
    for row, column in inside:
        mask[row, column] = True
    crop = cut_out(image, mask, torch.tensor(box))
    torch.testing.assert_close(crop, torch.tensor(expected).expand(3, -1, -1))


class Towers:
    """A CLIP of two dimensions: its text features are given, and its image features are always the same."""

    def __init__(self, read, view):
        self.read, self.view, self.texts = read, torch.tensor([view]), []

    def text(self, texts):
        self.texts.append(texts)
        return torch.tensor([self.read(text) for text in texts])

    def image(self, images):
        return self.view


E1, E2 = (1.0, 0.0), (0.0, 1.0)


@pytest.mark.parametrize(
    ("view", "color"),
    [
        # red reads (1, 0); pink (1, 0), (0, 1), (0, 1), and the mean (1/3, 2/3) as a unit is (.45, .89)
        ((1.0, 0.0), "red"),
        ((0.0, 1.0), "pink"),
        ((0.8, 0.6), "pink"),  # .8 and .89; were the mean no unit, .67
        ((0.95, 0.31), "red"),  # .95 and .70
    ],
)
def test_a_color_is_the_unit_mean_of_its_templates(view, color):
    def read(text):
        color = text.split()[4].removesuffix("-colored")
        if color == "red":
            return E1
        if color == "pink":
            return E1 if text == "a photo of a pink dog" else E2
        return (-1.0, 0.0) if view[0] > 0 else (0.0, -1.0)

    assert ColorNames(Towers(read, view))([torch.zeros(3, 1, 1)], "dog") == [color]


def test_templates_are_geneval_s_and_read_once_a_class():
    towers = Towers(lambda text: E1, E1)
    colors = ColorNames(towers)
    assert colors([], "cat") == []
    for _ in range(2):
        colors([torch.zeros(3, 1, 1)] * 2, "tv remote")
    (texts,) = towers.texts
    assert texts[:3] == [
        "a photo of a red tv remote",
        "a photo of a red-colored tv remote",
        "a photo of a red object",
    ]
    assert [text.split()[4] for text in texts[2::3]] == list(COLORS)
    assert len(texts) == 30


@pytest.mark.parametrize(
    ("prompt", "calls"),
    [
        ("a photo of a dog", []),
        ("a photo of two dogs", []),
        ("a photo of a red dog", [("dog", 1)]),
        ("a photo of a red dog and a cat", [("dog", 1)]),
        ("a photo of a red cup", []),  # it is not sure enough
        (wants(("dog", 2, "red"), ("dog", 1)), [("dog", 2)]),
    ],
)
def test_colors_are_named_where_asked_alone(prompt, calls):
    image, detector = seen([*crowd(3, color="red"), find("cat", x=150), find("cup", 0.29, 100, 100)])
    made = []

    def colors(crops, name):
        if crops:
            made.append((name, len(crops)))
        return nearest_paint(crops, name)

    GenEvalJudge(detector, colors)(images=image[None], prompts=[prompt])
    assert made == calls


# The whole, on tiny weights


def tiny_mask2former(**options):
    torch.manual_seed(0)
    backbone = SwinConfig(
        image_size=32,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 1, 1],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    narrow = dict.fromkeys(("feature_size", "mask_feature_size", "hidden_dim"), 32)
    config = Mask2FormerConfig(
        backbone_config=backbone,
        **narrow,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=6,
        **{"num_labels": 80, **options},
    )
    return Mask2FormerForUniversalSegmentation(config)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Return a tiny Mask2Former whose queries all see a dog, in parts of the picture."""
    path = tmp_path_factory.mktemp("mask2former")
    model = tiny_mask2former()
    model.class_predictor.bias.data[CLASSES.index("dog")] = 9.0
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def judge(weights):
    return GenEvalJudge.from_pretrained(weights, DATA / "reward-clip")


PICTURE = pictures(1, 90, 120)[0]


def test_the_detector_is_the_model_of_transformers_and_loops(weights):
    found = Mask2Former.load(weights, device="cpu")(PICTURE)
    pixels, size = fit(PICTURE)
    model = Mask2FormerForUniversalSegmentation.from_pretrained(weights).eval()
    with torch.no_grad():
        out = model(pixel_values=pixels)
    logits = out.class_queries_logits[0], out.masks_queries_logits[0]
    expected = restated(*logits, (800, 1088), (800, 1067), (90, 120))
    assert (pixels.shape[2:], size) == ((800, 1088), (800, 1067))
    assert found.masks.shape == (100, 90, 120)
    assert ((expected[:, 2] > 0.1 * 90 * 120) & (expected[:, 2] < 0.5 * 90 * 120)).all()
    np.testing.assert_allclose(rows_of(found), expected, atol=1e-5)


def test_the_judge_says_what_it_sees(judge):
    prompts = [
        "a photo of a dog",
        "a photo of a cat",
        "a photo of two dogs",
        "a dog",
        wants(("dog", 3)),
        wants(("dog", 7)),
        wants(("dog", 1), exclude=[("dog", 2)]),
    ]
    images = PICTURE.expand(len(prompts), 3, 90, 120)
    verdicts = judge(images=images, prompts=prompts)
    torch.testing.assert_close(verdicts, torch.tensor([1, 0, 0, math.nan, 1, 0, 0]), equal_nan=True)
    assert (judge.name, judge.differentiable) == ("geneval", False)
    scored = rewards.score(judge, images=images, prompts=prompts, batch_size=3, allow_nan=True)
    assert torch.equal(scored.nan_to_num(), verdicts.nan_to_num())


def test_settings_are_those_of_from_pretrained(weights):
    """Six dogs score .5. Two of them are considered, and count above .1; with other thresholds they do not."""
    settings = {"threshold": 0.9, "counting_threshold": 0.1, "max_objects": 2}
    judge = GenEvalJudge.from_pretrained(weights, DATA / "reward-clip", **settings)
    prompts = ["a photo of two dogs", "a photo of three dogs", "a photo of a dog"]
    assert judge(images=PICTURE.expand(3, 3, 90, 120), prompts=prompts).tolist() == [1, 0, 0]


def test_the_color_is_clips(judge):
    """Compared with CLIP of transformers on Pillow's crop: the verdict is 1 for one colour and 0 for nine."""
    (dog, *_) = judge.detections(PICTURE, wants(("dog", 1)))
    x1, y1, x2, y2 = map(int, dog.box)
    found = judge._detector(PICTURE)
    mask = found.masks[found.scores.argmax()]
    crop = torch.where(mask, (PICTURE * 255).round() / 255, torch.tensor(153 / 255))[None, :, y1:y2, x1:x2]
    scale = 128 / min(y2 - y1, x2 - x1)
    height, width = int((y2 - y1) * scale + 1e-6), int((x2 - x1) * scale + 1e-6)
    top, left = (height - 128) // 2, (width - 128) // 2
    crop = by_pillow(crop, height, width)[:, :, top : top + 128, left : left + 128]
    model = CLIPModel.from_pretrained(DATA / "reward-clip", dtype=torch.float32).eval()
    tokens = CLIPTokenizer.from_pretrained(DATA / "reward-clip")
    likeness = {}
    with torch.no_grad():
        for color in COLORS:
            texts = [f"a photo of a {color} dog", f"a photo of a {color}-colored dog", f"a photo of a {color} object"]
            ids = tokens(texts, padding=True, return_tensors="pt")
            out = [model(**ids, pixel_values=(crop - CLIP_MEAN) / CLIP_STD)]
            mean = torch.nn.functional.normalize(out[0].text_embeds, dim=1).mean(0)
            likeness[color] = float(out[0].image_embeds[0] @ (mean / mean.norm()))
    first, second = sorted(likeness, key=likeness.get, reverse=True)[:2]
    assert likeness[first] - likeness[second] > 1e-3
    prompts = [f"a photo of {'an' if color == 'orange' else 'a'} {color} dog" for color in COLORS]
    verdicts = judge(images=PICTURE.expand(10, 3, 90, 120), prompts=prompts)
    assert verdicts.tolist() == [float(color == first) for color in COLORS]


def test_it_is_a_metric_by_name(weights, monkeypatch):
    loaded = []

    def load(source, **options):
        loaded.append(source)
        return real(DATA / "reward-clip", **options)

    real = geneval.Towers.load
    monkeypatch.setattr(geneval.Towers, "load", load)
    halved = rewards.load(f"geneval:{weights}", dtype=torch.bfloat16)  # in which transformers' Mask2Former gives NaN
    assert halved(images=PICTURE[None], prompts=["a photo of a dog"]).item() == 1
    sampler = LiDAR(
        testing.tiny_stable_diffusion(),
        reward="brightness",
        metrics=[f"geneval:{weights}"],
        n=2,
        steps=2,
        lookahead="dpm:2",
    )
    assert loaded == [CLIP_L] * 2
    result = sampler("a photo of a cat", images=2)
    assert result.rewards["geneval"].tolist() == [[0, 0]]
    assert sampler("something else").rewards["geneval"].isnan().all()


def test_models_that_are_none(weights, tmp_path):
    for source, message in [
        (DATA / "reward-clip", "is a clip model of 2 classes, not a Mask2Former of COCO's 80 instances"),
        (tmp_path / "stuff", "is a mask2former model of 133 classes"),
    ]:
        tiny_mask2former(num_labels=133).save_pretrained(tmp_path / "stuff")
        with pytest.raises(ValueError, match=message):
            GenEvalJudge.from_pretrained(source, DATA / "reward-clip")
    with pytest.raises(FileNotFoundError, match="no model at /nowhere/at/all"):
        GenEvalJudge.from_pretrained("/nowhere/at/all")
    with pytest.raises(FileNotFoundError, match="'hf download openai/clip-vit-large-patch14 --revision"):
        rewards.load(f"geneval:{weights}")


def test_pickled_weights_are_not_opened(weights, tmp_path):
    (tmp_path / "config.json").write_text((weights / "config.json").read_text())
    torch.save(tiny_mask2former().state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="is no complete model"):
        GenEvalJudge.from_pretrained(tmp_path)


class TestCommand:
    def folder(self, path, lines, size=(90, 120)):
        for k, line in enumerate(lines):
            (path / f"{k:05d}/samples").mkdir(parents=True)
            array = (PICTURE.movedim(0, 2) * 255).round().to(torch.uint8).numpy()
            Image.fromarray(array).resize(size[::-1]).save(path / f"{k:05d}/samples/0000.png")
            (path / f"{k:05d}/metadata.jsonl").write_text(json.dumps(line) + "\n")
        return path

    def test_judges_any_size_by_metadata(self, lidar, judge, tmp_path, monkeypatch):
        monkeypatch.setattr(geneval, "load_judge", lambda model, **options: judge)
        lines = [
            {"prompt": "a photo of a dog", "tag": "single_object"},
            {"prompt": "a photo of a cat", "tag": "single_object"},
            {"prompt": "dogs, a pack of them", **wants(("dog", 3))},
        ]
        place = self.folder(tmp_path / "f", lines)
        code, out, err = lidar("evaluate", place, "--judge", "mask2former", "--json")
        assert code == 0, err
        result = json.loads(out)
        assert result["overall"].startswith("0.750")
        assert result["tags"]["mine"].startswith("1.000")

    def test_glyph_s_detector_is_judged_by_metadata_too(self, lidar, tmp_path):
        lines = [{"prompt": "no dog", **wants(exclude=[("dog", 40)])}, {"prompt": "a dog", **wants(("dog", 9))}]
        code, out, _ = lidar("evaluate", self.folder(tmp_path / "f", lines, (128, 128)), "--json")
        assert code == 0
        assert json.loads(out)["overall"].startswith("0.500")

    def test_wrong_use(self, lidar, tmp_path):
        place = self.folder(tmp_path / "f", [{"prompt": "a dog", "tag": "mine"}], (128, 128))
        err = " ".join(failure(lidar("evaluate", place)).split())
        assert "includes no objects, and its prompt follows no template of GenEval" in err
        assert "glyph or mask2former" in failure(lidar("evaluate", place, "--judge", "yolo"))

    def test_weights_out_of_reach_are_one_line(self, lidar, tmp_path):
        place = self.folder(tmp_path / "f", [{"prompt": "a photo of a dog", "tag": "single_object"}])
        err = failure(lidar("evaluate", place, "--judge", "mask2former"))
        assert err.count("\n") == 1
        assert "download it once with 'hf download facebook/mask2former-swin-small-coco-instance'" in err
