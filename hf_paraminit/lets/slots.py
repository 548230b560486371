"""Where the logical slots of a vision transformer are in timm's and Transformers' models.

A slot is called as in timm with queries, keys and values apart: `pos_embed`, `patch_embed.proj.weight`,
`blocks.0.attn.q.weight`, `fc_norm.weight` (the last norm, wherever it stands), `head.weight`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from hf_paraminit.errors import PredictionError

_FAULTS_SHOWN = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """How one library names the parts of a vision transformer.

    Attributes:
        backbones: Classes of it, with the modules that define them.
        block: Class of its blocks; others with the same parameters compute something else.
        patch: The convolution that makes the patches.
        positions: The position table.
        blocks: The list of blocks.
        modules: Slot of a block's module -> its names, of which the first that is there counts. A name for several
            slots stands for a fused layer.
        layer_scales: Parameters of LayerScale in a block.
        class_token: The class token.
        last_norms: The last norm, the first that has weights.
        heads: Classifiers in the module itself.
        outer_heads: Classifiers in the module that holds it.
    """

    backbones: tuple[tuple[str, str], ...]
    block: tuple[str, ...]
    patch: str
    positions: str
    blocks: str
    modules: Mapping[tuple[str, ...], tuple[str, ...]]
    layer_scales: tuple[str, ...]
    class_token: str
    last_norms: tuple[str, ...]
    heads: tuple[str, ...] = ()
    outer_heads: tuple[str, ...] = ()


_QKV = ("attn.q", "attn.k", "attn.v")
LAYOUTS = (
    Layout(
        backbones=(("timm.models.vision_transformer", "VisionTransformer"),),
        block=("Block",),
        patch="patch_embed.proj",
        positions="pos_embed",
        blocks="blocks",
        modules={
            ("norm1",): ("norm1",),
            _QKV: ("attn.qkv",),
            **{(slot,): (slot, f"{slot}_proj") for slot in _QKV},
            ("attn.proj",): ("attn.proj",),
            ("norm2",): ("norm2",),
            ("mlp.fc1",): ("mlp.fc1",),
            ("mlp.fc2",): ("mlp.fc2",),
        },
        layer_scales=("ls1.gamma", "ls2.gamma"),
        class_token="cls_token",
        last_norms=("fc_norm", "norm"),
        heads=("head", "head_dist"),
    ),
    Layout(
        backbones=(
            ("transformers.models.vit.modeling_vit", "ViTModel"),
            ("transformers.models.deit.modeling_deit", "DeiTModel"),
        ),
        block=("ViTLayer", "DeiTLayer"),
        patch="embeddings.patch_embeddings.projection",
        positions="embeddings.position_embeddings",
        blocks="layers",
        modules={
            ("norm1",): ("layernorm_before",),
            ("attn.q",): ("attention.q_proj",),
            ("attn.k",): ("attention.k_proj",),
            ("attn.v",): ("attention.v_proj",),
            ("attn.proj",): ("attention.o_proj",),
            ("norm2",): ("layernorm_after",),
            ("mlp.fc1",): ("mlp.fc1",),
            ("mlp.fc2",): ("mlp.fc2",),
        },
        layer_scales=(),
        class_token="embeddings.cls_token",
        last_norms=("layernorm",),
        outer_heads=("classifier", "cls_classifier", "distillation_classifier"),
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class VisionTransformer:
    """What a vision transformer looks like, whichever library built it.

    Attributes:
        width: Channels of the stream between the blocks.
        depth: Blocks.
        num_heads: Attention heads.
        mlp_dim: Hidden width of the MLPs.
        in_chans: Channels of an image.
        patch_size: (height, width) of a patch in pixels.
        grid_size: (rows, columns) of patches.
        num_prefix_rows: Rows of the position table in front of those of the grid, None where there is no table.
        num_classes: Rows of the classifier, 0 where there is none.
        norm_eps: Epsilons of its norms.
        places: Parameter -> its slots; several stand below each other in it.
        layer_scales: Names of the LayerScale parameters.
    """

    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    in_chans: int
    patch_size: tuple[int, int]
    grid_size: tuple[int, int]
    num_prefix_rows: int | None
    num_classes: int
    norm_eps: frozenset[float]
    places: Mapping[str, tuple[str, ...]] = field(repr=False)
    layer_scales: tuple[str, ...] = ()

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.width // self.num_heads

    @property
    def has_class_token(self) -> bool:
        """Whether there is a class token, which is then the first of the tokens before the grid."""
        return ("cls_token",) in self.places.values()

    def name_of(self, slot: str) -> str | None:
        """The parameter that holds a slot, alone or with others; None where there is none."""
        return next((name for name, slots in self.places.items() if slot in slots), None)

    def to_state(self, slots: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Bring the tensors of slots to the parameters of the model, as `torch.func.functional_call` takes them.

        Slots that the model lacks, such as biases, are left out, as are parameters whose slots are not given.
        """
        return {
            name: joined([slots[source] for source in sources])
            for name, sources in self.places.items()
            if all(source in slots for source in sources)
        }

    def to_slots(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of `to_state`: the parameters of a model by slot, fused ones as views of their parts."""
        slots: dict[str, Tensor] = {}
        for name, sources in self.places.items():
            slots |= zip(sources, state[name].chunk(len(sources)), strict=True)
        return slots


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Put tensors below each other; without a copy where they are all the rows of one tensor already."""
    if len(parts) == 1:
        return parts[0]
    whole = parts[0]._base
    if whole is not None and all(part._base is whole for part in parts):
        starts = [part.storage_offset() for part in parts]
        if starts == sorted(starts) and whole.shape == (sum(map(len, parts)), *parts[0].shape[1:]):
            return whole
    return torch.cat(list(parts))


def find_vision_transformer(model: nn.Module) -> VisionTransformer:
    """Find the vision transformer in a model and describe it; nothing is computed.

    Args:
        model: timm's `VisionTransformer`, `ViTModel` or `DeiTModel` of Transformers, or any module with one inside.

    Raises:
        PredictionError: there is none, or several, or it has parts that are no part of a plain vision transformer; all
            of them in one message.
    """
    found = [
        (path, module, layout)
        for path, module in model.named_modules()
        for layout in LAYOUTS
        if any((kind.__module__, kind.__name__) in layout.backbones for kind in type(module).__mro__)
    ]
    if len(found) != 1:
        what = f"{len(found)} vision transformers" if found else "no vision transformer"
        raise PredictionError(
            f"{type(model).__name__} holds {what}; expected one VisionTransformer of timm, or one ViTModel or "
            "DeiTModel of Transformers. Nothing was written; choose another initializer for this model."
        )
    path, backbone, layout = found[0]
    return _Reader(model, path, backbone, layout).describe()


class _Reader:
    """Walks over one model and notes what does not fit."""

    def __init__(self, model: nn.Module, path: str, backbone: nn.Module, layout: Layout) -> None:
        self.model, self.path, self.backbone, self.layout = model, path, backbone, layout
        self.prefix = f"{path}." if path else ""
        self.faults: list[str] = []
        self.places: dict[str, tuple[str, ...]] = {}
        self.norm_eps: set[float] = set()

    def describe(self) -> VisionTransformer:
        patch = _submodule(self.backbone, self.layout.patch)
        blocks = list(cast(nn.ModuleList, _submodule(self.backbone, self.layout.blocks)) or ())
        if not isinstance(patch, nn.Conv2d) or not blocks:
            self.faults.append(f"{self.prefix}{self.layout.patch} is no convolution, or there are no blocks")
            raise self._error()
        self._place_layer(self.layout.patch, ("patch_embed.proj",))
        holder, _, own = self.layout.patch.rpartition(".")
        others = (name for name, _ in self.backbone.get_submodule(holder).named_parameters())
        foreign = [name for name in others if not name.startswith(own)]
        self.faults += [f"{self.prefix}{holder}.{name} has a part in the patches" for name in foreign]
        layer_scales = [name for layer, block in enumerate(blocks) for name in self._read_block(layer, block)]
        self._place_last_norm()
        if self.faults:
            raise self._error()
        heads = self._place_heads()
        grid = self._grid_size()
        has_positions = self._place_token(self.layout.positions, "pos_embed")
        self._place_token(self.layout.class_token, "cls_token")
        return VisionTransformer(
            width=patch.out_channels,
            depth=len(blocks),
            num_heads=_num_heads(blocks[0]),
            mlp_dim=blocks[0].get_parameter("mlp.fc1.weight").shape[0],
            in_chans=patch.in_channels,
            patch_size=cast(tuple[int, int], patch.kernel_size),
            grid_size=grid,
            num_prefix_rows=self._num_prefix_rows(grid) if has_positions else None,
            num_classes=heads[0].out_features if heads else 0,
            norm_eps=frozenset(self.norm_eps),
            places=self.places,
            layer_scales=tuple(layer_scales),
        )

    def _error(self) -> PredictionError:
        more = f" and {len(self.faults) - _FAULTS_SHOWN} more" if len(self.faults) > _FAULTS_SHOWN else ""
        return PredictionError(
            f"{type(self.model).__name__} is no plain vision transformer, so nothing was written: "
            f"{'; '.join(self.faults[:_FAULTS_SHOWN])}{more}. Expected blocks of LayerNorm, self-attention and a "
            "two-layer MLP, each after its norm. Choose another initializer for this model."
        )

    def _read_block(self, layer: int, block: nn.Module) -> Iterator[str]:
        """Place the modules of a block; yields its LayerScale parameters."""
        where = f"{self.layout.blocks}.{layer}"
        if not any(kind.__name__ in self.layout.block for kind in type(block).__mro__):
            self.faults.append(f"{self.prefix}{where} is a {type(block).__name__}")
            return
        claimed = set()
        for slots, names in self.layout.modules.items():
            name = next((name for name in names if _submodule(block, name) is not None), None)
            if name is not None:
                claimed.add(name)
                self._place_layer(f"{where}.{name}", [f"blocks.{layer}.{slot}" for slot in slots])
        for name, _ in block.named_parameters():
            if name in self.layout.layer_scales:
                yield f"{self.prefix}{where}.{name}"
            elif name.rpartition(".")[0] not in claimed:
                self.faults.append(f"{self.prefix}{where}.{name} belongs to none of its known parts")
        self._check_block(layer, block)

    def _check_block(self, layer: int, block: nn.Module) -> None:
        """Whether the shapes are those of a plain block."""
        placed = {slot: name for name, slots in self.places.items() for slot in slots}
        stem = f"blocks.{layer}."
        missing = [slot for slots in self.layout.modules for slot in slots if f"{stem}{slot}.weight" not in placed]
        if missing:
            self.faults.append(f"{self.prefix}{self.layout.blocks}.{layer} lacks {', '.join(dict.fromkeys(missing))}")
            return
        query, proj, fc1, fc2 = (
            self.model.get_parameter(placed[f"{stem}{slot}.weight"])
            for slot in ("attn.q", "attn.proj", "mlp.fc1", "mlp.fc2")
        )
        width = fc2.shape[0]
        num_parts = len(self.places[placed[f"{stem}attn.q.weight"]])
        if query.shape != (num_parts * width, width) or proj.shape != (width, width):
            self.faults.append(f"{self.prefix}{self.layout.blocks}.{layer} has heads that do not add up to its width")
        if fc1.shape != (fc2.shape[1], width):
            self.faults.append(
                f"{self.prefix}{self.layout.blocks}.{layer}.mlp is gated: {tuple(fc1.shape)} before {tuple(fc2.shape)}"
            )

    def _place_layer(self, name: str, slots: Sequence[str]) -> None:
        """Place the weight and bias of a module, which must be of the kind that its slots ask for."""
        module = self.backbone.get_submodule(name)
        is_norm = "norm" in slots[0].rpartition(".")[2]
        if is_norm and isinstance(module, nn.LayerNorm):
            self.norm_eps.add(module.eps)
        elif is_norm or not isinstance(module, (nn.Linear, nn.Conv2d)):
            self.faults.append(f"{self.prefix}{name} is a {type(module).__name__}")
        for part in ("weight", "bias"):
            if isinstance(getattr(module, part, None), Tensor):
                self.places[f"{self.prefix}{name}.{part}"] = tuple(f"{slot}.{part}" for slot in slots)

    def _place_last_norm(self) -> None:
        for name in self.layout.last_norms:
            module = _submodule(self.backbone, name)
            if module is not None and any(True for _ in module.parameters()):
                self._place_layer(name, ["fc_norm"])
                return

    def _place_heads(self) -> list[nn.Linear]:
        """The classifiers, of which all get the values of the one slot."""
        parent = self.path.rpartition(".")[0]
        outer = f"{parent}." if parent else ""
        names = [f"{self.prefix}{name}" for name in self.layout.heads]
        names += [f"{outer}{name}" for name in self.layout.outer_heads] if self.path else []
        heads = []
        for name in names:
            module = _submodule(self.model, name)
            if isinstance(module, nn.Linear):
                heads.append(module)
                for part in ("weight", "bias"):
                    if isinstance(getattr(module, part), Tensor):
                        self.places[f"{name}.{part}"] = (f"head.{part}",)
        return heads

    def _grid_size(self) -> tuple[int, int]:
        module = self.backbone.get_submodule(self.layout.patch.rpartition(".")[0])
        grid = getattr(module, "grid_size", None)
        if grid is not None:
            return cast(tuple[int, int], tuple(grid))
        height, width = (
            image // patch
            for image, patch in zip(cast(Sequence[int], module.image_size), module.patch_size, strict=True)  # type: ignore[arg-type]
        )
        return height, width

    def _place_token(self, name: str, slot: str) -> bool:
        """Place a bare parameter of the backbone, if it has it."""
        owner, _, attribute = name.rpartition(".")
        if getattr(self.backbone.get_submodule(owner), attribute, None) is None:
            return False
        self.places[f"{self.prefix}{name}"] = (slot,)
        return True

    def _num_prefix_rows(self, grid: tuple[int, int]) -> int:
        return self.backbone.get_parameter(self.layout.positions).shape[1] - grid[0] * grid[1]


def _num_heads(block: nn.Module) -> int:
    attention = _submodule(block, "attn") or block.get_submodule("attention")
    return int(getattr(attention, "num_heads", None) or attention.num_attention_heads)  # type: ignore[arg-type]


def _submodule(module: nn.Module, path: str) -> nn.Module | None:
    for name in path.split("."):
        module = getattr(module, name, None)  # type: ignore[assignment]
        if not isinstance(module, nn.Module):
            return None
    return module
