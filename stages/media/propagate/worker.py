"""The work of `propagate`: the frames between translated keyframes, from the frames that were filmed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np

from stages.media.members import read_member
from stages.media.propagate import ebsynth
from stages.media.propagate.blend import Blend
from stages.media.propagate.engines import Engine
from stages.media.propagate.patches import Pair, Search
from stages.media.write import write_member
from stages.runtime.artifacts import Artifact, write_index
from stages.runtime.errors import ItemError
from stages.runtime.worker import Work, Worker

Gap = tuple[int | None, int | None]  # indices of the key before and of the key behind; None at the ends of the clip


class Propagate(Worker):
    def check(self, work: Work) -> None:
        frames, keys = work.inputs["frames"], work.inputs["keys"]
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
        if strange := sorted(set(indices(keys)) - set(indices(frames))):
            raise ItemError(
                f"{keys.path} has a key at frame {strange[0]}, the clip has {len(indices(frames))} frames",
                "make both of one video",
            )
        if work.options["part"] >= work.options["parts"]:
            raise ItemError(f"part is {work.options['part']} of {work.options['parts']} parts", "they are counted from 0")
        if work.options["engine"] == ebsynth.PROGRAM:
            ebsynth.program()

    def run(self, work: Work, phase: str) -> None:
        cv2.setNumThreads(1)  # cores are for intervals, which jobs do side by side
        frames, keys, options = work.inputs["frames"], work.inputs["keys"], work.options
        search = Search(options["patch_size"], options["patch_votes"], options["patch_iters"], options["patch_radius"])
        engine = Engine(options["engine"], options["residual"], options["full_above"], search)
        clip = Clip(frames, keys, engine, options["poisson"])
        listed = []
        for gap in gaps_of(sorted(set(indices(keys))), options["part"], options["parts"]):
            for index, picture in clip.pictures(gap):
                suffix = f"/{index:06d}.png"
                write_member(work.output, suffix, picture)
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
    return [frame["index"] for frame in artifact.fields["frames"]]


def gaps_of(keys: list[int], part: int, parts: int) -> list[Gap]:
    """What a part consists of. In order, the parts have every gap: that before the first key, those between two, and that
    after the last key."""
    gaps = list(pairwise([None, *keys, None]))
    first, end = (len(gaps) * number // parts for number in (part, part + 1))
    return gaps[first:end]


@dataclass(frozen=True, eq=False)
class Clip:
    """A clip and its keys; pictures are read when they are needed."""

    frames: Artifact
    keys: Artifact
    engine: Engine
    poisson: bool

    def pictures(self, gap: Gap) -> Iterator[tuple[int, np.ndarray]]:
        """The key before a gap, unchanged, and the frames of the gap: (index, RGB uint8 [H, W, 3]), in order."""
        before, behind = gap
        count = len(self.frames.fields["frames"])
        first, stop = (-1 if before is None else before), (count if behind is None else behind)
        inner = range(first + 1, stop)
        if before is None:
            backwards = [carried.picture for carried in self._carried(behind, reversed(inner))]
            yield from zip(inner, reversed(backwards))
            return
        yield before, self._key(before).picture
        if behind is None:
            yield from zip(inner, (carried.picture for carried in self._carried(before, inner)))
            return
        from_behind = list(self._carried(behind, reversed(inner)))
        blend = Blend(self._frame(before), self.poisson)
        for index, carried in zip(inner, self._carried(before, inner)):
            share = (index - before) / (behind - before)
            yield index, blend.picture(self._frame(index), carried, from_behind.pop(), share)

    def _carried(self, key: int, inner):
        return self.engine.carry(self._key(key), map(self._frame, inner))

    def _key(self, index: int) -> Pair:
        return Pair(self._frame(index), picture_at(self.keys, index))

    def _frame(self, index: int) -> np.ndarray:
        return picture_at(self.frames, index)


def picture_at(artifact: Artifact, index: int) -> np.ndarray:
    suffix = next(frame["suffix"] for frame in artifact.fields["frames"] if frame["index"] == index)
    return read_member(artifact, suffix)
