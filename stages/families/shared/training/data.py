"""Datasets to train on: a folder of videos and captions, or shapes world. Both give items of the same form.

An item depends on (epoch, index) alone, so that a resumed training is exact.
"""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from stages.families.shared.pixels import to_float
from stages.families.shared.training.clips import usable_pairs
from stages.families.shared.training.options import SHAPES, TrainingOptions
from stages.media.folders import TEXT_ENDINGS, by_stem, files, unsupported_files
from stages.media.options import VIDEO_ENDINGS
from stages.media.select import evenly
from stages.media.shapes import world
from stages.runtime.errors import ItemError, UsageError, one_line
from stages.runtime.log import log
from stages.runtime.text import read_text
from stages.runtime.worker import import_class

SHAPES_CLIPS = 100_000
SCENES = 5000  # enough random scenes to meet each of the 360 captions
Key = tuple[int, int]  # epoch, index


class ClipDataset(Dataset[dict[str, Any]], ABC):
    """Clips, each with its `text`, by (epoch, index) or by index."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, key: Key | int) -> dict[str, Any]: ...


class TextVideoDataset(ClipDataset):
    """Videos with captions: `folder/videos/*.mp4` (also avi, mov, mkv) and `folder/captions/*.txt` of the same stems.

    An item holds `video`, float32 [3, T, H, W] in -1..1 (0..1 without `normalize`), its `text` and its `name`. Override
    `augment_text` and `augment_video` to augment them in another way, and `__getitem__` to add a `condition`, a vector.
    Option dataset takes a subclass. Raises UsageError for a folder without a pair.
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
        self.folder = folder = Path(folder)
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
        """Read evenly spaced frames of a video, cut to their middle square: uint8 [T, S, S, 3]."""
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
        """Augment a caption, with `self.rng` as the source of randomness. By default the caption is unchanged."""
        return text

    def augment_video(self, frames: np.ndarray) -> np.ndarray:
        """Augment a clip, uint8 [T, H, W, 3]: crop, contrast, brightness. No mirroring, since captions name sides."""
        size = self.frame_size
        margin = int(self.rng.integers(0, max(1, size // 16) + 1))
        top, left = self.rng.integers(0, margin + 1, 2)
        cut = [frame[top : top + size - margin, left : left + size - margin] for frame in frames]
        frames = np.stack([cv2.resize(frame, (size, size), interpolation=cv2.INTER_LINEAR) for frame in cut])
        contrast, brightness = self.rng.uniform(0.95, 1.05), self.rng.uniform(-6, 6)
        return ((frames.astype(np.float32) - 128) * contrast + 128 + brightness).clip(0, 255).astype(np.uint8)


def read_caption(path: Path) -> str:
    """Read a caption. Raises UsageError if it is not UTF-8."""
    return read_text(path).strip()


class ShapesDataset(ClipDataset):
    """Clips of shapes world, rendered on access.

    Items have the form of those of `TextVideoDataset`, and also hold the scene. In the share `inside_share` of the clips the
    border cuts no shape. `looks` limits the number of distinct looks (colour, shape, background). All captions contain the
    words of `only`. The combinations of colour and shape in `world.HELD_OUT` are left out.
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
        scenes = (world.sample(np.random.default_rng(i)) for i in range(SCENES))
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
        tensor = to_float(torch.from_numpy(item.pop("frames"))).permute(3, 0, 1, 2).contiguous()
        return {"video": tensor, "name": f"{SHAPES} {self.seed}/{index}", **item}

    def clip(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Render a clip: its `frames`, uint8 [T, H, W, 3], its `text` and further entries of an item. May be overridden."""
        scene = self.scene(index, rng)
        frames = world.render(scene, self.num_frames, self.frame_size, self.frame_size)
        return {"frames": frames, "text": scene.caption(), "scene": scene}

    def scene(self, index: int, rng: np.random.Generator) -> world.Scene:
        """Draw the scene of a clip."""
        inside = rng.random() < self.inside_share
        scene = world.sample(rng, inside=self.num_frames if inside else 0)
        while not self._is_wanted(scene):
            scene = world.sample(rng, inside=self.num_frames if inside else 0)
        if self.looks:
            look = self.looks[index % len(self.looks)]
            scene = replace(scene, color=look.color, shape=look.shape, background=look.background)
        return scene

    def _is_wanted(self, scene: world.Scene) -> bool:
        return self.only <= set(scene.caption().split())


def datasets(
    options: TrainingOptions, shapes: Callable[..., ShapesDataset] = ShapesDataset
) -> tuple[ClipDataset, ClipDataset]:
    """The clips to train on and the clips to validate with. `shapes` makes the datasets of shapes world."""
    num_frames, frame_size = options.num_frames, options.frame_size
    if options.data == SHAPES:
        if options.dataset:
            raise UsageError(f"dataset is {options.dataset!r} and data is {SHAPES}", "give a folder of clips as --data")
        count = options.max_samples or SHAPES_CLIPS
        make = partial(
            shapes,
            num_frames=num_frames,
            frame_size=frame_size,
            inside_share=options.inside_share,
            looks=options.looks,
            only=options.only,
        )
        return make(count, seed=options.seed + 1), make(options.validation_samples, seed=0)
    if not options.data:
        raise UsageError("no data is given", f"add --data FOLDER (with videos/ and captions/), or --data {SHAPES}")
    folder = Path(options.data)
    kind = dataset_class(options.dataset) if options.dataset else TextVideoDataset
    try:
        training = kind(options.data, num_frames, frame_size, augment=options.augment, seed=options.seed)
        validation = kind(options.data, num_frames, frame_size, augment=False)
    except ItemError as error:  # of a subclass that reads more than clips
        raise UsageError(error.reason, error.remedy) from error
    paired = len(training.pairs)
    pairs = usable_pairs(folder, training.pairs[: options.max_samples or None], options.skip_bad_clips)
    kept = round(len(pairs) * options.validation_share)
    every = len(pairs) // kept if kept else 0
    chosen = set(range(0, every * kept, every)) if kept else set()  # spread over the folder
    training.pairs = [pair for i, pair in enumerate(pairs) if i not in chosen]
    validation.pairs = [pair for i, pair in enumerate(pairs) if i in chosen] or pairs  # all, if too few to hold some out
    validation.pairs = validation.pairs[: options.validation_samples]
    tell_clips(folder, paired, training, validation)
    return training, validation


def dataset_class(name: str) -> type[TextVideoDataset]:
    """Import the subclass of TextVideoDataset that "module:Class" names, also from the working folder. Raises UsageError."""
    sys.path.insert(0, os.getcwd())
    try:
        found = import_class(name)
    except Exception as error:  # the module is the user's own, and may raise anything
        reason = f"{type(error).__name__}: {one_line(error)}"
        remedy = "name a module of the working folder and its class, such as clips:Clips for clips.py"
        raise UsageError(f"dataset {name} cannot be imported ({reason})", remedy) from error
    finally:
        sys.path.pop(0)
    if not (isinstance(found, type) and issubclass(found, TextVideoDataset)):
        remedy = f"derive it from {TextVideoDataset.__module__}.TextVideoDataset"
        raise UsageError(f"dataset {name} is no subclass of TextVideoDataset", remedy)
    return found


def tell_clips(folder: Path, paired: int, training: TextVideoDataset, validation: TextVideoDataset) -> None:
    """Log how many clips of a folder are used, and what is left out. `paired` is the number of videos with a caption."""
    stems = {video.stem for video in files(folder / "videos", VIDEO_ENDINGS)}
    captions = [path for path in files(folder / "captions", TEXT_ENDINGS) if path.stem not in stems]
    for left, why in ((unsupported_files(folder / "videos", VIDEO_ENDINGS), "are"), (captions, "have no video and are")):
        if left:
            log("warning", reason=f"{len(left)} files of {left[0].parent} {why} left out, the first is {left[0].name}")
    used = {*training.pairs, *validation.pairs}
    if used == {*training.pairs}:
        log("warning", reason="the clips are too few to hold some out: the validation uses clips of the training")
    counts = {"training": len(training), "validation": len(validation), "unused": paired - len(used)}
    log("clips", folder=str(folder), pairs=paired, **counts)


def collate(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Make a batch of items: tensors are stacked, all other values are in lists."""
    columns = {name: [item[name] for item in items] for name in items[0]}
    return {name: torch.stack(c) if isinstance(c[0], torch.Tensor) else c for name, c in columns.items()}


class EpochBatchSampler:
    """Yields the keys of batch after batch, from batch `start` on, for process `rank` of `world` processes.

    Each epoch has an order of its own, drawn from seed and epoch alone. A batch may reach into the next epoch, so that all
    batches have the same size.
    """

    def __init__(self, clips: int, batch_size: int, seed: int, start: int = 0, rank: int = 0, world: int = 1):
        self.clips, self.batch_size, self.seed = clips, batch_size, seed
        self.start, self.rank, self.world = start, rank, world

    def __iter__(self) -> Iterator[list[Key]]:
        place, epoch, order = (self.start * self.world + self.rank) * self.batch_size, -1, np.empty(0, dtype=np.int64)
        while True:
            keys = []
            for position in range(place, place + self.batch_size):
                if position // self.clips != epoch:
                    epoch = position // self.clips
                    order = np.random.default_rng([self.seed, epoch]).permutation(self.clips)
                keys.append((epoch, int(order[position % self.clips])))
            yield keys
            place += self.world * self.batch_size


class WithSecondPrompt(ClipDataset):
    """Gives each clip a second prompt, `text2`, and the place where it takes over, `switch`.

    Clips of a folder, which have none, keep their only prompt, with the given `switch`.
    """

    def __init__(self, clips: ClipDataset, switch: int):
        self.clips, self.switch = clips, switch

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, key: Key | int) -> dict[str, Any]:
        item = self.clips[key]
        return {"text2": item["text"], "switch": self.switch, **item}
