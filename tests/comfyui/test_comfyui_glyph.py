"""The pack inside ComfyUI, with glyph: equal to diffusers, and pictures from the running server."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
from ideal import COMFYUI

from lidar_sampling import LookaheadBank

if not COMFYUI:
    pytest.skip("needs ComfyUI: COMFYUI_PATH names no checkout", allow_module_level=True)

import comfy.sample
import comfy.samplers
from glyph_nodes import encode, load_model, pipeline

import lidar_sampling
from benchmarks.page import chromium
from comfyui.bank import draw_bank, load_bank
from comfyui.guide import Guide

ROOT = Path(__file__).parents[2]
PROMPT = "a photo of a dog right of a teddy bear"


@pytest.fixture(scope="module")
def model():
    return load_model()


@pytest.fixture(scope="module")
def euler():
    from diffusers import EulerDiscreteScheduler

    pipe = pipeline()
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    pipe.scheduler.set_timesteps(12)
    return pipe


@pytest.fixture(scope="module")
def bank(model):
    how = {"n": 8, "seed": 1, "steps": 5, "cfg": 3.0, "sampler_name": "dpmpp_2m", "scheduler": "karras", "batch": 3}
    latent = {"samples": torch.zeros(1, 4, 16, 16)}
    drawn = draw_bank(model, encode(PROMPT), encode(""), latent, prompt=PROMPT, **how)
    return drawn.with_rewards({"r": torch.arange(8.0)})


def through_comfyui(model, noise, sigmas):
    conditions = encode(PROMPT), encode("")
    empty = torch.zeros_like(noise)
    return comfy.sample.sample(
        model, noise, len(sigmas) - 1, 3.0, "euler", "normal", *conditions, empty, sigmas=sigmas, disable_pbar=True
    )


def through_diffusers(pipe, noise):
    start = noise * pipe.scheduler.sigmas[0] / pipe.scheduler.init_noise_sigma
    how = {"num_inference_steps": 12, "guidance_scale": 3.0, "output_type": "latent"}
    return pipe([PROMPT] * len(noise), latents=start, **how).images / pipe.vae.config.scaling_factor


def test_it_is_what_guide_does_through_diffusers(model, euler, bank):
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    sigmas = euler.scheduler.sigmas.clone()
    plain = through_comfyui(model, noise, sigmas)
    torch.testing.assert_close(plain, through_diffusers(euler, noise), atol=1e-3, rtol=1e-4)

    patched = Guide(bank, bank.reward(), scale=4.0, strength=2.0, start=0.0, end=1.0).patch(model)
    here = through_comfyui(patched, noise, sigmas)
    clean = LookaheadBank(bank.samples * euler.vae.config.scaling_factor, bank.rewards, PROMPT)
    with lidar_sampling.guide(euler, clean, scale=4.0, reward_scale=2.0, window=(1.0, 0.0)):
        there = through_diffusers(euler, noise)
    difference, moved = (here - there).abs().max(), (here - plain).abs().max()
    assert moved > 1
    assert difference < 1e-4 * moved, (difference, moved)


def test_a_bank_of_diffusers_guides_here(model, tmp_path):
    look = lidar_sampling.LiDAR(pipeline(), reward="brightness", n=3, lookahead="dpm:2").look(PROMPT)[0]
    loaded = load_bank(look.save(tmp_path / "bank.safetensors"))
    torch.testing.assert_close(loaded.samples * 0.18215, look.samples)
    Guide(loaded, loaded.reward(), scale=1.0, strength=1.0, start=0.0, end=1.0).patch(model)  # of the same space


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Start ComfyUI with the pack and glyph's nodes; yield its address and its folder."""
    base = tmp_path_factory.mktemp("base")
    (base / "custom_nodes").mkdir()
    for name, folder in (("lidar-sampling", ROOT / "comfyui"), ("glyph", Path(__file__).parent / "glyph_nodes")):
        (base / "custom_nodes" / name).symlink_to(folder)
    port = free_port()
    command = [sys.executable, "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(port)]
    command += ["--base-directory", str(base), "--disable-api-nodes", "--database-url", "sqlite:///:memory:"]
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT / "packages/glyph/src"), os.environ.get("PYTHONPATH", "")])
    with (
        open(base / "log", "w") as log,
        subprocess.Popen(
            command, cwd=COMFYUI, stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": path}
        ) as process,
    ):
        url = f"http://127.0.0.1:{port}"
        try:
            end = time.monotonic() + 240
            while time.monotonic() < end and process.poll() is None:
                try:
                    urllib.request.urlopen(url + "/system_stats").read()
                    break
                except OSError:
                    time.sleep(0.5)
            yield url, base
        finally:
            process.terminate()


def asked(url, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def graph(seed, **changes):
    """Return a graph for the API: our three nodes between a loader and KSampler."""
    node = lambda kind, **inputs: {"class_type": kind, "inputs": {**inputs, **changes.get(kind, {})}}  # noqa: E731
    draw = {"cfg": 3.0, "sampler_name": "euler", "scheduler": "normal"}
    return {
        "1": node("LoadGlyph"),
        "2": node("GlyphText", text=PROMPT),
        "3": node("GlyphText", text=""),
        "4": node("EmptyLatentImage", width=128, height=128, batch_size=2),
        "5": node(
            "LiDARBank",
            model=["1", 0],
            positive=["2", 0],
            negative=["3", 0],
            latent_image=["4", 0],
            prompt=PROMPT,
            n=8,
            seed=0,
            steps=5,
            batch=4,
            **draw,
        ),
        "6": node("LiDARScore", bank=["5", 0], vae=["1", 1], reward="glyph"),
        "7": node(
            "LiDARGuide",
            model=["1", 0],
            bank=["6", 0],
            scale=4.0,
            strength="auto",
            ess=0.25,
            start_percent=0.0,
            end_percent=0.8,
        ),
        "8": node(
            "KSampler",
            model=["7", 0],
            positive=["2", 0],
            negative=["3", 0],
            latent_image=["4", 0],
            seed=seed,
            steps=12,
            denoise=1.0,
            **draw,
        ),
        "9": node("VAEDecode", samples=["8", 0], vae=["1", 1]),
        "10": node("SaveImage", images=["9", 0], filename_prefix="guided"),
        "11": node("LiDARSaveBank", bank=["6", 0], name="dog"),
    }


def done(url, prompt):
    """Run a graph; return its history."""
    name = asked(url, "/prompt", {"prompt": prompt})["prompt_id"]
    end = time.monotonic() + 300
    while not (found := asked(url, f"/history/{name}")):
        assert time.monotonic() < end
        time.sleep(0.2)
    return found[name]


def test_the_running_server_draws_and_keeps_the_bank(server):
    url, base = server
    first = done(url, graph(1))
    assert first["status"]["status_str"] == "success", first["status"]
    assert len(first["outputs"]["10"]["images"]) == 2
    assert len(first["outputs"]["6"]["images"]) == 8
    assert first["outputs"]["7"]["text"][0].startswith("strength ")
    assert len(LookaheadBank.load(base / "output/lidar/dog_00001_.safetensors").reward("glyph")) == 8

    second = done(url, graph(2))
    cached = next(what["nodes"] for kind, what in second["status"]["messages"] if kind == "execution_cached")
    assert {"5", "6", "7"} <= set(cached)  # another seed needs no other bank


def test_a_graph_with_an_unknown_reward_is_not_begun(server):
    with pytest.raises(urllib.error.HTTPError) as refused:
        asked(server[0], "/prompt", {"prompt": graph(1, LiDARScore={"reward": "os:system"})})
    assert "unknown reward 'os:system'; known here are" in refused.value.read().decode()


def test_another_size_is_refused_in_one_line(server):
    large = graph(3)
    large["12"] = {"class_type": "EmptyLatentImage", "inputs": {"width": 256, "height": 128, "batch_size": 1}}
    large["8"]["inputs"]["latent_image"] = ["12", 0]
    failed = done(server[0], large)
    error = next(what for kind, what in failed["status"]["messages"] if kind == "execution_error")
    assert error["exception_message"].strip() == (
        "the bank holds latents (4, 16, 16) and these are (4, 16, 32): draw the bank with a latent of the same size"
    )


@pytest.fixture(scope="module")
def page(server):
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if (path := chromium()) is None:
        pytest.skip("needs Chromium")
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        found = browser.new_page()
        found.set_default_timeout(120_000)
        found.goto(server[0])
        found.wait_for_function("window.LiteGraph && 'LiDARGuide' in window.LiteGraph.registered_node_types")
        yield found
        browser.close()


@pytest.mark.parametrize("name", ["sdxl", "flux", "wan"])
def test_an_example_opens_in_the_page(page, name):
    workflow = json.loads((ROOT / f"comfyui/example_workflows/lidar_{name}.json").read_text())
    page.evaluate("workflow => app.loadGraphData(workflow)", workflow)
    unknown = "app.graph._nodes.filter(n => !(n.type in LiteGraph.registered_node_types)).map(n => n.type)"
    assert page.evaluate(unknown) == []
    assert page.evaluate("app.graph._nodes.length") == len(workflow["nodes"])
    saved = json.loads(page.evaluate("JSON.stringify(app.graph.serialize())"))
    values = lambda found: {node["id"]: node.get("widgets_values") or [] for node in found["nodes"]}  # noqa: E731
    assert values(saved) == values(workflow)  # no value is under another name
