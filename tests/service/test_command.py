"""``lidar serve`` as a process: killed, stopped, and refused."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from lidar_sampling._guard import Guard, OwnPage
from lidar_sampling._http import listen
from lidar_sampling.cli import main

httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi")
HERE = Path(__file__).parent


@contextmanager
def running(tiny, folder, *more):
    """Yield (process, client) of a ready server; kill it at the end if it still runs."""
    command = [sys.executable, "-m", "lidar_sampling", "serve", "--model", f"tiny={tiny}", "--port", "0"]
    how = ["--reward", "sleeps=slow_reward:sleeps", "--n", "2", "--steps", "2", "--folder", str(folder), *more]
    environment = {**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1", "LIDAR_TOKEN": ""}
    process = subprocess.Popen([*command, *how], stderr=subprocess.PIPE, text=True, env=environment)
    try:
        url = next(
            found[1] for line in process.stderr if (found := re.search(r"serving tiny at (http://\S+)/v1", line))
        )
        assert any(line == "lidar: ready\n" for line in process.stderr)
        with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
            yield process, client
    finally:
        process.kill()
        process.communicate()


def test_what_was_accepted_is_finished_or_told_as_lost(tiny, tmp_path):
    with running(tiny, tmp_path) as (process, client):
        first = client.post("/v1/banks?wait=30", json={"prompt": "a cat"}).json()
        rest = [client.post("/v1/banks", json={"prompt": f"cat {k}"}).json()["id"] for k in range(3)]
        process.send_signal(signal.SIGKILL)
        process.wait()
    with running(tiny, tmp_path) as (process, client):
        assert client.get("/readyz").json() == {"status": "ok"}
        assert client.get(f"/v1/jobs/{first['id']}").json()["state"] == "done"
        assert client.get(f"/v1/banks/{first['bank_id']}").json()["prompt"] == "a cat"
        for name in rest:
            job = client.get(f"/v1/jobs/{name}").json()
            assert job["state"] in ("done", "lost")
            assert job["state"] == "done" or "ask again" in job["problem"]
        assert client.get(f"/v1/jobs/{rest[-1]}").json()["state"] == "lost"

        answers = {}

        def ask(prompt, n):
            answers[prompt] = client.post("/v1/images/generations", json={"prompt": prompt, "n": n})

        threads = []
        for prompt, n in (("a cat that runs", 1), ("a cat that waits", 2)):
            threads.append(threading.Thread(target=ask, args=(prompt, n)))
            threads[-1].start()
            while not any(prompt in file.read_text() for file in tmp_path.glob("jobs/*/job.json")):
                threads[-1].join(0.05)
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        assert answers["a cat that runs"].status_code == 200
        assert len(answers["a cat that runs"].json()["data"]) == 1
        assert answers["a cat that waits"].status_code == 503
        assert "before this order's turn: ask again" in answers["a cat that waits"].json()["error"]["message"]
        assert process.wait(20) == 0
    states = [json.loads(file.read_text())["state"] for file in sorted(tmp_path.glob("jobs/*/end.json"))]
    assert states[-2:] == ["done", "lost"]


@pytest.fixture
def lidar(capsys, monkeypatch):
    """Run the command in this process; return (status, last line of stderr)."""
    monkeypatch.setenv("LIDAR_TOKEN", "")

    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            main([*arguments])
        return stop.value.code, capsys.readouterr().err.strip().splitlines()[-1]

    return run


@pytest.mark.parametrize("command", [["serve"], ["serve-rewards", "brightness"]])
def test_other_addresses_need_a_token(lidar, command):
    said = "lidar: --host 0.0.0.0 can be reached from elsewhere: give a --token, or LIDAR_TOKEN"
    assert lidar(*command, "--host", "0.0.0.0") == (2, said)
    assert lidar(*command, "--token", "short")[1].startswith("lidar: a --token must be 8 or more letters")


@pytest.mark.parametrize("command", [["serve"], ["serve-rewards", "brightness"]])
def test_a_missing_extra_is_one_line(lidar, monkeypatch, command):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert lidar(*command) == (2, "lidar: serving needs fastapi: pip install 'lidar-sampling[serve]'")


def test_a_model_that_is_not_there_ends_the_command(lidar, tmp_path):
    status, said = lidar("serve", "--model", str(tmp_path), "--reward", "brightness", "--port", "0")
    assert status == 2
    assert said.startswith(f"lidar: {tmp_path}")


def test_defaults_above_the_limits_end_the_command(lidar, tiny):
    said = "n must be at most 8, got 50, the default of tiny: ask for fewer members, or start the server with --n or"
    how = ["--model", f"tiny={tiny}", "--reward", "brightness", "--port", "0"]
    assert lidar("serve", *how, "--most-n", "8") == (2, f"lidar: {said} a larger --most-n")
    assert lidar("serve", *how, "--most-steps", "8")[1].startswith("lidar: steps must be at most 8, got 50")


def test_names_are_the_server_s_own(lidar, tiny):
    assert lidar("serve", "--model", f"a={tiny}") == (2, "lidar: a brings no reward: give one with --reward")
    assert "unknown method 'best-off-4'" in lidar("serve", "--method", "best-off-4")[1]


def test_nothing_of_http_is_imported_before_it_is_served():
    code = "import sys, lidar_sampling, lidar_sampling.service, lidar_sampling.rewards.server, lidar_sampling.cli\n"
    check = "print([name for name in ('fastapi', 'uvicorn', 'prometheus_client') if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code + check], capture_output=True, text=True, timeout=60)
    assert run.stdout.strip() == "[]"


def test_answers_are_sent_at_once():
    """On a socket without a named protocol, asyncio keeps Nagle's delay of 40 ms in every answer but the first."""
    with listen("127.0.0.1", 0) as listening:
        assert listening.proto == socket.IPPROTO_TCP


@pytest.mark.parametrize(
    ("headers", "let_in"),
    [
        ({"host": "127.0.0.1:7860"}, True),
        ({"host": "localhost:7860", "origin": "http://localhost:7860"}, True),
        ({"host": "[::1]:7860", "origin": "http://[::1]:7860"}, True),
        ({"host": "127.0.0.1:7860", "origin": "http://evil.example"}, False),
        ({"host": "127.0.0.1:7860", "origin": "null"}, False),
        ({"host": "evil.example:7860", "origin": "http://evil.example:7860"}, False),
    ],
)
@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_the_page_answers_itself_alone(headers, let_in, kind):
    said = []

    async def app(scope, receive, send):
        said.append("the page")

    async def send(message):
        said.append(message.get("status", message["type"]))

    scope = {"type": kind, "headers": [(name.encode(), value.encode()) for name, value in headers.items()]}
    asyncio.run(OwnPage(app)(scope, None, send))
    assert said[0] == ("the page" if let_in else 403 if kind == "http" else "websocket.close")


def test_the_guard_takes_no_websocket():
    sent = []

    async def send(message):
        sent.append(message["type"])

    asyncio.run(Guard(None, refusal=dict)({"type": "websocket"}, None, send))
    assert sent == ["websocket.close"]
