"""A real server process: start on a free port, answer, drain on a signal, leave with 0."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")
pytest.importorskip("uvicorn")
pytest.importorskip("httpx")

import httpx
import serve_model

from sparse_engine import io, sparsify_
from sparse_engine.errors import InvalidFileError, UsageError
from sparse_engine.serve import Embedder, run
from sparse_engine.serve.middleware import MAX_BODY

SCRIPT = Path(__file__).parents[1] / "support" / "serve_model.py"
V1 = "/v1/embeddings"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of the tiny encoder with all linear layers in CSR."""
    folder = tmp_path_factory.mktemp("serve")
    source = serve_model.write(folder / "source")
    model = serve_model.pruned()
    sparsify_(model, "csr")
    return io.save(model, folder / "tiny", source=source)


class Running:
    """A server process; `url` once it answers."""

    def __init__(self, package: Path, seconds: float) -> None:
        command = [sys.executable, str(SCRIPT), str(package), str(seconds)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert self.process.stdout is not None
        line = next((line for line in self.process.stdout if line.startswith("serving")), "nothing")
        found = re.fullmatch(r"serving tiny \(embedding, csr\) at (http://127.0.0.1:\d+)\n", line)
        assert found, line
        self.url = found[1]

    def end(self) -> tuple[int, str]:
        """Exit code, and what was printed after the URL."""
        rest, _ = self.process.communicate(timeout=30)
        return self.process.returncode, rest


@pytest.fixture
def server(package: Path, request: pytest.FixtureRequest) -> Iterator[Running]:
    running = Running(package, request.param)
    yield running
    if running.process.poll() is None:
        running.process.kill()
    running.process.communicate()


@pytest.mark.parametrize("server", [0.0], indirect=True)
def test_right_answers_on_a_socket_whatever_came_before(server: Running, package: Path) -> None:
    torch.set_num_threads(1)
    expected = Embedder(io.load(package), package).embed(["dense", "zeros"]).numpy()
    host, port = server.url.removeprefix("http://").split(":")
    with httpx.Client(base_url=server.url, timeout=20) as one:
        assert one.post(V1, content=b" " * (MAX_BODY + 1)).status_code == 413
        assert one.post(V1, content=iter([b" " * 2**20] * 9)).status_code == 413
        for raw in (b"\x00\x01nonsense\r\n\r\n", b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\n"):
            with socket.create_connection((host, int(port)), timeout=20) as peer:
                peer.sendall(raw)
        with socket.create_connection((host, int(port)), timeout=20) as peer:  # leaves half-way
            peer.sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{")
        answer = one.post(V1, json={"input": ["dense", "zeros"], "model": "tiny"})
        got = np.array([entry["embedding"] for entry in answer.json()["data"]], np.float32)
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)
        assert 'code="499"' in one.get("/metrics").text
    server.process.send_signal(signal.SIGINT)
    code, printed = server.end()
    assert code == 0
    assert "Traceback" not in printed


@pytest.mark.parametrize("server", [1.0], indirect=True)
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_requests_in_flight_finish(server: Running, sign: signal.Signals) -> None:
    answers: list[Any] = []
    with httpx.Client(base_url=server.url, timeout=20) as one:
        asking = threading.Thread(
            target=lambda: answers.append(one.post(V1, json={"input": "dense"}))
        )
        asking.start()
        wait_for(lambda: 'se_queue_depth{model="tiny"} 1.0' in one.get("/metrics").text)
        server.process.send_signal(sign)
        wait_for(lambda: one.get("/health/ready").status_code == 503)
        assert one.get("/health/live").status_code == 200
        assert one.post(V1, json={"input": "a"}).status_code == 503
        assert not answers
        asking.join(20)
    assert answers[0].status_code == 200
    assert len(answers[0].json()["data"][0]["embedding"]) == serve_model.HIDDEN
    assert server.end() == (0, "")


def wait_for(condition: Any) -> None:
    """Until it holds, 10 s at most."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_taken_port_is_found_before_the_model_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {port} on 127.0.0.1 is in use"):
            run("nowhere", port=port)


@pytest.mark.parametrize(
    ("host", "port", "words"),
    [
        ("127.0.0.1", 65536, "give 0 to 65535"),
        ("127.0.0.1", -1, "give 0 to 65535"),
        ("no.such.host.invalid", 0, "cannot listen on no.such.host.invalid port 0"),
        ("192.0.2.1", 0, "cannot listen on 192.0.2.1 port 0"),
    ],
)
def test_addresses_that_cannot_be_had(host: str, port: int, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        run("nowhere", host=host, port=port)


def test_a_folder_that_is_no_package(tmp_path: Path) -> None:
    with pytest.raises((InvalidFileError, UsageError)):
        run(tmp_path, port=0)
