"""The learngene with its transformations: a few layers from which vision transformers of many sizes are made.

Axes: d width of the learngene, D of the Aux-Net, w of the net that is generated, r ratio of the MLPs, K classes,
N rows of the position table. Weights are (out, in).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self, cast

import torch
from torch import Tensor, nn

from hf_paraminit.errors import CheckpointError, InitializerConfigError
from hf_paraminit.io.pretrained import PretrainedPredictor
from hf_paraminit.lets.checkpoint import from_published, infer_config, is_published, to_published
from hf_paraminit.lets.config import LeTsConfig
from hf_paraminit.lets.depth import LayerSource, layer_sources
from hf_paraminit.lets.start import PUBLISHED_STD, SCALED_POSITION_STD, depth_start, start_gene, width_start
from hf_paraminit.lets.transform import Expand, Mixture
from hf_paraminit.lets.width import Scored, Select, choose_places

BLOCK_MODULES = ("norm1", "attn.q", "attn.k", "attn.v", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
# Which transform makes the outputs of a module and which its inputs; "emb" is shared by all layers, the others belong
# to a learngene layer. So values are tied to the inputs of the projection, and both ends of the hidden layer to F_ffn.
_SIDES: dict[str, tuple[str, str | None]] = {
    "norm1": ("emb", None),
    "attn.q": ("q", "emb"),
    "attn.k": ("k", "emb"),
    "attn.v": ("v", "emb"),
    "attn.proj": ("emb", "v"),
    "norm2": ("emb", None),
    "mlp.fc1": ("ffn", "emb"),
    "mlp.fc2": ("emb", "ffn"),
}
# In the order in which they are made, the largest first; queries, keys and values together.
_FUSED_MODULES = (("mlp.fc1",), ("mlp.fc2",), ("attn.q", "attn.k", "attn.v"), ("attn.proj",), ("norm1",), ("norm2",))


class GeneBlock(nn.Module):
    """Parameters of one learngene layer; it is never run."""

    def __init__(self, dim: int, mlp_dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = nn.ModuleDict({name: nn.Linear(dim, dim) for name in ("q", "k", "v", "proj")})
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(dim, mlp_dim), "fc2": nn.Linear(mlp_dim, dim)})


class Gene(nn.Module):
    """Parameters of the learngene: layers by number, and what stands before and after them."""

    def __init__(self, config: LeTsConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.patch_embed = nn.Conv2d(config.in_chans, dim, config.patch_size)
        for layer in range(config.depth):
            self.add_module(str(layer), GeneBlock(dim, config.mlp_dim(dim)))
        self.fc_norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, config.num_classes)


class WidthTransform(nn.Module):
    """F: per kind of neuron the rows that make the added ones, (D - d, d), r times that for the MLPs."""

    def __init__(self, config: LeTsConfig) -> None:
        super().__init__()
        dim, added = config.embed_dim, config.aux_dim - config.embed_dim
        mlp_dim = config.mlp_dim(dim)
        self.emb = nn.Parameter(torch.zeros(added, dim))
        self.cls = nn.Parameter(torch.zeros(added, dim))
        for layer in range(config.depth):
            rows = {name: nn.Parameter(torch.zeros(added, dim)) for name in ("q", "k", "v")}
            rows["ffn"] = nn.Parameter(torch.zeros(config.mlp_dim(config.aux_dim) - mlp_dim, mlp_dim))
            self.add_module(str(layer), nn.ParameterDict(rows))

    def of_layer(self, layer: int, kind: str) -> Tensor:
        """The matrix of a learngene layer."""
        return cast(Tensor, self.get_parameter(f"{layer}.{kind}"))


class Coefficients(nn.Module):
    """How one module of a depth block mixes two learngene layers: two numbers for the weight, two for the bias."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.bias = nn.Parameter(torch.zeros(2))


class DepthBlock(nn.Module):
    """G of one depth block, by the names of a layer's modules."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = Coefficients()
        self.attn = nn.ModuleDict({name: Coefficients() for name in ("q", "k", "v", "proj")})
        self.norm2 = Coefficients()
        self.mlp = nn.ModuleDict({name: Coefficients() for name in ("fc1", "fc2")})


class LeTsGenerator(PretrainedPredictor[LeTsConfig], tags=["learngene"], pipeline_tag="image-classification"):
    """LeTs (NeurIPS 2024): a compact learngene and the linear maps that turn it into nets of other sizes.

    Parameters are `gene.*` (the learngene), `F.*` (across neurons), `G.*` (across layers), and the position table
    `pos_embed` (1, N, D), which is not generated but cut; with `class_token` also `cls_token` (1, 1, D).

    Args:
        config: Sizes. F and G start by the config's schemes, drawn from torch's generator.
    """

    config_class = LeTsConfig

    def __init__(self, config: LeTsConfig) -> None:
        super().__init__(config)
        self.pos_embed = nn.Parameter(torch.zeros(1, config.num_tokens, config.aux_dim))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.aux_dim)) if config.class_token else None
        self.gene = Gene(config)
        self.F = WidthTransform(config)
        self.G = nn.ModuleList(DepthBlock() for _ in range(config.num_blocks))
        if not self.pos_embed.is_meta:
            self.reset_gene()
            self.reset_transforms()

    @property
    def paraminit_type(self) -> str:
        """Registered name of the initializer that it serves."""
        return "learngene-LeTs"

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self.pos_embed.device

    @classmethod
    def new(cls, config: LeTsConfig, *, seed: int) -> Self:
        """Build an untrained one from a seed, leaving torch's random state as it is."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(config)

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Tensor], config: Mapping[str, Any] | None = None) -> Self:
        """Build from tensors under published or own key names.

        Args:
            state_dict: The tensors.
            config: `LeTsConfig` values. Under the published names those that are not given are read off the shapes;
                own files bring all of them.

        Raises:
            CheckpointError: Names, shapes or values do not make a learngene.
        """
        tensors = {str(key).removeprefix("module."): tensor for key, tensor in state_dict.items()}
        if not is_published(tensors):
            if config is None:
                raise CheckpointError(
                    "LeTs checkpoint: under our own names a learngene needs its config. Name the folder that has "
                    "config.json beside the weights, or pass the config."
                )
            generator = cls.skeleton(LeTsConfig.from_dict(config))
            generator.assign_tensors(tensors)
            return generator
        generator = cls.skeleton(infer_config(tensors, config))
        generator.assign_tensors(from_published(tensors, generator.state_dict(), generator.config))
        return generator

    def to_published(self) -> dict[str, Tensor]:
        """The parameters under the published key names, for the published code; `from_state_dict` reads them back."""
        return to_published(self.state_dict(), self.config)

    @torch.no_grad()
    def reset_gene(self) -> None:
        """Draw learngene and position table anew, by `config.gene_init`."""
        start_gene(self.gene.modules(), self.config.gene_init)
        std = PUBLISHED_STD if self.config.gene_init == "published" else SCALED_POSITION_STD
        nn.init.trunc_normal_(self.pos_embed, std=std)
        if self.cls_token is not None:
            nn.init.trunc_normal_(self.cls_token, std=std)

    @torch.no_grad()
    def reset_transforms(self) -> None:
        """Draw F and G anew, by `config.width_init` and `config.depth_init`; the learngene stays."""
        config = self.config
        for matrix in self.F.parameters():
            if matrix.numel():
                rows, columns = matrix.shape
                matrix.copy_(width_start((rows, columns), config.width_init, config.init_noise))
        is_alternate = config.depth_init == "alternate_noisy"
        scheme = "stackbert_noisy" if is_alternate else config.depth_init
        for block, coefficients in enumerate(self.G):
            # The published code counts layers of the Aux-Net, so with two layers per block all start with the first
            # layer of their pair; "alternate_noisy" counts blocks.
            layer = block if is_alternate else block * config.repeat
            for name in BLOCK_MODULES:
                module = cast(Coefficients, coefficients.get_submodule(name))
                module.weight.copy_(depth_start(layer, scheme, noise=config.init_noise))
                module.bias.copy_(depth_start(layer, scheme, noise=config.init_noise))

    def materialize(
        self,
        width: int | None = None,
        blocks: Sequence[int | LayerSource] | None = None,
        select: Select = "continuous",
        *,
        seed: int = 0,
    ) -> dict[str, Tensor]:
        """Generate the weights of a net; differentiable. Layers of equal source share their tensors.

        Args:
            width: w, a multiple of the head size; None for the Aux-Net's. Below d the first neurons of the learngene
                are taken and F has no part; above D rows of F are used again, so neurons come twice.
            blocks: Per layer its depth block, or a `LayerSource`; None for the Aux-Net's layers.
            select: Which added neurons a net narrower than the Aux-Net takes, see `lets.width`.
            seed: For `select="random"`.

        Returns:
            Logical slot -> tensor, in the precision of the parameters: `pos_embed` (1, N, w), `cls_token` if there is
            one, `patch_embed.proj.weight`, `blocks.0.attn.q.weight` (queries, keys and values apart), `fc_norm.weight`,
            `head.weight`, and so on.

        Raises:
            InitializerConfigError: A width, block or rule that does not exist.
        """
        config = self.config
        width = config.aux_dim if width is None else width
        if width < config.head_dim or width % config.head_dim:
            raise InitializerConfigError(
                f"LeTs: a net of width {width} cannot be generated; expected a multiple of {config.head_dim}, the size "
                "of the learngene's heads."
            )
        sources = layer_sources(config, config.aux_blocks if blocks is None else blocks)
        places = choose_places(config, width, select, self._scored(), seed)
        sides = _Sides(self, width, places.embed, places.attention, places.ffn)
        slots = self._ends(sides, width, places.embed)
        made = self._layers(sides, sorted(set(sources)))
        for layer, source in enumerate(sources):
            slots |= {f"blocks.{layer}.{name}": tensor for name, tensor in made[source].items()}
        return slots

    def _scored(self) -> Scored:
        layers = range(self.config.depth)
        return Scored(
            embed=self.F.emb,
            attention=[self.F.of_layer(layer, kind) for layer in layers for kind in ("q", "k", "v")],
            ffn=[self.F.of_layer(layer, "ffn") for layer in layers],
        )

    def _ends(self, sides: _Sides, width: int, places: Tensor) -> dict[str, Tensor]:
        """What stands before and after the blocks."""
        gene, emb = self.gene, sides.shared
        old = min(width, self.config.embed_dim)
        columns = torch.cat([torch.arange(old), self.config.embed_dim + places]).to(self.device)
        slots = {"pos_embed": self.pos_embed.index_select(2, columns)}
        if self.cls_token is not None:
            slots["cls_token"] = self.cls_token.index_select(2, columns)
        return slots | {
            "patch_embed.proj.weight": emb.out(gene.patch_embed.weight),
            "patch_embed.proj.bias": emb.out(cast(Tensor, gene.patch_embed.bias)),
            "fc_norm.weight": emb.out(gene.fc_norm.weight),
            "fc_norm.bias": emb.out(gene.fc_norm.bias),
            "head.weight": sides.head.into(gene.head.weight),
            "head.bias": gene.head.bias,
        }

    def _layers(self, sides: _Sides, sources: Sequence[LayerSource]) -> dict[LayerSource, dict[str, Tensor]]:
        """Make each layer once, module by module, so that few half-expanded matrices are in memory at a time."""
        made: dict[LayerSource, dict[str, Tensor]] = {source: {} for source in sources}
        for pair, group in itertools.groupby(sources, key=lambda source: source.pair):
            blocks = list(group)
            for fused in _FUSED_MODULES:
                halves = [[self._half_expanded(sides, layer, name) for layer in pair] for name in fused]
                for source in blocks:
                    coefficients = [self._coefficients(source.block, name) for name in fused]
                    for part in ("weight", "bias"):
                        mixtures = [
                            Mixture(getattr(of_module, part), [getattr(half, part) for half in of_layers])
                            for of_module, of_layers in zip(coefficients, halves, strict=True)
                        ]
                        tensors = self._expanded(sides, fused[0], part, mixtures)
                        made[source] |= {f"{name}.{part}": tensor for name, tensor in zip(fused, tensors, strict=True)}
        return made

    def _half_expanded(self, sides: _Sides, layer: int, name: str) -> _Half:
        """A learngene module, expanded on the side whose transform is the layer's own."""
        module = self.gene.get_submodule(f"{layer}.{name}")
        weight, bias = cast(Tensor, module.weight), cast(Tensor, module.bias)
        out, into = _SIDES[name]
        if out != "emb":
            expand = sides.of_layer(layer, out)
            return _Half(expand.out(weight), expand.out(bias))
        return _Half(weight if into is None else sides.of_layer(layer, into).into(weight), bias)

    def _coefficients(self, block: int, name: str) -> Coefficients:
        return cast(Coefficients, self.G[block].get_submodule(name))

    @staticmethod
    def _expanded(sides: _Sides, name: str, part: str, mixtures: Sequence[Mixture]) -> Sequence[Tensor]:
        """Mix layers and then expand by the shared transform: equal to the other order, as that is linear.

        What stands below each other in a fused layer comes as rows of one tensor, which a model with such a layer then
        takes as it is.
        """
        if _SIDES[name][0] == "emb":
            (mixture,) = mixtures
            return [sides.shared.out_of(mixture)]
        if part == "bias":
            return torch.cat([mixture.sum() for mixture in mixtures]).chunk(len(mixtures))
        return sides.shared.into_of(mixtures).chunk(len(mixtures))


class _Half(NamedTuple):
    """Weight and bias of a learngene module, expanded on one side."""

    weight: Tensor
    bias: Tensor


class _Sides:
    """The expansions of one net, by kind of neuron."""

    def __init__(self, generator: LeTsGenerator, width: int, embed: Tensor, attention: Tensor, ffn: Tensor) -> None:
        config = generator.config
        self._transform = generator.F
        kept = min(width, config.embed_dim)
        self._kept = {"attention": kept, "ffn": config.mlp_dim(kept)}
        self._places = {"attention": attention, "ffn": ffn}
        self.shared = Expand(_rows(generator.F.emb, embed), kept)
        self.head = Expand(_rows(generator.F.cls, embed), kept)

    def of_layer(self, layer: int, kind: str) -> Expand:
        axis = "ffn" if kind == "ffn" else "attention"
        return Expand(_rows(self._transform.of_layer(layer, kind), self._places[axis]), self._kept[axis])


def _rows(matrix: Tensor, places: Tensor) -> Tensor:
    """Some rows of a matrix; the first ones, which is the common case, without a copy."""
    count = len(places)
    is_prefix = count <= len(matrix) and torch.equal(places, torch.arange(count))
    return matrix[:count] if is_prefix else matrix.index_select(0, places.to(matrix.device))
