"""One direction: a key's translated picture carried to the frames before or behind it, by flow, by patches or by both."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from stages.media.flow import Match, difference, matches, sample
from stages.media.propagate import ebsynth
from stages.media.propagate.patches import Pair, Search, synthesise

SURROUNDINGS = np.ones((17, 17), np.uint8)  # of a bad pixel, which are searched too: flow is blurred where motions meet


@dataclass(frozen=True)
class Engine:
    """How pictures are carried; `residual` levels and `full_above`, a share of the pixels, say when flow is not enough.

    `name` is one of
    - warp: the key is sampled along the flow, once;
    - patch: patches everywhere;
    - hybrid: warp, and patches where the flow is not to be trusted, or near to there where they fit the frame better;
    - auto: hybrid, but patches are searched everywhere in a frame whose flow fails in more than `full_above` of it;
    - ebsynth: patches everywhere, by the program of that name.
    """

    name: str = "auto"
    residual: float = 20.0
    full_above: float = 0.25
    search: Search = Search()

    def carry(self, key: Pair, frames: Iterable[np.ndarray]) -> Iterator[Carried]:
        """The key's picture carried to each of `frames`, RGB, uint8 [H, W, 3], the first of which follows the key's own."""
        for match in matches(key.frame, frames, self.residual):
            yield self._carry(key, match)

    def _carry(self, key: Pair, match: Match) -> Carried:
        flow = Pair(*(sample(image, match.places, cv2.INTER_CUBIC) for image in (key.frame, key.picture)))
        by_flow, bad = judged(flow, match), ~match.trusted
        if self.name == "ebsynth":
            return Carried(ebsynth.synthesise(key, match, self.search), by_flow.error)
        if self.name == "warp" or (self.name != "patch" and not bad.any()):
            return by_flow
        everywhere = self.name == "patch" or (self.name == "auto" and bad.mean() > self.full_above)
        where = np.ones_like(bad) if everywhere else cv2.dilate(bad.astype(np.uint8), SURROUNDINGS) > 0
        by_patches = judged(synthesise(key, match, where, flow, self.search), match)
        if self.name == "patch":
            return by_patches
        better = bad | (by_patches.error < by_flow.error)
        return Carried(
            np.where(better[..., None], by_patches.picture, by_flow.picture),
            np.where(better, by_patches.error, by_flow.error),
        )


@dataclass(frozen=True, eq=False)
class Carried:
    """A translated picture, uint8 [H, W, 3], and its error: how far the key's own frame, carried in the same way, is from
    the frame, in levels, float32 [H, W].
    """

    picture: np.ndarray
    error: np.ndarray


def judged(made: Pair, match: Match) -> Carried:
    return Carried(made.picture, difference(made.frame, match.frame))
