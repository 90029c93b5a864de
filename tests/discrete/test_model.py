"""The denoiser, the published layout, and both phases over it."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file

from lidar_sampling import BankError, LookaheadBank
from lidar_sampling.discrete import TokenFKSteering, TokenLiDAR, Uniform, sample
from lidar_sampling.discrete.model import Denoiser, DenoiserConfig, from_udlm

SMALL = {"vocab_size": 6, "length": 5, "hidden_size": 16, "cond_dim": 8, "layers": 2, "heads": 2}


def small(**changes):
    torch.manual_seed(0)
    model = Denoiser(DenoiserConfig(**{**SMALL, **changes})).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.3)
    return model


def threes(x):
    return (x == 3).sum(1)


class TestDenoiser:
    def test_survives_the_disk(self, tmp_path):
        model, x = small(), torch.randint(6, (3, 5))
        model.save_pretrained(tmp_path)
        again = Denoiser.from_pretrained(tmp_path)
        assert torch.equal(again(x, torch.ones(3)).logits, model(x, torch.ones(3)).logits)
        assert again.config.noise == "uniform"

    def test_fresh_weights_predict_nothing_and_learn(self):
        torch.manual_seed(0)
        model = Denoiser(DenoiserConfig(**SMALL))
        logits = model(torch.randint(6, (3, 5)), torch.ones(3)).logits
        assert logits.abs().max() == 0
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.zeros(15, dtype=torch.long)).backward()
        assert model.head.weight.grad.abs().max() > 0

    def test_time_is_told_or_not(self):
        x = torch.randint(6, (3, 5))
        for told in (True, False):
            model = small(time_conditioning=told)
            same = torch.equal(model(x, torch.ones(3)).logits, model(x, torch.zeros(3)).logits)
            assert same is not told

    def test_heads_must_divide_the_width(self):
        with pytest.raises(ValueError, match=r"multiple of 2 \* heads = 6, got 16"):
            DenoiserConfig(hidden_size=16, heads=3)


def published_weights(generator, hidden=16, cond=8, blocks=2, vocab=6):
    """Return random weights with the names of the published checkpoint."""
    shapes = {
        "vocab_embed.embedding": (vocab, hidden),
        "sigma_map.mlp.0.weight": (cond, 256),
        "sigma_map.mlp.0.bias": (cond,),
        "sigma_map.mlp.2.weight": (cond, cond),
        "sigma_map.mlp.2.bias": (cond,),
        "rotary_emb.inv_freq": (hidden // 4,),
        "output_layer.norm_final.weight": (hidden,),
        "output_layer.linear.weight": (vocab, hidden),
        "output_layer.linear.bias": (vocab,),
        "output_layer.adaLN_modulation.weight": (2 * hidden, cond),
        "output_layer.adaLN_modulation.bias": (2 * hidden,),
    }
    for i in range(blocks):
        shapes |= {
            f"blocks.{i}.norm1.weight": (hidden,),
            f"blocks.{i}.attn_qkv.weight": (3 * hidden, hidden),
            f"blocks.{i}.attn_out.weight": (hidden, hidden),
            f"blocks.{i}.norm2.weight": (hidden,),
            f"blocks.{i}.mlp.0.weight": (4 * hidden, hidden),
            f"blocks.{i}.mlp.0.bias": (4 * hidden,),
            f"blocks.{i}.mlp.2.weight": (hidden, 4 * hidden),
            f"blocks.{i}.mlp.2.bias": (hidden,),
            f"blocks.{i}.adaLN_modulation.weight": (6 * hidden, cond),
            f"blocks.{i}.adaLN_modulation.bias": (6 * hidden,),
        }
    return {f"backbone.{name}": 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def published_forward(w, x, sigma, *, hidden=16, heads=2, blocks=2):
    """Return logits (L, V) of one sequence by the published computation, in loops over tokens."""
    w = {name.removeprefix("backbone."): value for name, value in w.items()}

    def linear(name, value):
        out = w[f"{name}.weight"] @ value
        return out + w[f"{name}.bias"] if f"{name}.bias" in w else out

    def norm(name, value):
        centred = value - value.mean()
        return centred / (centred.square().mean() + 1e-5).sqrt() * w[f"{name}.weight"]

    rates = [10_000 ** (-k / 128) for k in range(128)]
    features = torch.tensor([math.cos(sigma * r) for r in rates] + [math.sin(sigma * r) for r in rates])
    hidden_level = linear("sigma_map.mlp.0", features)
    c = linear("sigma_map.mlp.2", hidden_level * hidden_level.sigmoid())
    c = c * c.sigmoid()
    size = hidden // heads
    h = [w["vocab_embed.embedding"][token] for token in x]
    for i in range(blocks):
        shift, scale, gate, shift2, scale2, gate2 = linear(f"blocks.{i}.adaLN_modulation", c).split(hidden)
        qkv = [linear(f"blocks.{i}.attn_qkv", norm(f"blocks.{i}.norm1", v) * (1 + scale) + shift) for v in h]
        parts = [v.view(3, heads, size).clone() for v in qkv]
        for place, part in enumerate(parts):
            for k in range(size // 2):  # rotary positions: the first half of queries and keys against the second
                angle = place * 10_000 ** (-2 * k / size)
                a, b = part[:2, :, k].clone(), part[:2, :, k + size // 2].clone()
                part[:2, :, k] = a * math.cos(angle) - b * math.sin(angle)
                part[:2, :, k + size // 2] = b * math.cos(angle) + a * math.sin(angle)
        out = []
        for part in parts:
            heads_out = []
            for head in range(heads):
                scores = torch.stack([part[0, head] @ other[1, head] for other in parts]) / math.sqrt(size)
                weights = scores.softmax(0)
                heads_out.append(sum(p * other[2, head] for p, other in zip(weights, parts, strict=True)))
            out.append(linear(f"blocks.{i}.attn_out", torch.cat(heads_out)))
        h = [v + gate * o for v, o in zip(h, out, strict=True)]
        inner = [linear(f"blocks.{i}.mlp.0", norm(f"blocks.{i}.norm2", v) * (1 + scale2) + shift2) for v in h]
        inner = [0.5 * v * (1 + (math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)).tanh()) for v in inner]
        h = [v + gate2 * linear(f"blocks.{i}.mlp.2", m) for v, m in zip(h, inner, strict=True)]
    shift, scale = linear("output_layer.adaLN_modulation", c).split(hidden)
    return torch.stack(
        [linear("output_layer.linear", norm("output_layer.norm_final", v) * (1 + scale) + shift) for v in h]
    )


PUBLISHED = {
    "model_type": "udlm",
    "vocab_size": 6,
    "model_length": 5,
    "hidden_dim": 16,
    "cond_dim": 8,
    "n_blocks": 2,
    "n_heads": 2,
    "dropout": 0.1,
    "time_conditioning": True,
    "cfg": False,
    "auto_map": {"AutoModelForMaskedLM": "modeling_udlm.UDLM"},
}


class TestPublishedLayout:
    def folder(self, path, **changes):
        weights = published_weights(torch.Generator().manual_seed(1))
        (path / "config.json").write_text(json.dumps({**PUBLISHED, **changes}))
        (path / "modeling_udlm.py").write_text("raise RuntimeError('remote code ran')")
        save_file(weights, path / "model.safetensors")
        return weights

    def test_logits_are_those_of_a_restatement(self, tmp_path):
        weights = self.folder(tmp_path)
        model = from_udlm(tmp_path)
        x = torch.tensor([[0, 5, 2, 2, 1], [3, 1, 4, 0, 0]])
        sigma = torch.tensor([0.3, 4.0])
        with torch.no_grad():
            got = model(x, sigma).logits
        for row, level, logits in zip(x, sigma.tolist(), got, strict=True):
            torch.testing.assert_close(logits, published_forward(weights, row, level), atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize(
        ("changes", "why"),
        [({"model_type": "bert"}, "holds a 'bert' model"), ({"cfg": True}, "trained with classes")],
    )
    def test_another_model_is_refused(self, tmp_path, changes, why):
        self.folder(tmp_path, **changes)
        with pytest.raises(ValueError, match=why):
            from_udlm(tmp_path)

    def test_a_damaged_one_is_named(self, tmp_path):
        self.folder(tmp_path)
        save_file({"other": torch.zeros(1)}, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match=r"model\.safetensors holds the weights of another network"):
            from_udlm(tmp_path)
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "udlm"}))
        with pytest.raises(ValueError, match=r"config\.json has no 'model_length'"):
            from_udlm(tmp_path)
        (tmp_path / "config.json").write_text("{")
        with pytest.raises(ValueError, match=r"config\.json is damaged"):
            from_udlm(tmp_path)

    def test_an_empty_folder_is_named(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=str(tmp_path)):
            from_udlm(tmp_path)


class TestTokenLiDAR:
    @pytest.mark.parametrize("form", ["single-site", "token-independent", "joint"])
    def test_guidance_raises_the_reward(self, form):
        lidar = TokenLiDAR(small(), reward=threes, n=128, steps=12, form=form, reward_scale=3.0)
        assert lidar(64).rewards.mean() > lidar.vanilla(64).rewards.mean() + 0.7

    def test_scale_nought_is_plain_sampling(self):
        lidar = TokenLiDAR(small(), reward=threes, n=16, steps=6, scale=0.0)
        assert torch.equal(lidar(8).tokens, lidar.vanilla(8).tokens)

    def test_the_same_seed_gives_the_same_tokens_in_any_batch(self):
        results = [
            TokenLiDAR(small(), reward=threes, n=32, steps=6, batch_size=size)(10, seed=4).tokens
            for size in (1, 3, 64)
        ]
        assert torch.equal(results[0], results[1])
        assert torch.equal(results[0], results[2])

    def test_a_bank_shares_no_noise_with_the_samples(self):
        lidar = TokenLiDAR(small(), reward=threes, n=16, steps=6, lookahead_steps=6)
        assert (lidar.look().samples == lidar.vanilla(16).tokens).float().mean() < 0.6

    def test_another_seed_gives_others(self):
        lidar = TokenLiDAR(small(), reward=threes, n=32, steps=6)
        assert not torch.equal(lidar.vanilla(10, seed=0).tokens, lidar.vanilla(10, seed=1).tokens)

    def test_banks_survive_the_disk_and_guide_alike(self, tmp_path):
        lidar = TokenLiDAR(small(), reward=threes, n=32, steps=6)
        whole = lidar(8, seed=2)
        bank = LookaheadBank.load(whole.bank.save(tmp_path / "bank.safetensors"))
        again = lidar(8, seed=2, bank=bank)
        assert torch.equal(again.tokens, whole.tokens)
        assert "lookahead" not in again.cost
        assert bank.best(3).reward().min() >= bank.reward().median()

    def test_a_bank_of_tokens_guides_no_pipeline(self):
        from lidar_sampling import guide, testing

        bank = TokenLiDAR(small(), reward=threes, n=4, steps=2).look()
        with (
            pytest.raises(BankError, match="holds tokens, which guide TokenLiDAR alone"),
            guide(testing.tiny_stable_diffusion(), bank, scale=1.0, reward_scale=1.0),
        ):
            pass

    def test_costs_are_counted(self):
        cost = TokenLiDAR(small(), reward=threes, n=32, steps=6, lookahead_steps=3)(8).cost
        assert (cost["lookahead"].network_evaluations, cost["lookahead"].reward_calls) == (96, 32)
        assert (cost["sampling"].network_evaluations, cost["scoring"].reward_calls) == (48, 8)

    def test_what_a_step_left_alone_is_not_asked_about_again(self):
        """With absorbing noise and a network without time, unchanged tokens need no new evaluation."""
        model = small(noise="absorbing", mask_id=5, time_conditioning=False)
        lidar = TokenLiDAR(model, reward=threes, n=8, steps=40)
        spared = lidar.vanilla(16)
        whole = sample(lidar.network, lidar.kernel, 16, 5, steps=40)
        assert torch.equal(spared.tokens, whole[0])
        assert spared.cost["sampling"].network_evaluations < whole[1] / 3
        assert (spared.tokens != 5).all()

    @pytest.mark.parametrize(
        ("reward", "why"),
        [
            (lambda x: torch.full((len(x),), float("nan")), "finite numbers.*NaN"),
            (lambda x: torch.tensor([0.0, 1.0, -math.inf, 1.0]), "finite numbers.*infinity"),
            (lambda x: torch.zeros(3), r"must give 4 finite numbers, got \(3,\)"),
            (lambda x: torch.zeros(4, 1), r"must give 4 finite numbers, got \(4, 1\)"),
        ],
    )
    def test_a_reward_that_is_none_is_refused_in_one_way(self, reward, why):
        """Both the bank and FK steering refuse it; FK steering would broadcast (4, 1) and draw from NaN."""
        with pytest.raises(ValueError, match=why) as bank:
            TokenLiDAR(small(), reward=reward, n=4, steps=2).look()
        lidar = TokenLiDAR(small(), reward=threes, steps=2)
        with pytest.raises(ValueError, match=why) as steering:
            lidar.sample(4, stepper=TokenFKSteering(reward, lidar.kernel, reward_scale=1.0))
        assert str(bank.value) == str(steering.value)

    @pytest.mark.parametrize(
        ("settings", "why"),
        [
            ({"n": 0}, "n must be at least 1, got 0"),
            ({"n": True}, "n must be int, got True"),
            ({"steps": 2.5}, "steps must be int, got 2.5"),
            ({"form": "pairs"}, "form must be 'token-independent' or 'single-site' or 'joint', got 'pairs'"),
            ({"schedule": "linear"}, "schedule must be one of log-linear"),
            ({"floor": 1.0}, r"floor must be in \[0, 1\)"),
            ({"reward_scale": float("nan")}, "reward_scale must be finite and at least 0, got nan"),
            ({"reward_scale": -3}, "reward_scale must be finite and at least 0, got -3"),
            ({"scale": -1}, "scale must be finite and at least 0, got -1"),
            ({"scale": "1"}, "scale must be float, got '1'"),
        ],
    )
    def test_settings_out_of_range_are_refused(self, settings, why):
        with pytest.raises(ValueError, match=why):
            TokenLiDAR(small(), reward=threes, **settings)

    def test_a_bank_of_other_sequences_is_refused(self):
        lidar = TokenLiDAR(small(), reward=threes, n=4, steps=2, form="token-independent")
        other = TokenLiDAR(small(length=1), reward=threes, n=4, steps=2).look()
        with pytest.raises(BankError, match=r"of other sequences: shape \(1,\) against \(5,\)"):
            lidar(2, bank=other)
        more = TokenLiDAR(small(vocab_size=9), reward=threes, n=4, steps=2).look()
        with pytest.raises(BankError, match="9 tokens against 6 tokens"):
            lidar(2, bank=more)
        with pytest.raises(TypeError, match=r"bank must be a LookaheadBank, got 'bank.safetensors'"):
            lidar(2, bank="bank.safetensors")
        with pytest.raises(ValueError, match="count must be at least 1, got 0"):
            lidar(0)

    def test_a_reward_may_be_a_network_and_give_integers(self):
        layer = torch.nn.Embedding(6, 1)
        assert TokenLiDAR(small(), reward=lambda x: layer(x).sum((1, 2)), n=4, steps=2)(2).rewards.shape == (2,)
        assert TokenLiDAR(small(), reward=lambda x: [3] * len(x), n=4, steps=2)(2).rewards.tolist() == [3, 3]
        with pytest.raises(TypeError, match="reward must be a function of tokens, got 'qed'"):
            TokenLiDAR(small(), reward="qed")

    @pytest.mark.parametrize(("outputs", "value", "got"), [(7, 0.0, r"\(2, 3, 7\)"), (4, float("nan"), "NaN")])
    def test_a_network_that_gives_no_logits_is_named(self, outputs, value, got):
        lidar = TokenLiDAR(
            lambda x, s: torch.full((*x.shape, outputs), value), reward=threes, kernel=Uniform(4), length=3, steps=2
        )
        with pytest.raises(ValueError, match=rf"must give logits \(2, 3, 4\) .*, got {got}"):
            lidar.vanilla(2)

    def test_dropout_is_refused(self):
        with pytest.raises(ValueError, match=r"call its eval\(\) first"):
            TokenLiDAR(small().train(), reward=threes)

    def test_places_of_a_sequence_that_is_all_alike_look_alike(self):
        logits = small()(torch.full((1, 5), 2), torch.ones(1)).logits[0]
        torch.testing.assert_close(logits, logits[:1].expand(5, -1))

    def test_a_bank_of_equal_rewards_warns(self, caplog):
        """Without a word, plain samples would pass for guided ones."""

        def same(x):
            return [3.0] * len(x)

        lidar = TokenLiDAR(small(), reward=same, n=4, steps=2, about="fives")
        bank = lidar(2).bank
        warning = (
            "constant reward: same gives all 4 members of the bank of 'fives' the same 3, so guidance does nothing"
        )
        assert [warning in message for message in caplog.messages] == [True]
        lidar(2, bank=bank)
        assert len(caplog.messages) == 2
        TokenLiDAR(small(), reward=threes, n=32, steps=2)(2)
        assert len(caplog.messages) == 2

    def test_a_bank_of_another_reward_warns(self, said):
        def twos(x):
            return (x == 2).float().sum(1)

        bank = TokenLiDAR(small(), reward=twos, n=4, steps=2).look()
        TokenLiDAR(small(), reward=threes, n=4, steps=2)(2, bank=bank)
        assert "guides by the reward that it was scored by, twos, and not by threes" in said()[0]

    def test_an_unknown_setting_is_named(self):
        with pytest.raises(TypeError, match="unknown setting 'lamda'"):
            TokenLiDAR(small(), reward=threes, lamda=1.0)
        with pytest.raises(TypeError, match="unknown setting 'lamda'"):
            TokenLiDAR(small(), reward=threes).with_settings(lamda=1.0)

    def test_a_kernel_of_another_vocabulary_is_refused(self):
        with pytest.raises(ValueError, match="the kernel has 70 tokens, the denoiser "):
            TokenLiDAR(small(), reward=threes, kernel=Uniform(70))

    def test_looks_of_a_stepper_count_as_reward_calls(self):
        lidar = TokenLiDAR(small(), reward=threes, n=4, steps=6)
        stepper = TokenFKSteering(lidar.score, lidar.kernel, reward_scale=1.0, every=2)
        for _ in range(2):
            result = lidar.sample(8, stepper=stepper)
            assert (result.cost["sampling"].reward_calls, result.cost["scoring"].reward_calls) == (3 * 8, 8)

    @pytest.mark.parametrize("wrong", [{"reward_scale": float("nan")}, {"particles": 2.5}, {"every": 0}])
    def test_wrong_numbers_of_steering_are_refused(self, wrong):
        (name,) = wrong
        with pytest.raises(ValueError, match=f"{name} must be"):
            TokenFKSteering(threes, Uniform(5), **{"reward_scale": 1.0, **wrong})

    @pytest.mark.parametrize("logits", [(torch.inf, 0.0, 0.0), (-torch.inf,) * 3, (torch.nan, 0.0, 0.0)])
    def test_logits_without_a_law_are_refused(self, logits):
        def network(x, sigma):
            return torch.tensor(logits).expand(*x.shape, 3)

        with pytest.raises(ValueError, match="got NaN, inf, or -inf for every token"):
            sample(network, Uniform(3), 2, 4, steps=2)

    def test_a_function_as_network_wants_kernel_and_length(self):
        with pytest.raises(TypeError, match="needs kernel and length"):
            TokenLiDAR(lambda x, s: x, reward=threes)
        lidar = TokenLiDAR(
            lambda x, s: torch.zeros(*x.shape, 4), reward=threes, kernel=Uniform(4), length=3, n=8, steps=2
        )
        assert lidar(2).tokens.shape == (2, 3)
