"""How different predicted tensors are: a hypernetwork may emit nearly the same for everything."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_paraminit.evaluation.coverage import find_hypernetwork
from hf_paraminit.evaluation.experiment import Record
from hf_paraminit.evaluation.network_cells import Network, NetworkCell, Predictor, cell_key

# Legend: T tensors of one shape, D elements of each.

MAX_TENSORS = 256  # of one shape; pairs grow with the square


def diversity(predictions: Iterable[Mapping[str, Tensor]]) -> dict[str, float]:
    """Mean cosine distance over all pairs of tensors that have the same shape (LoGAH, arXiv 2405.16287, section 5).

    Args:
        predictions: One part of a state dict per network; pairs are taken within and across networks.

    Returns:
        `all`: mean of |1 - cos| over all pairs; 0 for equal tensors, about 1 for unrelated ones. `kernels`: likewise,
        for tensors of two axes or more. `up_to_sign`: mean of 1 - |cos| over the pairs of `kernels`. `pairs`: their
        number in `all`. Of shapes with more than 256 tensors the first 256 count, and zero tensors not at all. A mean
        over no pairs is left out.
    """
    groups: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
    for prediction in predictions:
        for tensor in prediction.values():
            group = groups[tuple(tensor.shape)]
            if len(group) < MAX_TENSORS and tensor.numel() > 1 and bool(tensor.any()):
                group.append(tensor.detach().float().flatten())
    cosines = {shape: _pair_cosines(torch.stack(group)) for shape, group in groups.items() if len(group) > 1}
    kernels = [values for shape, values in cosines.items() if len(shape) > 1]
    means = {
        "all": [(1 - values).abs() for values in cosines.values()],
        "kernels": [(1 - values).abs() for values in kernels],
        "up_to_sign": [1 - values.abs() for values in kernels],
    }
    found = {name: float(torch.cat(values).mean()) for name, values in means.items() if values}
    return {**found, "pairs": sum(len(values) for values in cosines.values())}


def _pair_cosines(tensors: Tensor) -> Tensor:
    """Cosines (T * (T - 1) / 2,) of the pairs of rows (T, D)."""
    directions = tensors / tensors.norm(dim=1, keepdim=True)
    row, column = torch.triu_indices(len(tensors), len(tensors), offset=1)
    return (directions @ directions.T)[row, column].clamp(-1, 1)


@dataclass(frozen=True, kw_only=True)
class DiversityExperiment:
    """Diversity of what each predictor emits for all networks of a group; a cell's network stands for the group.

    Attributes:
        predictors: By label.
        members: Networks by group.
    """

    predictors: Mapping[str, Predictor]
    members: Mapping[str, Sequence[Network]]

    def key(self, cell: NetworkCell) -> str:
        """Equal for cells that give equal results."""
        predictor = self.predictors[cell.init]
        members = [[network.name, network.identity] for network in self.members[cell.network.group]]
        return cell_key("diversity", cell, {"init": [predictor.init, predictor.digest], "members": members})

    def compute(self, cell: NetworkCell) -> Record:
        """Predict all networks of the group; none is built with weights."""
        ghn = find_hypernetwork(self.predictors[cell.init].init)
        return {"diversity": diversity(_predictions(ghn, self.members[cell.network.group]))}


@torch.no_grad()
def _predictions(ghn: Any, networks: Sequence[Network]) -> Iterator[dict[str, Tensor]]:
    for network in networks:
        with torch.device("meta"):
            module = network.build()
        shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
        yield ghn.predict(ghn.trace(module), shapes)
