"""Options of DynamiCrafter: image-to-video, clips of 16 frames (Xing et al. 2023, arXiv:2310.12190).

The variants are the published models: 256, 512 and 1024, and 512_interp, which interpolates between two images. The
defaults are those of the image-to-video program that this family replaces.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.families.shared.common_options import PromptOptions, SeedOption
from stages.families.shared.model_index import read_index
from stages.families.shared.parts import CLIP_TEXT, IMAGE_VAE, TOKENIZER
from stages.families.shared.training.options import GuidedSampleOptions, TrainingOptions
from stages.media.options import WriteOptions
from stages.runtime.components import Component, Size
from stages.runtime.errors import UsageError
from stages.runtime.options import (
    DTYPE,
    DTYPES,
    REQUIRED,
    BatchOption,
    Conversion,
    Family,
    Implementation,
    Options,
    Published,
    Training,
    option,
)
from stages.runtime.sizes import check_size, not_multiple, parse_size, size_text

INTERPOLATING = "512_interp"
SIZES = {"256": "256*256", "512": "512*320", "1024": "1024*576", INTERPOLATING: "512*320"}
FRAME_STRIDES = {"256": 3, "512": 24, "1024": 10, INTERPOLATING: 5}
TRAINED_LENGTH = 16  # frames
IN_FLOAT32 = "check the image and the weights: this runs in float32, a higher precision does not help"
MULTIPLE = 64  # of both sides: the VAE's stride times the U-Net's


def check(variant: str, values: Mapping[str, Any], sizes: tuple[str, ...]) -> None:
    """Check the size, and that a last image or a loop is set only for 512_interp. Raises UsageError."""
    check_size(values["size"], sizes or (SIZES[variant],))
    check_last_image(variant, values)


def model_fault(folder: Path, values: Mapping[str, Any]) -> tuple[str, str] | None:
    """Reason and remedy for a size that is no multiple of the networks' stride; None otherwise."""
    return not_multiple(parse_size(values["size"]), MULTIPLE)


def minutes(variant: str, values: Mapping[str, Any]) -> float:
    """Upper estimate for the denoising of a clip: five times the time of an A100.

    The published times of an A100 for 16 frames and 50 steps with guidance are 10 s at 256*256, 20 s at 512*320 and 75 s at
    1024*576, which is 8.2 ms per position of the latent image.
    """
    width, height = parse_size(values["size"])
    passes = values["num_inference_steps"] * (1 + (values["guidance_scale"] != 1)) * values["num_frames"] / TRAINED_LENGTH
    return 5 * width * height / 64 * 8.2e-3 * passes / 100 / 60


def check_last_image(variant: str, values: Mapping[str, Any]) -> None:
    """Raise UsageError unless exactly one of last_image and loop is set for 512_interp, and none for the others."""
    ends = [name for name in ("last_image", "loop") if values[name]]
    if variant != INTERPOLATING and ends:
        raise UsageError(f"{ends[0]} is set for a model of variant {variant}", f"use a model of variant {INTERPOLATING}")
    if variant == INTERPOLATING and len(ends) != 1:
        given = "both last_image and loop" if ends else "neither last_image nor loop"
        raise UsageError(f"{given} are set for variant {variant}", "set exactly one of the two")


def detect(folder: Path) -> str | None:
    """The variant of a repository that `convert dynamicrafter` wrote; None for any other."""
    index = read_index(folder)
    return index.get("variant", "") if index.get("_class_name") == "DynamiCrafter" else None


def disk(values: Mapping[str, Any]) -> float:
    """Approximate bytes of a clip's files: text and image tokens, latents, H.264."""
    width, height = parse_size(values["size"])
    return 2 * (77 + 256) * 1024 * 4 + width * height * values["num_frames"]


class UNetTrainingOptions(TrainingOptions, GuidedSampleOptions):
    variant: str = option(
        "256", "Published model whose prediction type and noise schedule to train", choices=("256", "512", "1024")
    )
    vae: str = option("", "Folder with vae/, as written by train sd-vae; empty: the VAE of start_from", is_path=True)
    freeze_encoders: bool = option(True, "With start_from: keep its text and image encoders frozen")
    dropout: float = option(
        0.1, "Share of captions, and of images, left out for classifier-free guidance", minimum=0, maximum=1
    )
    noisy_share: float = option(1.0, "1 draws timesteps uniformly, more draws noisier ones", minimum=0.1, maximum=100)
    weight_limit: float = option(1.0, "Upper limit of the loss weight at high noise (variant 256)", minimum=1, maximum=10**6)

    def own_settings(self) -> dict[str, Any]:
        options = {
            "size": self.size,
            "num_frames": self.num_frames,
            "num_inference_steps": self.sample_steps,
            "guidance_scale": self.sample_guidance,
        }
        return {"family": "dynamicrafter", "variant": self.variant, "sizes": [self.size], "options": options}


TRAINING = Training(
    "stages.families.dynamicrafter.train:DynamiCrafterTask",
    UNetTrainingOptions,
    "Train DynamiCrafter to continue the first frames of captioned clips.",
)


class EncodeOptions(PromptOptions):
    size: str = option(
        lambda variant, values: SIZES.get(variant, SIZES["256"]),
        "Size of the clip, width*height; the image is scaled to cover it and cropped",
        form=size_text,
        default_text="256*256, 512*320 or 1024*576, by variant",
    )
    last_image: str = option("", "File of the image that the clip ends with, for variant 512_interp", is_file=True)
    loop: bool = option(False, "End the clip with its first image, for variant 512_interp; the repeated frame is dropped")
    num_frames: int = option(
        TRAINED_LENGTH,
        "Length of the clip; the models were trained on 16 frames, other lengths move badly",
        aliases=("video_length",),
        unit="frames",
        minimum=1,
        maximum=128,
    )


class GenerateOptions(SeedOption, BatchOption):
    seed: int = SeedOption.redeclared("seed", default=123, default_text="")
    frame_stride: int = option(
        lambda variant, values: FRAME_STRIDES.get(variant, FRAME_STRIDES["256"]),
        "Speed of the motion. Variant 256: frame stride, 1 to 6, higher is faster. Other variants: frames per second, "
        "5 to 30, higher is slower",
        minimum=1,
        default_text="3 for 256, 24 for 512, 10 for 1024, 5 for 512_interp",
        maximum=100,
    )
    num_inference_steps: int = option(50, "Denoising steps", minimum=1, maximum=1000)
    guidance_scale: float = option(7.5, "Scale of classifier-free guidance; 1 switches it off", minimum=0, maximum=100)
    guidance_rescale: float = option(
        lambda variant, values: 0.0 if variant == "256" else 0.7,
        "Rescaling of the guided prediction towards the standard deviation of the conditional one; 0: none",
        minimum=0,
        maximum=1,
        default_text="0.0 for 256, else 0.7",
    )
    eta: float = option(1.0, "DDIM eta, the noise added at each step; 0: none, 1: as DDPM", minimum=0, maximum=1)
    batch_size: int = BatchOption.redeclared("batch_size", help="Clips that are denoised together")
    dtype: str = option(
        "bfloat16", "Precision of the U-Net; the encoders and the VAE always run in float32", choices=DTYPES, reloads=True
    )


def recognise(published: Published) -> str | None:
    """The remedy for a folder with one of DynamiCrafter's own checkpoints. Its name tells the variant, or else it is 256."""
    ckpt = published.find("model.ckpt", "*/model.ckpt", "dynamicrafter*.safetensors", "dynamicrafter*.ckpt")
    if published.find("model_index.json") or not ckpt:
        return None
    named = "/".join(ckpt.split("/")[-2:]).lower()
    guess = INTERPOLATING if "interp" in named else next((variant for variant in ("1024", "512") if variant in named), "256")
    clip = "hub://laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
    return published.converted_by("dynamicrafter", ckpt=ckpt, resolution=published.variant or guess, clip=clip)


def files_of_clip(values: Mapping[str, Any]) -> Mapping[str, tuple[str, ...]]:
    """The files that are read of the CLIP repository: those of the tokenizer and, for a pruned checkpoint, the weights."""
    weights = ("model.safetensors",) if values["ckpt"].endswith(".safetensors") else ()
    return {"clip": ("*.json", "merges.txt", *weights)}


def converted_settings(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of a converted model: its variant."""
    return {"variant": values["resolution"]}


class ConvertOptions(Options):
    ckpt: str = option(REQUIRED, "Checkpoint: model.ckpt, or pruned .safetensors", exists="file")
    resolution: str = option(REQUIRED, "Variant of the checkpoint", choices=tuple(SIZES))
    clip: str = option(
        REQUIRED,
        "laion/CLIP-ViT-H-14-laion2B-s32B-b79K, for the tokenizer and, with a pruned checkpoint, the encoders",
        exists="folder",
    )


FAMILY = Family(
    name="dynamicrafter",
    version=2,
    stages={
        "encode": Implementation(
            worker="stages.families.dynamicrafter.encode:Encode",
            options=EncodeOptions,
            weights=("model_index.json", "tokenizer/*", "text_encoder/*", "image_encoder/*", "image_projector/*", "vae/*"),
            in_memory=(
                {"text_encoder": "float32"},
                {"image_encoder": "float32", "image_projector": "float32", "vae": "float32"},
            ),
        ),
        "generate": Implementation(
            worker="stages.families.dynamicrafter.generate:Generate",
            options=GenerateOptions,
            weights=("model_index.json", "unet/*"),
            in_memory=({"unet": DTYPE},),
            on_out_of_memory={"batch_size": 1},
            minutes=minutes,
        ),
        "decode": Implementation(
            worker="stages.families.dynamicrafter.decode:Decode",
            options=WriteOptions,
            weights=("model_index.json", "vae/*"),
            in_memory=({"vae": "float32"},),
        ),
    },
    variants=tuple(SIZES),
    components=(
        TOKENIZER,
        CLIP_TEXT,
        IMAGE_VAE,
        Component(
            "image_encoder",
            "transformers",
            ("clip_vision_model", "clip"),
            sizes=(
                Size("num_hidden_layers", r"encoder\.layers\.(\d+)\."),
                Size("hidden_size", r"class_embedding", 0),
            ),
        ),
        Component("image_projector", "diffusers", ("Resampler",), sizes=(Size("depth", r"^layers\.(\d+)\."),)),
        Component(
            "unet",
            "diffusers",
            ("UNet",),
            sizes=(
                Size("model_channels", r"^input_blocks\.0\.0\.weight", 0),
                Size("in_channels", r"^input_blocks\.0\.0\.weight", 1),
            ),
        ),
    ),
    detect=detect,
    check=check,
    model_fault=model_fault,
    disk=disk,
    fit_first_frame=lambda variant, values: {},  # encode fits the image itself
    trainings={"dynamicrafter": TRAINING},
    conversion=Conversion(
        "stages.families.dynamicrafter.convert:convert",
        ConvertOptions,
        "Convert a DynamiCrafter checkpoint; a CLIP repository adds the tokenizer and, to a pruned one, the encoders.",
        reads=files_of_clip,
        settings=converted_settings,
    ),
    recognise=recognise,
)
