"""Banks, jobs, events, queue and guard of the service, over real sockets."""

import json
import socket
import threading
import time
from dataclasses import replace
from statistics import mean, pstdev

import pytest
import slow_reward
from live_server import serving

from lidar_sampling.service.limits import Limits

httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi")


def http(url, **options):
    return httpx.Client(base_url=url, trust_env=False, timeout=30, **options)


@pytest.fixture
def client(url):
    with http(url) as found:
        yield found


def bank(client, **asked):
    answer = client.post("/v1/banks?wait=20", json={"prompt": "a cat", "n": 4, **asked})
    assert answer.status_code == 200, answer.text
    return answer.json()["bank_id"]


def until(true, seconds=10):
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.02)
    assert true()


def order_of(desk, prompt):
    """Wait until the order of a prompt runs; an earlier one, reported as done, may still be at the desk."""
    until(lambda: (found := desk.running) is not None and prompt in str(found.job.prompts))
    return desk.running


class TestBanksAndJobs:
    def test_a_bank_guides_pictures(self, client):
        name = bank(client, seed=3)
        members = client.get(f"/v1/banks/{name}").json()
        rewards = [member["rewards"]["brightness"] for member in members["images"]]
        assert rewards == sorted(rewards, reverse=True)
        assert (members["prompt"], members["seed"], len(rewards)) == ("a cat", 3, 4)
        assert client.get(members["images"][0]["picture"]).content.startswith(b"\x89PNG")
        how = {"bank": name, "scale": 2.5, "strength": "auto", "seed": 7, "images": 2}
        job = client.post("/v1/images?wait=20", json=how).json()
        assert (job["state"], job["bank_id"], job["seed"], len(job["images"])) == ("done", name, 7, 2)
        for image in job["images"]:
            assert client.get(image["picture"]).headers["content-type"] == "image/png"

    def test_a_job_is_watched(self, client):
        job = client.post("/v1/images?previews=true", json={"bank": bank(client), "steps": 8})
        assert job.status_code == 202
        lines = client.get(f"{job.headers['location']}/events?previews=true").text.split("\n\n")
        events = [line.split("\n") for line in lines if line.startswith("event")]
        assert {kind for kind, _ in events} == {"event: job", "event: preview"}
        assert json.loads(events[-1][1].removeprefix("data: "))["state"] == "done"

    @pytest.mark.parametrize(
        ("path", "status"),
        [
            ("/v1/jobs/000001-0123456789abcdef", 404),
            ("/v1/jobs/..%2f..%2fetc", 404),
            ("/v1/jobs/x", 404),
            ("/v1/banks/0123456789abcdef-0123456789abcdef0123456789abcdef", 404),
            ("/v1/banks/..", 404),
            ("/nothing", 404),
        ],
    )
    def test_what_is_not_there(self, client, path, status):
        answer = client.get(path)
        assert answer.status_code == status
        assert answer.json()["error"]["message"]

    @pytest.mark.parametrize(
        ("body", "field", "message"),
        [
            ({}, "prompt", "a request here needs prompt: give it"),
            ({"prompt": 3}, "prompt", "prompt must be a text, got 3"),
            ({"prompt": "x", "promt": "y"}, "promt", "a request here has no field 'promt'; did you mean 'prompt'?"),
            ({"prompt": "x", "n": 99}, "n", "n must be at most 64, got 99: ask for fewer members"),
            ({"prompt": "\u200b"}, "prompt", 'a prompt must be a text that is not empty, got "\\u200b"'),
            ({"prompt": "x" * 3000}, "prompt", "a prompt has 3000 characters: give at most 2000"),
            ({"prompt": "x", "size": "9999x9999"}, "size", "size must have at most 1048576 pixels, got 9999x9999"),
            (
                {"prompt": "x", "reward": "os:system"},
                "reward",
                "unknown reward 'os:system'; this server has brightness",
            ),
            ([], None, "a request must be a JSON object, got []"),
        ],
    )
    def test_bad_input_names_the_field_and_the_mend(self, client, body, field, message):
        answer = client.post("/v1/banks", json=body)
        assert answer.status_code in (400, 422)
        assert answer.json()["error"]["param"] == field
        assert answer.json()["error"]["message"].startswith(message)

    def test_a_body_has_an_end(self, client):
        def endless():
            for _ in range(80):
                yield b" " * 4096

        for body in (b" " * 300_000, endless()):
            answer = client.post("/v1/banks", content=body)
            assert answer.status_code == 413
            assert answer.json()["error"]["message"].startswith("a request must have 0 to 262144 bytes, got ")

    def test_a_bank_of_another_prompt_is_refused(self, client):
        name = bank(client)
        answer = client.post("/v1/images/generations", json={"prompt": "a dog", "bank_id": name})
        assert answer.status_code == 422
        assert (
            answer.json()["error"]["message"] == "the bank is of 'a cat', not of 'a dog': draw a bank of that prompt"
        )

    def test_a_bank_of_what_is_not_served_any_more_is_refused(self, client, served, monkeypatch):
        name, desk = bank(client), served[1]
        job = desk.banks.job(name)
        monkeypatch.setattr(desk.banks, "job", lambda name: replace(job, model="/another/model"))
        answer = client.post("/v1/images", json={"bank": name})
        assert answer.status_code == 404
        assert "is of a model that is no longer served" in answer.json()["error"]["message"]

    def test_health_and_numbers(self, client):
        assert client.get("/healthz").json() == {"status": "ok"}
        assert client.get("/readyz").json() == {"status": "ok"}
        bank(client)
        numbers = client.get("/metrics").text
        assert 'lidar_jobs_ended_total{state="done"}' in numbers
        assert 'lidar_requests_total{page="/v1/banks",status="200"}' in numbers

    def test_a_page_in_a_browser_cannot_take_this_address(self, client):
        assert client.get("/v1/models", headers={"host": "evil.example"}).status_code == 403
        text = {"content-type": "text/plain"}  # browsers send such requests anywhere without asking
        assert client.post("/v1/banks", content=b'{"prompt": "x"}', headers=text).status_code == 400


@pytest.fixture(scope="module")
def several(tmp_path_factory, tiny, base):
    """Start a server of several rewards, the first of which is the default."""
    mixture = "brightness:0.5+jpeg-compressibility:0.5"
    rewards = {"bright": "brightness", "jpeg": "jpeg-compressibility", "mixed": mixture}
    with serving(tmp_path_factory.mktemp("several"), tiny, base, rewards=rewards, samplers=3) as found:
        yield found


class TestABankOfSeveralClients:
    def ask(self, client, **asked):
        """Draw pictures as OpenAI's clients do."""
        answer = client.post("/v1/images/generations", json={"prompt": "a cat", **asked})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def draw(self, several, client, **asked):
        """Draw pictures that a bank guides, and return their order."""
        answer = client.post("/v1/images?wait=20", json=asked).json()
        assert answer["state"] == "done", answer
        return several[1].orders[answer["id"]]

    def test_guides_each_by_its_own_request(self, several, tiny, base):
        with http(several[0]) as client:
            first = self.ask(client, seed=1, reward="bright", scale=0, strength=7, steps=2)
            name = bank(client, seed=1, reward="jpeg")
            assert name == first["bank_id"]
            order = self.draw(several, client, bank=name, reward="jpeg", seed=2)
            assert order.job.reward == "jpeg-compressibility"
            assert next(iter(order.bank.rewards)) == "jpeg-compressibility"
            settings = order.job.settings
            assert (settings["steps"], settings["n"], settings["lookahead"]) == (3, 4, "dpm:2")
            assert not {"scale", "reward_scale"} & set(settings)
            assert self.draw(several, client, bank=name).job.reward == "brightness"  # the default, of two
            again = self.ask(client, bank_id=name, reward="jpeg", scale=2, seed=2)
            assert (again["bank_id"], again["seed"]) == (name, 2)
            assert again["data"][0]["reward"] == again["data"][0]["rewards"]["jpeg-compressibility"]
            refused = client.post("/v1/images", json={"bank": name, "reward": "jpg"})
            assert (refused.status_code, refused.json()["error"]["param"]) == (422, "reward")

    def test_is_scored_by_the_reward_that_it_lacks(self, several):
        with http(several[0]) as client:
            name = bank(client, prompt="a hat", seed=1, reward="jpeg", guidance_scale=2.0)
            drawn = self.draw(several, client, bank=name, seed=2)  # its only reward guides
            assert (drawn.job.reward, drawn.job.settings["guidance_scale"]) == ("jpeg-compressibility", 2.0)
            order = self.draw(several, client, bank=name, seed=2, reward="bright")
            assert order.bank.id == name
            members = client.get(f"/v1/banks/{name}").json()["images"]
            assert members[0]["rewards"].keys() == {"brightness", "jpeg-compressibility"}
            found = self.draw(several, client, bank=name, seed=3, reward="mixed")
            assert (found.bank.id, found.bank.drawn) == (name, False)  # both parts have scored it

    def test_of_a_mixture_says_its_value_and_order(self, several):
        with http(several[0]) as client:
            answer = self.ask(client, prompt="a pot", seed=1, reward="mixed", n=2)
            order = several[1].orders[answer["id"]]
            scores = {name: order.bank.rewards[name] for name in ("brightness", "jpeg-compressibility")}
            for sample in answer["data"]:
                parts = [(sample["rewards"][name] - mean(r)) / pstdev(r) for name, r in scores.items()]
                assert sample["reward"] == pytest.approx(sum(parts) / 2, rel=1e-3, abs=1e-3)
            recalled = several[1].banks.recall(order.bank.id, order.job.reward)
            assert [*recalled.rewards] == ["mixture", "brightness", "jpeg-compressibility"]
            assert recalled.best_first() == order.bank.best_first()
            shown = client.get(f"/v1/banks/{order.bank.id}").json()["images"]
            bright = [member["rewards"]["brightness"] for member in shown]
            assert bright == sorted(bright, reverse=True)  # by the default

    def test_is_ordered_by_the_model_s_own_reward_where_no_other_guides(self, several):
        with http(several[0]) as client:
            name = bank(client, prompt="a pen", seed=1, reward="mixed")
        file = several[1].banks.file(name).with_suffix(".json")
        told = json.loads(file.read_text())
        told["rewards"]["jpeg-compressibility"] = None  # as a model's own reward is called in a Job
        file.write_text(json.dumps(told))
        assert [*several[1].banks.recall(name, None).rewards] == ["jpeg-compressibility", "brightness"]

    def test_that_an_older_version_drew_is_still_known(self, several, base):
        with http(several[0]) as client:
            name = bank(client, prompt="a cup", seed=1)
            file = several[1].banks.file(name).with_suffix(".json")
            old = several[1].banks.job(name)
            how = {**old.settings, "scale": 0.0, "steps": 1}
            file.write_text(json.dumps(replace(old, reward="brightness", settings=how).to_json()))
            order = self.draw(several, client, bank=name, seed=2)
            assert (order.bank.id, order.bank.drawn, order.job.settings["steps"]) == (name, False, 3)


class TestLimitsOfDefaults:
    def test_what_a_request_leaves_out_is_limited(self, tmp_path, tiny, base):
        limits = Limits(n=3, steps=2, images=2)
        with serving(tmp_path, tiny, base, limits=limits, warm=False) as (url, desk, _), http(url) as client:
            answer = client.post("/v1/images/generations", json={"prompt": "a cat", "bank_size": 2})
            said = "steps must be at most 2, got 3, the default of tiny: ask for fewer steps, "
            mend = "or start the server with --steps or a larger --most-steps"
            assert (answer.status_code, answer.json()["error"]["message"]) == (422, said + mend)
            for body, field in (({}, "bank_size"), ({"bank_size": 2, "n": 3}, "n"), ({"bank_size": 9}, "bank_size")):
                answer = client.post("/v1/images/generations", json={"prompt": "a cat", "steps": 2, **body})
                assert (answer.status_code, answer.json()["error"]["param"]) == (422, field)
            assert desk.counts["done"] == 0
            fine = {"prompt": "a cat", "steps": 2, "bank_size": 2}
            name = client.post("/v1/images/generations", json=fine).json()["bank_id"]
            answer = client.post("/v1/images", json={"bank": name, "steps": 2, "images": 3})
            assert answer.json()["error"]["param"] == "images"
            answer = client.post("/v1/images", json={"bank": name})
            assert (answer.status_code, answer.json()["error"]["param"]) == (422, "steps")

    @pytest.mark.parametrize(
        ("limits", "changes", "message"),
        [
            (Limits(n=3), {}, "n must be at most 3, got 4, the default of tiny: .* with --n or a larger --most-n"),
            (Limits(steps=2), {}, "steps must be at most 2, got 3, the default of tiny: .* a larger --most-steps"),
            (
                Limits(pixels=300),
                {"call": {"height": 16, "width": 24}},
                "size must have at most 300 pixels, got 24x16, the default of tiny",
            ),
        ],
    )
    def test_a_server_whose_defaults_are_above_them_does_not_start(
        self, tmp_path, tiny, base, limits, changes, message
    ):
        with (
            pytest.raises(ValueError, match=message),
            serving(tmp_path, tiny, replace(base, **changes), limits=limits),
        ):
            pass


@pytest.fixture(scope="module")
def slow(tmp_path_factory, tiny, base):
    """Start a server whose reward waits until a test releases it; two jobs may wait."""
    rewards = {"waits": "slow_reward:waits", "fails": "slow_reward:fails", "sleeps": "slow_reward:sleeps"}
    limits = Limits(places=2, each=2)
    folder = tmp_path_factory.mktemp("slow")
    slow_reward.opened.set()
    with serving(folder, tiny, base, rewards=rewards, limits=limits, places=2, samplers=3, seconds=1.5) as found:
        yield found
        slow_reward.opened.set()


class TestQueue:
    def test_it_refuses_more_than_may_wait(self, slow):
        url, desk, _ = slow
        slow_reward.opened.clear()
        with http(url) as client:
            asked = [client.post("/v1/banks", json={"prompt": "a cat in front"})]
            order_of(desk, "a cat in front")
            asked += [client.post("/v1/banks", json={"prompt": f"dog {k}"}) for k in range(3)]
            assert [answer.status_code for answer in asked] == [202, 202, 202, 429]
            assert int(asked[-1].headers["retry-after"]) >= 1
            assert asked[-1].json()["error"]["message"] == "2 orders are waiting, and no more may: ask again later"
            assert [answer.json()["position"] for answer in asked[1:3]] == [1, 2]
            last = asked[2].json()["id"]
            assert client.delete(f"/v1/jobs/{last}").json()["state"] == "cancelled"
            slow_reward.opened.set()
            assert [client.get(f"{a.headers['location']}?wait=20").json()["state"] for a in asked[:2]] == ["done"] * 2

    @pytest.mark.parametrize("stream", [False, True])
    def test_a_client_that_goes_away_cancels(self, slow, stream):
        url, desk, _ = slow
        slow_reward.opened.clear()
        body = json.dumps({"prompt": f"a cat that leaves {stream}", "stream": stream}).encode()
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as client:
            head = f"POST /v1/images/generations HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
            client.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
            order = order_of(desk, f"a cat that leaves {stream}")
        until(order.stop.is_set)
        slow_reward.opened.set()
        until(lambda: order.ended)
        assert order.state == "cancelled"

    def test_a_running_job_is_cancelled_and_the_next_goes_on(self, slow):
        url, desk, _ = slow
        slow_reward.opened.clear()
        with http(url) as client:
            name = client.post("/v1/banks", json={"prompt": "a cat to cancel"}).json()["id"]
            order = order_of(desk, "a cat to cancel")
            client.delete(f"/v1/jobs/{name}")
            slow_reward.opened.set()
            until(lambda: order.ended and not order.folder.exists())
            assert order.state == "cancelled"
            assert client.get(f"/v1/jobs/{name}").status_code == 404
            assert client.post("/v1/banks?wait=20", json={"prompt": "a dog"}).json()["state"] == "done"

    def test_a_job_has_an_end(self, slow):
        with http(slow[0]) as client:
            how = {"reward": "sleeps", "bank_size": 64, "prompt": "a slow cat"}
            answer = client.post("/v1/images/generations", json=how)
            assert answer.status_code == 504
            message = "it took more than 1.5 s: ask for fewer images or steps"
            assert answer.json()["error"]["message"] == message

    def test_a_reward_that_fails_is_the_server_s_fault(self, slow):
        with http(slow[0]) as client:
            answer = client.post("/v1/images/generations", json={"reward": "fails", "prompt": "a cat"})
            assert answer.status_code == 500
            assert answer.json()["error"]["message"] == "reward 'fails' raised RuntimeError: out of paint"


def test_a_token_opens_and_tells_clients_apart(tmp_path, tiny, base):
    tokens = ["first-secret", "second-secret"]
    with serving(tmp_path, tiny, base, tokens=tokens) as (url, desk, _), http(url) as client:
        assert client.get("/healthz").status_code == 200
        for given in ({}, {"authorization": "Bearer no"}, {"authorization": "Basic first-secret"}):
            answer = client.get("/v1/models", headers=given)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
        for token in tokens:
            known = {"authorization": f"Bearer {token}", "host": "pictures.example"}
            assert client.post("/v1/banks?wait=20", json={"prompt": "x"}, headers=known).status_code == 200
        assert [order.client for order in desk.orders.values()] == ["token 0", "token 1"]
        assert all(token not in (order.folder / "job.json").read_text() for order in desk.orders.values())


def test_many_clients_at_once_are_all_answered(client, served):
    answers = []

    def ask(k):
        answers.append(client.post("/v1/images/generations", json={"prompt": f"cat {k}", "seed": 1}).status_code)

    threads = [threading.Thread(target=ask, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * 8
