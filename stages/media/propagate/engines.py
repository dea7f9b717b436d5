"""Propagation in one direction: a translated keyframe to the frames before or after it, by flow, by patches or by both."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from stages.media.flow import Match, difference, match_frames, sample
from stages.media.propagate import ebsynth
from stages.media.propagate.patches import Pair, Search, synthesise

SURROUNDINGS = np.ones((17, 17), np.uint8)  # of an unreliable pixel: flow is blurred where motions meet


@dataclass(frozen=True)
class Engine:
    """A way to propagate a translated keyframe. `name` is one of

    - warp: the keyframe is sampled once along the flow;
    - patch: patches everywhere;
    - hybrid: warp, and patches where the flow is unreliable, or close to there and a better fit;
    - auto: hybrid, but patches everywhere in a frame whose flow is unreliable in more than `full_above` of its pixels;
    - ebsynth: patches everywhere, by the program of that name.

    The flow is unreliable where colours differ by more than `residual` levels.
    """

    name: str = "auto"
    residual: float = 20.0
    full_above: float = 0.25
    search: Search = Search()

    def propagate(self, key: Pair, frames: Iterable[np.ndarray]) -> Iterator[Propagated]:
        """Yield the keyframe propagated to each of `frames`, RGB, uint8 [H, W, 3]; the first of them is next to the key."""
        for match in match_frames(key.frame, frames, self.residual):
            yield self._propagate(key, match)

    def _propagate(self, key: Pair, match: Match) -> Propagated:
        flow = Pair(*(sample(image, match.places, cv2.INTER_CUBIC) for image in (key.frame, key.translated)))
        by_flow, bad = measure(flow, match), ~match.reliable
        if self.name == "ebsynth":
            return Propagated(ebsynth.synthesise(key, match, self.search), by_flow.error)
        if self.name == "warp" or (self.name != "patch" and not bad.any()):
            return by_flow
        everywhere = self.name == "patch" or (self.name == "auto" and bad.mean() > self.full_above)
        where = np.ones_like(bad) if everywhere else cv2.dilate(bad.astype(np.uint8), SURROUNDINGS) > 0
        by_patches = measure(synthesise(key, match, where, flow, self.search), match)
        if self.name == "patch":
            return by_patches
        better = bad | (by_patches.error < by_flow.error)
        return Propagated(
            np.where(better[..., None], by_patches.image, by_flow.image),
            np.where(better, by_patches.error, by_flow.error),
        )


@dataclass(frozen=True, eq=False)
class Propagated:
    """A translated image, uint8 [H, W, 3], and its error in levels, float32 [H, W].

    The error is the difference between the frame and the key's source frame, propagated in the same way.
    """

    image: np.ndarray
    error: np.ndarray


def measure(pair: Pair, match: Match) -> Propagated:
    """The translated image of a propagated pair, with its error."""
    return Propagated(pair.translated, difference(pair.frame, match.frame))
