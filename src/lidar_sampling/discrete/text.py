"""LiDAR over diffusers' pipelines of text: masks that a language model fills block by block (LLaDA 2).

``LLaDA2Pipeline`` writes a block of tokens after the other. In each of its steps the model says what every token of
the block may be, the scheduler draws them all and keeps those that it is surest of. Guidance adds a factor of the
bank to what the model says, ``log p(v) + s g_l(v)``, in one of two forms (:mod:`lidar_sampling.discrete`):

    token-independent   what the members' tokens at l say of v, all members weighed alike: for banks of tens
    single-site         the members weighed by how many of the other tokens they share with the text: for banks so
                        large that some do

Masks say nothing, so the share of noise drops out; blocks that are done weigh the members for those that follow.

With one token per block the sampler is autoregressive, and the single-site form with a bank that holds the population
makes its law the tilted one exactly. With more, a step keeps tokens by how likely they are, which no law has a
formula for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .._bank import BankError, LookaheadBank, warn_of_another, warn_of_equal
from .._call import check_call
from .._cost import Cost
from .._draw import Item, items_of
from .._prompts import check_prompt
from .._settings import check_strength
from .._space import Space
from .._values import accepts, check_fields
from ..rewards import name_of
from ._guidance import TokenMembers
from ._kernels import Absorbing
from ._reward import TextReward, score

TextForm = Literal["token-independent", "single-site"]
_ALPHA = 0.5  # any share of noise gives the same factors
_TINY = 1e-300
_OWN = {"prompt", "messages", "input_ids", "attention_mask", "generator", "output_type", "return_dict"}
_OWN |= {"gen_length", "num_inference_steps", "mask_token_id", "eos_token_id"}


@dataclass(frozen=True)
class TextSettings:
    """How texts are drawn and guided.

    Attributes:
        n: lookahead samples per prompt.
        lookahead_steps: steps per block of each; at most so many, since tokens that the model is sure of come sooner.
        steps: per block of the guided samples, likewise.
        gen_length: tokens of a text.
        reward_scale: lambda, in 1 / reward, at least 0.
        scale: s, of the estimate, at least 0; 1 is the tilted law.
        form: of guidance.
        softness: how little a token that differs from a member's counts against that member, in (0, 1).
    """

    n: int = 32
    lookahead_steps: int = 4
    steps: int = 32
    gen_length: int = 128
    reward_scale: float = 1.0
    scale: float = 1.0
    form: TextForm = "token-independent"
    softness: float = 0.1

    def __post_init__(self) -> None:
        whole = dict.fromkeys(("n", "lookahead_steps", "steps", "gen_length"), "[1, inf)")
        check_fields(self, **whole, softness="(0, 1)")
        for name in ("reward_scale", "scale"):
            check_strength(name, getattr(self, name))


@dataclass
class TextResult:
    """Texts with their rewards, costs and settings.

    Attributes:
        texts: of each prompt, as many as samples were asked for.
        tokens: (P, m, L) what they were decoded from.
        rewards: (P, m) of what guided.
        cost: of each phase: ``lookahead``, ``sampling``, ``scoring``.
        settings: how they were drawn.
        seed: the seed.
        banks: what guided, one per prompt; empty for plain samples.
    """

    texts: list[list[str]]
    tokens: Tensor
    rewards: Tensor
    cost: dict[str, Cost]
    settings: TextSettings
    seed: int
    banks: Sequence[LookaheadBank] = ()


class TextLiDAR:
    """Lookahead sample reward guidance of a text diffusion pipeline, by any function of a text.

    One text is drawn at a time: the pipeline lets the slowest text of a batch decide how many steps all others take,
    and draws them all from one generator, so a text would depend on its neighbours.

    Args:
        pipe: a diffusers ``LLaDA2Pipeline`` with its tokenizer.
        reward: from a text to a number; higher is better.
        temperature: of the draws, above 0: at 0 all members of a bank would be one text.
        pipe_kwargs: further arguments of the pipeline, such as ``block_length`` or ``top_p``.
        **settings: fields of :class:`TextSettings`.

    Raises:
        TypeError: another pipeline, or a reward that is not a function.
        ValueError: a setting that is not known or out of range.

    Example:
        >>> from lidar_sampling import testing
        >>> def letters(text):
        ...     return sum(map(str.isalpha, text))
        >>> lidar = TextLiDAR(testing.tiny_llada_2(), reward=letters, gen_length=8, n=16, steps=4)
        >>> result = lidar("a cat", samples=2)
        >>> len(result.texts[0]), result.rewards.shape, result.banks[0].samples.shape
        (2, torch.Size([1, 2]), torch.Size([16, 8]))
    """

    def __init__(
        self,
        pipe: Any,
        *,
        reward: TextReward,
        temperature: float = 1.0,
        pipe_kwargs: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        scheduler = getattr(pipe, "scheduler", None)
        if type(scheduler).__name__ != "BlockRefinementScheduler" or type(pipe).__name__ != "LLaDA2Pipeline":
            raise TypeError(f"pipe must be a diffusers LLaDA2Pipeline, got {type(pipe).__name__}")
        if getattr(pipe, "tokenizer", None) is None or pipe.mask_token_id is None:
            raise TypeError("pipe must have a tokenizer with a mask token, which says where text is to be written")
        if not isinstance(pipe.model, nn.Module):
            raise TypeError(f"the model of pipe must be a torch module, got {type(pipe.model).__name__}")
        if not callable(reward):
            raise TypeError(f"reward must be a function of a text, got {reward!r}")
        if not accepts(float, temperature) or not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature!r}: at 0 every sample is the same")
        unknown = [name for name in settings if name not in TextSettings.__dataclass_fields__]
        if unknown:
            known = ", ".join(TextSettings.__dataclass_fields__)
            raise ValueError(f"unknown setting {unknown[0]!r}; known are {known}")
        if clash := sorted(_OWN & set(pipe_kwargs or ())):
            raise ValueError(f"{clash[0]} is set by lidar itself, leave it out of pipe_kwargs")
        if "temperature" in (pipe_kwargs or {}):
            raise ValueError(
                "temperature is an argument of TextLiDAR: give it there, and leave it out of pipe_kwargs"
            )
        check_call(pipe, pipe_kwargs or {})
        if (pipe_kwargs or {}).get("sampling_method") == "greedy":
            raise ValueError("sampling_method='greedy' draws every sample alike: leave it out")
        self.pipe, self.reward, self.settings = pipe, reward, TextSettings(**settings)
        self.call = {**(pipe_kwargs or {}), "temperature": temperature}
        self.space = Space(f"{type(pipe).__name__} of {len(pipe.tokenizer)} tokens", (self.settings.gen_length,))

    def look(self, prompts: str | Sequence[str], *, seed: int = 0) -> list[LookaheadBank]:
        """Draw a bank of ``n`` texts per prompt in few steps, and score them once: phase 1."""
        return [self._draw_bank(prompt, seed)[0] for prompt in _as_list(prompts)]

    def __call__(
        self,
        prompts: str | Sequence[str],
        *,
        samples: int = 1,
        seed: int = 0,
        banks: Sequence[LookaheadBank] | None = None,
    ) -> TextResult:
        """Return ``samples`` guided texts per prompt; they cost the banks, unless those are given, and plain ones.

        Raises:
            BankError: a bank of another prompt or of texts of another length or tokenizer.
            RewardError, ValueError: the reward raised, or gave something else than a finite number.
        """
        prompts, cost = _as_list(prompts), Cost()
        if banks is None:
            looked = [self._draw_bank(prompt, seed) for prompt in dict.fromkeys(prompts)]
            by_prompt = {bank.prompt: bank for bank, _ in looked}
            banks, cost = [by_prompt[prompt] for prompt in prompts], sum((part for _, part in looked), Cost())
        if len(banks) != len(prompts):
            raise BankError(f"{len(prompts)} prompts need as many banks, got {len(banks)}")
        for bank, prompt in zip(banks, prompts, strict=True):
            self._check(bank, prompt)
        for bank in {bank.prompt: bank for bank in banks}.values():
            warn_of_another(bank, name_of(self.reward))
            warn_of_equal(bank, name_of(self.reward))
        result = self._sample(prompts, samples, seed, banks)
        result.cost = {"lookahead": cost, **result.cost}
        return result

    def vanilla(self, prompts: str | Sequence[str], *, samples: int = 1, seed: int = 0) -> TextResult:
        """Return ``samples`` texts per prompt without guidance, from the noise of the guided ones."""
        return self._sample(_as_list(prompts), samples, seed, ())

    def decode(self, tokens: Tensor) -> list[str]:
        """Return the texts of tokens (B, L), each up to its end."""
        end, rows = self.pipe.eos_token_id, []
        for row in tokens.tolist():
            rows.append(row[: row.index(end)] if end in row else row)
        return self.pipe.tokenizer.batch_decode(rows, skip_special_tokens=True)

    def _sample(self, prompts: Sequence[str], samples: int, seed: int, banks: Sequence[LookaheadBank]) -> TextResult:
        if not accepts(int, samples) or samples < 1:
            raise ValueError(f"samples must be a whole number of at least 1, got {samples!r}")
        items = items_of(prompts, samples, seed, "target")
        guided = [partial(self._guide, bank) for bank in banks for _ in range(samples)]
        tokens, sampling = self._draw(items, self.settings.steps, guided)
        start = time.perf_counter()
        rewards, texts = self._score(tokens), self.decode(tokens)
        scoring = Cost(reward_calls=len(items), seconds=time.perf_counter() - start)
        return TextResult(
            [texts[i : i + samples] for i in range(0, len(texts), samples)],
            tokens.unflatten(0, (len(prompts), samples)),
            rewards.unflatten(0, (len(prompts), samples)),
            {"sampling": sampling, "scoring": scoring},
            self.settings,
            seed,
            banks,
        )

    def _draw_bank(self, prompt: str, seed: int) -> tuple[LookaheadBank, Cost]:
        how = self.settings
        tokens, cost = self._draw(items_of([prompt], how.n, seed, "bank"), how.lookahead_steps, ())
        start = time.perf_counter()
        rewards = self._score(tokens)
        cost = cost + Cost(reward_calls=how.n, seconds=time.perf_counter() - start)
        provenance = {"steps": how.lookahead_steps, "n": how.n, "seed": seed, "call": repr(sorted(self.call.items()))}
        return LookaheadBank(tokens, {name_of(self.reward): rewards}, prompt, self.space, provenance), cost

    def _draw(
        self, items: Sequence[Item], steps: int, around: Sequence[Callable[[], AbstractContextManager[None]]]
    ) -> tuple[Tensor, Cost]:
        """Return the tokens (B, L) of texts on the CPU, one drawn after the other, and what they cost."""
        start, found, calls = time.perf_counter(), [], 0

        def count(*_: Any) -> None:
            nonlocal calls
            calls += 1

        counter = self.pipe.model.register_forward_hook(count)
        quiet = dict(getattr(self.pipe, "_progress_bar_config", {}))
        self.pipe.set_progress_bar_config(**{**quiet, "disable": True})
        try:
            for row, item in enumerate(items):
                with around[row]() if around else nullcontext():
                    generator = torch.Generator(self.pipe.device).manual_seed(item.seed)
                    drawn = self.pipe(
                        prompt=item.prompt,
                        generator=generator,
                        gen_length=self.settings.gen_length,
                        num_inference_steps=steps,
                        output_type="seq",
                        **self.call,
                    )
                found.append(drawn.sequences.cpu())
        finally:
            counter.remove()
            self.pipe.set_progress_bar_config(**quiet)
        return torch.cat(found), Cost(network_evaluations=calls, seconds=time.perf_counter() - start)

    def _score(self, tokens: Tensor) -> Tensor:
        return score(self.reward, self.decode(tokens))

    def _check(self, bank: LookaheadBank, prompt: str) -> None:
        if not isinstance(bank, LookaheadBank):
            raise TypeError(f"bank must be a LookaheadBank, got {bank!r}: LookaheadBank.load reads files")
        if bank.prompt != prompt:
            raise BankError(f"the bank is of {bank.prompt!r}, and the prompt is {prompt!r}")
        if bank.space is not None and (why := bank.space.difference(self.space)):
            raise BankError(f"the bank is of other texts: {why}")

    @contextmanager
    def _guide(self, bank: LookaheadBank) -> Iterator[None]:
        """Add the bank's factors to the model's logits inside the block."""
        block = self.call.get("block_length") or self.pipe.scheduler.config.block_length
        guidance = BlockGuidance(bank, self.settings, block=block, mask_id=self.pipe.mask_token_id)
        handle = self.pipe.model.register_forward_hook(guidance, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()


class BlockGuidance:
    """The forward hook of a language model that adds a bank's factors to the logits of the block that is written.

    It serves one text, from its first block to its last.

    Args:
        bank: whose samples are (n, L) tokens, from the end of the prompt on.
        settings: how.
        block: tokens of a block.
        mask_id: the token of what is not written yet.
    """

    def __init__(self, bank: LookaheadBank, settings: TextSettings, *, block: int, mask_id: int) -> None:
        self.bank, self.settings, self.block, self.mask_id = bank, settings, block, mask_id
        self._prompt: int | None = None  # how long it is
        self._members: tuple[int, TokenMembers] | None = None  # of the block that begins there

    def __call__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Return the output with guided logits (1, S, V)."""
        tokens = args[0] if args else kwargs["input_ids"]
        if self._prompt is None:
            self._prompt = int((tokens[0] != self.mask_id).long().cumprod(0).sum())
        written, length = tokens[:, self._prompt :], self.bank.samples.shape[1]
        first, end = max(0, written.shape[1] - self.block), min(written.shape[1], length)
        if first >= end:
            return output
        members = self._of_block(written, first, end, output.logits.shape[-1])
        if self.settings.form == "single-site":
            factors = members.single_site(written[:, first:end], _ALPHA)
        else:
            factors = members.token_independent(_ALPHA)
        logits, at = output.logits.clone(), slice(self._prompt + first, self._prompt + end)
        logits[:, at] = (logits[:, at] + self.settings.scale * factors).to(logits.dtype)
        output.logits = logits
        return output

    def _of_block(self, written: Tensor, first: int, end: int, vocab_size: int) -> TokenMembers:
        """Return the members' tokens first .. end; single-site, weighed by how well those before agree."""
        if self._members is None or self._members[0] != first:
            how, samples = self.settings, self.bank.samples.to(written.device)
            kernel, weights = Absorbing(vocab_size, self.mask_id, how.softness), None
            if how.form == "single-site":
                a, b = (part[0 if self.mask_id else 1] for part in kernel.parts(_ALPHA))
                agrees = (samples[:, :first] == written[:, :first]) & (written[:, :first] != self.mask_id)
                evidence = agrees.sum(1) * float(((a + b) / b).log())
                weights = (evidence - evidence.max()).double().exp().clamp_min(_TINY)
            rewards = self.bank.reward().to(written.device)
            members = TokenMembers(
                samples[:, first:end], rewards, kernel, reward_scale=how.reward_scale, weights=weights
            )
            self._members = first, members
        return self._members[1]


def _as_list(prompts: str | Sequence[str]) -> list[str]:
    """Return prompts as a list.

    Raises:
        ValueError: none is given, or one cannot be drawn.
    """
    listed = [prompts] if isinstance(prompts, str) else list(prompts)
    if not listed:
        raise ValueError("prompts must be texts that are not empty, got []")
    for prompt in listed:
        check_prompt(prompt)
    return listed
