"""The course of an As-ViT search, and the series that growth makes of a topology."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hf_paraminit.plots.figure import COLORS, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REWARD, BASELINE, ENTROPY, PARAMETERS = COLORS[6], COLORS[0], COLORS[1], COLORS[6]


def draw_search(
    rewards: Sequence[float],
    baselines: Sequence[float],
    entropies: Sequence[float],
    failed: Sequence[int],
    *,
    best: str,
) -> Figure:
    """Draw reward and entropy over the steps of a search.

    Args:
        rewards: Of each step.
        baselines: Moving average of the rewards.
        entropies: Of the policy before each step, in nats.
        failed: Steps whose candidate had no score.
        best: String of the topology that the search returned, for the heading.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    figure, axes = new_figure(7.5, 4.2, title=f"Search, result {best}")
    steps = range(len(rewards))
    axes.scatter(steps, rewards, s=8, color=REWARD, alpha=0.5, linewidths=0, label="reward")
    axes.plot(steps, baselines, color=BASELINE, linewidth=1.6, label="moving average")
    if failed:
        axes.scatter(failed, [rewards[step] for step in failed], s=28, color=ENTROPY, marker="x", label="failed")
    axes.set(xlabel="step", ylabel="reward (change of the scores)")
    axes.grid(alpha=0.3)
    right = axes.twinx()
    right.plot(steps, entropies, color=ENTROPY, linewidth=1.2, linestyle="--", label="entropy")
    right.set_ylabel("entropy of the policy, nats")
    right.set_ylim(0, 1.08 * max(entropies, default=1.0))
    lines = [*axes.get_legend_handles_labels()[0], *right.get_legend_handles_labels()[0]]
    figure.legend(handles=lines, loc="outside lower center", ncols=len(lines), frameon=False, fontsize=8)
    return figure


def draw_growth(
    depths: Sequence[Sequence[int]], widths: Sequence[int], parameters: Sequence[float], *, seed: str
) -> Figure:
    """Draw blocks per stage, width and size of each network of a growth series.

    Args:
        depths: Blocks of each stage, of each network.
        widths: Of the first stage.
        parameters: Of each network.
        seed: String of the topology that was grown, for the heading.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    figure, axes = new_figure(7.5, 4.2, title=f"Growth of {seed}")
    places = range(len(depths))
    below = [0] * len(depths)
    for stage, blocks in enumerate(zip(*depths, strict=True)):
        axes.bar(places, blocks, bottom=below, width=0.7, color=COLORS[stage], alpha=0.8, label=f"stage {stage + 1}")
        below = [low + block for low, block in zip(below, blocks, strict=True)]
    axes.set_xticks(list(places), [str(width) for width in widths], fontsize=8)
    axes.set(xlabel="width of stage 1, one network per step", ylabel="blocks")
    right = axes.twinx()
    right.plot(places, [count / 1e6 for count in parameters], color=PARAMETERS, marker="o", markersize=4, label="size")
    right.set_ylabel("parameters, millions")
    right.set_ylim(bottom=0)
    lines = [*axes.get_legend_handles_labels()[0], *right.get_legend_handles_labels()[0]]
    figure.legend(handles=lines, loc="outside lower center", ncols=len(lines), frameon=False, fontsize=8)
    return figure
