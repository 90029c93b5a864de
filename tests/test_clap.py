"""CLAP on a tiny random model of its real class, against the model itself, one clip at a time."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pictures import PROMPTS, WORDS, words_tokenizer
from tokenizers import processors
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

from lidar_sampling import rewards
from lidar_sampling._contents import contents
from lidar_sampling.glyph import DATA
from lidar_sampling.rewards.clap import CLAP, resample, windows

RATE, SECONDS = 8000, 1  # of the tiny model; the published ones take 48000 Hz and 10 seconds
LENGTH = RATE * SECONDS


def tiny_clap(path, **audio):
    torch.manual_seed(0)
    config = ClapConfig(
        text_config={
            "vocab_size": 4 + len(WORDS),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 80,
        },
        audio_config={
            "spec_size": 64,
            "num_mel_bins": 32,
            "window_size": 4,
            "depths": [1, 1],
            "num_attention_heads": [2, 4],
            "patch_embeds_hidden_size": 16,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            **audio,
        },
        projection_dim=24,
    )
    model = ClapModel(config)
    for name, value in model.named_parameters():
        if "norm" not in name and "logit_scale" not in name:
            value.data.normal_(0, 0.3)
    model.logit_scale_a.data.fill_(math.log(20.0))
    model.logit_scale_t.data.fill_(math.log(7.0))
    model.save_pretrained(path)
    ClapFeatureExtractor(
        feature_size=32,
        sampling_rate=RATE,
        hop_length=80,
        max_length_s=SECONDS,
        fft_window_size=256,
        frequency_min=50,
        frequency_max=3500,
        truncation="rand_trunc",
        padding="repeatpad",
    ).save_pretrained(path)
    words_tokenizer(
        ["<unk>", "<pad>", "<s>", "</s>"],
        post_processor=processors.RobertaProcessing(("</s>", 3), ("<s>", 2)),
        pad_token="<pad>",
        cls_token="<s>",
        sep_token="</s>",
    ).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_clap(tmp_path_factory.mktemp("clap"))


@pytest.fixture(scope="module")
def clap(folder):
    return CLAP(folder, sampling_rate=RATE)


def noise(n=3, channels=1, samples=LENGTH, seed=0):
    """Return clips that rise and fall, each at its own frequency, with added noise."""
    generator = torch.Generator().manual_seed(seed)
    times = torch.arange(samples) / RATE
    tones = [torch.sin(2 * math.pi * (200 * (k + 1) + 300 * times) * times) for k in range(n * channels)]
    return 0.5 * torch.stack(tones).view(n, channels, -1) + 0.2 * torch.rand(
        n, channels, samples, generator=generator
    )


def restated(folder, clip, prompt):
    """Return the logit of one clip (S,) of at most a second, by transformers alone: ``logits_per_audio``."""
    if len(clip) < LENGTH:
        clip = clip.repeat(LENGTH // len(clip))
    clip = np.pad(clip.numpy().astype(np.float64), (0, LENGTH - len(clip)))
    extractor = ClapFeatureExtractor.from_pretrained(folder)
    framed = np.pad(clip, 128, mode="reflect")
    frames = np.stack([framed[start : start + 256] for start in range(0, LENGTH + 1, 80)])
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(256) / 256)
    power = np.abs(np.fft.rfft(frames * hann)) ** 2
    mel = 10 * np.log10(np.maximum(power @ extractor.mel_filters_slaney, 1e-10))
    ids = torch.tensor([[2, *[4 + WORDS.index(word) for word in prompt.split()][:75], 3]])
    with torch.no_grad():
        out = ClapModel.from_pretrained(folder).eval()(
            input_ids=ids, attention_mask=torch.ones_like(ids), input_features=torch.tensor(mel).float()[None, None]
        )
    return out.logits_per_audio.item()


@pytest.mark.parametrize("samples", [LENGTH, 3000, 1])
def test_clap_is_the_logit_of_transformers_one_clip_at_a_time(folder, clap, samples):
    audio = noise(samples=samples)
    expected = [restated(folder, clip[0], prompt) for clip, prompt in zip(audio, PROMPTS, strict=True)]
    scores = clap(images=audio, prompts=PROMPTS)
    assert scores.dtype == torch.float32
    assert scores.std() > 0.1
    assert scores.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-3)


@pytest.mark.parametrize("samples", [LENGTH, 3 * LENGTH + 500, 700])
def test_the_batch_does_not_matter_and_nothing_is_random(clap, samples):
    audio = noise(samples=samples)
    whole = rewards.score(clap, images=audio, prompts=PROMPTS)
    single = rewards.score(clap, images=audio, prompts=PROMPTS, batch_size=1)
    torch.testing.assert_close(single, whole, rtol=1e-5, atol=1e-5)
    assert torch.equal(rewards.score(clap, images=audio, prompts=PROMPTS), whole)


def test_long_clips_are_the_mean_of_windows_from_their_start_to_their_end(folder, clap):
    audio = noise(1, samples=2 * LENGTH + 100)
    starts = (0, (LENGTH + 100) // 2, LENGTH + 100)
    parts = [restated(folder, audio[0, 0, start : start + LENGTH], PROMPTS[0]) for start in starts]
    assert clap(images=audio, prompts=PROMPTS[:1]).item() == pytest.approx(sum(parts) / 3, rel=1e-4, abs=1e-3)


def test_no_number_is_drawn_of_numpys_generator(clap):
    state = np.random.get_state()[1].copy()
    clap(images=noise(1, samples=3 * LENGTH), prompts=PROMPTS[:1])
    assert (np.random.get_state()[1] == state).all()


@given(st.integers(1, 400), st.integers(1, 40))
def test_windows_cover_the_clip_and_are_as_few_as_can(samples, length):
    cut = windows(torch.arange(samples)[None], length)
    assert cut.shape == (1, math.ceil(samples / length), min(samples, length))
    assert cut.unique().tolist() == list(range(samples))
    assert cut[0, 0, 0] == 0
    assert cut[0, -1, -1] == samples - 1
    steps = cut[0, :, 0].diff()
    assert len(steps) == 0 or steps.max() - steps.min() <= 1


def test_channels_are_averaged(clap):
    audio = noise(2, channels=2)
    mono = clap(images=audio.mean(1, keepdim=True), prompts=PROMPTS[:2])
    torch.testing.assert_close(clap(images=audio, prompts=PROMPTS[:2]), mono, rtol=1e-5, atol=1e-5)
    twice = clap(images=audio[:, :1].repeat(1, 2, 1), prompts=PROMPTS[:2])
    torch.testing.assert_close(twice, clap(images=audio[:, :1], prompts=PROMPTS[:2]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("samples", [LENGTH, 123, 2 * LENGTH + 1])
@pytest.mark.parametrize("rate", [RATE, 22050])
def test_silence_has_a_score(clap, samples, rate):
    scores = clap.at_rate(rate)(images=torch.zeros(2, 2, samples), prompts=PROMPTS[:2])
    assert scores.isfinite().all()


def test_prompts_are_cut_at_77_tokens(folder, clap):
    prompt = "a red cup " * 60
    expected = restated(folder, noise(1)[0, 0], prompt)
    before = contents(clap)
    assert clap(images=noise(1), prompts=[prompt]).item() == pytest.approx(expected, rel=1e-4, abs=1e-3)
    assert contents(clap) == before


# Resampling


TOLERANCE = 1e-4  # 80 dB below a full tone


def sine(frequency, rate, seconds=0.25, phase=0.4):
    times = torch.arange(math.ceil(seconds * rate), dtype=torch.float64) / rate
    return torch.sin(2 * math.pi * frequency * times + phase)[None].float()


def middle(audio):
    return audio[:, audio.shape[1] // 4 : -audio.shape[1] // 4]


RATES = st.sampled_from([8000, 11025, 16000, 22050, 24000, 32000, 44100, 48000, 96000])


@given(RATES, st.sampled_from([8000, 48000]), st.floats(0.01, 0.9))
def test_a_sine_of_one_rate_is_that_sine_at_another(given_rate, wanted, place):
    frequency = place * min(given_rate, wanted) / 2
    out, expected = resample(sine(frequency, given_rate), given_rate, wanted), sine(frequency, wanted)
    assert out.shape[1] == math.ceil(math.ceil(0.25 * given_rate) * wanted / given_rate)
    count = min(out.shape[1], expected.shape[1])
    assert (middle(out[:, :count]) - middle(expected[:, :count])).abs().max() < TOLERANCE


@given(st.sampled_from([16000, 44100, 96000]), st.floats(1.0, 1.9))
def test_what_is_above_the_new_nyquist_frequency_is_gone(given_rate, place):
    out = resample(sine(min(place * 4000, given_rate / 2 - 100), given_rate), given_rate, 8000)
    assert middle(out).abs().max() < TOLERANCE


@given(RATES, st.integers(1, 3000))
def test_a_constant_stays_and_the_length_is_rounded_up(given_rate, samples):
    out = resample(torch.ones(2, samples), given_rate, 48000)
    assert out.shape == (2, math.ceil(samples * 48000 / given_rate))
    assert samples < 2000 or (middle(out) - 1).abs().max() < TOLERANCE


def test_resampling_is_close_to_scipys_and_linear():
    from scipy.signal import resample_poly

    audio = torch.stack([sine(f, 44100)[0] for f in (440.0, 3000.0, 12000.0)]).double()
    out = resample(audio, 44100, 48000)
    assert (middle(out) - middle(torch.tensor(resample_poly(audio.numpy(), 160, 147, axis=1)))).abs().max() < 0.01
    torch.testing.assert_close(resample(audio.sum(0, keepdim=True), 44100, 48000), out.sum(0, keepdim=True))


def test_the_same_rate_changes_nothing():
    audio = noise(1)[0]
    assert torch.equal(resample(audio, RATE, RATE), audio)


def test_audio_of_another_rate_scores_as_at_the_models_own(folder, clap):
    """A tone with overtones is sampled at two rates; the score differs from that of the tone at the wrong rate."""
    stack = [sum(sine(300 * k, rate, 1.0) for k in (1, 2, 3)) / 4 for rate in (RATE, 24000)]
    own = clap(images=stack[0][None], prompts=PROMPTS[:1]).item()
    other = CLAP(folder, sampling_rate=24000)(images=stack[1][None], prompts=PROMPTS[:1]).item()
    wrong = clap(images=stack[1][None], prompts=PROMPTS[:1]).item()
    assert abs(own - other) < 0.1 * abs(own - wrong)
    assert clap.at_rate(24000)(images=stack[1][None], prompts=PROMPTS[:1]).item() == other


def test_at_rate_leaves_the_reward_as_it_was(clap):
    other = clap.at_rate(44100)
    assert (clap.sampling_rate, other.sampling_rate) == (RATE, 44100)
    assert other.networks is clap.networks
    assert contents(other) != contents(clap)


@pytest.mark.parametrize("rate", [0, -8000, 44100.0, "48000", None])
def test_a_rate_that_is_none_is_refused(clap, rate):
    with pytest.raises(ValueError, match="sampling_rate must be a whole number of Hz above 0"):
        clap.at_rate(rate)


def test_a_rate_without_a_simple_ratio_is_refused(clap):
    with pytest.raises(ValueError, match="sampling_rate 44101 has no simple ratio to 48000"):
        resample(torch.zeros(1, 8), 44101, 48000)
    with pytest.raises(ValueError, match="sampling_rate 44101 has no simple ratio to 8000"):
        clap.at_rate(44101)


# What is loaded, and what is refused


def test_the_published_layout_loads(tmp_path, folder, clap):
    """laion/larger_clap_general has its weights in pytorch_model.bin."""
    from safetensors.torch import load_file

    for file in folder.iterdir():
        if file.name != "model.safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save(load_file(folder / "model.safetensors"), tmp_path / "pytorch_model.bin")
    reward = CLAP(tmp_path, tokenizer=folder, sampling_rate=RATE)
    assert torch.equal(reward(images=noise(), prompts=PROMPTS), clap(images=noise(), prompts=PROMPTS))


def test_another_kind_of_model_is_refused():
    with pytest.raises(ValueError, match=r"reward-clip is a clip model, not CLAP"):
        CLAP(DATA / "reward-clip")


def test_fused_models_are_refused(tmp_path, folder):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["audio_config"]["enable_fusion"] = True
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match=r"fuses random crops: give an unfused CLAP, such as laion/larger_clap_general"
    ):
        CLAP(tmp_path)


def test_a_folder_without_weights_of_clap_is_refused(tmp_path, folder):
    from safetensors.torch import load_file, save_file

    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    weights = {name: value for name, value in weights.items() if not name.startswith("audio_projection.")}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"is no complete CLAP: it lacks 4 weights, first audio_projection\.linear1"):
        CLAP(tmp_path)


@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (2, 100), (2, 0, 100), (2, 1, 0)])
def test_what_is_no_audio_is_refused(clap, shape):
    with pytest.raises(ValueError, match=r"CLAP hears audio \(B, channels, samples\), got shape"):
        clap(images=torch.zeros(shape), prompts=PROMPTS[:2])


def test_as_many_clips_as_prompts(clap, folder):
    assert clap.name == f"clap:{folder}"
    assert not clap.differentiable
    with pytest.raises(ValueError, match="must have the same length, got 2 and 1"):
        clap(images=noise(2), prompts=["a cat"])


def test_networks_are_what_hears_every_window(clap):
    heard = []
    (network,) = clap.networks
    handle = network.register_forward_pre_hook(lambda _, args, kwargs: heard.append(kwargs), with_kwargs=True)
    clap(images=noise(2, samples=2 * LENGTH), prompts=PROMPTS[:2])
    handle.remove()
    assert [len(kwargs["input_features"]) for kwargs in heard] == [4]


def test_bfloat16_models_return_float32(folder, clap):
    half = CLAP(folder, sampling_rate=RATE, dtype=torch.bfloat16)(images=noise(), prompts=PROMPTS)
    full = clap(images=noise(), prompts=PROMPTS)
    assert half.dtype == torch.float32
    assert (half - full).abs().max() < 2  # of 20 times a cosine


class TestInASampler:
    def test_a_reward_of_ones_own_at_another_rate_is_refused(self, monkeypatch):
        from lidar_sampling import LiDAR, testing

        def hears(rate):
            def reward(*, images, prompts):
                return images.mean((1, 2))

            reward.sampling_rate = rate
            return reward

        pipe = testing.tiny_audio_ldm_2()
        with pytest.raises(ValueError, match="hears 48000 samples per second, and the pipeline draws 16: give it"):
            LiDAR(pipe, reward=hears(48000), n=2, steps=2)
        assert LiDAR(pipe, reward=hears(16), n=2, steps=2).sample(["rain"], 1, 0).sampling_rate == 16

        mine = hears(48000)
        monkeypatch.setattr("lidar_sampling.rewards.load", lambda name, **_: mine)
        assert LiDAR(pipe, reward="clap", n=2, steps=2).reward.sampling_rate == 16
