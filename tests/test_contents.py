"""Keys change if and only if their contents change; a store of banks relies on them."""

import functools
import inspect
import re
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lidar_sampling import LiDAR, testing
from lidar_sampling._call import _OWN
from lidar_sampling._contents import OpaqueError, contents, digest, key, pipeline_contents


@given(
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]),
    st.integers(1, 40),
    st.integers(0, 39),
)
def test_one_element_changes_a_digest(dtype, size, place):
    before = torch.zeros(size).to(dtype)
    after = before.clone()
    after[place % size] = 1
    assert digest(before) == digest(before.clone()) != digest(after)


def test_a_digest_is_of_numbers_and_not_of_how_they_lie():
    x = torch.arange(24.0).view(1, 2, 3, 4)
    assert digest(x.contiguous(memory_format=torch.channels_last)) == digest(x)
    assert digest(x.transpose(2, 3)) != digest(x)
    assert digest(x.view(-1)) != digest(x)  # another shape
    assert digest(x.double()) != digest(x)
    swapped = x.clone().view(-1)
    swapped[[3, 17]] = swapped[[17, 3]]
    assert digest(swapped.view_as(x)) != digest(x)


class Weighted:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, *, images, prompts):
        return self.factor * images.mean((1, 2, 3))


def closed_over(k):
    return lambda x: k * x


def asking(weight):
    return lambda images: weight() * images


def pictures(*shades):
    return [Image.new("RGB", (4, 4), (shade,) * 3) for shade in shades]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (0.8, 0.7),
        ("a", "b"),
        (None, 0),
        (True, 1.5),
        ([1, 2], [2, 1]),
        ({"a": 1}, {"a": 2}),
        (pictures(1)[0], pictures(2)[0]),
        (pictures(1, 2), pictures(2, 1)),
        (np.zeros((2, 2)), np.zeros((4,))),
        (np.zeros(2, np.float32), np.zeros(2, np.float64)),
        (Weighted(1), Weighted(2)),
        (closed_over(1), closed_over(2)),
        (functools.partial(closed_over, 1), functools.partial(closed_over, 2)),
        (torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)),
        (torch.float16, torch.bfloat16),
        (lambda x: x + 1, lambda x: x + 2),
        (functools.cache(lambda x: x + 1), functools.cache(lambda x: x + 2)),
        (functools.cached_property(lambda x: x + 1), functools.cached_property(lambda x: x + 2)),
        (asking(functools.lru_cache(lambda: 1.0)), asking(functools.lru_cache(lambda: 2.0))),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_differs_has_another_key(one, other):
    assert key(contents(one)) == key(contents(one)) != key(contents(other))


def test_what_cannot_be_told_is_said():
    with pytest.raises(OpaqueError, match=r"call\['lock'\] is a lock"):
        contents({"lock": threading.Lock()}, "call")


def test_keys_are_the_same_in_another_process():
    """Addresses, and the order of sets, would differ."""
    code = (
        "from lidar_sampling import testing, rewards\n"
        "from lidar_sampling._contents import *\n"
        "print(key([pipeline_contents(testing.tiny_stable_diffusion()), contents({'b', 'a'}),"
        " contents(testing.brightness)]))"
    )
    run = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(2)]
    assert run[0].stdout == run[1].stdout


@pytest.mark.parametrize("name", testing.PIPELINES)
def test_drawing_leaves_a_pipeline_what_it_was(name):
    """Otherwise a second run would never find the banks of the first."""
    pipe, call = testing.PIPELINES[name].make(), testing.PIPELINES[name].call
    lidar = LiDAR(pipe, reward="brightness", n=1, lookahead="own:2", guidance_scale=None, pipe_kwargs=call)
    lidar.look("a cat")  # some set their tokenizer's side at the first call
    before = pipeline_contents(pipe)
    lidar.look("a cat")
    assert pipeline_contents(pipe) == before


@pytest.mark.parametrize("name", ["sd", "sdxl", "flux", "wan"])
def test_every_module_of_a_pipeline_counts(name):
    pipe = testing.PIPELINES[name].make()
    modules = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    assert {"unet", "transformer"} & set(modules)
    assert "vae" in modules
    for module_name, module in modules.items():
        before = pipeline_contents(pipe)
        *_, last = module.parameters()
        with torch.no_grad():
            last.data.view(-1)[-1] += 1  # by .data: autograd's version of it stays
        after = pipeline_contents(pipe)
        assert [n for n in modules if after["components"][n] != before["components"][n]] == [module_name]


def evaluations(pipe, store, **options):
    options = {"n": 2, "steps": 3, "lookahead": "dpm:2", **options}
    lidar = LiDAR(pipe, reward="brightness", store=store, **options)
    return lidar.draw_banks(["a cat"], 0)[1].network_evaluations


def last_bias(encoder):
    """Return a parameter that versions of transformers keep in different places."""
    return next(p for name, p in encoder.named_parameters() if name.endswith("final_layer_norm.bias"))


CHANGES = {
    "a weight": lambda p: p.unet.conv_in.weight.data.mul_(2),
    "a bias of the text encoder": lambda p: last_bias(p.text_encoder).data.add_(1),
    "an embedding": lambda p: p.text_encoder.get_input_embeddings().weight.data[7].add_(1),
    "a weight of the autoencoder": lambda p: p.vae.decoder.conv_out.weight.data.mul_(2),
    "tiling": lambda p: p.vae.enable_tiling(),
    "FreeU": lambda p: p.enable_freeu(0.9, 0.2, 1.2, 1.4),
    "the precision": lambda p: p.to(torch.float64),
    "the noise schedule": lambda p: setattr(
        p, "scheduler", type(p.scheduler).from_config(p.scheduler.config, beta_end=0.02)
    ),
    "the prediction": lambda p: setattr(
        p, "scheduler", DDIMScheduler.from_config(p.scheduler.config, prediction_type="v_prediction")
    ),
    "a token": lambda p: p.tokenizer.add_tokens(["<mine>"]),
}


class TestAStoreOfBanks:
    def test_serves_the_same(self, tmp_path):
        assert evaluations(testing.tiny_stable_diffusion(), tmp_path) > 0
        assert evaluations(testing.tiny_stable_diffusion(), tmp_path) == 0
        assert evaluations(testing.tiny_stable_diffusion(), tmp_path, batch_size=1) == 0

    def test_serves_the_same_weights_from_another_folder(self, tmp_path):
        pipe = testing.tiny_stable_diffusion()
        pipe.save_pretrained(tmp_path / "a")
        pipe.save_pretrained(tmp_path / "b")
        load = functools.partial(LiDAR.from_pretrained, reward="brightness", n=2, lookahead="dpm:2", store=tmp_path)
        assert load(tmp_path / "a").draw_banks(["a cat"], 0)[1].network_evaluations > 0
        assert load(tmp_path / "b").draw_banks(["a cat"], 0)[1].network_evaluations == 0

    @pytest.mark.parametrize("change", CHANGES)
    def test_notices(self, tmp_path, change):
        pipe = testing.tiny_stable_diffusion()
        evaluations(pipe, tmp_path)
        CHANGES[change](pipe)
        assert evaluations(pipe, tmp_path) > 0
        assert evaluations(pipe, tmp_path) == 0

    @pytest.mark.parametrize("solver", ["own:2", "dpm:3", "dpm:2-karras", "dpm:2-unguided"])
    def test_notices_another_solver(self, tmp_path, solver):
        evaluations(testing.tiny_stable_diffusion(), tmp_path)
        assert evaluations(testing.tiny_stable_diffusion(), tmp_path, lookahead=solver) > 0

    @pytest.mark.parametrize("cls", [StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline])
    def test_notices_a_change_of_any_argument(self, tmp_path, cls):
        red, blue = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))
        mask = torch.zeros(1, 1, 16, 16)
        mask[:, :, 4:8] = 1
        others = {
            "image": (red, blue),
            "mask_image": (mask, mask.flip(2)),
            "masked_image_latents": None,  # made of the two
            "strength": (0.9, 0.5),
            "height": (16, 32),
            "width": (16, 32),
            "padding_mask_crop": None,
            "num_inference_steps": None,  # the solver's
            "timesteps": None,  # the target's, as are sigmas
            "sigmas": None,
            "guidance_scale": (5.0, 2.0),
            "negative_prompt": ("ugly", "bad"),
            "negative_prompt_embeds": None,  # refused
            "eta": (0.0, 0.5),
            "ip_adapter_image": None,
            "ip_adapter_image_embeds": None,
            "cross_attention_kwargs": ({"scale": 1.0}, {"scale": 0.5}),
            "clip_skip": None,  # of a module that transformers 5 no longer has
            "callback_on_step_end": None,  # below
            "callback_on_step_end_tensor_inputs": (["latents"], []),
            "kwargs": None,
        }
        parameters = set(inspect.signature(cls.__call__).parameters) - {"self", *_OWN, "prompt_embeds"}
        assert parameters <= set(others), "an argument that this test does not know"
        pipe = testing.tiny_stable_diffusion(cls)
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
        first = {name: pair[0] for name, pair in others.items() if pair and name in parameters}
        first.pop("cross_attention_kwargs")
        assert evaluations(pipe, tmp_path, guidance_scale=None, pipe_kwargs=first) > 0
        assert evaluations(pipe, tmp_path, guidance_scale=None, pipe_kwargs=first) == 0
        for name in parameters & {name for name, pair in others.items() if pair}:
            changed = {**first, name: others[name][1]}
            assert evaluations(pipe, tmp_path, guidance_scale=None, pipe_kwargs=changed) > 0, name

    def test_says_what_it_cannot_tell_and_keeps_nothing(self, tmp_path, caplog):
        def watch(pipe, step, timestep, tensors, lock=threading.Lock()):  # noqa: B008
            return tensors

        for _ in range(2):
            call = {"callback_on_step_end": watch}
            assert evaluations(testing.tiny_stable_diffusion(), tmp_path, pipe_kwargs=call) > 0
        assert "banks are neither found nor kept" in caplog.text
        assert "watch (call['callback_on_step_end'])['defaults'][0][0] is a lock" in caplog.text
        assert not list(tmp_path.iterdir())

    def test_scores_anew_with_a_reward_that_computes_otherwise(self, tmp_path):
        def rewards(factor):
            reward = Weighted(factor)
            lidar = LiDAR(testing.tiny_stable_diffusion(), reward=reward, n=2, lookahead="dpm:2", store=tmp_path)
            banks, cost = lidar.draw_banks(["a cat"], 0)
            return banks[0].reward("Weighted"), cost.reward_calls

        first, _ = rewards(1.0)
        second, calls = rewards(3.0)
        assert calls == 2
        assert torch.allclose(second, 3 * first)
        assert rewards(3.0)[1] == 0
        assert len(list(tmp_path.iterdir())) == 1  # the samples are the same

    def test_keeps_the_rewards_of_others(self, tmp_path):
        def look(reward):
            lidar = LiDAR(testing.tiny_stable_diffusion(), reward=reward, n=2, lookahead="dpm:2", store=tmp_path)
            return lidar.draw_banks(["a cat"], 0)

        look("brightness")
        look("jpeg-compressibility")
        assert look("brightness")[1].reward_calls == look("jpeg-compressibility")[1].reward_calls == 0


def hook(factor):
    return lambda module, args, output: output


def forward(pipe):
    old = pipe.unet.forward
    pipe.unet.forward = lambda *args, **kwargs: (old(*args, **{**kwargs, "return_dict": False})[0] * 2,)


class Counted:
    factor = 1.0

    def __call__(self, *, images, prompts):
        return self.factor * images.mean((1, 2, 3))


class Doubled(Counted):
    factor = 2.0


class Slots:
    __slots__ = ("k",)

    def __init__(self, k):
        self.k = k


class Net(torch.nn.Module):
    def __init__(self, k):
        super().__init__()
        self._k = k


def palette(shade):
    picture = Image.new("P", (4, 4))
    picture.putpalette([shade] * 768)
    return picture


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Counted(), Doubled()),
        (Counted, Doubled),
        (Slots(1), Slots(2)),
        (Net(1), Net(2)),
        (palette(0), palette(255)),
        ({1: 2}, {"1": 2}),
        ({"a": 1}.get, {"a": 2}.get),
        (np.ma.array([1, 2], mask=[0, 1]), np.ma.array([1, 2], mask=[1, 0])),
        (re.compile("a"), re.compile("b")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_no_kind_of_value_hides_a_difference(one, other):
    assert key(contents(one)) == key(contents(one)) != key(contents(other))


def test_the_same_number_has_the_same_key():
    assert contents([5, 2.5]) == contents([5.0, np.float32(2.5)]) == contents([np.int64(5), 2.5])


@pytest.mark.parametrize(
    "tensor", [torch.eye(3).to_sparse(), torch.quantize_per_tensor(torch.eye(3), 0.1, 0, torch.qint8)]
)
def test_tensors_of_other_layouts_are_opaque(tensor):
    with pytest.raises(OpaqueError, match="cannot be compared"):
        digest(tensor)


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p.unet.register_forward_hook(hook(1.0)),
        forward,
        lambda p: p.text_encoder.train(),
        lambda p: setattr(p.tokenizer, "truncation_side", "left"),
        lambda p: p.scheduler.alphas_cumprod.mul_(0.9),
    ],
    ids=["a hook", "forward", "train mode", "truncation side", "levels of the scheduler"],
)
def test_what_stands_beside_the_weights_counts(change):
    pipe = testing.tiny_stable_diffusion()
    before = pipeline_contents(pipe)
    change(pipe)
    assert pipeline_contents(pipe) != before


def test_two_hooks_of_one_name_differ():
    found = set()
    for factor in (1.0, 2.0):
        pipe = testing.tiny_stable_diffusion()
        pipe.unet.register_forward_hook(hook_with(factor))
        found.add(key(pipeline_contents(pipe)))
    assert len(found) == 2


def hook_with(factor):
    return lambda module, args, output: (factor * output[0],) if isinstance(output, tuple) else None


def test_what_a_guider_of_a_modular_pipeline_does_counts():
    pipe = testing.tiny_modular_stable_diffusion_xl()
    before = pipeline_contents(pipe)
    pipe.guider.disable()
    assert pipeline_contents(pipe) != before


@pytest.mark.parametrize("name", [name for name, tiny in testing.PIPELINES.items() if tiny.kept])
def test_saving_leaves_a_pipeline_what_it_was(name, tmp_path):
    pipe = testing.PIPELINES[name].make()
    before = pipeline_contents(pipe)
    pipe.save_pretrained(tmp_path)
    assert pipeline_contents(pipe) == before


@pytest.mark.parametrize(
    "change",
    [lambda p: p.vae.enable_slicing(), lambda p: p.unet.enable_gradient_checkpointing()],
    ids=["slicing", "gradient checkpointing"],
)
def test_what_computes_the_same_does_not_count(change):
    pipe = testing.tiny_stable_diffusion()
    before = pipeline_contents(pipe)
    change(pipe)
    assert pipeline_contents(pipe) == before


def make(source):
    """Return the function ``f`` of a source, as if it stood in a user's module."""
    space = {"__name__": "__main__"}
    exec(source, space)
    return space["f"]


@pytest.mark.parametrize(
    "body",
    [
        "return x + 1",
        "g = lambda: 'word'\n    return g()",
        "def g():\n        'Inner.'\n        return x\n    return g()",
    ],
)
def test_a_docstring_does_not_count(body):
    plain, said, other = (
        make(f"def f(x):\n    {doc}{body}\n") for doc in ("", "'Say.'\n    ", "'Say it otherwise.'\n    ")
    )
    assert contents(said) == contents(other) == contents(plain)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("def f(x):\n    return 'a'\n", "def f(x):\n    return 'b'\n"),
        ("f = lambda x: 'a'\n", "f = lambda x: 'b'\n"),
        ("def f(x):\n    'Say.'\n    return 'Say.'\n", "def f(x):\n    'Say.'\n    return 'Do.'\n"),
        ("def f(x):\n    'Say.'\n    return 'Say.'\n", "def f(x):\n    'Do.'\n    return 'Do.'\n"),
        ("def f(x):\n    return ['a' + y for y in x]\n", "def f(x):\n    return ['b' + y for y in x]\n"),
        ("def f(x):\n    return list('a' for y in x)\n", "def f(x):\n    return list('b' for y in x)\n"),
    ],
)
def test_a_text_that_is_returned_counts(one, other):
    assert contents(make(one)) != contents(make(other))
