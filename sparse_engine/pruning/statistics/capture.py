"""Captures the inputs of modules by forward hooks, which are removed afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn


class StopForward(BaseException):
    """Everything has been captured; the rest of the forward pass is not needed.

    It is not an Exception, so that a model which handles its own errors does not catch it.
    """


@contextmanager
def pre_forward_hooks(
    modules: dict[str, nn.Module],
    callback: Callable[[str, tuple[Any, ...], dict[str, Any]], Any],
) -> Iterator[None]:
    """Call callback(name, args, kwargs) before each run of a module.

    A result (args, kwargs) of the callback other than None takes the place of the arguments.
    """
    with ExitStack() as stack:
        for name, module in modules.items():

            def hook(_: nn.Module, args: Any, kwargs: Any, name: str = name) -> Any:
                return callback(name, args, kwargs)

            handle = module.register_forward_pre_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        yield


@contextmanager
def forward_hooks(
    modules: dict[str, nn.Module],
    callback: Callable[[str, tuple[Any, ...], dict[str, Any], Any], Any],
) -> Iterator[None]:
    """Call callback(name, args, kwargs, output) after each run of a module.

    A result of the callback other than None takes the place of the output.
    """
    with ExitStack() as stack:
        for name, module in modules.items():

            def hook(_: nn.Module, args: Any, kwargs: Any, output: Any, name: str = name) -> Any:
                return callback(name, args, kwargs, output)

            handle = module.register_forward_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        yield


def linear_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The input of an nn.Linear, given by position or by name."""
    return args[0] if args else kwargs["input"]


@dataclass(frozen=True)
class CapturePoint:
    """A linear layer whose inputs are captured.

    Attributes:
        linear: the layer.
        calls: how often it runs in one forward pass.
        stream_module: the module that receives the residual stream, if there is one.
        argument: position of the stream among the positional arguments of that module.
    """

    linear: nn.Module
    calls: int
    stream_module: nn.Module | None = None
    argument: int = 0


@dataclass
class Captured:
    """What was captured at one point, one tensor for each run of the layer.

    Attributes:
        inputs: [..., in], inputs of the layer.
        routed: of an expert's layer, bool [tokens]: which tokens are the rows of its input.
        streams: [..., out], the residual stream.
    """

    inputs: list[Tensor] = field(default_factory=list)
    routed: list[Tensor | None] = field(default_factory=list)
    streams: list[Tensor] = field(default_factory=list)


def capture_inputs(
    run: Callable[[], Any], points: list[CapturePoint], to_end: bool = False
) -> tuple[list[Captured], Any]:
    """Run a model and capture inputs.

    The run stops when everything has been captured, unless a layer runs several times: the number
    of runs, as of the step of a recurrent network, may differ from input to input.

    Args:
        run: starts the forward pass.
        points: what to capture.
        to_end: do not stop early.

    Returns:
        What was captured at each point, and the result of `run`, None if it was stopped.
    """
    captured = [Captured() for _ in points]

    def callback(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kind, _, number = name.partition(" ")
        index = int(number)
        if kind == "stream":
            captured[index].streams.append(args[points[index].argument])
        else:
            captured[index].inputs.append(linear_input(args, kwargs))
            captured[index].routed.append(args[1] if len(args) > 1 else None)
        complete = all(p.calls == 1 and c.inputs for c, p in zip(captured, points, strict=True))
        if complete and not to_end:
            raise StopForward

    hooked = {
        f"stream {i}": point.stream_module
        for i, point in enumerate(points)
        if point.stream_module is not None
    }
    hooked |= {f"linear {i}": point.linear for i, point in enumerate(points)}
    with pre_forward_hooks(hooked, callback), suppress(StopForward):
        return captured, run()
    return captured, None
