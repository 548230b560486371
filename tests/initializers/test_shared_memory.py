import torch
from torch import Tensor, nn

from hf_paraminit.initializers.shared_memory import overlapping


def views(*slices: Tensor) -> dict[str, str]:
    return overlapping({f"p{index}": nn.Parameter(view) for index, view in enumerate(slices)})


def test_neighbours_in_one_storage_are_apart() -> None:
    flat = torch.zeros(30)
    assert views(flat[:12].view(3, 4), flat[12:20], flat[20:]) == {}
    columns = torch.zeros(4, 6)
    assert views(columns[:, :2], columns[:, 2:4], columns[:, 4:]) == {}


def test_overlapping_views_name_each_other() -> None:
    flat = torch.zeros(30)
    assert views(flat[:12], flat[11:20], flat[20:]) == {"p0": "p1", "p1": "p0"}
    assert views(flat, flat[4:5], flat[29:]) == {"p0": "p1", "p1": "p0", "p2": "p0"}
    matrix = torch.zeros(4, 6)
    assert views(matrix, matrix.t()) == {"p0": "p1", "p1": "p0"}
    assert views(matrix[:, ::2], matrix[:, 1::2]) == {}
    assert views(matrix[:, ::2], matrix[:, 1:3]) == {"p0": "p1", "p1": "p0"}


def test_separate_tensors_are_apart() -> None:
    assert views(torch.zeros(3), torch.zeros(3), torch.zeros(())) == {}
