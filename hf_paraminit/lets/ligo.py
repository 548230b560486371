"""LiGO (ICLR 2023, arXiv 2303.00980): grow a trained Transformer to a larger one by learned linear maps.

For layer i of the large model W = sum_j g_i[j] W_j over all layers j of the small one, and then E(F_out) W E(F_in)^T
with E(F) = [I; F]. Unlike in LeTs the mix over layers comes first, so F belongs to a layer of the large model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from hf_paraminit.errors import InitializerConfigError, PredictionError
from hf_paraminit.lets.config import WidthScheme
from hf_paraminit.lets.start import depth_start, width_start
from hf_paraminit.lets.transform import Expand
from hf_paraminit.resizing.stacks import stacks

GrowthScheme = Literal["rand", "rand_softmax", "stackbert", "stackbert_noisy", "interlace", "interlace_noisy"]
Axes = tuple[str | None, ...]

# What the axes of a parameter are, by the end of its name: "emb" is the stream between the layers, "ffn" the hidden
# layer of the MLPs, "cls" what classifiers and the transform of a language model work on; None stays as it is. Values
# are tied to the inputs of the layer behind them, and both ends of the hidden layer to each other. The first that fits
# counts. Names of timm's VisionTransformer and of ViT, DeiT, BERT and RoBERTa of Transformers.
AXES: tuple[tuple[str, Axes], ...] = (
    (r"(patch_embed\.proj|patch_embeddings\.projection)\.weight", ("emb", None, None, None)),
    (r"(cls|dist|reg|distillation|mask)_token", (None, None, "emb")),
    (r"(pos_embed|position_embeddings)", (None, None, "emb")),
    (r"(word|position|token_type)_embeddings\.weight", (None, "emb")),
    (r"attn\.qkv\.weight", ("qkv", "emb")),
    (r"attn\.qkv\.bias", ("qkv",)),
    (r"(query|q_proj)\.weight", ("q", "emb")),
    (r"(query|q_proj)\.bias", ("q",)),
    (r"(key|k_proj)\.weight", ("k", "emb")),
    (r"(key|k_proj)\.bias", ("k",)),
    (r"(value|v_proj)\.weight", ("v", "emb")),
    (r"(value|v_proj)\.bias", ("v",)),
    (r"(attn\.proj|o_proj|attention\.output\.dense)\.weight", ("emb", "v")),
    (r"(mlp\.fc1|intermediate\.dense)\.weight", ("ffn", "emb")),
    (r"(mlp\.fc1|intermediate\.dense)\.bias", ("ffn",)),
    (r"(mlp\.fc2|output\.dense)\.weight", ("emb", "ffn")),
    (r"(transform|lm_head|pooler)\.dense\.weight", ("cls", "emb")),
    (r"((transform|lm_head|pooler)\.dense|transform\.LayerNorm|lm_head\.layer_norm)\.(weight|bias)", ("cls",)),
    (r"(head|head_dist|classifier|cls_classifier|distillation_classifier)\.weight", (None, "cls")),
    (r"(head|head_dist|classifier|cls_classifier|distillation_classifier|predictions|lm_head)\.bias", (None,)),
    (r"(proj|projection|o_proj|dense|fc2)\.bias", ("emb",)),
    (r"(norm1|norm2|norm|fc_norm|layernorm\w*|LayerNorm)\.(weight|bias)", ("emb",)),
    (r"ls[12]\.gamma", ("emb",)),
)  # fmt: skip
_PARTS = {"qkv": ("q", "k", "v")}
_SHARED = ("emb", "cls")


@dataclass(frozen=True, kw_only=True, slots=True)
class GrownParameter:
    """How one parameter of the large model is made.

    Attributes:
        name: In the large model.
        sources: Parameters of the small model: its layers, or the one where there are no layers.
        layer: Layer of the large model, None outside of the layers.
        axes: What its axes are.
    """

    name: str
    sources: tuple[str, ...]
    layer: int | None
    axes: Axes

    @property
    def coefficients(self) -> str:
        """Name of its mix over layers: the module's, apart for weights and biases."""
        module, _, part = self.name.rpartition(".")
        kind = "bias" if part == "bias" else "weight"
        return f"{module}.{kind}".replace(".", "/")


def is_transformer(names: Iterable[str]) -> bool:
    """Whether parameters of these names belong to a Transformer that LiGO knows: whether some make queries."""
    return any(axis in ("q", "qkv") for name in names for axis in _axes_of(name) or ())


def plan_growth(
    small: Mapping[str, Tensor], large: Mapping[str, Sequence[int]]
) -> tuple[list[GrownParameter], dict[str, str]]:
    """Find out how each parameter of the large model is made.

    Args:
        small: Parameters of the small model.
        large: Shapes of the parameters of the large one.

    Returns:
        Plans, and for every other parameter of the large model the reason why there is none.

    Raises:
        PredictionError: The large model is smaller somewhere.
    """
    donated = stacks(small)
    plans, reasons, smaller = [], {}, []
    for key, names in stacks(large).items():
        axes = _axes_of(names[0])
        sources = donated.get(key, [])
        shapes = {tuple(small[source].shape) for source in sources}
        for layer, name in enumerate(names):
            shape = tuple(large[name])
            if axes is None:
                reasons[name] = "LiGO knows no layer of this name"
            elif len(shapes) != 1 or len(axes) != len(shape) or len(next(iter(shapes))) != len(shape):
                reasons[name] = "the small model has no such parameter"
            elif any(axis is None and old != new for axis, old, new in zip(axes, *shapes, shape, strict=True)):
                reasons[name] = f"it is {next(iter(shapes))} in the small model, and only widths are grown"
            elif any(new < old for old, new in zip(*shapes, shape, strict=True)):
                smaller.append(f"{name} {shape}, in the small model {next(iter(shapes))}")
            else:
                is_layer = key != name
                plans.append(
                    GrownParameter(name=name, sources=tuple(sources), layer=layer if is_layer else None, axes=axes)
                )
    if smaller:
        raise PredictionError(
            f"LiGO grows models, but the target is smaller than the donor: {'; '.join(smaller[:3])}"
            f"{f' and {len(smaller) - 3} more' if len(smaller) > 3 else ''}. Use a smaller donor, or weight-selection."
        )
    return plans, reasons


class LiGO(nn.Module):
    """The growth operator of one pair of models. Its parameters are F (`rows`) and g (`mixes`).

    Args:
        small: Parameters of the small model; kept as they are unless `train_small`.
        large: Shapes of the parameters of the large model.
        width_init: How F starts, see `hf_paraminit.lets.start`.
        depth_init: How g starts, see there.
        train_small: Train the small model's parameters, too.

    Raises:
        PredictionError: The models do not fit, or have nothing in common.
        InitializerConfigError: "interlace" for more than twice as many layers.
    """

    def __init__(
        self,
        small: Mapping[str, Tensor],
        large: Mapping[str, Sequence[int]],
        *,
        width_init: WidthScheme = "rand",
        depth_init: GrowthScheme = "stackbert_noisy",
        train_small: bool = False,
    ) -> None:
        super().__init__()
        self.plans, self.reasons = plan_growth(small, large)
        names = dict.fromkeys(name for plan in self.plans for name in plan.sources)
        self.small = nn.ParameterDict(
            {_key(name): nn.Parameter(small[name].clone(), requires_grad=train_small) for name in names}
        )
        self.rows = nn.ParameterDict()
        self.mixes = nn.ParameterDict()
        for plan in self.plans:
            self._start_rows(plan, tuple(large[plan.name]), width_init)
            if plan.layer is not None and plan.coefficients not in self.mixes:
                self.mixes[plan.coefficients] = nn.Parameter(_mix_start(plan, depth_init))

    def materialize(self) -> dict[str, Tensor]:
        """Generate the large model's parameters; differentiable."""
        return {plan.name: self._grown(plan) for plan in self.plans}

    def _grown(self, plan: GrownParameter) -> Tensor:
        tensors = [self.small[_key(name)] for name in plan.sources]
        value = tensors[0]
        if plan.layer is not None:
            value = torch.tensordot(self.mixes[plan.coefficients], torch.stack(tensors), dims=1)
        for axis, kind in enumerate(plan.axes):
            if kind is not None:
                value = self._expanded(value, axis, [_rows_key(part, plan.layer) for part in _PARTS.get(kind, (kind,))])
        return value

    def _expanded(self, value: Tensor, axis: int, keys: Sequence[str]) -> Tensor:
        """Add neurons along one axis, which may be several kinds in a row."""
        moved = value.movedim(axis, 0)
        parts = [
            Expand(self.rows[key], len(part)).out(part) for key, part in zip(keys, moved.chunk(len(keys)), strict=True)
        ]
        return torch.cat(parts).movedim(0, axis)

    def _start_rows(self, plan: GrownParameter, shape: tuple[int, ...], scheme: WidthScheme) -> None:
        for kind, new, old in zip(plan.axes, shape, self.small[_key(plan.sources[0])].shape, strict=True):
            for part in _PARTS.get(kind, (kind,)) if kind is not None else ():
                count = len(_PARTS.get(str(kind), (kind,)))
                key, size = _rows_key(part, plan.layer), ((new - old) // count, old // count)
                if key not in self.rows:
                    rows = width_start(size, scheme) if size[0] else torch.zeros(size)
                    self.rows[key] = nn.Parameter(rows)
                elif tuple(self.rows[key].shape) != size:
                    found = tuple(self.rows[key].shape)
                    raise PredictionError(
                        f"LiGO: {plan.name} grows by {size[0]} from {size[1]} channels, other layers on the same "
                        f"channels by {found[0]} from {found[1]}. Donor and target must be of one family."
                    )


def _axes_of(name: str) -> Axes | None:
    return next((axes for pattern, axes in AXES if re.search(rf"(^|\.){pattern}$", name)), None)


def _mix_start(plan: GrownParameter, scheme: GrowthScheme) -> Tensor:
    assert plan.layer is not None
    if scheme.startswith("interlace") and plan.layer // 2 >= len(plan.sources):
        raise InitializerConfigError(
            f"LiGO: depth_init={scheme!r} starts layer i from layer i // 2, but the donor has {len(plan.sources)} "
            f"layers and the target more than twice as many ({plan.name}). Use depth_init='stackbert_noisy'."
        )
    return depth_start(plan.layer, scheme, count=len(plan.sources))


def _rows_key(kind: str | None, layer: int | None) -> str:
    return str(kind) if kind in _SHARED or layer is None else f"{layer}/{kind}"


def _key(name: str) -> str:
    """A parameter's name as `nn.ParameterDict` takes it."""
    return name.replace(".", "/")
