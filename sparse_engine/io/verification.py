"""verify: check that a package is intact and that its outputs are those of its model.

error = max |y - y'| / max |y'| over an output; cosine = mean over its last dimension's vectors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine.errors import InvalidFileError, UsageError, VerificationError, one_line
from sparse_engine.io.checkpoint import load_pretrained
from sparse_engine.io.companions import write_companions
from sparse_engine.io.hugging import transformers_module
from sparse_engine.io.model_files import read_companions
from sparse_engine.io.package import Package, Progress, open_package
from sparse_engine.io.reader import load_package
from sparse_engine.io.tensorfile import tensor_bytes
from sparse_engine.models.inputs import (
    check_ids,
    has_argument,
    inputs_of_texts,
    positions,
    random_inputs,
)

TEXT_TOKENS = 512  # of a text, at most
TOLERANCES = {"float32": 1e-4, "bfloat16": 5e-2, "int8": 0.15}


@dataclass(frozen=True)
class VerifyReport:
    """Result of `verify`; the last four fields are None without a model to compare with."""

    folder: str
    tensors: int
    files: int
    bytes: int
    samples: int | None = None
    max_relative_error: float | None = None
    mean_cosine: float | None = None
    tolerance: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """One line."""
        text = f"{self.folder}: {self.tensors} tensors and {self.files} files intact"
        if self.samples is None:
            return text
        return (
            f"{text}; {self.samples} samples: max relative error {self.max_relative_error:.1e} "
            f"(tolerance {self.tolerance:.0e}), mean cosine {self.mean_cosine:.6f}"
        )


def verify(
    folder: str | Path,
    against: str | Path | nn.Module | None = None,
    samples: int | Sequence[Any] = 5,
    model: nn.Module | None = None,
    progress: Progress | None = None,
) -> VerifyReport:
    """Check all hashes of a package and, if `against` is given, its outputs.

    Args:
        folder: The package.
        against: The pruned model before it was packed: a Hugging Face folder or id, or a module.
        samples: A number of random token sequences, or texts, or model inputs (each a dict of
            keyword arguments, a tuple or a tensor); needed for a module without token inputs.
        model: The module to fill, for packages that hold a plain torch module.
        progress: Called as (done, total, tensor name).

    Raises:
        InvalidFileError: A damaged package.
        VerificationError: An output differs by more than 1e-4 of its largest value (bfloat16
            weights: 5e-2, int8: 0.15).

    >>> print(se.io.verify("out", against="pruned"))
    """
    package = open_package(Path(folder))
    _check_hashes(package, progress)
    files = package.manifest.files
    size = sum(t.nbytes for t in package.tensors.values()) + sum(entry.bytes for entry in files)
    report = VerifyReport(str(folder), len(package.tensors), len(files), size)
    if against is None:
        return report
    dense = against if isinstance(against, nn.Module) else load_pretrained(against)[0]
    if not samples:
        raise UsageError("samples: give at least one")
    inputs = list(_inputs(samples, dense, package.path))
    packed = load_package(package, model)
    error, cosine = compare(packed, dense.eval(), inputs)
    dtypes = {entry.dtype for entry in package.manifest.layers}
    tolerance = max(TOLERANCES[d] for d in {"float32", *dtypes})
    report = VerifyReport(
        report.folder, report.tensors, report.files, size, len(inputs), error, cosine, tolerance
    )
    # Not "error > tolerance": NaN must fail.
    if not error <= tolerance:
        raise VerificationError(
            f"{folder}: outputs differ by {error:.1e} of their largest value, more than "
            f"{tolerance:.0e} (mean cosine {cosine:.6f}); was {_shown(against)} the packed model?"
        )
    return report


def _shown(against: str | Path | nn.Module) -> str:
    return type(against).__name__ if isinstance(against, nn.Module) else str(against)


def _check_hashes(package: Package, progress: Progress | None) -> None:
    entries = package.manifest.tensors
    for done, entry in enumerate(entries, 1):
        digest = hashlib.sha256(tensor_bytes(package.tensors[entry.name])).hexdigest()
        if digest != entry.sha256:
            raise InvalidFileError(
                f"{package.weights}: tensor {entry.name!r} does not match its sha256"
            )
        if progress is not None:
            progress(done, len(entries), entry.name)
    for file in package.manifest.files:
        package.read_file(file.name)


def _inputs(samples: int | Sequence[Any], model: nn.Module, folder: Path) -> Iterator[Any]:
    if isinstance(samples, int):
        yield from random_inputs(model, samples)
    elif all(isinstance(sample, str) for sample in samples):
        auto = transformers_module().AutoTokenizer
        try:
            with TemporaryDirectory() as checked:  # transformers would follow links
                write_companions(Path(checked), read_companions(folder))
                tokenizer = auto.from_pretrained(checked, local_files_only=True)
        except InvalidFileError:
            raise
        except Exception as error:  # tokenizer classes raise exceptions of many types
            reason = str(error).strip().splitlines()[0][:300]
            raise UsageError(f"{folder}: texts need a tokenizer: {reason}") from None
        longest = min(TEXT_TOKENS, positions(model) or TEXT_TOKENS)
        for text in samples:
            cut = tokenizer(text, return_tensors="pt", truncation=True, max_length=longest)
            texts = inputs_of_texts(model, cut["input_ids"], cut["attention_mask"])
            yield {name: value for name, value in cut.items() if has_argument(model, name)} | texts
    else:
        yield from samples


@torch.inference_mode()
def compare(packed: nn.Module, dense: nn.Module, inputs: Sequence[Any]) -> tuple[float, float]:
    """Largest relative error and mean cosine of packed's outputs against dense's."""
    errors, cosines = [0.0], []
    for index, sample in enumerate(inputs):
        what = f"sample {index}"
        if isinstance(sample, Mapping):
            check_ids(dense, sample, what)
        expected, got = list(_run(dense, sample, what)), list(_run(packed, sample, what))
        if not all(bool(truth.isfinite().all()) for truth in expected):
            raise VerificationError(
                f"{what}: the dense model {type(dense).__name__} gives NaN or infinity; "
                "give other samples, or repair that model"
            )
        if not expected or [t.shape for t in got] != [t.shape for t in expected]:
            raise VerificationError("the outputs of the two models have different shapes, or none")
        for y, truth in zip(got, expected, strict=True):
            y, truth = y.double(), truth.double()
            scale = truth.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
            errors.append(float((y - truth).abs().max() / scale))
            cosines.append(float(torch.cosine_similarity(y, truth, dim=-1).mean()))
    worst = float(torch.tensor(errors, dtype=torch.float64).max())  # Python's max drops NaN
    return worst, sum(cosines) / len(cosines)


def _run(model: nn.Module, sample: Any, what: str) -> Iterator[Tensor]:
    """All floating-point outputs of a model that have elements."""
    with one_line(f"{what}: {type(model).__name__} fails on it"):
        if isinstance(sample, Mapping):
            output = model(**sample)
        else:
            output = model(*sample) if isinstance(sample, tuple) else model(sample)
    yield from _floats(output)


def _floats(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        if output.is_floating_point() and output.numel():
            yield output.reshape(-1) if output.dim() == 0 else output
    elif isinstance(output, dict):
        for value in output.values():
            yield from _floats(value)
    elif isinstance(output, tuple | list):
        for value in output:
            yield from _floats(value)
