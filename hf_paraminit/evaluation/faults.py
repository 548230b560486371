"""The rules of the linter: what spoils a training run before it starts.

Thresholds are wide on purpose: each lies well beyond what the default initialisations of timm's architectures show (the
extremes of 134 models are beside them), and short of where training fails.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from hf_paraminit.evaluation.explanation import Explanation, Finding, Severity, TensorRow

Rule = Callable[[Explanation], Iterator[Finding]]

# Beyond any parameter on purpose, short of any number that memory holds by accident: float32 ends at 3.4e38.
UNINITIALISED_SIZE = 1e30
# Initialisations draw no denormal number: the chance per normal draw is 1e-36.
UNINITIALISED_SHARE = 1e-3
HUGE_VALUE = 1e3  # temperatures and logit scales reach 100
HUGE_BIAS = 50.0  # detection and sigmoid losses start at -4.6 and -10
# He and LeCun's gains are 1.4 and 1. Fan-out rules in narrowing layers reach 7, and the smallest tables of std=0.02 in
# timm have 0.003, beside classifiers and gates that start near zero on purpose.
LARGE_GAIN = 20.0
SMALL_GAIN = 3e-4
SHIFTED_MEAN = 1.0  # in standard deviations: uniform on [0, 1] has 1.7, timm at most 0.08
MIN_DRAWN_ELEMENTS = 1024
MAX_DRAWN_ZEROS = 0.5  # identities and shifts are equal in every layer on purpose
PARTLY_ZERO = 0.1  # share of output units
MANY_DUPLICATES = 0.5  # share of the rows; of the repeated ones where some are off for all images
LARGE_ACTIVATION = 1e4  # CoaT 240, all others below 60
SMALL_ACTIVATION = 1e-8  # the gates of gMLP 1e-5
LARGE_GRADIENT = 1e4  # root mean square of a tensor; DeiT-3 10
SATURATED_ATTENTION = 0.99  # SHViT 0.26; trained models have single rows like this, not whole layers
DEAD_UNITS = 0.9  # SE-ResNeXt 0.56
MIN_RECTIFIED = 32  # narrower gates (squeeze-and-excitation) may be off by chance for a few similar images
LARGEST_HALF = 65504.0
EXCESS_LOSS = 20.0  # nats above a fair guess; ECA-NFNet 0.5, but a trained classifier is sure of itself as well
BIAS_SHARE = 0.99
SAME_FEATURES = 1e-6  # relative; CaiT 9e-5, and float32 resolves 1e-7
NEGATIVE_NORM = -0.5  # those that start at zero drift a little to either side in training
VARIANCE_RATIO = 100.0  # generated images are not the training data, so only other weights differ by as much
MEAN_SHIFT = 30.0


def findings_of(explanation: Explanation) -> tuple[Finding, ...]:
    """Apply every rule; faults come first, and within each severity the order is that of `RULES`."""
    found = [finding for rule in RULES for finding in rule(explanation)]
    return tuple(sorted(found, key=lambda finding: finding.severity))


# --- Values ----------------------------------------------------------------------------------------------------------


def never_materialised(explanation: Explanation) -> Iterator[Finding]:
    for row in explanation.tensors:
        if row.problem == "on the meta device":
            yield _fault(never_materialised, row.name, "is still on the meta device and has no values; materialise it")
        elif row.problem == "has no shape yet":
            yield _fault(never_materialised, row.name, "is a lazy parameter without a shape; run one forward pass")


def not_finite(explanation: Explanation) -> Iterator[Finding]:
    for row in explanation.tensors:
        if row.not_finite:
            yield _fault(not_finite, row.name, "holds NaN or infinity; initialise it again")
    for name in explanation.odd_buffers:
        yield _fault(not_finite, name, "is a buffer that holds NaN")


def uninitialised_memory(explanation: Explanation) -> Iterator[Finding]:
    for row in explanation.tensors:
        is_denormal = row.denormal is not None and row.denormal > UNINITIALISED_SHARE
        if is_denormal or _exceeds(row.max_abs, UNINITIALISED_SIZE):
            message = "holds numbers below 1e-38 or above 1e30, as memory does that nothing was written to"
            yield _fault(uninitialised_memory, row.name, message)


def huge_values(explanation: Explanation) -> Iterator[Finding]:
    for row in explanation.tensors:
        limit = HUGE_BIAS if row.role.endswith("bias") else HUGE_VALUE
        if _exceeds(row.max_abs, limit) and not _exceeds(row.max_abs, UNINITIALISED_SIZE):
            yield _fault(huge_values, row.name, f"holds values beyond {limit:g}")


def half_precision_overflow(explanation: Explanation) -> Iterator[Finding]:
    if not any(row.dtype == "float16" for row in explanation.tensors):
        return
    for layer in explanation.layers:
        if layer.max_abs > LARGEST_HALF:
            message = "emits more than float16 can hold (65504); scale it down or use bfloat16"
            yield _fault(half_precision_overflow, layer.name, message)


# --- Kernels ---------------------------------------------------------------------------------------------------------


def constant_kernel(explanation: Explanation) -> Iterator[Finding]:
    for row in _kernels(explanation):
        if _is_constant(row) and row.mean != 0 and math.prod(row.shape) > 1:
            yield _fault(constant_kernel, row.name, "holds one number everywhere, so all its units compute the same")


def shifted_mean(explanation: Explanation) -> Iterator[Finding]:
    for row in _kernels(explanation):
        if _is_constant(row) or row.mean is None or row.std is None or _is_depthwise(row):
            continue
        if math.prod(row.shape) >= MIN_DRAWN_ELEMENTS and abs(row.mean) > SHIFTED_MEAN * row.std:
            message = "has a mean beyond its standard deviation: weights of one sign; centre the draw at zero"
            yield _fault(shifted_mean, row.name, message)


def extreme_gain(explanation: Explanation) -> Iterator[Finding]:
    open_gates = {row.name for row in explanation.tensors if row.mean and _is_constant(row)}
    for row in _kernels(explanation):
        if row.gain is None or _is_constant(row):
            continue
        is_gate = row.name.removesuffix("weight") + "bias" in open_gates
        if row.gain > LARGE_GAIN:
            yield _fault(extreme_gain, row.name, f"has a gain above {LARGE_GAIN:g}, where 1 to 1.4 is usual")
        elif row.gain < SMALL_GAIN and row.role != "classifier weight" and not is_gate:
            yield _fault(extreme_gain, row.name, f"has a gain below {SMALL_GAIN:g}, where 1 to 1.4 is usual")


def duplicate_rows(explanation: Explanation) -> Iterator[Finding]:
    for row in _kernels(explanation):
        if not row.duplicate_rows or _is_constant(row):
            continue
        # Classes that four labels leave out get equal gradients here; in training every class has its own.
        is_classifier = row.role == "classifier weight"
        if row.locked_rows is not None and row.locked_rows >= MANY_DUPLICATES and not is_classifier:
            message = "repeats output units that also get equal gradients, so they never separate; add noise"
            yield _fault(duplicate_rows, row.name, message)
        elif row.duplicate_rows > MANY_DUPLICATES * row.shape[0]:
            yield _note(duplicate_rows, row.name, "repeats most of its output units; their gradients tell them apart")


def partly_zero(explanation: Explanation) -> Iterator[Finding]:
    for row in _kernels(explanation):
        if row.zero_rows is not None and PARTLY_ZERO <= row.zero_rows < 1:
            message = "is zero in some of its output units and not in others, as after a partial write"
            yield _fault(partly_zero, row.name, message)


def rank_one(explanation: Explanation) -> Iterator[Finding]:
    for row in _kernels(explanation):
        if row.rank is not None and row.rank <= 1 and not _is_constant(row):
            yield _fault(rank_one, row.name, "has rank 1: one direction of its input is all that passes")


def equal_kernels(explanation: Explanation) -> Iterator[Finding]:
    for row in _kernels(explanation):
        is_drawn = row.zeros is not None and row.zeros < MAX_DRAWN_ZEROS
        if row.twin is not None and is_drawn and math.prod(row.shape) >= MIN_DRAWN_ELEMENTS:
            message = "equals another kernel without being tied to it: layers were copied, or drawn with the same seed"
            yield _note(equal_kernels, row.name, message)


# --- Gradients -------------------------------------------------------------------------------------------------------


def dead(explanation: Explanation) -> Iterator[Finding]:
    for row in explanation.tensors:
        if row.is_stuck and row.is_trainable:
            message = "gets a gradient of exactly zero, also after a few steps: a zero weight or dead unit blocks it"
            yield _fault(dead, row.name, message)


def unused(explanation: Explanation) -> Iterator[Finding]:
    for row in explanation.tensors:
        if row.is_used is False and row.is_trainable:
            severity: Severity = "fault" if row.is_kernel else "note"
            message = "has no influence on the output, so it will never be trained"
            yield Finding("unused", severity, row.name, message)


def exploding_gradient(explanation: Explanation) -> Iterator[Finding]:
    for row in explanation.tensors:
        if row.gradient is not None and not row.gradient <= LARGE_GRADIENT:
            message = f"gets a gradient that is not finite, or above {LARGE_GRADIENT:g} per element"
            yield _fault(exploding_gradient, row.name, message)


def frozen(explanation: Explanation) -> Iterator[Finding]:
    names = [row.name for row in explanation.tensors if not row.is_trainable and not row.problem.startswith("holds")]
    if len(names) == len(explanation.tensors):
        yield _fault(frozen, "", "every parameter has requires_grad=False, so nothing will be trained")
    else:
        yield from (_note(frozen, name, "has requires_grad=False") for name in names)


# --- Scales by depth -------------------------------------------------------------------------------------------------


def exploding_activations(explanation: Explanation) -> Iterator[Finding]:
    for layer in explanation.layers:
        if not layer.is_finite or layer.output_std > LARGE_ACTIVATION:
            message = f"emits NaN, infinity, or a standard deviation above {LARGE_ACTIVATION:g}"
            yield _fault(exploding_activations, layer.name, message)


def vanishing_activations(explanation: Explanation) -> Iterator[Finding]:
    zero = {row.name for row in explanation.tensors if row.zeros == 1}
    for layer in explanation.layers:
        if layer.weight and layer.weight not in zero and 0 < layer.output_std < SMALL_ACTIVATION:
            message = f"emits a standard deviation below {SMALL_ACTIVATION:g}: the signal dies out with depth"
            yield _fault(vanishing_activations, layer.name, message)


def dead_rectifiers(explanation: Explanation) -> Iterator[Finding]:
    for layer in explanation.layers:
        is_fed = bool(layer.input_std)  # behind a branch that starts at zero there is nothing to rectify
        if is_fed and _exceeds(layer.dead_units, DEAD_UNITS) and layer.num_units >= MIN_RECTIFIED:
            message = f"is zero in over {DEAD_UNITS:.0%} of its units for every image; its input is too negative"
            yield _fault(dead_rectifiers, layer.name, message)


def saturated_attention(explanation: Explanation) -> Iterator[Finding]:
    peaks = explanation.output.attention if explanation.output is not None else {}
    for name, peak in peaks.items():
        if peak > SATURATED_ATTENTION:
            message = "attends to one position only, so queries and keys get next to no gradient; scale them down"
            yield _fault(saturated_attention, name, message)


# --- Norms -----------------------------------------------------------------------------------------------------------


def negative_norm_weights(explanation: Explanation) -> Iterator[Finding]:
    for row in explanation.tensors:
        if row.role == "norm weight" and row.mean is not None and row.mean < NEGATIVE_NORM:
            message = f"is below {NEGATIVE_NORM:g} on average; norm weights start at one or zero"
            yield _fault(negative_norm_weights, row.name, message)


def invalid_running_statistics(explanation: Explanation) -> Iterator[Finding]:
    for layer in explanation.running_statistics:
        if not layer.is_finite or layer.min_variance <= 0:
            message = "has a running variance that is zero, negative or not finite; reset_running_stats() repairs it"
            yield _fault(invalid_running_statistics, layer.name, message)


def stale_running_statistics(explanation: Explanation) -> Iterator[Finding]:
    for layer in explanation.running_statistics:
        if layer.is_untouched or layer.variance_ratio is None or layer.mean_shift is None:
            continue
        ratio = max(layer.variance_ratio, 1 / max(layer.variance_ratio, 1e-30))
        if ratio > VARIANCE_RATIO or layer.mean_shift > MEAN_SHIFT:
            message = "has running statistics of other weights than these; use hf_paraminit.recalibrate_batchnorm"
            yield _fault(stale_running_statistics, layer.name, message)


# --- The output ------------------------------------------------------------------------------------------------------


def large_initial_loss(explanation: Explanation) -> Iterator[Finding]:
    output = explanation.output
    if output is None or output.loss is None or output.num_classes is None:
        return
    if not output.loss <= math.log(output.num_classes) + EXCESS_LOSS:
        message = f"starts with a loss {EXCESS_LOSS:g} nats or more above log(number of classes); scores are too large"
        yield _fault(large_initial_loss, "", message)


def one_class_by_bias(explanation: Explanation) -> Iterator[Finding]:
    output = explanation.output
    if output is not None and output.is_one_class and output.bias_share is not None and output.bias_share > BIAS_SHARE:
        yield _fault(one_class_by_bias, "", "gives every image the class that the classifier's bias favours")


def blind(explanation: Explanation) -> Iterator[Finding]:
    output = explanation.output
    if output is not None and output.feature_spread is not None and output.feature_spread < SAME_FEATURES:
        yield _fault(blind, "", "sees no difference between images: something in between is zero or constant")


# --- Promises --------------------------------------------------------------------------------------------------------


def untied(explanation: Explanation) -> Iterator[Finding]:
    for alias, name in explanation.untied:
        yield _fault(untied, alias, f"should share its memory with {name} and does not; call tie_weights()")


def overwritten(explanation: Explanation) -> Iterator[Finding]:
    for name in explanation.overwritten:
        message = "was predicted and then initialised a second time by something else"
        yield _fault(overwritten, name, message)


RULES: tuple[Rule, ...] = (
    never_materialised,
    not_finite,
    uninitialised_memory,
    huge_values,
    half_precision_overflow,
    constant_kernel,
    shifted_mean,
    extreme_gain,
    duplicate_rows,
    partly_zero,
    rank_one,
    equal_kernels,
    dead,
    unused,
    exploding_gradient,
    frozen,
    exploding_activations,
    vanishing_activations,
    dead_rectifiers,
    saturated_attention,
    negative_norm_weights,
    invalid_running_statistics,
    stale_running_statistics,
    large_initial_loss,
    one_class_by_bias,
    blind,
    untied,
    overwritten,
)


def _fault(rule: Rule, subject: str, message: str) -> Finding:
    return Finding(rule.__name__, "fault", subject, message)


def _note(rule: Rule, subject: str, message: str) -> Finding:
    return Finding(rule.__name__, "note", subject, message)


def _kernels(explanation: Explanation) -> Iterator[TensorRow]:
    return (row for row in explanation.tensors if row.is_kernel and not row.not_finite)


def _is_constant(row: TensorRow) -> bool:
    # the mean of equal numbers is rounded, so their deviation is not exactly zero
    return row.std is not None and row.mean is not None and row.std <= 1e-6 * abs(row.mean)


def _is_depthwise(row: TensorRow) -> bool:
    return len(row.shape) > 2 and row.shape[1] == 1


def _exceeds(value: float | None, limit: float) -> bool:
    return value is not None and value > limit
