"""Options of FRESCO (arXiv:2403.12962): video translation by SD 1.5 and ControlNet, guided by optical flow.

The defaults are those of the Sim2Real program that this family replaces.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.families.shared.common_options import PromptOptions, SeedOption
from stages.families.shared.model_index import read_index
from stages.families.shared.parts import CLIP_TEXT, IMAGE_VAE, TOKENIZER, scheduler
from stages.families.shared.training.options import (
    CaptionTrainingOptions,
    GuidedSampleOptions,
    TrainingOptions,
    VaeTrainingOptions,
)
from stages.media.options import WriteOptions
from stages.runtime.components import Component, Size
from stages.runtime.errors import UsageError
from stages.runtime.options import (
    DTYPE,
    DTYPES,
    REQUIRED,
    Conversion,
    Family,
    Implementation,
    Options,
    Published,
    Training,
    option,
)

CONTROLS = ("hed", "canny", "depth")
UNET_SIZES = (Size("in_channels", r"^conv_in\.weight", 1), Size("cross_attention_dim", r"attn2\.to_k\.weight", 1))
FLOWS = ("dis", "raft")
IN_FLOAT32 = ("vae", "hed", "depth", "raft", "saliency")  # parts that encode runs in this precision
MIN_BATCH_SIZE = 3  # two anchors from the batch before, and one new keyframe
PROMPT_BYTES = 2 * 77 * 768 * 4  # bytes of two prompts, embedded


def keyframe_batches(count: int, size: int) -> list[list[int]]:
    """Split keyframes 0 to `count` - 1 into batches of at most `size`.

    Each batch after the first begins with two anchors, which are denoised by then: keyframe 0 and the last keyframe of the
    batch before.
    """
    batches = [list(range(min(size, count)))]
    while batches[-1][-1] < count - 1:
        latest = batches[-1][-1]
        batches.append([0, latest, *range(latest + 1, min(latest + size - 1, count))])
    return batches


def check(variant: str, values: Mapping[str, Any], sizes: tuple[str, ...]) -> None:
    """Check that the schedule has steps left after the warmup. Raises UsageError."""
    steps, warmup = values["num_inference_steps"], values["num_warmup_steps"]
    if warmup >= steps:
        raise UsageError(f"num_warmup_steps is {warmup} of {steps} num_inference_steps", "set fewer")


def model_fault(folder: Path, values: Mapping[str, Any]) -> tuple[str, str] | None:
    """Reason and remedy if the repository lacks the network of a control type or of the flow; None otherwise."""
    control = values["controlnet_type"]
    if not os.path.isdir(folder / f"controlnet_{control}"):
        available = [path.name.removeprefix("controlnet_") for path in sorted(folder.glob("controlnet_*"))]
        return f"there is no ControlNet for {control}", f"use {', '.join(available) or 'another model'}"
    if control != "canny" and not os.path.isdir(folder / control):
        return f"there is no network for {control} maps", "add it to the repository, or set controlnet_type to canny"
    if values["estimate_masks"] and not os.path.isdir(folder / "saliency"):
        return "there is no saliency/", "convert the model with --saliency, or give masks"
    if values["flow"] == "raft" and not os.path.isdir(folder / "raft"):
        return "there is no raft/", "convert the model with --raft, or set --flow dis"
    return None


def detect(folder: Path) -> str | None:
    """The variant '' for a Stable Diffusion repository with a ControlNet, as `convert` writes it; None for any other."""
    index = read_index(folder)
    is_sd = str(index.get("_class_name", "")).startswith("StableDiffusion")
    return "" if is_sd and any(os.path.isdir(folder / f"controlnet_{control}") for control in CONTROLS) else None


def disk(values: Mapping[str, Any]) -> float:
    """Approximate bytes of a clip's files, for 100 frames of 896*512 with 20 keyframes: the length is not known yet.

    Each frame is stored as source and as result, each keyframe also with its control map and its flow."""
    return PROMPT_BYTES + 896 * 512 * (100 * 3 + 20 * 14)


class ImageVaeTrainingOptions(VaeTrainingOptions):
    num_frames: int = VaeTrainingOptions.redeclared("num_frames", default=1)
    foreground_weight: float = VaeTrainingOptions.redeclared("foreground_weight", default=4.0)
    crop_size: int = VaeTrainingOptions.redeclared("crop_size", default=64)
    crop_share: float = VaeTrainingOptions.redeclared("crop_share", default=0.5)


VAE_TRAINING = Training(
    "stages.families.fresco.train_vae:ImageVAETask",
    ImageVaeTrainingOptions,
    "Train the VAE of Stable Diffusion and DynamiCrafter (AutoencoderKL) on the frames of clips.",
)


class ControlNetTrainingOptions(CaptionTrainingOptions, GuidedSampleOptions):
    num_frames: int = TrainingOptions.redeclared("num_frames", default=1)
    frame_size: int = TrainingOptions.redeclared("frame_size", default=128)
    vae: str = option("", "Folder with vae/, as written by train sd-vae; empty: the VAE of start_from", is_path=True)
    freeze_unet: bool = option(False, "Train only the ControlNet; the U-Net of start_from stays frozen")
    control_dropout: float = option(0.2, "Share of frames for which the ControlNet is switched off", minimum=0, maximum=1)

    def own_settings(self) -> dict[str, Any]:
        options = {"controlnet_type": "canny", "guidance_scale": self.sample_guidance}
        return {"family": "fresco", "options": options, "recipe": {"size": self.size}}


TRAINING = Training(
    "stages.families.fresco.train:EdgesTask",
    ControlNetTrainingOptions,
    "Train Stable Diffusion and a ControlNet for hard edges (canny) on frames of clips with captions.",
)


class ControlnetTypeOption(Options):
    controlnet_type: str = option(
        "hed",
        "Control maps of the source: soft edges (hed), hard edges (canny) or depth",
        aliases=("control_type",),
        choices=CONTROLS,
        reloads=True,
    )


class DtypeOption(Options):
    dtype: str = option(
        "bfloat16",
        "Precision of the networks; the VAE and the networks of control maps and flow run in float32",
        choices=DTYPES,
        reloads=True,
    )


class EncodeOptions(PromptOptions, ControlnetTypeOption, DtypeOption):
    prompt_suffix: str = option("", "Text appended to every prompt, such as ', a photo'")
    masks: str = option(
        "",
        "Video with one mask per frame, white for the foreground; the background is then kept the same across keyframes",
        is_file=True,
    )
    estimate_masks: bool = option(
        False,
        "Where no masks are given, estimate them with the segmentation network that convert fresco --saliency adds",
        neutral=False,
        reloads=True,
    )
    flow: str = option(
        "dis",
        "Optical flow between keyframes: OpenCV's DIS, or the network RAFT if the model repository has it",
        choices=FLOWS,
        reloads=True,
    )
    keyframe_batch_size: int = option(
        8,
        "Keyframes that are denoised together and attend to each other",
        aliases=("batch_size",),
        unit="keyframes",
        minimum=MIN_BATCH_SIZE,
        maximum=256,
    )


class GenerateOptions(ControlnetTypeOption, SeedOption, DtypeOption):
    num_inference_steps: int = option(20, "Denoising steps of the full schedule", minimum=1, maximum=1000)
    num_warmup_steps: int = option(
        5,
        "Initial denoising steps to skip (SDEdit): more stays closer to the source; negative starts from pure noise",
        minimum=-1000,
        maximum=1000,
    )
    end_opt_step: int = option(15, "Features are optimised in all denoising steps before this one", minimum=0, maximum=1000)
    guidance_scale: float = option(7.5, "Scale of classifier-free guidance", minimum=0, maximum=100)
    controlnet_conditioning_scale: float = option(
        0.7, "Strength of the ControlNet", aliases=("cond_scale",), minimum=0, maximum=100
    )
    temporal_end: int = option(350, "Temporal-guided attention stops below this timestep", minimum=0, maximum=1000)
    feature_iterations: int = option(20, "Iterations of each feature optimisation; 0: none", minimum=0, maximum=1000)
    feature_rate: float = option(0.2, "Learning rate of the feature optimisation", minimum=0, maximum=100)
    gram_weight: float = option(
        100.0, "Weight of the spatial (Gram) loss in the feature optimisation", minimum=0, maximum=10**6
    )
    matmul_precision: str = option(
        "highest",
        "Precision of the Gram matrices in the feature optimisation: highest is float32, high allows TF32, which is faster "
        "on a GPU",
        neutral="highest",
        choices=("highest", "high"),
    )
    use_freeu: bool = option(False, "Use FreeU, which amplifies the U-Net's backbone features", reloads=True)


class DecodeOptions(WriteOptions):
    fps: float = WriteOptions.redeclared("fps", help="Frame rate of the preview clip of keyframes")


STABLE_DIFFUSION = "hub://stable-diffusion-v1-5/stable-diffusion-v1-5"
NETWORK = ("config.json", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")  # as diffusers names them
ENCODER = ("config.json", "model.safetensors", "pytorch_model.bin")  # as transformers names them


def files_read(values: Mapping[str, Any]) -> Mapping[str, tuple[str, ...]]:
    """The files that are read of each repository, by option."""
    parts = {"unet": NETWORK, "vae": () if values["vae"] else NETWORK, "text_encoder": ENCODER}
    count = 1 if values["checkpoint"] else None  # the config alone
    weights = tuple(f"{part}/{name}" for part, names in parts.items() for name in names[:count])
    networks = {name: NETWORK for name in ("vae", *(f"controlnet_{control}" for control in CONTROLS))}
    base = ("model_index.json", "tokenizer/*", "scheduler/*", *weights)
    with_processor = (*ENCODER, "preprocessor_config.json")
    return {"base": base, **networks, "depth": with_processor, "saliency": with_processor}


def converted_settings(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of a converted model: its control type, if there is no ControlNet for the default one."""
    nets = [control for control in CONTROLS if values[f"controlnet_{control}"]]
    return {} if "hed" in nets or not nets else {"options": {"controlnet_type": nets[0]}}


def recognise(published: Published) -> str | None:
    """The remedy for a Stable Diffusion repository that lacks ControlNets, and for a checkpoint in a single file."""
    parts = ("unet/config.json", "vae/config.json", "scheduler/*", "text_encoder/config.json")
    is_repository = all(map(published.find, parts))
    checkpoint = "" if is_repository or published.find("*/*") else published.find("*.safetensors", "*.ckpt")
    if published.find("controlnet_*", "text_encoder_2/*") or not (is_repository or checkpoint):
        return None
    return published.converted_by(
        "fresco",
        base=published.place if is_repository else STABLE_DIFFUSION,
        checkpoint=checkpoint,
        controlnet_hed="hub://lllyasviel/sd-controlnet-hed",
        hed="hub://lllyasviel/Annotators/ControlNetHED.pth",
    )


class ConvertOptions(Options):
    base: str = option(REQUIRED, "Stable Diffusion 1.5 repository in diffusers' layout", exists="folder")
    checkpoint: str = option(
        "",
        "Stable Diffusion 1.5 in a single file, .safetensors or .ckpt, whose weights to use instead of the base's",
        exists="file",
    )
    vae: str = option("", "VAE to use instead of the base's, such as stabilityai/sd-vae-ft-mse", exists="folder")
    controlnet_hed: str = option(
        "", "ControlNet for soft edges (lllyasviel/sd-controlnet-hed); needs --hed", exists="folder"
    )
    controlnet_canny: str = option("", "ControlNet for hard edges (lllyasviel/sd-controlnet-canny)", exists="folder")
    controlnet_depth: str = option(
        "", "ControlNet for depth (lllyasviel/sd-controlnet-depth); needs --depth", exists="folder"
    )
    hed: str = option("", "Network for soft edges: ControlNetHED.pth of lllyasviel/Annotators", exists="file")
    depth: str = option("", "Network for depth: a DPT, such as Intel/dpt-hybrid-midas", exists="folder")
    raft: str = option("", "Network for --flow raft: raft_large_C_T_SKHT_V2.pth of torchvision", exists="file")
    saliency: str = option(
        "",
        "Network for --estimate-masks: one of transformers for semantic segmentation with a class background, such as "
        "apple/deeplabv3-mobilevit-small",
        exists="folder",
    )


FAMILY = Family(
    name="fresco",
    version=2,
    stages={
        "encode": Implementation(
            worker="stages.families.fresco.encode:Encode",
            options=EncodeOptions,
            weights=("model_index.json", "tokenizer/*", "text_encoder/*", *(f"{part}/*" for part in IN_FLOAT32)),
            in_memory=({"text_encoder": DTYPE, **dict.fromkeys(IN_FLOAT32, "float32")},),
        ),
        "generate": Implementation(
            worker="stages.families.fresco.generate:Generate",
            options=GenerateOptions,
            weights=("unet/*", "controlnet_*/*", "scheduler/*", "vae/*"),
            in_memory=({"unet": DTYPE, "controlnet_hed": DTYPE, "vae": "float32"},),
        ),
        "decode": Implementation(
            worker="stages.families.fresco.decode:Decode",
            options=DecodeOptions,
            weights=("vae/*",),
            in_memory=({"vae": "float32"},),
        ),
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
        Component("saliency", "transformers", optional=True),
        Component("saliency", "processor", optional=True),
    ),
    detect=detect,
    check=check,
    model_fault=model_fault,
    disk=disk,
    trainings={"fresco": TRAINING, "sd-vae": VAE_TRAINING},
    conversion=Conversion(
        "stages.families.fresco.convert:convert",
        ConvertOptions,
        "Combine Stable Diffusion, ControlNets and the networks of their control maps in one repository.",
        reads=files_read,
        links=("base", "vae", "controlnet_hed", "controlnet_canny", "controlnet_depth", "depth", "saliency"),
        settings=converted_settings,
    ),
    recognise=recognise,
)
