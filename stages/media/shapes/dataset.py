"""A data set of shapes world: videos, captions, and the scenes that they are rendered from.

FOLDER/videos/0000.mp4      H.264, of a quality that keeps the colours
FOLDER/captions/0000.txt    its caption, with the direction at its last frame
FOLDER/scenes.jsonl         an object per clip: `stem`, the fields of its Scene, `frames`, and `size`, the side of a frame
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from stages.media.shapes.world import Scene, render, sample
from stages.media.write import VideoWriter
from stages.runtime.errors import UsageError
from stages.runtime.files import open_plain, replacing

SCENES = "scenes.jsonl"
CRF = 8


@dataclass(frozen=True)
class Source:
    """A clip of a data set: `frames` frames of a scene from frame 0 on, each a square of `size` pixels."""

    scene: Scene
    frames: int
    size: int

    @property
    def caption(self) -> str:
        return self.scene.caption()


def draw(count: int, size: int, frames: int, seed: int, held_out: bool = False) -> list[Source]:
    """The clips of a data set. Clip i depends only on `seed` and i."""
    scenes = (sample(np.random.default_rng([seed, i]), held_out) for i in range(count))
    return [Source(scene, frames, size) for scene in scenes]


def write(folder: Path, sources: list[Source], fps: float) -> Iterator[str]:
    """Write a data set; yields the stem of each clip once it is written.

    Raises UsageError for a folder that is not empty, and for a size that cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists and is not an empty folder", "give a new one, or remove it")
    for name in ("videos", "captions"):
        (folder / name).mkdir(parents=True)
    lines = []
    for i, source in enumerate(sources):
        stem = f"{i:04d}"
        with VideoWriter(folder / "videos" / f"{stem}.mp4", source.size, source.size, fps, crf=CRF) as video:
            for rgb in render(source.scene, source.frames, source.size, source.size):
                video.write(rgb)
        (folder / "captions" / f"{stem}.txt").write_text(source.caption + "\n")
        lines.append({"stem": stem, **asdict(source.scene), "frames": source.frames, "size": source.size})
        yield stem
    with replacing(folder / SCENES) as temporary:  # written last and atomically: a folder with it is complete
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))


def read(path: Path) -> dict[str, Source]:
    """The clips of a data set by stem, from its scenes.jsonl. Raises UsageError for a missing or damaged file."""
    names = [field.name for field in fields(Scene)]
    sources = {}
    try:
        with open_plain(path) as lines:
            for row in map(json.loads, lines):
                sources[row["stem"]] = Source(Scene(**{name: row[name] for name in names}), row["frames"], row["size"])
    except FileNotFoundError:
        raise UsageError(f"the scenes {path} do not exist", "give the scenes.jsonl of a data set of shapes world") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"the scenes {path} cannot be read ({error!r})", "make the data set again") from None
    return sources
