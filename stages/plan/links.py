"""Values for single links of a chain. An option lists them as texts LINK: VALUE; links count from 1."""

from __future__ import annotations

import re
from collections.abc import Iterable
from math import ceil
from typing import TYPE_CHECKING

from stages.runtime.errors import UsageError, shown

if TYPE_CHECKING:
    from stages.plan.resolve import Clip
    from stages.runtime.options import Option

OF_LINK = re.compile(r"\s*0*([1-9]\d?)\s*:\s*(.*\S)\s*", re.DOTALL)
NUMBER = re.compile(r"0*[1-9]\d{0,17}", re.ASCII)
SEED = re.compile(r"\+?\d{1,18}", re.ASCII)
TEXT = "text"  # instead of a source: the link starts from its prompt alone
LENGTH = re.compile(r"(\d{1,6})|(\d{1,5}(?:\.\d+)?)\s*s", re.ASCII)  # frames, or seconds


def link_fault(text: str) -> str | None:
    """What is wrong with the text LINK: VALUE, or None."""
    return None if OF_LINK.fullmatch(text) else "write LINK: VALUE, such as 3: a red ball"


def _fault(text: str, form: re.Pattern[str], remedy: str) -> str | None:
    found = OF_LINK.fullmatch(text)
    return None if found and form.fullmatch(found[2]) else remedy


def link_number_fault(text: str) -> str | None:
    """What is wrong with the text LINK: NUMBER, or None. Both count from 1."""
    return _fault(text, NUMBER, "write LINK: NUMBER, both from 1, such as 3: 2")


def link_seed_fault(text: str) -> str | None:
    """What is wrong with the text LINK: SEED or LINK: +NUMBER, or None."""
    return _fault(text, SEED, "write LINK: SEED or LINK: +NUMBER, such as 3: 42")


def link_length_fault(text: str) -> str | None:
    """What is wrong with the text LINK: FRAMES or LINK: SECONDSs, or None."""
    return _fault(text, LENGTH, "write LINK: FRAMES or LINK: SECONDSs, such as 3: 81 or 3: 2.5s")


def source_files(listed: Iterable[str]) -> list[str]:
    """The files among the sources that option `link_sources` lists."""
    found = [one[2] for text in listed if (one := OF_LINK.fullmatch(text))]
    return [source for source in found if source != TEXT]


def by_link(listed: Iterable[str], place: str) -> dict[int, str]:
    """The values of a list of LINK: VALUE, by the number of the link. Raises UsageError for a link that is named twice."""
    found: dict[int, str] = {}
    for link, value in ((int(one[1]), one[2]) for text in listed if (one := OF_LINK.fullmatch(text))):
        if link in found:
            raise UsageError(f"{place} has both {found[link]} and {value} for link {link}", "keep one of them")
        found[link] = value
    return found


class LinkValues:
    """The values that options of a clip give to single ones of its `links`, by the number of the link."""

    def __init__(self, clip: Clip, links: int):
        self.clip, self.links = clip, links

    def texts(self, name: str, before: Iterable[str] = ()) -> dict[int, str]:
        """The texts of option `name`, which overrule those `before` it.

        Raises UsageError for a link that is not there, or that is named twice.
        """
        place = f"{name} of clip {self.clip.id} of run {self.clip.run.name}"
        found = by_link(before, place) | by_link(self.clip.values["recipe"][name], place)
        if beyond := [link for link in found if link > self.links]:
            raise UsageError(f"{place} names link {beyond[0]} of {self.links}", "leave it out, or raise links")
        return found

    def numbers(self, name: str, before: Iterable[str] = ()) -> dict[int, int]:
        """The numbers that option `name` lists, as `texts` finds them."""
        return {link: int(value) for link, value in self.texts(name, before).items()}

    def seeds(self, name: str) -> dict[int, int]:
        """The seeds that option `name` lists; +NUMBER is added to the clip's own."""
        own = self.clip.generating["seed"]
        return {link: int(text) + own * text.startswith("+") for link, text in self.texts(name).items()}

    def lengths(self, name: str) -> dict[int, int]:
        """The numbers of frames that option `name` lists. Seconds are rounded up to a length that the model knows.

        Raises UsageError for a length that it does not know.
        """
        found: dict[int, int] = {}
        for link, text in self.texts(name).items():
            length = LENGTH.fullmatch(text)
            assert length is not None  # see link_length_fault
            found[link] = int(length[1]) if length[1] else self._rounded_up(float(length[2]))
            try:
                self._num_frames.parse(found[link])
            except UsageError as error:
                place = f"link {link} of clip {self.clip.id} of run {self.clip.run.name}"
                raise UsageError(f"{place} has {found[link]} frames", error.remedy) from None
        return found

    @property
    def _num_frames(self) -> Option:
        return next(one for one in self.clip.generator.options if one.name == "num_frames")

    def _rounded_up(self, seconds: float) -> int:
        """The least number of frames that the model knows and that lasts as long."""
        check = self._num_frames.check
        least = max(1, ceil(seconds * self.clip.generating["fps"] - 1e-6))
        known = (frames for frames in range(least, least + 64) if not (check and check(frames)))
        if not (frames := next(known, 0)):
            raise UsageError(f"{shown(seconds)} seconds are no length of a link", "give frames")
        return frames
