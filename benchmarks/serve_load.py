"""Measure ``lidar serve`` under many clients: the answers, their speed and fairness, and the server's memory.

    python -m benchmarks.serve_load --clients 200 --seconds 60 --places 16
    python -m benchmarks.serve_load --clients 200 --seconds 60 --places 400 --greedy 8

A server of a tiny pipeline, or of ``--model glyph``, is started in its own process. Each client has its own address
in 127.0.0.0/8 (Linux answers at all of them) and asks for one picture after another at ``/v1/images/generations``.
After a refusal it waits as long as Retry-After says, and up to half as long again. With ``--greedy N`` the first
client keeps N requests open at once.

    answered     requests by status; anything but 200 and 429 is an error
    seconds      for answers with pictures, from the request to the last byte: median, 95th percentile
    refused      the same for refusals
    each         pictures per client: least, median, most; and Jain's index, 1 if all have the same
    greedy       pictures of the client that asks for several at once
    memory       resident MiB of the server after a quarter of the time, at the half and at the end
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx


class Load:
    """Clients that ask a server, and their answers."""

    def __init__(self, url: str, seconds: float, steps: int, bank_size: int) -> None:
        self.url, self.seconds = url, seconds
        self.how = {"steps": steps, "bank_size": bank_size}
        self.statuses: Counter[str] = Counter()
        self.pictures: Counter[int] = Counter()
        self.took: dict[str, list[float]] = {"200": [], "429": []}

    async def client(self, number: int, at_once: int) -> None:
        """Ask repeatedly from one address."""
        address = f"127.0.{1 + number // 250}.{1 + number % 250}"
        transport = httpx.AsyncHTTPTransport(local_address=address)
        async with httpx.AsyncClient(base_url=self.url, transport=transport, timeout=600, trust_env=False) as http:
            await asyncio.gather(*(self._ask(http, number, k) for k in range(at_once)))

    async def _ask(self, http: httpx.AsyncClient, number: int, place: int) -> None:
        count = 0
        while time.monotonic() < self.end:
            count += 1
            body = {"prompt": f"picture {count} of client {number}, {place}", **self.how}
            begun = time.monotonic()
            try:
                answer = await http.post("/v1/images/generations", json=body)
                status = str(answer.status_code)
            except httpx.HTTPError as error:
                self.statuses[type(error).__name__] += 1
                continue
            self.statuses[status] += 1
            self.took.setdefault(status, []).append(time.monotonic() - begun)
            if status == "200":
                self.pictures[number] += len(answer.json()["data"])
            elif status == "429":
                await asyncio.sleep(int(answer.headers["retry-after"]) * random.uniform(1, 1.5))

    async def run(self, clients: int, greedy: int, process: int) -> list[float]:
        """Run all clients; return the memory of the server at every second."""
        self.end = time.monotonic() + self.seconds
        memory: list[float] = []

        async def watch() -> None:
            while True:
                memory.append(resident(process))
                await asyncio.sleep(1)

        watching = asyncio.create_task(watch())
        await asyncio.gather(*(self.client(k, greedy if k == 0 and greedy else 1) for k in range(clients)))
        watching.cancel()
        return memory


def resident(process: int) -> float:
    """Return the resident memory of a process in MiB."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def percentiles(values: list[float]) -> list[float]:
    """Return the median and the 95th percentile, in seconds."""
    return [round(median(values), 3), round(quantiles(values, n=20)[-1], 3)] if len(values) > 1 else []


def summary(load: Load, clients: int, greedy: int, memory: list[float]) -> dict[str, Any]:
    """Return the figures."""
    each = [load.pictures[k] for k in range(1 if greedy else 0, clients)]
    squares = sum(value * value for value in each)
    return {
        "answered": dict(load.statuses),
        "errors": sum(count for status, count in load.statuses.items() if status not in ("200", "429")),
        "pictures per second": round(sum(load.pictures.values()) / load.seconds, 2),
        "seconds": percentiles(load.took["200"]),
        "refused": percentiles(load.took["429"]),
        "each": [
            min(each),
            median(each),
            max(each),
            round(sum(each) ** 2 / (len(each) * squares), 3) if squares else 0,
        ],
        **({"greedy": load.pictures[0]} if greedy else {}),
        "memory": [round(memory[int(part * (len(memory) - 1))], 1) for part in (0.25, 0.5, 1.0)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="tiny, or a model of lidar serve")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--places", type=int, default=16)
    parser.add_argument("--greedy", type=int, default=0)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--bank-size", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model, reward = ["--model", args.model], []
        if args.model == "tiny":
            from lidar_sampling import testing

            testing.tiny_stable_diffusion().save_pretrained(f"{folder}/tiny")
            model, reward = ["--model", f"tiny={folder}/tiny"], ["--reward", "brightness"]
        limits = ["--places", str(args.places), "--each", "8", "--folder", f"{folder}/desk", "--port", "0"]
        command = [sys.executable, "-m", "lidar_sampling", "serve", *model, *reward, *limits]
        environment = {**os.environ, "LIDAR_TOKEN": "", "OMP_NUM_THREADS": "1"}
        server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        assert server.stderr is not None
        try:
            url = next(found[1] for line in server.stderr if (found := re.search(r"at (http://\S+)/v1", line)))
            next(line for line in server.stderr if line == "lidar: ready\n")
            load = Load(url, args.seconds, args.steps, args.bank_size)
            memory = asyncio.run(load.run(args.clients, args.greedy, server.pid))
            print(json.dumps(summary(load, args.clients, args.greedy, memory), indent=1))
        finally:
            server.terminate()
            server.wait(60)


if __name__ == "__main__":
    main()
