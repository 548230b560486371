"""Windows with halo: the recorded ranges, and what they must cover."""

import json
from pathlib import Path

import pytest
import torch

from hf_paraminit.errors import TrainingConfigError
from hf_paraminit.hyperrep.windows import cut_windows, halo_windows, join_windows, random_window

GOLDEN = sorted((Path(__file__).parents[1] / "golden" / "hyperrep" / "halo").glob("*.json"))


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_published_ranges(path: Path) -> None:
    record = json.loads(path.read_text())
    windows = halo_windows(record["seqlen"], record["windowsize"], record["halosize"])
    assert [[window.start, window.stop] for window in windows] == record["window_token_ranges"]
    shape = record["shape"]
    sequence = torch.randn(shape[0], record["seqlen"], shape[-1])
    parts = cut_windows(sequence, windows)
    assert list(parts.shape) == shape
    assert torch.equal(join_windows(parts, windows), sequence)


@pytest.mark.parametrize("halo", [0, 1, 3, 8])
@pytest.mark.parametrize("size", [1, 4, 9])
def test_contents_cover_any_sequence_once(size: int, halo: int) -> None:
    """Also where the published code stops: short sequences, and a last content shorter than the halo."""
    for num_tokens in range(1, 40):
        windows = halo_windows(num_tokens, size, halo)
        sequence = torch.arange(num_tokens)[:, None]
        assert torch.equal(join_windows(cut_windows(sequence, windows), windows), sequence)
        assert len({window.stop - window.start for window in windows}) == 1
        assert all(0 <= window.start <= window.stop <= num_tokens for window in windows)


def test_inner_windows_have_context_on_both_sides() -> None:
    windows = halo_windows(100, 10, 4)
    assert [window.offset for window in windows] == [0, *[4] * 8, 8]


@pytest.mark.parametrize(("num_tokens", "size", "halo"), [(0, 4, 1), (9, 0, 1), (9, 4, -1)])
def test_impossible_windows_are_refused(num_tokens: int, size: int, halo: int) -> None:
    with pytest.raises(TrainingConfigError, match="Cannot cut"):
        halo_windows(num_tokens, size, halo)


def test_random_windows_reach_both_ends() -> None:
    generator = torch.Generator().manual_seed(0)
    windows = [random_window(7, 3, generator) for _ in range(200)]
    assert {window.start for window in windows} == {0, 1, 2, 3, 4}
    assert all(window.stop - window.start == 3 for window in windows)
    assert random_window(3, 7, generator) == slice(0, 3)
