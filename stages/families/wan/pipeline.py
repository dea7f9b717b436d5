"""Wan2.2 as Python pipelines: a clip of a prompt and an image, or of a video whose last frame it continues."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stages.families import FAMILIES
from stages.families.shared.pipeline import Pipeline, ResidentStage, device_for, save_video
from stages.families.wan.options import FAMILY, EncodeOptions, GenerateOptions, fit_first_frame
from stages.media.fit import FREE, fit_image, target_size
from stages.media.options import FAMILY as MEDIA
from stages.media.read import as_rgb, frames
from stages.media.write import write_png
from stages.runtime import artifacts
from stages.runtime.errors import UsageError
from stages.runtime.model import find_model
from stages.runtime.options import Option, rename_aliases, resolve
from stages.runtime.sizes import parse_size

CAPTIONING = {name: family for name, family in FAMILIES.items() if "caption_vlm" in family.stages}
# Left out are the prompts, which are arguments of the methods, the captioner's dtype, and options of jobs.
OPTIONS = [
    one
    for one in (*EncodeOptions.declared, *GenerateOptions.declared)
    if one.name not in ("prompt", "gpus", "parallel", "checkpoint_every")
]
CAPTION_OPTIONS = [
    one
    for family in CAPTIONING.values()
    for one in family.options_of("caption_vlm")
    if one.name not in ("prompt", "dtype", "caption_batch_size")
]
FIT = "area"  # as in recipe v2v: the whole first frame is in the clip


def own_options(given: Mapping[str, Any], options: Sequence[Option]) -> dict[str, Any]:
    """The given values of these options, by the options' own names. An option that is None was not given."""
    names = {name for one in options for name in (one.name, *one.aliases)}
    return rename_aliases(options, {name: value for name, value in given.items() if name in names and value is not None})


class WanPipeline(Pipeline):
    """A Wan2.2 model of one variant on a device.

    `model` and `vlm_path` are folders, Hub ids, or names in ./config.yaml. `vlm_path` is the captioner, which `v2v` loads
    when it first needs it, on `vlm_device` or else on `device`. A device is "cpu", a GPU such as "cuda:1", or "auto". The
    models' options in the config are the defaults of a call. Raises UsageError for an unknown model, JobError for weights
    that are missing or cannot be read and for a missing GPU.
    """

    variant = ""
    published = ""  # the name of the published weights in config.yaml, the default of `model`

    def __init__(
        self,
        model: str | Path = "",
        vlm_path: str | Path = "internvl3.5-8b",
        device: str = "cuda:0",
        vlm_device: str = "",
    ):
        super().__init__()
        self.vlm_path, self.device, self.vlm_device = str(vlm_path), device_for(device), device_for(vlm_device or device)
        self.model = find_model(str(model or self.published), None, FAMILIES)
        if (self.model.family, self.model.variant) != (FAMILY.name, self.variant):
            found = f"{self.model.family} {self.model.variant}".strip()
            raise UsageError(
                f"model {self.model.name} is {found}", f"{type(self).__name__} needs {FAMILY.name} {self.variant}"
            )
        for name in FAMILY.stages:
            self.stages[name] = ResidentStage(name, FAMILY, self.model, self.device)
        self.stages["extract_frames"] = ResidentStage("extract_frames", MEDIA)

    def generate(
        self, prompt: str, image: Image.Image | None = None, *, fit: str = FIT, return_dict: bool = True, **options: Any
    ) -> dict[str, Any] | np.ndarray:
        """The clip of a prompt that starts from an image; the 5B also makes one of a prompt alone.

        Returns the frames, uint8 [T, H, W, 3], under "videos", with the "prompt" and the "seed"; the frames alone without
        `return_dict`. `fit` says how the image is fitted to the size. `options` are those of the stages, also under their
        old names: size, num_frames (81), num_inference_steps (40), guidance_scale (5.0), shift, negative_prompt, seed
        (drawn at random), dtype, offload. Raises UsageError for an unknown option or a wrong value, ItemError for a clip
        that cannot be made.
        """
        values = self._values(options, OPTIONS)
        with tempfile.TemporaryDirectory() as name:
            inputs = {}
            if image is not None:
                inputs["image"] = Path(name) / "first.png"
                write_png(inputs["image"], self._fitted(as_rgb(image), values, fit))
            return self._clip(Path(name), {**values, "prompt": prompt}, return_dict, inputs)

    def v2v(
        self, video: str | Path, prompt: str = "", *, fit: str = FIT, return_dict: bool = True, **options: Any
    ) -> dict[str, Any] | np.ndarray:
        """The clip that continues a video from its last frame. Without a prompt the captioner describes the video.

        `options` are those of `generate`, and those of the captioner: instruction, num_segments, include_last, prefix,
        max_new_tokens. Result and errors are those of `generate`.
        """
        values = self._values(options, [*OPTIONS, *CAPTION_OPTIONS])
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            extraction = resolve(MEDIA.options_of("extract_frames"), {"select": "last", "fit": fit, **self._fitting(values)})
            inputs = {"image": self.run("extract_frames", folder / "frames.json", extraction, video=video)}
            if not prompt:
                inputs["caption"] = self._caption(folder / "caption.json", video, options)
            return self._clip(folder, {**values, "prompt": prompt}, return_dict, inputs)

    def save_video(self, frames: np.ndarray, path: str | Path, fps: float | None = None) -> None:
        """Write the frames of a clip as an H.264 video, by default with the frame rate of the model."""
        rate = resolve(FAMILY.options, self.model.all_options, self.variant)["fps"] if fps is None else fps
        save_video(frames, path, rate)

    def _values(self, given: Mapping[str, Any], options: Sequence[Option]) -> dict[str, Any]:
        """The value of every option of the model: the given one, else that of the model in the config, else the default.

        Raises UsageError for a wrong value, and for one that is not given for any of `options`.
        """
        known = {name: one.name for one in options for name in (one.name, *one.aliases)}
        if unknown := [name for name in given if name not in known]:
            raise UsageError(
                f"option {unknown[0]} is not one of {type(self).__name__}",
                f"known are {', '.join(sorted({*known.values()}))}",
            )
        values = resolve(FAMILY.options, {**self.model.all_options, **own_options(given, OPTIONS)}, self.variant)
        FAMILY.check(self.variant, values, self.model.sizes)
        return values

    def _fitting(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """The options of extract_frames that fit a first frame to the size of the clip."""
        fitting = fit_first_frame(self.variant, values)
        assert fitting is not None  # the variants of this module take a first frame
        return fitting

    def _fitted(self, rgb: np.ndarray, values: Mapping[str, Any], fit: str) -> np.ndarray:
        """An image, uint8 [H, W, 3], fitted to the size of the clip as extract_frames does it."""
        fitting, source = self._fitting(values), (rgb.shape[1], rgb.shape[0])
        multiple = fitting["multiple"] if fit in FREE else 1
        return fit_image(rgb, target_size(source, parse_size(fitting["size"]), fit, multiple, fitting["area_rule"]), fit)

    def _caption(self, output: Path, video: str | Path, given: Mapping[str, Any]) -> Path:
        """The captioner's description of a video."""
        captioner = find_model(self.vlm_path, None, FAMILIES)
        family = CAPTIONING.get(captioner.family)
        if family is None:
            raise UsageError(
                f"model {captioner.name} is of family {captioner.family}", f"caption_vlm knows {', '.join(CAPTIONING)}"
            )
        if "caption_vlm" not in self.stages:
            self.stages["caption_vlm"] = ResidentStage("caption_vlm", family, captioner, self.vlm_device)
        values = resolve(family.options, {**captioner.all_options, **own_options(given, CAPTION_OPTIONS)}, captioner.variant)
        return self.run("caption_vlm", output, values, video=video)

    def _clip(
        self, folder: Path, values: Mapping[str, Any], return_dict: bool, inputs: Mapping[str, Path]
    ) -> dict[str, Any] | np.ndarray:
        """Encode, generate and decode, with the files between them in `folder`."""
        encoded = self.run("encode", folder / "encoded.safetensors", values, **inputs)
        latents = self.run("generate", folder / "latents.safetensors", values, encoded=encoded)
        decoded = self.run("decode", folder / "clip.json", {**values, "lossless": True}, latents=latents)
        clip = artifacts.read(decoded, ("clip",))
        videos = np.stack([frame.rgb for frame in frames(clip.member(".mkv"))])
        return {"videos": videos, "prompt": clip.fields["prompt"], "seed": values["seed"]} if return_dict else videos


class WanV2V(WanPipeline):
    """Wan2.2 I2V-A14B, see WanPipeline. The two experts take turns where memory has no room for both."""

    variant = "14b"
    published = "wan2.2-i2v-a14b"


class WanV2V5B(WanPipeline):
    """Wan2.2 TI2V-5B, see WanPipeline."""

    variant = "5b"
    published = "wan2.2-ti2v-5b"
