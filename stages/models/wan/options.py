"""Wan2.2 image-to-video: I2V-A14B (two experts, variant 14b) and TI2V-5B (variant 5b).

Nothing is left to a library's default. What differs from upstream is the guidance of the 14B (upstream 3.5) and steps and
frames of the 5B (upstream 50 and 121): the defaults here are those of the video-to-video program that this replaces.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.media.options import WRITE_OPTIONS
from stages.models.shared.index import read_index
from stages.models.shared.noise import SEED
from stages.models.shared.parts import TOKENIZER, UMT5, WAN_VAE, scheduler, wan_transformer
from stages.models.shared.training.options import STAGE, shared
from stages.models.shared.wan.limits import Fault, frames_beyond, limits, size_beyond, text_beyond
from stages.models.shared.wan.options import DTYPE, ON_LATENTS, TEXT_LENGTH, VAE_TILING, disk
from stages.runtime.errors import UsageError
from stages.runtime.options import GPUS, Family, Option, Training
from stages.runtime.size import parse_size, size_text

SIZES = {
    "14b": ("1280*720", "720*1280", "832*480", "480*832"),
    "5b": ("1280*704", "704*1280"),
}
MULTIPLE = {"14b": 16, "5b": 32}  # of both sides: VAE stride x patch size
AREA_RULE = {"14b": "independent", "5b": "joint"}  # of fit area, see stages/media/fit.py
FPS = {"14b": 16.0, "5b": 24.0}
# the text that upstream puts in when no negative prompt is given (Wan2.2 wan/configs/shared_config.py)
NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，"
    "丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，"
    "静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)


def default_shift(variant: str, values: Mapping[str, Any]) -> float:
    """Upstream's shift is 5.0; for the 14B its documentation advises 3.0 at 480p."""
    if "size" in values:
        width, height = parse_size(values["size"])
    else:  # by hand: of the encoded clip; the item will be refused where that is not readable
        width, height = values.get("width", 0), values.get("height", 0)
    return 3.0 if variant == "14b" and 0 < width * height <= 832 * 480 else 5.0


def check_frame_num(value: int) -> str | None:
    return None if value % 4 == 1 else f"it must be 4n+1, for example {value // 4 * 4 + 1}"


def detect(folder: Path) -> str | None:
    """The variant of a diffusers repository: 14b has two experts and a boundary, 5b a timestep per token."""
    index = read_index(folder)
    if not str(index.get("_class_name", "")).startswith("Wan"):
        return None
    if index.get("expand_timesteps"):
        return "5b"
    return "14b" if index.get("boundary_ratio") is not None else None


def check(variant: str, values: Mapping[str, Any], sizes: tuple[str, ...]) -> None:
    """Refuse a size that the model was not made for, and options of the second expert where there is none."""
    allowed = sizes or SIZES[variant]
    if values["size"] not in allowed:
        raise UsageError(f"size {values['size']} is not one of this model's", f"choose {', '.join(allowed)} (width*height)")
    check_experts(variant, values)


def check_experts(variant: str, values: Mapping[str, Any]) -> None:
    """Refuse options of the second expert where there is none."""
    for name in ("guidance_scale_2", "boundary_ratio", "lora_2"):
        if variant == "5b" and values[name] not in (None, ""):
            raise UsageError(f"{name} is {values[name]!r} and the 5B has one expert", f"leave {name} out")


def beyond(folder: Path, values: Mapping[str, Any]) -> Fault | None:
    """A size, a length or a text that the repository cannot make. `values` are the options of encode."""
    limit, (width, height) = limits(folder), map(int, values["size"].split("*"))
    return (
        size_beyond((width, height), limit)
        or frames_beyond((values["frame_num"] - 1) // 4 + 1, limit)
        or text_beyond(values["max_sequence_length"], limit)
    )


VAE_TRAINING = Training(
    "stages.models.wan.train_vae:VAETask",
    (
        *shared(num_frames=9),
        Option(
            "latent_noise", float, 0.05, "Noise on the latents, that makes the decoder robust", STAGE, minimum=0, maximum=10
        ),
        Option(
            "kl_weight", float, 1e-4, "Weight of the latents' square, that keeps them small", STAGE, minimum=0, maximum=1000
        ),
        Option(
            "foreground_weight", float, 6.0, "Further weight of what differs from the ground", STAGE, minimum=0, maximum=1000
        ),
        Option("image_steps", int, 1000, "Steps on single frames, before the clips", STAGE, minimum=0, maximum=10**8),
        Option(
            "crop_size",
            int,
            32,
            "Side of the squares that a part of the steps looks at",
            STAGE,
            "pixels",
            minimum=16,
            maximum=4096,
        ),
        Option("crop_share", float, 0.65, "That part of the steps on clips", STAGE, minimum=0, maximum=1),
        Option("image_crop_share", float, 0.0, "That part of the steps on single frames", STAGE, minimum=0, maximum=1),
        Option(
            "crop_frames", int, 1, "Single frames of each clip that such a step looks at", STAGE, minimum=1, maximum=4096
        ),
        Option(
            "freeze_encoder", bool, False, "Train the decoder alone: the latents of start_from stay what they are", STAGE
        ),
    ),
    "Train a VAE (AutoencoderKLWan) on clips.",
)

DENOISER_TRAINING = Training(
    "stages.models.wan.train_denoiser:DenoiserTask",
    (
        *shared(without=("num_workers",), num_frames=17),  # its clips are encoded once, by the VAE in this process
        Option("variant", str, "5b", "Which architecture", STAGE, choices=("5b", "14b")),
        *ON_LATENTS,
        Option("text_dropout", float, 0.08, "Part of the captions left out, for guidance", STAGE, minimum=0, maximum=1),
        Option("prefix", str, "continue video", "Put before a part of the captions, as recipe chain does", STAGE),
        Option("prefix_share", float, 0.2, "That part of the captions", STAGE, minimum=0, maximum=1),
        Option(
            "first_frame_share",
            float,
            0.5,
            "Part of the clips with their first frame given (5b)",
            STAGE,
            minimum=0,
            maximum=1,
        ),
        Option("training_shift", float, 2.0, "Shift of the sigmas that are drawn (5b)", STAGE, minimum=0.01, maximum=100),
        Option(
            "boundary_ratio",
            float,
            0.9,
            "Sigma from which on the high-noise expert is trained (14b)",
            STAGE,
            minimum=0,
            maximum=1,
        ),
        Option("sample_steps", int, 12, "Denoising steps of the sample strips", STAGE, minimum=1, maximum=1000),
        Option(
            "sample_shift",
            float,
            3.0,
            "Their shift, also written into the scheduler's config",
            STAGE,
            minimum=0.01,
            maximum=100,
        ),
    ),
    "Train a denoiser (WanTransformer3DModel) and its text encoder on clips with captions.",
)

FAMILY = Family(
    name="wan",
    version=2,
    variants=("14b", "5b"),
    options=(
        Option(
            "size",
            str,
            lambda variant, values: SIZES[variant][0],
            "Size of the clip, width*height: 14b takes 1280*720, 720*1280, 832*480, 480*832; 5b 1280*704, 704*1280. "
            "encode takes it where there is no first frame",
            ("encode",),
            form=size_text,
            default_text="14b: 1280*720, 5b: 1280*704",
        ),
        Option("prompt", str, "", "The prompt, where no caption file is given", ("encode",), by_recipe=True),
        Option(
            "negative_prompt",
            str,
            NEGATIVE_PROMPT,
            "What the clip should not show",
            ("encode",),
            default_text="upstream's text (Chinese)",
        ),
        Option(
            "frame_num",
            int,
            81,
            "Frames of the clip, 4n+1",
            ("encode",),
            "frames",
            minimum=1,
            check=check_frame_num,
            maximum=4093,
        ),
        TEXT_LENGTH,
        Option("steps", int, 40, "Denoising steps", ("generate",), minimum=1, maximum=1000),
        Option(
            "guidance_scale",
            float,
            5.0,
            "Classifier-free guidance; 1 switches it off. Of the high-noise expert, where guidance_scale_2 is given",
            ("generate",),
            minimum=0,
            maximum=100,
        ),
        Option(
            "guidance_scale_2",
            float,
            None,
            "Guidance of the low-noise expert (14b)",
            ("generate",),
            minimum=0,
            default_text="the same as guidance_scale",
            maximum=100,
        ),
        Option(
            "shift",
            float,
            default_shift,
            "Shift of the noise schedule: higher spends more steps on much noise",
            ("generate",),
            minimum=0.01,
            default_text="5.0; 14b up to 832*480: 3.0",
            maximum=100,
        ),
        Option(
            "sigma_grid",
            str,
            "wan",
            "Noise levels of the steps, before the shift: wan, evenly from 0.999 to 0, as Wan's own program; diffusers, "
            "evenly from 1 to 0.001, the library's default since 0.37",
            ("generate",),
            choices=("wan", "diffusers"),
        ),
        Option(
            "boundary_ratio",
            float,
            lambda variant, values: 0.9 if variant == "14b" else None,
            "Share of the noise schedule below which the low-noise expert takes over (14b)",
            ("generate",),
            minimum=0,
            maximum=1,
            default_text="14b: 0.9",
        ),
        SEED,
        DTYPE,
        Option(
            "lora",
            str,
            "",
            "LoRA weights (a safetensors file) of the high-noise or only transformer",
            ("generate",),
            reloads=True,
            is_file=True,
        ),
        Option("lora_scale", float, 1.0, "Strength of lora", ("generate",), reloads=True, minimum=-100, maximum=100),
        Option("lora_2", str, "", "LoRA weights of the low-noise expert (14b)", ("generate",), reloads=True, is_file=True),
        Option("lora_scale_2", float, 1.0, "Strength of lora_2", ("generate",), reloads=True, minimum=-100, maximum=100),
        Option(
            "offload",
            str,
            "none",
            "Keep the transformer in main memory and bring it to the GPU by groups of blocks or by single layers",
            ("generate",),
            choices=("none", "block_level", "leaf_level"),
            changes_result=False,
            reloads=True,
            offloads=("block_level", "leaf_level"),
        ),
        GPUS,
        Option(
            "offload_blocks",
            int,
            1,
            "Blocks per group, with offload block_level",
            ("generate",),
            minimum=1,
            changes_result=False,
            reloads=True,
            maximum=1000,
        ),
        Option(
            "offload_stream",
            bool,
            False,
            "Move the next group while one computes; needs pinned memory",
            ("generate",),
            changes_result=False,
            reloads=True,
        ),
        Option(
            "layerwise_casting",
            str,
            "none",
            "Store the transformer's weights in 8 bits and compute in dtype: half the memory, a slight change of the result",
            ("generate",),
            choices=("none", "float8_e4m3fn", "float8_e5m2"),
            reloads=True,
        ),
        Option(
            "attention_backend",
            str,
            "native",
            "Implementation of attention, by diffusers' name; others than native must be installed",
            ("generate",),
            choices=(
                "native",
                "_native_cudnn",
                "_native_efficient",
                "_native_flash",
                "flash",
                "_flash_3",
                "flex",
                "sage",
                "xformers",
            ),
            reloads=True,
        ),
        Option(
            "checkpoint_every",
            int,
            0,
            "Save the state in the store every so many steps, for a killed job to go on from; 0: only between the experts",
            ("generate",),
            "steps",
            minimum=0,
            changes_result=False,
            maximum=1000,
        ),
        VAE_TILING,
        Option(
            "fps",
            float,
            lambda variant, values: FPS[variant],
            "Rate of the clip",
            ("decode",),
            "frames per second",
            minimum=1,
            default_text="14b: 16, 5b: 24",
            maximum=240,
        ),
        *WRITE_OPTIONS,
    ),
    workers={
        "encode": "stages.models.wan.encode:Encode",
        "generate": "stages.models.wan.generate:Generate",
        "decode": "stages.models.wan.decode:Decode",
    },
    weights={
        "encode": ("model_index.json", "tokenizer/*", "text_encoder/*", "vae/*"),
        "generate": ("model_index.json", "transformer*/*", "scheduler/*", "vae/config.json"),
        "decode": ("vae/*",),
    },
    components=(
        TOKENIZER,
        UMT5,
        WAN_VAE,
        wan_transformer("transformer"),
        wan_transformer("transformer_2", variants=("14b",)),
        scheduler("UniPCMultistepScheduler"),
    ),
    detect=detect,
    check=check,
    beyond=beyond,
    resident={
        "encode": ((("text_encoder", ""), ("vae", "float32")),),
        "generate": ((("transformer", ""),), (("transformer_2", ""),)),
        "decode": ((("vae", "float32"),),),
    },
    memory_saving={
        "encode": {"vae_tiling": True},
        "generate": {"offload": "block_level"},
        "decode": {"vae_tiling": True},
    },
    disk=lambda values: disk(values["size"], values["frame_num"]),
    trainings={"wan-vae": VAE_TRAINING, "wan": DENOISER_TRAINING},
)
