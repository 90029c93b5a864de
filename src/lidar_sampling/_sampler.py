"""The sampler: both phases of LiDAR over one diffusers pipeline."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from copy import copy
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import rewards as _rewards
from ._bank import BankError, BankStore, LookaheadBank, as_banks, warn_of_another, warn_of_equal
from ._branches import unread_of
from ._call import check_call, per_prompt
from ._cost import Cost, meter
from ._decode import check_decodes, check_preview
from ._draw import Item, draw, items_of
from ._guide import Trace, guide
from ._hooks import attach, scheduler_of
from ._kernel import check_kernel, stochastic
from ._levels import check
from ._live import Live, Show
from ._lookahead import draw_banks
from ._parts import sampling_rate_of
from ._precision import warn_if_emulated
from ._preview import load_preview
from ._prompts import check_texts, tokens_cut_off
from ._result import Result
from ._settings import GLYPH, Settings, for_reward, preset, settings_for, takes_eta
from ._space import space_of
from ._values import check_integer, check_known, cut
from .rewards import Reward, name_of, score
from .rewards.mixture import Mixture
from .solvers import Solver, lookahead_pipeline
from .solvers import load as load_solver

Progress = Callable[[str, float, int], None]

_ONE, _SOME = 1.01, 1.5  # effective sample sizes: below the first one member counts, above the second several do
_OF_CALL = {"steps": "num_inference_steps", "guidance_scale": "guidance_scale", "eta": "eta"}  # field -> argument
_log = logging.getLogger(__name__)


class LiDAR:
    """Lookahead sample reward guidance for a diffusers pipeline, without backpropagation.

    Phase 1 draws ``n`` few-step samples of each prompt and scores them once; phase 2 samples as the pipeline would,
    each step's clean prediction moved toward the reward-tilted distribution of the bank.

    Args:
        pipe: a diffusers pipeline from text to images, video or audio whose scheduler family is known. It is used as
            it stands: device, precision, offloading and scheduler are the caller's.
        reward: guides: a callable, a name of :mod:`lidar_sampling.rewards`, or a mixture of several.
        metrics: scored on the final images only, never to guide.
        settings: by default those of the model's family; or the name of a preset, such as ``paper-sd15``, which
            brings its scheduler. Change single ones with keywords.
        lookahead: the few-step solver of phase 1: a name of :mod:`lidar_sampling.solvers` or a :class:`Solver`,
            which may bring a model of its own that shares the latent space.
        pipe_kwargs: further arguments of the pipeline's call in both phases, such as ``height``; a list of texts,
            such as ``negative_prompt``, has one for each prompt. Those that say how the target goes through its steps
            (``timesteps``, ``sigmas``, ``denoising_end``) do not reach phase 1.
        batch_size: samples at a time, halved when memory runs out.
        store: a directory or :class:`BankStore` where banks are found and kept.
        preview: a small autoencoder of the same latents, such as diffusers' ``AutoencoderTiny``, that decodes the
            bank for its rewards; the guided samples are decoded in full.
        rescore: so many members of each bank, best by the preview, are decoded in full and scored again.
        overlap: score a batch of the bank in a thread while the next one is drawn: for rewards that leave the device
            idle, such as those of another process.
        reward_dtype: precision of rewards that are given by name.
        **changes: fields of :class:`Settings`: ``n``, ``scale``, ``reward_scale``, ``window``, ``guidance_scale``,
            ``steps``, ``eta``.

    Raises:
        TypeError, ValueError: an argument that is not known or out of range, before anything is sampled.

    Example:
        >>> from lidar_sampling import testing
        >>> lidar = LiDAR(testing.tiny_stable_diffusion(), reward="brightness", n=4, steps=5, scale=1.0)
        >>> result = lidar(["a cat", "a dog"], images=2)
        >>> result.images.shape, result.rewards["brightness"].shape
        (torch.Size([2, 2, 3, 16, 16]), torch.Size([2, 2]))
    """

    def __init__(
        self,
        pipe: Any,
        *,
        reward: Reward | str,
        metrics: Sequence[Reward | str] = (),
        settings: Settings | str | None = None,
        lookahead: Solver | str | None = None,
        pipe_kwargs: Mapping[str, Any] | None = None,
        batch_size: int = 16,
        store: BankStore | str | Path | None = None,
        preview: Any = None,
        rescore: int = 0,
        overlap: bool = False,
        reward_dtype: torch.dtype = torch.float32,
        **changes: Any,
    ) -> None:
        scheduler_of(pipe)
        device = getattr(pipe, "device", "cpu")
        check_known(Settings, changes)
        if lookahead is not None:
            changes["lookahead"] = lookahead.name if isinstance(lookahead, Solver) else lookahead
        found = preset(settings) if isinstance(settings, str) else settings or settings_for(pipe)
        if not isinstance(found, Settings):
            raise TypeError(f"settings must be Settings or the name of a preset, got {settings!r}")
        found = for_reward(found, _name_of_any(reward), changes, asked=settings is not None)
        self.settings = found.with_changes(**changes)
        self.pipe = _with_scheduler(pipe, self.settings.scheduler)
        self.reward = _rewards.load(reward, device=device, dtype=reward_dtype) if isinstance(reward, str) else reward
        if isinstance(metrics, str):
            raise TypeError(f"metrics must be a list of rewards, got {metrics!r}: give [{metrics!r}]")
        if not isinstance(overlap, bool):
            raise TypeError(f"overlap must be True or False, got {overlap!r}")
        self.metrics = [_rewards.load(m, device=device) if isinstance(m, str) else m for m in metrics]
        self.pipe_kwargs = dict(pipe_kwargs or {})
        self._warned: set[str] = set()
        check_call(self.pipe, self.pipe_kwargs)
        self._check_changes(changes)
        self.settings_for(self.arguments())  # what the call sets otherwise is checked as settings are
        self.batch_size = batch_size
        self.store = BankStore(store) if isinstance(store, str | Path) else store
        for name, value in (("reward", self.reward), *(("metrics", metric) for metric in self.metrics)):
            if not callable(value) or isinstance(value, type):
                raise TypeError(f"{name} must be callable or a known name, and no class, got {value!r}")
        self._check_rates(by_name=[isinstance(each, str) for each in (reward, *metrics)])
        for metric in self.metrics:
            if isinstance(metric, Mixture) and metric.calibration is None:
                raise ValueError(f"the metric {metric.name!r} is a mixture over a bank: give it a calibration")
        judges: list[Reward] = [self.reward] if isinstance(self.reward, Mixture) else []
        names = [name_of(judge) for judge in (*judges, *self.parts, *self.metrics)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(
                f"two judges are called {twice[0]!r}, and results go by name: give each a name attribute of its own"
            )
        warn_if_emulated(getattr(self.pipe, "dtype", torch.float32), device)
        check_integer("batch_size", batch_size, least=1)
        if preview is not None:
            check_preview(preview, pipe)
        check_integer("rescore", rescore)
        if rescore < 0 or (rescore and preview is None):
            raise ValueError(f"rescore must be at least 0, and wants a preview, got {rescore}")
        if rescore:
            check_decodes(pipe)
        self.preview, self.rescore, self.overlap = preview, rescore, overlap
        self._solver = lookahead if isinstance(lookahead, Solver) else load_solver(self.settings.lookahead, pipe)
        self._lookaheads: list[tuple[Solver, Any]] = []
        self._progress: Progress | None = None
        self._only: tuple[int, ...] = ()
        self._bank_seed: int | None = None
        self._live: tuple[Show, int] | None = None

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        reward: Reward | str | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        preview: Any = None,
        variant: str | None = None,
        scheduler: Callable[[Any], Any] | None = None,
        pipe: Any = None,
        **options: Any,
    ) -> LiDAR:
        """Load a model and make a sampler of it.

        Args:
            name: ``"glyph"`` for the embedded model with its reward, its held-out reward and its judge; otherwise
                a path or hub id of a diffusers pipeline, loaded from safetensors alone.
            reward: guides; needed for any model but glyph.
            device: where model and rewards go.
            dtype: precision of the pipeline's weights.
            preview: as in :class:`LiDAR`; or ``"tiny"`` for the small autoencoder that is known for the model, or the
                path or hub id of another.
            variant: of the weights, such as ``"fp16"``; that of a folder which has no other is found by itself.
            scheduler: from the pipeline's scheduler to the one that is to sample.
            pipe: the pipeline of that name, if it is loaded already.
            **options: those of :class:`LiDAR`.

        Raises:
            ValueError: an unknown name, or no reward for a model that brings none.
        """
        if name == "glyph":
            from . import glyph

            if "settings" not in options:
                options["settings"] = for_reward(GLYPH, _name_of_any(reward or "glyph"), options)
            judges = [] if reward == "glyph-heldout" else ["glyph-heldout"]
            options.setdefault("metrics", [*judges, glyph.Judge(device=device)])
            pipe = pipe or glyph.load_pipeline(dtype=dtype).to(device)
            if preview == "tiny":
                tiny: Any = glyph.load_tiny_decoder(dtype=dtype)
                preview = tiny.to(device)
            reward = reward or "glyph"
        elif "/" not in str(name) and not Path(name).exists():
            hint = "did you mean 'glyph'? " if get_close_matches(str(name), ["glyph"]) else ""
            raise ValueError(f"unknown model {str(name)!r}; {hint}give 'glyph', a path, or a hub id as owner/name")
        elif reward is None:
            raise ValueError(f"{name} brings no reward: give one, for example reward='clip'")
        else:
            from ._load import load_pipeline

            pipe = pipe or load_pipeline(name, dtype=dtype, variant=variant).to(device)
        if scheduler is not None:
            pipe.scheduler = scheduler(pipe.scheduler)
        if isinstance(preview, str | Path):
            preview = load_preview(preview, pipe)
        return cls(pipe, reward=reward, preview=preview, **options)

    def with_settings(self, **changes: Any) -> LiDAR:
        """Return the same sampler with other :class:`Settings`; model, rewards and store are shared.

        >>> from lidar_sampling import testing
        >>> lidar = LiDAR(testing.tiny_stable_diffusion(), reward="brightness", n=4, steps=5)
        >>> lidar.with_settings(n=8).settings.n, lidar.settings.n
        (8, 4)
        """
        twin = copy(self)
        twin.settings = self.settings.with_changes(**changes)
        if twin.settings.scheduler != self.settings.scheduler:
            twin.pipe, twin._lookaheads = _with_scheduler(self.pipe, twin.settings.scheduler), []
        twin._check_changes(changes)
        if twin.settings.lookahead != self.settings.lookahead:
            twin._solver = load_solver(twin.settings.lookahead, self.pipe)
        return twin

    def with_prompts(self, prompts: Sequence[str]) -> LiDAR:
        """Return the same sampler, whose arguments with a value per prompt belong to these prompts.

        Any of the prompts can then be drawn alone. Drawing does this by itself, for the prompts that it is given.

        Raises:
            ValueError: an argument has more or fewer values than there are prompts.
        """
        twin = copy(self)
        twin.pipe_kwargs = per_prompt(self.pipe, self.pipe_kwargs, check_texts(prompts))
        return twin

    def with_progress(self, progress: Progress | None) -> LiDAR:
        """Return the same sampler, which calls ``progress`` after every step, whatever method draws with it.

        That is how any method of :mod:`lidar_sampling.methods` reports, and how it is stopped: by what ``progress``
        raises.

        Args:
            progress: called with (phase, samples done, samples in all) after every step.
        """
        twin = copy(self)
        twin._progress = progress
        return twin

    def with_only(self, places: Sequence[int]) -> LiDAR:
        """Return the same sampler, which draws only these samples of each prompt, each from its usual noise.

        Results then hold as many samples per prompt as there are places. It serves methods whose samples are
        independent: those that choose among samples would choose among fewer.

        Args:
            places: from 0, of the samples that ``images`` counts; none at all draws every sample.

        >>> from lidar_sampling import testing
        >>> lidar = LiDAR(testing.tiny_stable_diffusion(), reward="brightness", n=4, steps=5)
        >>> again, four = lidar.with_only([2]).vanilla("a cat"), lidar.vanilla("a cat")
        >>> bool((again.images[0, 0] - four.images[0, 2]).abs().max() < 1e-3)
        True
        """
        twin = copy(self)
        twin._only = tuple(places)
        return twin

    def with_bank_seed(self, seed: int | None) -> LiDAR:
        """Return the same sampler, which draws banks from this seed, whatever the seed of the samples.

        So one bank of a store serves samples of many seeds.

        Args:
            seed: of the noise of banks; None takes that of the samples.
        """
        if seed is not None:
            check_integer("bank_seed", seed)
        twin = copy(self)
        twin._bank_seed = seed
        return twin

    def with_live_preview(self, show: Show | None, *, every: int = 5) -> LiDAR:
        """Return the same sampler, which shows its samples while they are drawn, whatever method draws with it.

        Members of a bank are shown when their batch is done. Of the target, the clean predictions are decoded every
        few steps, which costs a decode per sample each time.

        Args:
            show: called with a :class:`lidar_sampling.Glimpse` each time; None shows nothing.
            every: steps between two, at least 1.

        >>> from lidar_sampling import testing
        >>> lidar, seen = LiDAR(testing.tiny_stable_diffusion(), reward="brightness", n=4, steps=5), []
        >>> result = lidar.with_live_preview(seen.append, every=2)("a cat", images=3)
        >>> [(glimpse.phase, len(glimpse.images), glimpse.step) for glimpse in seen]
        [('lookahead', 4, 4), ('sampling', 3, 2), ('sampling', 3, 4)]
        """
        check_integer("every", every, least=1)
        twin = copy(self)
        twin._live = None if show is None else (show, every)
        return twin

    def look(
        self, prompts: str | Sequence[str], *, seed: int = 0, progress: Progress | None = None
    ) -> list[LookaheadBank]:
        """Draw a bank per prompt and nothing else: phase 1 alone. A bank serves other seeds and settings.

        Args:
            prompts: one prompt or several.
            seed: of the bank's noise.
            progress: called with (phase, samples done, samples in all) after every step.
        """
        texts = _as_prompts(prompts)
        self.check_prompts(texts)
        return self.draw_banks(texts, seed, progress)[0]

    def __call__(
        self,
        prompts: str | Sequence[str],
        *,
        images: int = 4,
        seed: int = 0,
        banks: LookaheadBank | Sequence[LookaheadBank] | None = None,
        progress: Progress | None = None,
    ) -> Result:
        """Draw guided samples.

        Args:
            prompts: one prompt or several.
            images: samples per prompt.
            seed: the same seed gives the same samples, whatever the batch size and the other prompts.
            banks: of :meth:`look` or from disk, in the order of the prompts; by default they are drawn first.
            progress: called with (phase, samples done, samples in all) after every step.

        Raises:
            BankError: a bank of another prompt, space or without the reward.
            GuidanceError: no step was guided.
            RewardError: a reward raised or returned what is not one finite number per image.
        """
        given, texts = None if banks is None else as_banks(banks), _as_prompts(prompts)
        self.check_prompts(texts)
        return self.judge(self.draw_guided(texts, images, seed, given, progress))

    def vanilla(
        self,
        prompts: str | Sequence[str],
        *,
        images: int = 4,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> Result:
        """Draw the samples that the pipeline gives without guidance, from the same noise as the guided ones."""
        texts = _as_prompts(prompts)
        self.check_prompts(texts)
        return self.judge(self.sample(texts, images, seed, progress))

    def draw_guided(
        self,
        texts: Sequence[str],
        images: int,
        seed: int,
        banks: list[LookaheadBank] | None,
        progress: Progress | None = None,
        around: Callable[[Sequence[Item]], AbstractContextManager[None]] | None = None,
        *,
        together: int = 1,
    ) -> Result:
        """Draw guided samples of prompts that were checked, not yet judged: for :mod:`lidar_sampling.methods`.

        ``around`` and ``together`` are those of :meth:`sample`; a hook that is attached in ``around`` sees guided
        outputs.
        """
        check(self.pipe.scheduler)
        texts = check_texts(texts)
        check_integer("images", images, least=1)
        given, cost = self.draw_banks(texts, seed, progress) if banks is None else (banks, Cost())
        if [bank.prompt for bank in given] != texts:
            raise BankError(
                f"banks must answer the prompts in their order: got {[bank.prompt for bank in given]} for {texts}"
            )
        alone = {bank.prompt: bank for bank in given}
        for bank in given:
            if alone[bank.prompt] is not bank:
                raise BankError(f"two banks of {bank.prompt!r}: draw by one after the other")
        of_prompt = {prompt: self.with_guide(bank) for prompt, bank in alone.items()}
        chosen = None if all(len(bank.rewards) == 1 for bank in of_prompt.values()) else name_of(self.reward)
        for bank in of_prompt.values():
            warn_of_another(bank, name_of(self.reward))
            warn_of_equal(bank, name_of(self.reward), chosen)
        traces: list[Trace] = []

        @contextmanager
        def guide_batch(batch: Sequence[Item]) -> Iterator[None]:
            guidance = guide(
                self.pipe,
                [of_prompt[item.prompt] for item in batch],
                scale=self.settings.scale,
                reward_scale=self.settings.reward_scale,
                ess=self.settings.ess,
                grid=self.settings.grid,
                window=self.settings.window,
                reward=chosen,
            )
            with guidance as trace, around(batch) if around else nullcontext():
                yield
            traces.append(trace)

        result = self.sample(texts, images, seed, progress, guide_batch, together=together)
        result = replace(result, banks=given, trace=Trace.join(traces), cost={"lookahead": cost, **result.cost})
        self._warn_of_collapse(result)
        return result

    def _warn_of_collapse(self, result: Result) -> None:
        """Warn that all samples of a prompt follow one member from the first guided step on."""
        if self.settings.tuned_for is not None or not result.trace.steps or self.settings.n == 1:
            return
        info, count = result.trace.steps[0].info, len(result.images[0])
        for k, prompt in enumerate(result.prompts):
            rows, scale = slice(k * count, (k + 1) * count), result.trace.reward_scales[k * count]
            # If the noise alone singles out one member, no strength is to blame.
            if bool((info.ess_tilted[rows] < _ONE).all()) and bool((info.ess[rows] > _SOME).any()):
                _log.warning(
                    "collapsed: the weights of the bank of %r rest on one member from the first step, so all samples "
                    "are drawn to it: lower reward_scale, which is %g, or raise ess",
                    prompt,
                    scale,
                )

    def lookahead_pipeline(self, solver: Solver) -> Any:
        """Return the pipeline that ``solver`` draws with beside the target, made once.

        Raises:
            BankError: it does not share the target's latent space.
        """
        for known, pipe in self._lookaheads:
            if known is solver:
                return pipe
        pipe = lookahead_pipeline(solver, self.pipe)
        if why := space_of(pipe, ()).difference(space_of(self.pipe, ())):
            raise BankError(f"{solver.name} does not share the latent space of the target: {why}")
        self._lookaheads.append((solver, pipe))
        return pipe

    def draw_banks(
        self, prompts: Sequence[str], seed: int, progress: Progress | None = None
    ) -> tuple[list[LookaheadBank], Cost]:
        """Draw the banks of prompts that were checked; return them, and what they cost."""
        prompts = check_texts(prompts)
        check_integer("seed", seed)
        progress = progress or self._progress
        return draw_banks(
            self.lookahead_pipeline(self._solver),
            prompts,
            rewards=self.parts,
            solver=self._solver,
            n=self.settings.n,
            seed=seed if self._bank_seed is None else self._bank_seed,
            call=self.with_prompts(prompts).arguments(),
            batch_size=self.batch_size,
            store=self.store,
            preview=self.preview,
            rescore=self.rescore,
            overlap=self.overlap,
            progress=progress and (lambda done, total: progress("lookahead", done, total)),
            show=self._live and self._live[0],
        )

    def sample(
        self,
        prompts: Sequence[str],
        images: int,
        seed: int,
        progress: Progress | None = None,
        around: Callable[[Sequence[Item]], AbstractContextManager[None]] | None = None,
        *,
        pipe: Any = None,
        call: Mapping[str, Any] | None = None,
        rows: Mapping[str, Tensor] | None = None,
        items: Sequence[Item] | None = None,
        together: int = 1,
        differentiable: bool = False,
        decoded: bool = True,
    ) -> Result:
        """Draw samples of prompts that were checked, not yet judged: for :mod:`lidar_sampling.methods`.

        Args:
            prompts: the prompts.
            images: samples per prompt.
            seed: of all noise.
            progress: as in :meth:`__call__`.
            around: a context to run each batch in, given its items.
            pipe: another pipeline than the target.
            call: its arguments, if not the target's :meth:`arguments`.
            rows: arguments of the pipeline that have a row for each sample.
            items: what to draw in place of the items of the seed, one for each sample.
            together: neighbours that must share a batch.
            differentiable: keep the graph of each step for a hook that wants gradients.
            decoded: False leaves the decoder out; the images are latents then.
        """
        prompts = check_texts(prompts)
        pipe, progress = pipe or self.pipe, progress or self._progress
        call = per_prompt(pipe, call or self.arguments(), prompts)
        items = list(items or items_of(prompts, images, seed, "target"))
        if self._only:
            if outside := [place for place in self._only if not 0 <= place < images]:
                raise ValueError(f"of {images} images those from 0 to {images - 1} can be drawn, got {outside[0]}")
            items = [items[p * images + place] for p in range(len(prompts)) for place in self._only]
            images = len(self._only)
        noise = self.settings.noise if pipe.scheduler is self.pipe.scheduler else None
        watched = self._live if decoded else None
        around = _in_turn(
            None if noise is None else lambda batch: stochastic(pipe, noise),
            around,
            None if watched is None else lambda batch: attach(pipe, Live(*watched, pipe, call, batch)),
        )
        pixels: list[Tensor] = []
        latents: list[Tensor] = []
        with meter(pipe, "sampling") as sampling:
            for drawn in draw(
                pipe,
                items,
                call=call,
                batch_size=self.batch_size,
                around=around,
                progress=progress and (lambda done: progress("sampling", done, len(items))),
                rows=rows,
                together=together,
                differentiable=differentiable,
                decoded=decoded,
            ):
                pixels.append(drawn.images.cpu())
                latents.append(drawn.latents.cpu())
        sampling.decodes = len(items) if decoded else 0
        return Result(
            prompts=prompts,
            images=torch.cat(pixels).unflatten(0, (len(prompts), images)),
            latents=torch.cat(latents).unflatten(0, (len(prompts), images)),
            rewards={},
            cost={"sampling": sampling},
            seed=seed,
            settings=self.settings_for(call),
            sampling_rate=sampling_rate_of(self.pipe),
        )

    def judge(self, result: Result, metadata: Sequence[Mapping[str, Any]] | None = None) -> Result:
        """Return the same samples with the guiding reward and every metric, and what scoring them cost.

        Args:
            result: the samples.
            metadata: of each prompt, for judges that read more than its text, such as GenEval's.
        """
        rewards, scoring = self.scores(result, [*self.parts, *self.metrics], metadata)
        return replace(result, rewards=rewards, cost={**result.cost, "scoring": scoring})

    def scores(
        self, result: Result, judges: Sequence[Reward], metadata: Sequence[Mapping[str, Any]] | None = None
    ) -> tuple[dict[str, Tensor], Cost]:
        """Return scores (P, m) by the names of the judges, and what scoring cost."""
        flat, shape = result.images.flatten(0, 1), result.images.shape[:2]
        asked: Sequence[Any] = result.prompts if metadata is None else metadata
        if metadata is not None and [line.get("prompt") for line in metadata] != result.prompts:
            raise ValueError(f"metadata must be of the prompts, in their order: got {metadata} for {result.prompts}")
        texts = [prompt for prompt in asked for _ in range(shape[1])]
        with meter(self.pipe, "scoring") as scoring:
            rewards = {
                name_of(judge): score(judge, images=flat, prompts=texts, allow_nan=judge in self.metrics).view(shape)
                for judge in judges
            }
        scoring.reward_calls = len(flat) * len(rewards)
        return rewards, scoring

    def check_prompts(self, prompts: Sequence[str | Mapping[str, Any]]) -> None:
        """Refuse prompts, or their metadata, that a reward or a judge says it cannot read.

        Raises:
            ValueError: the message names the reward and the prompt.
        """
        for judge in (*self.parts, *self.metrics):
            _rewards.check_prompts(judge, prompts)
        self._warn_of_long(prompts)
        judged = any(isinstance(prompt, Mapping) and "include" in prompt for prompt in prompts)
        if judged and not getattr(self.reward, "reads_prompt", True):
            _log.warning(
                "a reward without prompts: %s looks at images alone, and these are judged by what prompts ask for: "
                "guide by a reward that reads them, such as clip",
                name_of(self.reward),
            )

    def _warn_of_long(self, prompts: Sequence[str | Mapping[str, Any]]) -> None:
        """Warn, once of each prompt, that the model does not read its end."""
        texts = [prompt if isinstance(prompt, str) else prompt["prompt"] for prompt in prompts]
        new = [text for text in dict.fromkeys(texts) if text not in self._warned]
        if cut_off := tokens_cut_off(self.pipe, new):
            self._warned |= set(cut_off)
            (text, (has, reads)), *others = cut_off.items()
            _log.warning(
                "the model reads %d tokens of a prompt, and %r has %d%s: it never sees the rest",
                reads,
                cut(text, 60),
                has,
                f" (so {len(others)} more of the prompts)" if others else "",
            )

    @property
    def solver(self) -> Solver:
        """The few-step solver of phase 1."""
        return self._solver

    @property
    def parts(self) -> list[Reward]:
        """What is scored to guide: the parts of a mixture, or the reward itself."""
        return list(self.reward.parts) if isinstance(self.reward, Mixture) else [self.reward]

    def with_guide(self, bank: LookaheadBank) -> LookaheadBank:
        """Return a bank that has the guiding reward; for a mixture, add the sum of its parts."""
        return self.reward.on(bank) if isinstance(self.reward, Mixture) else bank

    def arguments(self, **changes: Any) -> dict[str, Any]:
        """Return the arguments of the target's call, with ``changes`` and without its prompts and noise."""
        own = {"guidance_scale": self.settings.guidance_scale, "eta": self.settings.eta}
        given = {name: value for name, value in own.items() if value is not None}
        return {**given, "num_inference_steps": self.settings.steps, **self.pipe_kwargs, **changes}

    def settings_for(self, call: Mapping[str, Any]) -> Settings:
        """Return the settings, with the values that the arguments of a call set otherwise."""
        return replace(self.settings, **{field: call[name] for field, name in _OF_CALL.items() if name in call})

    def _check_rates(self, by_name: Sequence[bool]) -> None:
        """Set the rewards that were loaded by name to the rate at which the pipeline draws audio.

        Raises:
            ValueError: one of the caller's own hears at another rate.
        """
        rate = sampling_rate_of(self.pipe)
        for judge, ours in zip((self.reward, *self.metrics), by_name, strict=True):
            for part in judge.parts if isinstance(judge, Mixture) else [judge]:
                own: Any = part
                if rate is None or not hasattr(own, "sampling_rate") or own.sampling_rate == rate:
                    continue
                if not ours:
                    raise ValueError(
                        f"{name_of(own)} hears {own.sampling_rate} samples per second, and the pipeline draws "
                        f"{rate}: give it sampling_rate={rate}"
                    )
                own.sampling_rate = rate

    def _check_changes(self, changes: Mapping[str, Any]) -> None:
        """Refuse settings of the user that the scheduler cannot follow; warn of those that nothing reads.

        Raises:
            ValueError: the message names the setting and the mend.
        """
        call = self.pipe_kwargs
        for field, name in _OF_CALL.items():
            if field in changes and name in call and call[name] != changes[field]:
                self.warn_once(f"{field}={changes[field]} does nothing: the call has {name}={call[name]}")
        for name in ("timesteps", "sigmas"):
            if "steps" in changes and call.get(name) is not None and len(call[name]) != changes["steps"]:
                self.warn_once(f"steps={changes['steps']} does nothing: the call has {len(call[name])} {name}")
        self._check_eta("eta" in changes)
        if self.settings.noise is not None:
            check_kernel(self.pipe.scheduler)
        for name, line in unread_of(self.pipe, self.arguments()).items():
            if name in changes or name in call:
                self.warn_once(line)

    def warn_once(self, line: str) -> None:
        """Log a warning, unless this sampler or one that was made of it has logged it before."""
        if line not in self._warned:
            self._warned.add(line)
            _log.warning("%s", line)

    def _check_eta(self, asked: bool) -> None:
        """Refuse an eta of the user that no step takes; leave out a default one, with a warning.

        Raises:
            ValueError: a step of the scheduler takes no eta.
        """
        eta = self.pipe_kwargs.get("eta") if "eta" in self.pipe_kwargs else self.settings.eta
        asked = asked or "eta" in self.pipe_kwargs
        if eta and asked and self.settings.noise is not None:
            self.warn_once(f"eta={eta} does nothing: noise={self.settings.noise} replaces the steps of the scheduler")
        if eta is None or takes_eta(self.pipe.scheduler):
            return
        name = type(self.pipe.scheduler).__name__
        if asked:
            raise ValueError(
                f"eta={eta} has no effect: a step of {name} takes none; leave it out or use DDIMScheduler"
            )
        self.warn_once(f"eta={eta} of the settings is left out: a step of {name} takes none")
        self.settings = replace(self.settings, eta=None)


def _name_of_any(reward: Reward | str) -> str:
    """Return the name of a reward that may not be loaded yet."""
    return reward if isinstance(reward, str) else name_of(reward)


def _in_turn(
    *contexts: Callable[[Sequence[Item]], AbstractContextManager[Any]] | None,
) -> Callable[[Sequence[Item]], AbstractContextManager[None]]:
    """Return what runs a batch in all of these contexts, each inside the one before; None stands for none."""

    @contextmanager
    def all_of(batch: Sequence[Item]) -> Iterator[None]:
        with ExitStack() as stack:
            for context in contexts:
                if context is not None:
                    stack.enter_context(context(batch))
            yield

    return all_of


def _with_scheduler(pipe: Any, name: str | None) -> Any:
    """Return ``pipe``, or a twin of it that samples with the diffusers scheduler of that class.

    Raises:
        ValueError: there is no such scheduler, or the model was not trained with a noise schedule of its kind.
    """
    own = pipe.scheduler
    if name is None or type(own).__name__ == name:
        return pipe
    import diffusers

    cls = getattr(diffusers, name, None)
    if cls is None:
        raise ValueError(f"diffusers has no scheduler {name!r}")
    if "beta_schedule" not in own.config:
        raise ValueError(
            f"these settings sample with {name}, which cannot follow the schedule of {type(pipe).__name__} "
            f"({type(own).__name__}): set the numbers one by one"
        )
    twin = copy(pipe)
    twin.scheduler = cls.from_config(own.config, clip_sample=False)
    return twin


def _as_prompts(prompts: str | Sequence[str]) -> list[str]:
    """Return one prompt or several as a list."""
    return check_texts([prompts] if isinstance(prompts, str) else prompts)
