"""What defines a learngene with its transformations, and the published size."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from hf_paraminit.errors import CheckpointError

WidthScheme = Literal["rand", "rand_softmax", "sel", "sel_noisy"]
DepthScheme = Literal["rand", "rand_softmax", "stackbert", "stackbert_noisy", "alternate_noisy"]
GeneScheme = Literal["published", "scaled"]

# Far beyond the published size; a damaged config must not ask for endless layers or overflow a tensor's size.
MAX_WIDTH, MAX_LAYERS, MAX_CLASSES, MAX_PIXELS = 2**14, 2**9, 2**20, 2**13
# Learngene layers that each depth block mixes, of the one published pair of nets (8 layers to 16).
PUBLISHED_PAIRS = ((0, 1), (0, 1), (2, 3), (2, 3), (4, 5), (4, 5), (6, 7), (6, 7))


@dataclass(frozen=True, kw_only=True, slots=True)
class LeTsConfig:
    """Sizes of a learngene and of its Aux-Net. All values are plain JSON; the defaults are the published ones.

    Attributes:
        embed_dim: Width d of the learngene.
        num_heads: Its attention heads; growing in width adds heads of the same size.
        depth: Its layers.
        aux_dim: Width D of the Aux-Net, the largest that can be generated.
        pairs: Per depth block, the two learngene layers that it mixes.
        repeat: Layers of the Aux-Net that share one depth block.
        mlp_ratio: Hidden width of the MLPs over the width.
        patch_size: Side of a patch in pixels, or (height, width).
        img_size: Side of an image in pixels, or (height, width).
        in_chans: Channels of an image.
        num_classes: Rows of the head.
        class_token: Whether the Aux-Net has a class token, which the head then reads; else it reads the mean of the
            patches. The published one has none.
        norm_eps: Of every norm.
        width_init: Start of the width transform F, see `hf_paraminit.lets.start`.
        depth_init: Start of the depth transform G, see there.
        init_noise: Upper end of the noise in the schemes that have some.
        gene_init: Start of the learngene: "published" draws as timm does (standard deviation 0.02), "scaled" with
            0.7 / sqrt(fan in) and 0.2 for positions, which nets narrower than about 192 need.
    """

    embed_dim: int = 384
    num_heads: int = 6
    depth: int = 8
    aux_dim: int = 768
    pairs: tuple[tuple[int, int], ...] = PUBLISHED_PAIRS
    repeat: int = 2
    mlp_ratio: float = 4.0
    patch_size: tuple[int, int] = (16, 16)
    img_size: tuple[int, int] = (224, 224)
    in_chans: int = 3
    num_classes: int = 1000
    class_token: bool = False
    norm_eps: float = 1e-6
    width_init: WidthScheme = "rand"
    depth_init: DepthScheme = "stackbert_noisy"
    init_noise: float = 0.03
    gene_init: GeneScheme = "published"

    def __post_init__(self) -> None:
        for name in ("patch_size", "img_size"):
            object.__setattr__(self, name, _side_pair(name, getattr(self, name)))
        object.__setattr__(self, "pairs", _layer_pairs(self.pairs))
        self._check_numbers()
        self._check_choices()
        self._check_fit()

    @property
    def head_dim(self) -> int:
        """Width of one attention head, the same in every net that is generated."""
        return self.embed_dim // self.num_heads

    @property
    def num_blocks(self) -> int:
        """Depth blocks, the distinct layers of the Aux-Net."""
        return len(self.pairs)

    @property
    def aux_depth(self) -> int:
        """Layers of the Aux-Net."""
        return self.num_blocks * self.repeat

    @property
    def aux_heads(self) -> int:
        """Attention heads of the Aux-Net."""
        return self.aux_dim // self.head_dim

    @property
    def aux_blocks(self) -> tuple[int, ...]:
        """Depth block of each layer of the Aux-Net."""
        return tuple(block for block in range(self.num_blocks) for _ in range(self.repeat))

    @property
    def grid_size(self) -> tuple[int, int]:
        """Patches of an image, (rows, columns)."""
        return self.img_size[0] // self.patch_size[0], self.img_size[1] // self.patch_size[1]

    @property
    def num_tokens(self) -> int:
        """Rows of the position table."""
        return self.grid_size[0] * self.grid_size[1] + self.class_token

    def mlp_dim(self, width: int) -> int:
        """Hidden width of the MLPs of a net of that width."""
        return int(width * self.mlp_ratio)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        lists = {"pairs": [list(pair) for pair in self.pairs]}
        sides = {name: list(getattr(self, name)) for name in ("patch_size", "img_size")}
        return {**dataclasses.asdict(self), **lists, **sides}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> LeTsConfig:
        """The inverse of `to_dict`.

        Raises:
            CheckpointError: Unknown keys or values.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(record) - known):
            raise CheckpointError(f"LeTs config: unknown keys {unknown}; expected a subset of {sorted(known)}.")
        return cls(**record)

    def _check_numbers(self) -> None:
        limits = {
            "embed_dim": MAX_WIDTH,
            "num_heads": MAX_WIDTH,
            "depth": MAX_LAYERS,
            "aux_dim": MAX_WIDTH,
            "repeat": MAX_LAYERS,
            "in_chans": MAX_WIDTH,
            "num_classes": MAX_CLASSES,
        }
        numbers = {name: getattr(self, name) for name in limits}
        for name in ("patch_size", "img_size"):
            numbers |= {f"{name}[{axis}]": side for axis, side in enumerate(getattr(self, name))}
        if bad := {name: value for name, value in numbers.items() if type(value) is not int or value < 1}:
            raise CheckpointError(f"LeTs config: expected positive integers, found {bad}.")
        if bad := {name: value for name, value in numbers.items() if value > limits.get(name, MAX_PIXELS)}:
            raise CheckpointError(f"LeTs config: values that no net has: {bad}. Is the file damaged?")
        fractions = {name: getattr(self, name) for name in ("mlp_ratio", "norm_eps")}
        fractions["init_noise"] = self.init_noise or 1.0  # none at all is fine
        if bad := {name: value for name, value in fractions.items() if not _is_positive(value)}:
            raise CheckpointError(f"LeTs config: expected positive numbers, found {bad}.")

    def _check_choices(self) -> None:
        choices = {
            "width_init": get_args(WidthScheme),
            "depth_init": get_args(DepthScheme),
            "gene_init": get_args(GeneScheme),
            "class_token": (True, False),
        }
        for name, known in choices.items():
            if (value := getattr(self, name)) not in known or (name == "class_token" and type(value) is not bool):
                raise CheckpointError(f"LeTs config: {name}={value!r}; expected one of {', '.join(map(repr, known))}.")

    def _check_fit(self) -> None:
        faults = []
        if self.embed_dim % self.num_heads:
            faults.append(f"embed_dim={self.embed_dim} is not divisible by num_heads={self.num_heads}")
        elif self.aux_dim % self.head_dim or self.aux_dim < self.embed_dim:
            faults.append(
                f"aux_dim={self.aux_dim} must be a multiple of the head size {self.head_dim}, at least "
                f"embed_dim={self.embed_dim}"
            )
        for width in (self.embed_dim, self.aux_dim):
            if width * self.mlp_ratio != self.mlp_dim(width):
                faults.append(f"mlp_ratio={self.mlp_ratio} times the width {width} is no integer")
        if any(side % patch for side, patch in zip(self.img_size, self.patch_size, strict=True)):
            faults.append(f"img_size={self.img_size} is not a whole number of patches of {self.patch_size}")
        if not 1 <= self.num_blocks <= MAX_LAYERS:
            faults.append(f"expected 1 to {MAX_LAYERS} pairs, found {self.num_blocks}")
        if bad := [pair for pair in self.pairs if not all(0 <= layer < self.depth for layer in pair)]:
            faults.append(f"pairs {bad} name layers that a learngene of depth={self.depth} does not have")
        if faults:
            raise CheckpointError(f"LeTs config: {'; '.join(faults)}.")


def adjacent_pairs(depth: int, num_blocks: int) -> tuple[tuple[int, int], ...]:
    """The published table for other depths: consecutive blocks share a pair of adjacent learngene layers.

    Args:
        depth: Learngene layers, an even number.
        num_blocks: Depth blocks, a multiple of half of `depth`.

    Raises:
        CheckpointError: Numbers that do not divide.
    """
    if depth < 2 or depth % 2 or num_blocks < 1 or num_blocks % (depth // 2):
        raise CheckpointError(
            f"LeTs config: expected an even number of learngene layers and a multiple of half of it of depth blocks, "
            f"found {depth} and {num_blocks}. Other nets list their pairs themselves."
        )
    share = num_blocks // (depth // 2)
    return tuple((2 * (block // share), 2 * (block // share) + 1) for block in range(num_blocks))


def _side_pair(name: str, value: Any) -> tuple[int, int]:
    sides = (value, value) if isinstance(value, int) else value
    if not isinstance(sides, Sequence) or isinstance(sides, str) or len(sides) != 2:
        raise CheckpointError(f"LeTs config: {name}={value!r}; expected an integer or two of them.")
    return sides[0], sides[1]


def _layer_pairs(value: Any) -> tuple[tuple[int, int], ...]:
    try:
        pairs = tuple((first, second) for first, second in value)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"LeTs config: pairs={value!r}; expected pairs of learngene layers.") from error
    if any(type(layer) is not int for pair in pairs for layer in pair):
        raise CheckpointError(f"LeTs config: pairs={value!r}; expected pairs of integers.")
    return pairs


def _is_positive(value: object) -> bool:
    return type(value) in (int, float) and 0 < value < float("inf")  # type: ignore[operator]
