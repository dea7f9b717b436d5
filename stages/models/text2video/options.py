"""Text to video by a 3D U-Net in pixel space, trained by `train text2video`.

The defaults are those of the text-to-video program that this replaces.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.media.options import WRITE_OPTIONS
from stages.models.shared.index import read_index
from stages.models.shared.noise import SEED
from stages.models.shared.parts import CLIP_TEXT, TOKENIZER, scheduler
from stages.models.shared.training.options import STAGE, shared
from stages.runtime.components import Broken, Component, Size, read_config
from stages.runtime.options import DTYPES, Family, Option, Training

NOISE_SCHEDULES = {"cosine": "squaredcos_cap_v2", "linear": "linear"}  # and what diffusers calls them

TRAINING = Training(
    "stages.models.text2video.train:Text2VideoTask",
    (
        *shared(),
        Option("model_channels", int, 128, "Width of the U-Net's first level", STAGE, "channels", minimum=8, maximum=4096),
        Option("num_timesteps", int, 1000, "Steps of the noise schedule", STAGE, minimum=1, maximum=10_000),
        Option(
            "noise_schedule",
            str,
            "cosine",
            "Its course; linear stays longer where a clip is all but noise and its motion is decided",
            STAGE,
            choices=tuple(NOISE_SCHEDULES),
        ),
        Option(
            "prediction_type",
            str,
            "epsilon",
            "What is predicted: the noise, the velocity, or the clip (sample), which suits small models",
            STAGE,
            choices=("epsilon", "v_prediction", "sample"),
        ),
        Option(
            "text_encoder",
            str,
            "openai/clip-vit-large-patch14",
            "CLIP text model: a folder or a Hub id",
            STAGE,
            is_path=True,
        ),
        Option("train_text_encoder", bool, False, "With start_from: train its text encoder too", STAGE),
        Option("text_dropout", float, 0.1, "Part of the captions left out, for guidance", STAGE, minimum=0, maximum=1),
        Option(
            "first_frame_share",
            float,
            0.0,
            "Part of the clips whose first frame stays without noise: what then moves is soon learned",
            STAGE,
            minimum=0,
            maximum=1,
        ),
        Option("sample_steps", int, 20, "DDIM steps of the sample strips", STAGE, minimum=1, maximum=10_000),
        Option("sample_guidance", float, 2.5, "Their guidance", STAGE, minimum=0, maximum=100),
    ),
    "Train the 3D U-Net of text2video on clips with captions.",
)


def detect(folder: Path) -> str | None:
    index = read_index(folder)
    return "" if index.get("_class_name") == "Text2Video" else None


def multiples(config: Mapping[str, Any]) -> tuple[int, int]:
    """What a clip's frames and its sides have to be multiples of: parts of the U-Net's patches and of its halvings."""
    return config["patch_size"][0], config["patch_size"][1] * 2 ** (len(config["channel_mult"]) - 1)


def beyond(folder: Path, values: Mapping[str, Any]) -> tuple[str, str] | None:
    """Frames and sizes of which the U-Net has no whole patches."""
    path = folder / "unet" / "config.json"
    try:
        frames, side = multiples(read_config(path)) if os.path.isfile(path) else (1, 1)
    except (LookupError, TypeError) as error:
        raise Broken(f"{path} does not tell its patches ({error})") from None
    for name, multiple in (("num_frames", frames), ("frame_size", side)):
        if (value := values[name]) and value % multiple:
            return f"{name} is {value}", f"it has to be a multiple of {multiple}"
    return None


def disk(values: Mapping[str, Any]) -> float:
    """Bytes of a clip's files, about: its latents are its pixels, in float32; where the model sets the size, one of 256."""
    return 13 * (values["num_frames"] or 16) * (values["frame_size"] or 256) ** 2


FAMILY = Family(
    name="text2video",
    version=1,
    options=(
        Option("prompt", str, "", "The prompt", ("encode",), by_recipe=True),
        Option("negative_prompt", str, "", "What the clip should not show", ("encode",)),
        Option(
            "num_frames",
            int,
            None,
            "Frames of the clip",
            ("encode",),
            "frames",
            minimum=1,
            default_text="as many as the model was trained on",
            maximum=4096,
        ),
        Option(
            "frame_size",
            int,
            None,
            "Side of the clip, a square",
            ("encode",),
            "pixels",
            minimum=16,
            default_text="what the model was trained on",
            maximum=4096,
        ),
        Option("steps", int, 1000, "Denoising steps", ("generate",), minimum=1, maximum=10_000),
        Option("sampler", str, "ddpm", "ddim needs fewer steps, 20 to 50", ("generate",), choices=("ddpm", "ddim")),
        Option(
            "guidance_scale",
            float,
            3.0,
            "Classifier-free guidance; 1 switches it off",
            ("generate",),
            minimum=0,
            maximum=100,
        ),
        SEED,
        Option("dtype", str, "bfloat16", "Precision of the models", ("encode", "generate"), choices=DTYPES, reloads=True),
        Option("fps", float, 8.0, "Rate of the clip", ("decode",), "frames per second", minimum=1, maximum=240),
        *WRITE_OPTIONS,
    ),
    workers={
        "encode": "stages.models.text2video.encode:Encode",
        "generate": "stages.models.text2video.generate:Generate",
        "decode": "stages.models.text2video.decode:Decode",
    },
    resident={"encode": ((("text_encoder", ""),),), "generate": ((("unet", ""),),)},
    weights={
        "encode": ("tokenizer/*", "text_encoder/*", "unet/config.json"),
        "generate": ("unet/*", "scheduler/*"),
        "decode": ("unet/config.json",),
    },
    components=(
        TOKENIZER,
        CLIP_TEXT,
        Component(
            "unet",
            "diffusers",
            ("UNet3D",),
            sizes=(Size("model_channels", r"^conv_in\.weight", 0), Size("text_dim", r"attn2\.to_k\.weight", 1)),
        ),
        scheduler("DDPMScheduler"),
    ),
    detect=detect,
    beyond=beyond,
    disk=disk,
    trainings={"text2video": TRAINING},
)
