"""Soft-TIFA against a restatement that asks one question at a time, by hand, and on broken files."""

import json

import pytest
import torch
from pictures import pictures
from PIL import Image
from test_vqascore import save_llava, save_qwen
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lidar_sampling import rewards
from lidar_sampling.rewards import soft_tifa
from lidar_sampling.rewards._language import first_tokens
from lidar_sampling.rewards.soft_tifa import SoftTIFA, read_questions, soft_tifa_am

LINES = [  # in the format of GenEval 2; the words are ours
    {
        "prompt": "three dogs",
        "atom_count": 2,
        "vqa_list": [["How many dogs are in the image?", "three"], ["Are the dogs red?", "Yes"]],
        "skills": ["count", "attribute"],
    },
    {"prompt": "a cat", "atom_count": 1, "vqa_list": [["Does the image show a cat?", "Yes"]], "skills": ["object"]},
    {
        "prompt": "one red cup",
        "atom_count": 3,
        "vqa_list": [
            ["How many cup are in the image?", "one"],
            ["Does the image show a red cup?", "Yes"],
            ["Are the cat or dogs in the image?", "no"],
        ],
        "skills": ["count", "object", "object"],
    },
]
SPELLINGS = {"three": ("three", "Three", "3"), "one": ("one",), "Yes": ("yes", "Yes"), "no": ("no", "No")}


@pytest.fixture(scope="module", params=[save_llava, save_qwen])
def vlm(request, tmp_path_factory):
    torch.manual_seed(5)
    return request.param(tmp_path_factory.mktemp("vlm"))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in LINES) + "\n\n")
    return path


def bytes_tokenizer(special=()):
    """Return a tokenizer of bytes: the first token of a spelling is its first letter or leading space."""
    letters = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def test_soft_tifa_is_one_question_at_a_time_in_any_batch(vlm, file):
    from transformers import AutoModelForImageTextToText

    images, prompts = pictures(3, 40, 56, seed=2), ["one red cup", "a cat", "three dogs"]
    geometric = SoftTIFA(file, model=vlm)
    arithmetic = SoftTIFA(file, mean="arithmetic", model=vlm)
    model = AutoModelForImageTextToText.from_pretrained(vlm, dtype=torch.float32).eval()
    vocabulary = geometric._processor.tokenizer.get_vocab()
    mark = (vlm / "chat_template.jinja").read_text().split("'image' %}")[1].split("{% else")[0]
    expected = []
    for image, prompt in zip(images, prompts, strict=True):
        picture = Image.fromarray((image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
        (line,) = [line for line in LINES if line["prompt"] == prompt]
        right = []
        for question, answer in line["vqa_list"]:
            text = f"<|turn|> user {mark} {question} Answer in one word. <|end|> <|turn|> assistant "
            inputs = geometric._processor(text=[text], images=[picture], return_tensors="pt")
            with torch.no_grad():
                p = model(**inputs).logits[0, -1].softmax(0)
            right.append(sum(p[vocabulary[word]] for word in SPELLINGS[answer]))
        expected.append(torch.stack(right))
    for batch_size in (3, 2, 1):
        am, gm = (
            rewards.score(reward, images=images, prompts=prompts, batch_size=batch_size)
            for reward in (arithmetic, geometric)
        )
        torch.testing.assert_close(am, torch.stack([p.mean() for p in expected]), rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(
            gm, torch.stack([p.prod() ** (1 / len(p)) for p in expected]), rtol=1e-4, atol=1e-7
        )
        assert am.dtype == gm.dtype == torch.float32
    assert (am > gm * 1.01).any()
    assert am[1] == pytest.approx(gm[1])  # one question
    assert (geometric.name, arithmetic.name) == (f"soft-tifa:{file}", f"soft-tifa-am:{file}")
    assert geometric.networks == [geometric._model]


def test_means_worked_by_hand(vlm, file, monkeypatch):
    """Probabilities .5 and .02 have the means .26 and .1; a probability of 0 makes the product 0, not NaN."""
    reward, other = SoftTIFA(file, model=vlm), SoftTIFA(file, mean="arithmetic", model=vlm)
    vocabulary = reward._processor.tokenizer.get_vocab()
    of_yes, seen = [0.02], []

    def logits(model, processor, *, images, questions):
        seen.append((images.flatten(1).mean(1).tolist(), list(questions)))
        p = torch.zeros(len(questions), len(vocabulary))
        for row, question in zip(p, questions, strict=True):
            if question.startswith("How many"):
                row[vocabulary["three"]], row[vocabulary["3"]] = 0.3, 0.2
            else:
                row[vocabulary["Yes"]] = of_yes[0]
            row[vocabulary["cat"]] = 1 - row.sum()
        return p.log() + 7  # logits have no zero

    monkeypatch.setattr(soft_tifa, "next_logits", logits)
    images = torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)])
    prompts = ["three dogs", "a cat"]
    assert reward(images=images, prompts=prompts).tolist() == pytest.approx([0.1, 0.02])
    assert other(images=images, prompts=prompts).tolist() == pytest.approx([0.26, 0.02])
    assert seen[:2] == [
        ([0, 0], ["How many dogs are in the image? Answer in one word.", "Are the dogs red? Answer in one word."]),
        ([1], ["Does the image show a cat? Answer in one word."]),
    ]
    of_yes[0] = 0.0
    assert reward(images=images, prompts=prompts).tolist() == [0, 0]
    assert other(images=images, prompts=prompts).tolist() == pytest.approx([0.25, 0])


@pytest.mark.parametrize(
    ("question", "answer", "spellings"),
    [
        ("How many pigs are in the image?", "two", ["two", "Two", " two", " Two", "2", " 2"]),
        ("How many pigs are in the image?", "ten", ["ten", "Ten", " ten", " Ten", "10", " 10"]),
        ("Are there any pigs in the image?", "Yes", ["Yes", "yes", " yes", " Yes"]),
        ("How many pigs are in the image?", "eleven", ["eleven", "Eleven", " eleven", " Eleven"]),
        ("What colour is the pig?", "green", ["green", "Green", " green", " Green"]),
    ],
)
def test_spellings_are_those_of_geneval_2(question, answer, spellings):
    """Its lists, in evaluation.py, are the first three; the first token of each spelling counts."""
    assert sorted(soft_tifa._spell(question, answer)) == sorted(spellings)
    tokenizer = bytes_tokenizer(["<unk>"])
    first = {tokenizer.encode(spelling, add_special_tokens=False)[0] for spelling in spellings}
    assert first_tokens(tokenizer, spellings) == sorted(first)
    assert {text.replace("Ġ", " ") for text in tokenizer.convert_ids_to_tokens(first)} == {s[0] for s in spellings}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"is not JSON"),
        ("\xff", r"is not JSON"),
        ("[" * 100_000, r"is not JSON"),
        ("[]", r'an object with a text as its "prompt"'),
        ('{"vqa_list": [["a?", "Yes"]]}', r'an object with a text as its "prompt"'),
        ('{"prompt": "a pig"}', r'pairs \[question, answer\] of texts as its "vqa_list"'),
        ('{"prompt": "a pig", "vqa_list": []}', r"at least one"),
        ('{"prompt": "a pig", "vqa_list": [["a?"]]}', r"pairs"),
        ('{"prompt": "a pig", "vqa_list": [["a?", "b", "c"]]}', r"pairs"),
        ('{"prompt": "a pig", "vqa_list": [["a?", 3]]}', r"pairs"),
        ('{"prompt": "a pig", "vqa_list": [["a?", " "]]}', r"pairs"),
        ('{"prompt": "a pig", "vqa_list": ["ab"]}', r"pairs"),
        ('{"prompt": "a cat", "vqa_list": [["Is it?", "Yes"]]}', r"the prompt 'a cat' had other questions before"),
    ],
)
def test_a_broken_line_is_named(file, line, message):
    file.write_bytes(file.read_bytes().rstrip() + b"\n" + line.encode("latin-1"))
    with pytest.raises(ValueError, match=rf"questions\.jsonl, line 4: .*{message}"):
        read_questions(file)


def test_what_is_no_file_of_questions(file, tmp_path, monkeypatch):
    assert [len(pairs) for pairs in read_questions(str(file)).values()] == [2, 1, 3]
    file.write_bytes(file.read_bytes() * 2)
    assert len(read_questions(file)) == 3  # the same twice is the same
    with pytest.raises(FileNotFoundError, match=r"no file of questions at .*nowhere"):
        read_questions(tmp_path / "nowhere")
    (tmp_path / "empty").touch()
    with pytest.raises(ValueError, match="empty holds no questions"):
        read_questions(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"soft-tifa needs GenEval 2's file of questions: soft-tifa:geneval2"):
        SoftTIFA(None)
    with pytest.raises(ValueError, match=r"soft-tifa-am needs GenEval 2's file of questions"):
        soft_tifa_am("")
    with pytest.raises(ValueError, match="mean must be one of geometric, arithmetic, got 'harmonic'"):
        SoftTIFA(file, mean="harmonic")
    asked = []
    monkeypatch.setattr(soft_tifa, "load_processor", lambda source: asked.append(source) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        soft_tifa_am(file)
    assert asked == [rewards.REGISTRY["vqascore"].published]


def test_prompts_and_answers_that_cannot_be_judged(vlm, file):
    reward = SoftTIFA(file, model=vlm)
    rewards.check_prompts(reward, [line["prompt"] for line in LINES])
    message = r"questions\.jsonl has no questions on 'three dogs\.': write the prompt as the file does"
    with pytest.raises(ValueError, match=message):
        reward.check(["a cat", "three dogs."])
    with pytest.raises(ValueError, match=r"^reward 'soft-tifa:.*' cannot read the prompt 'three dogs\.'"):
        rewards.check_prompts(reward, ["three dogs."])
    with pytest.raises(ValueError, match=message):
        reward(images=torch.zeros(1, 3, 8, 8), prompts=["three dogs."])
    with pytest.raises(ValueError, match="must have the same length, got 1 and 2"):
        reward(images=torch.zeros(1, 3, 8, 8), prompts=["a cat"] * 2)
    file.write_text('{"prompt": "a pig", "vqa_list": [["What colour?", "purple"]]}')
    with pytest.raises(ValueError, match="no token for 'purple'"):
        SoftTIFA(file, model=vlm)
