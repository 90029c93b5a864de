"""The audio-text logit of CLAP (Wu et al. 2023, https://arxiv.org/abs/2211.06687) as a reward for audio.

``exp(logit_scale_a) cos(u, v)`` of transformers' ``ClapModel``, by its own scale as in ``clip``. Prompts are cut at
77 tokens, as the original does (``src/laion_clap/hook.py``, https://github.com/LAION-AI/CLAP).

The model hears ten seconds of one channel at 48 kHz. Channels are averaged, and a shorter clip is repeated, as the
model's extractor does. From a longer clip the original and ``ClapFeatureExtractor`` take ten seconds at random; here
the mean over evenly spaced windows counts, as few as cover the clip. Models with feature fusion mix three random
crops and are refused. The original first rounds audio to 16 bits; transformers and this reward do not.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ._towers import _unit
from ._weights import Source, load_pretrained, name_with_source, where

CONTEXT = 77  # tokens per prompt
_TOGETHER = 64  # windows per batch, since a song has many

# The low-pass filter of resampling: a sinc that ends at .95 of the lower Nyquist frequency and has 64 zeros a side,
# under a Kaiser window of 90 dB (https://ccrma.stanford.edu/~jos/sasp/Kaiser_Window.html).
_CUT, _ZEROS, _BETA, _MOST_WEIGHTS = 0.95, 64, 8.96, 2**24


class CLAP:
    """The match of audio and prompts by an unfused CLAP model of transformers.

    Args:
        model: published weights, a folder or a hub id.
        tokenizer: where the tokenizer is; by default with the model.
        sampling_rate: sampling rate of the audio in Hz, such as 44100 for Stable Audio and 16000 for AudioLDM 2. A
            tensor does not carry it: with a wrong rate the model hears everything too fast or too slow, without an
                error.
        device: where the model runs.
        dtype: its precision; audio and cosines are float32.

    Raises:
        FileNotFoundError: the model is neither a folder, nor in the hub's cache, nor reachable.
        ValueError: the model is of another kind or lacks weights, or the rate has no simple ratio to the model's.
    """

    differentiable = False  # the extractor of transformers works in numpy

    def __init__(
        self,
        model: Source,
        *,
        tokenizer: Source | None = None,
        sampling_rate: int = 48000,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        from transformers import AutoConfig, AutoTokenizer, ClapFeatureExtractor, ClapModel

        self.name, origin = name_with_source("clap", model), where(model)[0]
        config = load_pretrained(AutoConfig.from_pretrained, model)
        if config.model_type != "clap":
            raise ValueError(f"{origin} is a {config.model_type} model, not CLAP")
        if config.audio_config.enable_fusion:
            raise ValueError(f"{origin} fuses random crops: give an unfused CLAP, such as laion/larger_clap_general")
        network, found = load_pretrained(ClapModel.from_pretrained, model, dtype=dtype, output_loading_info=True)
        if missing := sorted({*found["missing_keys"]} & dict(network.named_parameters()).keys()):
            raise ValueError(f"{origin} is no complete CLAP: it lacks {len(missing)} weights, first {missing[0]}")
        self._model = network.to(device).eval().requires_grad_(False)
        self.networks = [self._model.audio_model]  # texts are few
        self._extractor = load_pretrained(ClapFeatureExtractor.from_pretrained, model)
        self._tokenizer = load_pretrained(AutoTokenizer.from_pretrained, tokenizer or model)
        _filter(sampling_rate, self._extractor.sampling_rate)
        self.sampling_rate = sampling_rate

    def at_rate(self, sampling_rate: int) -> CLAP:
        """Return this reward for audio of another rate in Hz, with the same model; ValueError as above."""
        _filter(sampling_rate, self._extractor.sampling_rate)
        other = copy.copy(self)
        other.sampling_rate = sampling_rate
        return other

    @torch.no_grad()
    def __call__(self, *, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return logits (B,) float32 of audio (B, channels, S) in [-1, 1] and B prompts, on the model's device."""
        if images.dim() != 3 or not images.shape[1] or not images.shape[2]:
            raise ValueError(f"CLAP hears audio (B, channels, samples), got shape {tuple(images.shape)}")
        if len(images) != len(prompts):
            raise ValueError(f"audio and prompts must have the same length, got {len(images)} and {len(prompts)}")
        audio = resample(images.float().mean(1), self.sampling_rate, self._extractor.sampling_rate)
        clips = windows(audio, self._extractor.nb_max_samples)
        heard = torch.cat([self._hear(some) for some in clips.flatten(0, 1).split(_TOGETHER)])
        cosines = (heard.unflatten(0, clips.shape[:2]) * self._encode_prompts(prompts)[:, None]).sum(2).mean(1)
        return self._model.logit_scale_a.float().exp() * cosines

    def _hear(self, clips: Tensor) -> Tensor:
        """Return unit features (N, d) of clips (N, S) of at most ten seconds."""
        options = {"sampling_rate": self._extractor.sampling_rate, "return_tensors": "pt"}
        # rand_trunc selects the mel filters of unfused models; clips of this length are not cut
        mel = self._extractor(clips.cpu().numpy(), truncation="rand_trunc", **options)["input_features"]
        return _unit(self._model.get_audio_features(mel.to(self._model.device, self._model.dtype)))

    def _encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Return unit features (B, d) of B prompts; equal ones are encoded once."""
        distinct = list(dict.fromkeys(prompts))
        options = {"padding": "max_length", "truncation": True, "max_length": CONTEXT, "return_tensors": "pt"}
        tokens = self._tokenizer(distinct, return_token_type_ids=False, **options).to(self._model.device)
        return _unit(self._model.get_text_features(**tokens))[[distinct.index(prompt) for prompt in prompts]]


def windows(audio: Tensor, length: int) -> Tensor:
    """Return evenly spaced windows (B, K, length) of audio (B, S), as few as cover it; shorter audio stays whole.

    >>> windows(torch.arange(7)[None], 3).tolist()
    [[[0, 1, 2], [2, 3, 4], [4, 5, 6]]]
    """
    count = math.ceil(audio.shape[1] / length)
    starts = [k * (audio.shape[1] - length) // max(count - 1, 1) for k in range(count)]
    return torch.stack([audio[:, start : start + length] for start in starts], 1)


def resample(audio: Tensor, given: int, wanted: int) -> Tensor:
    """Resample audio (B, S) from rate ``given`` to rate ``wanted``: (B, ceil(S * wanted / given)), on its device.

    Each phase of the new rate has its filter, all in one strided convolution:
    https://ccrma.stanford.edu/~jos/resample/ It raises ValueError if ``given`` is not a whole number above 0, or the
    ratio is not simple, as 44101 to 48000.
    """
    if given == wanted:
        return audio
    filters, step = _filter(given, wanted)
    reach = (filters.shape[2] - step) // 2
    phases = F.conv1d(F.pad(audio[:, None], (reach, reach + step)), filters.to(audio), stride=step)
    return phases.transpose(1, 2).flatten(1)[:, : math.ceil(audio.shape[1] * wanted / given)]


def _filter(given: int, wanted: int) -> tuple[Tensor, int]:
    """Return the filters (phases, 1, 2 reach + step) of :func:`resample`, and the number of samples per step."""
    if not isinstance(given, int) or given < 1:
        raise ValueError(f"sampling_rate must be a whole number of Hz above 0, got {given!r}")
    step, phases = given // math.gcd(given, wanted), wanted // math.gcd(given, wanted)
    cut = _CUT * min(1, wanted / given)  # as a share of the given Nyquist frequency
    reach = math.ceil(_ZEROS / cut)
    if phases * (step + 2 * reach) > _MOST_WEIGHTS:
        raise ValueError(f"sampling_rate {given} has no simple ratio to {wanted}: resample the audio yourself")
    times = cut * (torch.arange(phases).double()[:, None] * step / phases - torch.arange(-reach, reach + step))
    taper = torch.special.i0(_BETA * (1 - (times / _ZEROS) ** 2).clamp(min=0).sqrt()) * (times.abs() <= _ZEROS)
    taper = taper / torch.special.i0(torch.tensor(_BETA, dtype=torch.float64))
    return (cut * torch.sinc(times) * taper)[:, None], step
