"""SMILES, rewards of molecules, counts of samples, and the command."""

import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

Chem = pytest.importorskip("rdkit.Chem")

from transformers import AutoTokenizer  # noqa: E402

from lidar_sampling import LookaheadBank, RewardError  # noqa: E402
from lidar_sampling.cli import _run  # noqa: E402
from lidar_sampling.discrete import molecules as m  # noqa: E402

TOKENIZER = m.smiles_tokenizer()
SMILES = ["C", "CC(=O)[O-]", "c1cc[nH]c1", "C#CC1(C)OC1", "[NH3+]CC([O-])=O", "FC1=NC=NO1"]


class TestTokenizer:
    def test_writes_back_what_it_read(self):
        assert m.decode(TOKENIZER, m.encode(TOKENIZER, SMILES)) == SMILES

    @given(st.lists(st.sampled_from(m._tokenizer.SYMBOLS), max_size=30))
    def test_every_sequence_of_symbols_is_its_own(self, symbols):
        """The exception is symbols that join: C and l would be Cl, which the vocabulary lacks."""
        (row,) = m.encode(TOKENIZER, ["".join(symbols)]).tolist()
        assert row[0] == 0
        assert row[len(symbols) + 1] == 1
        assert TOKENIZER.convert_ids_to_tokens(row[1 : len(symbols) + 1]) == symbols
        assert set(row[len(symbols) + 2 :]) <= {3}

    def test_ids_are_those_of_the_public_tokenizer(self):
        """Special tokens first, then the 30 symbols as sorted by their characters."""
        assert TOKENIZER.convert_tokens_to_ids(["<bos>", "<eos>", "<mask>", "<pad>", "<unk>"]) == [0, 1, 2, 3, 4]
        assert TOKENIZER.convert_tokens_to_ids(["#", "=", "C", "[nH]", "o"]) == [5, 14, 15, 31, 34]
        assert len(TOKENIZER) == 35

    def test_survives_the_disk(self, tmp_path):
        TOKENIZER.save_pretrained(tmp_path)
        again = AutoTokenizer.from_pretrained(tmp_path)
        assert again(SMILES)["input_ids"] == TOKENIZER(SMILES)["input_ids"]

    def test_noise_among_special_tokens_is_dropped_and_masks_are_not(self):
        assert m.decode(TOKENIZER, torch.tensor([[0, 15, 3, 15, 1, 15], [15, 2, 4, 3, 3, 3]])) == [
            "CCC",
            "C<mask><unk>",
        ]

    @pytest.mark.parametrize(("smiles", "why"), [("C" * 31, "at most 30 tokens"), ("CBr", "'CBr' holds a symbol")])
    def test_what_cannot_be_written_is_refused(self, smiles, why):
        with pytest.raises(ValueError, match=why):
            m.encode(TOKENIZER, ["C", smiles])


class TestRewards:
    @pytest.mark.parametrize(
        ("name", "smiles", "value"),
        [
            ("ring-count", "C1CC12CC2", 2),
            ("ring-count", "CC", 0),
            ("C#N", "N#CCC#N", 2),
            ("math:isfinite", "C", None),
        ],
    )
    def test_of_known_molecules(self, name, smiles, value):
        found = m.load_property(name)
        if value is not None:
            assert found(Chem.MolFromSmiles(smiles)) == value

    def test_qed_is_rdkits(self):
        assert m.load_property("qed")(Chem.MolFromSmiles("c1ccccc1O")) == pytest.approx(0.5147, abs=1e-3)

    def test_an_aromatic_bond_is_a_pattern_and_no_module(self):
        assert m.load_property("c:c")(Chem.MolFromSmiles("c1cc[nH]c1")) == 3

    @pytest.mark.parametrize("name", ["rings", "", "json:nothing", "nowhere.at.all:f", "((("])
    def test_what_is_no_reward_is_refused(self, name):
        with pytest.raises(ValueError, match=r"is no reward|has no function"):
            m.load_property(name)

    @pytest.mark.parametrize("name", ["ring_count", "Ring-Count", "QED"])
    def test_the_nearest_name_is_told(self, name):
        near = name.lower().replace("_", "-")
        with pytest.raises(ValueError, match=f"{name!r} is no reward: did you mean {near!r}"):
            m.load_property(name)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("raise SystemExit(0)", "SystemExit: 0"),
            ("1 / 0", "ZeroDivisionError"),
            ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
            ("def f(:", "SyntaxError"),
        ],
    )
    def test_a_module_that_cannot_be_imported_is_named(self, tmp_path, monkeypatch, content, message):
        (tmp_path / "odd_rewards.py").write_text(content)
        monkeypatch.syspath_prepend(tmp_path)
        with pytest.raises(RewardError, match=f"^importing the reward odd_rewards:f raised {message}"):
            m.load_property("odd_rewards:f")

    def test_a_reward_that_ends_the_program_is_named(self):
        def leave(molecule):
            raise SystemExit(3)

        with pytest.raises(RewardError, match="the reward mine of CC raised SystemExit: 3"):
            m.MoleculeReward(leave, TOKENIZER, name="mine")(m.encode(TOKENIZER, ["CC"]))

    def test_no_molecule_gets_the_floor(self):
        reward = m.reward("qed", invalid=-0.5)
        tokens = torch.cat([m.encode(TOKENIZER, ["CC"]), torch.full((2, 32), 3), m.encode(TOKENIZER, ["C("])[:1]])
        assert reward(tokens).tolist()[1:] == [-0.5, -0.5, -0.5]
        assert reward(tokens)[0] > 0

    def test_a_reward_that_is_not_finite_is_named(self):
        reward = m.MoleculeReward(lambda _: float("nan"), TOKENIZER, name="odd")
        with pytest.raises(ValueError, match="the reward odd of CC is nan"):
            reward(m.encode(TOKENIZER, ["CC"]))

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            (lambda _: None, "is None: return a finite number of float32"),
            (lambda _: 1e40, r"is 1e\+40"),  # infinity in float32
            (lambda _: -(10**400), "is -1000"),
            (lambda _: float("inf"), "is inf"),
            (lambda _: "3", "is '3'"),
            (lambda _: [1.0], r"is \[1\.0\]"),
            (lambda molecule: molecule.GetNoSuch(), "raised AttributeError: "),
        ],
    )
    def test_a_reward_that_gives_no_number_is_named_with_its_molecule(self, value, message):
        from lidar_sampling.discrete import TokenLiDAR

        reward, tokens = m.MoleculeReward(value, TOKENIZER, name="mine:f"), m.encode(TOKENIZER, ["CC"])
        for ask in (reward, TokenLiDAR(m.load_model(), reward=reward).score):
            with pytest.raises(RewardError, match=f"^the reward mine:f of CC {message}"):
                ask(tokens)

    def test_any_reward_of_tokens_that_fails_is_named(self):
        from lidar_sampling.discrete import TokenLiDAR

        def odd(tokens):
            raise KeyError("lost")

        tokens = m.encode(TOKENIZER, ["CC"])
        with pytest.raises(RewardError, match="reward 'odd' raised KeyError: 'lost'"):
            TokenLiDAR(m.load_model(), reward=odd).score(tokens)

    def test_the_floor_is_a_number_of_float32(self):
        with pytest.raises(ValueError, match=r"invalid must be a finite number of float32, got -1e\+40"):
            m.reward("qed", invalid=-1e40)


class TestSummary:
    KNOWN = m.digests(["CCO", "C"])

    def test_counts_by_hand(self):
        """A known molecule in two spellings, a new one in two spellings, one twice, and two invalid ones."""
        s = m.summarize(["OCC", "C(O)C", "CN", "NC", "CN", "C(", ""], [1.0] * 7, self.KNOWN)
        assert (s.samples, s.valid, s.unique, s.unique_molecules) == (7, 5, 4, 2)
        assert (s.novel_raw, s.novel) == (4, 1)

    def test_means_are_of_what_they_say(self):
        s = m.summarize(["C", "C", "C1CC1", "("], [0, 0, 1, -1], self.KNOWN)
        assert (s.reward, s.reward_novel, s.reward_novel_raw) == (pytest.approx(1 / 3), 1.0, 1.0)

    def test_nothing_valid_has_no_mean(self):
        s = m.summarize(["", "("], [-1, -1], self.KNOWN)
        assert s.valid == s.novel == 0
        assert np.isnan(s.reward)

    def test_the_shipped_digests_know_qm9(self):
        known = m.load_known()
        assert (np.diff(known.astype(object)) > 0).all()
        assert len(known) == 130_744
        assert np.isin(m.digests(["C", "CCO", "c1cc[nH]c1"]), known).all()
        assert not np.isin(m.digests(["OCC", "CCCCCCCCCCCC"]), known).any()


class TestTheEmbeddedModel:
    def test_most_of_what_it_draws_is_a_molecule_and_guidance_closes_rings(self):
        from lidar_sampling.discrete import TokenLiDAR

        lidar = TokenLiDAR(m.load_model(), reward=m.reward("ring-count"), n=256, steps=16)
        plain, guided = lidar.vanilla(64), lidar(64)
        assert (plain.rewards >= 0).float().mean() > 0.6
        assert guided.rewards.mean() > plain.rewards.mean() + 0.5


FEW = ["--samples", "8", "--steps", "6", "--quiet"]
SMALL = [*FEW, "--n", "16", "--lookahead-steps", "4"]


class TestCommand:
    def run(self, *arguments):
        return _run(["molecules", *SMALL, *arguments], debug=True)

    def test_writes_molecules_a_picture_and_numbers(self, tmp_path, capsys):
        out = tmp_path / "out"
        assert self.run("--reward", "qed", "--out", str(out), "--json") == 0
        whole = json.loads(capsys.readouterr().out)
        assert whole == json.loads((out / "result.json").read_text())
        assert len(whole["lidar"]["samples"]) == len(whole["vanilla"]["samples"]) == 8
        lines = [line.split("\t") for line in (out / "samples.smi").read_text().splitlines()]
        rewards = [float(value) for _, value in lines]
        assert rewards == sorted(rewards, reverse=True)
        assert all(Chem.MolFromSmiles(smiles) is not None for smiles, _ in lines)
        assert (out / "grid.svg").read_text().lstrip().startswith("<?xml")
        assert (out / "grid.png").read_bytes().startswith(b"\x89PNG")
        assert (out / "bank.safetensors").exists()

    def test_a_folder_with_something_in_it_is_left_alone(self, tmp_path, capsys):
        (tmp_path / "mine.txt").write_text("x")
        assert self.run("--out", str(tmp_path)) == 2
        assert "is not empty" in capsys.readouterr().err
        assert self.run("--out", str(tmp_path), "--overwrite") == 2
        assert "holds no run of lidar" in capsys.readouterr().err
        assert (tmp_path / "mine.txt").read_text() == "x"

    def test_molecules_are_replaced_when_asked(self, tmp_path, capsys):
        out = tmp_path / "out"
        assert self.run("--out", str(out)) == 0
        first = (out / "result.json").read_text()
        assert _run(["molecules", *SMALL, "--out", str(out)], debug=False) == 2
        err = capsys.readouterr().err
        assert "--overwrite to delete it" in err
        assert "--resume" not in err
        assert self.run("--out", str(out), "--overwrite", "--seed", "1") == 0
        assert (out / "result.json").read_text() != first

    def test_a_function_of_ones_own_beside_the_shell(self, tmp_path, monkeypatch, capsys):
        (tmp_path / "atoms_of_mine.py").write_text("def count(molecule):\n    return molecule.GetNumAtoms()\n")
        monkeypatch.chdir(tmp_path)
        assert self.run("--reward", "atoms_of_mine:count", "--out", "out", "--json") == 0
        whole = json.loads(capsys.readouterr().out)
        assert max(s["reward"] for s in whole["lidar"]["samples"]) >= 1

    def test_what_cannot_be_written_says_so_before_anything_is_drawn(self, tmp_path, capsys):
        (tmp_path / "file").write_text("")
        assert _run(["molecules", *SMALL, "--out", str(tmp_path / "file" / "out")], debug=False) in (1, 2)
        assert str(tmp_path / "file") in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("arguments", "why"),
        [
            (["--reward", "rings"], "is no reward"),
            (["--form", "pairs"], "form must be 'token-independent' or"),
            (["--reward-scale", "-1"], "reward_scale must be finite and at least 0, got -1.0"),
            (["--floor", "1"], "floor must be in [0, 1), got 1.0"),
        ],
    )
    def test_wrong_use_is_one_line(self, tmp_path, capsys, arguments, why):
        assert _run(["molecules", *SMALL, *arguments, "--out", str(tmp_path / "out")], debug=False) == 2
        assert why in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    def test_the_floor_reaches_guidance(self, tmp_path):
        """At nearly pure noise, a bank gives the same guidance for all tokens."""
        guided = []
        for floor in ("0.02", "0.9999999"):
            assert self.run("--floor", floor, "--out", str(tmp_path / floor)) == 0
            whole = json.loads((tmp_path / floor / "result.json").read_text())
            assert whole["arguments"]["floor"] == float(floor)
            guided.append(whole["lidar"]["samples"] == whole["vanilla"]["samples"])
        assert guided == [False, True]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """Draw a run whose bank others use; return its folder."""
    out = tmp_path_factory.mktemp("molecules") / "first"
    assert _run(["molecules", *SMALL, "--out", str(out)], debug=True) == 0
    return out


class TestABankOfAnEarlierRun:
    def written(self, folder):
        bank = LookaheadBank.load(folder / "bank.safetensors")
        return bank.key, bank.samples.tolist(), bank.reward("ring-count").tolist()

    @pytest.mark.parametrize("again", [FEW, SMALL], ids=["left out", "in agreement"])
    def test_guides_alike_and_costs_nothing(self, first, tmp_path, again):
        out = tmp_path / "out"
        arguments = ["--bank", str(first / "bank.safetensors"), "--out", str(out)]
        assert _run(["molecules", *again, *arguments], debug=True) == 0
        one, two = (json.loads((folder / "result.json").read_text()) for folder in (first, out))
        assert two["lidar"]["samples"] == one["lidar"]["samples"]
        assert set(one["lidar"]["cost"]) - set(two["lidar"]["cost"]) == {"lookahead"}
        assert (two["arguments"]["n"], two["arguments"]["lookahead_steps"]) == (16, 4)
        assert self.written(out) == self.written(first)

    def test_may_lie_in_the_run_that_is_replaced(self, first, tmp_path):
        out = tmp_path / "out"
        shutil.copytree(first, out)
        arguments = ["--bank", str(out / "bank.safetensors"), "--out", str(out), "--overwrite", "--seed", "1"]
        assert _run(["molecules", *FEW, *arguments], debug=True) == 0
        assert self.written(out) == self.written(first)
        assert (out / "result.json").read_bytes() != (first / "result.json").read_bytes()

    def test_its_rewards_guide(self, first, tmp_path):
        """A bank with the opposite rewards leads to different samples."""
        bank = LookaheadBank.load(first / "bank.safetensors")
        texts = m.decode(TOKENIZER, bank.samples)
        turned = torch.tensor([-1.0 if m.parse(s) is None else -r for s, r in zip(texts, bank.reward(), strict=True)])
        path, out = bank.with_rewards({"ring-count": turned}).save(tmp_path / "bank.safetensors"), tmp_path / "out"
        assert _run(["molecules", *FEW, "--bank", str(path), "--out", str(out)], debug=True) == 0
        one, two = (json.loads((folder / "result.json").read_text())["lidar"] for folder in (first, out))
        assert two["samples"] != one["samples"]

    @pytest.mark.parametrize(
        ("arguments", "why"),
        [
            (["--n", "32"], "was drawn with --n 16, not 32: leave --n out"),
            (["--lookahead-steps", "8"], "was drawn with --lookahead-steps 4, not 8: leave --lookahead-steps out"),
            (["--reward", "qed"], "was scored by ring-count, not by qed: give that --reward"),
            (["--invalid", "-2"], "was scored with --invalid -1, not -2: give that one"),
        ],
    )
    def test_is_refused_where_the_options_are_of_another(self, first, tmp_path, capsys, arguments, why):
        out = tmp_path / "out"
        arguments = [*FEW, "--bank", str(first / "bank.safetensors"), "--out", str(out), *arguments]
        assert _run(["molecules", *arguments], debug=False) == 2
        assert why in (err := capsys.readouterr().err)
        assert err.count("\n") == 1
        assert not out.exists()

    @pytest.mark.parametrize(
        ("tokens", "why"), [(torch.zeros(2, 9, dtype=torch.long), "shape (9,) against (32,)"), (None, "no bank at")]
    )
    def test_is_refused_where_it_is_none_of_these_sequences(self, tmp_path, capsys, tokens, why):
        path = tmp_path / "bank.safetensors"
        if tokens is not None:
            LookaheadBank(tokens, {"ring-count": torch.zeros(2)}, "tokens").save(path)
        assert _run(["molecules", *FEW, "--bank", str(path), "--out", str(tmp_path / "out")], debug=False) == 2
        assert why in (err := capsys.readouterr().err)
        assert err.count("\n") == 1
        assert not (tmp_path / "out").exists()
