"""Both phases on tiny pipelines of the real classes: seeds, batches, memory, costs and refusals."""

from pathlib import Path

import diffusers
import pytest
import torch

from lidar_sampling import BankError, BankStore, LiDAR, LookaheadBank, RewardError, testing
from lidar_sampling._batches import run_batches
from lidar_sampling._cost import meter


def make(make_pipe=testing.tiny_stable_diffusion, reward=testing.brightness, **options):
    settings = {"n": 6, "steps": 5, "lookahead": "dpm:3", "scale": 2.0, "reward_scale": 1e6}
    return LiDAR(make_pipe(), reward=reward, **{**settings, **options})


def counted(reward):
    def call(*, images, prompts):
        call.images += len(images)
        return reward(images=images, prompts=prompts)

    call.images = 0
    call.__name__ = "counted"
    return call


@pytest.mark.parametrize("make_pipe", [testing.tiny_stable_diffusion, testing.tiny_stable_diffusion_xl])
def test_a_seed_is_an_image_whatever_the_batch(make_pipe):
    whole = make(make_pipe, batch_size=64)(["a cat", "a dog"], images=3, seed=5)
    parts = make(make_pipe, batch_size=1)(["a cat", "a dog"], images=3, seed=5)
    alone = make(make_pipe, batch_size=2)("a dog", images=3, seed=5)
    torch.testing.assert_close(parts.images, whole.images, rtol=0, atol=2e-3)
    torch.testing.assert_close(alone.images[0], whole.images[1], rtol=0, atol=2e-3)
    torch.testing.assert_close(parts.banks[1].samples, whole.banks[1].samples, rtol=0, atol=2e-3)
    other = make(make_pipe)(["a cat", "a dog"], images=3, seed=6)
    assert (other.images - whole.images).abs().max() > 1e-2


def test_rows_of_one_prompt_differ_and_so_do_repeats_of_it():
    result = make()(["a cat", "a cat"], images=2)
    flat = result.latents.flatten(0, 1).flatten(1)
    assert torch.cdist(flat, flat).add(torch.eye(4) * 9).min() > 1e-2
    assert result.banks[0] is result.banks[1]


def test_the_result_says_what_happened():
    lidar = make(metrics=[counted(testing.brightness)])
    result = lidar(["a cat", "a dog"], images=2, seed=1)
    assert result.images.shape == (2, 2, 3, 16, 16)
    assert result.latents.shape == (2, 2, 4, 8, 8)
    assert list(result.rewards) == ["brightness", "counted"]
    torch.testing.assert_close(result.rewards["brightness"], result.images.flatten(2).mean(2))
    assert [b.prompt for b in result.banks] == ["a cat", "a dog"]
    assert all(len(row["ess"]) == 4 for row in result.trace.rows())
    assert [len(row) for row in result.pil()] == [2, 2]
    look, draw, judge = (result.cost[phase] for phase in ("lookahead", "sampling", "scoring"))
    assert look.network_evaluations == 2 * 6 * 3 * 2  # prompts, n, steps, CFG
    assert (look.decodes, look.reward_calls) == (12, 12)
    assert draw.network_evaluations == 4 * 6 * 2  # PNDM takes one step more than asked
    assert (draw.decodes, judge.reward_calls) == (4, 8)


def test_vanilla_is_the_pipeline_itself():
    lidar = make(pipe_kwargs={"negative_prompt": "blurry"})
    vanilla = lidar.vanilla("a cat", images=2, seed=3)
    free = make(scale=0.0, pipe_kwargs={"negative_prompt": "blurry"})("a cat", images=2, seed=3)
    assert torch.equal(vanilla.images, free.images)
    assert vanilla.banks == []
    assert vanilla.trace.rows() == []
    bank = LookaheadBank(testing.tiny_bank().samples, {"brightness": torch.arange(5.0)}, "a cat")
    guided = lidar("a cat", images=2, seed=3, banks=bank)
    assert not torch.equal(guided.images, vanilla.images)


def test_banks_serve_other_seeds_and_settings():
    reward = counted(testing.brightness)
    lidar = make(reward=reward)
    banks = lidar.look(["a cat", "a dog"], seed=1)
    assert reward.images == 12
    first = lidar(["a cat", "a dog"], images=1, seed=2, banks=banks)
    again = lidar("a dog", images=1, seed=2, banks=banks[1])
    assert reward.images == 12 + 3
    assert first.cost["lookahead"].network_evaluations == 0
    torch.testing.assert_close(again.images[0], first.images[1], rtol=0, atol=2e-3)


def test_a_bank_may_have_another_reward_under_one_name():
    lidar = make()
    bank = lidar.look("a cat")[0]
    mixed = bank.with_rewards({"dark": -bank.reward()}).combine({"dark": 1.0}, standardize=False)
    bright = lidar("a cat", images=4, banks=bank).images.mean()
    dark = lidar("a cat", images=4, banks=mixed).images.mean()
    assert dark < bright


def test_a_bank_that_another_reward_scored_says_that_it_guides(caplog):
    pipe = testing.tiny_stable_diffusion()
    bank = make(lambda: pipe).look("a cat")
    assert "guides by the reward" not in caplog.text
    make(lambda: pipe, reward="jpeg-compressibility")("a cat", images=1, banks=bank)
    assert (
        "the bank of 'a cat' guides by the reward that it was scored by, brightness, and not by jpeg" in caplog.text
    )


def test_the_end_of_a_prompt_that_is_not_read_is_named_once(caplog):
    lidar = make()
    for _ in range(2):
        lidar.vanilla(["a cat", "a cat and " * 9, "a dog and " * 9], images=1)
    assert "the model reads 24 tokens of a prompt, and 'a cat and " in caplog.text
    assert caplog.text.count(" (so 1 more of the prompts): it never sees the rest") == 1


def test_a_store_spares_phase_one(tmp_path):
    reward = counted(testing.brightness)
    first = make(reward=reward, store=tmp_path)(["a cat", "a dog"], images=1)
    assert reward.images == 12 + 2
    second = make(reward=reward, store=BankStore(tmp_path))(["a dog", "a cat"], images=1)
    assert reward.images == 14 + 2
    torch.testing.assert_close(second.images.flip(0), first.images, rtol=0, atol=2e-3)
    make(reward=reward, store=tmp_path, n=7).look("a cat")
    assert reward.images == 16 + 7

    both = make(reward=testing.brightness, store=tmp_path).look("a cat")[0]
    assert set(both.rewards) == {"brightness"}
    kept = BankStore(tmp_path).get("a cat", both.key)
    assert set(kept.rewards) == {"brightness", "counted"}
    with pytest.raises(ValueError, match="give the reward one"):
        make(reward=lambda *, images, prompts: images.flatten(1).mean(1), store=tmp_path).look("a cat")


class TestMemory:
    def test_batches_shrink_and_the_answer_stays(self):
        expected = make()("a cat", images=5, seed=2)
        pipe = testing.tiny_stable_diffusion()
        forward, sizes = pipe.unet.forward, []

        def small(sample, *args, **kwargs):
            sizes.append(len(sample) // 2)
            if len(sample) > 2 * 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return forward(sample, *args, **kwargs)

        pipe.unet.forward = small
        result = make(lambda: pipe)("a cat", images=5, seed=2)
        assert set(sizes) == {6, 3, 2, 1, 5}
        torch.testing.assert_close(result.images, expected.images, rtol=0, atol=2e-3)
        assert len(result.trace.rows()[0]["ess"]) == 5
        assert type(pipe.scheduler) is diffusers.PNDMScheduler

    def test_one_sample_that_does_not_fit_raises(self):
        pipe = testing.tiny_stable_diffusion()

        def never(*args, **kwargs):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

        pipe.unet.forward = never
        with pytest.raises(RuntimeError, match="can't allocate memory"):
            make(lambda: pipe).vanilla("a cat", images=3)

    def test_other_errors_are_not_swallowed(self):
        def run(batch):
            raise RuntimeError("size mismatch")

        with pytest.raises(RuntimeError, match="size mismatch"):
            list(run_batches(range(4), 4, run))


class TestRefusals:
    """Each comes before anything is sampled, or as soon as the fault occurs."""

    @pytest.mark.parametrize(
        ("prompts", "error", "message"),
        [
            ("", ValueError, "must not be empty"),
            ("  ", ValueError, "must not be empty"),
            ([], ValueError, "at least one prompt"),
            (["a cat", ""], ValueError, "must not be empty"),
            ([3], TypeError, "must be a string, got int"),
        ],
    )
    def test_prompts(self, prompts, error, message):
        for method in (make(), make().look, make().vanilla):
            with pytest.raises(error, match=message):
                method(prompts)

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"n": 0}, ValueError, "n must be at least 1, got 0"),
            ({"steps": 0}, ValueError, "steps must be at least 1"),
            ({"scale": -1.0}, ValueError, "scale must be"),
            ({"reward_scale": float("nan")}, ValueError, "reward_scale must be"),
            ({"window": (0.1, 0.2)}, ValueError, "window must be"),
            ({"eta": 2.0}, ValueError, "eta must be"),
            ({"lookahead": "dmp:5"}, ValueError, "unknown solver 'dmp:5'"),
            ({"lookahead": "own:5-karras"}, ValueError, "unknown solver"),
            ({"reward": "brightnes"}, ValueError, "did you mean 'brightness'"),
            ({"reward": 3}, TypeError, "reward must be callable"),
            ({"metrics": ["glyf"]}, ValueError, "did you mean 'glyph'"),
            ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
            ({"temperature": 1.0}, TypeError, "unknown setting 'temperature'"),
        ],
    )
    def test_options(self, options, error, message):
        with pytest.raises(error, match=message):
            make(**options)

    def test_images(self):
        with pytest.raises(ValueError, match="images must be at least 1"):
            make()("a cat", images=0)

    def test_an_argument_that_the_pipeline_does_not_take(self):
        with pytest.raises(TypeError, match="takes no argument 'hight'"):
            make(pipe_kwargs={"hight": 16})("a cat")

    def test_banks_of_other_prompts(self):
        lidar = make()
        banks = lidar.look(["a cat", "a dog"])
        with pytest.raises(BankError, match="in their order"):
            lidar(["a dog", "a cat"], banks=banks)
        with pytest.raises(BankError, match="in their order"):
            lidar("a cat", banks=banks)
        with pytest.raises(BankError, match="in their order"):
            lidar(["a cat", "a dog"], banks=banks[0])

    def test_two_banks_of_one_prompt(self):
        lidar = make()
        banks = [lidar.look("a cat", seed=seed)[0] for seed in (0, 1)]
        with pytest.raises(BankError, match="two banks of 'a cat': draw by one after the other"):
            lidar(["a cat", "a cat"], images=1, banks=banks)
        lidar(["a cat", "a cat"], images=1, banks=[banks[0]] * 2)

    def test_banks_of_another_model(self):
        bank = make().look("a cat")[0]
        pipe = testing.tiny_stable_diffusion()
        with torch.no_grad():
            for parameter in pipe.vae.parameters():
                parameter.mul_(1.5)
        with pytest.raises(BankError, match="another VAE"):
            make(lambda: pipe)("a cat", banks=bank)

    def test_banks_of_another_size(self):
        bank = make(pipe_kwargs={"height": 32, "width": 32}).look("a cat")[0]
        with pytest.raises(BankError, match="same size"):
            make()("a cat", banks=bank)

    def test_banks_without_the_reward(self):
        bank = make().look("a cat")[0]
        two = LookaheadBank(bank.samples, {"x": bank.reward(), "y": bank.reward()}, "a cat", bank.space)
        with pytest.raises(BankError, match="no reward 'brightness'; it has 'x', 'y'"):
            make()("a cat", banks=two)

    @pytest.mark.parametrize("phase", ["look", "call"])
    @pytest.mark.parametrize(
        ("returned", "message"),
        [
            (lambda n: torch.full((n,), float("nan")), "returned nan for image 0"),
            (lambda n: torch.full((n,), float("inf")), "returned inf"),
            (lambda n: torch.zeros(n, 1), r"must return one number per image, \(\d,\), got"),
            (lambda n: torch.zeros(()), "must return one number per image"),
            (lambda n: "good", "must return a tensor, got str"),
            (lambda n: 1 / 0, "raised ZeroDivisionError: division by zero"),
        ],
    )
    def test_rewards_that_misbehave(self, returned, message, phase):
        def odd(*, images, prompts):
            return returned(len(images)) if odd.on else torch.zeros(len(images))

        odd.on = phase == "look"
        lidar = make(reward=odd)
        bank = None if odd.on else lidar.look("a cat")
        odd.on = True
        with pytest.raises(RewardError, match=f"reward 'odd' {message}"):
            lidar("a cat", images=2, banks=bank)

    def test_a_scheduler_that_clips(self):
        pipe = testing.tiny_stable_diffusion()
        pipe.scheduler = diffusers.DDIMScheduler()
        reward = counted(testing.brightness)
        with pytest.raises(ValueError, match="clip_sample=True"):
            make(lambda: pipe, reward=reward)("a cat")
        assert reward.images == 0

    def test_a_model_without_a_reward(self):
        with pytest.raises(ValueError, match="give one"):
            LiDAR.from_pretrained("some/model")

    def test_what_is_not_a_pipeline(self):
        with pytest.raises(
            TypeError, match="expected a diffusers pipeline with a scheduler, or a scheduler, got str"
        ):
            LiDAR("stable diffusion", reward="brightness")

    def test_what_is_not_a_bank(self):
        with pytest.raises(TypeError, match="banks must be LookaheadBanks, got str"):
            make()("a cat", banks=["cat.safetensors"])
        with pytest.raises(ValueError, match="at least one bank"):
            make()("a cat", banks=[])

    def test_an_unknown_model(self):
        with pytest.raises(ValueError, match="unknown model 'glyf'; did you mean 'glyph'"):
            LiDAR.from_pretrained("glyf")


def test_lists_and_arrays_are_rewards_too():
    result = make(reward=lambda *, images, prompts: [float(i.mean()) for i in images])("a cat", images=2)
    assert result.rewards["<lambda>"].shape == (1, 2)


def test_interrupting_restores_the_pipeline():
    pipe = testing.tiny_stable_diffusion()
    scheduler = pipe.scheduler

    def stop(phase, done, total):
        raise KeyboardInterrupt

    for call in (make(lambda: pipe), make(lambda: pipe).look, make(lambda: pipe).vanilla):
        with pytest.raises(KeyboardInterrupt):
            call("a cat", progress=stop)
        assert pipe.scheduler is scheduler
        assert type(scheduler) is diffusers.PNDMScheduler
        assert not pipe.unet._forward_pre_hooks


def test_progress_reaches_the_end():
    seen = []
    make(batch_size=4)("a cat", images=3, progress=lambda *args: seen.append(args))
    assert list(dict.fromkeys(p for p, *_ in seen)) == ["lookahead", "sampling"]
    assert all(0 < done <= total for _, done, total in seen)
    assert ("lookahead", 6, 6) in seen
    assert ("sampling", 3, 3) in seen


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of memory is read on Linux alone")
def test_the_peak_of_memory_is_that_of_the_block():
    pipe = testing.tiny_stable_diffusion()
    with meter(pipe, "sampling") as large:
        torch.ones(50_000_000).sum()  # 200 MB, gone when the block ends
    with meter(pipe, "sampling") as small:
        torch.ones(1_000).sum()
    assert 190e6 < large.peak_memory < 260e6
    assert small.peak_memory < 20e6
    assert (large + small).peak_memory == large.peak_memory


def test_a_result_splits_into_its_prompts():
    lidar = make()
    whole = lidar(["a cat", "a dog"], images=3)
    for p, (prompt, part) in enumerate(zip(whole.prompts, whole.split(), strict=True)):
        alone = lidar(prompt, images=3)
        assert part.prompts == [prompt]
        torch.testing.assert_close(part.images, alone.images, rtol=1e-4, atol=1e-4)
        assert part.banks[0] is whole.banks[p]
        for step, of_one in zip(part.trace.steps, alone.trace.steps, strict=True):
            torch.testing.assert_close(step.info.log_efr, of_one.info.log_efr, rtol=1e-4, atol=1e-4)
        for phase, cost in part.cost.items():
            assert cost.network_evaluations == alone.cost[phase].network_evaluations
            assert cost.seconds * 2 == pytest.approx(whole.cost[phase].seconds)
