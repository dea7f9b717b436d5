"""Takes: several films of one clip that differ in the seed of their noise, to choose from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from stages.runtime.options import Options, option

if TYPE_CHECKING:
    from stages.plan.resolve import Clip
    from stages.runtime.items import Item

MOST_TAKES = 100
TAKE = re.compile(r"\.take[1-9]\d{0,2}$")


class Takes(Options):
    takes: int = option(
        1,
        "Number of films per clip, to choose from: CLIP.takeK.mp4 has the seed + K - 1",
        unit="films",
        minimum=1,
        maximum=MOST_TAKES,
    )


def takes_of(clip: Clip) -> list[Clip]:
    """The takes of a clip: the clip itself, and further ones that have ids, seeds and films of their own."""
    count = clip.values["recipe"]["takes"] if clip.has_takes else 1
    further = [
        replace(clip, id=id_of_take(clip.id, take), take=take, first_take=clip, values=clip.values.with_seed(take - 1))
        for take in range(2, count + 1)
    ]
    return [clip, *further]


def id_of_take(identity: str, take: int) -> str:
    """The id of a take of the clip or link `identity`."""
    return f"{identity}.take{take}"


def without_take(identity: str) -> str:
    """An id without the ending that takes add. A clip of a user may have such an ending too, and be no take."""
    return TAKE.sub("", identity)


def share(steps: Mapping[str, Sequence[Item]], first: Mapping[str, Sequence[Item]]) -> dict[str, list[Item]]:
    """The items of a take, in which those that do not depend on the seed are items of the `first` take."""
    shared: dict[str, str] = {}  # output of an item -> output of the equal item of the first take
    found: dict[str, list[Item]] = {}
    for step, items in steps.items():
        for item, same in zip(items, first[step], strict=True):
            inputs = {name: _renamed(value, shared) for name, value in item.inputs.items()}
            if (inputs, item.options, item.model) == (same.inputs, same.options, same.model):
                shared[item.output] = same.output
                found.setdefault(step, []).append(same)
            else:
                found.setdefault(step, []).append(replace(item, inputs=inputs))
    return found


def _renamed(value: str | list[str], names: Mapping[str, str]) -> str | list[str]:
    return [names.get(one, one) for one in value] if isinstance(value, list) else names.get(value, value)
