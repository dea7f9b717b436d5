"""Checks the clips of a folder before a training begins, and identifies them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from stages.families.shared.training.options import SHAPES
from stages.media.decoding import decoding_threads
from stages.media.folders import TEXT_ENDINGS, files
from stages.media.options import IMAGE_ENDINGS, VIDEO_ENDINGS
from stages.media.probe import frame_times, probe
from stages.runtime.canonical import canonical_json
from stages.runtime.errors import ItemError, UsageError, one_line
from stages.runtime.log import log
from stages.runtime.text import is_plain, read_text

Pair = tuple[Path, Path]  # a video and its caption
NAMED = 5  # clips in a message
MISSING = 0.05  # a video that lacks more than this share of its declared length counts as truncated


def usable_pairs(folder: Path, pairs: Sequence[Pair], skip: bool) -> list[Pair]:
    """The pairs that can be trained on, judged by headers, first frames and packets; no video is decoded to its end.

    Raises UsageError if a clip cannot be used; the message counts such clips and names the first. With `skip` they are left
    out, each with a line in the log.
    """
    with ThreadPoolExecutor(decoding_threads()) as pool:
        reasons = pool.map(find_fault, pairs)
    bad = {video: reason for (video, _), reason in zip(pairs, reasons, strict=True) if reason} | unpaired_files(folder)
    kept = [pair for pair in pairs if pair[0] not in bad]
    if bad and not (skip and kept):
        first = sorted(bad.items())[:NAMED]
        named = ", ".join(f"{os.fsencode(video.name).decode(errors='replace')} ({reason})" for video, reason in first)
        more = f" and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
        remedy = "mend them" if skip else "mend them, or leave them out with --skip-bad-clips"
        raise UsageError(f"{len(bad)} clips of {folder} cannot be trained on: {named}{more}", remedy)
    for video, reason in sorted(bad.items()):
        log("left_out", clip=str(video), reason=reason)
    return kept


def find_fault(pair: Pair) -> str:
    """The reason why a clip cannot be trained on; empty if none is found."""
    video, caption = pair
    if not is_plain(str(video)):
        return "its name is not UTF-8"
    try:
        if not read_text(caption).strip():
            return "its caption is empty"
        source = probe(video)
        times = frame_times(source)
    except ItemError as error:
        return error.reason.removeprefix(f"{video} ")
    except UsageError as error:
        return f"its caption is no text: {error.reason.removeprefix(f'{caption} ')}"
    except Exception as error:  # readers raise any exception for damaged files
        return one_line(error)
    end = times[-1] + 1 / source.fps if len(times) else 0
    few = source.declared_frames is None or len(times) < source.declared_frames
    if few and end < (1 - MISSING) * source.duration - 2 / source.fps:
        return f"it is truncated after {end:.1f} of {source.duration:.1f} seconds"
    return ""


def unpaired_files(folder: Path) -> dict[Path, str]:
    """Files in videos/ that are no clips, with the reason: videos without a caption, and images. Others are ignored."""
    captions = {path.stem for path in files(folder / "captions", TEXT_ENDINGS)}
    videos, images = (files(folder / "videos", endings) for endings in (VIDEO_ENDINGS, IMAGE_ENDINGS))
    alone = {path: f"it has no caption {path.stem}.txt" for path in videos if path.stem not in captions}
    return alone | dict.fromkeys(images, "it is an image and no video")


def identity(data: str) -> str:
    """A digest of the names and sizes of a folder's clips, which does not depend on the path of the folder.

    For shapes world, and without a folder, it is `data` itself.
    """
    folder = Path(data)
    if data == SHAPES or not os.path.isdir(folder):
        return data
    clips = [*files(folder / "videos", VIDEO_ENDINGS), *files(folder / "captions", TEXT_ENDINGS)]
    listed = sorted([os.fsencode(path.relative_to(folder)).hex(), path.stat().st_size] for path in clips)
    return hashlib.sha256(canonical_json(listed)).hexdigest()
