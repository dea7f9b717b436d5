"""The lineage of an item: what the plan expects its inputs to be made of, and the comparison with what they are made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from stages.runtime.errors import ItemError

UNKNOWN = ""  # in the place of a digest: that of what a failure was made of
REPLACED = "run again when no other run works in this folder"


@dataclass(frozen=True, slots=True)
class Origin:
    """The origin of one file that an item reads.

    Attributes:
        fingerprint: that of the item that makes it; "" for a user's file.
        sources, weights: what it derives from, as places in the lists of the item's lineage.
    """

    fingerprint: str
    sources: Sequence[int]
    weights: Sequence[int]


@dataclass(frozen=True, slots=True)
class Lineage:
    """Everything that an item derives from.

    Attributes:
        fingerprint: digest of the work of the item and of all earlier ones.
        sources: the user's files.
        weights: the weights, as (model, stage).
        origins: one for each file that the item reads: its inputs, and then the files that its options name.
    """

    fingerprint: str
    sources: tuple[str, ...]
    weights: tuple[tuple[str, str], ...] = ()
    origins: tuple[Origin, ...] = ()

    @classmethod
    def of_row(cls, row: Any) -> Lineage:
        """The lineage in a line of a manifest, as `row` wrote it. Raises ValueError, TypeError, LookupError."""
        sources = tuple(map(str, row["sources"]))
        weights = tuple((str(model), str(stage)) for model, stage in row["weights"])
        origins = tuple(
            Origin(str(one["fingerprint"]), places(one["sources"], sources), places(one["weights"], weights))
            for one in row["origins"]
        )
        return cls(str(row["fingerprint"]), sources, weights, origins)

    def row(self) -> dict[str, Any]:
        """The lineage for a line of a manifest."""
        return asdict(self)


def places(found: Sequence[Any], names: Sequence[Any]) -> list[int]:
    """The places that were read from a manifest. Raises ValueError if one is not in the list of `names`."""
    if not all(type(place) is int and 0 <= place < len(names) for place in found):
        raise ValueError("a place is not in the list")
    return list(found)


def one_digest_each(names: Sequence[str], found: Iterable[tuple[Sequence[int], Sequence[str]]]) -> list[tuple[str, str]]:
    """Each name with its digest.

    `found` are digests with the places of their names, from each file that an item reads. Raises ItemError for a name with
    two digests, which was replaced between stages, and if the digests are not those of the names.
    """
    known: dict[int, str] = {}
    for places, digests in found:
        if len(places) != len(digests):
            raise ItemError("an input of the item derives from other files than the plan knows", REPLACED)
        for place, digest in zip(places, digests):
            earlier = known.get(place, UNKNOWN)
            if UNKNOWN not in (earlier, digest) and earlier != digest:
                raise ItemError(f"{names[place]} was replaced after an earlier item had read it", "run again")
            known[place] = earlier or digest
    if len(known) != len(names):
        raise ItemError("the item derives from other files than the plan knows", REPLACED)
    return [(name, known[place]) for place, name in enumerate(names)]
