"""sparse-engine bench: kernels and models against dense."""

from __future__ import annotations

import sys
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
            "-n",
            help="Output features; default 3072. Units of a network: 1024. Output channels: 128.",
        ),
    ] = None,
    k: Annotated[
        str | None,
        typer.Option("-k", help="Input features; default 768. Input channels of conv1d: 128."),
    ] = None,
    m: Annotated[
        str | None,
        typer.Option(
            "-m",
            help="Tokens (batch x length); default 1,16,128. Of other ops, sequences: 1,8,32.",
        ),
    ] = None,
    sparsity: Annotated[
        str | None, typer.Option(help="Fractions of zeros; default 0.5,0.8,0.9.")
    ] = None,
    pattern: Annotated[
        str | None,
        typer.Option(
            help="Where zeros are: format (in its blocks), element, or RxC:FILL (clustered)."
        ),
    ] = None,
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
        typer.Option(help="Instruction sets to force: scalar,avx2 or native,-bf16; all."),
    ] = None,
    layers: Annotated[
        int | None, typer.Option(min=1, help="Layers of a network; default 2.")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Steps of a sequence; default 64, of conv1d 30."),
    ] = None,
    width: Annotated[
        int | None, typer.Option(min=1, help="Width of conv1d's weight in steps; default 5.")
    ] = None,
    threads: Threads = None,
    rounds: Annotated[
        int, typer.Option(min=1, help="Samples of each time; rows hold the median.")
    ] = 9,
    output: Output = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw the speed-ups: out.png.")] = None,
) -> None:
    """Time a sparse layer against dense and sparse peers in turn, for every combination.

    Options with text values, from -n to --isa, accept comma-separated lists; --pattern does not.
    Dense is the fastest of the dense peers in --against, in the same dtype. --format auto measures
    the format that auto chooses for each number of tokens: the smallest within 10 % of the fastest.

    Examples:

      sparse-engine bench kernel -n 3072 -k 768 -m 1,16,128 --sparsity 0.5,0.8,0.9

      sparse-engine bench kernel -m 128 --format csr,bsr:4x1 --dtype bfloat16 --plot speed.png

      sparse-engine bench kernel -m 128 --dtype int8 --against torch,onnxruntime,openvino

      sparse-engine bench kernel --matrix weight.npy --format auto

      sparse-engine bench kernel --from package --layer encoder.layer.0.output.dense -m 1,128

      sparse-engine bench kernel --op conv1d -n 128 -k 128 --width 5 --steps 30 -m 1,8,32

      sparse-engine bench kernel --op lstm -n 1024 -m 1,8 --sparsity 0.9 --dtype float32,bfloat16
    """
    from sparse_engine.bench.isa import isa_levels
    from sparse_engine.bench.kernel import KernelBench
    from sparse_engine.bench.plot import plot_kernels
    from sparse_engine.cli.bench_grid import kernel_grid
    from sparse_engine.reporting.pyplot import check_output

    output = checked_output(output)
    if plot is not None:
        check_output(plot, "--plot", (".png", ".pdf", ".svg"))
    set_threads(threads)
    lists = {"n": n, "k": k, "m": m, "sparsity": sparsity}
    lists |= {"format": format, "dtype": dtype, "against": against}
    numbers = {"layers": layers, "steps": steps, "width": width, "rounds": rounds}
    linear_only = {"matrix": matrix, "from": package, "layer": layer, "pattern": pattern}
    grid = kernel_grid(op, lists, numbers, linear_only | {"plot": plot})
    rows: list[Any] = []
    bench = KernelBench()
    for level in isa_levels(isa):
        with progress_bar(f"measuring {level or ''}") as report:
            rows += bench.run(grid, level, report)
    _print_rows(rows, output, grid.against)
    if warning := bench.busy.warning():
        remark(warning, "yellow")
    for level, count in bench.repeated.items():
        remark(f"{level}: {count} points left out, whose kernels are those of a lower level")
    if plot is not None:
        plot_kernels(rows, plot)
        remark(f"chart: {plot}")


def checked_output(output: str | None) -> str:
    """The kind of output: a table on a terminal, Markdown in a pipe, or what was asked for."""
    output = output or ("table" if sys.stdout.isatty() else "md")
    if output not in OUTPUTS:
        raise UsageError(f"output {output!r}: use one of {', '.join(OUTPUTS)}")
    return output


def _print_rows(rows: list[Any], output: str, against: tuple[str, ...]) -> None:
    """Figures on stdout; on stderr why some are missing, hints, and the conditions."""
    from sparse_engine.bench.hints import hints
    from sparse_engine.bench.machine import conditions
    from sparse_engine.bench.output import reasons, render, summary
    from sparse_engine.cli.bench_tables import kernel_tables
    from sparse_engine.reporting.tables import show

    about = conditions(against)
    if output == "table":
        show(*kernel_tables(rows))
    else:
        print(summary(rows) if output == "md" else render(rows, output, about))
    for reason in reasons(rows):
        remark(f"not measured: {reason}")
    if rows and rows[0].op == "linear":
        for hint in hints(rows):
            remark(hint, "cyan")
    remark(", ".join(f"{key} {value}" for key, value in about.items()))


@app.command("compare", cls=Command)
def compare(
    old: Annotated[Path, typer.Argument(help="JSON of bench kernel, or lines of bench/suite.py.")],
    new: Annotated[Path, typer.Argument(help="The same, measured later or elsewhere.")],
    output: Output = None,
) -> None:
    """Compare two runs point by point: old time over new time, and how the machines differ.

    Above 1x the new run is faster. A difference within the spread of the samples is marked where
    both runs have spreads. Compare the speed-ups over dense where the machines differ.

    Example:

      sparse-engine bench kernel -o json > old.json

      sparse-engine bench compare old.json new.json
    """
    from sparse_engine.bench.compare import compare as read
    from sparse_engine.bench.output import render
    from sparse_engine.cli.bench_tables import compare_tables
    from sparse_engine.reporting.tables import show

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
        typer.Option(min=0, help="Tokens to decode after SEQ; default 32 for a language model."),
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="Calls of each engine in a round.")] = 10,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; engines take turns.")] = 3,
    threads: Threads = None,
    output: Output = None,
) -> None:
    """Time a package against dense engines on the same weights, each in a process of its own.

    Dense engines run in float32, or in the dtype behind the colon: torch:bfloat16, torch:int8,
    onnxruntime:int8, openvino:bfloat16. For language models decode_ms is the time of one more
    token; onnxruntime and openvino have none, because their exports have no cache.

    Examples:

      sparse-engine bench model package --against torch,onnxruntime --batch 1 --seq 128

      sparse-engine bench model llama-bf16 --against torch:bfloat16 --new 64
    """
    from sparse_engine.bench.model import bench_model
    from sparse_engine.bench.output import render
    from sparse_engine.cli.bench_tables import model_tables
    from sparse_engine.reporting.tables import show

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
