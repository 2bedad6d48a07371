"""Start the real server on a free port, send one request over HTTP, and stop it with Ctrl-C."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from urllib.request import Request, urlopen

from sparse_engine.errors import SparseEngineError


def query_server(package: Path, text: str, threads: int) -> tuple[str, list[float]]:
    """The URL of the server, and its embedding of `text`."""
    command = [sys.executable, "-m", "sparse_engine", "serve", str(package)]
    command += ["--port", "0", "--threads", str(threads)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert server.stdout is not None
    try:
        seen = []
        for line in server.stdout:
            seen.append(line.strip())
            found = re.search(r"http://[\w.:\[\]]+", line)
            if found:
                break
        else:
            raise SparseEngineError(f"the server did not start: {' '.join(seen)[-300:]}")
        url = found.group()
        body = json.dumps({"input": text}).encode()
        request = Request(f"{url}/v1/embeddings", body, {"content-type": "application/json"})
        with urlopen(request, timeout=60) as answer:
            return url, json.load(answer)["data"][0]["embedding"]
    finally:
        server.send_signal(signal.SIGINT)
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
