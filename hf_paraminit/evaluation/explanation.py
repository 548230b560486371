"""What is known about the initial values of a model, as plain records."""

from __future__ import annotations

import dataclasses
import textwrap
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

Severity = Literal["fault", "note"]

EXAMPLES_PER_RULE = 4
WRITER_WIDTH = 40  # characters; the record has the whole reason


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorRow:
    """One parameter tensor. Numbers are None where they cannot be known or do not apply.

    Attributes:
        name: As in `named_parameters()`.
        shape: Its shape; empty for a tensor without one.
        dtype: Without the prefix "torch.".
        role: Its place in the computational graph: the primitive of its node ("conv", "sep_conv", "bias"), or
            "classifier weight", "norm weight", "position table" and so on.
        is_kernel: Whether it is a matrix or convolution kernel that data is multiplied with.
        writer: What wrote it, by the report on the model; "unknown" without one.
        is_trainable: `requires_grad`.
        problem: Why the values cannot be read, such as "on the meta device"; empty when they can.
        mean, std, max_abs: Of the finite values.
        zeros: Share of exact zeros, 0..1.
        not_finite: Number of NaN and infinite values.
        denormal: Share of values below float32's smallest normal number, zeros left out.
        fan_in: Products that add up to one output of a kernel.
        gain: std * sqrt(fan_in): 1 in LeCun's initialisation, sqrt(2) in He's.
        rank: Numerical rank of the kernel's upper left block, `rank_limit` at most.
        rank_limit: The smaller side of that block.
        zero_rows: Share of output units of a kernel that are all zero.
        duplicate_rows: Output units of a kernel that repeat another one, zeros left out.
        twin: Another kernel with the same values, when there is one.
        gradient: Root mean square of the loss's gradient in the first backward pass; None when the loss does not
            depend on the tensor, or nothing was run.
        is_used: Whether the output depends on it.
        is_stuck: Whether the gradient is exactly zero and stays so after a few steps of the other tensors.
        locked_rows: Share of the duplicate rows whose gradients are the same as well.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    role: str
    is_kernel: bool
    writer: str
    is_trainable: bool
    problem: str = ""
    mean: float | None = None
    std: float | None = None
    max_abs: float | None = None
    zeros: float | None = None
    not_finite: int = 0
    denormal: float | None = None
    fan_in: int | None = None
    gain: float | None = None
    rank: int | None = None
    rank_limit: int | None = None
    zero_rows: float | None = None
    duplicate_rows: int | None = None
    twin: str | None = None
    gradient: float | None = None
    is_used: bool | None = None
    is_stuck: bool | None = None
    locked_rows: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerRow:
    """What one layer did to the batch, in the order of execution.

    Attributes:
        name: Path of the module.
        kind: Its class.
        weight: Name of its kernel; empty for layers without one.
        input_std, output_std: Standard deviation over all elements.
        max_abs: Largest magnitude of the output.
        is_finite: Whether the output holds neither NaN nor infinity.
        num_units: Channels of the output, or width of its last axis.
        dead_units: Share of the units that are zero for every image and position; only of rectifiers, else None.
    """

    name: str
    kind: str
    weight: str
    input_std: float | None
    output_std: float
    max_abs: float
    is_finite: bool
    num_units: int
    dead_units: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RunningStatistics:
    """Running statistics of one batch-norm layer.

    Attributes:
        name: Path of the layer.
        min_variance: Smallest running variance; NaN counts as the smallest.
        is_finite: Whether means and variances are finite.
        is_untouched: Whether they are still means of 0 and variances of 1.
        variance_ratio: Median over channels of running variance over the batch's variance; None if nothing was run.
        mean_shift: Median distance of running mean and batch mean, in standard deviations of the batch.
    """

    name: str
    min_variance: float
    is_finite: bool
    is_untouched: bool
    variance_ratio: float | None = None
    mean_shift: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputRow:
    """What the model says about the batch.

    Attributes:
        batch: Shape of the first tensor of the input.
        num_classes: Width of the class scores; None when the model declares no classifier.
        loss: Cross-entropy with arbitrary labels, in nats; a fair guess has log(num_classes).
        bias_share: Probability that the classifier's bias alone gives to one class, the largest.
        is_one_class: Whether all images get the same class.
        feature_spread: Largest difference between the features of two images before the classifier (or between
            outputs, without classifier), over their largest magnitude.
        attention: Largest attention weight of a row, averaged over rows, by module; 1 is saturated.
    """

    batch: tuple[int, ...]
    num_classes: int | None
    loss: float | None
    bias_share: float | None
    is_one_class: bool | None
    feature_spread: float | None
    attention: dict[str, float]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something a user should know.

    Attributes:
        rule: Name of the rule in `faults.RULES`.
        severity: "fault" for what spoils a training run, "note" for what may well be meant.
        subject: The tensor, layer or, empty, the model that it is about.
        message: What was found and what to do about it.
    """

    rule: str
    severity: Severity
    subject: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """How a model starts: every tensor, every layer's scale, and what is wrong with it.

    Attributes:
        model: Class of the model.
        init: Summary of the report that `hf_paraminit.initialize` left on the model; None without one.
        tensors: One row per parameter tensor; a tied one comes once.
        layers: One row per layer that ran, in the order of execution.
        running_statistics: One row per batch-norm layer that keeps them.
        output: What the model says about a generated batch; None when nothing was run.
        untied: Pairs of names that should share one tensor and do not.
        overwritten: Tensors that the report calls predicted and that hold unrelated values now.
        odd_buffers: Buffers that hold NaN.
        findings: What the rules found, faults first.
        remarks: What could not be looked into, and why.
    """

    model: str
    init: str | None = None
    tensors: tuple[TensorRow, ...] = ()
    layers: tuple[LayerRow, ...] = ()
    running_statistics: tuple[RunningStatistics, ...] = ()
    output: OutputRow | None = None
    untied: tuple[tuple[str, str], ...] = ()
    overwritten: tuple[str, ...] = ()
    odd_buffers: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = field(default=())
    remarks: tuple[str, ...] = ()

    @property
    def faults(self) -> tuple[Finding, ...]:
        """The findings that spoil a training run."""
        return tuple(finding for finding in self.findings if finding.severity == "fault")

    @property
    def notes(self) -> tuple[Finding, ...]:
        """The findings that may well be meant."""
        return tuple(finding for finding in self.findings if finding.severity == "note")

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON values; numbers that JSON does not know (NaN, infinity) as text."""
        return _as_json(dataclasses.asdict(self))

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        fields = _from_json(record)
        output = fields["output"]
        return cls(
            **{
                **{key: _frozen(value) for key, value in fields.items()},
                "tensors": tuple(TensorRow(**_frozen_fields(row)) for row in fields["tensors"]),
                "layers": tuple(LayerRow(**row) for row in fields["layers"]),
                "running_statistics": tuple(RunningStatistics(**row) for row in fields["running_statistics"]),
                "output": None if output is None else OutputRow(**_frozen_fields(output)),
                "findings": tuple(Finding(**row) for row in fields["findings"]),
            }
        )

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        num_elements = sum(_numel(row.shape) for row in self.tensors)
        yield f"{self.model}: {len(self.tensors)} tensors, {num_elements:,} parameters"
        yield self.init or "no report: what wrote the tensors is unknown"
        yield ""
        yield from _columns(_HEADER, [_cells(row) for row in self.tensors])
        if self.output is not None:
            yield ""
            yield _sentence(self.output)
        yield from (f"not looked into: {remark}" for remark in self.remarks)
        yield ""
        yield from _grouped(self.findings)
        yield f"{_counted(len(self.faults), 'fault')}, {_counted(len(self.notes), 'note')}"


# --- Text ------------------------------------------------------------------------------------------------------------

_HEADER = ("tensor", "shape", "role", "written by", "mean", "std", "gain", "max", "zeros", "gradient", "")


def _cells(row: TensorRow) -> tuple[str, ...]:
    writer = textwrap.shorten(row.writer, WRITER_WIDTH, placeholder=" ...")
    if row.problem:
        return (row.name, _shape(row.shape), row.role, writer, "", "", "", "", "", "", row.problem)
    marks = [] if row.is_trainable else ["frozen"]
    marks += ["unused"] if row.is_used is False else []
    marks += ["never moves"] if row.is_stuck else []
    return (
        row.name,
        _shape(row.shape),
        row.role,
        writer,
        _number(row.mean),
        _number(row.std),
        _number(row.gain),
        _number(row.max_abs),
        "" if not row.zeros else f"{row.zeros:.0%}",
        _number(row.gradient),
        ", ".join(marks),
    )


def _columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for cells in (header, *rows):
        yield "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def _grouped(findings: Sequence[Finding]) -> Iterator[str]:
    """One line per rule and message, with the first few subjects; faults come first."""
    groups: defaultdict[tuple[str, str, str], list[str]] = defaultdict(list)
    for finding in findings:
        groups[finding.severity, finding.rule, finding.message].append(finding.subject)
    for (severity, rule, message), subjects in groups.items():
        named = [subject for subject in subjects if subject]
        shown = ", ".join(named[:EXAMPLES_PER_RULE])
        more = f" and {len(named) - EXAMPLES_PER_RULE} more" if len(named) > EXAMPLES_PER_RULE else ""
        where = f" [{shown}{more}]" if named else ""
        yield f"{severity}: {rule}: {message}{where}"


def _sentence(output: OutputRow) -> str:
    ran = f"ran on a batch of {_shape(output.batch)}"
    if output.loss is None or output.num_classes is None:
        return ran
    return f"{ran}: loss {output.loss:.3g} with {output.num_classes} classes"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _numel(shape: tuple[int, ...]) -> int:
    product = 1
    for extent in shape:
        product *= extent
    return product


# --- JSON ------------------------------------------------------------------------------------------------------------

_ODD_NUMBERS = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}


def _as_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(item) for item in value]
    if isinstance(value, float) and value != value:
        return "NaN"
    if isinstance(value, float) and abs(value) == float("inf"):
        return "Infinity" if value > 0 else "-Infinity"
    return value


def _from_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _from_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_from_json(item) for item in value]
    return _ODD_NUMBERS.get(value, value) if isinstance(value, str) else value


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


def _frozen_fields(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _frozen(value) for key, value in row.items()}
