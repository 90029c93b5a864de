"""The desk without HTTP: turns, orders drawn together, limits of bytes for banks, and restarts."""

import json
from dataclasses import replace

import numpy as np
import pytest
import slow_reward
from PIL import Image

from lidar_sampling import LiDAR, testing
from lidar_sampling._files import write_json
from lidar_sampling.service import Desk, FullError
from lidar_sampling.service import order as order_module
from lidar_sampling.service.banks import Banks
from lidar_sampling.service.drawing import fits
from lidar_sampling.service.order import Order
from lidar_sampling.service.turns import Turns
from lidar_sampling.solvers import Solver


@pytest.fixture
def job(tiny, base):
    return replace(base, model=tiny, reward="brightness")


def asking(job, prompt="a cat", **changes):
    return replace(job, prompts=[prompt], **changes)


def ended(*orders):
    for order in orders:
        while not order.ended:
            order.wait(order.version, timeout=20)
    return [order.state for order in orders]


def pixels(order):
    entry = order.result()
    return [np.asarray(Image.open(order.out / file)).astype(int) for file in entry["lidar"]["images"]]


def test_clients_are_served_by_turns(tmp_path, job):
    slow_reward.opened.clear()
    slow = replace(job, reward="slow_reward:waits", task="look")
    done = []
    with Desk(tmp_path, places=9, most_each=3) as desk:
        desk.on_end = lambda order, seconds: done.append(order.client)
        first = desk.submit(asking(slow, "first"), client="z")
        while desk.running is not first:
            first.wait(first.version, timeout=1)
        orders = [desk.submit(asking(slow, f"{c} {k}"), client=c) for c, k in ("a0", "a1", "a2", "b3")]
        assert [desk.position(order) for order in orders] == [1, 3, 4, 2]
        with pytest.raises(FullError, match="3 orders of yours are waiting"):
            desk.submit(asking(slow, "more"), client="a")
        slow_reward.opened.set()
        assert set(ended(*orders)) == {"done"}
    assert done == ["z", "a", "b", "a", "a"]


def test_who_is_drawn_along_has_had_a_turn(job, tmp_path):
    turns = Turns()
    for name in ("a0", "a1", "a2", "b0", "b1", "c0"):
        turns.add(Order(name, job, tmp_path, client=name[0]))
    first = turns.take()
    second = turns.take(next(iter(turns)))
    assert [first.id, second.id] == ["a0", "b0"]
    assert [order.id for order in turns] == ["c0", "a1", "b1", "a2"]


def test_orders_that_differ_in_their_prompt_are_drawn_together_as_alone(tmp_path, job):
    slow_reward.opened.clear()
    prompts = ["a cat", "a dog", "two birds"]
    with Desk(tmp_path / "one") as desk:
        first = desk.submit(asking(job, "first", reward="slow_reward:waits"))
        while desk.running is not first:
            first.wait(first.version, timeout=1)
        orders = [desk.submit(asking(job, prompt, images=2)) for prompt in prompts]
        groups = []
        desk.on_end = lambda order, seconds: groups.append(desk.running)
        slow_reward.opened.set()
        assert set(ended(*orders)) == {"done"}
        assert groups[-3:] == [orders[0]] * 3
        assert [order.bank.rewards.keys() for order in orders] == [{"brightness"}] * 3
    with Desk(tmp_path / "two") as desk:
        for order, prompt in zip(orders, prompts, strict=True):
            alone = desk.submit(asking(job, prompt, images=2))
            ended(alone)
            assert all(np.abs(a - b).max() <= 1 for a, b in zip(pixels(order), pixels(alone), strict=True))
            assert order.result()["prompt"] == prompt
            assert json.loads(Image.open(order.out / "00000/samples/0001.png").info["lidar"])["job"]["images"] == 2


def test_a_group_is_stopped_together(tmp_path, job):
    slow_reward.opened.clear()
    desk = Desk(tmp_path)
    first = desk.submit(asking(job, "first", reward="slow_reward:waits"))
    while desk.running is not first:
        first.wait(first.version, timeout=1)
    many = replace(job, settings={**job.settings, "steps": 500})
    orders = [desk.submit(asking(many, prompt)) for prompt in ("a cat", "a dog")]
    slow_reward.opened.set()
    while orders[1].state != "running":
        orders[1].wait(orders[1].version, timeout=1)
    desk.close(finish=False)
    assert [order.state for order in orders] == ["cancelled"] * 2


def test_a_full_disk_costs_the_record_of_an_order_and_no_more(tmp_path, job, monkeypatch):
    full = True

    def write(path, content):
        if full:
            raise OSError(28, "No space left on device")
        return write_json(path, content)

    monkeypatch.setattr(order_module, "write_json", write)
    with Desk(tmp_path) as desk:
        assert ended(desk.submit(asking(job))) == ["done"]
        full = False
        after = desk.submit(asking(job, "a dog"))
        assert ended(after) == ["done"]
    assert (after.folder / "end.json").exists()


def test_what_is_drawn_together_fits(job, tmp_path):
    def order(prompt, **changes):
        return Order("1", asking(job, prompt, **changes), tmp_path)

    group = [order("a cat", images=4)]
    assert fits(group, order("a dog", images=4))
    assert not fits(group, order("a cat", images=4))
    assert not fits(group, order("a dog", images=2))
    assert not fits(group, order("a dog", images=4, seeds=[1]))
    assert not fits([order(name, images=4) for name in "abcd"], order("e", images=4))


def test_one_that_fails_does_not_take_the_others_along(tmp_path, job, monkeypatch):
    def picky(*, images, prompts):
        slow_reward.opened.wait(20)
        if "a dog" in prompts:
            raise ValueError("no dogs")
        return images.flatten(1).mean(1)

    monkeypatch.setattr(slow_reward, "waits", picky)
    slow_reward.opened.clear()
    slow = replace(job, reward="slow_reward:waits")
    with Desk(tmp_path) as desk:
        first = desk.submit(asking(slow, "first"))
        while desk.running is not first:
            first.wait(first.version, timeout=1)
        orders = [desk.submit(asking(slow, prompt)) for prompt in ("a cat", "a dog", "a bird")]
        slow_reward.opened.set()
        assert ended(*orders) == ["done", "failed", "done"]
        assert (orders[1].fault, orders[1].problem) == ("request", "reward 'picky' raised ValueError: no dogs")


def test_banks_go_when_there_is_no_room(tmp_path, job):
    look = replace(job, task="look")
    with Desk(tmp_path, most_bytes=1) as desk:
        first, second = desk.submit(asking(look)), desk.submit(asking(look, "a dog"))
        assert ended(first, second) == ["done"] * 2
    assert not list(desk.store.directory.glob("*/*.*"))
    assert desk.banks.bytes == 0
    with Desk(tmp_path, most_bytes=1 << 20) as desk:
        orders = [desk.submit(asking(look, prompt)) for prompt in ("a", "b", "a")]
        assert ended(*orders) == ["done"] * 3
        assert [order.bank.drawn for order in orders] == [True, True, False]
        desk.banks.most_bytes = desk.banks.bytes - 1
        desk.banks.trim(needed=[orders[1].bank.id])
        assert [order.bank.file.exists() for order in orders[:2]] == [False, True]


def test_what_a_client_asked_of_the_target_is_not_kept_beside_a_bank(tmp_path, tiny, job):
    banks = Banks(tmp_path, 1 << 20)
    own = Solver("dpm:2", steps=2, scheduler="DPMSolverMultistepScheduler", guidance_scale=1.0)
    for solver, kept in ((own, {"n", "lookahead"}), ("dpm:2", {"n", "lookahead", "guidance_scale"})):
        for scale in (2.0, 3.0):
            how = {"n": 2, "steps": 4, "scale": 0.5, "guidance_scale": scale}
            lidar = LiDAR(
                testing.tiny_stable_diffusion(), reward="brightness", store=banks.store, lookahead=solver, **how
            )
            (bank,) = lidar.look("a cat", seed=5)
            asked = asking(job, settings=how, seeds=[9], bank_seed=5, images=3)
            found = banks.job(banks.keep(lidar, bank, None, asked).id)
            assert (found.task, found.model, found.reward, found.texts()) == ("look", tiny, None, ["a cat"])
            assert (set(found.settings), found.seeds, found.bank_seed) == (kept, (5,), None)


def test_a_restart_says_what_became_of_each_order(tmp_path, job):
    with Desk(tmp_path) as desk:
        done = desk.submit(asking(job))
        ended(done)
    (tmp_path / "jobs" / "000002-0123456789abcdef").mkdir()
    (tmp_path / "jobs" / "000002-0123456789abcdef" / "job.json").write_text(json.dumps(job.to_json()))
    with Desk(tmp_path) as desk:
        again, lost = desk.orders.values()
        assert (again.id, again.state, again.bank.id) == (done.id, "done", done.bank.id)
        assert len(pixels(again)) == 1
        assert (lost.state, lost.problem) == ("lost", "its process ended before it was done: ask again")
        assert desk.submit(asking(job)).id.startswith("000003-")


def test_what_waits_when_it_closes_is_told_as_lost(tmp_path, job):
    slow_reward.opened.clear()
    slow = replace(job, reward="slow_reward:waits")
    desk = Desk(tmp_path)
    first, second = desk.submit(asking(slow)), desk.submit(asking(slow, "a dog", images=2))
    while desk.running is not first:
        first.wait(first.version, timeout=1)
    desk.stop()
    assert (second.state, second.problem) == ("lost", "the server was stopped before this order's turn: ask again")
    with pytest.raises(FullError, match="closing"):
        desk.submit(asking(job))
    slow_reward.opened.set()
    desk.close()
    assert first.state == "done"
