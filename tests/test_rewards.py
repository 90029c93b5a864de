"""Rewards: the registry, calls, batches, and CLIP against transformers' own processor."""

from decimal import Decimal

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPModel, CLIPTokenizer

from lidar_sampling import RewardError, rewards
from lidar_sampling.glyph import DATA
from lidar_sampling.rewards.clip import CLIPReward
from lidar_sampling.runs import Job


def pictures(n=3, size=128):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_the_registry_is_helpful():
    assert "glyph" in rewards.REGISTRY
    with pytest.raises(ValueError, match="did you mean 'glyph-heldout'"):
        rewards.load("glyph-heldot")
    with pytest.raises(ValueError, match="known are"):
        rewards.load("zzz")
    with pytest.raises(ValueError, match="unknown reward 'brightness:x'"):
        rewards.load("brightness:x")


def test_a_path_picks_the_clip_model():
    assert rewards.load(f"clip:{DATA / 'reward-clip'}").name == f"clip:{DATA / 'reward-clip'}"


def test_clip_is_the_logit_of_transformers():
    images, prompts = pictures(), ["a photo of a cat", "a photo of two dogs", "a photo of a red cup"]
    model = CLIPModel.from_pretrained(DATA / "reward-clip", dtype=torch.float32).eval()
    tokens = CLIPTokenizer.from_pretrained(DATA / "reward-clip")(
        prompts, padding="max_length", truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        logits = model(input_ids=tokens["input_ids"], pixel_values=(images - 0.5) / 0.5).logits_per_image
    ours = rewards.load("glyph")(images=images, prompts=prompts)
    torch.testing.assert_close(ours, logits.diagonal(), rtol=1e-4, atol=1e-4)


def test_clip_resizes_as_pil_does_within_a_bound():
    """Bicubic, antialiased, shortest side, central crop, against PIL's bytes; at most 0.1 logits apart."""
    reward = CLIPReward(DATA / "reward-clip")
    base = torch.nn.functional.interpolate(pictures(2, 16), size=(200, 260), mode="bicubic").clamp(0, 1)
    bytes_ = (base * 255).round().to(torch.uint8)
    resized = []
    for image in bytes_:
        pil = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((166, 128), Image.Resampling.BICUBIC)
        left = (166 - 128) // 2
        crop = pil.crop((left, 0, left + 128, 128))
        resized.append(torch.frombuffer(bytearray(crop.tobytes()), dtype=torch.uint8).view(128, 128, 3))
    by_pil = torch.stack(resized).permute(0, 3, 1, 2).float() / 255
    prompts = ["a photo of a cat"] * 2
    ours = reward(images=bytes_.float() / 255, prompts=prompts)
    theirs = reward(images=by_pil, prompts=prompts)
    assert (ours - theirs).abs().max() < 0.1


def test_score_is_the_same_in_any_batch():
    images, prompts = pictures(7), [f"a photo of a {w}" for w in ["cat", "dog", "cup", "bus", "bed", "tie", "cow"]]
    reward = rewards.load("glyph")
    whole = rewards.score(reward, images=images, prompts=prompts)
    parts = rewards.score(reward, images=images, prompts=prompts, batch_size=2)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4)


def test_score_shrinks_when_memory_runs_out():
    sizes = []

    def hungry(*, images, prompts):
        sizes.append(len(images))
        if len(images) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return images.flatten(1).mean(1)

    scores = rewards.score(hungry, images=pictures(5, 4), prompts=["p"] * 5)
    torch.testing.assert_close(scores, pictures(5, 4).flatten(1).mean(1))
    assert sizes == [5, 2, 2, 1]


def test_images_and_prompts_must_be_as_many():
    with pytest.raises(ValueError, match="must have the same length, got 2 and 1"):
        rewards.score(rewards.load("brightness"), images=pictures(2, 4), prompts=["p"])


def test_nan_passes_only_where_it_may():
    def half(*, images, prompts):
        return [float("nan")] * len(images)

    with pytest.raises(RewardError, match="returned nan"):
        rewards.score(half, images=pictures(1, 4), prompts=["p"])
    assert rewards.score(half, images=pictures(1, 4), prompts=["p"], allow_nan=True).isnan().all()


def test_pictures_that_are_not_finite_are_refused():
    images = torch.rand(2, 3, 4, 4)
    images[1, 0, 0, 0] = float("nan")
    with pytest.raises(rewards.RewardError, match="the decoder overflowed; decode in float32"):
        rewards.score(rewards.load("jpeg-compressibility"), images=images, prompts=["x", "y"])


def test_videos_are_scored_by_the_mean_of_their_frames_unless_a_reward_wants_them_whole():
    videos = torch.rand(2, 20, 3, 4, 4)
    chosen = videos[:, torch.linspace(0, 19, 8).round().long()]
    scores = rewards.score(rewards.load("brightness"), images=videos, prompts=["x", "y"])
    torch.testing.assert_close(scores, chosen.flatten(1).mean(1))

    def motion(*, images, prompts):
        return images.diff(dim=1).abs().flatten(1).mean(1)

    motion.modality = "video"
    whole = rewards.score(motion, images=videos, prompts=["x", "y"])
    torch.testing.assert_close(whole, videos.diff(dim=1).abs().flatten(1).mean(1))


def in_place(*, images, prompts):
    prompts.sort()
    return images.sub_(0.5).div_(0.5).flatten(1).mean(1)


@pytest.mark.parametrize("shape", [(3, 3, 4, 4), (3, 9, 3, 4, 4)], ids=["pictures", "videos"])
@pytest.mark.parametrize("modality", ["image", "video"])
def test_a_reward_that_works_in_place_spoils_nothing_of_the_callers(shape, modality, monkeypatch):
    monkeypatch.setattr(in_place, "modality", modality, raising=False)
    images, prompts = torch.rand(shape, generator=torch.Generator().manual_seed(0)), ["c", "b", "a"]
    kept = images.clone()
    first = rewards.score(in_place, images=images, prompts=prompts)
    assert torch.equal(rewards.score(in_place, images=images, prompts=prompts), first)
    assert torch.equal(images, kept)
    assert prompts == ["c", "b", "a"]


def test_gradients_flow_through_the_copy():
    def squared(*, images, prompts):
        return images.sub_(0.5).square().sum((1, 2, 3))

    images = pictures(2, 4).requires_grad_()
    rewards.ask(squared, images=images, prompts=["x"] * 2).sum().backward()
    torch.testing.assert_close(images.grad, 2 * (images.detach() - 0.5))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ((pictures(2, 4) * 255).byte(), "must be floats"),
        (pictures(2, 4) * 255, "give images / 255"),
        (pictures(2, 4) * 2 - 1, r"give \(images \+ 1\) / 2"),
        (pictures(2, 4)[:, :1], "repeat the one channel"),
    ],
)
def test_pictures_in_another_range_are_refused_not_scored(images, message):
    reward = rewards.load("brightness")
    with pytest.raises(ValueError, match=message):
        rewards.score(reward, images=images, prompts=["x"] * 2)
    with pytest.raises(ValueError, match=message):
        rewards.score_pictures(reward, pictures=list(images), prompts=["x"] * 2)


def test_each_loose_picture_is_checked():
    """Stacked with floats, bytes would become floats, and a dark picture in bytes has no value above 1."""
    dark, light = torch.ones(3, 2, 2, dtype=torch.uint8), torch.ones(3, 2, 2)
    with pytest.raises(ValueError, match="must be floats"):
        rewards.score_pictures(rewards.load("brightness"), pictures=[light, dark], prompts=["x"] * 2)
    with pytest.raises(ValueError, match="pictures and prompts must have the same length, got 1 and 2"):
        rewards.score_pictures(rewards.load("brightness"), pictures=[light], prompts=["x"] * 2)


class Listening:
    """A reward that remembers the prompts of its calls and of its checks."""

    def __init__(self, reads_metadata=False, refuses=()):
        self.name, self.reads_metadata, self.refuses = "listening", reads_metadata, refuses
        self.heard, self.checked = [], []

    def check(self, prompts):
        self.checked += prompts
        for prompt in prompts:
            if prompt in self.refuses:
                raise ValueError("it rhymes")

    def __call__(self, *, images, prompts):
        self.heard += prompts
        return images.flatten(1).mean(1)


METADATA = {"tag": "mine", "include": [{"class": "dog", "count": 1}], "prompt": "my dog"}


def test_metadata_reaches_those_alone_that_read_it():
    deaf, reader = Listening(), Listening(reads_metadata=True)
    for reward in (deaf, reader, rewards.Ensemble([deaf, reader])):
        rewards.score(reward, images=pictures(2, 4), prompts=[METADATA, "a cat"], batch_size=1)
    assert deaf.heard == ["my dog", "a cat"] * 2
    assert reader.heard == [METADATA, "a cat"] * 2
    reader.heard[0]["include"].clear()
    assert METADATA["include"]


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([3, "x"], 'a prompt must be a text, or metadata with a "prompt", got 3'),
        ([None, "x"], "got None"),
        ([{"tag": "mine"}, "x"], "got {'tag': 'mine'}"),
        ([{"prompt": 3}, "x"], "got {'prompt': 3}"),
        ("ab", "must be a list of prompts, one per image, got the text 'ab'"),
    ],
)
def test_prompts_that_are_none(prompts, message):
    with pytest.raises(ValueError, match=message):
        rewards.score(Listening(), images=pictures(2, 4), prompts=prompts)


def test_a_reward_refuses_prompts_before_anything_is_drawn():
    picky = Listening(refuses=["a cat"])
    rewards.check_prompts(picky, ["a dog", METADATA])
    assert picky.checked == ["a dog", "my dog"]
    with pytest.raises(ValueError, match="reward 'listening' cannot read the prompt 'a cat': it rhymes"):
        rewards.check_prompts(picky, ["a dog", "a cat"])
    rewards.check_prompts(rewards.load("brightness"), ["whatever"])
    reader = Listening(reads_metadata=True, refuses=[METADATA])
    with pytest.raises(ValueError, match="cannot read the prompt 'my dog'"):
        rewards.check_prompts(reader, [METADATA])


@pytest.mark.parametrize("error", [OSError("no disk"), KeyError("no disk"), AssertionError("no disk")])
def test_a_check_that_fails_is_named_and_not_dressed_as_a_refusal(error):
    class Broken(Listening):
        def check(self, prompts):
            raise error

    found = f"^reward 'listening' failed to check the prompt 'a cat': {type(error).__name__}: .*no disk"
    for reward in (Broken(), rewards.Ensemble([Broken(), Broken()])):
        with pytest.raises(ValueError, match=found):
            rewards.check_prompts(reward, ["a cat"])


@pytest.mark.parametrize(
    "returned",
    [
        lambda means: means.numpy()[::-1][::-1][::1],
        lambda means: means.numpy()[::-1].copy()[::-1],
        lambda means: means.numpy().astype(">f4"),
        lambda means: np.array([float(mean) for mean in means], object),
        lambda means: [Decimal(float(mean)) for mean in means],
        lambda means: list(means),
        lambda means: means.double(),
    ],
)
def test_numbers_of_any_kind_are_taken(returned):
    images = pictures(4, 8)
    found = rewards.score(
        lambda *, images, prompts: returned(images.mean((1, 2, 3))), images=images, prompts=["x"] * 4
    )
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, images.mean((1, 2, 3)))


@pytest.mark.parametrize("kind", [torch.int64, torch.bool])
@pytest.mark.parametrize("frames", [1, 5])
def test_whole_numbers_of_frames_have_a_mean(kind, frames):
    videos = torch.zeros(2, frames, 3, 4, 4)
    videos[0] = 1
    found = rewards.score(
        lambda *, images, prompts: images.amax((1, 2, 3)).to(kind), images=videos, prompts=["a cat"] * 2
    )
    assert found.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (torch.zeros(2, dtype=torch.complex64), "real numbers, got torch.complex64"),
        (np.zeros(2, np.complex64), "real numbers, got torch.complex64"),
        (["1", "2"], "must return a tensor, got list"),
        (np.array(["1", "2"], object), "must return a tensor, got ndarray"),
        ({"a": 1}, "must return a tensor, got dict"),
        (None, "must return a tensor, got NoneType"),
        ([Decimal(1)], r"\(2,\), got \(1,\)"),
    ],
)
def test_what_is_not_one_number_an_image(returned, message):
    for shape in ((2, 3, 4, 4), (2, 1, 3, 4, 4)):
        with pytest.raises(RewardError, match=message):
            rewards.score(lambda *, images, prompts: returned, images=torch.zeros(shape), prompts=["a cat"] * 2)


@pytest.mark.parametrize("name", ["clip", "pickscore", "vqascore", "geneval"])
def test_a_file_in_the_place_of_a_folder_is_named(tmp_path, name):
    file = tmp_path / "model.safetensors"
    save_file({"w": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match=r"model\.safetensors is a file: give the folder that holds it"):
        rewards.load(f"{name}:{file}")
    file.write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match=r"model\.safetensors is a pointer of Git LFS"):
        rewards.load(f"{name}:{file}")


def test_another_checkpoint_is_named(tmp_path):
    save_file({"w": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other\.safetensors is no aesthetic predictor: a head has weights layers"):
        rewards.load(f"aesthetic:{tmp_path / 'other.safetensors'}")
    with pytest.raises(ValueError, match="is a folder: give the file of weights itself"):
        rewards.load(f"aesthetic:{tmp_path}")


class TestByPlace:
    """The user's own rewards, and mixtures in one text."""

    @pytest.fixture
    def place(self, tmp_path, monkeypatch):
        (tmp_path / "own_rewards.py").write_text(
            "def red(*, images, prompts):\n    return images[:, 0].mean((1, 2))\n\nword = 'no function'\n"
        )
        (tmp_path / "broken_rewards.py").write_text("1 / 0\n")
        monkeypatch.syspath_prepend(tmp_path)

    def test_a_function(self, place):
        red = rewards.load("own_rewards:red")
        assert rewards.name_of(red) == "red"
        torch.testing.assert_close(
            red(images=torch.full((2, 3, 4, 4), 0.5), prompts=["a"] * 2), torch.full((2,), 0.5)
        )
        rewards.check_name("own_rewards:red")

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("own_rewards:blue", "own_rewards has no function 'blue'"),
            ("own_rewards:word", "own_rewards has no function 'word'"),
            ("no_such_module:red", "unknown reward 'no_such_module:red'; known are .*package.module:function"),
            ("broken_rewards:red", "importing the reward broken_rewards:red raised ZeroDivisionError"),
            ("brightness:0.5+ocr", "a mixture must be NAME:WEIGHT"),
            ("ocr:0.5+ocr:0.5", "names ocr twice"),
            ("ocr:0.5+orc:0.5", "unknown reward 'orc'; did you mean 'ocr'"),
        ],
    )
    def test_refusals(self, place, name, message):
        for ask in (rewards.load, rewards.check_name):
            with pytest.raises(ValueError, match=message):
                ask(name)

    def test_a_mixture_in_a_word(self, place):
        mixture = rewards.load("own_rewards:red:0.75+brightness:0.25")
        assert mixture.weights == {"red": 0.75, "brightness": 0.25}
        job = Job(prompts=["a cat"], reward="own_rewards:red:0.75+brightness:0.25")
        assert job.reward == {"own_rewards:red": 0.75, "brightness": 0.25}
        assert Job.from_json(job.to_json()) == job
