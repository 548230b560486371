"""Graph hypernetwork: reads computational graphs, emits the weights of the networks they describe."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from functools import partial
from itertools import takewhile
from typing import Any, Literal, Self, cast

import torch
from torch import Tensor, nn

from hf_paraminit.ghn.checkpoint import canonical_state_dict, infer_config
from hf_paraminit.ghn.config import GHNConfig
from hf_paraminit.ghn.decoder import KernelDecoder, ScaleDecoder, VectorDecoder
from hf_paraminit.ghn.gated_gnn import GatedGNN, MLPNetwork
from hf_paraminit.ghn.graphormer import Graphormer
from hf_paraminit.ghn.low_rank import LowRankDecoder
from hf_paraminit.ghn.noise import standard_start
from hf_paraminit.ghn.shape_code import ShapeEncoder, nearest_bucket
from hf_paraminit.ghn.slots import Role, Slot, coded_shape, iter_slots
from hf_paraminit.ghn.tiling import (
    fan_in_scale,
    position_table,
    squash_bias,
    squash_norm_weight,
    tile,
)
from hf_paraminit.graphs.batch import GraphBatch
from hf_paraminit.graphs.cache import GraphCache
from hf_paraminit.graphs.graph import ComputationalGraph
from hf_paraminit.graphs.primitives import PRIMITIVES
from hf_paraminit.graphs.trace import trace
from hf_paraminit.io.dispatch import DeviceMap, execution_device, is_spread, spread
from hf_paraminit.io.pretrained import PretrainedPredictor

# Legend: B networks, N nodes (padded), V nodes of all networks, d hidden width, M longest decoded vector.

Shapes = Mapping[str, tuple[int, ...]]

GRAPHS = GraphCache()

_GRAPH_NETWORKS: dict[str, type[nn.Module]] = {"graphormer": Graphormer, "gated": GatedGNN, "mlp": MLPNetwork}
_DECODERS: list[type[nn.Module]] = [KernelDecoder, LowRankDecoder, ScaleDecoder]
_WHOLE_MODULES: list[type[nn.Module]] = [ShapeEncoder, *_GRAPH_NETWORKS.values(), *_DECODERS]
_BLOCK_ROLES = (Role.KERNEL, Role.POSITION_TABLE, Role.CLASS_WEIGHT)
_CLASS_ROLES = (Role.CLASS_WEIGHT, Role.CLASS_BIAS)
_ZERO_ROLES = (Role.BIAS, Role.CLASS_BIAS)


class GHN(PretrainedPredictor[GHNConfig], tags=["graph-hypernetwork"], pipeline_tag="graph-ml"):
    """GHN-3 (arXiv 2303.04143), GHN-2, GHN-1 or the MLP baseline (arXiv 2110.13100), with the published key names.

    Args:
        config: Architecture.
    """

    config_class = GHNConfig

    def __init__(self, config: GHNConfig) -> None:
        super().__init__(config)
        dim = config.hidden_dim
        self.ln = nn.LayerNorm(dim) if config.layernorm else nn.Identity()
        self.embed = nn.Embedding(len(PRIMITIVES), dim)
        self.shape_enc = ShapeEncoder(config)
        self.gnn = _GRAPH_NETWORKS[config.graph_network](config)
        self.decoder: KernelDecoder | LowRankDecoder | ScaleDecoder
        if config.decodes == "scales":
            self.decoder = ScaleDecoder(config)
        else:
            self.decoder = KernelDecoder(config) if config.low_rank is None else LowRankDecoder(config)
            self.decoder_1d = VectorDecoder(config)
            self.bias_class = nn.Sequential(nn.ReLU(), nn.Linear(config.vector_dim, config.num_classes))
        if config.graph_network == "graphormer":
            self._reset_parameters()

    @classmethod
    def new(cls, config: GHNConfig, *, seed: int) -> Self:
        """Build an untrained network from a seed, leaving torch's random state as it is."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(config)

    def _reset_parameters(self) -> None:
        """Draw the published start of GHN-3: small last layers and tables of unit norm per row."""
        if not isinstance(self.decoder, ScaleDecoder):
            for layers in (self.decoder_1d.fc, *self.decoder.last_layers):
                _shrink_last(layers)
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=module.embedding_dim**-0.5)

    def with_new_classifier(self, num_classes: int, *, seed: int) -> Self:
        """Copy, but for the maps that emit class layers: they are drawn anew and know no training classes.

        Args:
            num_classes: Rows of the new decoded classifier. The class count is also an entry of the shape code, whose
                table is carried over entry by entry (the new count takes the row of the nearest old entry).
            seed: Of the new values.
        """
        fresh = self.new(dataclasses.replace(self.config, num_classes=num_classes), seed=seed)
        drawn = ("decoder.class_layer_predictor.", "bias_class.")
        state = {name: tensor for name, tensor in self.state_dict().items() if not name.startswith(drawn)}
        table, old = self.shape_enc.embed_channel.weight.detach(), self.shape_enc.channels
        rows = [nearest_bucket(channels, old) for channels in fresh.shape_enc.channels]
        state["shape_enc.embed_channel.weight"] = table[[*rows, len(old)]]  # the last row stands for "no shape"
        missing = fresh.load_state_dict(state, strict=False).missing_keys
        assert all(name.startswith(drawn) for name in missing)
        return fresh

    @property
    def paraminit_type(self) -> str:
        """Registered name of the initializer that such a network serves."""
        if self.config.graph_network == "gated":
            return "ghn2" if self.config.virtual_edge_cutoff > 1 else "ghn1"
        return {"graphormer": "ghn3", "mlp": "ghn-mlp"}[self.config.graph_network]

    @property
    def device(self) -> torch.device:
        """Device of the parameters; of a network that is spread, where it starts to compute."""
        return execution_device(self.embed)

    def placed(self, device: torch.device, decoder_dtype: torch.dtype = torch.float32) -> Self:
        """Return this network if it is like that already, else a copy; it never moves or changes itself.

        Args:
            device: Where the copy goes. A network that is spread over several devices stays where it is.
            decoder_dtype: Of the decoder of kernels, which is nearly all of the memory. The node states, the graph
                network and the decoder of vectors are float32 whatever it is.
        """
        if is_spread(self) or (self.device == device and self.decoder.dtype == decoder_dtype):
            return self
        copy = self.skeleton(self.config)
        copy.decoder.to(decoder_dtype)
        state = self.state_dict()
        # Nothing is shared, since one small tensor would keep the whole file mapped that the weights were read from.
        placed = {name: state[name].to(device, like.dtype, copy=True) for name, like in copy.state_dict().items()}
        copy.load_state_dict(placed, assign=True)
        copy.metadata, copy.provenance = self.metadata, self.provenance
        return copy

    def spread(self, device_map: DeviceMap = "auto") -> Self:
        """Spread this network over several devices, CPU and disk included, where Accelerate runs it from then on.

        Args:
            device_map: "auto", or a device per submodule.

        Returns:
            This network.

        Raises:
            InitializerConfigError: A map that does not fit.
        """
        return spread(self, device_map, _WHOLE_MODULES)

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Tensor], config: Mapping[str, Any] | None = None) -> Self:
        """Build from tensors under published or own key names.

        Args:
            state_dict: The tensors; float32 ones are used without a copy.
            config: `GHNConfig` values or the published argument names; None infers them from the shapes.

        Raises:
            CheckpointError: Names, shapes or values do not make a hypernetwork.
        """
        tensors = canonical_state_dict(state_dict)
        ghn = cls.skeleton(GHNConfig.from_dict(config) if config else infer_config(tensors))
        ghn.assign_tensors(tensors)
        return ghn

    def trace(
        self,
        network: nn.Module,
        *,
        input_size: int | Sequence[int] | None = None,
        attention: Literal["explicit", "fused"] = "explicit",
        mode: Literal["auto", "compat", "native"] = "auto",
        example_inputs: Any = None,
    ) -> ComputationalGraph:
        """Trace a network into the graph that this hypernetwork reads. Arguments as in `hf_paraminit.trace`.

        "auto" keeps to the kind of graph that hypernetworks were trained on wherever it does the network justice; those
        that decode scales learn on native graphs. A network that equals one traced before in this process gets the same
        graph.
        """
        cutoff = self.config.virtual_edge_cutoff
        if mode == "auto" and self.config.decodes == "scales":
            mode = "native"
        run = partial(
            trace,
            network,
            input_size=input_size,
            attention=attention,
            mode=mode,
            virtual_edge_cutoff=cutoff,
            example_inputs=example_inputs,
        )
        if example_inputs is not None:
            return run()
        size = tuple(input_size) if isinstance(input_size, Sequence) else input_size
        return GRAPHS.get(network, (size, attention, mode, cutoff), run)

    def predict(
        self,
        graph: ComputationalGraph,
        shapes: Shapes,
        *,
        names: Container[str] | None = None,
        predict_class_layers: bool = True,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Predict the parameters of one network. Differentiable unless called under `no_grad`.

        Args:
            graph: Computational graph of the network.
            shapes: Shape of each of its parameters, by name.
            names: Parameters to predict; None means all that the graph covers.
            predict_class_layers: Whether to predict the final classifier.
            generator: CPU generator for the rows of position tables that stand for class tokens, which None leaves 0;
                of a network that decodes scales, for all values, which None takes from a fixed seed.

        Returns:
            Per name a tensor of the network's shape, a part of its state dict; float32, but what the decoder of
            kernels gives has its dtype.
        """
        (prediction,) = self.predict_batch(
            [graph],
            [shapes],
            names=[names] if names is not None else None,
            predict_class_layers=predict_class_layers,
            generator=generator,
        )
        return prediction

    def predict_batch(
        self,
        graphs: Sequence[ComputationalGraph],
        shapes: Sequence[Shapes],
        *,
        names: Sequence[Container[str]] | None = None,
        predict_class_layers: bool = True,
        generator: torch.Generator | None = None,
    ) -> list[dict[str, Tensor]]:
        """Predict a meta-batch of networks; equals predicting each alone. Arguments as in `predict`, per network."""
        states = self.embed_nodes(graphs, shapes)
        slots = [
            slot
            for slot in _slots_of(graphs, shapes)
            if (names is None or slot.name in names[slot.graph])
            and (predict_class_layers or slot.role not in _CLASS_ROLES)
        ]
        if isinstance(self.decoder, ScaleDecoder):
            return self._scale(states, slots, [_shared_prefix(graph.parameter_names) for graph in graphs], generator)
        # Published checkpoints were trained with float32 decoders even under automatic mixed precision.
        with torch.autocast(states.device.type, enabled=False):
            return self._decode(states.float(), slots, len(graphs), generator)

    def embed_nodes(self, graphs: Sequence[ComputationalGraph], shapes: Sequence[Shapes]) -> Tensor:
        """Return (V, d) node states after the graph network and its final norm, padding dropped."""
        batch = GraphBatch.from_graphs(graphs, cutoff=self.config.virtual_edge_cutoff)
        codes = torch.zeros(*batch.primitives.shape, 4, dtype=torch.int64)
        for row, (graph, network_shapes) in enumerate(zip(graphs, shapes, strict=True)):
            node_codes = [self.shape_enc.code(shape) for shape in _node_shapes(graph, network_shapes)]
            codes[row, : len(graph)] = torch.tensor(node_codes)
        batch, codes = batch.to(self.device), codes.to(self.device)
        shape_features = self.shape_enc(codes.flatten(0, 1)).view(*batch.primitives.shape, -1)
        states = self.gnn(self.embed(batch.primitives) + shape_features.to(self.device), batch.distances, batch.mask)
        return self.ln(states[batch.mask.to(states.device)])

    def predict_scales(self, graphs: Sequence[ComputationalGraph], shapes: Sequence[Shapes]) -> list[dict[str, Tensor]]:
        """Predict the natural logarithm of the factor of every tensor that starts from more than zeros.

        Returns:
            Per network and name a scalar. Differentiable unless called under `no_grad`.
        """
        assert isinstance(self.decoder, ScaleDecoder)
        slots = _slots_of(graphs, shapes)
        logarithms = self.decoder(self.embed_nodes(graphs, shapes), slots)
        scales: list[dict[str, Tensor]] = [{} for _ in graphs]
        for slot, logarithm in zip(slots, logarithms, strict=True):
            if slot.role not in _ZERO_ROLES:
                scales[slot.graph][slot.name] = logarithm
        return scales

    def _scale(
        self, states: Tensor, slots: Sequence[Slot], prefixes: Sequence[str], generator: torch.Generator | None
    ) -> list[dict[str, Tensor]]:
        """Draw the standard start of every slot and multiply it; a prefix that a network's names share is ignored."""
        seed = 0 if generator is None else int(torch.randint(2**62, (), generator=generator))
        factors = cast(ScaleDecoder, self.decoder)(states, slots).exp()
        predictions: list[dict[str, Tensor]] = [{} for _ in prefixes]
        for slot, factor, scale in zip(slots, factors.unbind(), factors.tolist(), strict=True):
            start = partial(standard_start, slot, seed, prefixes[slot.graph])
            values = start().to(factor.device) * factor if factor.requires_grad else start(scale).to(factor.device)
            predictions[slot.graph][slot.name] = values
        return predictions

    def _decode(
        self, states: Tensor, slots: Sequence[Slot], num_networks: int, generator: torch.Generator | None
    ) -> list[dict[str, Tensor]]:
        block_slots = [slot for slot in slots if slot.role in _BLOCK_ROLES]
        blocks = self.decoder(states, block_slots) if block_slots else {}
        vectors = self._decode_vectors(states, [slot for slot in slots if slot.role not in _BLOCK_ROLES])
        predictions: list[dict[str, Tensor]] = [{} for _ in range(num_networks)]
        for slot in slots:
            predictions[slot.graph][slot.name] = (
                self._fit_block(blocks.pop(slot), slot, generator)
                if slot.role in _BLOCK_ROLES
                else self._fit_vector(vectors[slot.role][slot.node], slot)
            )
        return predictions

    def _decode_vectors(self, states: Tensor, slots: Sequence[Slot]) -> dict[Role, dict[int, Tensor]]:
        """Return per role and node a vector of length M (K for class biases)."""
        vectors: dict[Role, dict[int, Tensor]] = defaultdict(dict)
        nodes = sorted({slot.node for slot in slots})
        if not nodes:
            return vectors
        decoded = self.decoder_1d(states[torch.tensor(nodes, device=states.device)])
        for role, row in ((Role.NORM_WEIGHT, 0), (Role.BIAS, 1)):
            vectors[role] = dict(zip(nodes, decoded[:, row], strict=True))
        for slot in slots:
            if slot.role is Role.CLASS_BIAS:
                vectors[slot.role][slot.node] = self.bias_class(vectors[Role.BIAS][slot.node])
        return vectors

    def _fit_block(self, block: Tensor, slot: Slot, generator: torch.Generator | None) -> Tensor:
        """Scale the small decoded block, then lay it out in the target's shape (one large write)."""
        if slot.role is Role.POSITION_TABLE:
            return position_table(block, slot.shape, generator)
        if self.config.weight_norm:
            block = block * fan_in_scale(slot.shape)
        if len(slot.shape) == 5:
            return self._inflate(block, slot.shape)
        return tile(block.flatten(len(slot.shape) - 1) if len(slot.shape) < block.dim() else block, slot.shape)

    def _inflate(self, block: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Repeat a 2-D kernel along the depth of a 3-D one, as I3D does (arXiv 1705.07750, section 2).

        The fan-in scale counts the depth already; unscaled kernels are divided by it.
        """
        scaled = block if self.config.weight_norm else block / shape[2]
        return tile(scaled.unsqueeze(2), shape)

    def _fit_vector(self, vector: Tensor, slot: Slot) -> Tensor:
        if len(slot.shape) > 1:  # a 3-D tensor that is no position table: only its first axis is decoded
            scale = fan_in_scale(slot.shape) if self.config.weight_norm else 1.0
            return tile((vector * scale).view(-1, *(1,) * (len(slot.shape) - 1)), slot.shape)
        if self.config.weight_norm:
            squash = squash_norm_weight if slot.role is Role.NORM_WEIGHT else squash_bias
            vector = squash(vector)
        return tile(vector, slot.shape)


def _shared_prefix(names: Sequence[str]) -> str:
    """What all names begin with, up to a dot: "module." of a wrapped network."""
    modules = (name.split(".")[:-1] for name in names)
    shared = takewhile(lambda level: len(set(level)) == 1, zip(*modules, strict=False))
    return "".join(f"{level[0]}." for level in shared)


def _shrink_last(layers: nn.Sequential) -> None:
    linear = cast(nn.Linear, layers[-1])
    with torch.no_grad():
        linear.weight.div_(5)  # published constant
        linear.bias.zero_()


def _slots_of(graphs: Sequence[ComputationalGraph], shapes: Sequence[Shapes]) -> list[Slot]:
    slots: list[Slot] = []
    offset = 0
    for index, (graph, network_shapes) in enumerate(zip(graphs, shapes, strict=True)):
        slots.extend(iter_slots(graph, network_shapes, graph_index=index, offset=offset))
        offset += len(graph)
    return slots


def _node_shapes(graph: ComputationalGraph, shapes: Shapes) -> list[tuple[int, ...] | None]:
    return [coded_shape(node, shapes) for node in graph.nodes]
