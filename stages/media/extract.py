"""The work of `extract_frames`: choose frames of a video, fit them to a size, keep them as PNG."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from stages.media import select
from stages.media.edges import canny
from stages.media.fit import FREE, fit_image, target_size
from stages.media.probe import Source, probe
from stages.media.read import Frame, frames
from stages.media.write import write_member
from stages.runtime.artifacts import Artifact, write_index
from stages.runtime.size import parse_size
from stages.runtime.worker import Work, Worker


class ExtractFrames(Worker):
    def run(self, work: Work, phase: str) -> None:
        options, video = work.options, work.inputs["video"]
        source = probe(video.member(".mp4") if isinstance(video, Artifact) else video)
        size = parse_size(options["size"]) if options["size"] else source.size
        if options["size"]:
            multiple = options["multiple"] if options["fit"] in FREE else 1
            size = target_size(source.size, size, options["fit"], multiple, options["area_rule"])
        listed, members = [], {}
        for frame in chosen(source, size, options):
            fitted, name = fit_image(frame.rgb, size, options["fit"]), f"/{frame.index:06d}"
            entry = {"index": frame.index, "time": round(frame.time, 6), "suffix": f"{name}.png"}
            pictures = {entry["suffix"]: fitted}
            if options["canny"]:
                entry["canny"] = f"{name}.canny.png"
                pictures[entry["canny"]] = np.stack([canny(fitted)] * 3, axis=-1)
            for suffix, picture in pictures.items():
                write_member(work.output, suffix, picture)
            listed.append(entry)
            members |= dict.fromkeys(pictures)
        fields = {
            "width": size[0],
            "height": size[1],
            "select": options["select"],
            "frames": listed,
            "source": facts(source),
        }
        write_index(work.output, "frames", fields, members)


def chosen(source: Source, size: tuple[int, int], options: Mapping[str, Any]) -> Iterator[Frame]:
    """The frames that the option `select` names, each as soon as it is read.

    Raises ItemError for a truncated video, unless allowed. For keyframes the video is read twice: to see, at its new `size`,
    where it moves, and to take them.
    """
    how, count, allow_truncated = options["select"], options["count"], options["allow_truncated"]
    if how in ("last", "tail"):
        yield from select.last(source.path, count if how == "tail" else 1, allow_truncated=allow_truncated)
    elif how == "segments":
        yield from select.midpoints(source.path, count, allow_truncated=allow_truncated)
    elif how == "first":
        yield from select.first(source.path, count, allow_truncated=allow_truncated)
    elif how == "keyframes":
        fitted = (fit_image(frame.rgb, size, options["fit"]) for frame in frames(source, allow_damage=allow_truncated))
        motion = select.motion_of(fitted)
        indices = select.keyframe_indices(motion, options["mininterv"], options["maxinterv"])
        yield from select.pick(frames(source, allow_damage=allow_truncated), indices)
    else:
        yield from frames(source, allow_damage=allow_truncated)


def facts(source: Source) -> dict:
    """What is kept of the source in the artifact: plain values, without its path."""
    described = replace(source, path=Path(source.path).name, fps=str(source.fps), sample_aspect=str(source.sample_aspect))
    return dict(vars(described))
