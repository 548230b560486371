import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_paraminit.resizing.selection import evenly_spaced, selected, whole_heads, within_blocks

GOLDEN = Path(__file__).parents[1] / "golden" / "lets"


def test_places_are_the_recorded_ones() -> None:
    tables = json.loads((GOLDEN / "weight_selection_indices.json").read_text())
    assert len(tables) >= 8
    for sizes, places in tables.items():
        size, count = map(int, sizes.split("->"))
        assert evenly_spaced(size, count).tolist() == places, sizes


def test_selected_tensors_are_the_recorded_ones() -> None:
    recorded = load_file(GOLDEN / "weight_selection.safetensors")
    for case in range(len(recorded) // 2):
        small = recorded[f"{case}.small"]
        assert torch.equal(selected(recorded[f"{case}.large"], small.shape), small)


def test_halves_are_rounded_as_float32_has_them() -> None:
    """The published code spaces the places in float32, where this half falls to the other side."""
    assert evenly_spaced(58, 43).tolist() == torch.linspace(0, 57, 43).round().long().tolist()
    assert evenly_spaced(58, 43).tolist() != torch.linspace(0, 57, 43, dtype=torch.float64).round().long().tolist()


def test_every_nth_place_when_it_fits() -> None:
    assert evenly_spaced(12, 4).tolist() == [0, 3, 6, 9]


def test_nearest_places_to_an_even_spacing_otherwise() -> None:
    assert evenly_spaced(10, 4).tolist() == [0, 3, 6, 9]
    assert evenly_spaced(384, 256).tolist()[:4] == [0, 2, 3, 5]


@pytest.mark.parametrize(("size", "count"), [(7, 7), (7, 3), (192, 100), (768, 384), (5, 1)])
def test_places_rise_without_repetition(size: int, count: int) -> None:
    places = evenly_spaced(size, count)
    assert len(places) == count
    assert places.unique().tolist() == places.tolist()
    assert places.min() >= 0
    assert places.max() < size


def test_blocks_are_cut_one_by_one() -> None:
    assert within_blocks(12, 6, 3).tolist() == [0, 2, 4, 6, 8, 10]
    assert within_blocks(24, 6, 3).tolist() == [0, 4, 8, 12, 16, 20]


def test_whole_heads_stay_whole() -> None:
    assert whole_heads(8, 4, 2).tolist() == [0, 1, 4, 5]
    assert whole_heads(16, 8, 2, 2).tolist() == [0, 1, 4, 5, 8, 9, 12, 13]


def test_dimensions_are_cut_one_after_another() -> None:
    tensor = torch.arange(24.0).view(4, 6)
    assert torch.equal(selected(tensor, (2, 3)), tensor[::2, ::2])
    assert torch.equal(selected(tensor, (2, 3), {0: torch.tensor([1, 3])}), tensor[1::2, ::2])
