"""Levers change the speed of a computation, not its result."""

import threading
import time
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny, LTXConditionPipeline

from lidar_sampling import BankStore, LiDAR, RewardError, accelerate, largest_batch, testing
from lidar_sampling._preview import load_preview
from lidar_sampling.rewards import Ensemble, load

PROMPTS = ["a cat", "a dog", "a cat"]


def make(pipe=None, **options):
    settings = {"n": 6, "steps": 4, "scale": 1.0, "reward_scale": 20.0, "reward": "brightness", **options}
    return LiDAR(pipe or testing.tiny_stable_diffusion(), **settings)


def tiny_preview(seed=0, *, latent_channels=4):
    """Return a small random autoencoder for the pipeline's latents and pictures."""
    torch.manual_seed(seed)
    channels = (4,) * 2
    return AutoencoderTiny(
        encoder_block_out_channels=channels,
        decoder_block_out_channels=channels,
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        latent_channels=latent_channels,
    ).eval()


class TestAccelerate:
    @pytest.mark.parametrize(
        "levers",
        [
            {"channels_last": True},
            {"encode_once": True},
            {"compile": "whole", "backend": "eager"},
            {"compile": "blocks", "backend": "eager"},
            pytest.param(
                {"compile": "whole", "cuda_graphs": True},
                marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU"),
            ),
        ],
        ids=str,
    )
    @pytest.mark.parametrize("make_pipe", [testing.tiny_stable_diffusion, testing.tiny_stable_diffusion_xl])
    def test_the_samples_stay_what_they_are(self, make_pipe, levers):
        plain = make(make_pipe())(["a cat", "a dog"], images=2)
        pipe = make_pipe()
        accelerate(pipe, **levers)
        fast = make(pipe)(["a cat", "a dog"], images=2)
        torch.testing.assert_close(fast.latents, plain.latents, rtol=1e-3, atol=1e-3)
        assert {p: vars(c)["network_evaluations"] for p, c in fast.cost.items()} == {
            p: vars(c)["network_evaluations"] for p, c in plain.cost.items()
        }

    def test_the_networks_of_a_reward_are_compiled(self):
        graphs = []

        def backend(graph, _):
            graphs.append(graph)
            return graph.forward

        own = {"images": torch.rand(3, 3, 128, 128), "prompts": PROMPTS}
        plain = load("glyph")(**own)
        fast = load("glyph")
        torch._dynamo.reset()
        accelerate(Ensemble([fast, load("brightness")]), compile="whole", backend=backend)
        torch.testing.assert_close(fast(**own), plain, rtol=1e-5, atol=1e-5)
        assert graphs

    def test_a_compiled_network_is_compiled(self):
        for compile in ("whole", "blocks"):
            graphs = []
            pipe = testing.tiny_stable_diffusion()

            def backend(graph, _, graphs=graphs):
                graphs.append(graph)
                return graph.forward

            torch._dynamo.reset()
            accelerate(pipe, compile=compile, backend=backend)
            pipe("a cat", num_inference_steps=1, output_type="latent")
            assert graphs

    @pytest.mark.parametrize("make_pipe", [testing.tiny_stable_diffusion, testing.tiny_stable_diffusion_xl])
    def test_batches_of_all_sizes_share_what_was_compiled(self, make_pipe):
        graphs, sizes = [], []

        def backend(graph, _):
            graphs.append(graph)
            return graph.forward

        pipe = make_pipe()
        pipe.unet.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
        torch._dynamo.reset()
        accelerate(pipe, compile="whole", backend=backend)
        for images in (2, 3, 5):
            pipe("a cat", num_inference_steps=1, num_images_per_prompt=images, output_type="latent")
        assert set(sizes) == {4, 6, 10}
        assert len(graphs) == 1

    @pytest.mark.parametrize("what", ["whole", "blocks"])
    def test_where_a_gradient_flows_networks_run_uncompiled(self, what):
        pipe, compiled = testing.tiny_flux(), []

        def backend(graph, inputs):
            compiled.append(graph)
            return graph.forward

        def gradient(module):
            x = start.clone().requires_grad_()
            (found,) = torch.autograd.grad(module(x).square().sum(), x)
            return found

        decoder, start = pipe.vae.decoder, torch.randn(2, pipe.vae.config.latent_channels, 4, 4)
        expected = gradient(decoder)
        accelerate(pipe, compile=what, backend=backend)
        assert torch.equal(gradient(decoder), expected)
        assert not compiled
        with torch.no_grad():
            decoder(start)
        assert compiled

    def test_convolutions_have_their_channels_last(self):
        pipe = testing.tiny_stable_diffusion()
        accelerate(pipe, channels_last=True)
        assert pipe.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
        assert pipe.vae.decoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)

    def test_equal_rows_are_encoded_once_and_twice_pulled_is_once(self):
        pipe, rows = testing.tiny_stable_diffusion_xl(), []
        plain = pipe.encode_prompt(PROMPTS)
        for encoder in (pipe.text_encoder, pipe.text_encoder_2):
            embedding = next(m for name, m in encoder.named_modules() if name.endswith("token_embedding"))
            embedding.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
        for _ in range(2):
            accelerate(pipe, encode_once=True)
            for a, b in zip(pipe.encode_prompt(PROMPTS), plain, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
        assert set(rows) == {2}  # three prompts of two kinds

    def test_rows_that_differ_in_their_mask_alone_are_two(self):
        encoder = testing.PIPELINES["pixart-sigma"].make().text_encoder
        tokens = torch.tensor([[5, 6, 7, 1], [5, 6, 7, 1]])
        mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
        with torch.no_grad():
            plain = encoder(tokens, attention_mask=mask)[0]
            accelerate_encoder = type("Pipe", (), {"text_encoder": encoder, "unet": torch.nn.Identity()})()
            accelerate(accelerate_encoder, encode_once=True)
            assert not torch.allclose(plain[0], plain[1])
            torch.testing.assert_close(encoder(tokens, attention_mask=mask)[0], plain)

    @pytest.mark.parametrize(
        ("levers", "message"),
        [({"compile": "all"}, "compile must be"), ({"cuda_graphs": True}, "compile='whole'")],
    )
    def test_a_lever_that_is_none_is_refused(self, levers, message):
        with pytest.raises(ValueError, match=message):
            accelerate(testing.tiny_stable_diffusion(), **levers)

    def test_what_has_no_network_is_refused(self):
        for target in (object(), load("brightness")):
            message = f"a reward with networks or a module, got {type(target).__name__}"
            with pytest.raises(TypeError, match=message):
                accelerate(target, compile="whole")


class TestPreview:
    def test_scores_the_bank_and_leaves_the_samples(self):
        pipe = testing.tiny_stable_diffusion()
        own, preview = pipe.vae, tiny_preview()
        (full,) = make(pipe).look("a cat")
        (cheap,) = make(pipe, preview=preview).look("a cat")
        assert pipe.vae is own
        torch.testing.assert_close(cheap.samples, full.samples)
        assert cheap.space == full.space
        with torch.no_grad():
            decoded = preview.decode(full.samples / preview.config.scaling_factor).sample
        pictures = (decoded / 2 + 0.5).clamp(0, 1)
        expected = load("brightness")(images=pictures, prompts=["a cat"] * 6)
        torch.testing.assert_close(cheap.reward(), expected, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(cheap.reward(), full.reward(), atol=1e-3)

    def test_banks_of_two_decoders_are_kept_apart(self, tmp_path):
        pipe = testing.tiny_stable_diffusion()
        store = BankStore(tmp_path)
        options = [{}, {"preview": tiny_preview()}, {"preview": tiny_preview(), "rescore": 2}]
        banks = [make(pipe, store=store, **option).look("a cat")[0] for option in options]
        assert len({bank.key for bank in banks}) == len(store.find("a cat")) == 3

    def test_the_best_are_decoded_in_full_and_the_others_move_with_them(self):
        pipe = testing.tiny_stable_diffusion()
        full = make(pipe).look(["a cat", "a dog"])
        cheap = make(pipe, preview=tiny_preview()).look(["a cat", "a dog"])
        lidar = make(pipe, preview=tiny_preview(), rescore=2)
        mixed, cost = lidar.draw_banks(["a cat", "a dog"], 0)
        assert (cost.decodes, cost.reward_calls) == (16, 16)
        for a, b, c in zip(full, cheap, mixed, strict=True):
            best = b.reward().topk(2).indices
            others = [i for i in range(6) if i not in best]
            torch.testing.assert_close(c.reward()[best], a.reward()[best], rtol=1e-4, atol=1e-4)
            moved = (c.reward()[best] - b.reward()[best]).mean()
            torch.testing.assert_close(c.reward()[others], b.reward()[others] + moved)

    def test_all_of_them_in_full_are_the_full_bank(self):
        pipe = testing.tiny_stable_diffusion()
        (full,) = make(pipe).look("a cat")
        (again,) = make(pipe, preview=tiny_preview(), rescore=99).look("a cat")
        torch.testing.assert_close(again.reward(), full.reward(), rtol=1e-4, atol=1e-5)

    def test_what_cannot_decode_is_refused_at_once(self):
        pipe = testing.tiny_stable_diffusion()
        with pytest.raises(TypeError, match="preview must be an autoencoder"):
            make(pipe, preview="taesd")
        with pytest.raises(ValueError, match="rescore must be at least 0, and wants a preview, got 3"):
            make(pipe, rescore=3)
        with pytest.raises(ValueError, match="latents of 16 channels, and StableDiffusionPipeline has 4"):
            make(pipe, preview=tiny_preview(latent_channels=16))
        pipe = testing.tiny_ltx(LTXConditionPipeline)
        with pytest.raises(TypeError, match="cannot decode latents apart from its call"):
            make(pipe, preview=pipe.vae, rescore=3)

    def test_packed_latents_are_decoded_in_full(self):
        """All are decoded, so the bank is the full one."""
        tiny = testing.PIPELINES["flux"]
        pipe, options = tiny.make(), {"pipe_kwargs": dict(tiny.call)}
        (full,) = make(pipe, **options).look("a cat")
        (again,) = make(pipe, preview=tiny_preview(latent_channels=4), rescore=99, **options).look("a cat")
        torch.testing.assert_close(again.reward(), full.reward(), rtol=1e-4, atol=1e-5)

    def test_by_name_or_path(self, tmp_path):
        pipe = testing.tiny_stable_diffusion()
        tiny_preview().save_pretrained(tmp_path)
        lidar = make(pipe, preview=load_preview(tmp_path, pipe))
        assert isinstance(lidar.preview, AutoencoderTiny)
        with pytest.raises(ValueError, match="no small autoencoder is known for WanPipeline"):
            load_preview("tiny", testing.PIPELINES["wan"].make())


class TestOverlap:
    def test_gives_the_same_bank(self):
        pipe = testing.tiny_stable_diffusion()
        banks = [make(pipe, overlap=overlap, batch_size=2).look("a cat")[0] for overlap in (False, True)]
        assert torch.equal(banks[0].samples, banks[1].samples)
        assert torch.equal(banks[0].reward(), banks[1].reward())

    def test_draws_while_it_waits_for_the_reward(self):
        """The drawing of each batch releases the reward of the batch before; in sequence this would never end."""
        pipe = testing.tiny_stable_diffusion()
        drawn, batches = threading.Semaphore(0), []

        def reward(*, images, prompts):
            batches.append(len(images))
            if len(batches) < 3:
                assert drawn.acquire(timeout=60), "nothing was drawn meanwhile"
            return images.mean((1, 2, 3))

        decode, calls = pipe.vae.decode, []

        def decoding(*args, **kwargs):
            calls.append(1)
            if len(calls) > 1:
                drawn.release()
            return decode(*args, **kwargs)

        pipe.vae.decode = decoding
        (bank,) = make(pipe, reward=reward, overlap=True, batch_size=2).look("a cat")
        assert len(bank) == 6
        assert batches == [2, 2, 2]

    def test_a_reward_that_fails_stops_the_drawing(self):
        pipe, seen = testing.tiny_stable_diffusion(), []

        def reward(*, images, prompts):
            raise OSError("no connection")

        lidar = make(pipe, reward=reward, overlap=True, batch_size=1, n=40)
        with pytest.raises(RewardError, match="no connection"):
            lidar.look("a cat", progress=lambda _, done, total: seen.append(done))
        assert max(seen) <= 3
        assert all(not t.name.startswith("ThreadPool") for t in threading.enumerate() if t.is_alive())

    def test_at_most_two_batches_wait(self):
        waiting, most = [], []

        def slow(*, images, prompts):
            time.sleep(0.02)
            most.append(len(waiting))
            waiting.pop()
            return images.mean((1, 2, 3))

        def counted(phase, done, total):
            if float(done).is_integer() and done and phase == "lookahead":
                waiting.append(done)

        make(reward=slow, overlap=True, batch_size=1, n=8, lookahead="own:1").look("a cat", progress=counted)
        assert max(most) <= 3


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of memory is read on Linux alone")
class TestLargestBatch:
    def test_fills_the_share_of_what_is_free(self, monkeypatch):
        lidar = make()
        monkeypatch.setattr("lidar_sampling._accelerate._free", lambda device: 1000)
        peaks = iter([300, 500])  # 100 bytes, and 100 per sample

        def draw_banks(self, prompts, seed, progress=None):
            cost = type("Cost", (), {"peak_memory": next(peaks)})
            return [], cost

        monkeypatch.setattr(LiDAR, "draw_banks", draw_banks)
        assert largest_batch(lidar, "a cat", share=0.8) == 8

    def test_measures_something(self):
        assert 1 <= largest_batch(make(), "a cat", most=64) <= 64
