"""``benchmarks.peers``: the published procedure gives the library's samples, and the shapes are the real ones."""

import json
import math
import sys
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import diffusers
import pytest
import torch

from benchmarks.peers import __main__ as peers
from benchmarks.peers import published, rows
from benchmarks.peers.ideal import BATCH_SIZES, best
from benchmarks.peers.shapes import (
    IMAGE_REWARD,
    SD15_UNET,
    SDXL_UNET,
    SDXL_VAE,
    SHAPES,
    VAE,
    Shape,
    image_reward,
    image_reward_shapes,
    parameters,
    place,
)
from lidar_sampling import LiDAR, LookaheadBank, guide, record, rewards, testing
from lidar_sampling._cost import Cost
from lidar_sampling._draw import items_of
from lidar_sampling.methods import UniversalGuidance

MAKERS = [testing.tiny_stable_diffusion, testing.tiny_stable_diffusion_xl]
CPU = torch.device("cpu")


def with_ddim(make):
    pipe = make()
    pipe.scheduler = diffusers.DDIMScheduler.from_config({**pipe.scheduler.config, "clip_sample": False})
    return pipe


def sampler(make, **changes):
    settings = {"n": 5, "steps": 10, "lookahead": "dpm:3", "guidance_scale": 3.0, "eta": 1.0, "scale": 2.0}
    return LiDAR(with_ddim(make), reward="brightness", **{**settings, "reward_scale": 1e4, **changes})


def plan(lidar, images=2, **changes):
    bench = rows.Bench(Shape(lambda device: None, lambda *place: None, side=16), images, 2, CPU)
    return replace(rows.plan_of(bench, lidar), prompt="a cat", **changes)


def generators(count, stream, prompt="a cat"):
    return [torch.Generator().manual_seed(item.seed) for item in items_of([prompt], count, 0, stream)]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-3)])
def test_published_guidance_is_ours(make, dtype, tolerance):
    """The same bank, noise and settings give the same guided latents; the bank is tight, so many members weigh."""
    lidar = sampler(make, reward_scale=3.0, scale=20.0)
    lidar.pipe.to(dtype)
    lidar.pipe.scheduler.alphas_cumprod = lidar.pipe.scheduler.alphas_cumprod.to(dtype)
    g = torch.Generator().manual_seed(0)
    members = 0.3 * torch.randn(1, 4, 8, 8, generator=g) + 0.01 * torch.randn(6, 4, 8, 8, generator=g)
    bank = LookaheadBank(members.to(dtype), {"r": torch.randn(6, generator=g).to(dtype)}, "a cat")
    with torch.no_grad():
        theirs = published.draw_guided(lidar.pipe, bank.samples, bank.reward(), plan(lidar), generators(2, "target"))

    def latents(scale):
        settings = {"scale": scale, "reward_scale": 3.0, "window": (1.0, published.UNTIL / 1000)}
        noise = generators(2, "target")
        with guide(lidar.pipe, bank, **settings) as trace, record(lidar.pipe) as recording:
            lidar.pipe("a cat", num_images_per_prompt=2, generator=noise, **lidar.arguments())
        return recording.samples, trace

    ours, trace = latents(20.0)
    assert [step.timestep for step in trace.steps] == list(range(901, 200, -100))
    assert sum(bool(step.info.ess.min() > 1.5) for step in trace.steps) >= 4
    moved = float((ours - latents(0.0)[0]).abs().max())
    assert moved > 1
    torch.testing.assert_close(theirs, ours, rtol=0, atol=tolerance * moved)


def test_published_guidance_is_equations_16_to_18():
    """By hand: two members at -1 and 1 in one dimension, seen from 0, with all reward at the second."""
    bank, alpha_bar = torch.tensor([[-1.0], [1.0]]), torch.tensor(0.36)
    gradient = published.guidance(torch.zeros(1, 1), bank, torch.tensor([0.0, 1.0]), alpha_bar, 100.0)
    torch.testing.assert_close(gradient, torch.tensor([[0.6 / 0.64]]))


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("lookahead", ["dpm:3", "dpm:4-karras"])
def test_the_published_procedure_is_ours(make, lookahead):
    """Bank, rewards and images are the same for the library's noise; rewards differ by PIL's rounding to bytes."""
    lidar = sampler(make, lookahead=lookahead)
    ours = lidar("a cat", images=2)
    bank_noise, noise = generators(5, "lookahead"), generators(2, "target")
    how = plan(lidar, lookahead_batch=2, decode_batch=2)
    theirs = published.sample(lidar.pipe, lidar.reward, how, bank_noise=bank_noise, noise=noise)
    torch.testing.assert_close(theirs.bank, ours.banks[0].samples, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(theirs.rewards, ours.banks[0].reward(), rtol=0, atol=2e-4)
    torch.testing.assert_close(theirs.images, ours.images[0], rtol=0, atol=2e-3)
    assert theirs.rewards.std() > 3e-3
    assert list(theirs.seconds) == ["lookahead", "bank decode", "reward", "guided loop", "final decode"]


def test_the_architectures_are_the_true_ones():
    with torch.device("meta"):
        unets = [diffusers.UNet2DConditionModel(**config) for config in (SD15_UNET, SDXL_UNET)]
        vaes = [diffusers.AutoencoderKL(**config) for config in (VAE, SDXL_VAE)]
    counts = [sum(p.numel() for p in module.parameters()) for module in (*unets, *vaes)]
    assert counts == [859_520_964, 2_567_463_684, 83_653_863, 83_653_863]
    assert parameters(image_reward_shapes(**IMAGE_REWARD)) == 446_206_689


def test_the_random_reward_is_an_image_reward(tmp_path):
    sizes = {"width": 64, "layers": 1, "text": 64, "text_layers": 1, "vocabulary": 8}
    first, again = (image_reward(tmp_path, CPU, torch.float32, **sizes) for _ in range(2))
    pictures = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    scores = rewards.score(first, images=pictures, prompts=["a cat", "two dogs"])
    assert scores[0] != scores[1]
    assert torch.equal(scores, rewards.score(again, images=pictures, prompts=["a cat", "two dogs"]))


def test_a_decoder_in_another_precision():
    """As SDXL on a GPU: latents of float16, a decoder of bfloat16, which the published procedure turns to float32."""
    lidar = sampler(testing.tiny_stable_diffusion_xl, steps=3)
    place(lidar.pipe, CPU, torch.float16, torch.bfloat16)
    images = lidar("a cat", images=1).images
    how = plan(lidar, images=1, decode_dtype=torch.float32)
    theirs = published.sample(
        lidar.pipe,
        lidar.reward,
        how,
        bank_noise=generators(5, "lookahead"),
        noise=generators(1, "target"),
    )
    assert theirs.images.isfinite().all()
    assert images.isfinite().all()
    assert {lidar.pipe.unet.dtype, lidar.pipe.vae.dtype} == {torch.float16, torch.bfloat16}


class TestRows:
    def test_images_at_once_are_counted_to_where_memory_ends(self, monkeypatch):
        lidar = sampler(testing.tiny_stable_diffusion)
        seen = []

        def short_of_memory(module, args):
            seen.append(len(args[0]))
            if len(args[0]) > 2 * 5:  # both branches of five images
                raise torch.OutOfMemoryError

        with_hook = lidar.pipe.unet.register_forward_pre_hook(short_of_memory)
        assert rows.most_at_once(UniversalGuidance(), lidar, 16) == 4
        assert max(seen) == 2 * 8
        assert rows.most_at_once(UniversalGuidance(), lidar, 2) == 2
        with_hook.remove()

    @pytest.mark.parametrize("name", list(rows.ROWS))
    def test_counts_are_those_of_all_steps(self, name):
        lidar = sampler(testing.tiny_stable_diffusion)
        bench = rows.Bench(Shape(lambda device: None, lambda *place: None, side=16), 2, 2, CPU)
        run = rows.ROWS[name](bench, lidar)
        cost = run.cost
        sampling, bank = 2 * 2 * 10, 2 * 5 * 3
        expected = {
            "vanilla": (sampling, 0, 2, 0),
            "LiDAR, as published": (sampling + bank, 0, 2 + 5, 5),
            "Universal Guidance": (sampling, sampling, 2 + 20, 20),
            "DATE": (sampling + 20, 20, 2 + 20, 20),
            "FK steering": (sampling, 0, 2 + 10, 10),
            "LiDAR, ours": (sampling + bank, 0, 2 + 5, 5),
        }[name]
        assert (cost.network_evaluations, cost.backward_passes, cost.decodes, cost.reward_calls) == expected
        assert all(seconds > 0 for seconds in run.phases.values())

    def test_a_few_steps_stand_for_all(self):
        assert rows.whole(7.0, [3.0, 5.0, 7.0], timed=3, steps=10) == 7 + 7 * 2
        cost = rows.scale(Cost(8, 4, 4 + 2, 4, peak_memory=3), 5.0, images=2)
        assert cost == Cost(40, 20, 20 + 2, 20, peak_memory=3)


def test_the_fastest_part_is_found():
    assert best({"decode": {1: 3.0, 4: 2.0}}, "decode") == (4, 2.0)
    assert math.isnan(best({}, "decode").seconds)


@pytest.fixture
def tiny_shape(monkeypatch):
    make = partial(with_ddim, testing.tiny_stable_diffusion)
    shape = Shape(lambda device: make(), lambda *place: testing.brightness, side=16, repeats=1)
    monkeypatch.setitem(BATCH_SIZES, "cpu", (1, 2))
    monkeypatch.setitem(SHAPES, "tiny", shape)
    monkeypatch.setitem(SHAPES, "broken", replace(shape, pipe=lambda device: 1 / 0))


def run(monkeypatch, out, *options):
    command = ["peers", "--device", "cpu", "--steps", "4", "--n", "4", "--images", "2", "--out", str(out), *options]
    monkeypatch.setattr(sys, "argv", command)
    peers.main()
    return json.loads((out / "results.json").read_text())


def test_the_program_writes_what_it_measured(monkeypatch, tmp_path, tiny_shape, capsys):
    results = run(monkeypatch, tmp_path, "--shapes", "tiny")
    shape = results["shapes"]["tiny"]
    assert list(shape["rows"]) == [*rows.ROWS, *rows.FASTER]
    assert all(len(row["seconds"]) == 1 and min(row["seconds"]) > 0 for row in shape["rows"].values())
    assert shape["work"] == {"network": 4 * 5 + 2 * 4, "decode": 6, "reward": 4}
    assert shape["ideal"] > 0
    assert torch.__version__.startswith(results["machine"]["torch"])  # a build names itself behind a plus
    table = (tmp_path / "table.md").read_text()
    assert all(f"| {name} | " in table for name in shape["rows"])
    assert table in capsys.readouterr().out


def test_a_lost_row_or_shape_does_not_lose_the_others(monkeypatch, tmp_path, tiny_shape):
    def no_memory(bench, lidar):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    monkeypatch.setitem(peers.ROWS, "vanilla", no_memory)
    monkeypatch.setattr(peers, "fast", lambda pipe, reward, shape: 1 / 0)
    results = run(monkeypatch, tmp_path, "--shapes", "broken,tiny")
    table = (tmp_path / "table.md").read_text()
    assert "| vanilla | OutOfMemoryError: CUDA out of memory. Tried to allocate |" in table
    assert f"| {rows.FAST} | ZeroDivisionError: division by zero |" in table
    assert "Not measured: ZeroDivisionError" in table
    assert len(results["shapes"]["tiny"]["rows"]["LiDAR, ours"]["seconds"]) == 1
    assert results["shapes"]["tiny"]["ideal"] is None
    assert "Ideal" not in table


def test_what_no_longer_fits_is_left_out(monkeypatch, tmp_path, tiny_shape):
    """Half of a minute is for the rows without levers, and the last of them does not fit."""
    clock = [0.0]

    def row(seconds):
        def run(bench, lidar):
            clock[0] += seconds if lidar.settings.steps == 4 else 1.0  # a warm-up has two steps
            return rows.Run(Cost())

        return run

    monkeypatch.setattr(peers, "ROWS", {"vanilla": row(10), "slow": row(20), "late": row(10)})
    monkeypatch.setattr(peers, "FASTER", {rows.FAST: row(9), "more": row(10)})
    monkeypatch.setattr(peers, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(peers, "now", lambda device: clock[0])
    results = run(monkeypatch, tmp_path, "--shapes", "tiny", "--minutes", "1", "--repeats", "9")
    found = results["shapes"]["tiny"]["rows"]
    assert found.pop("late") == {"error": "left out: the time was up"}
    seconds = {name: one["seconds"] for name, one in found.items()}
    assert seconds == {"vanilla": [10.0], "slow": [20.0], rows.FAST: [9.0], "more": [10.0]}
    assert "| late | left out: the time was up |" in (tmp_path / "table.md").read_text()
    with pytest.raises(SystemExit):
        run(monkeypatch, tmp_path, "--minutes", "0")


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--shapes", "sd16"], "unknown shape 'sd16'"), (["--gradient-steps", "1"], "must be at least 2, got 1")],
)
def test_a_mistake_is_named(monkeypatch, tmp_path, capsys, options, message):
    with pytest.raises(SystemExit):
        run(monkeypatch, tmp_path, *options)
    assert message in capsys.readouterr().err
