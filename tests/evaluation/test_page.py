"""The page: complete in itself, escaped, and right in a real browser where there is one."""

import html
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from summaries import failed, start, summary_of

from hf_paraminit.evaluation.page import _round_ticks, number, render_page
from hf_paraminit.evaluation.summary import Summary

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="no chromium or chrome here; Debian's is `apt-get install chromium`"
)
INITS = ("ghn3", "he", "lsuv", "mimetic", "a-name-that-is-rather-long+recalibrated", "five", "six", "seven", "eight")
HOSTILE = '<script>alert("x")</script>'


def a_summary() -> Summary:
    gains = {init: {"R": 3.0 * index - 6, "V": 2.0 * index} for index, init in enumerate(INITS)}
    extra = [start(net, init) for net in "RV" for init in ("default", *INITS)]
    return summary_of(gains, extra=[*extra, failed("V", "broken", f"ValueError: {HOSTILE} {'long ' * 60}")])


def facts_of(summary: Summary) -> dict[str, Any]:
    recipe = {"steps": 150, "batch_size": 64, "warmup_steps": 10, "weight_decay": 0.05, "gradient_clip": 1.0}
    return {
        "verdict": summary.verdict,
        "cautions": list(summary.cautions),
        "seen_in_training": ["R"],
        "pixels": {"nearest_neighbour": 95.6},
        "versions": {"torch": "2", "platform": "Some-Operating-System-with-a-long-name-x86_64-with-glibc2.36" * 2},
        "settings": {
            "models": {net: {"title": f"{net} (architecture, small)"} for net in summary.nets},
            "data": "digits",
            "data_digest": "0" * 16,
            "images": {"train": 1000, "validation": 297, "test": 500},
            "image_shape": [3, 32, 32],
            "classes": 10,
            "seeds": [0, 1],
            "tuning_seeds": [100, 101],
            "block": "test",
            "recipe": recipe,
            "command": f"paraminit compare R V --inits {','.join(INITS)} --output {'folder/' * 30}",
        },
    }


@pytest.fixture(scope="module")
def page() -> str:
    summary = a_summary()
    return render_page(facts_of(summary), summary)


def test_it_asks_for_nothing_and_runs_nothing(page: str) -> None:
    assert not re.search(r"""(?:src|href|url)\s*[=(]""", page)
    assert "<script" not in page
    assert "@import" not in page
    assert "http" not in page.replace("http-equiv", "")


def test_what_users_wrote_is_escaped(page: str) -> None:
    assert HOSTILE not in page
    assert html.escape(HOSTILE, quote=True).replace("&quot;", "&#34;") in page


def test_it_holds_the_verdict_every_number_and_how_to_repeat_it(page: str) -> None:
    summary = a_summary()
    text = html.unescape(page)
    assert summary.verdict in text
    assert all(caution in text for caution in summary.cautions)
    for row in summary.rows:
        assert f"{row.auc:.1f} ({row.auc_deviation:.1f})" in text
    assert "paraminit compare R V --inits" in text
    assert "R counts as seen" in text
    assert page.count("<polyline") == len(summary.rows) * 3  # curves, activations, gradients


def test_a_comparison_without_any_result_still_makes_a_page() -> None:
    summary = summary_of({"he": {}}, seeds=1, extra=[failed("a", "default", "E: no")])
    summary = Summary(**{**vars(summary), "nets": ("a",)})
    text = render_page(facts_of(summary), summary)
    assert "No initialisation gave a result" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "\N{EN DASH}"),
        (0.0, "0.0"),
        (12.34, "12.3"),
        (12345.6, "1.2e+04"),
        (0.001, "1.0e-03"),
        (-0.04, "-4.0e-02"),
    ],
)
def test_numbers_keep_what_they_mean(value: float | None, text: str) -> None:
    assert number(value) == text


def test_colours_are_told_apart_without_hue(page: str) -> None:
    """Lines of equal colour class never share a marker within the first eight, and dashes differ from neighbours."""
    legend = page.split('<ul class="legend">')[1].split("</ul>")[0]
    swatches = re.findall(r'class="line(\d)" d="M1 6h26"/>\s*<(\w+) class', legend)
    assert len(swatches) == 1 + len(INITS)
    assert len(set(swatches)) == len(swatches)


def browse(file: Path, *options: str) -> subprocess.CompletedProcess[str]:
    assert BROWSER is not None
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *options, file.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


@needs_browser
@pytest.mark.parametrize("width", [400, 1280])
def test_it_fits_the_screen_in_a_real_browser(width: int, page: str, tmp_path: Path) -> None:
    """Inside a frame of that width: nothing is wider than the screen except tables, which scroll in their own box."""
    frame = tmp_path / "frame.html"
    script = """
    const errors = []; window.onerror = message => errors.push(message);
    document.getElementById("frame").onload = event => {
      const page = event.target.contentDocument, root = page.documentElement;
      const wide = [...page.querySelectorAll("body *")].filter(
        part => !part.closest(".scroll, pre, svg") && part.getBoundingClientRect().right > root.clientWidth + 1);
      const small = [...page.querySelectorAll("figure svg")].filter(
        picture => picture.getBoundingClientRect().width < 300);
      document.body.dataset.result = JSON.stringify(
        [root.scrollWidth, root.clientWidth, wide.map(part => part.tagName), small.length, errors,
         page.querySelectorAll("polyline").length]);
    };"""
    frame.write_text(
        f'<body><iframe id="frame" width="{width}" height="900" style="border:0" srcdoc="{html.escape(page)}"></iframe>'
        f"<script>{script}</script></body>",
        encoding="utf-8",
    )
    done = browse(frame, "--virtual-time-budget=4000", "--dump-dom")
    found = re.search(r'data-result="([^"]*)"', done.stdout)
    assert found is not None
    assert html.unescape(found[1]) == f"[{width},{width},[],0,[],{len(a_summary().rows) * 3}]"


@needs_browser
def test_light_and_dark_are_different_pictures_without_errors(page: str, tmp_path: Path) -> None:
    pictures = []
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    for scheme in (1, 0):  # the browser's names for light and dark
        picture = tmp_path / f"{scheme}.png"
        done = browse(
            tmp_path / "page.html",
            f"--blink-settings=preferredColorScheme={scheme}",
            "--window-size=600,400",
            "--enable-logging=stderr",
            f"--screenshot={picture}",
        )
        assert "CONSOLE" not in done.stderr
        pictures.append(picture)
    from PIL import Image

    light, dark = (Image.open(picture).convert("L").resize((1, 1)).getpixel((0, 0)) for picture in pictures)
    assert light > 200
    assert dark < 80


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 0.0), (-59.6, 44.0), (0.0, 3.2), (-0.3, 0.1), (-99.0, 99.0), (2.0, 91.0)]
)
def test_ticks_enclose_the_range_and_are_few(low: float, high: float) -> None:
    ticks = _round_ticks(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 2 <= len(ticks) <= 8
    assert ticks == sorted(set(ticks))
