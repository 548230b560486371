"""Where a hypernetwork's training networks come from, and how several such sources mix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from torch import nn

from hf_paraminit.deepnets.genotype import ArchitectureError
from hf_paraminit.graphs.graph import ComputationalGraph


@runtime_checkable
class ArchitectureSource(Protocol):
    """A sequence of networks: pure in its seed and the index, so that any process can make any of them again."""

    def __len__(self) -> int:
        """Number of networks."""
        ...

    def __getitem__(self, index: int) -> nn.Module:
        """Build a network; it declares the images it takes as `expected_input_sz`.

        Parameters may be on the meta device, but only such as the graph has a node for or the output does not need.

        Raises:
            IndexError: There is no network of this number.
        """
        ...

    def graph(self, index: int) -> ComputationalGraph | None:
        """Return the graph of a network if the source knows it; None if the network has to be traced."""
        ...


class Mixture:
    """Several sources as one; which of them an index leads to, and to which of its networks, is drawn.

    Args:
        parts: Sources and their weights, which need not sum to one.
        seed: Of the draws.
        length: Number of networks; by default as many as the sources have together.

    Raises:
        ArchitectureError: There is no source, one of them is empty, or the weights cannot be drawn by.
    """

    def __init__(
        self, parts: Sequence[tuple[ArchitectureSource, float]], *, seed: int = 0, length: int | None = None
    ) -> None:
        weights = np.array([weight for _, weight in parts], dtype=float)
        if not len(parts) or not np.isfinite(weights).all() or (weights < 0).any() or not weights.sum() > 0:
            raise ArchitectureError(
                f"A mixture needs sources with finite weights of at least 0, one of them positive; found "
                f"{weights.tolist()}."
            )
        if any(not len(source) for source, _ in parts):
            raise ArchitectureError("A mixture cannot draw from a source without networks; leave it out.")
        self.sources = [source for source, _ in parts]
        self.weights = weights / weights.sum()
        self.seed = seed
        self._length = sum(map(len, self.sources)) if length is None else length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> nn.Module:
        """Build the network that this index leads to."""
        source, position = self.locate(index)
        return source[position]

    def graph(self, index: int) -> ComputationalGraph | None:
        """Return its graph if its source knows it."""
        source, position = self.locate(index)
        return source.graph(position)

    def locate(self, index: int) -> tuple[ArchitectureSource, int]:
        """Return the source that an index leads to, and the number of the network there."""
        rng = np.random.default_rng([self.seed, checked_index(index, self._length)])
        source = self.sources[int(rng.choice(len(self.sources), p=self.weights))]
        return source, int(rng.integers(len(source)))


def checked_index(index: int, length: int) -> int:
    """Return the index, counted from the end where it is negative.

    Raises:
        IndexError: It lies outside.
    """
    if not -length <= index < length:
        raise IndexError(f"There is no network {index}: {length} networks have numbers 0 to {length - 1}.")
    return index % length
