"""The server does what its OpenAPI document says: schemathesis sends many kinds of requests."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from live_server import serving

from lidar_sampling.service.limits import Limits

pytest.importorskip("schemathesis")
httpx = pytest.importorskip("httpx")
HERE = Path(__file__).parent


def test_schemathesis_finds_nothing(tmp_path, tiny, base, monkeypatch):
    for reader in ("_lookahead", "runs._identity"):  # this takes most of the time with a tiny pipeline
        monkeypatch.setattr(f"lidar_sampling.{reader}.pipeline_contents", lambda pipe: {})
    base = replace(base, settings={**base.settings, "n": 2, "steps": 2})
    limits, token = Limits(images=2, n=2, steps=2, pixels=1024, prompt=200, places=4), "schema-secret"
    with serving(tmp_path / "desk", tiny, base, limits=limits, places=4, tokens=[token]) as (url, desk, _):
        command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(HERE / "schemathesis.toml"), "run"]
        how = [
            "--max-examples=1",
            "--seed=1",
            "--warnings=off",
            "--no-color",
            f"--header=Authorization: Bearer {token}",
        ]
        run = subprocess.run(
            [*command, f"{url}/openapi.json", *how], cwd=tmp_path, capture_output=True, text=True, timeout=100
        )
        assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-1000:]
        assert "Tested: 13" in run.stdout
        assert desk.counts["done"] > 5
        assert all(order.fault != "server" for order in desk.orders.values())


def test_it_says_what_this_server_offers(url):
    found = httpx.get(f"{url}/openapi.json", trust_env=False).json()
    fields = found["components"]["schemas"]["Generation"]["properties"]
    assert fields["model"]["anyOf"][0]["enum"] == ["tiny"]
    assert fields["n"]["anyOf"][0] == {"type": "integer", "minimum": 1, "maximum": 8}
    assert "HTTPValidationError" not in str(found["paths"])
