"""DynamiCrafter: a picture and a prompt become a clip of 16 frames (Xing et al. 2023, arXiv:2310.12190).

The variants are the published models: 256, 512 and 1024, and 512_interp, which goes from one picture to another. The
defaults are those of the image-to-video program that this replaces.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from stages.media.options import WRITE_OPTIONS
from stages.models.shared.index import read_index
from stages.models.shared.noise import SEED
from stages.models.shared.parts import CLIP_TEXT, IMAGE_VAE, TOKENIZER
from stages.models.shared.training.options import STAGE, shared
from stages.runtime.components import Component, Size
from stages.runtime.errors import UsageError
from stages.runtime.options import DTYPES, Family, Option, Training
from stages.runtime.size import parse_size, size_text

INTERPOLATING = "512_interp"
SIZES = {"256": "256*256", "512": "512*320", "1024": "1024*576", INTERPOLATING: "512*320"}
FRAME_STRIDES = {"256": 3, "512": 24, "1024": 10, INTERPOLATING: 5}
TRAINED_LENGTH = 16  # frames
MULTIPLE = 64  # of both sides: the VAE's stride times the U-Net's


def check(variant: str, values: Mapping[str, Any], sizes: tuple[str, ...]) -> None:
    """Refuse a size that the model does not make, and last pictures where there can be none. Raises UsageError."""
    allowed = sizes or (SIZES[variant],)
    if values["size"] not in allowed:
        raise UsageError(f"size {values['size']} is not one of this model's", f"choose {', '.join(allowed)} (width*height)")
    check_last(variant, values)


def beyond(folder: Path, values: Mapping[str, Any]) -> tuple[str, str] | None:
    """A size of which the networks have no whole places."""
    if any(int(side) % MULTIPLE for side in values["size"].split("*")):
        return f"size is {values['size']}", f"both sides must be multiples of {MULTIPLE}"
    return None


def check_last(variant: str, values: Mapping[str, Any]) -> None:
    """Raise UsageError unless there is one way to the last picture for 512_interp, and none for the others."""
    ways = [name for name in ("last_image", "loop") if values[name]]
    if variant != INTERPOLATING and ways:
        raise UsageError(f"{ways[0]} is set for a model of variant {variant}", f"it takes one of variant {INTERPOLATING}")
    if variant == INTERPOLATING and len(ways) != 1:
        given = "both last_image and loop" if ways else "neither last_image nor loop"
        raise UsageError(f"{given} are set for variant {variant}", "set one: it goes from one picture to another, or back")


def detect(folder: Path) -> str | None:
    """A repository that convert dynamicrafter wrote."""
    index = read_index(folder)
    return index.get("variant", "") if index.get("_class_name") == "DynamiCrafter" else None


def disk(values: Mapping[str, Any]) -> float:
    """Bytes of a clip's files, about: text and image tokens, latents at a sixteenth of a float32 per pixel, H.264."""
    width, height = parse_size(values["size"])
    return 2 * (77 + 256) * 1024 * 4 + width * height * values["video_length"]


TRAINING = Training(
    "stages.models.dynamicrafter.train:DynamiCrafterTask",
    (
        *shared(without=("num_workers",)),  # its clips are encoded once, by the VAE in this process
        Option("variant", str, "256", "Which parameterisation", STAGE, choices=("256", "512", "1024")),
        Option("vae", str, "", "Folder with vae/, of train sd-vae; empty: that of start_from", STAGE, is_path=True),
        Option("freeze_encoders", bool, True, "With start_from: leave its text and image encoders as they are", STAGE),
        Option(
            "dropout",
            float,
            0.1,
            "Part of the captions, and of the pictures, left out for guidance",
            STAGE,
            minimum=0,
            maximum=1,
        ),
        Option(
            "noisy_share", float, 1.0, "1 draws timesteps evenly; the more, the more noise", STAGE, minimum=0.1, maximum=100
        ),
        Option(
            "weight_limit",
            float,
            1.0,
            "Up to so many times as much counts an error where a clip is all but noise (256)",
            STAGE,
            minimum=1,
            maximum=10**6,
        ),
        Option("sample_steps", int, 20, "DDIM steps of the sample strips", STAGE, minimum=1, maximum=1000),
        Option("sample_guidance", float, 2.0, "Their guidance", STAGE, minimum=0, maximum=100),
    ),
    "Train DynamiCrafter on clips with captions, going on from their first frames.",
)

FAMILY = Family(
    name="dynamicrafter",
    version=2,
    options=(
        Option(
            "size",
            str,
            lambda variant, values: SIZES.get(variant, SIZES["256"]),
            "Size of the clip, width*height; the picture is scaled to cover it and cut",
            ("encode",),
            form=size_text,
            default_text="256*256, 512*320 or 1024*576, by variant",
        ),
        Option("prompt", str, "", "The prompt", ("encode",), by_recipe=True),
        Option("negative_prompt", str, "", "What the clip should not show", ("encode",)),
        Option("last_image", str, "", "The picture at the end, for variant 512_interp: a file", ("encode",), is_file=True),
        Option("loop", bool, False, "Come back to the picture, for variant 512_interp; that frame is left out", ("encode",)),
        Option(
            "video_length",
            int,
            TRAINED_LENGTH,
            "Frames of the clip; the models were trained on 16 and move badly at others",
            ("encode",),
            "frames",
            minimum=1,
            maximum=128,
        ),
        Option(
            "frame_stride",
            int,
            lambda variant, values: FRAME_STRIDES.get(variant, FRAME_STRIDES["256"]),
            "How fast things move. 256: the stride of frames, 1 to 6, more is faster. The others: frames per second, "
            "5 to 30, more is slower",
            ("generate",),
            minimum=1,
            default_text="3 for 256, 24 for 512, 10 for 1024, 5 for 512_interp",
            maximum=100,
        ),
        Option("num_inference_steps", int, 50, "DDIM steps", ("generate",), minimum=1, maximum=1000),
        Option(
            "guidance_scale",
            float,
            7.5,
            "Classifier-free guidance; 1 switches it off",
            ("generate",),
            minimum=0,
            maximum=100,
        ),
        Option(
            "guidance_rescale",
            float,
            lambda variant, values: 0.0 if variant == "256" else 0.7,
            "How far the spread of the guided prediction is brought back",
            ("generate",),
            minimum=0,
            maximum=1,
            default_text="0.0 for 256, else 0.7",
        ),
        Option(
            "eta", float, 1.0, "Noise added at each step: 0 none, 1 as much as DDPM", ("generate",), minimum=0, maximum=1
        ),
        Option(
            "batch_size",
            int,
            1,
            "Clips that are denoised together",
            ("generate",),
            "clips",
            minimum=1,
            maximum=64,
            changes_result=False,
        ),
        replace(SEED, default=123, default_text=""),
        Option(
            "dtype",
            str,
            "bfloat16",
            "Precision of the U-Net; text, pictures and the VAE always run in float32",
            ("generate",),
            choices=DTYPES,
            reloads=True,
        ),
        Option("fps", float, 8.0, "Rate of the clip", ("decode",), "frames per second", minimum=1, maximum=240),
        *WRITE_OPTIONS,
    ),
    workers={
        "encode": "stages.models.dynamicrafter.encode:Encode",
        "generate": "stages.models.dynamicrafter.generate:Generate",
        "decode": "stages.models.dynamicrafter.decode:Decode",
    },
    weights={
        "encode": ("model_index.json", "tokenizer/*", "text_encoder/*", "image_encoder/*", "image_projector/*", "vae/*"),
        "generate": ("model_index.json", "unet/*"),
        "decode": ("model_index.json", "vae/*"),
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
    beyond=beyond,
    resident={
        "encode": (tuple((part, "float32") for part in ("text_encoder", "image_encoder", "image_projector", "vae")),),
        "generate": ((("unet", ""),),),
        "decode": ((("vae", "float32"),),),
    },
    memory_saving={"generate": {"batch_size": 1}},
    disk=disk,
    trainings={"dynamicrafter": TRAINING},
)
