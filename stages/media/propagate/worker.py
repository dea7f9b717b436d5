"""The worker of `propagate`: translates the frames between keyframes from the translated keyframes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import cv2
import numpy as np

from stages.media.members import read_member
from stages.media.options import PropagateOptions
from stages.media.propagate import ebsynth
from stages.media.propagate.blend import Blend
from stages.media.propagate.engines import Engine, Propagated
from stages.media.propagate.patches import Pair, Search
from stages.media.write import write_member
from stages.runtime.artifacts import Artifact, write_index
from stages.runtime.errors import ItemError
from stages.runtime.worker import Work, Worker

Gap = tuple[int | None, int | None]  # indices of the keys before and after it; None at the ends of the clip


class Propagate(Worker[PropagateOptions]):
    """Writes `propagated`: a part of the clip's frames, translated."""

    def check(self, work: Work[PropagateOptions]) -> None:
        frames, keys = work.artifact("frames"), work.artifact("keys")
        if indices(frames) != list(range(len(indices(frames)))):
            raise ItemError(f"{frames.path} does not hold every frame of a clip", "make it with extract_frames --select all")
        sizes = [(one.fields["width"], one.fields["height"]) for one in (frames, keys)]
        if sizes[0] != sizes[1]:
            (width, height), (key_width, key_height) = sizes
            raise ItemError(
                f"the keys of {keys.path} are {key_width}x{key_height}, the frames {width}x{height}", "make both of one size"
            )
        if not indices(keys):
            raise ItemError(f"{keys.path} holds no keys", "give at least one")
        if outside := sorted(set(indices(keys)) - set(indices(frames))):
            raise ItemError(
                f"{keys.path} has a key at frame {outside[0]}, the clip has {len(indices(frames))} frames",
                "make both of one video",
            )
        if work.options.part >= work.options.parts:
            raise ItemError(f"part is {work.options.part} of {work.options.parts} parts", "set 0 to parts - 1")
        if work.options.engine == ebsynth.PROGRAM:
            ebsynth.program()

    def run(self, work: Work[PropagateOptions]) -> None:
        cv2.setNumThreads(1)  # parts run in parallel, as jobs
        frames, keys, options = work.artifact("frames"), work.artifact("keys"), work.options
        search = Search(options.patch_size, options.patch_votes, options.patch_iters, options.patch_radius)
        engine = Engine(options.engine, options.residual, options.full_above, search)
        clip = KeyframedClip(frames, keys, engine, options.poisson)
        listed = []
        for gap in part_gaps(sorted(set(indices(keys))), options.part, options.parts):
            for index, image in clip.translate(gap):
                suffix = f"/{index:06d}.png"
                write_member(work.output, suffix, image)
                listed.append({**frames.fields["frames"][index], "suffix": suffix})
        fields = {
            "width": frames.fields["width"],
            "height": frames.fields["height"],
            "frames": listed,
            "keys": sorted(set(indices(keys))),
            "source": frames.fields["source"],
        }
        write_index(work.output, "propagated", fields, [frame["suffix"] for frame in listed])


def indices(artifact: Artifact) -> list[int]:
    """The indices of an artifact's frames in the video."""
    return [frame["index"] for frame in artifact.fields["frames"]]


def part_gaps(keys: list[int], part: int, parts: int) -> list[Gap]:
    """The gaps of a part. The gaps of a clip are that before the first key, those between keys, and that after the last."""
    gaps: list[Gap] = list(pairwise([None, *keys, None]))
    first, end = (len(gaps) * number // parts for number in (part, part + 1))
    return gaps[first:end]


@dataclass(frozen=True, eq=False)
class KeyframedClip:
    """A clip and its translated keyframes; images are read on demand."""

    frames: Artifact
    keys: Artifact
    engine: Engine
    poisson: bool

    def translate(self, gap: Gap) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (index, RGB uint8 [H, W, 3]) in order: the key before the gap, unchanged, then the frames of the gap."""
        before, after = gap
        count = len(self.frames.fields["frames"])
        first, stop = (-1 if before is None else before), (count if after is None else after)
        inner = range(first + 1, stop)
        if before is not None:
            yield before, self._key(before).translated
        if before is not None and after is not None:
            from_after = list(self._propagate(after, reversed(inner)))
            blend = Blend(self._frame(before), self.poisson)
            for index, from_before in zip(inner, self._propagate(before, inner)):
                share = (index - before) / (after - before)
                yield index, blend.blend(self._frame(index), from_before, from_after.pop(), share)
        elif before is not None:
            yield from zip(inner, (propagated.image for propagated in self._propagate(before, inner)))
        elif after is not None:
            backwards = [propagated.image for propagated in self._propagate(after, reversed(inner))]
            yield from zip(inner, reversed(backwards))

    def _propagate(self, key: int, inner: Iterable[int]) -> Iterator[Propagated]:
        return self.engine.propagate(self._key(key), map(self._frame, inner))

    def _key(self, index: int) -> Pair:
        return Pair(self._frame(index), read_member(self.keys, self._key_suffixes[index]))

    def _frame(self, index: int) -> np.ndarray:
        return read_member(self.frames, self._frame_suffixes[index])

    @cached_property
    def _frame_suffixes(self) -> dict[int, str]:
        return suffixes(self.frames)

    @cached_property
    def _key_suffixes(self) -> dict[int, str]:
        return suffixes(self.keys)


def suffixes(artifact: Artifact) -> dict[int, str]:
    """The suffix of each frame's image, by the frame's index in the video; of an index that is listed twice, the first."""
    return {frame["index"]: frame["suffix"] for frame in reversed(artifact.fields["frames"])}
