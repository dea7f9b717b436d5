"""Writes a `clip` artifact, or a growing video, from frames: the decode of every family uses it."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from contextlib import ExitStack
from fractions import Fraction
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from stages.families.shared.ahead import ahead
from stages.media.marks import marks_of
from stages.media.sheet import contact_sheet
from stages.media.stats import ClipStatistics
from stages.media.write import VideoWriter, write_gif, write_member, write_png
from stages.runtime.artifacts import Artifact, member_path, write_index
from stages.runtime.errors import ItemError
from stages.runtime.worker import Work

FRAMES_AHEAD = 8  # two chunks of a video VAE


def write_clip(
    work: Work,
    frames: Generator[np.ndarray, None, None],
    fields: Mapping[str, Any],
    numbers: Iterable[int] | None = None,
    has_source: bool = False,
) -> None:
    """Write frames, RGB uint8 [H, W, 3], one by one: the video, its last frame as PNG, and what the options ask for.

    The frames are decoded in a thread of their own, ahead of the writing, so that the device does not wait for the CPU.
    `fields` are the fields of the artifact, with width and height, without frame rate and statistics. `numbers` are the
    numbers of the frames in the names of saved images; by default they count from 0. `has_source` says that the film shows
    frames of a source. All frames are in memory at once only for a GIF or a contact sheet. Raises ItemError if the number of
    frames is not `num_frames` of the fields.
    """
    options = work.options
    rate = Fraction(options.fps).limit_denominator(1001)
    size = fields["width"], fields["height"]
    marks = marks_of([work.artifact("latents")], options.private, has_source)
    codecs = {".mp4": "h264", **({".mkv": "lossless"} if options.lossless else {})}
    members, statistics, kept = [*codecs, ".last.png"], ClipStatistics(), []
    with ExitStack() as stack:
        videos = [
            stack.enter_context(
                VideoWriter(
                    member_path(work.output, suffix),
                    *size,
                    rate,
                    codec=codec,
                    crf=options.crf,
                    marks=marks if suffix == ".mp4" else None,
                )
            )
            for suffix, codec in codecs.items()
        ]
        decoded = stack.enter_context(ahead(frames, FRAMES_AHEAD))
        for number, rgb in zip(numbers or count(), decoded):
            statistics.add(rgb)
            for video in videos:
                video.write(rgb)
            if options.save_frames:
                members.append(f"/{number:06d}.png")
                write_member(work.output, members[-1], rgb)
            if options.save_gif or options.visualize:
                kept.append(rgb)
    if videos[0].frames != fields["num_frames"]:
        path = work.artifact("latents").path
        raise ItemError(
            f"{path} declares {fields['num_frames']} frames and holds {videos[0].frames}", "make it again with generate"
        )
    write_png(member_path(work.output, ".last.png"), rgb)
    if options.save_gif:
        members.append(".gif")
        write_gif(member_path(work.output, ".gif"), kept, rate)
    if options.visualize:
        members.append(".sheet.png")
        write_png(member_path(work.output, ".sheet.png"), contact_sheet([np.stack(kept)], [fields["prompt"]]))
    rate_text = f"{rate.numerator}/{rate.denominator}"
    write_index(work.output, "clip", {**fields, "fps": rate_text, "statistics": statistics.summary()}, members)


def write_growing(
    output: Path, frames: Iterable[np.ndarray], latents: Artifact, options: Any, has_source: bool = False
) -> None:
    """Write frames, RGB uint8 [H, W, 3], of growing `latents` to a video that can be played meanwhile: see `write_clip`."""
    size, marks = (latents.fields["width"], latents.fields["height"]), marks_of([latents], options.private, has_source)
    with VideoWriter(output, *size, options.fps, crf=options.crf, growing=True, marks=marks) as video:
        for rgb in frames:
            video.write(rgb)
