"""DynamiCrafter as a Python pipeline: encode, generate and decode with one model in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stages.families.dynamicrafter.condition import ImageEncoder, TextEncoder, resize_and_crop
from stages.families.dynamicrafter.decode import decode_frames
from stages.families.dynamicrafter.denoiser import Denoiser
from stages.families.dynamicrafter.options import FAMILY, SIZES, GenerateOptions, check_last_image
from stages.families.shared.pipeline import device_for, save_video
from stages.media.read import as_rgb
from stages.runtime import weights
from stages.runtime.errors import UsageError
from stages.runtime.model import find_model
from stages.runtime.sizes import check_size, parse_size


def default_model(variant: str) -> str:
    """The model of a variant: its folder in models if there is one, else the name of the published weights in the config."""
    folder = Path(f"models/dynamicrafter-{variant}")
    return str(folder) if folder.is_dir() else f"dynamicrafter-{variant.replace('_', '-')}"


class DynamiCrafterImg2VideoPipeline:
    """A model of a `resolution` (256, 512, 1024 or "512_interp"; forms such as "256_256" work too) on a device.

    `model` is a folder that `convert dynamicrafter` wrote, or a name in ./config.yaml; the default is
    models/dynamicrafter-RESOLUTION if that folder exists, else dynamicrafter-RESOLUTION of the config. The model's options
    in the config are the defaults of a call. `device` is "cpu", a GPU such as "cuda:1", or "auto"; `dtype` is the U-Net's,
    by default that of the config, else bfloat16. Raises UsageError for an unknown resolution or model, JobError for weights
    that are missing or cannot be loaded and for a missing GPU.
    """

    def __init__(
        self, resolution: int | str = 256, device: str = "cuda:0", model: str | Path | None = None, dtype: str = ""
    ):
        text = str(resolution)
        variant = text if text in SIZES else text.partition("_")[0]
        if variant not in SIZES:
            raise UsageError(f"resolution is {resolution!r}", f"use one of {', '.join(SIZES)}")
        device = device_for(device)
        name = str(model or default_model(variant))
        self.model = find_model(name, None, {FAMILY.name: FAMILY})
        if self.model.variant != variant:
            raise UsageError(
                f"model {name} is of variant {self.model.variant or 'none'} and resolution is {resolution}",
                "give the resolution of the model",
            )
        weights.check(self.model, FAMILY)
        self.texts, self.images = TextEncoder(self.model, device), ImageEncoder(self.model, device)
        self.denoiser = Denoiser(self.model, dtype or self._options({}).dtype, device)

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
        """The clip of an image and a prompt: uint8 [T, H, W, 3], under "videos" unless `return_dict` is off.

        `options` are those of `generate`: num_inference_steps (50), guidance_scale (7.5), eta (1.0), frame_stride and
        guidance_rescale (by resolution), seed (123). `last_image` is for 512_interp. Raises UsageError for an unknown
        option and for a size that the model does not support, ItemError for a clip that is not finite.
        """
        size = self._size(width, height)
        resolved = self._options(options)
        check_last_image(self.model.variant, {"last_image": last_image, "loop": False})
        first = resize_and_crop(as_rgb(image), size)
        last = None if last_image is None else resize_and_crop(as_rgb(last_image), size)
        condition = {**self.texts.encode(prompt, negative_prompt), **self.images.encode(first, last, num_frames)}
        (denoised,) = self.denoiser([condition], [resolved.seed], num_frames, resolved)
        frames = np.stack(list(decode_frames(self.images.vae, denoised.latents)))
        return {"videos": frames} if return_dict else frames

    save_video = staticmethod(save_video)

    def _size(self, width: int | None, height: int | None) -> tuple[int, int]:
        """Width and height, by default the model's first size. Raises UsageError for a size that it does not support."""
        allowed = self.model.sizes or (SIZES[self.model.variant],)
        first = parse_size(allowed[0])
        size = width or first[0], height or first[1]
        check_size(f"{size[0]}*{size[1]}", allowed)
        return size

    def _options(self, given: dict[str, Any]) -> GenerateOptions:
        """The options of `generate`: those given, then those of the model in the config, then the defaults."""
        options = GenerateOptions.declared
        known = {option.name for option in options} - {"dtype", "batch_size"}
        if strange := [name for name in given if name not in known]:
            raise UsageError(f"option {strange[0]} is not one of this pipeline", f"known are {', '.join(sorted(known))}")
        kept = {name: value for name, value in given.items() if value is not None}
        return GenerateOptions.resolved({**self.model.all_options, **kept}, self.model.variant)
