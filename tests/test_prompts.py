"""Files of prompts as editors and shells write them: read as intended, or refused by name."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lidar_sampling._prompts import check_prompt, read_lines, read_prompts

CAT = {"tag": "mine", "include": [{"class": "cat", "count": 2}], "prompt": "my cats"}


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", b"a cat\n\n  a dog  \n", ["a cat", "a dog"]),
        ("dos.txt", b"a cat\r\na dog\r\n", ["a cat", "a dog"]),
        ("old mac.txt", b"a cat\ra dog", ["a cat", "a dog"]),
        ("no ending", b"a cat", ["a cat"]),
        ("mark.txt", "\ufeffa cat\n".encode(), ["a cat"]),
        ("mark.jsonl", '\ufeff{"prompt": "a cat"}\n'.encode(), ["a cat"]),
        ("powershell.txt", "a cat\r\nun café\r\n".encode("utf-16"), ["a cat", "un café"]),
        ("big-endian.txt", b"\xfe\xff" + "a cat\n".encode("utf-16-be"), ["a cat"]),
        ("wide.json", '["a cat"]'.encode("utf-32"), ["a cat"]),
        (
            "separators.txt",
            "a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg\n".encode(),
            ["a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg"],
        ),
        ("separators.jsonl", '{"prompt": "a\u2028b\u0085c"}\n'.encode(), ["a\u2028b\u0085c"]),
        ("capitals.JSONL", b'{"prompt": "a cat"}\n{"prompt": "a dog"}', ["a cat", "a dog"]),
        ("array.json", b'[{"prompt": "a cat"},\n "a dog"]', ["a cat", "a dog"]),
        ("emoji.jsonl", b'{"prompt": "\\ud83d\\ude00"}', ["\U0001f600"]),
        ("braces.txt", b"{a cat} on a mat\n", ["{a cat} on a mat"]),
        (
            "syntax.txt",
            b'[cat:dog:0.5]\n[1]\n{red|blue} cat\n["OPEN"] on a sign\n((cat))\n["a", b]\n"a cat"\n42\nnull\n',
            [
                "[cat:dog:0.5]",
                "[1]",
                "{red|blue} cat",
                '["OPEN"] on a sign',
                "((cat))",
                '["a", b]',
                '"a cat"',
                "42",
                "null",
            ],
        ),
        ("number.txt", b"42\n", ["42"]),
        ("joined.txt", b"\xef\xbb\xbfa cat\n\xef\xbb\xbfa dog\n\xef\xbb\xbf\n", ["a cat", "a dog"]),
        (
            "joined.jsonl",
            b'\xef\xbb\xbf{"prompt": "a cat"}\n\xef\xbb\xbf{"prompt": "a dog"}',
            ["a cat", "a dog"],
        ),
    ],
)
def test_prompts_are_read_as_they_were_meant(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    assert [line["prompt"] for line in read_prompts(tmp_path / name)] == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("latin.txt", "un café".encode("latin-1"), "is not UTF-8, byte 6 is 0xe9: save it as UTF-8"),
        ("odd.txt", b"\xff\xfea", "is not UTF-16, byte 2 is 0x61: save it as UTF-8"),
        ("bare.txt", "a cat\n".encode("utf-16-le"), "holds NUL characters, as UTF-16 without a byte order mark does"),
        ("empty.txt", b" \n\n", "is empty: give it at least one prompt"),
        ("empty.jsonl", b"", "is empty"),
        ("empty.json", b"", "is empty"),
        ("none.json", b"[]", "is empty"),
        ("b.jsonl", b'{"prompt": "a"}\n{"prompt": 3}', 'line 2: "prompt" must be a text that is not empty, got 3'),
        ("b.jsonl", b'\n{"prompt": null}', 'line 2: "prompt" must be a text that is not empty, got null'),
        ("b.jsonl", b'{"prompt": " "}', '"prompt" must be a text that is not empty, got " "'),
        ("b.jsonl", b'{"prompt": ["a"]}', r'"prompt" must be a text that is not empty, got \["a"\]'),
        ("b.jsonl", b'{"tag": "x"}', 'line 1: expected a JSON object with a "prompt", got {"tag": "x"}'),
        ("b.jsonl", b'"a cat"', 'line 1: expected a JSON object with a "prompt", got "a cat"'),
        ("b.jsonl", b"a cat", 'line 1: expected a JSON object with a "prompt", got a cat'),
        ("b.jsonl", b'{"prompt": "a", "tag": "x", "tag": "y"}', '"tag" comes twice in an object'),
        ("b.jsonl", b'{"prompt": "a", "seed": NaN}', "NaN is not JSON"),
        ("b.jsonl", b'{"prompt": "a \\ud83d"}', "holds a NUL or half a character"),
        ("b.jsonl", b'{"prompt": "a\\u0000"}', "holds a NUL or half a character"),
        ("b.jsonl", b"[" * 100_000, "line 1"),
        ("b.json", b'["a", 3]', 'item 2: expected a JSON object with a "prompt", got 3'),
        ("b.json", b'["a", ""]', 'item 2: "prompt" must be a text that is not empty, got ""'),
        (
            "b.json",
            b'{"prompt": "a"}',
            r"expected a JSON array of objects or of texts \(one object per line",
        ),
        ("b.json", b'{"prompt": "a"}\n{"prompt": "b"}', "one object per line is"),
        ("b.txt", b'["a cat", "a dog"]', "is JSON, and would be drawn as text: call it .json"),
        ("b.txt", b'[\n "a cat",\n "a dog"\n]\n', "is JSON"),
        ("b.txt", b'{\n "prompt": "a cat"\n}', "is JSON"),
        ("b.txt", b'[\n "a cat",\n]\n', "line 1 looks like JSON or Python"),
        ("b.txt", b'a cat\n["a dog", "a bird",]', "line 2 looks like JSON or Python"),
        ("b.txt", b'{"prompt": "a cat"},\n', "line 1 looks like JSON or Python"),
        ("b.txt", b"{'prompt': 'a cat'}", "line 1 looks like JSON or Python"),
        ("b.txt", b'[{"prompt": "a ca', "line 1 looks like JSON or Python"),
        ("b.CSV", b"prompt,tag\na cat,x\n", "is a table: write one prompt per line as .txt"),
        ("b.tsv", b"a cat\tx\n", "is a table"),
        ("b.txt", b"a cat\n\xe2\x80\x8b\n", 'line 2: "prompt" must be a text that is not empty'),
        ("b.jsonl", b'{"prompt": "\\u200b"}', "must be a text that is not empty"),
        (
            "b.txt",
            b'a cat\n{"prompt": "a cat"}',
            "line 2 is a JSON object, and would be drawn as text",
        ),
    ],
)
def test_what_is_no_file_of_prompts_is_refused_by_name(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as refused:
        read_prompts(tmp_path / name)
    assert name in str(refused.value)


def test_what_a_file_says_of_a_prompt_comes_with_it(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({**CAT, "mine": {"of": "any kind"}}))
    assert read_prompts(tmp_path / "a.jsonl") == [{**CAT, "mine": {"of": "any kind"}}]
    (tmp_path / "a.json").write_text(json.dumps([CAT, "a dog"], indent=1))
    assert read_prompts(tmp_path / "a.json") == [CAT, {"prompt": "a dog"}]


def test_lines_of_an_empty_file_are_none(tmp_path):
    (tmp_path / "metadata").write_text("")
    assert read_lines(tmp_path / "metadata") == []


BLANK = set("\u115f\u1160\u2800\u3164\uffa0")  # letters that show nothing


@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), max_size=4))
def test_any_text_comes_back_from_json_lines(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("prompts") / "a.jsonl"
    kept = [text for text in texts if any(c.isprintable() and c != " " for c in text) and not set(text) & BLANK]
    path.write_bytes("".join(json.dumps({"prompt": text}, ensure_ascii=False) + "\n" for text in kept).encode())
    assert [line["prompt"] for line in read_lines(path)] == kept


@pytest.mark.parametrize("text", ["a cat", "\u732b", "\U0001f408\u200d\u2b1b", ".", "\ufeffa", "a\u200bb", "e\u0301"])
def test_what_can_be_drawn(text):
    check_prompt(text)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "a text that is not empty"),
        (" \n\t", "not empty"),
        ("\u200b", "not empty"),
        ("\ufeff \u2060\u200d", "not empty"),
        ("\x1b\x07", "not empty"),
        ("\u3164\u2800", "not empty"),
        ("a\0", "a NUL or half a character"),
        ("a \ud83d", "a NUL or half a character"),
        (3, "not empty, got 3"),
        (None, "not empty, got null"),
        (b"a cat", "not empty"),
    ],
)
def test_what_cannot_be_drawn(prompt, message):
    with pytest.raises(ValueError, match=f"^a prompt .*{message}"):
        check_prompt(prompt)
