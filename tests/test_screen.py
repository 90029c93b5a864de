"""Printing of commands: text is shown unchanged, and a failure to print does not change a finished run's status."""

import contextlib
import errno
import io
import json
import os
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from test_cli import lidar, tiny

from lidar_sampling.cli import _doctor, _molecules, _report
from lidar_sampling.cli._screen import (
    after_drawing,
    attempt,
    close_quietly,
    console,
    echo,
    guard_printing,
    one_line,
    print_json,
    visible,
    warn,
)
from lidar_sampling.runs._grid import draw_grid

__all__ = ["lidar", "tiny"]  # fixtures
MARKS = ("a photo [/INST] of a cat", "a [/]", "[cat|dog] in a park", "[red]a[/red] :cat: 3")


def raising(error):
    def run(*args, **kwargs):
        raise error

    return run


@contextlib.contextmanager
def on(stream):
    """Use ``stream`` as stdout, and drop its unflushed text at the end."""
    before, sys.stdout = sys.stdout, stream
    try:
        yield
    finally:
        sys.stdout = before
        with contextlib.suppress(OSError, ValueError):
            stream.close()


def broken_pipe():
    read, write = os.pipe()
    os.close(read)
    return open(write, "w", encoding="utf-8")


def entry(prompt, **changes):
    part = {
        "rewards": {"r": [0.5]},
        "cost": {"sampling": {"network_evaluations": 1, "reward_calls": 1, "seconds": 1}},
    }
    return {"prompt": prompt, "methods": ["lidar"], "lidar": part, **changes}


def whole(*prompts):
    entries = [entry(prompt) for prompt in prompts]
    mean = {"lidar": _report.summary([each["lidar"] for each in entries])}
    return {"prompts": entries, "mean": mean}


class TestText:
    @pytest.mark.parametrize("text", MARKS)
    def test_is_not_markup(self, text, capsys):
        console().print(text)
        assert capsys.readouterr().out == text + "\n"

    @given(st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20))
    def test_of_a_table_is_as_it_was(self, text):
        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_row(text)
        with contextlib.redirect_stdout(io.StringIO()) as out:
            console().print(table)
        assert out.getvalue().strip() == text

    @pytest.mark.parametrize("prompt", MARKS)
    def test_of_prompts_is_in_the_table_of_a_run(self, prompt, capsys, monkeypatch):
        monkeypatch.setenv("COLUMNS", "120")
        _report.print_table(whole(prompt, "two\nlines"))
        lines = capsys.readouterr().out.splitlines()
        assert any(line.startswith(prompt) for line in lines)
        assert any(line.startswith("two lines ") for line in lines)

    @given(st.recursive(st.none() | st.floats() | st.text(), lambda inner: st.dictionaries(st.text(), inner)))
    def test_of_json_is_ascii_and_valid(self, value):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            print_json([value, float("nan")])
        assert out.getvalue().isascii()
        read = json.loads(out.getvalue(), parse_constant=raising(AssertionError("not JSON")))
        assert read[1] is None

    EVIL = "a \x1b[2J\x9b31m\x07 cat \u202e"
    SHOWN = r"a \x1b[2J\x9b31m\x07 cat \u202e"

    @pytest.mark.parametrize("terminal", [False, True])
    def test_holds_no_control_characters(self, capsys, terminal, monkeypatch):
        monkeypatch.setenv("COLUMNS", "120")
        if terminal:
            monkeypatch.setenv("FORCE_COLOR", "1")
        for show in (console().print, echo):
            show(self.EVIL)
            assert capsys.readouterr().out == f"{self.SHOWN}\n"
        warn(self.EVIL)
        assert capsys.readouterr().err == f"lidar: {self.SHOWN}\n"
        _report.print_table(whole(f"{self.EVIL}\nb"))
        out = capsys.readouterr().out
        assert f"{self.SHOWN} b" in out
        assert not set(re.sub(r"\x1b\[[0-9;]*m", "", out)) & set("\x1b\x9b\x07\u202e")  # except rich's own styles

    def test_of_the_bar_holds_no_control_characters(self):
        from rich.progress import Progress, TextColumn

        stream, screen = io.StringIO(), console()
        screen.file = stream
        with Progress(TextColumn("{task.description}", markup=False), console=screen) as bar:
            bar.add_task(self.EVIL, total=1)
        written = stream.getvalue().strip()  # cut to the letters that were counted before
        assert written.startswith("a \\x1b[2J")
        assert self.SHOWN.startswith(written)

    @given(st.text())
    def test_that_is_visible_stays(self, text):
        shown = visible(text)
        assert visible(shown) == shown
        assert all(c.isprintable() or c not in shown for c in text if ord(c) < 160 and c not in "\n\t")

    @pytest.mark.parametrize("columns", ["0", "1", "39"])
    def test_is_whole_on_a_screen_without_width(self, columns, capsys, monkeypatch):
        monkeypatch.setenv("COLUMNS", columns)
        _report.print_table(whole("a cat"))
        out = capsys.readouterr().out
        for text in ("a cat", "lidar", "0.50", "network", "1.0"):
            assert text in out


class TestShowing:
    @pytest.mark.parametrize("error", [ValueError("a bug\nin two lines"), OSError(errno.ENOSPC, "disk full")])
    def test_that_fails_is_one_line(self, error, capsys):
        with guard_printing():
            raise error
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert "the run is finished and saved" in err

    @pytest.mark.parametrize("saved", [True, False])
    @pytest.mark.parametrize("show", [console().print, print])
    def test_to_a_reader_that_is_gone_is_silent(self, saved, show, capsys):
        with on(broken_pipe()):
            for _ in range(2):
                with guard_printing(saved=saved):
                    show("x" * 100_000)
            close_quietly()
        assert capsys.readouterr().err == ""

    def test_what_is_nowhere_else_must_succeed(self):
        with on(open(os.devnull, "w")), pytest.raises(OSError, match="disk full"), guard_printing(saved=False):
            raise OSError(errno.ENOSPC, "disk full")

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has it")
    def test_a_full_disk_is_noticed_though_text_is_buffered(self, capsys):
        with on(open("/dev/full", "w")), guard_printing():
            print("x")
        assert "No space left on device" in capsys.readouterr().err
        with on(open("/dev/full", "w")), pytest.raises(OSError, match="No space left"), guard_printing(saved=False):
            print("x")

    @pytest.mark.skipif(sys.platform == "win32", reason="a shell of its own")
    @pytest.mark.parametrize("command", ["rewards", "--version"])
    def test_to_a_stdout_that_is_closed_is_a_failure(self, command):
        run = subprocess.run(
            ["sh", "-c", f'"$0" -m lidar_sampling {command} >&-', sys.executable], capture_output=True, text=True
        )
        assert (run.returncode, run.stderr.count("\n")) == (1, 1)
        assert "stdout is closed" in run.stderr

    def test_of_what_is_saved_needs_no_stdout(self, monkeypatch):
        monkeypatch.setattr(sys, "stdout", None)
        with guard_printing():
            print("x")

    def test_is_stopped_by_ctrl_c(self):
        with pytest.raises(KeyboardInterrupt), guard_printing():
            raise KeyboardInterrupt

    def test_a_process_leaves_without_a_word(self):
        """Python's own flush at the end would fail again on the rest of the buffer."""
        code = (
            "import sys; from lidar_sampling.cli import _doctor, main; _doctor._CHECKS = {'x' * 200_000: str};"
            "sys.stdin.read(); main(['doctor'])"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        process.stdout.close()  # before it prints
        process.stdin.close()
        assert (process.stderr.read(), process.wait()) == (b"", 0)
        process.stderr.close()


class TestEncodings:
    def test_without_a_letter_escape_it(self, monkeypatch):
        monkeypatch.setattr(_doctor, "_CHECKS", {"a 🐱": lambda: "\udcff"})
        for name in ("stdout", "stderr"):
            monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding="cp1252"))
        with pytest.raises(SystemExit) as stop:
            _main("doctor")
        assert stop.value.code == 0
        assert sys.stdout.buffer.getvalue() == b"ok   a \\U0001f431: \\udcff" + os.linesep.encode()

    def test_of_json_do_not_matter(self, monkeypatch):
        monkeypatch.setattr(_doctor, "_CHECKS", {"a 🐱": lambda: "é"})
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="cp1252"))
        with pytest.raises(SystemExit):
            _main("doctor", "--json")
        assert json.loads(sys.stdout.buffer.getvalue()) == [{"check": "a 🐱", "ok": True, "detail": "é"}]


def _main(*arguments):
    from lidar_sampling.cli import main

    main(list(arguments))


class TestStatus:
    @pytest.mark.parametrize(
        ("error", "status", "message"),
        [
            (ValueError("n must be\nat least 1"), 2, "lidar: n must be at least 1\n"),
            (RuntimeError("broken"), 1, "lidar: broken\n"),
            (
                OSError(errno.ENOSPC, "No space left on device", "out/x.png"),
                1,
                "out/x.png: No space left on device\n",
            ),
            (
                PermissionError(errno.EACCES, "Permission denied", "out/run.json"),
                1,
                "out/run.json: Permission denied\n",
            ),
            (KeyboardInterrupt(), 130, "lidar: stopped;"),
        ],
    )
    def test_of_what_goes_wrong(self, lidar, monkeypatch, error, status, message):
        monkeypatch.setattr(_doctor, "_outcome", raising(error))
        code, out, err = lidar("doctor")
        assert (code, out, err.strip().count("\n")) == (status, "", 0)
        assert message in err
        assert "Traceback" not in err

    @pytest.mark.parametrize("error", [ValueError("a bug"), TypeError("a bug"), FileNotFoundError("a bug")])
    def test_of_a_bug_after_drawing_is_not_that_of_wrong_use(self, lidar, monkeypatch, tmp_path, error):
        def finish(check):
            with after_drawing(tmp_path):
                raise error

        monkeypatch.setattr(_doctor, "_outcome", finish)
        code, _, err = lidar("doctor")
        assert code == 1
        assert err == f"lidar: what was drawn is in {tmp_path}, but the run could not be finished: a bug\n"

    def test_of_a_full_disk_after_drawing_names_the_file(self, tmp_path):
        with pytest.raises(OSError, match=r"result\.json"), after_drawing(tmp_path):
            raise OSError(errno.ENOSPC, "No space left on device", "result.json")

    def test_is_told_where_stderr_is_gone(self, monkeypatch):
        monkeypatch.setattr(_doctor, "_outcome", raising(RuntimeError("broken")))
        monkeypatch.setattr(sys, "stderr", broken_pipe())
        with pytest.raises(SystemExit) as stop:
            _main("doctor")
        assert stop.value.code == 1

    @pytest.mark.skipif(sys.platform == "win32", reason="a shell of its own")
    @pytest.mark.parametrize("stderr", ["2>/dev/full", "2>&-"])
    @pytest.mark.parametrize("options", ["--colour", "--debug --colour"])
    def test_of_wrong_use_is_2_where_stderr_is_full_or_closed(self, stderr, options):
        command = f'"$0" -m lidar_sampling doctor {options} {stderr}'
        run = subprocess.run(["sh", "-c", command, sys.executable], capture_output=True)
        assert (run.returncode, run.stdout) == (2, b"")

    def test_of_wrong_use_shows_no_control_characters(self, lidar):
        code, out, err = lidar("doctor", "--\x1b[2J")
        assert (code, out) == (2, "")
        assert "No such option" in err
        assert "--\\x1b[2J" in err

    def test_of_a_finished_look_is_0_whatever_is_shown(self, lidar, tiny, monkeypatch, tmp_path):
        monkeypatch.setattr(_report, "print_json", raising(UnicodeEncodeError("charmap", "🐱", 0, 1, "undefined")))
        arguments = ("look", MARKS[0], *tiny, "--n", "2", "--lookahead", "dpm:2", "--out", tmp_path / "[b]")
        code, out, err = lidar(*arguments, "--json")
        assert (code, out) == (0, "")
        assert "the run is finished and saved, but not all of it could be shown" in err
        (bank,) = (tmp_path / "[b]").rglob("*.safetensors")
        code, out, err = lidar(*arguments)
        assert (code, err) == (0, "")
        assert out.startswith(f"{MARKS[0]}: n 2, brightness mean ")
        assert out.endswith(f", {bank}\n")


class TestMolecules:
    OPTIONS = ("--samples", "4", "--n", "8", "--steps", "4", "--lookahead-steps", "2", "--device", "cpu", "--quiet")

    def test_are_written_before_their_grid_is_drawn(self, lidar, monkeypatch, tmp_path):
        pytest.importorskip("rdkit")
        from lidar_sampling.cli import _drawing
        from lidar_sampling.discrete import molecules as m

        seen = []

        def grid(*args):
            seen.extend(sorted(os.listdir(tmp_path / "o")))
            raise ValueError("no fonts")

        monkeypatch.setattr(_drawing, "draw_molecules", grid)
        monkeypatch.setattr(m, "parse", lambda text: object())  # so few steps draw no molecule
        monkeypatch.setattr(_molecules, "print_json", raising(BrokenPipeError(errno.EPIPE, "Broken pipe")))
        code, _, err = lidar("molecules", *self.OPTIONS, "--json", "--out", tmp_path / "o")
        assert (code, err) == (0, "lidar: the grid of molecules was left out: no fonts\n")
        assert seen == ["bank.safetensors", "result.json", "run.json", "samples.smi"]


def test_pictures_that_fail_are_left_out(capsys):
    with attempt("grid.png"):
        raise ValueError("no\nfont")
    assert capsys.readouterr().err == "lidar: grid.png was left out: no font\n"


def test_errors_of_files_name_them():
    assert one_line(OSError(errno.ENOSPC, "No space left on device", "a/b")) == "a/b: No space left on device"
    assert one_line(KeyError()) == "KeyError"


@pytest.mark.parametrize("prompt", ["[a] 🐱\nb", ""])
def test_a_grid_is_drawn_of_any_prompt(prompt, tmp_path):
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    part = {"images": ["0.png"], "rewards": {"r": [None]}}
    assert draw_grid(tmp_path, [entry(prompt, lidar=part)]).width > 100
