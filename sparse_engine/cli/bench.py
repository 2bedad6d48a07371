"""sparse-engine bench: kernels and models against dense."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from sparse_engine.cli.common import Command, console, progress_bar, remark, set_threads, split
from sparse_engine.errors import UsageError

app = typer.Typer(help="Measure kernels and models against dense.", no_args_is_help=True)

Output = Annotated[
    str | None,
    typer.Option(
        "-o", "--output", help="table, md, csv or json; table on a terminal, md in a pipe."
    ),
]
Threads = Annotated[int | None, typer.Option(help="Cores to use; torch's default otherwise.")]
OUTPUTS = ("table", "md", "csv", "json")


@app.command("kernel", cls=Command)
def kernel(
    op: Annotated[str, typer.Option(help="linear, conv1d, lstm, gru or rnn.")] = "linear",
    n: Annotated[
        str | None,
        typer.Option(
            "-n", help="Output features, 3072; of networks units, 1024; of conv1d channels, 128."
        ),
    ] = None,
    k: Annotated[
        str | None,
        typer.Option(
            "-k", help="Input features, 768; of networks as many as units; of conv1d channels, 128."
        ),
    ] = None,
    m: Annotated[
        str | None,
        typer.Option(
            "-m",
            help="Tokens (batch x sequence), 1,16,128; of others than linear sequences, 1,8,32.",
        ),
    ] = None,
    sparsity: Annotated[
        str | None, typer.Option(help="Fractions of zeros; 0.5,0.8,0.9 if none are given.")
    ] = None,
    pattern: Annotated[
        str,
        typer.Option(
            help="Where zeros lie: format (in its blocks), element, or RxC:FILL, in clusters."
        ),
    ] = "format",
    matrix: Annotated[
        str | None,
        typer.Option(help="Weights of your own: .npy, .mtx, .smtx, FILE.safetensors:TENSOR."),
    ] = None,
    package: Annotated[
        Path | None, typer.Option("--from", help="A package whose --layer is measured.")
    ] = None,
    layer: Annotated[str | None, typer.Option(help="Layers of --from, by name.")] = None,
    format: Annotated[
        str, typer.Option(help="csr, bsr:RxC, bitmask, nm:K:M, sellp; auto: timed, then chosen.")
    ] = "csr,bsr:4x1",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, int8.")] = "float32",
    against: Annotated[
        str, typer.Option(help="torch, onnxruntime, openvino, scipy, torch-csr, torch-bsr.")
    ] = "torch",
    isa: Annotated[
        str | None,
        typer.Option(help="Presets to force, e.g. scalar,avx2 or native,-bf16; all."),
    ] = None,
    layers: Annotated[int, typer.Option(min=1, help="Of a network.")] = 2,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Of a sequence: networks 64, conv1d 30.")
    ] = None,
    width: Annotated[int, typer.Option(min=1, help="Steps that conv1d's weight spans.")] = 5,
    threads: Threads = None,
    rounds: Annotated[int, typer.Option(min=1, help="Samples of each; the median counts.")] = 9,
    output: Output = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw the speed-ups: out.png.")] = None,
) -> None:
    """Time one sparse linear layer against dense and sparse peers, in turn, over every combination.

    Options given as text, from -n to --isa, take lists with commas; --pattern does not. Dense is the
    fastest of the dense peers asked for, in the same dtype. --format auto is what auto chooses for
    each number of tokens: of the formats within 10 % of the fastest the smallest.

    Examples:

      sparse-engine bench kernel -n 3072 -k 768 -m 1,16,128 --sparsity 0.5,0.8,0.9

      sparse-engine bench kernel -m 128 --format csr,bsr:4x1 --dtype bfloat16 --plot speed.png

      sparse-engine bench kernel -m 128 --dtype int8 --against torch,onnxruntime,openvino

      sparse-engine bench kernel --matrix weight.npy --format auto

      sparse-engine bench kernel --from package --layer encoder.layer.0.output.dense -m 1,128

      sparse-engine bench kernel --op conv1d -n 128 -k 128 --width 5 --steps 30 -m 1,8,32

      sparse-engine bench kernel --op lstm -n 1024 -m 1,8 --sparsity 0.9 --dtype float32,bfloat16
    """
    from sparse_engine.bench.grid import KernelGrid
    from sparse_engine.bench.kernel import KernelBench, KernelRow
    from sparse_engine.bench.patterns import Pattern
    from sparse_engine.bench.plot import check_chart, plot_kernels
    from sparse_engine.cli.bench_tables import conv1d_tables, kernel_tables, network_tables

    output = checked_output(output)
    if plot is not None:
        check_chart(plot)
    set_threads(threads)
    zeros = split(sparsity or "0.5,0.8,0.9", float, "--sparsity")
    if op != "linear":
        from sparse_engine.bench.conv1d import ConvGrid, bench_conv1d
        from sparse_engine.bench.machine import BusyMeter
        from sparse_engine.bench.recurrent import NetworkGrid, bench_recurrent

        asked = {"--plot": plot, "--matrix": matrix, "--from": package}
        asked |= {} if op == "conv1d" else {"-k": k}
        refused = [name for name, value in asked.items() if value is not None]
        if refused or against != "torch" or pattern != "format":
            told = ", ".join(refused) or "--against and --pattern"
            raise UsageError(f"{told}: for linear layers only; others are random and meet torch")
        axes: dict[str, Any] = {
            "m": split(m or "1,8,32", int, "-m"),
            "sparsity": zeros,
            "format": split(format, str, "--format"),
            "dtype": split(dtype, str, "--dtype"),
            "rounds": rounds,
        }
        found: list[Any] = []
        known: set[tuple[Any, ...]] = set()
        busy = BusyMeter()
        if op == "conv1d":
            convs = ConvGrid(
                n=split(n or "128", int, "-n"),
                k=split(k or "128", int, "-k"),
                width=width,
                steps=steps or 30,
                **axes,
            )
            for level in isa_levels(isa):
                with progress_bar(f"measuring {level or ''}") as report:
                    found += bench_conv1d(convs, level, report, known, busy)
            return _tell(found, output, conv1d_tables, warning=busy.warning())
        network = NetworkGrid(
            op=op, n=split(n or "1024", int, "-n"), layers=layers, steps=steps or 64, **axes
        )
        for level in isa_levels(isa):
            with progress_bar(f"measuring {level or ''}") as report:
                found += bench_recurrent(network, level, report, known, busy)
        return _tell(found, output, network_tables, warning=busy.warning())
    own = own_matrices(matrix, package, layer)
    if own and (n or k or sparsity or pattern != "format"):
        raise UsageError("-n, -k, --sparsity and --pattern are for random weights, not your own")
    grid = KernelGrid(
        n=split(n or "3072", int, "-n"),
        k=split(k or "768", int, "-k"),
        m=split(m or "1,16,128", int, "-m"),
        sparsity=zeros,
        format=split(format, str, "--format"),
        dtype=split(dtype, str, "--dtype"),
        rounds=rounds,
        against=split(against, str, "--against"),
        pattern=Pattern.parse(pattern),
        own=own,
    )
    rows: list[KernelRow] = []
    bench = KernelBench()
    for level in isa_levels(isa):
        with progress_bar(f"measuring {level or ''}") as report:
            rows += bench.run(grid, level, report)
    _tell(rows, output, kernel_tables, grid.against, bench.warning())
    for level, count in bench.repeated.items():
        console.print(
            f"{level}: {count} points left out, whose kernels are those of a lower level",
            style="dim",
        )
    if plot is not None:
        plot_kernels(rows, plot)
        remark(f"chart: {plot}")


def own_matrices(matrix: str | None, package: Path | None, layer: str | None) -> Any:
    """What --matrix, --from and --layer name; raises UsageError where they do not go together."""
    from sparse_engine.bench.matrices import read_layer, read_matrix

    if (package is None) != (layer is None):
        raise UsageError("--from PACKAGE and --layer NAME go together")
    names = split(layer or "", str, "--layer")
    files = split(matrix or "", str, "--matrix")
    found = [read_matrix(file) for file in dict.fromkeys(files)]
    if package is not None:
        found += [read_layer(package, name) for name in dict.fromkeys(names)]
    if not found and (matrix is not None or package is not None):
        raise UsageError("--matrix and --layer need a name")
    return tuple(found)


def checked_output(output: str | None) -> str:
    """The kind of output: a table on a terminal, Markdown in a pipe, or what was asked for."""
    output = output or ("table" if sys.stdout.isatty() else "md")
    if output not in OUTPUTS:
        raise UsageError(f"output {output!r}: use one of {', '.join(OUTPUTS)}")
    return output


def _tell(
    rows: list[Any],
    output: str,
    tables: Callable[[list[Any]], Iterable[Any]],
    against: tuple[str, ...] = (),
    warning: str | None = None,
) -> None:
    """Figures on stdout; why some are missing, and on what they were taken, beside them."""
    from sparse_engine.bench.hints import hints
    from sparse_engine.bench.machine import conditions
    from sparse_engine.bench.output import reasons, render
    from sparse_engine.cli.tables import show

    told = conditions(against)
    if output == "table":
        show(*tables(rows))
    else:
        print(render(rows, output, told))
    for reason in reasons(rows):
        remark(f"not measured: {reason}")
    if rows and rows[0].op == "linear":
        for hint in hints(rows):
            remark(hint, "cyan")
    console.print(", ".join(f"{key} {value}" for key, value in told.items()), style="dim")
    if warning:
        remark(warning, "yellow")


def isa_levels(isa: str | None) -> tuple[str | None, ...]:
    """The sets of capabilities to measure, each as SPARSE_ENGINE_ISA names it.

    "all" is every preset that has kernels and that this machine supports, from small to large, so
    that a kernel is measured at the first preset that has it. Elsewhere commas separate the sets; a
    part with a sign belongs to the set before it: "scalar,native,-bf16" is two sets.
    """
    if isa is None:
        return (None,)
    if isa != "all":
        sets: list[str] = []
        for part in split(isa, str, "--isa"):
            if sets and part.startswith(("+", "-")):
                sets[-1] += f",{part}"
            else:
                sets.append(part)
        return tuple(dict.fromkeys(sets))
    from sparse_engine import _core

    targets = {k["isa"] for k in _core.kernels()}
    return tuple(preset for preset in _core.presets() if preset in targets)


@app.command("compare", cls=Command)
def compare(
    old: Annotated[Path, typer.Argument(help="JSON of bench kernel, or lines of bench/suite.py.")],
    new: Annotated[Path, typer.Argument(help="The same, measured later or elsewhere.")],
    output: Output = None,
) -> None:
    """Compare two runs point by point: old time over new time, and how the machines differ.

    Above 1x the new run is faster. Where both runs say how far their samples lie apart, a difference
    inside these spreads is marked. Over dense is the steadier figure where the machines differ.

    Example:

      sparse-engine bench kernel -o json > old.json

      sparse-engine bench compare old.json new.json
    """
    from sparse_engine.bench.compare import compare as read
    from sparse_engine.bench.output import render
    from sparse_engine.cli.bench_tables import compare_tables
    from sparse_engine.cli.tables import show

    output = checked_output(output)
    found = read(old, new)
    if output == "table":
        show(*compare_tables(found))
    else:
        print(render(found.rows, output))
    count = len(found.rows)
    console.print(
        f"{count} point{'s' if count > 1 else ''}, old/new {found.mean_ratio:.2f}x "
        f"(geometric mean); only in old {found.only_old}, only in new {found.only_new}",
        highlight=False,
    )
    for difference in found.differences:
        remark(f"differs: {difference}", "yellow")


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
    output: Output = None,
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
    from sparse_engine.bench.output import render
    from sparse_engine.cli.bench_tables import model_tables
    from sparse_engine.cli.tables import show

    output = checked_output(output)
    set_threads(threads)
    engines = ("sparse_engine", *split(against, str, "--against"))
    with progress_bar("measuring") as report:
        rows = bench_model(package, engines, batch, seq, new, runs, rounds, threads, report)
    if output == "table":
        show(*model_tables(rows))
    else:
        print(render(rows, output))
    for row in rows:
        if row.problem:
            remark(f"not measured: {row.problem}")
