"""The clips of a folder, looked at before a training begins: which of them cannot be used, and which clips these are."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from stages.media.decoding import decoding_threads
from stages.media.folders import TEXT_ENDINGS, files
from stages.media.options import PICTURE_ENDINGS, VIDEO_ENDINGS
from stages.media.probe import frame_times, probe
from stages.models.shared.training.options import SHAPES
from stages.runtime.artifacts import canonical
from stages.runtime.errors import ItemError, UsageError, one_line
from stages.runtime.log import log
from stages.runtime.text import is_plain, read_text

Pair = tuple[Path, Path]  # a video and its caption
NAMED = 5  # clips in a message
MISSING = 0.05  # share of a video's declared length at its end, from which on it counts as truncated


def usable(folder: Path, pairs: Sequence[Pair], skip: bool) -> list[Pair]:
    """The pairs that can be trained on, by what their headers, first frames and packets tell: nothing is decoded to its end.

    Raises UsageError that counts the clips that cannot be used and names the first; with `skip` they are left out, each with
    a line in the log.
    """
    with ThreadPoolExecutor(decoding_threads()) as pool:
        reasons = pool.map(fault, pairs)
    bad = {video: reason for (video, _), reason in zip(pairs, reasons, strict=True) if reason} | unpaired(folder)
    kept = [pair for pair in pairs if pair[0] not in bad]
    if bad and not (skip and kept):
        first = sorted(bad.items())[:NAMED]
        said = ", ".join(f"{os.fsencode(video.name).decode(errors='replace')} ({reason})" for video, reason in first)
        more = f" and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
        remedy = "mend them" if skip else "mend them, or leave them out with --skip-bad-clips"
        raise UsageError(f"{len(bad)} clips of {folder} cannot be trained on: {said}{more}", remedy)
    for video, reason in sorted(bad.items()):
        log("left_out", clip=str(video), reason=reason)
    return kept


def fault(pair: Pair) -> str:
    """Why a clip cannot be trained on; empty where nothing is seen."""
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
    except Exception as error:  # a reader answers damage in any way
        return one_line(error)
    end = times[-1] + 1 / source.fps if len(times) else 0
    few = source.declared_frames is None or len(times) < source.declared_frames
    if few and end < (1 - MISSING) * source.duration - 2 / source.fps:
        return f"it is truncated after {end:.1f} of {source.duration:.1f} seconds"
    return ""


def unpaired(folder: Path) -> dict[Path, str]:
    """Videos without a caption, and images, in the folder's videos/; hidden files and other kinds are no clips."""
    captions = {path.stem for path in files(folder / "captions", TEXT_ENDINGS)}
    videos, images = (files(folder / "videos", endings) for endings in (VIDEO_ENDINGS, PICTURE_ENDINGS))
    alone = {path: f"it has no caption {path.stem}.txt" for path in videos if path.stem not in captions}
    return alone | dict.fromkeys(images, "it is an image and no video")


def identity(data: str) -> str:
    """What the clips of a folder are, wherever it lies and however its path is written: their names and sizes.

    Of shapes world, and where there is no folder, the name itself.
    """
    folder = Path(data)
    if data == SHAPES or not os.path.isdir(folder):
        return data
    clips = [*files(folder / "videos", VIDEO_ENDINGS), *files(folder / "captions", TEXT_ENDINGS)]
    listed = sorted([os.fsencode(path.relative_to(folder)).hex(), path.stat().st_size] for path in clips)
    return hashlib.sha256(canonical(listed)).hexdigest()
