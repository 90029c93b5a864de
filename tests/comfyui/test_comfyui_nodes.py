"""The nodes, run as ComfyUI runs them: their inputs, outputs, previews and refusals."""

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace

import folder_paths
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ideal import COMFYUI

from comfyui import comfy_entrypoint, nodes
from comfyui.bank import draw_bank, load_bank
from comfyui.guide import Guide
from comfyui.judge import caption, check_reward, decode, flat
from lidar_sampling import BankError, LookaheadBank
from lidar_sampling._guidance import auto_strength
from lidar_sampling._space import Space

EXAMPLES = Path(nodes.__file__).parent / "example_workflows"
CONDITIONING = [[torch.zeros(1, 1, 8), {}]]
HOW = {"n": 5, "seed": 3, "steps": 4, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal", "batch": 2}
BRIGHT = torch.tensor([0.2, 0.8, 0.5])


class Vae:
    """A VAE that decodes a latent (B, 4, *) to pictures or videos whose pixels are its mean."""

    def decode(self, latents):
        size = (1, *latents.shape[2:-2], 8, 8, 3)
        return torch.full(size, float(latents.mean()))


@pytest.fixture(autouse=True)
def output(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    return tmp_path


@pytest.fixture
def bright():
    """Return a bank whose pictures have known brightness."""
    return LookaheadBank(BRIGHT[:, None, None, None].expand(3, 4, 2, 2).clone(), {}, "bright")


def drawn(model, **changes):
    latent = {"samples": torch.zeros(1, 4, 2, 2), **changes.pop("latent", {})}
    how = {"prompt": "four", **HOW, **changes}
    return nodes.LiDARBank.execute(model, CONDITIONING, CONDITIONING, latent, **how).args


def test_every_node_has_a_schema():
    names = [each.define_schema() for each in asyncio.run(asyncio.run(comfy_entrypoint()).get_node_list())]
    assert len(names) == 7


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.json")), ids=lambda path: path.stem)
def test_examples_use_the_nodes_as_they_are(path):
    """Checked without ComfyUI, too: the names of inputs, and one value per widget."""
    found = [node for node in json.loads(path.read_text())["nodes"] if node["type"].startswith("LiDAR")]
    assert {"LiDARBank", "LiDARScore", "LiDARGuide"} <= {node["type"] for node in found}
    for node in found:
        named = {each["name"] for each in node["inputs"]}
        assert named == inputs_of(getattr(nodes, node["type"]))
        assert len(node["widgets_values"]) == sum("widget" in each for each in node["inputs"])


def inputs_of(node):
    schema = node.define_schema()
    if COMFYUI:
        return {each.id for each in schema.inputs}
    return {each.args[0] for each in schema.options["inputs"]}


class TestBank:
    def test_it_is_drawn_whatever_the_batch(self, ideal):
        bank, latent = drawn(ideal())
        assert (len(bank), bank.prompt, bank.space.shape) == (5, "four", (4, 2, 2))
        assert torch.equal(latent["samples"], bank.samples)
        torch.testing.assert_close(drawn(ideal(), batch=5)[0].samples, bank.samples)
        assert not torch.equal(drawn(ideal(), seed=4)[0].samples, bank.samples)

    def test_memory_that_runs_out_makes_batches_smaller(self, ideal, monkeypatch):
        import comfy.sample

        whole, sample, sizes = drawn(ideal())[0], comfy.sample.sample, []

        def small(model, noise, *args, **kwargs):
            sizes.append(len(noise))
            if len(noise) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return sample(model, noise, *args, **kwargs)

        monkeypatch.setattr(comfy.sample, "sample", small)
        torch.testing.assert_close(drawn(ideal(), batch=4)[0].samples, whole.samples)
        assert sizes[:2] == [3, 1]

    def test_another_model_may_draw_it(self, ideal):
        assert len(drawn(ideal(), lookahead_model=ideal())[0]) == 5
        other = ideal()
        other.get_model_object = lambda name: SimpleNamespace(latent_channels=16)
        with pytest.raises(
            BankError, match="lookahead_model draws in the space SimpleNamespace and the model in Latent"
        ):
            drawn(ideal(), lookahead_model=other)

    def test_what_cannot_be_drawn_is_refused(self, ideal):
        with pytest.raises(ValueError, match="and this latent has a mask: remove the mask"):
            drawn(ideal(), latent={"noise_mask": torch.ones(1, 2, 2)})
        with pytest.raises(BankError, match="prompt is empty"):
            drawn(ideal(), prompt=" ")


class TestScore:
    def score(self, bank, **inputs):
        return nodes.LiDARScore.execute([bank], [Vae()], **{"reward": ["brightness"], **inputs})

    def test_by_a_reward(self, bright):
        scored, pictures, values = self.score(bright).args
        torch.testing.assert_close(scored.reward("brightness"), BRIGHT)
        assert values == pytest.approx([0.8, 0.5, 0.2])
        torch.testing.assert_close(pictures[:, 0, 0, 0], torch.tensor([0.8, 0.5, 0.2]))

    @pytest.mark.parametrize("given", [[3.0, 1.0, 2.0], [[3.0, 1.0, 2.0]], [torch.tensor([3.0, 1.0, 2.0])]])
    def test_by_numbers_of_another_node(self, bright, given):
        scored, _, values = self.score(bright, rewards=given).args
        assert (scored.reward("given").tolist(), values) == ([3.0, 1.0, 2.0], [3.0, 2.0, 1.0])

    def test_numbers_must_be_one_for_each_and_finite(self, bright):
        with pytest.raises(BankError, match="the bank has 3 samples, got 2 rewards: give one per sample"):
            self.score(bright, rewards=[1.0, 2.0])
        with pytest.raises(BankError, match=r"reward 'given' is not finite for samples \[1\]"):
            self.score(bright, rewards=[1.0, float("nan"), 2.0])

    def test_of_a_video_the_frames_count(self):
        videos = torch.stack([torch.full((4, 3, 2, 2), value) for value in (0.2, 0.8)])
        scored, pictures, _ = self.score(LookaheadBank(videos, {}, "video")).args
        torch.testing.assert_close(scored.reward(), torch.tensor([0.2, 0.8]))
        assert pictures.shape == (6, 8, 8, 3)

    @pytest.mark.parametrize(
        "name", ["os:system", "clip:/etc/passwd", "http://10.0.0.1/x", "http", "brightnes", "clip:.5+os:system:.5"]
    )
    def test_a_workflow_names_no_module_file_or_address(self, name, bright):
        said = nodes.LiDARScore.validate_inputs([name])
        assert said.startswith("unknown reward ")
        assert nodes.LiDARBestOfN.validate_inputs(name) == said
        with pytest.raises(ValueError, match="unknown reward"):
            self.score(bright, reward=[name])

    def test_known_names_are_taken(self):
        for name in ("brightness", "image-reward", "clip:0.9+aesthetic:0.1"):
            check_reward(name)
            assert nodes.LiDARScore.validate_inputs([name]) is True
        assert nodes.LiDARScore.validate_inputs() is True  # another node will supply it

    def test_captions_stand_under_the_pictures(self):
        tiles = caption(torch.full((2, 8, 16, 3), 0.5), ["1.5", "-2"])
        assert tiles.shape == (2, 128 + 32, 256, 3)
        assert tiles[:, :128].unique().tolist() == pytest.approx([128 / 255])
        assert tiles[:, 128:].max() > 0.5 > tiles[:, 128:].mean()

    def test_shapes(self):
        video = decode(Vae(), torch.zeros(2, 4, 3, 2, 2))
        assert (video.shape, flat(video).shape) == ((2, 3, 8, 8, 3), (6, 8, 8, 3))
        assert flat(decode(Vae(), torch.zeros(2, 4, 2, 2))).shape == (2, 8, 8, 3)


class TestGuide:
    def guided(self, model, bank, **changes):
        how = {"scale": 1.0, "strength": "auto", "ess": 0.5, "start_percent": 0.0, "end_percent": 1.0, **changes}
        return nodes.LiDARGuide.execute(model, bank, **how)

    def test_auto_is_the_library_s(self, bank, ideal, drawn):
        strength = auto_strength(bank.reward(), 0.5)
        patched = Guide(bank, bank.reward(), scale=1.0, strength=strength, start=0.0, end=1.0).patch(ideal())
        found = self.guided(ideal(), bank).args[0]
        assert torch.equal(drawn(found, 4), drawn(patched, 4))
        number = self.guided(ideal(), bank, strength=repr(strength)).args[0]
        assert torch.equal(drawn(number, 4), drawn(patched, 4))

    def test_it_says_its_strength_and_that_equal_rewards_do_nothing(self, bank, ideal):
        assert shown(self.guided(ideal(), bank, strength="2")) == "strength 2"
        equal = bank.with_rewards({"r": torch.ones(4)})
        said = "all 4 samples have the reward 1, so guidance does nothing"
        assert shown(self.guided(ideal(), equal)) == said

    def test_a_bank_without_rewards_is_refused(self, bright, ideal):
        with pytest.raises(BankError, match="the bank has no rewards: put LiDAR Score between it and this node"):
            self.guided(ideal(), bright)

    @given(st.text(max_size=20) | st.floats().map(repr))
    def test_only_auto_and_numbers_are_strengths(self, text):
        said = nodes.LiDARGuide.validate_inputs(text)
        try:
            good = text.strip() == "auto" or 0 <= float(text) < float("inf")
        except ValueError:
            good = False
        assert (said is True) == good
        assert good or said.startswith("strength must be auto or a number of at least 0, got ")

    @pytest.mark.parametrize("window", [(0.5, 0.5), (0.8, 0.2), (-0.1, 0.5), (0.0, 1.1), (float("nan"), 1.0)])
    def test_an_empty_window_is_refused(self, window):
        assert "start_percent must be below end_percent" in nodes.LiDARGuide.validate_inputs("auto", *window)


def shown(output):
    ui = output.ui
    return ui if isinstance(ui, str) else ui.as_dict()["text"][0]


class TestFiles:
    def test_what_is_saved_is_loaded(self, bank, output):
        for count in (1, 2):
            nodes.LiDARSaveBank.execute(bank, "four")
            assert (output / f"lidar/four_{count:05}_.safetensors").exists()
        assert nodes.LiDARLoadBank.define_schema()
        loaded = nodes.LiDARLoadBank.execute("four_00001_.safetensors").args[0]
        assert torch.equal(loaded.samples, bank.samples)
        before = nodes.LiDARLoadBank.fingerprint_inputs("four_00001_.safetensors")
        bank.subset([0]).save(output / "lidar/four_00001_.safetensors")
        assert nodes.LiDARLoadBank.fingerprint_inputs("four_00001_.safetensors") != before

    @pytest.mark.parametrize(
        ("pipeline", "name", "scaling", "offset"),
        [
            ("StableDiffusionPipeline", "SD15", 0.18215, 0.0),
            ("StableDiffusionXLPipeline", "SDXL", 0.13025, 0.0),
            ("StableDiffusion3Pipeline", "SD3", 1.5305, 0.0609),
        ],
    )
    def test_banks_of_diffusers_become_latents(self, tmp_path, pipeline, name, scaling, offset):
        samples = torch.randn(2, 4, 2, 2)
        space = Space(pipeline, (4, 2, 2), (scaling, offset, 0.1))
        path = LookaheadBank(samples, {"r": torch.ones(2)}, "x", space).save(tmp_path / "x.safetensors")
        loaded = load_bank(path)
        assert loaded.space == Space(f"ComfyUI {name}", (4, 2, 2))
        torch.testing.assert_close((loaded.samples - offset) * scaling, samples)
        if COMFYUI:
            import comfy.latent_formats

            if name != "SD3":  # of sixteen channels
                torch.testing.assert_close(getattr(comfy.latent_formats, name)().process_in(loaded.samples), samples)

    def test_packed_latents_are_refused(self, tmp_path):
        space = Space("FluxPipeline", (64, 64), (0.3611, 0.1159))
        path = LookaheadBank(torch.zeros(2, 64, 64), {}, "x", space).save(tmp_path / "x.safetensors")
        with pytest.raises(
            BankError, match="drawn by diffusers' FluxPipeline, whose latents are not ComfyUI's: draw"
        ):
            load_bank(path)


class TestBest:
    def test_of_a_bank(self, bank):
        latent, values = nodes.LiDARBestOfBank.execute(bank, 2).args
        assert torch.equal(latent["samples"], bank.samples[[3, 2]])
        assert values == [3.0, 2.0]
        with pytest.raises(BankError, match="count must be at most 4, the samples of the bank; got 5"):
            nodes.LiDARBestOfBank.execute(bank, 5)

    def test_of_a_batch(self):
        images = BRIGHT[:, None, None, None].expand(3, 8, 8, 3)
        best, values = nodes.LiDARBestOfN.execute(images, "x", "brightness", 2).args
        assert (best[:, 0, 0, 0].tolist(), values) == (pytest.approx([0.8, 0.5]), pytest.approx([0.8, 0.5]))
        with pytest.raises(ValueError, match="count must be at most 3, the pictures of the batch; got 4"):
            nodes.LiDARBestOfN.execute(images, "x", "brightness", 4)


def _tiny(name):
    """Return a MODEL of a real architecture with random weights, its latent and its conditioning."""
    from comfy import model_patcher, supported_models

    if name == "wan":
        cls, small = supported_models.WAN21_T2V, {"dim": 24, "ffn_dim": 32, "text_dim": 8, "num_heads": 2}
        small |= {"num_layers": 1, "image_model": "wan2.1", "model_type": "t2v"}
        latent, context, extra = torch.zeros(1, 16, 2, 4, 4), torch.randn(1, 5, 8), {}
    else:
        cls, small = supported_models.Flux, {"image_model": "flux", "in_channels": 16, "out_channels": 16}
        small |= {"vec_in_dim": 8, "context_in_dim": 8, "hidden_size": 32, "mlp_ratio": 2.0, "num_heads": 2}
        small |= {"depth": 1, "depth_single_blocks": 1, "axes_dim": [4, 6, 6], "theta": 10000, "patch_size": 2}
        small |= {"qkv_bias": True, "guidance_embed": True}
        latent, context, extra = torch.zeros(1, 16, 4, 4), torch.randn(1, 5, 8), {"pooled_output": torch.randn(1, 8)}
    torch.manual_seed(0)
    config = cls({**small, "dtype": torch.float32})
    model = config.get_model({})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    cpu = torch.device("cpu")
    return model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu), latent, [[context, extra]]


@pytest.mark.skipif(not COMFYUI, reason="needs ComfyUI: COMFYUI_PATH names no checkout")
@pytest.mark.parametrize("name", ["wan", "flux"])
def test_a_true_architecture_is_drawn_scored_and_guided(name):
    import comfy.sample

    model, latent, conditioning = _tiny(name)
    how = {"prompt": "x", **HOW, "scheduler": "simple"}
    bank = draw_bank(model, conditioning, conditioning, {"samples": latent}, **how).with_rewards(
        {"r": torch.arange(5.0)}
    )
    assert bank.space.pipeline == {"wan": "ComfyUI Wan21", "flux": "ComfyUI Flux"}[name]
    patched = TestGuide().guided(model, bank, ess=0.4).args[0]

    def end(model):
        noise = comfy.sample.prepare_noise(latent, 1)
        return comfy.sample.sample(
            model, noise, 4, 1.0, "euler", "simple", conditioning, conditioning, latent, disable_pbar=True, seed=1
        )

    assert (end(patched) - end(model)).abs().max() > 0.01
    assert end(patched).isfinite().all()
