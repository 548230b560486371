"""What a user should know about the initial values of a model: a table, and a linter's findings."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from hf_paraminit.errors import ParamInitError, PredictionError, TracingError
from hf_paraminit.evaluation.explanation import Explanation, RunningStatistics, TensorRow
from hf_paraminit.evaluation.faults import findings_of
from hf_paraminit.evaluation.probe import Probe, run_probe
from hf_paraminit.evaluation.tensor_statistics import describe_rows, describe_values, output_units
from hf_paraminit.graphs.autograd_walk import parameter_owners
from hf_paraminit.graphs.example_inputs import ExampleInputs
from hf_paraminit.graphs.graph import ComputationalGraph
from hf_paraminit.graphs.input_size import resolve_input_size
from hf_paraminit.graphs.meta_copy import copy_structure, tensor_on_cpu
from hf_paraminit.graphs.primitives import NORM_PRIMITIVES
from hf_paraminit.graphs.roles import (
    KEPT_GRID,
    KEPT_NORM_SHAPE,
    KEPT_RELATIVE,
    KEPT_TENSOR,
    KEPT_UNUSED,
    KEPT_VECTOR,
    KEPT_ZERO_START,
    Uses,
    parameter_role,
)
from hf_paraminit.graphs.trace import trace
from hf_paraminit.initializers.initialize import initialize
from hf_paraminit.initializers.registry import list_initializers
from hf_paraminit.initializers.report import InitReport

# The copy, its gradients and the activations of the batch take about four times the weights: 2 GiB here.
MAX_RUN_ELEMENTS = 2**27
KERNEL_PRIMITIVES = frozenset({"conv", "sep_conv", "dil_conv"})
ROLES_WITHOUT_NODE = {
    KEPT_VECTOR: "vector",
    KEPT_RELATIVE: "relative position table",
    KEPT_GRID: "position table",
    KEPT_ZERO_START: "response norm",
    KEPT_NORM_SHAPE: "norm parameter",
    KEPT_UNUSED: "unused",
    KEPT_TENSOR: "tensor",
}
UNKNOWN_WRITER = "unknown"
# Trained values keep a trace of where they started; a second random draw is orthogonal up to 1/sqrt(elements).
UNRELATED_COSINE = 0.1
MIN_COMPARED_ELEMENTS = 1024


def explain(
    model: nn.Module,
    *,
    run: bool | None = None,
    input_size: int | Sequence[int] | None = None,
    example_inputs: Any = None,
) -> Explanation:
    """Say how a model starts: what each tensor is, what wrote it, its scale, and what is wrong with it.

    Values are read from the model; everything else happens on copies, so parameters, buffers, gradients, modes and
    random states stay as they are. A copy on the CPU runs forward and backward on four generated images, to see scales
    by depth and tensors that no gradient reaches, and takes up to four small steps, after which branches and
    classifiers that start at zero have opened and only dead tensors are left. What a predictor wrote is predicted anew
    and compared. Memory: about four times the weights, and the activations.

    Args:
        model: Any module with parameters.
        run: Whether to run the copy; by default up to 2**27 parameters.
        input_size: Side of the images in pixels, or (channels, height, width); by default what the model declares.
        example_inputs: What to call the model with instead of images: a tensor, a tuple of arguments, or a dict of
            keyword arguments; at least two examples.

    Returns:
        The record; `print` it, or ask it for `faults`. What could not be looked into, for instance because the forward
        pass fails, is among its `remarks`.

    Raises:
        PredictionError: Not a module, or one without parameters.
        TracingError: An `input_size` or `example_inputs` that are none, or both of them.
    """
    if not isinstance(model, nn.Module):
        raise PredictionError(f"Cannot explain a {type(model).__name__}: expected a torch.nn.Module.")
    parameters = dict(model.named_parameters())
    if not parameters:
        raise PredictionError(f"{type(model).__name__} has no parameters, so there is nothing to explain.")
    inputs = _inputs(model, input_size, example_inputs)
    report = getattr(model, "_hf_paraminit", None)
    report = report if isinstance(report, InitReport) else None
    remarks: list[str] = []
    with torch.inference_mode(False), torch.no_grad():
        graph = _graph(model, input_size, example_inputs, remarks)
        rows = _rows(model, parameters, graph, report)
        probe = _probe(model, rows, run, inputs, remarks)
        explanation = Explanation(
            model=type(model).__name__,
            init=None if report is None else report.summary,
            tensors=tuple(_with_gradients(row, probe) for row in rows),
            layers=tuple(probe.layers) if probe is not None else (),
            running_statistics=tuple(_running_statistics(model, probe)),
            output=probe.output if probe is not None else None,
            untied=tuple(_untied(model, report)),
            overwritten=tuple(_overwritten(model, parameters, report, remarks)) if probe is not None else (),
            odd_buffers=tuple(name for name, buffer in model.named_buffers() if _holds_nan(buffer)),
            remarks=tuple(remarks),
        )
    return dataclasses.replace(explanation, findings=findings_of(explanation))


# --- Roles and writers -----------------------------------------------------------------------------------------------


def _inputs(model: nn.Module, input_size: Any, example_inputs: Any) -> tuple[int, int, int] | ExampleInputs:
    if example_inputs is None:
        return resolve_input_size(model, input_size)
    if input_size is not None:
        raise TracingError("Pass input_size= or example_inputs=, not both: an example has a size.")
    return ExampleInputs.of(example_inputs)


def _graph(model: nn.Module, input_size: Any, example_inputs: Any, remarks: list[str]) -> ComputationalGraph | None:
    try:
        return trace(model, mode="native", input_size=input_size, example_inputs=example_inputs, virtual_edge_cutoff=1)
    except TracingError as error:
        remarks.append(f"the graph, so that roles go by the layer's class ({_first_line(error)})")
    return None


def _rows(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    graph: ComputationalGraph | None,
    report: InitReport | None,
) -> list[TensorRow]:
    owners = parameter_owners(model)
    roles = _roles_in_graph(graph) if graph is not None else {}
    rows = []
    twins: dict[tuple[Any, ...], str] = {}
    for name, parameter in parameters.items():
        owner = owners[id(parameter)][1]
        role_by_class, is_kernel_by_class = _role_by_class(owner, name, parameter)
        role, is_kernel = roles.get(name, (role_by_class, is_kernel_by_class))
        if role == ROLES_WITHOUT_NODE[KEPT_UNUSED]:
            is_kernel = is_kernel_by_class
        row = TensorRow(
            name=name,
            shape=() if is_lazy(parameter) else tuple(parameter.shape),
            dtype=str(parameter.dtype).removeprefix("torch."),
            role=role,
            is_kernel=is_kernel,
            writer=_writer(name, report),
            is_trainable=parameter.requires_grad,
            problem=_unreadable(parameter, owner),
        )
        rows.append(row if row.problem or parameter.numel() == 0 else _with_statistics(row, parameter, owner, twins))
    return rows


def _roles_in_graph(graph: ComputationalGraph) -> dict[str, tuple[str, bool]]:
    """Name -> role, and whether it is a kernel; of several uses the first counts."""
    classifiers = {graph.class_weight_index, graph.class_bias_index, *graph.more_class_indices}
    roles: dict[str, tuple[str, bool]] = {}
    for index, node in enumerate(graph.nodes):
        for position, name in enumerate(node.parameters):
            kind = node.primitive
            if index in classifiers:
                kind = "classifier bias" if kind == "bias" else "classifier weight"
            elif kind in NORM_PRIMITIVES:
                kind = "norm weight" if position == 0 else "norm bias"
            elif kind == "pos_enc":
                kind = "position table"
            roles.setdefault(name, (kind, kind in KERNEL_PRIMITIVES or kind == "classifier weight"))
    for name, reason in graph.kept_reasons.items():
        roles.setdefault(name, (ROLES_WITHOUT_NODE.get(reason, "tensor"), False))
    return roles


def _role_by_class(owner: nn.Module, name: str, parameter: nn.Parameter) -> tuple[str, bool]:
    if is_lazy(parameter):
        return "unknown", False
    uses = Uses(in_product=parameter.dim() == 2, in_convolution=parameter.dim() >= 3)
    role = parameter_role(owner, name.rpartition(".")[2], parameter, uses, None)
    if role.primitive is None:
        return (ROLES_WITHOUT_NODE.get(role.kept_reason, "norm bias"), False)
    names = {**dict.fromkeys(NORM_PRIMITIVES, "norm weight"), "pos_enc": "position table"}
    return names.get(role.primitive, role.primitive), role.primitive in KERNEL_PRIMITIVES


def _writer(name: str, report: InitReport | None) -> str:
    if report is None or report.initializer is None:
        return UNKNOWN_WRITER
    if report.skipped_reason is not None:
        return f"not by {report.initializer}: skipped ({report.skipped_reason})"
    if name in report.predicted:
        return f"predicted by {report.initializer}"
    if name in report.kept:
        return f"the model itself: {report.kept[name]}"
    if name in report.refused:
        return f"the model itself; refused: {report.refused[name]}"
    return f"loaded, or the model itself: not offered to {report.initializer}"


# --- Values ----------------------------------------------------------------------------------------------------------


def _unreadable(parameter: nn.Parameter, owner: nn.Module) -> str:
    if is_lazy(parameter):
        return "has no shape yet"
    if parameter.is_meta:
        return "offloaded" if hasattr(owner, "_hf_hook") else "on the meta device"
    if is_traceable_wrapper_subclass(parameter):
        return f"packed in a {type(parameter).__name__}"
    if not parameter.is_floating_point():
        return f"holds {str(parameter.dtype).removeprefix('torch.')}"
    return ""


def _with_statistics(
    row: TensorRow, parameter: nn.Parameter, owner: nn.Module, twins: dict[tuple[Any, ...], str]
) -> TensorRow:
    values = tensor_on_cpu(parameter)
    scale = describe_values(values)
    row = dataclasses.replace(row, **dataclasses.asdict(scale))
    if not row.is_kernel or values.dim() < 2:
        return row
    rows = output_units(values, owner)
    fan_in = rows.shape[1] // (owner.groups if isinstance(owner, _ConvTransposeNd) else 1)
    row = dataclasses.replace(row, fan_in=fan_in, gain=scale.std * fan_in**0.5)
    if scale.not_finite:
        return row
    key = (*row.shape, scale.mean, scale.std, scale.max_abs)
    twin = twins.setdefault(key, row.name) if scale.std > 0 else row.name
    return dataclasses.replace(row, **dataclasses.asdict(describe_rows(rows)), twin=None if twin == row.name else twin)


def _running_statistics(model: nn.Module, probe: Probe | None) -> Iterator[RunningStatistics]:
    for name, layer in model.named_modules():
        if not isinstance(layer, _BatchNorm) or layer.running_mean is None or layer.running_var is None:
            continue
        if layer.running_mean.is_meta or layer.running_var.is_meta or is_lazy(layer.running_mean):
            continue
        mean, variance = tensor_on_cpu(layer.running_mean), tensor_on_cpu(layer.running_var)
        is_finite = bool(mean.isfinite().all() and variance.isfinite().all())
        record = RunningStatistics(
            name=name,
            min_variance=variance.nan_to_num(nan=-torch.inf).min().item(),
            is_finite=is_finite,
            is_untouched=not mean.any() and bool((variance == 1).all()),
        )
        batch = probe.batch_statistics.get(name) if probe is not None else None
        if batch is not None and is_finite:
            batch_mean, batch_variance = batch[0], batch[1] + layer.eps
            record = dataclasses.replace(
                record,
                variance_ratio=((variance + layer.eps) / batch_variance).median().item(),
                mean_shift=((mean - batch_mean).abs() / batch_variance.sqrt()).median().item(),
            )
        yield record


def _holds_nan(buffer: Tensor) -> bool:
    if buffer.is_meta or not buffer.is_floating_point() or is_traceable_wrapper_subclass(buffer):
        return False
    return bool(tensor_on_cpu(buffer).isnan().any())


# --- The run ---------------------------------------------------------------------------------------------------------


def _probe(
    model: nn.Module,
    rows: list[TensorRow],
    run: bool | None,
    inputs: tuple[int, int, int] | ExampleInputs,
    remarks: list[str],
) -> Probe | None:
    obstacle = _obstacle(rows, run)
    if obstacle:
        remarks.append(f"scales by depth and gradients: {obstacle}")
        return None
    repeated = {row.name for row in rows if row.duplicate_rows}
    try:
        return run_probe(model, inputs, repeated)
    except Exception as error:  # whatever a forward pass of any model raises
        remarks.append(
            f"scales by depth and gradients: the forward pass of a copy fails ({type(error).__name__}: "
            f"{_first_line(error)}); pass example_inputs= if the model expects something other than a batch of images"
        )
    return None


def _obstacle(rows: list[TensorRow], run: bool | None) -> str:
    if run is False:
        return "run=False"
    problems = [row.problem for row in rows if row.problem]
    if problems:
        return f"{len(problems)} of {len(rows)} tensors cannot be read (the first: {problems[0]})"
    if any(row.not_finite for row in rows):
        return "NaN or infinity in the weights would fill every layer"
    num_elements = sum(torch.Size(row.shape).numel() for row in rows)
    if run is None and num_elements > MAX_RUN_ELEMENTS:
        return f"{num_elements:,} parameters would need about {16 * num_elements / 2**30:.0f} GiB; ask with run=True"
    return ""


def _with_gradients(row: TensorRow, probe: Probe | None) -> TensorRow:
    if probe is None or row.name not in probe.gradients:
        return row
    gradient = probe.gradients[row.name]
    return dataclasses.replace(
        row,
        gradient=gradient,
        is_used=gradient is not None,
        is_stuck=row.name in probe.stuck,
        locked_rows=probe.locked_rows.get(row.name),
    )


# --- What the report and the model promise ---------------------------------------------------------------------------


def _untied(model: nn.Module, report: InitReport | None) -> Iterator[tuple[str, str]]:
    """Pairs that should be one tensor: by the report, and by what a Transformers model declares."""
    promised = {}
    for alias, text in report.predicted.items() if report is not None else ():
        if text.startswith("tied to "):
            promised[alias] = text.removeprefix("tied to ")
    if getattr(getattr(model, "config", None), "tie_word_embeddings", False):
        declared = getattr(model, "_tied_weights_keys", None)
        promised |= declared if isinstance(declared, Mapping) else {}
    everything = dict(model.named_parameters(remove_duplicate=False))
    for alias, name in promised.items():
        if alias in everything and name in everything and everything[alias] is not everything[name]:
            yield alias, name


def _overwritten(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], report: InitReport | None, remarks: list[str]
) -> Iterator[str]:
    """Predicted tensors that changed beyond recognition while most others are as predicted.

    The prediction is made anew, since the same predictor and seed give the same values. Where none of them is found in
    the model, it was trained since or predicted with other settings, and nothing can be said.
    """
    if report is None or report.initializer is None or not report.predicted:
        return
    if report.initializer.partition(":")[0] not in list_initializers():
        remarks.append(f"whether the values are still those of {report.initializer}, which cannot be asked again")
        return
    again = copy_structure(model, tensor_on_cpu)
    names = [name for name in parameters if name in report.predicted or name in report.kept]
    try:
        initialize(again, report.initializer, names=names, seed=report.seed, distributed="off")
    except ParamInitError as error:
        remarks.append(f"whether the values are still those of {report.initializer} ({_first_line(error)})")
        return
    predicted = dict(again.named_parameters())
    compared = [name for name in parameters if name in report.predicted and parameters[name].numel() > 1]
    changed = [name for name in compared if not _is_as_predicted(parameters[name], predicted[name])]
    if 2 * len(changed) > len(compared):
        remarks.append(f"which values were overwritten: most are not those of {report.initializer} with its defaults")
        return
    yield from (name for name in changed if _is_unrelated(parameters[name], predicted[name]))


def _is_as_predicted(parameter: Tensor, value: Tensor) -> bool:
    found = tensor_on_cpu(parameter)
    # a prediction on another device or in another number of threads differs by rounding
    return torch.allclose(found, value.to(parameter.dtype).float(), rtol=1e-3, atol=1e-5)


def _is_unrelated(parameter: Tensor, value: Tensor) -> bool:
    if parameter.numel() < MIN_COMPARED_ELEMENTS:
        return False
    cosine = torch.cosine_similarity(tensor_on_cpu(parameter).flatten(), value.flatten(), dim=0)
    return bool(cosine.abs() < UNRELATED_COSINE)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
