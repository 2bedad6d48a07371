"""The worker of bench/gpu.py: jobs run in a process, so that a crash loses one job only."""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import tempfile
from collections.abc import Generator, Sequence
from contextlib import ExitStack, nullcontext
from threading import Event, Timer
from time import time
from typing import Any

import torch
from gpu_checks import Check, StepCheck, checks
from gpu_points import Facts, Point, points
from gpu_weights import Setting, one_line

from sparse_engine.backends import CUDA, use_backend
from sparse_engine.errors import SparseEngineError, UsageError

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
READY = "ready\n"
# Exit code of a worker that lost its GPU context; limits of one job in seconds, and once time is
# up.
LOST, PATIENCE, LAST_PATIENCE = 17, 120, 20


Job = Facts | Check | StepCheck | Point


def jobs_of(given: argparse.Namespace) -> list[Job]:
    """What to do, in order; raises UsageError where --only leaves no row."""
    rows = [p for p in points(given.tiny) if given.only.lower() in p.name.lower()]
    if not rows:
        raise UsageError(f"--only {given.only!r}: no row has that in its name")
    return [Facts(), *([] if given.skip_checks else checks(given.tiny)), *rows]


@torch.inference_mode()
def work(given: argparse.Namespace) -> None:
    """Do the jobs from --worker on, and print a line of JSON for each."""
    at = Setting(torch.device("cpu" if INTERPRETED else "cuda"), given.rounds, given.tiny)
    with use_backend(CUDA) if INTERPRETED else nullcontext():  # layers on the CPU as on a GPU
        _work(given, at)


def _work(given: argparse.Namespace, at: Setting) -> None:
    print(READY, end="", flush=True)
    for job in jobs_of(given)[given.worker :]:
        if time() > given.until:
            return
        torch.manual_seed(0)
        try:
            answer = job.run(at)
        except Exception as error:
            answer = {"problem": one_line(error)}
        print(json.dumps(answer), flush=True)
        if at.on_gpu:
            try:
                torch.cuda.synchronize(at.device)
                gc.collect()
                torch.cuda.empty_cache()
            except Exception:
                os._exit(LOST)  # handlers that run at exit might wait for the GPU


def answers(
    command: Sequence[str], count: int, until: float
) -> Generator[dict[str, Any], None, None]:
    """The answer to each job in order; after a job that crashes or hangs, a new worker continues.

    command: starts a worker when --until and --worker are added.
    """
    done = 0
    while done < count:
        if time() > until:
            yield {"problem": "not run: time was up", "skipped": True}
            done += 1
            continue
        arguments = [*command, "--until", str(until), "--worker", str(done)]
        ready = hung = False
        with ExitStack() as stack:
            log = stack.enter_context(tempfile.TemporaryFile("w+"))
            process = stack.enter_context(
                subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=log, text=True)
            )
            stack.callback(process.kill)
            while not hung:
                line, hung = next_line(process, until)
                if not line:
                    break
                if line == READY:
                    ready = True
                elif line.startswith("{"):  # libraries may print, too
                    yield json.loads(line)
                    done += 1
            code = process.wait()
            log.seek(0)
            last = ([""] + [one.strip() for one in log if one.strip()])[-1]
        if done == count or code == LOST or (code == 0 and time() > until):
            continue
        if hung:
            problem = "exceeded its time"
        elif ready:
            problem = f"ended the process with {code}: {last}"
        else:
            raise SparseEngineError(f"the worker does not start, it ended with {code}: {last}")
        yield {"problem": problem}
        done += 1


def next_line(process: subprocess.Popen[str], until: float) -> tuple[str, bool]:
    """The next line of a worker, and whether it was ended after too long a silence."""
    given_up = Event()

    def give_up() -> None:
        given_up.set()
        process.kill()

    timer = Timer(max(LAST_PATIENCE, min(PATIENCE, until + LAST_PATIENCE - time())), give_up)
    timer.daemon = True
    timer.start()
    assert process.stdout is not None
    line = process.stdout.readline()
    timer.cancel()
    return line, given_up.is_set()
