"""Mixtures and ensembles: the mathematics, and both phases of guidance with them."""

import json
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lidar_sampling import BankError, LiDAR, LookaheadBank, RewardError, testing
from lidar_sampling.rewards import Ensemble, Mixture, check_prompts, score
from lidar_sampling.rewards.ocr import OCR

NUMBERS = st.lists(st.floats(-100, 100), min_size=3, max_size=9, unique=True)
WEIGHTS = st.floats(-5, 5)


def red(*, images, prompts):
    return images[:, 0].flatten(1).mean(1)


def blue(*, images, prompts):
    return 1000 * images[:, 2].flatten(1).mean(1)


class Ear:
    """A reward that hears at a rate."""

    def __init__(self, rate):
        self.sampling_rate, self.name = rate, f"ear {rate}"

    def __call__(self, *, images, prompts):
        return images.flatten(1).mean(1)


def bank_of(**rewards):
    n = len(next(iter(rewards.values())))
    columns = {name: torch.tensor(values, dtype=torch.float64) for name, values in rewards.items()}
    return LookaheadBank(torch.zeros(n, 2), columns, "a cat")


def images(n=5):
    return torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(0))


@given(values=NUMBERS, scale=st.floats(0.01, 1000), shift=st.floats(-100, 100), weight=WEIGHTS)
def test_a_standardised_mixture_does_not_see_units(values, scale, shift, weight):
    spread = torch.tensor(values).std()
    if spread < 1e-2:
        return
    mixture = Mixture({"red": weight, "blue": 1.0}, rewards=[red, blue])
    other = [float(i) for i in range(len(values))]
    plain = mixture.on(bank_of(red=values, blue=other)).reward("mixture")
    moved = mixture.on(bank_of(red=[scale * v + shift for v in values], blue=other)).reward("mixture")
    torch.testing.assert_close(moved, plain, rtol=1e-2, atol=1e-2)


@given(a=WEIGHTS, b=WEIGHTS)
def test_a_mixture_is_linear_in_its_weights(a, b):
    calibration = {"red": (0.5, 0.1), "blue": (400.0, 30.0)}

    def mixed(**weights):
        return Mixture(weights, rewards=[red, blue], calibration=calibration)(images=images(), prompts=["x"] * 5)

    parts = a * mixed(red=1.0, blue=0.0) + b * mixed(red=0.0, blue=1.0)
    torch.testing.assert_close(mixed(red=a, blue=b), parts, rtol=1e-4, atol=1e-4)


def test_a_calibrated_mixture_scores_alike_on_banks_and_on_images():
    mixture = Mixture({"red": 2.0, "blue": 1.0}, rewards=[red, blue], calibration={"red": (0.5, 0.1), "blue": (0, 9)})
    pictures = images()
    columns = {part.__name__: part(images=pictures, prompts=["x"] * 5) for part in mixture.parts}
    bank = LookaheadBank(pictures, columns, "x")
    torch.testing.assert_close(mixture.on(bank).reward("mixture"), mixture(images=pictures, prompts=["x"] * 5))


@given(scores=st.lists(st.lists(st.floats(-10, 10), min_size=4, max_size=4), min_size=2, max_size=4))
def test_an_ensemble_lies_between_its_members(scores):
    members = [lambda *, images, prompts, row=row: torch.tensor(row) for row in scores]
    low, mean, careful = (
        Ensemble(members, how)(images=images(4), prompts=["x"] * 4) for how in ("min", "mean", "uncertainty")
    )
    table = torch.tensor(scores)
    assert torch.equal(low, table.amin(0))
    assert ((low <= mean + 1e-4) & (careful <= mean + 1e-4)).all()
    torch.testing.assert_close(careful, table.mean(0) - table.var(0, correction=0), rtol=1e-4, atol=1e-4)


def test_a_mixture_guides_and_its_parts_are_reported():
    mixture = Mixture({"brightness": 1.0, "blue": -0.5}, rewards=[blue])
    lidar = LiDAR(testing.tiny_stable_diffusion(), reward=mixture, n=6, steps=5, lookahead="dpm:3", reward_scale=9.0)
    result = lidar(["a cat", "a dog"], images=2)
    assert list(result.rewards) == ["brightness", "blue"]
    assert set(result.banks[0].rewards) == {"brightness", "blue"}
    assert result.cost["lookahead"].reward_calls == 2 * 6 * 2
    bank = mixture.on(result.banks[0])
    alone = LiDAR(lidar.pipe, reward=testing.brightness, settings=lidar.settings)
    same = alone("a cat", images=2, banks=LookaheadBank(bank.samples, {"m": bank.reward("mixture")}, "a cat"))
    torch.testing.assert_close(same.images[0], result.images[0], rtol=0, atol=2e-3)


def test_a_mixture_without_a_calibration_scores_no_loose_images():
    with pytest.raises(ValueError, match="standardised over a bank"):
        Mixture({"brightness": 1.0})(images=images(), prompts=["x"] * 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": {}}, "at least one reward"),
        ({"weights": {"brightness": float("nan")}}, "weight of 'brightness' must be a finite number, got nan"),
        ({"weights": {"brightnes": 1.0}}, "did you mean 'brightness'"),
        ({"weights": {"brightness": 1.0}, "calibration": {}}, "calibration lacks 'brightness'"),
        ({"weights": {"brightness": 1.0}, "calibration": {"brightness": (0.0, 0.0)}}, "std above 0"),
        ({"weights": {"red": 1.0}, "rewards": [red, red]}, "named apart"),
        ({"weights": {"red": 1.0}, "rewards": [red], "name": "red"}, "must not be named as its part 'red'"),
        ({"weights": {"brightness": "0.5"}}, "must be a finite number, got '0.5'"),
        ({"weights": {"brightness": None}}, "must be a finite number, got None"),
        ({"weights": {"brightness": 1.0}, "calibration": {"brightness": 3.0}}, "std above 0, got 3.0"),
        ({"weights": {"red": 1.0}, "rewards": [red, blue]}, "have weights"),
    ],
)
def test_mixtures_that_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Mixture(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([red],), "at least two members, got 1"),
        (([red, blue], "max"), "how must be"),
        (([Ear(8000), Ear(16000)],), "must hear at one rate, got 8000 and 16000 Hz"),
    ],
)
def test_ensembles_that_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Ensemble(*arguments)


def test_an_ensemble_hears_at_the_rate_of_its_members():
    ensemble = Ensemble([Ear(48_000), Ear(48_000)])
    for judge in (ensemble, Mixture({"ensemble": 1.0}, rewards=[ensemble])):
        with pytest.raises(ValueError, match="ensemble hears 48000 samples per second, and the pipeline draws"):
            LiDAR(testing.tiny_stable_audio(), reward=judge)
    assert not hasattr(Ensemble([red, blue]), "sampling_rate")


def test_a_part_goes_by_its_own_name():
    """Banks use a reward's name, not the text that loaded it."""
    from lidar_sampling.rewards.server import serve

    with serve([testing.brightness], port=0) as url:
        mixture = Mixture({f"{url}/brightness": 2.0}, calibration={f"{url}/brightness": (0.5, 0.5)})
        assert mixture.weights == {"brightness": 2.0}
        assert mixture.calibration == {"brightness": (0.5, 0.5)}
        assert mixture.on(bank_of(brightness=[0.5, 1.0])).reward("mixture").tolist() == [0.0, 2.0]
        with pytest.raises(ValueError, match="parts must be named apart"):
            Mixture({f"{url}/brightness": 2.0, "brightness": 1.0})


def test_a_calibration_that_lacks_a_reward_is_named():
    with pytest.raises(BankError, match="calibration lacks 'b'"):
        bank_of(a=[0.0, 1.0], b=[0.0, 1.0]).combine({"a": 1.0, "b": 1.0}, calibration={"a": (0.0, 1.0)})


def test_gradients_pass_if_every_part_lets_them():
    def slope(*, images, prompts):
        return images.flatten(1).mean(1)

    slope.differentiable = True
    calibration = {"slope": (0.0, 1.0), "red": (0.0, 1.0)}
    assert Mixture({"slope": 1.0}, rewards=[slope], calibration=calibration).differentiable
    assert not Mixture({"slope": 1.0, "red": 1.0}, rewards=[slope, red], calibration=calibration).differentiable
    assert Ensemble([slope, slope]).differentiable
    assert not Ensemble([slope, red]).differentiable
    pixels = images(1).requires_grad_()
    Ensemble([slope, slope], "uncertainty")(images=pixels, prompts=["x"]).sum().backward()
    torch.testing.assert_close(pixels.grad, torch.full_like(pixels, 1 / pixels.numel()))


def test_parts_that_work_in_place_spoil_nothing_for_each_other():
    def spoiling(*, images, prompts):
        prompts.reverse()
        return images.mul_(0).flatten(1).mean(1)

    def longest(*, images, prompts):
        return images.flatten(1).mean(1) + torch.tensor([float(len(prompt)) for prompt in prompts])

    pixels, texts = images(2), ["a", "bbb"]
    kept, alone = pixels.clone(), longest(images=images(2), prompts=texts)
    calibration = {"spoiling": (0.0, 1.0), "longest": (0.0, 1.0)}
    mixture = Mixture({"spoiling": 1.0, "longest": 1.0}, rewards=[spoiling, longest], calibration=calibration)
    for reward, scale in ((mixture, 1), (Ensemble([spoiling, longest]), 2)):
        torch.testing.assert_close(scale * reward(images=pixels, prompts=texts), alone)
    assert torch.equal(pixels, kept)
    assert texts == ["a", "bbb"]


def test_a_prompt_that_one_part_cannot_read_is_refused_in_its_name():
    reader = OCR(reader=lambda image: [])
    calibration = {"red": (0.0, 1.0), "ocr": (0.0, 1.0)}
    parts = Mixture({"red": 1.0, "ocr": 1.0}, rewards=[red, reader], calibration=calibration)
    for reward in (parts, Ensemble([red, reader]), Ensemble([red, parts])):
        check_prompts(reward, ['a sign that says "OPEN"'])
        with pytest.raises(ValueError, match=r"^reward 'ocr' cannot read the prompt 'a cat': the prompt must quote"):
            check_prompts(reward, ['a sign that says "OPEN"', "a cat"])


def test_metadata_passes_through_to_the_part_that_reads_it():
    def judge(*, images, prompts):
        return torch.tensor([float(prompt["count"]) for prompt in prompts])

    judge.reads_metadata = True
    line = {"prompt": "three cats", "count": 3}
    both = Ensemble([red, judge], "min")
    assert both.reads_metadata
    assert not Ensemble([red, blue]).reads_metadata
    assert Mixture({"judge": 1.0}, rewards=[judge]).reads_metadata
    assert score(Ensemble([judge, judge]), images=images(1), prompts=[line]).item() == 3


def of_the_batch(*, images, prompts):
    return images.mean()


@pytest.mark.parametrize(
    ("part", "got"),
    [
        (of_the_batch, r"\(5,\), got \(\)"),
        (lambda *, images, prompts: images.mean().reshape(1), r"\(5,\), got \(1,\)"),
        (lambda *, images, prompts: images.mean((1, 2, 3))[:, None], r"got \(5, 1\)"),
        (lambda *, images, prompts: images.mean((1, 2, 3))[1:], r"got \(4,\)"),
        (lambda *, images, prompts: None, "a tensor, got NoneType"),
        (lambda *, images, prompts: images.mean((1, 2, 3)) + 1j, "real numbers, got torch.complex64"),
        (lambda *, images, prompts: images.mean((1, 2, 3)) / 0, "returned inf for image 0 of 5"),
    ],
)
def test_each_part_gives_one_number_an_image(part, got):
    part.__name__ = "part"
    mixture = Mixture({"red": 1.0, "part": 1.0}, rewards=[red, part], calibration={"red": (0, 1), "part": (0, 1)})
    for whole in (mixture, Ensemble([red, part], "min"), Ensemble([part, part])):
        for ask in (whole, lambda **given: score(whole, **given)):  # noqa: B023
            with pytest.raises(RewardError, match=f"^reward 'part' (must return )?.*{got}"):
                ask(images=images().clamp(0.01), prompts=["a cat"] * 5)


@pytest.mark.parametrize(
    ("change", "prompts", "message"),
    [
        (lambda x: (x * 255).to(torch.uint8), ["a"] * 5, "got torch.uint8"),
        (lambda x: x * 2 - 1, ["a"] * 5, r"give \(images \+ 1\) / 2"),
        (lambda x: x * 255, ["a"] * 5, "give images / 255"),
        (lambda x: x * float("nan"), ["a"] * 5, "NaN or infinity"),
        (lambda x: x[:, :1], ["a"] * 5, "repeat the one channel"),
        (lambda x: x, ["a"] * 2, "same length, got 5 and 2"),
        (lambda x: x, "abcde", "got the text 'abcde'"),
    ],
)
def test_what_is_no_batch_is_refused_where_parts_are_asked(change, prompts, message):
    mixture = Mixture({"red": 1.0}, rewards=[red], calibration={"red": (0, 1)})
    for reward in (mixture, Ensemble([red, blue])):
        with pytest.raises(ValueError, match=message):
            reward(images=change(images()), prompts=prompts)


class Whole:
    """A reward of whole videos: the number of frames."""

    modality, name = "video", "whole"

    def __call__(self, *, images, prompts):
        assert images.dim() == 5
        return torch.full((len(images),), float(images.shape[1]))


def test_a_video_reaches_each_part_as_the_part_reads_it():
    videos = torch.rand(2, 5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    of_frames = videos[:, :, 0].mean((1, 2, 3))
    mixture = Mixture(
        {"whole": 2.0, "red": 1.0}, rewards=[Whole(), red], calibration={"whole": (0, 1), "red": (0, 1)}
    )
    for reward, expected in (
        (mixture, 10 + of_frames),
        (Ensemble([Whole(), red]), (5 + of_frames) / 2),
        (Ensemble([mixture, Ensemble([Whole(), Whole()])], "min"), torch.tensor([5.0, 5.0])),
    ):
        assert reward.modality == "video"
        torch.testing.assert_close(score(reward, images=videos, prompts=["a cat"] * 2), expected)
    assert Ensemble([red, blue]).modality == "image"
    found = score(Ensemble([red, red]), images=videos, prompts=["a cat"] * 2)
    torch.testing.assert_close(found, of_frames)


@pytest.mark.parametrize("number", [np.float32(0.5), Fraction(1, 2), torch.tensor(0.5), np.array(0.5)])
def test_weights_and_calibration_become_plain_numbers(number):
    mixture = Mixture({"red": number}, rewards=[red], calibration={"red": (number, number)})
    assert json.dumps([mixture.weights, mixture.calibration]) == '[{"red": 0.5}, {"red": [0.5, 0.5]}]'
    mixture = Mixture({"red": 1}, rewards=[red], calibration={"red": np.array([0.5, 0.25], np.float32)})
    assert json.dumps([mixture.weights, mixture.calibration]) == '[{"red": 1.0}, {"red": [0.5, 0.25]}]'


def test_a_mixture_over_a_bank_is_no_part():
    loose = Mixture({"red": 1.0}, rewards=[red])
    for make in (
        lambda: Ensemble([loose, red]),
        lambda: Mixture({"mixture": 1.0}, rewards=[loose], name="outer"),
    ):
        with pytest.raises(
            ValueError, match="'mixture' is standardised over a bank, so it cannot be a part: give it"
        ):
            make()
