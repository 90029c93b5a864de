"""Properties of the recipe: tokens, scenes that match their captions, wrong negatives, stored precision."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors import safe_open
from transformers import CLIPTokenizer

from lidar_sampling._geneval import CLASSES, COLORS, Detection, parse
from lidar_sampling.glyph import DATA, prompts
from training.glyph import captions, negatives, output, render, sprites, tiny_decoder, tokenizer, unet, vae
from training.glyph.__main__ import main
from training.glyph.draws import Draws
from training.glyph.judging import exact
from training.glyph.optim import Schedule
from training.glyph.pool import Ring
from training.glyph.world import Scenes, World

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def shipped() -> CLIPTokenizer:
    """Return the tokenizer that ships in the package."""
    return CLIPTokenizer.from_pretrained(DATA / "sd-glyph" / "tokenizer")


@pytest.fixture(scope="module")
def glyphs() -> torch.Tensor:
    """Return sprites (80, 4, 96, 96), if the font is installed."""
    if not sprites.FONT.exists():
        pytest.skip("needs fonts-noto-color-emoji")
    return torch.from_numpy(sprites.render()).float().permute(0, 3, 1, 2) / 255


def scenes(n: int, *, uncaptioned: float = 0.0, seed: int = 0) -> Scenes:
    """Return scenes of the training pairs."""
    return World(captions.training_pairs(), Draws(seed, CPU)).scenes(n, uncaptioned=uncaptioned)


def some_indices(n: int) -> list[int]:
    """Return random caption indices, and the first and last of each template."""
    edges = [captions.index(tag, *parts) for tag, parts in _EDGES.items()]
    return [*edges, captions.EMPTY - 1, *Draws(0, CPU).integers(captions.EMPTY, n).tolist()]


_EDGES = {
    "single_object": (0,),
    "colors": (0, 0),
    "counting": (0, 0),
    "two_object": (0, 0),
    "position": (0, 0, 0),
    "color_attr": (0, 0, 0, 0),
}


def test_every_caption_parses_to_its_metadata() -> None:
    """The index space and GenEval's parser agree; the empty caption has no metadata."""
    for index in some_indices(500):
        found = captions.metadata(index)
        assert found is not None
        assert parse(captions.text(index)) == found
    assert captions.SIZE == 673_121
    assert captions.metadata(captions.EMPTY) is None


def test_token_table_is_what_the_tokenizer_gives(shipped: CLIPTokenizer) -> None:
    """Joined halves give the same tokens as whole captions."""
    table = captions.token_table(shipped)
    chosen = [*some_indices(500), captions.EMPTY]
    texts = [captions.text(index) for index in chosen]
    direct = shipped(texts, padding="max_length", truncation=True, max_length=captions.LENGTH)["input_ids"]
    assert table.shape == (captions.SIZE, captions.LENGTH)
    assert table[chosen].tolist() == direct


def test_tokenizer_is_the_shipped_one(tmp_path: Path, shipped: CLIPTokenizer) -> None:
    """The learnt merges are those of the package, and every word is one token."""
    out = output.Output(tmp_path)
    tokenizer.make(out)
    for name in ("vocab.json", "merges.txt", "tokenizer.json"):
        assert (out.tokenizer / name).read_bytes() == (DATA / "sd-glyph" / "tokenizer" / name).read_bytes()
    assert all(len(ids) == 3 for ids in shipped(tokenizer.words())["input_ids"])


def test_held_out_pairs_never_occur() -> None:
    """No training scene, captioned with two classes, shows a held-out pair."""
    attributes = scenes(5000).attributes
    assert not captions.held_out()[attributes.first, attributes.second].any()
    assert len(captions.training_pairs()) + len(captions.held_out_pairs()) == len(captions.all_pairs())


def test_negatives_are_wrong() -> None:
    """No hard negative is the caption of its scene, and scenes without caption get the empty one."""
    attributes = scenes(3000, uncaptioned=0.2).attributes
    wrong = negatives.hard_negatives(attributes, Draws(1, CPU), 6)
    captioned = attributes.tag < captions.UNCAPTIONED
    own = attributes.captions()[:, None]
    assert wrong.shape == (3000, 6)
    assert (wrong != own)[captioned].all()
    assert (wrong == captions.EMPTY)[~captioned].all()


def test_scenes_obey_their_captions(glyphs: torch.Tensor) -> None:
    """A detector given the drawn boxes, classes and colours finds every caption true, counts included."""
    drawn = scenes(600)
    images, boxes = render.Renderer(glyphs, CPU)(drawn)
    assert images.shape == (600, 3, 128, 128)
    assert (boxes[drawn.present] >= 0).all()
    assert (boxes[drawn.present] <= 128).all()
    palette = ("natural", *COLORS)
    for row, caption in enumerate(drawn.attributes.captions().tolist()):
        found = [
            Detection(
                CLASSES[drawn.classes[row, slot]],
                1.0,
                tuple(boxes[row, slot].tolist()),
                palette[drawn.colors[row, slot]],
            )
            for slot in drawn.present[row].nonzero()[:, 0].tolist()
        ]
        assert exact(found, captions.metadata(caption), 0.5), captions.text(caption)


def test_tints_keep_the_outline(glyphs: torch.Tensor) -> None:
    """Natural comes first, alpha is the same in every colour, and colours stay premultiplied."""
    tinted = render.tints(glyphs)
    assert tinted.shape == (80, 11, 4, 96, 96)
    assert torch.equal(tinted[:, 0], glyphs)
    assert torch.equal(tinted[:, :, 3], glyphs[:, None, 3].expand(-1, 11, -1, -1))
    assert (tinted[:, :, :3] <= tinted[:, :, 3:] + 1e-6).all()


def test_whitening_leaves_pictures_alone() -> None:
    """Latents get zero mean and unit deviation, and what they decode to does not change."""
    torch.manual_seed(0)
    model = vae.build().eval()
    images = torch.rand(4, 3, 128, 128) * 2 - 1
    with torch.no_grad():
        before = model.encode(images).latent_dist
        mean, std = before.mean.mean((0, 2, 3)), before.mean.std((0, 2, 3))
        decoded = model.decode(before.mean).sample
        vae.whiten(model, mean, std)
        after = model.encode(images).latent_dist
        scaled = after.mean * vae.SCALE
        torch.testing.assert_close(scaled.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
        torch.testing.assert_close(scaled.std((0, 2, 3)), torch.ones(4), atol=1e-4, rtol=0)
        rescaled = after.std * vae.SCALE * std.view(4, 1, 1)
        torch.testing.assert_close(rescaled, before.std, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(model.decode(after.mean).sample, decoded, atol=1e-4, rtol=1e-4)


def test_weights_are_half_and_configurations_say_float32(tmp_path: Path, shipped: CLIPTokenizer) -> None:
    """As in the shipped files: half a text encoder beside a float32 UNet would not run."""
    _, text = unet.build(shipped)
    output.save_transformers(text, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float32"
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert {str(file.get_tensor(name).dtype) for name in file.keys()} == {"torch.float16"}  # noqa: SIM118


def test_ring_replaces_the_oldest() -> None:
    """Rows wrap around, and every row is written."""
    ring = Ring(5)
    for start in (0, 3, 6):
        ring.write(torch.arange(start, start + 3))
    assert ring.rows(slice(None))[0].tolist() == [5, 6, 7, 8, 4]


def test_schedule_warms_up_and_ends_at_its_floor() -> None:
    """Linear warm-up to the learning rate, half a cosine to the floor."""
    schedule = Schedule(steps=1000, batch=1, learning_rate=2.0, warmup=10, floor=0.1)
    assert schedule.rate(0) == pytest.approx(0.2)
    assert schedule.rate(500) == pytest.approx(1.1)
    assert schedule.rate(1000) == pytest.approx(0.2)


def test_a_missing_stage_is_named(tmp_path: Path) -> None:
    """One line that says what to run, and no traceback; --steps goes with stages that train."""
    with pytest.raises(SystemExit, match=r"python -m training\.glyph sprites --out"):
        main(["vae", "--smoke", "--device", "cpu", "--out", str(tmp_path)])
    with pytest.raises(SystemExit):
        main(["sprites", "--steps", "3"])
    with pytest.raises(output.MissingError, match="apt-get install fonts-noto-color-emoji"):
        sprites.render(tmp_path / "absent.ttf")


def test_tiny_decoder_sees_no_shipped_prompt_and_no_held_out_pair() -> None:
    """Captions of its few-step samples: as many as asked for, and none that an evaluation asks."""
    found = tiny_decoder.other_captions(World(captions.training_pairs(), Draws(0, CPU)), 800)
    assert len(found) == 800
    assert not {line["prompt"] for split in ("geneval", "hard") for line in prompts(split)} & set(found)
    held_out = captions.held_out()
    for caption in found:
        names = [CLASSES.index(entry["class"]) for entry in parse(caption)["include"]]
        assert len(names) < 2 or not held_out[names[0], names[1]], caption


def test_tiny_decoder_stage_runs(tmp_path: Path) -> None:
    """On the shipped pipeline and sprites of noise: what it writes is half precision, and diffusers reads it."""
    shutil.copytree(DATA / "sd-glyph", tmp_path / "sd-glyph")
    noise = np.random.default_rng(0).integers(0, 256, (80, 96, 96, 4), np.uint8)
    np.savez_compressed(tmp_path / "sprites.npz", sprites=noise)
    main(["tiny-decoder", "--smoke", "--device", "cpu", "--out", str(tmp_path)])
    written = tmp_path / "tiny-decoder"
    with safe_open(written / "diffusion_pytorch_model.safetensors", "pt") as file:
        assert {str(file.get_tensor(name).dtype) for name in file.keys()} == {"torch.float16"}  # noqa: SIM118
    model = AutoencoderTiny.from_pretrained(written)
    assert "block_out_channels" not in json.loads((written / "config.json").read_text())
    assert len(model.config.block_out_channels) == 4  # a pipeline reads the scale of its pictures from it
    assert model.config.scaling_factor == 1.0  # latents as the scheduler has them
    assert json.loads((written / "train_info.json").read_text())["steps"] == 3


def test_psnr_by_hand() -> None:
    """An error of .1 everywhere is 20 dB."""
    picture = torch.full((1, 3, 4, 4), 0.5)
    assert tiny_decoder.psnr(picture + 0.1, picture) == pytest.approx(20, abs=1e-4)
