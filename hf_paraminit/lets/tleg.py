"""TLEG (AAAI 2024, arXiv 2312.05614): layers as a linear function of depth, theta_l = base + l / L * slope."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, get_args

import torch
from torch import Tensor, nn

from hf_paraminit.errors import CheckpointError, InitializerConfigError
from hf_paraminit.io.pretrained import PretrainedPredictor
from hf_paraminit.lets.config import GeneScheme
from hf_paraminit.lets.start import PUBLISHED_STD, SCALED_POSITION_STD, start_gene

# Of a block, in timm's order; queries, keys and values are one module.
MODULES = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
QKV = ("attn.q", "attn.k", "attn.v")
_PUBLISHED_BLOCK = "blocks.block.{module}.instances.0.{part}_{half}"
_HALVES = {"base": "base", "slope": "ilayer"}  # ours -> the published code's
_ENDS = ("pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias", "norm.weight", "norm.bias", "head.weight",
         "head.bias")  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class TLEGConfig:
    """Sizes of a learngene; every net that is made from it has the same width.

    Attributes:
        embed_dim: Width.
        num_heads: Attention heads.
        mlp_ratio: Hidden width of the MLPs over the width.
        patch_size: Side of a patch in pixels.
        img_size: Side of an image in pixels.
        in_chans: Channels of an image.
        num_classes: Rows of the head.
        gene_init: Start of both blocks: "published" draws with a standard deviation of 0.02, "scaled" with
            0.7 / sqrt(fan in) and 0.2 for positions, which nets narrower than about 192 need.
    """

    embed_dim: int = 384
    num_heads: int = 6
    mlp_ratio: float = 4.0
    patch_size: int = 16
    img_size: int = 224
    in_chans: int = 3
    num_classes: int = 1000
    gene_init: GeneScheme = "published"

    def __post_init__(self) -> None:
        others = ("mlp_ratio", "gene_init")
        numbers = {name: value for name, value in dataclasses.asdict(self).items() if name not in others}
        if bad := {name: value for name, value in numbers.items() if type(value) is not int or not 0 < value < 2**20}:
            raise CheckpointError(f"TLEG config: expected positive integers, found {bad}.")
        if self.gene_init not in get_args(GeneScheme):
            raise CheckpointError(
                f"TLEG config: gene_init={self.gene_init!r}; expected one of {', '.join(get_args(GeneScheme))}."
            )
        if self.embed_dim % self.num_heads or self.img_size % self.patch_size:
            raise CheckpointError(
                f"TLEG config: embed_dim={self.embed_dim} must be divisible by num_heads={self.num_heads}, and "
                f"img_size={self.img_size} by patch_size={self.patch_size}."
            )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> TLEGConfig:
        """The inverse of `to_dict`.

        Raises:
            CheckpointError: Unknown keys or values.
        """
        try:
            return cls(**record)
        except TypeError as error:
            raise CheckpointError(f"TLEG config: {error}.") from error


class Half(nn.Module):
    """The parameters of one block; it is never run."""

    def __init__(self, config: TLEGConfig) -> None:
        super().__init__()
        dim, hidden = config.embed_dim, int(config.embed_dim * config.mlp_ratio)
        self.norm1 = nn.LayerNorm(dim)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(dim, 3 * dim), "proj": nn.Linear(dim, dim)})
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(dim, hidden), "fc2": nn.Linear(hidden, dim)})


class TLEG(PretrainedPredictor[TLEGConfig], tags=["learngene"], pipeline_tag="image-classification"):
    """Two blocks, `base` and `slope`, from which a ViT of any depth is made, and what stands around the blocks.

    Args:
        config: Sizes and start. Biases start at zero, norms at 1 with slope 0.
    """

    config_class = TLEGConfig

    def __init__(self, config: TLEGConfig) -> None:
        super().__init__(config)
        dim, num_tokens = config.embed_dim, (config.img_size // config.patch_size) ** 2
        self.base, self.slope = Half(config), Half(config)
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(config.in_chans, dim, config.patch_size)})
        self.pos_embed = nn.Parameter(torch.zeros(1, num_tokens, dim))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, config.num_classes)
        if not self.pos_embed.is_meta:
            self._start()

    @property
    def paraminit_type(self) -> str:
        """Registered name of the initializer that it serves."""
        return "tleg"

    @classmethod
    def new(cls, config: TLEGConfig, *, seed: int) -> Self:
        """Build an untrained one from a seed, leaving torch's random state as it is."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(config)

    @torch.no_grad()
    def _start(self) -> None:
        start_gene(self.modules(), self.config.gene_init)
        is_published = self.config.gene_init == "published"
        nn.init.trunc_normal_(self.pos_embed, std=PUBLISHED_STD if is_published else SCALED_POSITION_STD)
        for norm in (self.slope.norm1, self.slope.norm2):
            nn.init.zeros_(norm.weight)

    def materialize(self, depth: int) -> dict[str, Tensor]:
        """Generate the weights of a net of some depth L; differentiable. The last layer is at (L - 1) / L.

        Returns:
            Logical slot -> tensor, as `LeTsGenerator.materialize` calls them; `fc_norm` is the last norm, wherever it
            stands in the net.

        Raises:
            InitializerConfigError: A depth below 1.
        """
        if depth < 1:
            raise InitializerConfigError(f"TLEG: a net of depth {depth} cannot be generated; expected at least 1.")
        slots: dict[str, Tensor] = {name: self.get_parameter(name) for name in _ENDS if not name.startswith("norm.")}
        slots |= {f"fc_norm.{part}": self.get_parameter(f"norm.{part}") for part in ("weight", "bias")}
        for layer in range(depth):
            for name, tensor in self._block(layer / depth).items():
                slots[f"blocks.{layer}.{name}"] = tensor
        return slots

    def _block(self, place: float) -> dict[str, Tensor]:
        """One block, at a share of the depth from 0."""
        slots: dict[str, Tensor] = {}
        for module in MODULES:
            for part in ("weight", "bias"):
                name = f"{module}.{part}"
                tensor = self.base.get_parameter(name) + place * self.slope.get_parameter(name)
                if module == "attn.qkv":
                    slots |= {f"{qkv}.{part}": rows for qkv, rows in zip(QKV, tensor.chunk(3), strict=True)}
                else:
                    slots[name] = tensor
        return slots

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Tensor], config: Mapping[str, Any] | None = None) -> Self:
        """Build from the tensors of the published code, or from our own.

        Args:
            state_dict: Tensors by published name.
            config: Sizes; read off the shapes when absent, with heads of 64 channels as published.

        Raises:
            CheckpointError: Names or shapes that do not fit.
        """
        renamed = {_our_name(name): tensor for name, tensor in state_dict.items()}
        sizes = TLEGConfig.from_dict(config) if config is not None else _sizes_of(renamed)
        network = cls.skeleton(sizes)
        network.assign_tensors(renamed)
        return network

    def to_published(self) -> dict[str, Tensor]:
        """The tensors under their published names."""
        return {_published_name(name): tensor for name, tensor in self.state_dict().items()}


def _published_name(name: str) -> str:
    half, _, rest = name.partition(".")
    if half not in _HALVES:
        return name
    module, _, part = rest.rpartition(".")
    return _PUBLISHED_BLOCK.format(module=module, part=part, half=_HALVES[half])


_OUR_NAMES = {
    _published_name(f"{half}.{module}.{part}"): f"{half}.{module}.{part}"
    for half in _HALVES
    for module in MODULES
    for part in ("weight", "bias")
}


def _our_name(name: str) -> str:
    return _OUR_NAMES.get(name, name)


def _sizes_of(tensors: Mapping[str, Tensor]) -> TLEGConfig:
    """Read the sizes off the shapes.

    Raises:
        CheckpointError: Tensors are missing, or of shapes that no vision transformer has.
    """
    try:
        dim, in_chans, patch_size, _ = tensors["patch_embed.proj.weight"].shape
        num_tokens = tensors["pos_embed"].shape[1]
        hidden = tensors["base.mlp.fc1.weight"].shape[0]
        num_classes = tensors["head.weight"].shape[0]
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError(
            f"TLEG checkpoint: no {error} of the expected form; expected the names of the published code, such as "
            f"{_published_name('base.mlp.fc1.weight')}. Is it a TLEG learngene?"
        ) from error
    side = round(num_tokens**0.5)
    if side**2 != num_tokens:
        raise CheckpointError(f"TLEG checkpoint: {num_tokens} positions are no square grid of patches.")
    return TLEGConfig(
        embed_dim=dim,
        num_heads=max(1, dim // 64),
        mlp_ratio=hidden / dim,
        patch_size=patch_size,
        img_size=side * patch_size,
        in_chans=in_chans,
        num_classes=num_classes,
    )
