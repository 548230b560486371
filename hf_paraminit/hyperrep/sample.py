"""Drawing new codes from the codes of zoo models (arXiv 2209.14733, section 3; arXiv 2406.09997, section 3.3).

The papers describe a kernel density estimate of every latent dimension on its own. The published code seeds each of
them alike, so that all dimensions follow one model: it draws a whole anchor and shifts it. Both are here; the second
is what computes something (`coupling="anchor"`), and `reference_codes` repeats the published draws to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from hf_paraminit.errors import InitializerConfigError

# Legend: A anchors, N new codes, T tokens, z code width.

Method = Literal["kde", "neighbourhood", "uniform", "gaussian"]
Coupling = Literal["anchor", "token", "dim", "shared-noise"]
METHODS: tuple[Method, ...] = get_args(Method)
COUPLINGS: tuple[Coupling, ...] = get_args(Coupling)

BEST_SHARE = 0.3  # "30" in the paper's names: the best 30 % of the zoo
DEFAULT_BANDWIDTH = 0.1  # of the standard deviation over anchors
DEFAULT_COMPONENTS = 3  # of the map that the published neighbourhood sampling draws in
_NUM_NEIGHBOURS = 15  # likewise published
_DIRECTION_EPSILON = 1e-12  # keeps a point that sits on an anchor from dividing by zero

Score = Callable[[Tensor], float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How codes are drawn.

    Attributes:
        method: "kde" around anchors; "neighbourhood": between close anchors; "uniform" in (-1, 1); "gaussian" with the
            anchors' mean and standard deviation.
        coupling: Which parts of a code follow the same anchor in "kde": the whole code ("anchor"), each "token" its
            own, each "dim" its own as the papers say; "shared-noise" is the whole code shifted by one number.
        bandwidth: Of "kde", in standard deviations over the anchors, per token and dimension.
        best_share: Share of the anchors with the highest accuracy that is used; 1 for all.
        components: Principal components of the anchors that "neighbourhood" draws in.
    """

    method: Method = "kde"
    coupling: Coupling = "anchor"
    bandwidth: float = DEFAULT_BANDWIDTH
    best_share: float = 1.0
    components: int = DEFAULT_COMPONENTS

    def __post_init__(self) -> None:
        if self.method not in METHODS or self.coupling not in COUPLINGS:
            raise InitializerConfigError(
                f"Sampling: method={self.method!r}, coupling={self.coupling!r}; expected one of {', '.join(METHODS)} "
                f"and one of {', '.join(COUPLINGS)}."
            )
        if not 0 <= self.bandwidth < float("inf") or not 0 < self.best_share <= 1:
            raise InitializerConfigError(
                f"Sampling: expected a finite bandwidth of at least 0 and a best_share in (0, 1], found "
                f"{self.bandwidth} and {self.best_share}."
            )
        if type(self.components) is not int or self.components < 1:
            raise InitializerConfigError(
                f"Sampling: expected at least 1 whole component of the neighbourhood, found {self.components}."
            )


def best_anchors(accuracies_A: Tensor, share: float = BEST_SHARE) -> Tensor:
    """Indices (ascending) of the anchors at or above the quantile `1 - share` of the accuracies (A,)."""
    return torch.nonzero(accuracies_A >= torch.quantile(accuracies_A.float(), 1 - share)).flatten()


def draw_codes(
    anchors_ATz: Tensor,
    num: int,
    sampling: Sampling,
    generator: torch.Generator,
    *,
    deviation_Tz: Tensor | None = None,
) -> Tensor:
    """Draw `num` codes (N, T, z).

    Args:
        anchors_ATz: (A, T, z) codes of real models, or (A, L) codes of whole networks.
        num: N.
        sampling: How; `best_share` is the caller's to apply, who knows the accuracies.
        generator: Source of all randomness, on the CPU.
        deviation_Tz: Standard deviation over the anchors where it is known already.

    Returns:
        (N, T, z), or (N, L).
    """
    if anchors_ATz.dim() == 2:
        return draw_codes(anchors_ATz[:, None], num, sampling, generator)[:, 0]
    if sampling.method == "uniform":
        return torch.rand((num, *anchors_ATz.shape[1:]), generator=generator) * 2 - 1
    if sampling.method == "neighbourhood":
        return _between_neighbours(anchors_ATz, num, sampling.components, generator)
    if deviation_Tz is None:
        deviation_Tz = anchors_ATz.std(0, correction=0)
    if sampling.method == "gaussian":
        return anchors_ATz.mean(0) + deviation_Tz * torch.randn((num, *deviation_Tz.shape), generator=generator)
    centres_NTz = _centres(anchors_ATz, num, sampling.coupling, generator)
    shape = (num, 1, 1) if sampling.coupling == "shared-noise" else centres_NTz.shape
    return centres_NTz.addcmul_(torch.randn(shape, generator=generator), sampling.bandwidth * deviation_Tz)


def _centres(anchors_ATz: Tensor, num: int, coupling: Coupling, generator: torch.Generator) -> Tensor:
    """The points that the kernels sit on (N, T, z), a new tensor."""
    count, tokens, dims = anchors_ATz.shape
    shapes = {"token": (num, tokens, 1), "dim": (num, tokens, dims)}
    index = torch.randint(count, shapes.get(coupling, (num,)), generator=generator)
    if index.dim() == 1:
        return anchors_ATz[index]
    return anchors_ATz.gather(0, index.expand(num, tokens, dims))


def _between_neighbours(anchors_ATz: Tensor, num: int, components: int, generator: torch.Generator) -> Tensor:
    """Points of a cube in a low-dimensional map of the anchors, and for each the mix of the anchors nearest to it.

    The paper's map is UMAP with its inverse; this one is made of the first principal components, as many as there are
    at most, and the inverse weighs the 15 nearest anchors by their inverse distance.
    """
    flat_AD = anchors_ATz.flatten(1)
    centred_AD = flat_AD - flat_AD.mean(0)
    left_AA, sizes_A, _ = torch.linalg.svd(centred_AD, full_matrices=False)
    plane_AP = left_AA[:, :components] * sizes_A[:components]
    low, high = plane_AP.min(), plane_AP.max()
    points_NP = low + (high - low) * torch.rand((num, plane_AP.shape[1]), generator=generator)
    near = torch.cdist(points_NP, plane_AP).topk(min(_NUM_NEIGHBOURS, len(plane_AP)), largest=False)
    weights_NK = 1 / (near.values + _DIRECTION_EPSILON)
    weights_NK = weights_NK / weights_NK.sum(1, keepdim=True)
    mixed_ND = torch.stack([weights @ flat_AD[rows] for weights, rows in zip(weights_NK, near.indices, strict=True)])
    return mixed_ND.unflatten(1, anchors_ATz.shape[1:])


def reference_codes(
    anchors_ATz: Tensor,
    num: int,
    *,
    mode: Literal["individual", "token", "joint"],
    bandwidth: float = 0.2,
    seed: int = 42,
) -> Tensor:
    """The published draws, number for number: scikit-learn's kernel density sampler, seeded anew for each estimate.

    Args:
        anchors_ATz: (A, T, z) codes, or (A, L) codes of whole networks (there: mode "individual", bandwidth 0.002).
        num: N.
        mode: What one estimate covers: every number ("individual": one anchor and one shift for all), every "token"
            (one anchor, one shift of length z for all tokens), or the whole code ("joint").
        bandwidth: Standard deviation of the kernels.
        seed: Of every estimate.

    Returns:
        (N, T, z), or (N, L).
    """
    if anchors_ATz.dim() == 2:
        return reference_codes(anchors_ATz[:, None], num, mode=mode, bandwidth=bandwidth, seed=seed)[:, 0]
    _, tokens, dims = anchors_ATz.shape
    random = np.random.RandomState(seed)  # the published stream
    rows = (random.uniform(size=num) * len(anchors_ATz)).astype(np.int64)
    shape = {"individual": (num, 1, 1), "token": (num, 1, dims), "joint": (num, tokens, dims)}[mode]
    noise = random.normal(size=shape) * bandwidth
    return (anchors_ATz[torch.from_numpy(rows)].double() + torch.from_numpy(noise)).to(anchors_ATz.dtype)


def rank(codes: Tensor, score: Score) -> tuple[Tensor, Tensor]:
    """Sort codes by score, the highest first.

    Args:
        codes: (N, ...) codes.
        score: Of one code; NaN counts as the lowest.

    Returns:
        codes: in that order.
        scores: (N,), in that order.
    """
    scores = torch.tensor([score(code) for code in codes], dtype=torch.float64).nan_to_num(nan=-torch.inf)
    order = scores.argsort(descending=True, stable=True)
    return codes[order], scores[order]


def subsample(
    anchors_ATz: Tensor, num: int, sampling: Sampling, generator: torch.Generator, *, candidates: int, score: Score
) -> Tensor:
    """SUB: draw candidates, keep the `num` with the highest scores, the best first (SANE, section 3.3)."""
    if candidates < num:
        raise InitializerConfigError(f"Subsampling: {candidates} candidates cannot give {num} codes.")
    return rank(draw_codes(anchors_ATz, candidates, sampling, generator), score)[0][:num]


def bootstrap(
    anchors_ATz: Tensor,
    num: int,
    sampling: Sampling,
    generator: torch.Generator,
    *,
    candidates: int,
    rounds: int,
    score: Score,
) -> Tensor:
    """BOOT: subsample, and let the kept codes be the anchors of the next round (SANE, section 3.3).

    The published code keeps the first codes of the last round instead of the best; here they are sorted.

    Args:
        anchors_ATz: Anchors of the first round.
        num: Codes kept per round.
        sampling: How.
        generator: Source of all randomness.
        candidates: Codes drawn per round.
        rounds: At least 1.
        score: Of one code.

    Returns:
        (num, T, z), the best first.
    """
    if rounds < 1:
        raise InitializerConfigError(f"Bootstrapping: expected at least 1 round, found {rounds}.")
    for _ in range(rounds):
        anchors_ATz = subsample(anchors_ATz, num, sampling, generator, candidates=candidates, score=score)
    return anchors_ATz
