"""Forward hooks that read what flows into modules, and are gone afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn


class Stop(BaseException):
    """All that was asked for has been seen; the rest of the forward pass is not needed.

    No Exception, so that no model that handles errors of its own can swallow it.
    """


@contextmanager
def before(
    modules: dict[str, nn.Module], see: Callable[[str, tuple[Any, ...], dict[str, Any]], None]
) -> Iterator[None]:
    """Call see(name, args, kwargs) before each run of a module."""
    with ExitStack() as stack:
        for name, module in modules.items():

            def hook(_: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
                see(name, args, kwargs)

            handle = module.register_forward_pre_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        yield


@contextmanager
def after(
    modules: dict[str, nn.Module], see: Callable[[str, tuple[Any, ...], dict[str, Any], Any], None]
) -> Iterator[None]:
    """Call see(name, args, kwargs, output) after each run of a module."""
    with ExitStack() as stack:
        for name, module in modules.items():

            def hook(_: nn.Module, args: Any, kwargs: Any, output: Any, name: str = name) -> None:
                see(name, args, kwargs, output)

            handle = module.register_forward_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        yield


def linear_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The input of an nn.Linear, given by position or name."""
    return args[0] if args else kwargs["input"]


@dataclass(frozen=True)
class Wanted:
    """A linear layer to watch, its number of runs, and its parent's positional argument."""

    linear: nn.Module
    calls: int
    parent: nn.Module | None = None
    argument: int = 0


@dataclass
class Seen:
    """Inputs of a watched layer, and of its parent's argument, one tensor a run.

    routed: of an expert's layer, bool [tokens]: which tokens the rows of its input are
    """

    inputs: list[Tensor] = field(default_factory=list)
    routed: list[Tensor | None] = field(default_factory=list)
    streams: list[Tensor] = field(default_factory=list)


def read_inputs(
    run: Callable[[], Any], wanted: list[Wanted], to_end: bool = False
) -> tuple[list[Seen], Any]:
    """Run and watch; without `to_end` the run is cut short as soon as all has been seen.

    A layer that runs once is waited for; one that runs several times, such as that of a recurrent
    step, may do so more often for one input than for another, and is watched to the end.

    Returns what was seen of each wanted layer, and what `run` returned, None if it was cut short.
    """
    seen = [Seen() for _ in wanted]

    def see(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kind, _, index = name.partition(" ")
        at = int(index)
        if kind == "parent":
            seen[at].streams.append(args[wanted[at].argument])
        else:
            seen[at].inputs.append(linear_input(args, kwargs))
            seen[at].routed.append(args[1] if len(args) > 1 else None)
        once = all(w.calls == 1 and s.inputs for s, w in zip(seen, wanted, strict=True))
        if once and not to_end:
            raise Stop

    watched = {f"parent {i}": w.parent for i, w in enumerate(wanted) if w.parent is not None}
    watched |= {f"linear {i}": w.linear for i, w in enumerate(wanted)}
    with before(watched, see), suppress(Stop):
        return seen, run()
    return seen, None
