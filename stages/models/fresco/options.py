"""FRESCO (arXiv:2403.12962): a video in a new look, its keyframes by SD1.5 and ControlNet under the guidance of the flow.

The defaults are those of the Sim2Real program that this replaces.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.media.options import WRITE_OPTIONS
from stages.models.shared.index import read_index
from stages.models.shared.noise import SEED
from stages.models.shared.parts import CLIP_TEXT, IMAGE_VAE, TOKENIZER, scheduler
from stages.models.shared.training.options import STAGE, shared
from stages.runtime.components import Component, Size
from stages.runtime.errors import UsageError
from stages.runtime.options import DTYPES, Family, Option, Training

CONTROLS = ("hed", "canny", "depth")
UNET_SIZES = (Size("in_channels", r"^conv_in\.weight", 1), Size("cross_attention_dim", r"attn2\.to_k\.weight", 1))
FLOWS = ("dis", "raft")
FEWEST = 3  # keyframes of a batch: two that are known from before, and a new one
TEXTS = 2 * 77 * 768 * 4  # bytes of two prompts, embedded


def batches(count: int, size: int) -> list[list[int]]:
    """Keyframes 0 to `count` - 1 in batches of at most `size`: each after the first begins with the film's first keyframe
    and the last one of the batch before, which are known by then."""
    made = [list(range(min(size, count)))]
    while made[-1][-1] < count - 1:
        latest = made[-1][-1]
        made.append([0, latest, *range(latest + 1, min(latest + size - 1, count))])
    return made


def check(variant: str, values: Mapping[str, Any], sizes: tuple[str, ...]) -> None:
    """Refuse a schedule that leaves nothing to do. Raises UsageError."""
    steps, warmup = values["num_inference_steps"], values["num_warmup_steps"]
    if warmup >= steps:
        raise UsageError(f"num_warmup_steps is {warmup} of {steps} num_inference_steps", "take fewer")


def beyond(folder: Path, values: Mapping[str, Any]) -> tuple[str, str] | None:
    """A control or a way to find the flow whose network the repository does not have."""
    control = values["controlnet_type"]
    if not os.path.isdir(folder / f"controlnet_{control}"):
        there = [path.name.removeprefix("controlnet_") for path in sorted(folder.glob("controlnet_*"))]
        return f"there is no ControlNet for {control}", f"choose {', '.join(there) or 'another model'}"
    if control != "canny" and not os.path.isdir(folder / control):
        return f"there is no network for {control} maps", "put it in, or take canny"
    if values["flow"] == "raft" and not os.path.isdir(folder / "raft"):
        return "there is no raft/", "convert it with --raft, or take --flow dis"
    return None


def detect(folder: Path) -> str | None:
    """A Stable Diffusion repository in diffusers' layout with a ControlNet beside its U-Net, as convert makes one."""
    index = read_index(folder)
    is_sd = str(index.get("_class_name", "")).startswith("StableDiffusion")
    return "" if is_sd and any(os.path.isdir(folder / f"controlnet_{control}") for control in CONTROLS) else None


def disk(values: Mapping[str, Any]) -> float:
    """Bytes of a clip's files, about. Its length is not known yet: this is for 100 frames of 896*512, of which 20 are
    keyframes. A frame is kept as it was and as it becomes, a keyframe with its map and its flow too."""
    return TEXTS + 896 * 512 * (100 * 3 + 20 * 14)


VAE_TRAINING = Training(
    "stages.models.fresco.train_vae:PictureVAETask",
    (
        *shared(num_frames=1),
        Option(
            "latent_noise", float, 0.05, "Noise on the latents, that makes the decoder robust", STAGE, minimum=0, maximum=10
        ),
        Option(
            "kl_weight", float, 1e-4, "Weight of the latents' square, that keeps them small", STAGE, minimum=0, maximum=1000
        ),
        Option(
            "foreground_weight", float, 4.0, "Further weight of what differs from the ground", STAGE, minimum=0, maximum=1000
        ),
        Option("crop_size", int, 64, "Side of what a step looks at", STAGE, "pixels", minimum=16, maximum=4096),
        Option(
            "crop_share",
            float,
            0.5,
            "Part of the steps that look at squares, not at the whole shrunk",
            STAGE,
            minimum=0,
            maximum=1,
        ),
        Option(
            "freeze_encoder", bool, False, "Train the decoder alone: the latents of start_from stay what they are", STAGE
        ),
    ),
    "Train the VAE of Stable Diffusion and DynamiCrafter (AutoencoderKL) on the frames of clips.",
)

TRAINING = Training(
    "stages.models.fresco.train:EdgesTask",
    (
        *shared(without=("num_workers",), num_frames=1, frame_size=128),  # encoded once, by the VAE in this process
        Option("vae", str, "", "Folder with vae/, of train sd-vae; empty: that of start_from", STAGE, is_path=True),
        Option("freeze_unet", bool, False, "Train the ControlNet alone, for the U-Net of start_from", STAGE),
        Option("text_dropout", float, 0.1, "Part of the captions left out, for guidance", STAGE, minimum=0, maximum=1),
        Option("control_dropout", float, 0.2, "Part of the frames of which no edges are shown", STAGE, minimum=0, maximum=1),
        Option("sample_steps", int, 20, "DDIM steps of the sample strips", STAGE, minimum=1, maximum=1000),
        Option("sample_guidance", float, 2.0, "Their guidance", STAGE, minimum=0, maximum=100),
    ),
    "Train Stable Diffusion and a ControlNet for hard edges (canny) on frames of clips with captions.",
)

GENERATE = ("generate",)

FAMILY = Family(
    name="fresco",
    version=2,
    options=(
        Option("prompt", str, "", "The prompt", ("encode",), by_recipe=True),
        Option("prompt_suffix", str, "", "Put behind every prompt, such as ', a photo'", ("encode",)),
        Option("negative_prompt", str, "", "What the film should not show", ("encode",)),
        Option(
            "controlnet_type",
            str,
            "hed",
            "What of the source is kept: soft edges (hed), hard edges (canny), depth",
            ("encode", "generate"),
            choices=CONTROLS,
            reloads=True,
        ),
        Option(
            "masks",
            str,
            "",
            "Video of masks, one of each frame, white where something is in front: what is behind stays the same then",
            ("encode",),
            is_file=True,
        ),
        Option(
            "flow",
            str,
            "dis",
            "What finds the motion from keyframe to keyframe: OpenCV's DIS, or the network RAFT, which the model must have",
            ("encode",),
            choices=FLOWS,
            reloads=True,
        ),
        Option(
            "batch_size", int, 8, "Keyframes that look at each other", ("encode",), "keyframes", minimum=FEWEST, maximum=256
        ),
        Option("num_inference_steps", int, 20, "Steps of the noise schedule", GENERATE, minimum=1, maximum=1000),
        Option(
            "num_warmup_steps",
            int,
            5,
            "Its first steps that are left out: the more, the nearer to the source; below 0 it begins from pure noise",
            GENERATE,
            minimum=-1000,
            maximum=1000,
        ),
        Option(
            "end_opt_step", int, 15, "Features are optimised in the steps before this one", GENERATE, minimum=0, maximum=1000
        ),
        Option("guidance_scale", float, 7.5, "Classifier-free guidance", GENERATE, minimum=0, maximum=100),
        Option("cond_scale", float, 0.7, "Strength of the ControlNet", GENERATE, minimum=0, maximum=100),
        Option(
            "temporal_end",
            int,
            350,
            "Timestep below which the paths are not looked along",
            GENERATE,
            minimum=0,
            maximum=1000,
        ),
        Option("feature_iterations", int, 20, "Steps of an optimisation", GENERATE, minimum=0, maximum=1000),
        Option("feature_rate", float, 0.2, "Its rate", GENERATE, minimum=0, maximum=100),
        Option(
            "gram_weight",
            float,
            100.0,
            "Weight of the likeness within a frame, beside the flow",
            GENERATE,
            minimum=0,
            maximum=10**6,
        ),
        Option("use_freeu", bool, False, "FreeU: stronger features, weaker skip connections", GENERATE, reloads=True),
        SEED,
        Option(
            "dtype",
            str,
            "bfloat16",
            "Precision of the models; the VAE and all that is about flow run in float32",
            ("encode", "generate"),
            choices=DTYPES,
            reloads=True,
        ),
        Option("fps", float, 8.0, "Rate of the clip of keyframes", ("decode",), "frames per second", minimum=1, maximum=240),
        *WRITE_OPTIONS,
    ),
    workers={
        "encode": "stages.models.fresco.encode:Encode",
        "generate": "stages.models.fresco.generate:Generate",
        "decode": "stages.models.fresco.decode:Decode",
    },
    weights={
        "encode": ("model_index.json", "tokenizer/*", "text_encoder/*", "vae/*", "hed/*", "depth/*", "raft/*"),
        "generate": ("unet/*", "controlnet_*/*", "scheduler/*", "vae/*"),
        "decode": ("vae/*",),
    },
    components=(
        TOKENIZER,
        CLIP_TEXT,
        IMAGE_VAE,
        Component("unet", "diffusers", ("UNet2DConditionModel",), sizes=UNET_SIZES),
        *(
            Component(f"controlnet_{control}", "diffusers", ("ControlNetModel",), optional=True, sizes=UNET_SIZES)
            for control in CONTROLS
        ),
        scheduler(),
        Component("hed", "tensors", optional=True),
        Component("raft", "tensors", optional=True),
        Component("depth", "transformers", ("dpt",), optional=True),
        Component("depth", "processor", optional=True),
    ),
    detect=detect,
    check=check,
    beyond=beyond,
    disk=disk,
    resident={
        "encode": ((("text_encoder", ""), *((part, "float32") for part in ("vae", "hed", "depth", "raft"))),),
        "generate": ((("unet", ""), ("controlnet_hed", ""), ("vae", "float32")),),
        "decode": ((("vae", "float32"),),),
    },
    trainings={"fresco": TRAINING, "sd-vae": VAE_TRAINING},
)
