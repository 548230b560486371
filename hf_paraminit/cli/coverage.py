"""Measure how much of each architecture a graph hypernetwork can initialise.

Builds every model that matches a PATTERN (no weights, no network), traces it, predicts all its parameters and checks
the values. Writes coverage.csv, coverage.json, coverage.png and README.md to the folder. Models in coverage.jsonl there
are never measured twice, so an interrupted sweep goes on where it was.
"""

import argparse
import platform
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import transformers
from tqdm.auto import tqdm

from hf_paraminit import __version__
from hf_paraminit.cli.arguments import Subparsers, positive, verb_parser
from hf_paraminit.cli.coverage_models import SOURCES, build, find_candidates
from hf_paraminit.errors import OutputError
from hf_paraminit.evaluation.coverage import Coverage, find_hypernetwork, read_state, sweep
from hf_paraminit.evaluation.coverage_table import (
    TITLE,
    markdown,
    sorted_records,
    summaries,
    write_csv,
    write_json,
)
from hf_paraminit.io.atomic import atomic_write
from hf_paraminit.plots.coverage import draw_coverage, require_matplotlib

EXAMPLES = """
paraminit coverage 'resnet*' --output resnets
paraminit coverage 'vit_*' 'swin*' --source timm --mode auto --jobs 4 --output transformers
paraminit coverage '*' --source all --output benchmarks/coverage
"""

PIXELS_PER_INCH = 110
STATE = "coverage.jsonl"


def add_parser(subparsers: Subparsers) -> None:
    parser = verb_parser(subparsers, "coverage", __doc__, examples=EXAMPLES)
    parser.add_argument("patterns", nargs="+", metavar="PATTERN", help="names of models; * and ? stand for letters")
    parser.add_argument("--source", choices=(*SOURCES, "all"), default="all", help="where to look (default: all)")
    parser.add_argument(
        "--mode",
        choices=("native", "auto", "compat"),
        default="native",
        help="kind of graph to measure; the table also says which one auto takes (default: native)",
    )
    parser.add_argument("--init", default="ghn3", metavar="NAME", help="graph hypernetwork (default: ghn3)")
    parser.add_argument("--jobs", type=positive, default=1, metavar="N", help="processes of one thread (default: 1)")
    parser.add_argument("--retry-failed", action="store_true", help="measure models again whose record is an error")
    parser.add_argument(
        "--output", type=Path, default=Path("coverage"), metavar="DIR", help="folder (default: coverage)"
    )


def run(arguments: argparse.Namespace) -> None:
    sources = SOURCES if arguments.source == "all" else (arguments.source,)
    candidates = find_candidates(arguments.patterns, sources)
    find_hypernetwork(arguments.init)
    require_matplotlib()
    _refuse_foreign_page(arguments.output / "README.md")
    settings = {
        "init": arguments.init,
        "mode": arguments.mode,
        "hf_paraminit": __version__,
        "timm": timm.__version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__.partition("+")[0],
        "python": platform.python_version(),
    }
    state = arguments.output / STATE
    _sweep(arguments, candidates, settings, state)
    records = sorted_records(read_state(state, settings))
    write_results(records, settings, arguments.output, command=_command(arguments))
    for source, summary in summaries(records).items():
        median = "-" if summary["median_share"] is None else f"{summary['median_share']:.2%}"
        print(f"{source}: {summary['ok']:,} of {summary['models']:,} models, {median} of the elements in the median")
    print(f"Written to {arguments.output}")


def _sweep(arguments: argparse.Namespace, candidates: Sequence[Any], settings: dict[str, Any], state: Path) -> None:
    finished = {
        record.candidate
        for record in read_state(state, settings)
        if record.status == "ok" or not arguments.retry_failed
    }
    records = sweep(
        candidates,
        build,
        init=arguments.init,
        mode=arguments.mode,
        settings=settings,
        state=state,
        jobs=arguments.jobs,
        retry_failed=arguments.retry_failed,
    )
    num_finished = sum(candidate in finished for candidate in candidates)
    try:
        with tqdm(total=len(candidates), initial=num_finished, unit="model") as bar:
            for record in records:
                bar.set_postfix_str(record.model, refresh=False)
                bar.update()
    except KeyboardInterrupt:
        print(f"paraminit: interrupted; {state} keeps what is finished. The same command goes on.", file=sys.stderr)
        raise


def write_results(records: Sequence[Coverage], settings: dict[str, Any], folder: Path, *, command: str) -> None:
    """Write the tables and the picture.

    Raises:
        OutputError: a file could not be written; it is as before.
    """
    with atomic_write(folder / "coverage.csv") as path:
        write_csv(records, path)
    with atomic_write(folder / "coverage.json") as path:
        write_json(records, settings, path)
    with atomic_write(folder / "README.md") as path:
        path.write_text(markdown(records, settings, command), encoding="utf-8")
    ok = [record for record in records if record.status == "ok"]
    if not ok:
        return
    reasons = Counter(reason for record in ok for reason in record.kept)
    figure = draw_coverage(
        [record.model for record in ok],
        [record.source for record in ok],
        [record.elements for record in ok],
        [record.elements - record.covered_elements for record in ok],
        reasons.most_common(),
        title=f"Coverage of {len(ok):,} architectures, {settings['init']}, {settings['mode']} graphs",
    )
    with atomic_write(folder / "coverage.png") as path:
        figure.savefig(path, format="png", dpi=PIXELS_PER_INCH)


def _refuse_foreign_page(page: Path) -> None:
    """Keep a README.md of the user's own from being replaced, and say so before the work begins."""
    if page.is_file() and not page.read_text(encoding="utf-8", errors="replace").startswith(f"{TITLE}\n"):
        raise OutputError(f"{page} is not a page of this command and would be replaced; name another folder.")


def _command(arguments: argparse.Namespace) -> str:
    """The command line, without what has no bearing on the result."""
    words = ["paraminit", "coverage", *arguments.patterns, "--source", arguments.source]
    for option, default in (("mode", "native"), ("init", "ghn3")):
        if getattr(arguments, option) != default:
            words += [f"--{option}", getattr(arguments, option)]
    return shlex.join([*words, "--output", str(arguments.output)])
