"""The figures of GHN-2's and GHN-3's papers from the records of an evaluation: each as PNG, its numbers as CSV."""

import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_paraminit.errors import MissingDependencyError
from hf_paraminit.evaluation.experiment import Record
from hf_paraminit.evaluation.properties import Fit
from hf_paraminit.evaluation.published_results import COLUMNS
from hf_paraminit.evaluation.split_table import split_rows, write_rows
from hf_paraminit.io.atomic import atomic_write
from hf_paraminit.plots.grouped_bars import draw_grouped_bars
from hf_paraminit.plots.lines import draw_lines
from hf_paraminit.plots.size_scatter import draw_size_scatter

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PIXELS_PER_INCH = 130
MAX_BARS = 120  # networks; more bars than this cannot be told apart

logger = logging.getLogger("hf_paraminit")


def write_accuracy_figures(records: Sequence[Record], measures: Sequence[str], folder: Path) -> list[Path]:
    """Draw accuracies without training: by split, over size, by network, over the predictor's size; and their cost.

    Args:
        records: Cells of `ZeroShotExperiment`.
        measures: What was read off, the main one first.
        folder: Where to write.

    Returns:
        The pictures that were written; without matplotlib the CSV files are written alone.
    """
    done = [record for record in records if record["status"] == "done"]
    if not done:
        return []
    main = measures[0]
    label = f"{main}, %"
    title = "without training"
    written = []
    rows = split_rows(done, measures, field="accuracy")
    bars: dict[str, dict[str, tuple[float, float]]] = defaultdict(dict)
    for row in rows:
        if row.measure == main:
            bars[row.init][row.group] = (row.mean, row.standard_error)
    written += _save(
        folder / "accuracy_by_split",
        [{"init": row.init, "group": row.group, "measure": row.measure, "mean": row.mean,
          "standard_error": row.standard_error, "networks": row.count} for row in rows],
        lambda: draw_grouped_bars(bars, measure=label, title=f"Mean accuracy {title}, with standard error"),
    )  # fmt: skip
    for init in bars:
        own = [record for record in done if record["init"] == init]
        points: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for record in own:
            points[record["group"]].append((record["parameters"], record["accuracy"].get(main, math.nan)))
        written += _save(
            folder / f"accuracy_by_size_{_file_name(init)}",
            [_point(record, main) for record in own],
            lambda points=points, init=init: draw_size_scatter(points, measure=label, title=f"{init}, {title}"),
        )
    written += _network_bars(done, main, folder, title)
    written += _predictor_sizes(done, main, folder, label)
    written += _costs(done, folder)
    return written


def write_curve_figure(records: Sequence[Record], folder: Path) -> list[Path]:
    """Draw accuracy by epoch from each start, means over networks and seeds."""
    curves: dict[tuple[str, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        if record["status"] == "done":
            for epoch, value in record["curve"].items():
                curves[f"{record['group']}/{record['network']}", record["init"]][int(epoch)].append(value)
    written = []
    for network in dict.fromkeys(name for name, _ in curves):
        series = {
            init: {float(epoch): _mean_and_error(values) for epoch, values in found.items()}
            for (name, init), found in curves.items()
            if name == network
        }
        rows = [
            {"network": network, "init": init, "epoch": int(epoch), "mean": mean, "standard_error": error}
            for init, points in series.items()
            for epoch, (mean, error) in points.items()
        ]
        written += _save(
            folder / f"convergence_{_file_name(network)}",
            rows,
            lambda series=series, network=network: draw_lines(
                series, horizontal="epoch", measure="test accuracy, %", title=network
            ),
        )
    return written


def write_tau_figure(fits: Mapping[str, Sequence[Fit]], folder: Path) -> list[Path]:
    """Draw Kendall's tau of each property and predictor."""
    rows = [
        {"init": init, "property": fit.name, "mean": fit.mean, "deviation": fit.deviation, "networks": fit.test_count}
        for init, found in fits.items()
        for fit in found
    ]
    bars = {init: {fit.name: (fit.mean, fit.deviation) for fit in found} for init, found in fits.items()}
    return _save(
        folder / "property_prediction",
        rows,
        lambda: draw_grouped_bars(bars, measure="Kendall's tau", title="Properties predicted from graph embeddings"),
    )


def write_diversity_figure(records: Sequence[Record], folder: Path) -> list[Path]:
    """Draw the diversity of predicted tensors by group of networks."""
    done = [record for record in records if record["status"] == "done"]
    bars: dict[str, dict[str, tuple[float, float]]] = defaultdict(dict)
    for record in done:
        bars[record["init"]][record["group"]] = (record["diversity"].get("all", math.nan), 0.0)
    rows = [{"init": record["init"], "group": record["group"], **record["diversity"]} for record in done]
    return _save(
        folder / "diversity",
        rows,
        lambda: draw_grouped_bars(bars, measure="mean |1 - cos| of pairs", title="Diversity of predicted tensors"),
    )


def write_published_figures(results: Mapping[str, Mapping[str, float]], folder: Path) -> list[Path]:
    """Draw the published accuracies of GHN-3: by network, and the mean by predictor."""
    accuracies = {
        text: {network: (values[column], 0.0) for network, values in results.items() if column in values}
        for column, text in COLUMNS.items()
    }
    rows = [
        {"network": network, **{column: values.get(column, "") for column in COLUMNS}}
        for network, values in results.items()
    ]
    means = {
        text: {"mean over networks": _mean_and_error([value for value, _ in bars.values()])}
        for text, bars in accuracies.items()
        if bars
    }
    return [
        *_save(
            folder / "published_by_network",
            rows,
            lambda: draw_grouped_bars(accuracies, measure="ImageNet top-1, %", title="GHN-3, published"),
        ),
        *_save(
            folder / "published_means",
            [{"column": text, "mean": mean, "standard_error": error}
             for text, bars in means.items() for mean, error in bars.values()],
            lambda: draw_grouped_bars(means, measure="ImageNet top-1, %", title="GHN-3, published, 74 networks"),
        ),
    ]  # fmt: skip


def _network_bars(done: Sequence[Record], main: str, folder: Path, title: str) -> list[Path]:
    names = list(dict.fromkeys(f"{record['group']}/{record['network']}" for record in done))
    if len(names) > MAX_BARS:
        return []
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    for record in done:
        found = record["accuracy"].get(main, math.nan)
        values[record["init"], f"{record['group']}/{record['network']}"].append(found)
    bars: dict[str, dict[str, tuple[float, float]]] = defaultdict(dict)
    for (init, name), found in values.items():
        bars[init][name] = _mean_and_error(found)
    return _save(
        folder / "accuracy_by_network",
        [{"network": name, "init": init, main: value, "standard_error": error}
         for init, found in bars.items() for name, (value, error) in found.items()],
        lambda: draw_grouped_bars(bars, measure=f"{main}, %", title=f"Accuracy {title}"),
    )  # fmt: skip


def _predictor_sizes(done: Sequence[Record], main: str, folder: Path, label: str) -> list[Path]:
    """The size of a predictor against accuracy needs two predictors at least."""
    sizes = {record["init"]: size for record in done if (size := record["predictor"]["parameters"])}
    if len(set(sizes.values())) < 2:
        return []
    series: dict[str, dict[float, tuple[float, float]]] = defaultdict(dict)
    for row in split_rows([record for record in done if record["init"] in sizes], [main], field="accuracy"):
        series[row.group][float(sizes[row.init])] = (row.mean, row.standard_error)
    return _save(
        folder / "accuracy_by_predictor_size",
        [{"group": group, "predictor_parameters": int(size), main: mean, "standard_error": error}
         for group, points in series.items() for size, (mean, error) in points.items()],
        lambda: draw_lines(
            series,
            horizontal="parameters of the predictor",
            measure=label,
            title="Size of the predictor, without training",
            log=True,
            names={float(size): init for init, size in sizes.items()},
        ),
    )  # fmt: skip


def _costs(done: Sequence[Record], folder: Path) -> list[Path]:
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    for record in done:
        seconds[record["init"], record["group"]].append(record["seconds"]["total"])
    bars: dict[str, dict[str, tuple[float, float]]] = defaultdict(dict)
    for (init, group), found in seconds.items():
        bars[init][group] = _mean_and_error(found)
    return _save(
        folder / "seconds",
        [{"init": init, "group": group, "mean": mean, "standard_error": error}
         for init, found in bars.items() for group, (mean, error) in found.items()],
        lambda: draw_grouped_bars(bars, measure="seconds per network", title="Time of a prediction"),
    )  # fmt: skip


def _save(stem: Path, rows: Sequence[Mapping[str, Any]], draw: Any) -> list[Path]:
    """Write the numbers, and the picture where matplotlib is installed."""
    write_rows(stem.with_name(f"{stem.name}.csv"), rows)
    try:
        figure: Figure = draw()
    except MissingDependencyError as error:
        logger.warning("No %s.png: %s", stem.name, error)
        return []
    path = stem.with_name(f"{stem.name}.png")
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=PIXELS_PER_INCH)
    return [path]


def _point(record: Record, measure: str) -> Record:
    names = ("group", "network", "seed", "parameters")
    return {**{name: record[name] for name in names}, measure: record["accuracy"].get(measure, "")}


def _mean_and_error(values: Iterable[float]) -> tuple[float, float]:
    """Mean and its standard error; 0 for a single value."""
    found = [value for value in values if math.isfinite(value)]
    if not found:
        return math.nan, 0.0
    mean = sum(found) / len(found)
    if len(found) == 1:
        return mean, 0.0
    return mean, math.sqrt(sum((value - mean) ** 2 for value in found) / (len(found) - 1) / len(found))


def _file_name(text: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in text)
