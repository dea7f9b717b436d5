"""Wan2.2: I2V-A14B (two experts, variant 14b), T2V-A14B (14b-t2v) and TI2V-5B (5b).

No option is left to a library's default. The defaults are those of the video-to-video program that this family replaces.
They differ from upstream's in the guidance of the 14b (upstream 3.5) and in the steps and frames of the 5b (upstream 50 and
121). Those of the 14b-t2v are upstream's (Wan2.2 wan/configs/wan_t2v_A14B.py).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.families.shared.common_options import (
    PromptOptions,
    SeedOption,
    TransformerOptions,
    check_parallel,
    check_transformer,
)
from stages.families.shared.flow_options import (
    GuidanceOptions,
    SamplerOptions,
    StepCacheOptions,
    check_guidance,
    check_schedule,
    check_step_cache,
    default_steps,
)
from stages.families.shared.model_index import read_index
from stages.families.shared.parts import TOKENIZER, UMT5, WAN_VAE, scheduler, wan_transformer
from stages.families.shared.training.options import CaptionTrainingOptions, VaeTrainingOptions
from stages.families.shared.wan.limits import Fault, frames_fault, limits, size_fault, text_fault
from stages.families.shared.wan.options import (
    DtypeOption,
    LatentOptions,
    LatentTrainingOptions,
    LoraOptions,
    TextLengthOption,
    VaeTilingOption,
    check_loras,
    decode_by_wan,
    disk,
    encode_by_wan,
)
from stages.families.wan.presets import PRESETS
from stages.media.options import WriteOptions
from stages.runtime.errors import UsageError
from stages.runtime.options import (
    DTYPE,
    DTYPES,
    FIRST,
    FRAME,
    LATENTS,
    REQUIRED,
    Conversion,
    Family,
    Handover,
    Implementation,
    Options,
    Published,
    Training,
    option,
)
from stages.runtime.sizes import check_size, parse_size, size_text

T2V = "14b-t2v"
TWO_EXPERTS = ("14b", T2V)
FROM_TEXT = ("5b", T2V)  # variants that need no first frame; the 14b-t2v takes none
A14B_SIZES = ("1280*720", "720*1280", "832*480", "480*832")
SIZES = {"14b": A14B_SIZES, T2V: A14B_SIZES, "5b": ("1280*704", "704*1280")}
MULTIPLE = {"14b": 16, T2V: 16, "5b": 32}  # width and height are multiples of this: VAE stride x patch size
AREA_RULE = {"14b": "independent", "5b": "joint"}  # rule of fit area, see stages/media/fit.py
FPS = {"14b": 16.0, T2V: 16.0, "5b": 24.0}
BOUNDARY = {"14b": 0.9, T2V: 0.875}  # lowest share of the schedule of the high-noise expert, as upstream has it
T2V_GUIDANCE = (4.0, 3.0)  # of the high-noise and of the low-noise expert, as upstream has it
# upstream's default negative prompt (Wan2.2 wan/configs/shared_config.py)
NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，"
    "丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，"
    "静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)


def default_size(variant: str, values: Mapping[str, Any]) -> str:
    """The size of the first frame if encode knows it, else the first size of the variant."""
    if "width" in values and "height" in values:
        return f"{values['width']}*{values['height']}"
    return SIZES[variant][0]


def default_shift(variant: str, values: Mapping[str, Any]) -> float:
    """The shift that upstream uses: 5.0, for the 14b-t2v 12.0, and for the 14b at 480p 3.0, as its documentation advises.

    It is 1 for listed steps.
    """
    if values["sigmas"] or values["timesteps"]:
        return 1.0
    if variant == T2V:
        return 12.0
    if "size" in values:
        width, height = parse_size(values["size"])
    else:  # a stage run by hand takes the size of its encoded input; an unreadable input is refused later
        width, height = values.get("width", 0), values.get("height", 0)
    return 3.0 if variant == "14b" and 0 < width * height <= 832 * 480 else 5.0


def default_low_guidance(variant: str, values: Mapping[str, Any]) -> float | None:
    """The published scale of the low-noise expert if the high-noise expert has its own; else None, the same for both."""
    return T2V_GUIDANCE[1] if variant == T2V and values["guidance_scale"] == T2V_GUIDANCE[0] else None


def is_fitted(frame: tuple[int, int], size: tuple[int, int], multiple: int) -> bool:
    """Whether a first frame of (width, height) is what extract_frames makes of some video for a `size`, by any fit."""
    (width, height), area = frame, size[0] * size[1]
    by_area = width * height <= area < (width + multiple) * (height + multiple)
    return frame == size or by_area or min(frame) == min(size)


def check_num_frames(value: int) -> str | None:
    return None if value % 4 == 1 else f"it must be 4n+1, for example {value // 4 * 4 + 1}"


def detect(folder: Path) -> str | None:
    """The variant of a diffusers repository: two experts have a boundary, the 5b has a timestep per token."""
    index = read_index(folder)
    pipeline = str(index.get("_class_name", ""))
    if not pipeline.startswith("Wan"):
        return None
    if index.get("expand_timesteps"):
        return "5b"
    if index.get("boundary_ratio") is None:
        return None
    return T2V if pipeline == "WanPipeline" else "14b"


def check(variant: str, values: Mapping[str, Any], sizes: tuple[str, ...]) -> None:
    """Raise UsageError for a size that the model does not support, and for options of generate that do not go together."""
    check_size(values["size"], sizes or SIZES[variant])
    check_known_latents(variant, values)
    check_generation(variant, values)


def check_generation(variant: str, values: Mapping[str, Any]) -> None:
    """Raise UsageError for options of a second expert in the 5b, and for steps, guidance or strengths that do not fit."""
    check_schedule(values)
    check_guidance(values, guidance_scales(values))
    check_transformer(values)
    check_step_cache(values)
    check_parallel(values, guidance_scales(values))
    for name in ("guidance_scale_2", "boundary_ratio", "lora_2", "mag_ratios_2"):
        if variant == "5b" and values[name] not in (None, []):
            raise UsageError(f"{name} is {values[name]!r} and the 5B has one expert", f"leave {name} out")
    for suffix in ("", "_2"):
        check_loras(values, suffix)


def check_known_latents(variant: str, values: Mapping[str, Any]) -> None:
    """Raise UsageError for known latents that the variant cannot use, or that leave nothing to generate."""
    known = values["known_latents"]
    if known > 1 and variant != "5b":
        raise UsageError(f"known_latents is {known} and the {variant} knows one frame", "leave known_latents out")
    if known > 1 and known_frames(known) >= values["num_frames"]:
        raise UsageError(
            f"known_latents is {known}, which are {known_frames(known)} frames, and num_frames is {values['num_frames']}",
            "raise num_frames",
        )


def guidance_scales(values: Mapping[str, Any]) -> tuple[float, float]:
    """Guidance scales of the high-noise (or only) expert and of the low-noise expert."""
    high, low = values["guidance_scale"], values["guidance_scale_2"]
    return high, high if low is None else low


def model_fault(folder: Path, values: Mapping[str, Any]) -> Fault | None:
    """A size, length or prompt length that exceeds the limits of the repository. `values` are the options of encode."""
    limit, size = limits(folder), parse_size(values["size"])
    return (
        size_fault(size, limit)
        or frames_fault((values["num_frames"] - 1) // 4 + 1, limit)
        or text_fault(values["max_sequence_length"], limit)
    )


def fit_first_frame(variant: str, values: Mapping[str, Any]) -> dict[str, Any] | None:
    """How extract_frames fits the first frame: to the size of the clip, or with fit area to its area.

    None for the 14b-t2v, which takes no first frame.
    """
    if variant == T2V:
        return None
    fitted = {"size": values["size"], "multiple": MULTIPLE[variant], "area_rule": AREA_RULE[variant]}
    count = known_frames(values["known_latents"])
    return {**fitted, "select": "tail", "count": count} if count > 1 else fitted


def known_frames(latents: int) -> int:
    """The frames that known latent frames stand for."""
    return 4 * latents - 3


def handovers(variant: str) -> dict[str, Handover]:
    """How the links of a chain go on: all variants from the last frame, the 5b from several latents that it knows, and the
    14b, with the LoRAs of SVI 2 Pro, from an image that all links share and the last latent."""
    if variant == "5b":
        return {FRAME: Handover(), LATENTS: Handover(from_latents=True, fault=known_latents_fault)}
    if variant == "14b":
        svi = Handover(from_latents=True, image=FIRST, options={"padding": "zeros"}, fault=svi_fault)
        return {FRAME: Handover(), LATENTS: svi}
    return {FRAME: Handover()}


def known_latents_fault(values: Mapping[str, Any]) -> Fault | None:
    """Why links of the 5b cannot go on from latents, or None."""
    if values["known_latents"] > 1:
        return None
    return "handover is latents and known_latents is 1", "set it to 2 or 3, for a 5b that was trained so"


def svi_fault(values: Mapping[str, Any]) -> Fault | None:
    """Why links of the 14b cannot go on from latents, or None."""
    if missing := [name for name in ("lora", "lora_2") if not values[name]]:
        return f"handover is latents and {missing[0]} is empty", "name the LoRAs of SVI 2 Pro, one for each expert"
    return None


def minutes(variant: str, values: Mapping[str, Any]) -> float:
    """Upper estimate for the denoising of a clip: five times the time of an H100.

    The seconds per pass go through Wan's published times of the 14B for 81 frames, 4.1 at 832*480 and 13.2 at 1280*720.
    """
    width, height = parse_size(values["size"])
    tokens = width * height / MULTIPLE[variant] ** 2 * ((values["num_frames"] - 1) // 4 + 1)
    passes = 1 + (max(guidance_scales(values)) > 1) + bool(values["skip_layers"])
    seconds = 8.7e-5 * tokens + 1.16e-9 * tokens**2
    return 5 * values["num_inference_steps"] * passes * seconds / 60


class WanVaeTrainingOptions(VaeTrainingOptions):
    num_frames: int = VaeTrainingOptions.redeclared("num_frames", default=9)
    image_steps: int = option(1000, "Steps on single frames, before the clips", minimum=0, maximum=10**8)
    image_crop_share: float = option(
        0.0, "Share of the steps on single frames that train on square crops", minimum=0, maximum=1
    )
    crop_frames: int = option(1, "Frames of each clip in a step on square crops of single frames", minimum=1, maximum=4096)


VAE_TRAINING = Training(
    "stages.families.wan.train_vae:WanVAETask", WanVaeTrainingOptions, "Train a VAE (AutoencoderKLWan) on clips."
)


class ClipConditionOptions(LatentOptions):
    """Options of every training of a denoiser: what its clips are conditioned on."""

    num_frames: int = LatentOptions.redeclared("num_frames", default=17)
    prefix: str = option("continue video", "Text put before a share of the captions, as recipe chain does it")
    prefix_share: float = option(0.2, "Share of the captions that prefix is put before", minimum=0, maximum=1)
    first_frame_share: float = option(
        0.5, "Share of the clips that are conditioned on their first frame (5b)", minimum=0, maximum=1
    )
    most_known_latents: int = option(
        1,
        "Most latent frames that a clip is conditioned on, where it is conditioned on frames; their number is drawn from 1 "
        "to this (5b). A model for handover latents is trained with as many as that gives it, or more",
        unit="latent frames",
        minimum=1,
        maximum=64,
    )
    boundary_ratio: float = option(0.9, "Lowest sigma of the high-noise expert (14b)", minimum=0, maximum=1)


class FlowMatchingOptions(CaptionTrainingOptions, ClipConditionOptions):
    """Options of a training on noisy clips."""

    text_dropout: float = CaptionTrainingOptions.redeclared("text_dropout", default=0.08)
    training_shift: float = option(2.0, "Shift of the sigmas drawn in training (5b)", minimum=0.01, maximum=100)
    sample_steps: int = option(12, "Denoising steps of the sample strips", minimum=1, maximum=1000)
    sample_shift: float = option(3.0, "Shift of the noise schedule of the sample strips", minimum=0.01, maximum=100)


class DenoiserTrainingOptions(FlowMatchingOptions, LatentTrainingOptions):
    variant: str = option("5b", "Architecture: 5b is one transformer, 14b two experts", choices=("5b", "14b"))
    sample_shift: float = FlowMatchingOptions.redeclared(
        "sample_shift", help="Shift of the noise schedule of the sample strips, also written into the scheduler's config"
    )

    def own_settings(self) -> dict[str, Any]:
        options = {
            "size": self.size,
            "num_frames": self.num_frames,
            "num_inference_steps": self.sample_steps,
            "shift": self.sample_shift,
            "max_sequence_length": self.max_sequence_length,
        }
        options |= {"boundary_ratio": self.boundary_ratio} if self.variant == "14b" else {}
        options |= {} if self.start_from else {"negative_prompt": ""}  # a new text encoder does not know upstream's words
        return {"family": "wan", "variant": self.variant, "sizes": [self.size], "options": options}


DENOISER_TRAINING = Training(
    "stages.families.wan.train_denoiser:DenoiserTask",
    DenoiserTrainingOptions,
    "Train a denoiser (WanTransformer3DModel) and its text encoder on clips with captions.",
)

LORA_FILES = {"lora": "pytorch_lora_weights.safetensors", "lora_2": "pytorch_lora_weights_2.safetensors"}  # by option


class AdapterTrainingOptions(ClipConditionOptions):
    """Options of a training of low-rank matrices (LoRA) beside the frozen weights of a model."""

    start_from: str = ClipConditionOptions.redeclared(
        "start_from", help="Folder of the model that the LoRA is for, in diffusers' layout; its weights stay as they are"
    )
    rank: int = option(32, "Rank of the low-rank matrices", minimum=1, maximum=4096)
    lora_alpha: float = option(
        lambda variant, values: float(values["rank"]),
        "Alpha of the LoRA: the product of the matrices is multiplied by alpha / rank",
        default_text="the rank",
        minimum=0.001,
        maximum=10**4,
    )
    target_modules: list[str] = option(
        ["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"],
        "Linear layers of the blocks that get matrices: the ends of their names in diffusers",
        default_text="to_q, to_k, to_v, to_out.0, ffn.net.0.proj and ffn.net.2: all of them",
    )
    gradient_checkpointing: bool = option(
        False, "Compute each block again in the backward pass, which takes time and saves most of the memory"
    )

    def settings(self) -> dict[str, Any]:
        """The settings of the model with its LoRA, over those of `start_from`."""
        variant = detect(Path(self.start_from)) or ""
        two = variant in TWO_EXPERTS
        files = {name: [file] for name, file in LORA_FILES.items() if two or name == "lora"}
        scales = {name.replace("lora", "lora_scale"): [1.0] for name in files}
        boundary = {"boundary_ratio": self.boundary_ratio} if two else {}
        options = {**files, **scales, **boundary, **self.sampling(two)}
        return {"family": "wan", "variant": variant, "options": options}

    def sampling(self, two_experts: bool) -> dict[str, Any]:
        """The options of `generate` that the LoRA was trained for."""
        return {}


class LoraTrainingOptions(FlowMatchingOptions, AdapterTrainingOptions):
    pass


class DistillationOptions(AdapterTrainingOptions):
    num_inference_steps: int = option(4, "Steps of the student, which needs no guidance", minimum=1, maximum=1000)
    shift: float = option(5.0, "Shift of the noise schedule of student and teacher", minimum=0.01, maximum=100)
    teacher_steps: int = option(
        40, "Steps of the teacher, a multiple of num_inference_steps: the model of start_from", minimum=1, maximum=1000
    )
    guidance_scale: float = option(5.0, "Scale of classifier-free guidance of the teacher", minimum=0, maximum=100)
    negative_prompt: str = option(
        NEGATIVE_PROMPT, "Negative prompt of the teacher", default_text="upstream's text (Chinese)"
    )

    def sampling(self, two_experts: bool) -> dict[str, Any]:
        guidance = {"guidance_scale": 1.0} | ({"guidance_scale_2": 1.0} if two_experts else {})
        steps = {"num_inference_steps": self.num_inference_steps, "shift": self.shift, "sigma_grid": "wan"}
        return {"sampler": "euler", **steps, **guidance}


LORA_TRAINING = Training(
    "stages.families.wan.train_lora:LoraTask",
    LoraTrainingOptions,
    "Train a LoRA of a Wan model on clips with captions.",
)
DISTILLATION = Training(
    "stages.families.wan.train_lora:DistillationTask",
    DistillationOptions,
    "Distil a Wan model to a few steps without guidance, as a LoRA.",
)


class EncodeOptions(PromptOptions, TextLengthOption, DtypeOption, VaeTilingOption):
    size: str = option(
        default_size,
        "Size of the clip, width*height: 14b and 14b-t2v take 1280*720, 720*1280, 832*480, 480*832; 5b 1280*704, 704*1280. "
        "With a first frame it is the area of the clip, whose aspect ratio is the frame's, unless fit says otherwise",
        form=size_text,
        default_text="14b and 14b-t2v: 1280*720, 5b: 1280*704",
    )
    negative_prompt: str = PromptOptions.redeclared(
        "negative_prompt", default=NEGATIVE_PROMPT, default_text="upstream's text (Chinese)"
    )
    num_frames: int = option(
        81,
        "Frames of the clip, 4n+1",
        aliases=("frame_num",),
        unit="frames",
        minimum=1,
        check=check_num_frames,
        maximum=4093,
    )
    known_latents: int = option(
        1,
        "Latent frames at the beginning of the clip that repeat the end of what it continues: of N, 4 N - 3 frames. More "
        "than 1 shows how things move, to a 5b that was trained so",
        unit="latent frames",
        minimum=1,
        maximum=64,
        neutral=1,
    )
    padding: str = option(
        "grey",
        "What the condition of the 14b has behind what is given: grey frames, or zeros for the LoRAs of SVI 2 Pro",
        choices=("grey", "zeros"),
        set_by_recipe=True,
        neutral="grey",
    )


class GenerateOptions(
    SeedOption, DtypeOption, TransformerOptions, GuidanceOptions, StepCacheOptions, SamplerOptions, LoraOptions
):
    seed: int = SeedOption.redeclared("seed", aliases=("base_seed",))
    num_inference_steps: int = option(
        default_steps(40),
        "Denoising steps",
        aliases=("steps", "sample_steps"),
        minimum=1,
        maximum=1000,
        default_text="40; as many as sigmas or timesteps lists",
    )
    guidance_scale: float = option(
        lambda variant, values: T2V_GUIDANCE[0] if variant == T2V else 5.0,
        "Scale of classifier-free guidance; 1 switches it off. If guidance_scale_2 is given, this scale is for the "
        "high-noise expert alone",
        aliases=("sample_guide_scale",),
        minimum=0,
        maximum=100,
        default_text="5.0; 14b-t2v: 4.0",
    )
    guidance_scale_2: float | None = option(
        default_low_guidance,
        "Scale of classifier-free guidance of the low-noise expert (14b, 14b-t2v)",
        minimum=0,
        default_text="the same as guidance_scale; 14b-t2v beside its default guidance_scale: 3.0",
        maximum=100,
    )
    shift: float = option(
        default_shift,
        "Shift of the noise schedule: higher spends more steps on much noise",
        aliases=("sample_shift",),
        minimum=0.01,
        default_text="5.0; 14b up to 832*480: 3.0; 14b-t2v: 12.0; with sigmas or timesteps: 1.0",
        maximum=100,
    )
    sigma_grid: str = option(
        "wan",
        "Sigmas of the steps before the shift: wan, evenly spaced from 0.999 to 0, or from 1 to 0 with another sampler than "
        "unipc, as in Wan's own program; diffusers, the library's default, for unipc from 1 to 0.001 since 0.37",
        choices=("wan", "diffusers"),
    )
    boundary_ratio: float | None = option(
        lambda variant, values: BOUNDARY.get(variant),
        "Share of the noise schedule below which the low-noise expert takes over (14b, 14b-t2v)",
        minimum=0,
        maximum=1,
        default_text="14b: 0.9, 14b-t2v: 0.875",
    )
    lora: list[str] = LoraOptions.redeclared(
        "lora",
        help="LoRA weights (safetensors files) for the transformer, of two experts the high-noise one; all of them are "
        "merged into it",
    )
    lora_2: list[str] = LoraOptions.redeclared(
        "lora",
        help="LoRA weights (safetensors files) for the low-noise expert (14b, 14b-t2v); all of them are merged into it",
    )
    lora_scale_2: list[float] = LoraOptions.redeclared(
        "lora_scale", help="Strengths of the files in lora_2, in their order, or one for all of them"
    )
    checkpoint_every: int = option(
        0,
        "Save the denoising state every N steps, so that a killed job can resume; 0: only between the experts",
        unit="steps",
        minimum=0,
        changes_result=False,
        maximum=1000,
    )


class DecodeOptions(VaeTilingOption, WriteOptions):
    fps: float = WriteOptions.redeclared(
        "fps", default=lambda variant, values: FPS[variant], default_text="14b and 14b-t2v: 16, 5b: 24"
    )


def recognise(published: Published) -> str | None:
    """The remedy for a folder in Wan's own layout."""
    if published.find("model_index.json") or not published.find(
        "models_t5_umt5-xxl-enc-bf16.pth", "*_noise_model/*", "*_VAE.pth"
    ):
        return None
    return published.converted_by("wan", ckpt_dir=published.place)


class ConvertOptions(Options):
    ckpt_dir: str = option(
        REQUIRED,
        "Folder with a checkpoint in Wan's own layout, such as Wan-AI/Wan2.2-TI2V-5B. With --transformer also a "
        "repository in diffusers' layout, whose other components are hard-linked",
        exists="folder",
    )
    transformer: str = option(
        "",
        "File with the weights of the transformer, of two experts the high-noise one, instead of those in ckpt_dir: "
        ".safetensors in Wan's own names, as distilled releases are published, or .gguf",
        exists="file",
    )
    transformer_2: str = option(
        "", "File with the weights of the low-noise expert (14b, 14b-t2v), instead of those in ckpt_dir", exists="file"
    )
    dtype: str = option(
        "bfloat16", "Precision in which quantised weights of these files (GGUF, 8 bits) are written", choices=DTYPES
    )


PARTS = {"transformer": "high_noise_model", "transformer_2": "low_noise_model"}  # folders in diffusers' and in Wan's layout


def files_to_convert(values: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Glob patterns of the files of ckpt_dir that a conversion reads."""
    if not any(values.get(part) for part in PARTS):
        return {"ckpt_dir": ("*.json", "*.safetensors", "*_noise_model/*", "*.pth", "google/umt5-xxl/*")}
    others = ("*.json", "*.pth", "google/umt5-xxl/*", "text_encoder/*", "tokenizer/*", "vae/*", "scheduler/*")
    kept = (f"{folder}/*" for part in PARTS if not values.get(part) for folder in (part, PARTS[part]))
    return {"ckpt_dir": (*others, *kept)}


FAMILY = Family(
    name="wan",
    version=2,
    stages={
        "encode": encode_by_wan("stages.families.wan.encode:Encode", EncodeOptions),
        "generate": Implementation(
            worker="stages.families.wan.generate:Generate",
            options=GenerateOptions,
            weights=("model_index.json", "transformer*/*", "scheduler/*", "vae/config.json"),
            in_memory=(
                {"transformer": DTYPE},
                {"transformer_2": DTYPE},
            ),
            on_out_of_memory={"offload": "block_level", "compile": "none"},
            minutes=minutes,
        ),
        "decode": decode_by_wan("stages.families.wan.decode:Decode", DecodeOptions),
    },
    variants=("14b", "5b", T2V),
    components=(
        TOKENIZER,
        UMT5,
        WAN_VAE,
        wan_transformer("transformer"),
        wan_transformer("transformer_2", variants=TWO_EXPERTS),
        scheduler("UniPCMultistepScheduler"),
    ),
    detect=detect,
    check=check,
    model_fault=model_fault,
    disk=lambda values: disk(values["size"], values["num_frames"]),
    fit_first_frame=fit_first_frame,
    handovers=handovers,
    from_text=FROM_TEXT,
    trainings={
        "wan-vae": VAE_TRAINING,
        "wan": DENOISER_TRAINING,
        "wan-lora": LORA_TRAINING,
        "wan-distill": DISTILLATION,
    },
    conversion=Conversion(
        "stages.families.wan.convert:convert",
        ConvertOptions,
        "A folder in Wan's own layout: Wan2.2-TI2V-5B, -I2V-A14B, -T2V-A14B or Wan2.1-T2V, or a file of a transformer.",
        reads=files_to_convert,
    ),
    recognise=recognise,
    presets=PRESETS,
)
