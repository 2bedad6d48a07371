"""Peers on torch's threads run in this process, peers with threads of their own in one each.

Spinning threads of several engines on the same cores slow each other down. One layer of 3072 x 768,
float32, one token, on two cores: torch needs 172 us alone, and 7984 us in turn with onnxruntime and
OpenVINO in one process. Without spinning, onnxruntime loses a quarter of its own speed (184 > 238
us). So each engine spins, in a process of its own, and `timing` waits until the threads of the last
one are asleep; the time of every engine is then within 8 % of its time alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparse_engine.bench.accuracy import TOLERANCE, max_error
from sparse_engine.bench.peers import Loaded, Peer, find_peers
from sparse_engine.bench.timing import CallSampler, Sampler
from sparse_engine.errors import UsageError


class Local:
    """A peer in this process."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self._loaded: Loaded | None = None

    def load(self, weight: Tensor, dtype: str, block: tuple[int, int]) -> None:
        """Load a float32 weight [out, in], to be multiplied in `dtype`."""
        self._loaded = None  # frees the last weight before the next one is built
        self._weight, self._dtype = weight, dtype
        self._loaded = self.peer.load(weight, dtype, block)

    def start(self, x: Tensor) -> Sampler:
        """Check the result on float32 activations [tokens, in]; returns a sampler of the call."""
        assert self._loaded is not None
        call = self._loaded(x)
        error = max_error(call(), self._weight, x)
        if not error <= TOLERANCE[self._dtype]:
            raise UsageError(f"is wrong by {error:.1e} of the largest result")
        return CallSampler(call)

    def close(self) -> None:
        """Release the weight."""
        self._loaded = None


class Remote:
    """A peer in a process of its own: the same three calls, through pipes and .npy files."""

    def __init__(self, peer: Peer) -> None:
        self.peer, self.pool, self.spin = peer, peer.name, peer.spin
        self._folder = tempfile.TemporaryDirectory(prefix="sparse-engine-peer-")
        self._log = Path(self._folder.name) / "log"
        command = [sys.executable, "-m", "sparse_engine.bench.peer_worker", peer.name]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [*command, str(torch.get_num_threads())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def load(self, weight: Tensor, dtype: str, block: tuple[int, int]) -> None:
        """Load a float32 weight [out, in], to be multiplied in `dtype`."""
        self._request("load", file=self._write(weight), dtype=dtype, block=block)

    def start(self, x: Tensor) -> Sampler:
        """Check the result on float32 activations [tokens, in]; returns a sampler of the call."""
        self._request("start", file=self._write(x))
        return self

    def __call__(self) -> float:
        """One sample: seconds a call."""
        seconds: float = self._request("sample")
        return seconds

    def close(self) -> None:
        """End the process."""
        self._process.communicate()  # closes its input, at which it ends
        self._folder.cleanup()

    def _write(self, array: Tensor) -> str:
        path = Path(self._folder.name) / "array.npy"
        np.save(path, array.numpy())
        return str(path)

    def _request(self, method: str, **details: object) -> Any:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        with suppress(BrokenPipeError):  # the log has the reason
            print(json.dumps({"do": method, **details}), file=stdin, flush=True)
        reply = stdout.readline()
        if not reply:
            last = (self._log.read_text().strip().splitlines() or ["no message"])[-1]
            raise UsageError(f"its process ended: {last}")
        answer = json.loads(reply)
        if "refused" in answer:
            raise UsageError(answer["refused"])
        return answer.get("seconds")


def one_line(error: Exception) -> str:
    """An exception of any library as one line."""
    text = " ".join(str(error).split())[:200]
    return text if isinstance(error, UsageError) else f"{type(error).__name__}: {text}"


class PeerSet:
    """The peers of a run. Use as a context: leaving it ends their processes.

    A peer that fails is left out for that weight and these tokens only.

    Attributes:
        peers: The peers.
        refused: By name, why a peer does not run on the last weight and activations.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.peers = find_peers(names)
        self.refused: dict[str, str] = {}
        self._hosts: dict[str, Local | Remote] = {}
        self._held: dict[str, tuple[object, Tensor]] = {}

    def __enter__(self) -> PeerSet:
        return self

    def __exit__(self, *exception: object) -> None:
        for host in self._hosts.values():
            host.close()
        self._hosts.clear()

    def start(
        self, weight: Tensor, x: Tensor, dtype: str, block: tuple[int, int]
    ) -> Mapping[str, Sampler]:
        """Samplers of y = x W^T, of every peer that can run it; weight and x are float32.

        Dense peers keep the first weight of a shape: its values do not change their time.
        """
        self.refused = {}
        samplers: dict[str, Sampler] = {}
        # Peers on the same threads follow each other, which saves waiting.
        for peer in sorted(self.peers, key=lambda peer: peer.own_threads):
            problem = peer.problem(dtype)
            try:
                if problem is not None:
                    raise UsageError(problem)
                samplers[peer.name] = self._load(peer, weight, dtype, block).start(x)
            except Exception as error:  # no exception of a peer ends the run
                self.refused[peer.name] = one_line(error)
        return samplers

    def _load(
        self, peer: Peer, weight: Tensor, dtype: str, block: tuple[int, int]
    ) -> Local | Remote:
        """The peer with this weight, or one of the same shape where the time is the same."""
        if peer.name not in self._hosts:
            self._hosts[peer.name] = Remote(peer) if peer.own_threads else Local(peer)
        host = self._hosts[peer.name]
        key = (dtype, *weight.shape) if peer.dense else (dtype, block, id(weight))
        if self._held.get(peer.name, (None, None))[0] != key:
            self._held.pop(peer.name, None)
            host.load(weight, dtype, block)
            self._held[peer.name] = key, weight  # a reference, so that no other weight has its id
        return host
