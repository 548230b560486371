"""DeepNets-1M networks: a stem, cells that repeat a genotype, and a classifier (arXiv 2110.13100, section 3).

The modules hold no state besides parameters and batch-norm buffers and never read values, so a network can be built
under `torch.device("meta")` and run with `torch.func.functional_call` on predicted parameters. Branches that the logits
do not depend on keep their parameters, as in the published networks, but are never run, so these may stay on meta.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from hf_paraminit.deepnets.genotype import NUM_INPUT_STATES, ArchitectureError, Genotype, reduction_cells
from hf_paraminit.deepnets.operations import (
    FactorizedReduce,
    Subsample,
    make_norm,
    make_operation,
    pointwise_block,
)

IMAGENET_SIDE = 224
CIFAR_SIDE = 32


class PosEnc(nn.Module):
    """Learned position encoding, added to a feature map of one fixed size.

    Args:
        channels: width C.
        side: height and width of the map.
    """

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        # Standard deviation of ViT's position table (arXiv 2010.11929).
        self.weight = nn.Parameter(torch.empty(1, channels, side, side).normal_(std=0.02))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, side, side) to the same shape."""
        return x + self.weight


class Cell(nn.Module):
    """One cell: two inputs, steps of two operations each, the chosen states concatenated.

    Args:
        genotype: the pair of cells this one is taken from.
        before_last_channels: width of the output of the cell before the last, or of the stem.
        last_channels: width of the output of the last cell, or of the stem.
        channels: width inside the cell; its output has this width times the number of concatenated states.
        is_reduction: take the reduction cell, whose operations on the two inputs halve the resolution.
        follows_reduction: the last cell was a reduction, so the first input is twice as large as the second.
        is_vit: keep the resolution throughout.
        norm: see `operations.make_norm`.
        preproc: adapt the width of both inputs with 1x1 convolutions; without it they must be `channels` wide.
        cell_index: position in the network.
    """

    def __init__(
        self,
        genotype: Genotype,
        before_last_channels: int,
        last_channels: int,
        channels: int,
        *,
        is_reduction: bool,
        follows_reduction: bool,
        is_vit: bool,
        norm: str | None,
        preproc: bool,
        cell_index: int,
    ) -> None:
        super().__init__()
        self._cell_ind = cell_index
        self.connections, self.concat = genotype.cell(is_reduction=is_reduction)
        self._live_states = genotype.live_states(is_reduction=is_reduction)
        shrink_first = follows_reduction and not is_vit
        self.preprocess0: nn.Module
        self.preprocess1: nn.Module
        if not preproc:
            self.preprocess0 = Subsample(2 if shrink_first else 1)
            self.preprocess1 = nn.Identity()
        else:
            adapt_first = FactorizedReduce if shrink_first else pointwise_block
            self.preprocess0 = adapt_first(before_last_channels, channels, norm)
            self.preprocess1 = pointwise_block(last_channels, channels, norm)
        self._ops = nn.ModuleList()
        for operation, state in self.connections:
            halves = is_reduction and not is_vit and state < NUM_INPUT_STATES
            self._ops.append(make_operation(operation, channels, 2 if halves else 1, norm))
        self.out_channels = channels * len(self.concat)

    def forward(self, before_last: Tensor | None, last: Tensor | None, drop_path_rate: float = 0.0) -> Tensor | None:
        """Map two feature maps (B, C, H, W) to the cell's output; None stands for a map that nothing reaches.

        Args:
            before_last: Output of the cell before the last.
            last: Output of the last cell.
            drop_path_rate: Share of the images for which the output of an operation counts as zero.
        """
        states = [
            None if before_last is None or 0 not in self._live_states else self.preprocess0(before_last),
            None if last is None or 1 not in self._live_states else self.preprocess1(last),
        ]
        for first in range(0, len(self._ops), 2):
            is_live = len(states) in self._live_states
            states.append(self._run_step(first, states, drop_path_rate) if is_live else None)
        return _concatenate([states[state] for state in self.concat])

    def _run_step(self, first: int, states: list[Tensor | None], drop_path_rate: float) -> Tensor | None:
        return _add(*(self._apply_connection(place, states, drop_path_rate) for place in (first, first + 1)))

    def _apply_connection(self, position: int, states: list[Tensor | None], drop_path_rate: float) -> Tensor | None:
        state, operation = states[self.connections[position][1]], self._ops[position]
        output = None if state is None else operation(state)
        if output is None or not drop_path_rate or isinstance(operation, nn.Identity):
            return output
        return _drop_path(output, drop_path_rate)


def _drop_path(output: Tensor, rate: float) -> Tensor:
    """Set the maps (B, C, H, W) of some images to zero and enlarge the others so that the mean stays (1605.07648)."""
    is_kept = output.new_empty(len(output), 1, 1, 1).bernoulli_(1 - rate)
    return output * is_kept / (1 - rate)


def _add(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return first + second


def _concatenate(outputs: list[Tensor | None]) -> Tensor | None:
    """Join states over channels; those that nothing reaches count as zero."""
    existing = next((output for output in outputs if output is not None), None)
    if existing is None or len(outputs) == 1:
        return existing
    return torch.cat([torch.zeros_like(existing) if output is None else output for output in outputs], dim=1)


class AuxiliaryHead(nn.Module):
    """Second classifier on the features after the last reduction, used in training only (arXiv 1409.4842).

    Args:
        channels: width of the features.
        num_classes: number of classes.
        side: height and width of the features: 7 for ImageNet; 8 or 4 for CIFAR.
        norm: see `operations.make_norm`.
        is_imagenet_input: which of the two published variants to build.

    Raises:
        ArchitectureError: the features have another size.
    """

    def __init__(
        self, channels: int, num_classes: int, side: int, norm: str | None, *, is_imagenet_input: bool
    ) -> None:
        super().__init__()
        pools = {7: (5, 2)} if is_imagenet_input else {8: (5, 3), 4: (2, 2)}  # side: (kernel, stride), to 2x2
        if side not in pools:
            raise ArchitectureError(
                f"The auxiliary head reads feature maps of side {' or '.join(map(str, pools))}; this network has side "
                f"{side} after its last reduction. Build it with auxiliary=False."
            )
        kernel, stride = pools[side]
        self.features = nn.Sequential(
            nn.ReLU(),
            nn.AvgPool2d(kernel, stride=stride, count_include_pad=False),
            nn.Conv2d(channels, 128, 1, bias=False),
            make_norm(norm, 128),
            nn.ReLU(),
            nn.Conv2d(128, 768, 2, bias=False),
            make_norm(None if is_imagenet_input else norm, 768),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(768, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map features (B, C, side, side) to logits (B, num_classes)."""
        return self.classifier(self.features(x).flatten(1))


class DeepNetsNetwork(nn.Module):
    """An image classifier described by a genotype and a few numbers.

    Args:
        C: width of the first cells.
        num_classes: number of classes.
        genotype: the two cells, as an object or in its JSON form.
        n_cells: number of cells.
        ks: kernel side of the first convolution (not used by vision transformers).
        is_imagenet_input: build for 224x224 images rather than 32x32.
        stem_pool: max-pool after the stem of type 0.
        stem_type: 0 for one convolution, 1 for a stem whose two inputs to the first cell differ in resolution.
        imagenet_stride: stride of the first convolution of stem type 0 on 224x224 images.
        is_vit: build a patch-embedding stem with position encoding and keep the resolution; None to infer it from
            the genotype.
        norm: None for no normalisation; names that start with "bn" for batch norm, with running statistics only if
            they contain "track".
        preproc: adapt the inputs of each cell with 1x1 convolutions.
        C_mult: factor on the width at each reduction cell.
        fc_layers: linear layers in the classifier; 0 and 1 both mean one.
        fc_dim: width between them.
        glob_avg: average the features over space before the classifier rather than flattening them.
        auxiliary: add an auxiliary classifier after the second reduction.

    Attributes:
        drop_path_rate: share of the images for which an operation of a cell is left out in training mode; identities
            never are. DARTS raises it from 0 to 0.2 over the run.

    Raises:
        ArchitectureError: arguments that contradict each other, or a genotype through which no path leads.
    """

    def __init__(
        self,
        C: int,
        num_classes: int,
        genotype: Genotype | Mapping[str, Any],
        n_cells: int,
        ks: int = 3,
        is_imagenet_input: bool = True,
        stem_pool: bool = False,
        stem_type: int = 0,
        imagenet_stride: int = 4,
        is_vit: bool | None = None,
        norm: str | None = "bn-track",
        preproc: bool = True,
        C_mult: int = 2,
        fc_layers: int = 0,
        fc_dim: int = 0,
        glob_avg: bool = True,
        auxiliary: bool = False,
    ) -> None:
        super().__init__()
        self.drop_path_rate = 0.0
        genotype = genotype if isinstance(genotype, Genotype) else Genotype.from_dict(genotype)
        check_arguments(genotype, n_cells, stem_type, preproc, C_mult, fc_layers, fc_dim)
        self.genotype = genotype
        self.expected_input_sz = IMAGENET_SIDE if is_imagenet_input else CIFAR_SIDE
        self._n_cells = n_cells
        self._auxiliary_cell = 2 * n_cells // 3
        roots = {n_cells - 1, self._auxiliary_cell} if auxiliary else {n_cells - 1}
        self._live_cells = genotype.live_cells(n_cells, roots)
        self._stem_type = stem_type
        self._is_vit = genotype.has_attention if is_vit is None else is_vit
        self._glob_avg = glob_avg

        if self._is_vit:
            stem_channels, side = self._build_patch_stem(C, is_imagenet_input)
        elif stem_type == 0:
            stride = imagenet_stride if is_imagenet_input else 1
            # Published CIFAR networks widen this stem, as DARTS does.
            stem_channels = 3 * C if preproc and not is_imagenet_input else C
            side = self._build_single_stem(stem_channels, ks, stride, norm, stem_pool)
        else:
            stem_channels, side = C, self._build_double_stem(C, ks, 2 if is_imagenet_input else 1, norm)
        cells = self._build_cells(stem_channels, C, C_mult, norm, preproc)
        self.cells = nn.ModuleList(cells)
        if not self._is_vit:
            side //= 2 ** len(reduction_cells(n_cells))

        self.auxiliary_head: AuxiliaryHead | None = None
        if auxiliary:
            channels = cells[self._auxiliary_cell].out_channels
            self.auxiliary_head = AuxiliaryHead(channels, num_classes, side, norm, is_imagenet_input=is_imagenet_input)
        features = cells[-1].out_channels * (1 if glob_avg else side**2)
        self.classifier = _make_classifier(features, num_classes, fc_layers, fc_dim)

    def _build_patch_stem(self, channels: int, is_imagenet_input: bool) -> tuple[int, int]:
        """Add the stem of vision transformers; return the width and side of its output."""
        patch, padding = (16, 0) if is_imagenet_input else (3, 1)
        side = (self.expected_input_sz + 2 * padding - patch) // patch + 1
        self.stem0: nn.Module = nn.Conv2d(3, channels, patch, stride=patch, padding=padding, bias=False)
        self.pos_enc = PosEnc(channels, side)
        return channels, side

    def _build_single_stem(self, channels: int, ks: int, stride: int, norm: str | None, pool: bool) -> int:
        """Add the stem of type 0; return the side of its output."""
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels, ks, stride=stride, padding=ks // 2, bias=False),
            make_norm(norm, channels),
            nn.MaxPool2d(3, stride=2, padding=1) if pool else nn.Identity(),
        )
        return self.expected_input_sz // (2 * stride if pool else stride)

    def _build_double_stem(self, channels: int, ks: int, stride: int, norm: str | None) -> int:
        """Add the stem of type 1; return the side of the second, smaller output."""
        self.stem0 = nn.Sequential(
            nn.Conv2d(3, channels // 2, ks, stride=stride, padding=ks // 2, bias=False),
            make_norm(norm, channels // 2),
            nn.ReLU(),
            nn.Conv2d(channels // 2, channels, 3, stride=stride, padding=1, bias=False),
            make_norm(norm, channels),
        )
        self.stem1 = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, stride=2, padding=1, bias=False),
            make_norm(norm, channels),
        )
        return self.expected_input_sz // (2 * stride**2)

    def _build_cells(
        self, stem_channels: int, channels: int, C_mult: int, norm: str | None, preproc: bool
    ) -> list[Cell]:
        cells: list[Cell] = []
        reductions = reduction_cells(self._n_cells)
        follows_reduction = self._stem_type == 1
        before_last, last = stem_channels, stem_channels
        for index in range(self._n_cells):
            is_reduction = index in reductions
            if is_reduction:
                channels *= C_mult
            cell = Cell(
                self.genotype,
                before_last,
                last,
                channels,
                is_reduction=is_reduction,
                follows_reduction=follows_reduction,
                is_vit=self._is_vit,
                norm=norm,
                preproc=preproc,
                cell_index=index,
            )
            cells.append(cell)
            before_last, last, follows_reduction = last, cell.out_channels, is_reduction
        return cells

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Classify images.

        Args:
            images: (B, 3, S, S) with S = `expected_input_sz`.

        Returns:
            Logits (B, num_classes), and in training mode those of the auxiliary head if there is one, else None.
        """
        before_last, last = self._stem_outputs(images)
        auxiliary_logits = None
        drop_path_rate = self.drop_path_rate if self.training else 0.0
        for index, cell in enumerate(self.cells):
            output = cell(before_last, last, drop_path_rate) if index in self._live_cells else None
            before_last, last = last, output
            if self.auxiliary_head is not None and self.training and index == self._auxiliary_cell and last is not None:
                auxiliary_logits = self.auxiliary_head(last)
        assert last is not None, "the constructor refuses genotypes that are not connected"
        if self._glob_avg:
            last = nn.functional.adaptive_avg_pool2d(last, 1)
        return self._classify(last.flatten(1)), auxiliary_logits

    def _stem_outputs(self, images: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return the two inputs of the first cell; None for a second one that no cell needs."""
        if self._is_vit:
            features = self.pos_enc(self.stem0(images))
            return features, features
        if self._stem_type == 0:
            features = self.stem(images)
            return features, features
        features = self.stem0(images)
        return features, self.stem1(features) if -1 in self._live_cells else None

    def _classify(self, features: Tensor) -> Tensor:
        # Outside autocast: features of networks with predicted parameters can exceed the range of half precision.
        device = features.device.type
        can_autocast = torch.amp.is_autocast_available(device)
        with torch.autocast(device, enabled=False) if can_autocast else nullcontext():
            return self.classifier(features.to(next(self.classifier.parameters()).dtype))


def check_arguments(
    genotype: Genotype, n_cells: int, stem_type: int, preproc: bool, C_mult: int, fc_layers: int, fc_dim: int
) -> None:
    """Raise `ArchitectureError` for arguments of `DeepNetsNetwork` that contradict each other."""
    if n_cells < 1:
        raise ArchitectureError(f"A network needs at least one cell; found n_cells={n_cells}.")
    if stem_type not in (0, 1):
        raise ArchitectureError(f"stem_type must be 0 or 1; found {stem_type!r}.")
    if not preproc and (C_mult > 1 or not genotype.has_single_output_state):
        raise ArchitectureError(
            "Without preprocessing all cells must be equally wide, so C_mult must be 1 and each cell must put out one "
            f"state; found C_mult={C_mult}, normal_concat={genotype.normal_concat}, "
            f"reduce_concat={genotype.reduce_concat}. Pass preproc=True."
        )
    if fc_layers > 1 and fc_dim < 1:
        raise ArchitectureError(f"{fc_layers} classifier layers need a width between them; found fc_dim={fc_dim}.")
    if not genotype.is_connected(n_cells):
        raise ArchitectureError(
            f"With {n_cells} cells, the 'none' operations of the genotype cut every path from the image to the "
            "classifier. Use another genotype or another number of cells."
        )


def _make_classifier(features: int, num_classes: int, num_layers: int, hidden: int) -> nn.Sequential:
    num_hidden = max(num_layers, 1) - 1
    layers: list[nn.Module] = []
    for _ in range(num_hidden):
        layers += [nn.Linear(features, hidden), nn.ReLU(), nn.Dropout(0.5)]
        features = hidden
    return nn.Sequential(*layers, nn.Linear(features, num_classes))
