"""The worker of `extract_frames`: select frames of a video, fit them to a size, write them as PNG."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from stages.media import select
from stages.media.edges import canny
from stages.media.fit import FREE, fit_image, target_size
from stages.media.options import IMAGE_ENDINGS, ExtractFramesOptions
from stages.media.probe import Source, probe
from stages.media.read import Frame, frames, read_image
from stages.media.write import write_member
from stages.runtime.artifacts import Artifact, write_index
from stages.runtime.sizes import parse_size
from stages.runtime.worker import Work, Worker


class ExtractFrames(Worker[ExtractFramesOptions]):
    """Writes `frames`: the selected frames with their indices and times."""

    def run(self, work: Work[ExtractFramesOptions]) -> None:
        options, video = work.options, work.input("video")
        path = video.member(".mp4") if isinstance(video, Artifact) else video
        source = Still(path) if path.suffix.lower() in IMAGE_ENDINGS else probe(path)
        size = parse_size(options.size) if options.size else source.size
        if options.size:
            multiple = options.multiple if options.fit in FREE else 1
            size = target_size(source.size, size, options.fit, multiple, options.area_rule)
        listed: list[dict[str, Any]] = []
        members: dict[str, None] = {}
        chosen = source.frames() if isinstance(source, Still) else select_frames(source, size, options)
        for frame in chosen:
            fitted, name = fit_image(frame.rgb, size, options.fit), f"/{frame.index:06d}"
            entry: dict[str, Any] = {"index": frame.index, "time": round(frame.time, 6), "suffix": f"{name}.png"}
            images = {entry["suffix"]: fitted}
            if options.canny:
                entry["canny"] = f"{name}.canny.png"
                images[entry["canny"]] = np.stack([canny(fitted)] * 3, axis=-1)
            for suffix, image in images.items():
                write_member(work.output, suffix, image)
            listed.append(entry)
            members |= dict.fromkeys(images)
        fields = {
            "width": size[0],
            "height": size[1],
            "select": options.select,
            "frames": listed,
            "source": source.fields() if isinstance(source, Still) else source_fields(source),
        }
        write_index(work.output, "frames", fields, members)


class Still:
    """An image as a source: a video of one frame, whatever is selected. Raises ItemError for an unreadable image."""

    def __init__(self, path: Path):
        self.path, self.rgb = path, read_image(path)
        height, width, _ = self.rgb.shape
        self.size = width, height

    def frames(self) -> Iterator[Frame]:
        yield Frame(0, 0.0, self.rgb)

    def fields(self) -> dict[str, Any]:
        """The source as the artifact describes it. The rate of an image means nothing."""
        width, height = self.size
        return {"path": self.path.name, "width": width, "height": height, "fps": "1"}


def select_frames(source: Source, size: tuple[int, int], options: ExtractFramesOptions) -> Iterator[Frame]:
    """Yield the frames that the option `select` names, each as soon as it is read.

    For keyframes the video is read twice: to measure its motion at the new `size`, then to take the frames. Raises ItemError
    for a truncated video, unless the options allow it.
    """
    how, count, allow_truncated = options.select, options.count, options.allow_truncated
    if how in ("last", "tail"):
        yield from select.last(source.path, count if how == "tail" else 1, allow_truncated=allow_truncated)
    elif how == "segments":
        yield from select.midpoints(source.path, count, allow_truncated=allow_truncated)
    elif how == "first":
        yield from select.first(source.path, count, allow_truncated=allow_truncated)
    elif how == "keyframes":
        fitted = (fit_image(frame.rgb, size, options.fit) for frame in frames(source, allow_damage=allow_truncated))
        motion = select.frame_motion(fitted)
        indices = select.keyframe_indices(motion, options.min_interval, options.max_interval)
        yield from select.frames_at(frames(source, allow_damage=allow_truncated), indices)
    else:
        yield from frames(source, allow_damage=allow_truncated)


def source_fields(source: Source) -> dict[str, Any]:
    """The source as the artifact describes it: plain values, and the file's name without its folder."""
    plain = {"path": source.path.name, "fps": str(source.fps), "sample_aspect": str(source.sample_aspect)}
    return {**vars(source), **plain}
