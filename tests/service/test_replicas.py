"""The same app on Ray Serve, if that is installed."""

import socket
import sys

import pytest

from lidar_sampling.service.catalog import Catalog
from lidar_sampling.service.replicas import deployment


def test_what_is_missing_is_named(tmp_path, tiny, base, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    catalog = Catalog({"tiny": tiny}, {"brightness": "brightness"}, base=base)
    with pytest.raises(ValueError, match=r"Ray Serve \(ray is missing\): pip install 'lidar-sampling\[ray,serve\]'"):
        deployment(catalog, tmp_path)


def test_two_replicas_draw(tmp_path, tiny, base, monkeypatch):
    serve = pytest.importorskip("ray.serve", reason="needs ray[serve]", exc_type=ImportError)
    import httpx
    import ray

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray.init(include_dashboard=False, num_cpus=4, log_to_driver=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        catalog = Catalog({"tiny": tiny}, {"brightness": "brightness"}, base=base)
        serve.run(deployment(catalog, tmp_path, replicas=2))
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=120) as client:
            answers = [client.post("/v1/images/generations", json={"prompt": f"cat {k}"}) for k in range(8)]
        assert {answer.status_code for answer in answers} == {200}
        assert len([*tmp_path.glob("replica-*")]) == 2
    finally:
        serve.shutdown()
        ray.shutdown()
