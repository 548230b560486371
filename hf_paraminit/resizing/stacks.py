"""The same component of consecutive layers, found by the numbers in parameter names."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)")


def stacks(names: Iterable[str]) -> dict[str, list[str]]:
    """Group names that differ in the last number between dots only.

    Returns:
        The name with `*` for that number -> the names by rising number. `stages.1.blocks.4.norm.weight` belongs to
        `stages.1.blocks.*.norm.weight`; a name without a number is a stack of one.
    """
    found: defaultdict[str, list[tuple[int, str]]] = defaultdict(list)
    for name in names:
        numbers = list(_NUMBER.finditer(name))
        if numbers:
            last = numbers[-1]
            found[f"{name[: last.start()]}*{name[last.end() :]}"].append((int(last.group()), name))
        else:
            found[name].append((0, name))
    return {key: [name for _, name in sorted(members)] for key, members in found.items()}
