"""sparse-engine bench: kernels and models against dense."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sparse_engine.cli.common import Command, console, progress_bar, set_threads, split
from sparse_engine.errors import UsageError

app = typer.Typer(help="Measure kernels and models against dense.", no_args_is_help=True)

Output = Annotated[str, typer.Option("-o", "--output", help="md, csv or json, on stdout.")]
Threads = Annotated[int | None, typer.Option(help="Cores to use; torch's default otherwise.")]


@app.command("kernel", cls=Command)
def kernel(
    op: Annotated[str, typer.Option(help="linear, lstm, gru or rnn.")] = "linear",
    n: Annotated[
        str | None, typer.Option("-n", help="Output features, 3072; of networks units, 1024.")
    ] = None,
    k: Annotated[
        str, typer.Option("-k", help="Input features; of networks as many as units.")
    ] = "768",
    m: Annotated[
        str | None,
        typer.Option(
            "-m", help="Tokens (batch x sequence), 1,16,128; of networks sequences, 1,8,32."
        ),
    ] = None,
    sparsity: Annotated[str, typer.Option(help="Fractions of zeros.")] = "0.5,0.8,0.9",
    format: Annotated[
        str, typer.Option(help="csr, bsr:RxC, bitmask, nm:K:M, sellp.")
    ] = "csr,bsr:4x1",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, int8.")] = "float32",
    against: Annotated[
        str, typer.Option(help="torch, onnxruntime, openvino, scipy, torch-csr, torch-bsr.")
    ] = "torch",
    isa: Annotated[
        str | None, typer.Option(help="Levels to force, e.g. scalar,avx2, or all.")
    ] = None,
    layers: Annotated[int, typer.Option(min=1, help="Of a network.")] = 2,
    steps: Annotated[int, typer.Option(min=1, help="Of a network's sequences.")] = 64,
    threads: Threads = None,
    rounds: Annotated[int, typer.Option(min=1, help="Samples of each; the median counts.")] = 9,
    output: Output = "md",
    plot: Annotated[Path | None, typer.Option(help="Also draw the speed-ups: out.png.")] = None,
) -> None:
    """Time one sparse linear layer against dense and sparse peers, in turn, over every combination.

    -n, -k, -m, --sparsity, --format, --dtype, --against and --isa take lists with commas. Dense is
    the fastest of the dense peers asked for, in the same dtype.

    Examples:

      sparse-engine bench kernel -n 3072 -k 768 -m 1,16,128 --sparsity 0.5,0.8,0.9

      sparse-engine bench kernel -m 128 --format csr,bsr:4x1 --dtype bfloat16 --plot speed.png

      sparse-engine bench kernel -m 128 --dtype int8 --against torch,onnxruntime,openvino

      sparse-engine bench kernel --op lstm -n 1024 -m 1,8 --sparsity 0.9 --dtype float32,bfloat16
    """
    from sparse_engine.bench.kernel import KernelGrid, KernelRow, bench_kernel
    from sparse_engine.bench.output import OUTPUTS, check_chart, plot_kernels

    if plot is not None:
        check_chart(plot)
    if output not in OUTPUTS:
        raise UsageError(f"output {output!r}: use one of {', '.join(OUTPUTS)}")
    set_threads(threads)
    if op != "linear":
        from sparse_engine.bench.recurrent import NetworkGrid, bench_recurrent

        if plot is not None or against != "torch":
            raise UsageError("--plot and --against are for linear layers: networks meet torch")
        network = NetworkGrid(
            op=op,
            n=split(n or "1024", int, "-n"),
            m=split(m or "1,8,32", int, "-m"),
            sparsity=split(sparsity, float, "--sparsity"),
            format=split(format, str, "--format"),
            dtype=split(dtype, str, "--dtype"),
            layers=layers,
            steps=steps,
            rounds=rounds,
        )
        found: list[Any] = []
        for level in isa_levels(isa):
            with progress_bar(f"measuring {level or ''}") as report:
                found += bench_recurrent(network, level, report)
        return _tell(found, output)
    grid = KernelGrid(
        n=split(n or "3072", int, "-n"),
        k=split(k, int, "-k"),
        m=split(m or "1,16,128", int, "-m"),
        sparsity=split(sparsity, float, "--sparsity"),
        format=split(format, str, "--format"),
        dtype=split(dtype, str, "--dtype"),
        rounds=rounds,
        against=split(against, str, "--against"),
    )
    rows: list[KernelRow] = []
    for level in isa_levels(isa):
        with progress_bar(f"measuring {level or ''}") as report:
            rows += bench_kernel(grid, level, report)
    _tell(rows, output)
    if plot is not None:
        plot_kernels(rows, plot)
        console.print(f"chart: {plot}", style="dim")


def _tell(rows: list[Any], output: str) -> None:
    """Figures on stdout; why some are missing, and on what they were taken, beside them."""
    from sparse_engine.bench.kernel import conditions
    from sparse_engine.bench.output import reasons, render

    print(render(rows, output))
    for reason in reasons(rows):
        console.print(f"not measured: {reason}", style="dim", soft_wrap=True)
    told = conditions()
    console.print(", ".join(f"{key} {value}" for key, value in told.items()), style="dim")


def isa_levels(isa: str | None) -> tuple[str | None, ...]:
    """The levels to measure; "all" is every one that has kernels and that this machine runs."""
    if isa is None:
        return (None,)
    if isa != "all":
        return split(isa, str, "--isa")
    from sparse_engine import _core

    return tuple(dict.fromkeys(k["isa"] for k in _core.kernels() if k["supported"]))


@app.command("model", cls=Command)
def model(
    package: Annotated[Path, typer.Argument(help="A package, as `convert` writes it.")],
    against: Annotated[
        str, typer.Option(help="torch, onnxruntime, openvino; or with a dtype: torch:bfloat16.")
    ] = "torch",
    batch: Annotated[int, typer.Option(min=1, help="Sequences at a time.")] = 1,
    seq: Annotated[int, typer.Option(min=1, help="Tokens of a sequence.")] = 128,
    new: Annotated[
        int | None,
        typer.Option(min=0, help="Tokens to decode after SEQ; by default 32 of a language model."),
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="Calls of each engine in a round.")] = 10,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; engines take turns.")] = 3,
    threads: Threads = None,
    output: Output = "md",
) -> None:
    """Time a package against dense engines on the same weights, each in a process of its own.

    Dense engines run in float32, or in what is written behind them: torch:bfloat16, torch:int8,
    onnxruntime:int8, openvino:bfloat16. Of language models decode_ms is the time of one more token,
    which onnxruntime and openvino are not asked for: their exports have no cache.

    Examples:

      sparse-engine bench model package --against torch,onnxruntime --batch 1 --seq 128

      sparse-engine bench model llama-bf16 --against torch:bfloat16 --new 64
    """
    from sparse_engine.bench.model import bench_model
    from sparse_engine.bench.output import OUTPUTS, render

    set_threads(threads)
    if output not in OUTPUTS:
        raise UsageError(f"output {output!r}: use one of {', '.join(OUTPUTS)}")
    engines = ("sparse_engine", *split(against, str, "--against"))
    with progress_bar("measuring") as report:
        rows = bench_model(package, engines, batch, seq, new, runs, rounds, threads, report)
    print(render(rows, output))
    for row in rows:
        if row.problem:
            console.print(f"not measured: {row.problem}", style="dim", soft_wrap=True)
