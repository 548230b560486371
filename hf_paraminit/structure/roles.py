"""What a tensor is there for: the few roles that starting scales are searched for."""

from __future__ import annotations

from hf_paraminit.structure.layers import NORM_SCALE, WeightLayer
from hf_paraminit.structure.model import ModelStructure

STEM, CLASSIFIER, ATTENTION = "stem", "classifier", "attention"
DEPTHWISE, DEPTHWISE_BRANCH = "depthwise", "depthwise branch"  # the latter has a shortcut of its own: x + depthwise(x)
LAST, KERNEL, POINTWISE = "last of a branch", "kernel", "pointwise"
NORM, LAST_NORM = "norm", "last norm of a branch"
ROLES = (STEM, CLASSIFIER, ATTENTION, DEPTHWISE_BRANCH, DEPTHWISE, LAST, KERNEL, POINTWISE, NORM, LAST_NORM)


def tensor_roles(model: ModelStructure) -> dict[str, str]:
    """Return the role of every weight and norm scale of a model, by parameter name.

    The first role that fits counts, in the order of `ROLES`. Matrices are pointwise.

    Raises:
        TracingError: The model's forward pass cannot be traced.
    """
    attention = {part.layer.name for one in model.attentions for part in (one.query, one.key, one.value)}
    attention |= {one.output.name for one in model.attentions if one.output is not None}
    last = {name for branch in model.branches for name in branch.last_layers}
    alone = {branch.layers[0] for branch in model.branches if len(branch.layers) == 1}
    named = {STEM: set(model.stem), CLASSIFIER: set(model.class_layers), ATTENTION: attention}
    roles = {}
    for name, layer in model.layers.items():
        listed = (role for role, names in named.items() if name in names)
        roles[name] = next(listed, None) or _role_by_shape(layer, is_last=name in last, is_alone=name in alone)
    last_norms = {name for branch in model.branches for name in branch.last_norms}
    roles |= {name: LAST_NORM if name in last_norms else NORM for name in model.kinds.named(NORM_SCALE)}
    return roles


def _role_by_shape(layer: WeightLayer, *, is_last: bool, is_alone: bool) -> str:
    if layer.is_depthwise:
        return DEPTHWISE_BRANCH if is_alone else DEPTHWISE
    if is_last:
        return LAST
    return KERNEL if layer.window > 1 else POINTWISE
