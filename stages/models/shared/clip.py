"""Pixels become a `clip` artifact: the same for every family's decode."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from fractions import Fraction
from itertools import count
from typing import Any

import numpy as np
import torch

from stages.media.sheet import contact_sheet
from stages.media.stats import ClipStatistics
from stages.media.write import VideoWriter, write_gif, write_member, write_png
from stages.runtime.artifacts import member_path, write_index
from stages.runtime.errors import ItemError
from stages.runtime.worker import Work


def write_clip(
    work: Work, frames: Iterable[np.ndarray], fields: Mapping[str, Any], numbers: Iterable[int] | None = None
) -> None:
    """Write frames, RGB, uint8 [H, W, 3], one by one: the video, its last frame as PNG, and what the options ask for.

    `fields` are those of the artifact, width and height among them, but for the rate and the statistics. `numbers` are those
    of the pictures, where they are not counted from 0. All frames are in memory at once only for a GIF or a contact sheet.
    """
    options = work.options
    rate = Fraction(options["fps"]).limit_denominator(1001)
    size = fields["width"], fields["height"]
    codecs = {".mp4": "h264", **({".mkv": "lossless"} if options["lossless"] else {})}
    members, statistics, kept = [*codecs, ".last.png"], ClipStatistics(), []
    with ExitStack() as stack:
        videos = [
            stack.enter_context(VideoWriter(member_path(work.output, suffix), *size, rate, codec=codec, crf=options["crf"]))
            for suffix, codec in codecs.items()
        ]
        for number, rgb in zip(numbers or count(), frames):
            statistics.add(rgb)
            for video in videos:
                video.write(rgb)
            if options["save_frames"]:
                members.append(f"/{number:06d}.png")
                write_member(work.output, members[-1], rgb)
            if options["save_gif"] or options["visualize"]:
                kept.append(rgb)
    if videos[0].frames != fields["num_frames"]:
        path = work.inputs["latents"].path
        raise ItemError(
            f"{path} speaks of {fields['num_frames']} frames and holds {videos[0].frames}", "make it again with generate"
        )
    write_png(member_path(work.output, ".last.png"), rgb)
    if options["save_gif"]:
        members.append(".gif")
        write_gif(member_path(work.output, ".gif"), kept, rate)
    if options["visualize"]:
        members.append(".sheet.png")
        write_png(member_path(work.output, ".sheet.png"), contact_sheet([kept], [fields["prompt"]]))
    rate_text = f"{rate.numerator}/{rate.denominator}"
    write_index(work.output, "clip", {**fields, "fps": rate_text, "statistics": statistics.summary()}, members)


def to_uint8(clip: torch.Tensor) -> np.ndarray:
    """A clip [3, T, H, W] in -1..1 as uint8 [T, H, W, 3]."""
    return ((clip / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 3, 0).cpu().numpy()
