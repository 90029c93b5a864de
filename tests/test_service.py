"""A reward over HTTP: the same numbers, and a clear message if the service is not reachable."""

import base64
import http.client
import io
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lidar_sampling import LiDAR, rewards, testing
from lidar_sampling._media import read_picture
from lidar_sampling.rewards.server import _tensors, serve
from lidar_sampling.rewards.service import RemoteReward, ServiceError, _png


def red(*, images, prompts):
    return images[:, 0].flatten(1).mean(1) + torch.tensor([float(len(prompt)) for prompt in prompts])


def odd(*, images, prompts):
    raise RuntimeError("out of paint")


def hungry(*, images, prompts):
    raise MemoryError("no room")


@pytest.fixture(scope="module")
def url():
    with serve([testing.brightness, red, odd, hungry], port=0, most_megabytes=0.2, most_megapixels=0.1) as address:
        yield address


def pictures(n, size=8, seed=0):
    return torch.randint(0, 256, (n, 3, size, size + 2), generator=torch.Generator().manual_seed(seed)) / 255


@contextmanager
def answering(*answers):
    """Start a server that gives each of ``answers``, (status, text), once, and repeats the last."""
    left = list(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            status, text = left.pop(0) if len(left) > 1 else left[0]
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_it_scores_as_the_reward_itself(url):
    images, prompts = pictures(5), ["a", "bb", "ccc", "d", "e"]
    remote = rewards.load(f"{url}/red")
    assert remote.name == "red"
    assert torch.equal(remote(images=images, prompts=prompts), red(images=images, prompts=prompts))
    scores = rewards.score(remote, images=images, prompts=prompts, batch_size=2)
    assert torch.equal(scores, red(images=images, prompts=prompts))


@settings(max_examples=20)
@given(values=st.lists(st.integers(0, 255), min_size=12, max_size=12))
def test_any_picture_of_bytes_arrives_as_it_was(values):
    image = torch.tensor(values).view(3, 2, 2) / 255
    assert torch.equal(_tensors([_png(image)], 4)[0], image)


def test_other_pictures_move_by_half_a_grey_level_at_most():
    image = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert (_tensors([_png(image)], 256)[0] - image).abs().max() <= 1 / 510 + 1e-6


def test_it_guides(url):
    options = {"n": 4, "steps": 4, "lookahead": "dpm:3", "scale": 1.0, "reward_scale": 5.0}
    remote = LiDAR(testing.tiny_stable_diffusion(), reward=f"{url}/brightness", **options)("a cat", images=1)
    local = LiDAR(testing.tiny_stable_diffusion(), reward="brightness", **options)("a cat", images=1)
    torch.testing.assert_close(remote.images, local.images, rtol=0, atol=0.02)
    assert list(remote.rewards) == ["brightness"]


def test_clients_at_once(url):
    results = {}

    def ask(k):
        results[k] = RemoteReward(url, "red")(images=pictures(2, seed=k), prompts=["a", "b"])

    threads = [threading.Thread(target=ask, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(results[k], red(images=pictures(2, seed=k), prompts=["a", "b"])) for k in range(8))


def test_a_token_is_wanted_where_there_is_one(monkeypatch):
    with serve([testing.brightness], port=0, tokens=["a-secret-token"]) as url:
        for given in (None, "another-token"):
            with pytest.raises(ServiceError, match="refused: this server needs its token"):
                ask(url, "brightness", token=given)
        assert ask(url, "brightness", token="a-secret-token").shape == (1,)
        monkeypatch.setenv("LIDAR_TOKEN", "a-secret-token")
        assert ask(url, "brightness").shape == (1,)
    with pytest.raises(ValueError, match=r"can be reached from elsewhere: give a --token"):
        serve([testing.brightness], host="0.0.0.0").__enter__()


def test_requests_wait_unread_and_are_refused_beyond_the_places():
    def slow(*, images, prompts):
        time.sleep(0.2)
        return images.flatten(1).mean(1)

    with serve([slow], port=0, at_once=2, places=3) as url:
        outcomes = []

        def send():
            try:
                outcomes.append(ask(url, "slow", retries=0).item())
            except ServiceError as error:
                outcomes.append(str(error))

        threads = [threading.Thread(target=send) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        refused = [outcome for outcome in outcomes if isinstance(outcome, str)]
        assert len(refused) == 3
        assert all("3 requests are here, and no more may: ask again later" in outcome for outcome in refused)
        assert ask(url, "slow", retries=0).shape == (1,)


def test_it_keeps_connections_and_tells_its_health_and_numbers(url):
    host, port = url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=5)
    for page, kind in (("/", b'"protocol":1'), ("/healthz", b"ok"), ("/metrics", b"lidar_reward_requests_total")):
        connection.request("GET", page)
        answer = connection.getresponse()
        assert (answer.version, answer.status) == (11, 200)
        assert kind in answer.read()
        assert connection.sock is not None  # kept


def test_it_says_what_it_serves(url):
    with urllib.request.urlopen(url) as response:
        assert json.load(response) == {"protocol": 1, "rewards": ["brightness", "red", "odd", "hungry"]}


def ask(url, name="red", n=1, **options):
    return RemoteReward(url, name, **{"pause": 0.01, **options})(images=pictures(n), prompts=["x"] * n)


class TestFailures:
    def test_a_server_that_recovers(self):
        with answering((500, "{}"), (503, "busy"), (200, '{"scores": [2.5]}')) as url:
            assert ask(url).item() == 2.5

    def test_a_server_that_does_not(self):
        message = "failed 3 times, last with: no memory; see whether it runs"
        with answering((500, '{"error": "no memory"}')) as url, pytest.raises(ServiceError, match=message):
            ask(url, retries=2)

    def test_a_server_that_stalls(self):
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            listening.listen()
            start = time.monotonic()
            with pytest.raises(ServiceError, match=r"timed out.* answers within 0\.2 s"):
                ask(f"http://127.0.0.1:{listening.getsockname()[1]}", timeout=0.2, retries=1)
            assert time.monotonic() - start < 5

    def test_a_server_that_is_not_there(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            with pytest.raises(
                ServiceError, match=r"Connection refused; see whether it runs \(lidar serve-rewards red\)"
            ):
                ask(f"http://127.0.0.1:{taken.getsockname()[1]}", retries=1)

    def test_a_server_that_dies_half_way(self):
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            listening.listen()

            def hang_up():
                connection, _ = listening.accept()
                connection.recv(100)
                connection.close()

            threading.Thread(target=hang_up, daemon=True).start()
            with pytest.raises(ServiceError, match="failed 1 times"):
                ask(f"http://127.0.0.1:{listening.getsockname()[1]}", retries=0, timeout=5)

    @pytest.mark.parametrize(
        ("answer", "message"),
        [
            ("<html>", "did not answer with JSON"),
            ('{"scores": [1, 2]}', "answered 2 scores for 1 images"),
            ('{"scores": [NaN]}', "without finite scores"),
            ('{"scores": ["good"]}', "without finite scores"),
            ('{"result": [1]}', "without finite scores"),
            ("[1]", "without finite scores"),
        ],
    )
    def test_a_server_that_answers_nonsense(self, answer, message):
        with answering((200, answer)) as url, pytest.raises(ServiceError, match=message):
            ask(url)

    def test_a_name_that_is_not_served(self, url):
        with pytest.raises(ServiceError, match="refused: ValueError: no reward 'blue' here; there are brightness"):
            ask(url, "blue")

    def test_a_reward_that_raises(self, url):
        with pytest.raises(ServiceError, match="reward 'odd' raised RuntimeError: out of paint"):
            ask(url, "odd", retries=0)

    def test_a_server_without_memory_says_so(self, url):
        with pytest.raises(ServiceError, match="last with: MemoryError: no room"):
            ask(url, "hungry", retries=0)

    def test_a_prompt_that_the_reward_cannot_use_is_not_tried_again(self):
        def picky(*, images, prompts):
            picky.calls += 1
            raise ValueError("the prompt must quote a text")

        picky.calls = 0
        with serve([picky], port=0) as url, pytest.raises(ServiceError, match=r"refused: .*must quote a text"):
            ask(url, "picky")
        assert picky.calls == 1

    def test_a_proxy_is_not_asked_for_this_machine(self, url, monkeypatch):
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
        assert ask(url).shape == (1,)

    def test_a_request_that_is_too_large(self, url):
        with pytest.raises(ServiceError, match="a request must have 0 to 200000 bytes"):
            RemoteReward(url, "red", retries=0)(images=pictures(1, 512), prompts=["x"])

    @pytest.mark.parametrize("address", ["ftp://host/x", "host:80"])
    def test_addresses_that_are_none(self, address):
        with pytest.raises(ValueError, match="must start with http"):
            RemoteReward(address, "x")

    def test_a_name_that_is_missing(self):
        with pytest.raises(ValueError, match="name the reward at the service"):
            rewards.load("http://127.0.0.1:8000/")

    def test_a_name_with_a_slash_is_quoted(self):
        def red(*, images, prompts):
            return images[:, 0].flatten(1).mean(1)

        red.name = "clip:my/model"
        with serve([red], port=0) as url:
            found = rewards.load(f"{url}/clip:my%2Fmodel")
            assert found.name == "clip:my/model"
            assert found(images=pictures(2), prompts=["a", "b"]).shape == (2,)

    def test_a_video_is_refused(self):
        with pytest.raises(ValueError, match=r"takes pictures \(B, 3, H, W\), got \(1, 2, 3, 4, 4\)"):
            RemoteReward("http://127.0.0.1:1", "red")(images=torch.zeros(1, 2, 3, 4, 4), prompts=["a"])

    def test_nothing_to_serve(self):
        with pytest.raises(ValueError, match="one or more rewards"), serve([]):
            pass


def post(url, body, path="/score", method="POST", kind="application/json"):
    request = urllib.request.Request(url + path, body, {"Content-Type": kind}, method=method)
    with pytest.raises(urllib.error.HTTPError) as refused, urllib.request.urlopen(request):
        pass
    return refused.value.code, json.loads(refused.value.read())["error"]


def test_what_a_client_must_not_send(url):
    good = {"reward": "red", "prompts": ["x"], "images": [_png(pictures(1)[0])]}
    assert post(url, b"{}", "/secret")[0] == 404
    assert post(url, b"not json")[0] == 400
    assert post(url, b"[]")[0] == 400
    assert post(url, json.dumps({**good, "prompts": []}).encode())[0] == 400
    assert post(url, json.dumps({**good, "prompts": [3]}).encode())[0] == 400
    assert post(url, json.dumps({**good, "images": ["AAAA"]}).encode())[0] == 400
    assert post(url, json.dumps({**good, "images": ["gASVCQAAAAAAAAB9lC4="]}).encode())[0] == 400  # a pickle
    assert post(url, json.dumps({**good, "reward": ["red"]}).encode())[0] == 400
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):  # a page in a browser can send these
        assert post(url, json.dumps(good).encode(), kind=kind)[0] == 415
    for key in good:
        code, error = post(url, json.dumps({k: v for k, v in good.items() if k != key}).encode())
        assert (code, error) == (
            400,
            f"ValueError: a request must have reward, prompts and images, and this one lacks {key}",
        )
    two = {**good, "images": good["images"] * 2}
    for prompts in ("ab", {"a": 1, "b": 2}, ["a", None], [["a"], "b"], 2, None):
        code, error = post(url, json.dumps({**two, "prompts": prompts}).encode())
        assert code == 400
        assert "prompts must be a list of strings, got" in error
    for images in (good["images"][0], {good["images"][0]: 1}, [3], None):
        code, error = post(url, json.dumps({**good, "images": images}).encode())
        assert code == 400
        assert "images must be a list of strings, got" in error
        assert len(error) < 200
    assert post(url, b"[" * 100_000)[0] == 400
    assert post(url, b"{}", method="PUT") == (405, "no PUT of /score")


def test_a_decompression_bomb_is_refused(url, monkeypatch):
    from PIL import Image

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ServiceError, match="decompression bomb"):
        ask(url, retries=0)


def test_pictures_that_unpack_to_too_much_are_refused_unread(url):
    """A megapixel of one colour is a PNG of some kilobytes."""
    flat = torch.zeros(1, 3, 200, 300)
    remote = RemoteReward(url, "brightness")
    assert remote(images=flat, prompts=["x"]) == 0
    with pytest.raises(ServiceError, match="a request must have at most 100000 pixels, got 120000: send fewer"):
        remote(images=flat.expand(2, -1, -1, -1), prompts=["x"] * 2)


def test_a_client_that_goes_silent_loses_its_place():
    with serve([testing.brightness], port=0, patience=0.2) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=5) as client:
            client.sendall(b"POST /score HTTP/1.0\r\nContent-Length: 100\r\n\r\n{")
            assert b"408" in client.recv(1000)


def test_a_port_that_is_taken_is_named(url):
    port = int(url.rpartition(":")[2])
    with pytest.raises(OSError, match=rf"cannot listen on 127\.0\.0\.1:{port} \(Address already in use\)"):
        serve([testing.brightness], port=port).__enter__()


def test_a_client_that_goes_away_leaves_no_traceback(capfd):
    def slow(*, images, prompts):
        time.sleep(0.3)
        return images.flatten(1).mean(1)

    with serve([slow], port=0) as url:
        with pytest.raises(ServiceError, match="timed out"):
            ask(url, "slow", retries=0, timeout=0.05)
        assert ask(url, "slow").item() >= 0  # waits for the first to be done
    assert capfd.readouterr().err == ""


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return base64.b64encode(file.getvalue()).decode()


def test_it_sees_what_lidar_score_sees(url, tmp_path):
    """It sees transparency over white, palettes and greys; 16 bits are refused, not truncated."""
    for image in (
        Image.new("RGBA", (8, 8), (0, 0, 0, 0)),
        Image.new("RGBA", (8, 8), (0, 0, 0, 100)),
        Image.new("LA", (8, 8), (0, 0)),
        Image.new("L", (8, 8), 77),
        Image.new("RGB", (8, 8), (9, 99, 199)).convert("P"),
    ):
        content = encoded(image)
        (tmp_path / "a.png").write_bytes(base64.b64decode(content))
        (there,) = _tensors([content], 64)
        assert torch.equal(there, read_picture(tmp_path / "a.png"))
    good = {"reward": "red", "prompts": ["x"]}
    deep = encoded(Image.fromarray(np.full((8, 8), 16000, np.uint16)))
    code, error = post(url, json.dumps({**good, "images": [deep]}).encode())
    assert (code, error.split(": ", 1)[1]) == (
        400,
        "image 0 of the request has pixels of mode I;16: save it with 8 bits a channel",
    )
    code, error = post(url, json.dumps({**good, "images": [encoded(Image.new("RGB", (8, 8)), "JPEG")]}).encode())
    assert (code, error) == (400, "ValueError: image 0 of the request is not a PNG")
    frames = [Image.new("RGB", (8, 8), (value,) * 3) for value in (0, 255)]
    moving = encoded(frames[0], save_all=True, append_images=frames[1:])
    assert post(url, json.dumps({**good, "images": [moving]}).encode())[0] == 400


def test_its_address_and_name_tell_a_remote_reward_apart():
    assert RemoteReward("http://a", "x", timeout=3).fingerprint == RemoteReward("http://a/", "x").fingerprint
    assert RemoteReward("http://a", "x").fingerprint != RemoteReward("http://a", "y").fingerprint


def test_pictures_and_prompts_are_checked_before_they_travel(url):
    remote = rewards.load(f"{url}/red")
    for images, prompts, message in (
        (pictures(2) * 255, ["a", "b"], "give images / 255"),
        (pictures(2) * 2 - 1, ["a", "b"], r"give \(images \+ 1\) / 2"),
        (pictures(2) * float("nan"), ["a", "b"], "NaN or infinity"),
        (pictures(2)[:, :1], ["a", "b"], "repeat the one channel"),
        (pictures(2), "ab", "got the text 'ab'"),
        (pictures(4), ["a", "b"], "same length, got 4 and 2"),
    ):
        with pytest.raises(ValueError, match=message):
            remote(images=images, prompts=prompts)
