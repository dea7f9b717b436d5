"""Text to video by a 3D U-Net in pixel space, trained by `train text2video`.

The defaults are those of the text-to-video program that this family replaces.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.families.shared.common_options import PromptOptions, SeedOption
from stages.families.shared.model_index import read_index
from stages.families.shared.parts import CLIP_TEXT, TOKENIZER, scheduler
from stages.families.shared.training.options import CaptionTrainingOptions, FolderTrainingOptions, GuidedSampleOptions
from stages.media.options import WriteOptions
from stages.runtime.components import Broken, Component, Size, read_config
from stages.runtime.options import DTYPE, DTYPES, Family, Implementation, Options, Published, Training, option

DDIM_STEPS = 50  # up to which clips by ddim are as good as those by ddpm; from 100 on they may become dark
WORDS = "words"  # the value of option text_encoder that stands for a new, small one
NOISE_SCHEDULES = {"cosine": "squaredcos_cap_v2", "linear": "linear"}  # with diffusers' names


class UNetTrainingOptions(CaptionTrainingOptions, FolderTrainingOptions, GuidedSampleOptions):
    model_channels: int = option(
        128, "Width of the U-Net's first level; start_from has its own", unit="channels", minimum=8, maximum=4096
    )
    num_timesteps: int = option(1000, "Number of timesteps of the noise schedule", minimum=1, maximum=10_000)
    noise_schedule: str = option(
        "cosine",
        "Shape of the noise schedule; linear spends more timesteps at high noise, where the motion of a clip is decided",
        choices=tuple(NOISE_SCHEDULES),
    )
    prediction_type: str = option(
        "epsilon",
        "What the U-Net predicts: the noise (epsilon), the velocity (v_prediction) or the clip (sample), for small models",
        choices=("epsilon", "v_prediction", "sample"),
    )
    text_encoder: str = option(
        "openai/clip-vit-large-patch14",
        f"CLIP text model: a folder, a Hub id, a model of ./config.yaml, or {WORDS}: a small one, trained on the words of "
        "the captions; start_from has its own",
        is_path=True,
    )
    train_text_encoder: bool = option(False, "With start_from, train its text encoder too")
    first_frame_share: float = option(
        0.0,
        "Share of the clips whose first frame stays without noise, so that motion is learned sooner",
        minimum=0,
        maximum=1,
    )
    sample_guidance: float = GuidedSampleOptions.redeclared("sample_guidance", default=2.5)

    def own_settings(self) -> dict[str, Any]:
        """Without frames and sizes, which are in the config of the U-Net."""
        options = {"num_inference_steps": self.sample_steps, "guidance_scale": self.sample_guidance}
        return {"family": "text2video", "options": options}


TRAINING = Training(
    "stages.families.text2video.train:Text2VideoTask",
    UNetTrainingOptions,
    "Train the 3D U-Net of text2video on clips with captions.",
)


def detect(folder: Path) -> str | None:
    index = read_index(folder)
    return "" if index.get("_class_name") == "Text2Video" else None


def multiples(config: Mapping[str, Any]) -> tuple[int, int]:
    """Multiples that the frames and the sides of a clip must be, for whole patches at every level of the U-Net."""
    return config["patch_size"][0], config["patch_size"][1] * 2 ** (len(config["channel_mult"]) - 1)


def model_fault(folder: Path, values: Mapping[str, Any]) -> tuple[str, str] | None:
    """A number of frames or a size that does not divide into whole patches of the U-Net, or a condition amiss."""
    path = folder / "unet" / "config.json"
    if not os.path.isfile(path):
        return None
    config = read_config(path)
    try:
        frames, side = multiples(config)
    except (LookupError, TypeError) as error:
        raise Broken(f"{path} lacks the patch sizes ({error})") from None
    for name, multiple in (("num_frames", frames), ("frame_size", side)):
        if (value := values[name]) and value % multiple:
            return f"{name} is {value}", f"it has to be a multiple of {multiple}"
    width = config.get("condition_dim")
    if width and not values["condition"]:
        return "no condition is given", f"add option condition: a file with {width} numbers"
    if values["condition"] and not width:
        return f"condition is {values['condition']}", "leave it out: the model takes no further condition"
    return None


def disk(values: Mapping[str, Any]) -> float:
    """Estimated bytes of a clip's files: its latents are float32 pixels. Without frame_size it assumes 256 pixels."""
    return 13 * (values["num_frames"] or 16) * (values["frame_size"] or 256) ** 2


def recognise(published: Published) -> str | None:
    """The remedy for a checkpoint of the program that this family replaces: its U-Net has other layers."""
    if published.find("unet/*") or not published.find("best_model.pth", "*/best_model.pth"):
        return None
    return "its U-Net has other layers than that of Kinemake: train anew with train text2video --data FOLDER --output FOLDER"


class DtypeOption(Options):
    dtype: str = option("bfloat16", "Precision of the models", choices=DTYPES, reloads=True)


class EncodeOptions(PromptOptions, DtypeOption):
    num_frames: int | None = option(
        None,
        "Frames of the clip",
        unit="frames",
        minimum=1,
        default_text="as many as the model was trained on",
        maximum=4096,
    )
    frame_size: int | None = option(
        None,
        "Side of the clip, which is square",
        unit="pixels",
        minimum=16,
        default_text="the size that the model was trained on",
        maximum=4096,
    )
    condition: str = option(
        "",
        "File of the further condition, for a model with condition_dim: a JSON list of numbers, .npy or .safetensors",
        is_file=True,
        neutral="",
    )


def fitting_sampler(variant: str, values: Mapping[str, Any]) -> str:
    """The sampler for a number of steps: deterministic DDIM amplifies a model's errors when there are many."""
    return "ddim" if values["num_inference_steps"] <= DDIM_STEPS else "ddpm"


class GenerateOptions(SeedOption, DtypeOption):
    num_inference_steps: int = option(1000, "Denoising steps", aliases=("steps",), minimum=1, maximum=10_000)
    sampler: str = option(
        fitting_sampler,
        f"Sampler: ddim needs fewer steps than ddpm, 20 to {DDIM_STEPS}; with many more its clips become dark",
        choices=("ddpm", "ddim"),
        default_text=f"ddim for up to {DDIM_STEPS} steps, else ddpm",
    )
    guidance_scale: float = option(3.0, "Scale of classifier-free guidance; 1 switches it off", minimum=0, maximum=100)


FAMILY = Family(
    name="text2video",
    version=1,
    stages={
        "encode": Implementation(
            worker="stages.families.text2video.encode:Encode",
            options=EncodeOptions,
            weights=("tokenizer/*", "text_encoder/*", "unet/config.json"),
            in_memory=({"text_encoder": DTYPE},),
        ),
        "generate": Implementation(
            worker="stages.families.text2video.generate:Generate",
            options=GenerateOptions,
            weights=("unet/*", "scheduler/*"),
            in_memory=({"unet": DTYPE},),
        ),
        "decode": Implementation(
            worker="stages.families.text2video.decode:Decode",
            options=WriteOptions,
            weights=("unet/config.json",),
        ),
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
    model_fault=model_fault,
    disk=disk,
    from_text=("",),
    recognise=recognise,
    trainings={"text2video": TRAINING},
)
