"""DynamiCrafter called from Python: what encode, generate and decode do, with one model in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stages.media.read import as_rgb
from stages.media.write import VideoWriter
from stages.models.dynamicrafter.condition import Encoders, as_pixels
from stages.models.dynamicrafter.decode import decoded
from stages.models.dynamicrafter.denoiser import Denoiser
from stages.models.dynamicrafter.options import FAMILY, SIZES, check_last
from stages.runtime import weights
from stages.runtime.errors import UsageError
from stages.runtime.model import find_model
from stages.runtime.options import resolve
from stages.runtime.size import parse_size


def save_video(frames: Sequence[np.ndarray], path: str | Path, fps: float = 8) -> None:
    """Write frames, uint8 [H, W, 3], as an H.264 video."""
    height, width, _ = frames[0].shape
    with VideoWriter(path, width, height, fps) as video:
        for rgb in frames:
            video.write(rgb)


class DynamiCrafterImg2VideoPipeline:
    """A model of a `resolution` (256, 512, 1024 or "512_interp"; "256_256" and its like do as well) on a device.

    `model` is a folder that convert dynamicrafter wrote, or a name in ./config.yaml; without one it is
    models/dynamicrafter-RESOLUTION. Its options in the config are taken as defaults. Raises UsageError, JobError.
    """

    def __init__(
        self, resolution: int | str = 256, device: str = "cuda:0", model: str | Path | None = None, dtype: str = "bfloat16"
    ):
        text = str(resolution)
        variant = text if text in SIZES else text.partition("_")[0]
        if variant not in SIZES:
            raise UsageError(f"resolution is {resolution!r}", f"take one of {', '.join(SIZES)}")
        name = str(model or f"models/dynamicrafter-{variant}")
        self.model = find_model(name, None, {FAMILY.name: FAMILY})
        if self.model.variant != variant:
            raise UsageError(
                f"model {name} is of variant {self.model.variant or 'none'} and resolution is {resolution}", "name the other"
            )
        weights.check(self.model, FAMILY)
        self.encoders = Encoders(self.model, device)
        self.denoiser = Denoiser(self.model, dtype, device)

    def __call__(
        self,
        image: Image.Image,
        prompt: str,
        negative_prompt: str = "",
        last_image: Image.Image | None = None,
        num_frames: int = 16,
        height: int | None = None,
        width: int | None = None,
        return_dict: bool = True,
        **options: Any,
    ) -> dict[str, np.ndarray] | np.ndarray:
        """The clip of a picture and a prompt: uint8 [T, H, W, 3], under "videos" unless `return_dict` is off.

        `options` are those of generate: num_inference_steps (50), guidance_scale (7.5), eta (1.0), frame_stride and
        guidance_rescale (by resolution), seed (123). `last_image` is for 512_interp. Raises UsageError for an unknown
        option and for a size that the model does not make, ItemError for a clip that cannot be made.
        """
        size = self._size(width, height)
        told = self._options(options)
        check_last(self.model.variant, {"last_image": last_image, "loop": False})
        first = as_pixels(as_rgb(image), size)
        last = None if last_image is None else as_pixels(as_rgb(last_image), size)
        condition = self.encoders.condition(prompt, negative_prompt, first, last, num_frames)
        (made,) = self.denoiser([condition], [told["seed"]], num_frames, told)
        frames = np.stack(list(decoded(self.encoders.vae, made.latents)))
        return {"videos": frames} if return_dict else frames

    save_video = staticmethod(save_video)

    def _size(self, width: int | None, height: int | None) -> tuple[int, int]:
        """Width and height: those of the model unless others of its sizes are given."""
        allowed = [parse_size(text) for text in self.model.sizes or (SIZES[self.model.variant],)]
        size = width or allowed[0][0], height or allowed[0][1]
        if size not in allowed:
            words = ", ".join(f"{wide}*{high}" for wide, high in allowed)
            raise UsageError(f"the size {size[0]}*{size[1]} is not one of this model's", f"choose {words} (width*height)")
        return size

    def _options(self, given: dict[str, Any]) -> dict[str, Any]:
        """The options of generate: as given, else as the config declares for the model, else the defaults."""
        options = FAMILY.of_stage("generate")
        known = {option.name for option in options} - {"dtype", "batch_size"}
        if strange := [name for name in given if name not in known]:
            raise UsageError(f"option {strange[0]} is not one of this pipeline", f"known are {', '.join(sorted(known))}")
        kept = {name: value for name, value in given.items() if value is not None}
        return resolve(options, {**self.model.all_options, **kept}, self.model.variant)
