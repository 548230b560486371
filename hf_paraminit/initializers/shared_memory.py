"""Parameters that share a part of their memory, so that writing one changes the other."""

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor


def overlapping(parameters: Mapping[str, Tensor]) -> dict[str, str]:
    """Find distinct parameters with common elements, as views of one tensor may have.

    Args:
        parameters: dense tensors with storage, by name; tied parameters once.

    Returns:
        The name of each parameter that shares elements -> the name of another one that has them too.
    """
    in_storage: defaultdict[object, list[str]] = defaultdict(list)
    for name, parameter in parameters.items():
        in_storage[parameter.device, parameter.untyped_storage()._cdata].append(name)
    partners: dict[str, str] = {}
    for names in in_storage.values():
        names.sort(key=lambda name: parameters[name].storage_offset())
        for place, first in enumerate(names):
            for second in names[place + 1 :]:
                if parameters[second].storage_offset() >= _extent(parameters[first])[1]:
                    break
                if _share_elements(parameters[first], parameters[second]):
                    partners.setdefault(first, second)
                    partners.setdefault(second, first)
    return partners


def _share_elements(first: Tensor, second: Tensor) -> bool:
    (first_start, first_end), (second_start, second_end) = _extent(first), _extent(second)
    start, end = min(first_start, second_start), max(first_end, second_end)
    is_taken = torch.zeros(end - start, dtype=torch.bool)
    is_taken.as_strided(first.shape, first.stride(), first_start - start).fill_(True)
    return bool(is_taken.as_strided(second.shape, second.stride(), second_start - start).any())


def _extent(tensor: Tensor) -> tuple[int, int]:
    """First element in the storage, and the one behind the last; what lies between may belong to another view."""
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start = int(tensor.storage_offset())
    return start, start + reach + 1
