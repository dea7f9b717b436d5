"""Clips to train on: a folder of videos and captions, or shapes world. Both give the same items.

An item is asked for by (epoch, index) and is a function of these alone: that makes a resumed training exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from stages.media.folders import TEXT_ENDINGS, by_stem, files, overlooked
from stages.media.options import VIDEO_ENDINGS
from stages.media.select import evenly
from stages.media.shapes import world
from stages.models.shared.training.clips import usable
from stages.models.shared.training.options import SHAPES
from stages.runtime.errors import ItemError, UsageError
from stages.runtime.log import log
from stages.runtime.text import read_text

SHAPES_CLIPS = 100_000
ENOUGH = 5000  # scenes to meet each of the 360 captions
Key = tuple[int, int]  # epoch, index


class TextVideoDataset(Dataset):
    """Videos with captions: `folder/videos/*.mp4` (also avi, mov, mkv) and `folder/captions/*.txt` of the same stems.

    An item holds `video`, float32 [3, T, H, W] in -1..1 (0..1 without `normalize`), its `text` and its `name`. Override
    `augment_text` and `augment_video` to vary them in another way. Raises UsageError for a folder without a pair.
    """

    def __init__(
        self,
        folder: Path | str,
        num_frames: int = 16,
        frame_size: int = 64,
        normalize: bool = True,
        augment: bool = True,
        max_samples: int = 0,
        seed: int = 0,
    ):
        folder = Path(folder)
        captions = by_stem(files(folder / "captions", TEXT_ENDINGS), "captions")
        videos = files(folder / "videos", VIDEO_ENDINGS)
        self.pairs = [(video, captions[video.stem]) for video in videos if video.stem in captions]
        if not self.pairs:
            raise UsageError(
                f"{folder} has no video in videos/ with a caption of the same stem in captions/",
                "put pairs such as videos/one.mp4 and captions/one.txt there",
            )
        self.pairs = self.pairs[: max_samples or None]
        self.num_frames, self.frame_size, self.normalize, self.augment = num_frames, frame_size, normalize, augment
        self.seed = seed

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: Key | int) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        video, caption = self.pairs[index]
        self.rng = np.random.default_rng([self.seed, epoch, index])
        text, frames = read_caption(caption), self._read(video)
        if self.augment:
            text, frames = self.augment_text(text), self.augment_video(frames)
        frames = frames.astype(np.float32) / 255
        tensor = torch.from_numpy(frames * 2 - 1 if self.normalize else frames)
        return {"video": tensor.permute(3, 0, 1, 2).contiguous(), "text": text, "name": video.name}

    def _read(self, video: Path) -> np.ndarray:
        """uint8 [T, S, S, 3]: frames spread evenly, the middle square of the picture."""
        try:
            frames = [frame.rgb for frame in evenly(video, self.num_frames)]
        except ItemError as error:
            raise UsageError(f"the training video {video} cannot be read: {error.reason}", error.remedy) from error
        height, width = frames[0].shape[:2]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        size = (self.frame_size, self.frame_size)
        squares = [frame[top : top + side, left : left + side] for frame in frames]
        return np.stack([cv2.resize(square, size, interpolation=cv2.INTER_AREA) for square in squares])

    def augment_text(self, text: str) -> str:
        """A variation of a caption; `self.rng` is the source of randomness. As it stands, none."""
        return text

    def augment_video(self, frames: np.ndarray) -> np.ndarray:
        """A variation of a clip, uint8 [T, H, W, 3], that leaves its caption true: no mirror, since captions name sides."""
        size = self.frame_size
        margin = int(self.rng.integers(0, max(1, size // 16) + 1))
        top, left = self.rng.integers(0, margin + 1, 2)
        cut = [frame[top : top + size - margin, left : left + size - margin] for frame in frames]
        frames = np.stack([cv2.resize(frame, (size, size), interpolation=cv2.INTER_LINEAR) for frame in cut])
        contrast, brightness = self.rng.uniform(0.95, 1.05), self.rng.uniform(-6, 6)
        return ((frames.astype(np.float32) - 128) * contrast + 128 + brightness).clip(0, 255).astype(np.uint8)


def read_caption(path: Path) -> str:
    """A caption's text. Raises UsageError where it is not UTF-8."""
    return read_text(path).strip()


class ShapesDataset(Dataset):
    """Clips of shapes world, drawn when they are asked for.

    Items are those of `TextVideoDataset`, and hold the scene beside that. In a part of the clips, `inside_share`, the
    border cuts no shape. With `looks`, there are only so many looks: a colour, a shape and a ground each. All captions have
    the words `only`. The combinations of colour and shape in `world.HELD_OUT` are left out.
    """

    def __init__(
        self,
        count: int,
        num_frames: int,
        frame_size: int,
        seed: int = 0,
        inside_share: float = 0.0,
        looks: int = 0,
        only: str = "",
    ):
        self.count, self.num_frames, self.frame_size = count, num_frames, frame_size
        self.seed, self.inside_share, self.only = seed, inside_share, set(only.split())
        scenes = (world.sample(np.random.default_rng(i)) for i in range(ENOUGH))
        wanted = list(islice(filter(self._is_wanted, scenes), max(1, looks)))
        if not wanted:
            raise UsageError(f"only is {only!r} and no caption has all of that", f"choose from {', '.join(world.WORDS)}")
        self.looks = wanted[:looks]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, key: Key | int) -> dict[str, Any]:
        index = key[1] if isinstance(key, tuple) else key
        if not 0 <= index < self.count:
            raise IndexError(f"clip {index} of {self.count}")
        item = self.clip(index, np.random.default_rng([self.seed, index]))
        tensor = torch.from_numpy(item.pop("frames").astype(np.float32) / 127.5 - 1).permute(3, 0, 1, 2).contiguous()
        return {"video": tensor, "name": f"{SHAPES} {self.seed}/{index}", **item}

    def clip(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """A clip's `frames`, uint8 [T, H, W, 3], its `text`, and what is known of it. May be overridden."""
        scene = self.scene(index, rng)
        frames = world.render(scene, self.num_frames, self.frame_size, self.frame_size)
        return {"frames": frames, "text": scene.caption(), "scene": scene}

    def scene(self, index: int, rng: np.random.Generator) -> world.Scene:
        inside = rng.random() < self.inside_share
        scenes = iter(lambda: world.sample(rng, inside=self.num_frames if inside else 0), None)
        scene = next(filter(self._is_wanted, scenes))
        if self.looks:
            look = self.looks[index % len(self.looks)]
            scene = replace(scene, color=look.color, shape=look.shape, background=look.background)
        return scene

    def _is_wanted(self, scene: world.Scene) -> bool:
        return self.only <= set(scene.caption().split())


def datasets(options: Mapping[str, Any], shapes: Callable[..., ShapesDataset] = ShapesDataset) -> tuple[Dataset, Dataset]:
    """The clips to train on and those to validate with; `shapes` makes those of shapes world."""
    size = {"num_frames": options["num_frames"], "frame_size": options["frame_size"]}
    if options["data"] == SHAPES:
        count = options["max_samples"] or SHAPES_CLIPS
        kind = {**size, "inside_share": options["inside_share"], "looks": options["looks"], "only": options["only"]}
        return (
            shapes(count, **kind, seed=options["seed"] + 1),
            shapes(options["validation_samples"], **kind, seed=0),
        )
    if not options["data"]:
        raise UsageError("no data is given", f"add --data FOLDER (with videos/ and captions/), or --data {SHAPES}")
    if left := overlooked(Path(options["data"]) / "videos", VIDEO_ENDINGS):
        log("warning", reason=f"{len(left)} files of {left[0].parent} are left out, the first is {left[0].name}")
    folder = TextVideoDataset(options["data"], **size, augment=options["augment"], seed=options["seed"])
    plain = TextVideoDataset(options["data"], **size, augment=False)
    pairs = usable(Path(options["data"]), folder.pairs[: options["max_samples"] or None], options["skip_bad_clips"])
    kept = round(len(pairs) * options["validation_share"])
    every = len(pairs) // kept if kept else 0
    chosen = set(range(0, every * kept, every)) if kept else set()  # spread over the folder
    folder.pairs = [pair for i, pair in enumerate(pairs) if i not in chosen]
    plain.pairs = [pair for i, pair in enumerate(pairs) if i in chosen] or pairs  # too few to keep some back: all
    plain.pairs = plain.pairs[: options["validation_samples"]]
    return folder, plain


def collate(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A batch: tensors stacked, everything else in lists."""
    columns = {name: [item[name] for item in items] for name in items[0]}
    return {name: torch.stack(c) if isinstance(c[0], torch.Tensor) else c for name, c in columns.items()}


class Order:
    """Which clips are in which batch: each epoch in an order of its own, drawn from seed and epoch alone.

    Iterating gives the keys of batch after batch from `start` on, those of process `rank` of `world`. A batch may reach
    into the next epoch, so that all are equally large.
    """

    def __init__(self, clips: int, batch_size: int, seed: int, start: int = 0, rank: int = 0, world: int = 1):
        self.clips, self.batch_size, self.seed = clips, batch_size, seed
        self.start, self.rank, self.world = start, rank, world

    def __iter__(self) -> Iterator[list[Key]]:
        place, epoch, order = (self.start * self.world + self.rank) * self.batch_size, -1, []
        while True:
            keys = []
            for position in range(place, place + self.batch_size):
                if position // self.clips != epoch:
                    epoch = position // self.clips
                    order = np.random.default_rng([self.seed, epoch]).permutation(self.clips)
                keys.append((epoch, int(order[position % self.clips])))
            yield keys
            place += self.world * self.batch_size
