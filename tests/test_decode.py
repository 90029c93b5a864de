"""Decoding latents again gives the pipeline's own pictures, bit for bit, at the cost of the decoder alone."""

import diffusers
import pytest
import torch
from diffusers import AutoencoderTiny
from test_conformance import EVERY, PICTURE, PROMPTS

from lidar_sampling import testing
from lidar_sampling._decode import Decoder, check_decodes, decode, decode_with, pictures
from lidar_sampling._draw import draw, items_of
from lidar_sampling._hooks import Hook, attach
from lidar_sampling._parts import denoisers
from lidar_sampling._tail import Tail

ITEMS = items_of(PROMPTS[:1], 2, 0, "target")  # of one prompt, since CogView 4 draws no two together
HALF = torch.ones(1, 1, 16, 16)
HALF[..., 8:] = 0


@pytest.fixture(scope="module")
def built():
    """Return pipelines by key, each built once; tests leave them unchanged."""
    pipes = {}
    return lambda key: pipes.setdefault(key, testing.PIPELINES[key].make())


def drawn(pipe, call, around=None):
    """Return both samples at once, their call, and the pipeline's pictures."""
    call = {**call, "num_inference_steps": 3}
    (batch,) = draw(pipe, ITEMS, call=call, batch_size=2, around=around)
    return batch, call


class Count:
    """Counts of how often a pipeline's networks run, and how many samples its decoder gets."""

    def __init__(self, pipe, monkeypatch):
        self.networks, self.decoded, self.encoded = [], 0, 0
        for name, module in pipe.components.items():
            if name in denoisers(pipe) or name.startswith("text_encoder"):
                monkeypatch.setattr(type(module), "forward", self.forward(name))
        decode, encode = pipe.vae.decode, pipe.vae.encode

        def decoding(z, *args, **kwargs):
            self.decoded += len(z)
            return decode(z, *args, **kwargs)

        def encoding(x, *args, **kwargs):
            self.encoded += len(x)
            return encode(x, *args, **kwargs)

        monkeypatch.setattr(pipe.vae, "decode", decoding, raising=False)
        monkeypatch.setattr(pipe.vae, "encode", encoding, raising=False)

    def forward(self, name):
        return lambda *args, **kwargs: self.networks.append(name)


def state_of(pipe):
    """Return everything that a call could change, by identity, except a video decoder's cache."""
    parts = {"": pipe, **{name: part for name, part in pipe.components.items() if part is not None}}
    state = {(name, key): id(value) for name, part in parts.items() for key, value in vars(part).items()}
    scratch = ("_feat_map", "_conv_idx", "_conv_num", "_enc_feat_map", "_enc_conv_idx", "_enc_conv_num")
    kept = {key: value for key, value in state.items() if key[1] not in scratch}
    return kept | {name: (type(part), id(part)) for name, part in parts.items()}


@EVERY
def test_equals_what_the_pipeline_drew(key, built, monkeypatch):
    pipe = built(key)
    batch, call = drawn(pipe, testing.PIPELINES[key].call)
    before, noise = state_of(pipe), torch.get_rng_state()
    with torch.no_grad():
        assert torch.equal(decode(pipe, batch.latents, call, ITEMS), batch.images)
        torch.testing.assert_close(pictures(pipe, batch.latents, 1, call), batch.images, rtol=0, atol=1e-5)
    assert state_of(pipe) == before
    assert torch.equal(torch.get_rng_state(), noise)


@EVERY
def test_runs_the_decoder_and_no_other_network(key, built, monkeypatch):
    pipe = built(key)
    batch, call = drawn(pipe, testing.PIPELINES[key].call)
    count = Count(pipe, monkeypatch)
    with torch.no_grad():
        decode(pipe, batch.latents, call)
    assert (count.networks, count.decoded) == ([], 2)


class Looks(Hook):
    """A hook that decodes every clean sample on the way."""

    def __init__(self, pipe, call):
        self.decoder, self.seen = Decoder(pipe, call, ITEMS), []

    def after(self, scheduler, previous):
        self.seen.append(self.decoder(previous))
        return previous


@EVERY
def test_decodes_in_the_middle_of_a_call(key, built):
    """The samples do not change, and the last decoded prediction is the pipeline's picture."""
    pipe = built(key)
    plain, call = drawn(pipe, testing.PIPELINES[key].call)
    looks = Looks(pipe, call)
    looked, _ = drawn(pipe, testing.PIPELINES[key].call, around=lambda items: attach(pipe, looks))
    assert torch.equal(looked.images, plain.images)
    assert torch.equal(looked.latents, plain.latents)
    assert len(looks.seen) >= 3
    if key != "sana-sprint":  # whose scheduler goes on from samples in other units
        assert torch.equal(looks.seen[-1], plain.images)


@pytest.mark.parametrize("family", ["StableDiffusion", "StableDiffusionXL"])
@pytest.mark.parametrize(
    ("task", "call", "channels"),
    [
        ("Img2Img", {"image": PICTURE, "strength": 0.8}, 4),
        ("Inpaint", {"image": PICTURE, "mask_image": HALF, "strength": 0.9}, 4),
        ("Inpaint", {"image": PICTURE, "mask_image": HALF, "strength": 0.9}, 9),
        ("ControlNet", {"image": PICTURE}, 4),
        ("ControlNetImg2Img", {"image": PICTURE, "control_image": PICTURE, "strength": 0.8}, 4),
    ],
)
def test_other_tasks(family, task, call, channels):
    """Inpainting pastes an encoded picture after its last step; with the seeds of the samples it is the same."""
    make = testing.tiny_stable_diffusion_xl if "XL" in family else testing.tiny_stable_diffusion
    pipe = make(getattr(diffusers, f"{family}{task}Pipeline"), in_channels=channels)
    batch, call = drawn(pipe, call)
    with torch.no_grad():
        assert torch.equal(decode(pipe, batch.latents, call, ITEMS), batch.images)


def test_a_picture_is_encoded_once(monkeypatch):
    """LTX's first frame is not part of the sample: it is pasted after every step."""
    pipe = testing.tiny_ltx(diffusers.LTXImageToVideoPipeline)
    batch, call = drawn(
        pipe, {**testing.PIPELINES["ltx"].call, "image": torch.nn.functional.interpolate(PICTURE, 32)}
    )
    count = Count(pipe, monkeypatch)
    decoder = Decoder(pipe, call, ITEMS)
    with torch.no_grad():
        looks = [decoder(batch.latents) for _ in range(3)]
    assert all(torch.equal(look, batch.images) for look in looks)
    assert (count.encoded, count.decoded, count.networks) == (2, 6, [])


def test_modular_pipelines():
    pipe = testing.tiny_modular_stable_diffusion_xl()
    batch, call = drawn(pipe, {"height": 16, "width": 16})
    with torch.no_grad():
        assert torch.equal(decode(pipe, batch.latents, call, ITEMS), batch.images)


@pytest.mark.parametrize("key", ["flux", "wan", "ltx", "qwen-image", "stable-audio"])
def test_gradients_are_those_of_differences(key):
    """The tolerance is 1e-3, since some decoders compute parts in float32, which limits finite differences."""
    pipe = testing.PIPELINES[key].make()
    batch, call = drawn(pipe, testing.PIPELINES[key].call)
    pipe.to(torch.float64)
    tail, latents = Tail(pipe, call), 0.1 * batch.latents.double()
    generator = torch.Generator().manual_seed(0)
    direction, weights = (
        torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in (latents, batch.images)
    )
    z = latents.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((weights * tail(z)).sum(), z)
    with torch.no_grad():
        above, below = ((weights * tail(latents + step * direction)).sum() for step in (1e-4, -1e-4))
    assert tail(latents).dtype == torch.float64
    assert gradient.abs().max() > 1e-6
    torch.testing.assert_close((gradient * direction).sum(), (above - below) / 2e-4, rtol=1e-3, atol=0)
    z = batch.latents.clone().double().requires_grad_()
    decode(pipe, z, call).sum().backward()
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("key", ["flux", "wan"])
def test_predictions_in_float32_of_a_model_in_half_precision(key):
    pipe = testing.PIPELINES[key].make()
    pipe.to(torch.bfloat16)
    batch, call = drawn(pipe, testing.PIPELINES[key].call)
    with torch.no_grad():
        assert torch.equal(decode(pipe, batch.latents, call), batch.images)
        close = decode(pipe, batch.latents.float(), call)
    assert close.dtype == torch.float32
    torch.testing.assert_close(close, batch.images, rtol=0, atol=0.05)


def test_a_decoder_that_is_upcast():
    """The decoder is SDXL's, which overflows in float16."""
    pipe = testing.tiny_stable_diffusion_xl()
    pipe.to(torch.float16)
    batch, call = drawn(pipe, {})
    with torch.no_grad():
        assert torch.equal(decode(pipe, batch.latents, call), batch.images)
    assert pipe.vae.dtype == torch.float16
    with pytest.raises(TypeError, match="load it in bfloat16 or float32"):
        decode(pipe, batch.latents.requires_grad_(), call)


def test_a_preview_of_packed_latents():
    pipe = testing.tiny_flux()
    batch, call = drawn(pipe, testing.PIPELINES["flux"].call)
    sizes = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8), "latent_channels": 4}
    preview = AutoencoderTiny(**sizes, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1)).eval()
    with decode_with(pipe, preview), torch.no_grad():
        cheap = decode(pipe, batch.latents, call)
        assert torch.equal(cheap, drawn(pipe, testing.PIPELINES["flux"].call)[0].images)
    assert not torch.equal(cheap, batch.images)


class Sections(diffusers.FluxPipeline):
    """FLUX that draws several times over."""

    def __call__(self, prompt=None, generator=None, output_type="pil", num_inference_steps=2, sections=1):
        for _ in range(sections):
            output = super().__call__(
                prompt=prompt,
                generator=generator,
                output_type=output_type,
                num_inference_steps=num_inference_steps,
                height=16,
                width=16,
            )
        return output


class TestRefusals:
    def test_latents_of_another_size(self):
        pipe = testing.tiny_flux()
        with pytest.raises(
            ValueError, match=r"\(2, 16, 16\) do not fit a call that draws \(2, 64, 16\): decode with"
        ):
            decode(pipe, torch.zeros(2, 16, 16), {"height": 32, "width": 32})

    def test_families_that_cannot(self):
        with pytest.raises(TypeError, match=r"LTXConditionPipeline cannot decode .* it adds noise to its conditions"):
            Decoder(testing.tiny_ltx(diffusers.LTXConditionPipeline))

    def test_a_call_that_needs_its_networks(self, monkeypatch):
        """Such a call reads an attribute that no stand-in has."""
        pipe = testing.tiny_flux()
        monkeypatch.setattr(type(pipe), "encode_prompt", lambda self, **kwargs: self.text_encoder([]).secret)
        with pytest.raises(
            TypeError, match="FluxPipeline cannot decode latents apart from a call with all of its net"
        ):
            decode(pipe, torch.zeros(1, 16, 16), testing.PIPELINES["flux"].call)

    def test_a_call_in_sections(self):
        pipe = testing.tiny_flux(Sections)
        with pytest.raises(ValueError, match="draws in sections"):
            decode(pipe, torch.zeros(1, 16, 16), {"sections": 2})

    def test_a_call_that_keeps_no_graph(self):
        pipe = testing.tiny_flux(Sections)
        with pytest.raises(TypeError, match="Sections decodes without a gradient"):
            decode(pipe, torch.zeros(1, 16, 16, requires_grad=True), {"sections": 1})

    def test_a_failure_leaves_the_pipeline_as_it_was(self, monkeypatch):
        pipe = testing.tiny_flux()
        call = testing.PIPELINES["flux"].call
        before = state_of(pipe)
        decoder = Decoder(pipe, call)
        with monkeypatch.context() as patch:
            patch.setattr(type(pipe.vae.decoder), "forward", lambda *args: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                decoder(torch.zeros(1, 16, 16))
        assert state_of(pipe) == before
        with torch.no_grad():
            assert decoder(torch.zeros(1, 16, 16)).shape == (1, 3, 16, 16)

    def test_what_can_is_let_through(self):
        for key in ("sd", "flux", "wan"):
            check_decodes(testing.PIPELINES[key].make())
