"""Helios: a film chunk by chunk, each from the latents before it, on a transformer of the size of Wan2.1's 14B.

Variants: base; mid and distilled, which begin a chunk at a quarter of its size (a pyramid of three stages). Lengths have
three units: a chunk is 9 latent frames, and these are 33 frames, of which the first latent frame stands for one and each
later one for four. Defaults are those of diffusers' pipelines, or of the authors' scripts where diffusers has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.families.shared.common_options import PromptOptions, SeedOption, TransformerOptions, check_transformer
from stages.families.shared.model_index import read_index
from stages.families.shared.parts import TOKENIZER, UMT5, WAN_TRANSFORMER_SIZES, WAN_VAE, scheduler
from stages.families.shared.training.options import CaptionTrainingOptions
from stages.families.shared.wan.limits import Fault, limits, text_fault
from stages.families.shared.wan.options import (
    DtypeOption,
    LatentTrainingOptions,
    LoraOptions,
    TextLengthOption,
    VaeTilingOption,
    check_loras,
    decode_by_wan,
    disk,
    encode_by_wan,
)
from stages.media.options import WriteOptions
from stages.runtime.components import Component
from stages.runtime.errors import UsageError, shown
from stages.runtime.options import DTYPE, FRAME, LATENTS, NO_IMAGE, Family, Handover, Implementation, Training, option
from stages.runtime.sizes import check_size, not_multiple, parse_size, size_text

BASE, MID, DISTILLED = VARIANTS = ("base", "mid", "distilled")
PYRAMIDS = (MID, DISTILLED)
SIZES = ("640*384",)  # the one size of the training
STAGES = 3  # of a pyramid: a chunk begins at a quarter of its width and height
BASE_STEPS = 50
STAGE_STEPS = {BASE: [], MID: [20] * STAGES, DISTILLED: [2] * STAGES}
LATENT = "latent frames"
CHUNK_HELP = "Latent frames of a chunk, which are denoised together: L are 4 L - 3 frames"
HISTORY_HELP = (
    "Latent frames before a chunk that are read coarsely in 4x8x8, in 2x4x4, and as they are, the oldest first; the first "
    "latent frame of the film is read beside them"
)
# the text of the pipelines' documentation: Wan's default in English
NEGATIVE_PROMPT = (
    "Bright tones, overexposed, static, blurred details, subtitles, style, works, paintings, images, static, overall gray, "
    "worst quality, low quality, JPEG compression residue, ugly, incomplete, extra fingers, poorly drawn hands, poorly "
    "drawn faces, deformed, disfigured, misshapen limbs, fused fingers, still picture, messy background, three legs, many "
    "people in the background, walking backwards"
)


def window(latents: int) -> int:
    """Frames of a chunk of `latents` latent frames."""
    return 4 * latents - 3


def chunks(frames: int, latents: int) -> int:
    """Number of chunks of a clip of at least this many frames."""
    return max(1, -(-frames // window(latents)))


def clip_frames(chunks: int, latents: int, whole: bool) -> int:
    """Frames of a clip of chunks: all of them, or without the up to three that the pipeline cuts, so that 4n+1 are left."""
    frames = chunks * window(latents)
    return frames if whole else (frames - 1) // 4 * 4 + 1


def prompt_starts(encoded: Mapping[str, Any]) -> list[int]:
    """The frames of a clip at which its further prompts begin, by the fields of `encoded`: each with a whole chunk."""
    block = encoded["block"]
    return [-(-switch // block) * window(block) for switch in encoded["switches"]]


def check_history(sizes: list[int]) -> None:
    """Raise UsageError for a history that is not long, mid and short."""
    if len(sizes) != 3:
        raise UsageError(f"history_sizes is {shown(sizes)}", "give three numbers, such as [16, 2, 1]")


def check_generation(variant: str, values: Mapping[str, Any]) -> None:
    """Raise UsageError for options of generate that do not go together, or not with the variant."""
    steps, stages = values["pyramid_num_inference_steps_list"], len(STAGE_STEPS[variant])
    check_history(values["history_sizes"])
    check_loras(values)
    check_transformer(values)
    if len(steps) != stages:
        raise UsageError(
            f"pyramid_num_inference_steps_list is {shown(steps)} and the {variant} has {stages or 'no'} stages",
            f"give {stages} numbers" if stages else "give num_inference_steps instead",
        )
    if stages and values["num_inference_steps"] != BASE_STEPS:
        raise UsageError(
            f"num_inference_steps is {values['num_inference_steps']} and the {variant} has {stages} stages",
            "give pyramid_num_inference_steps_list instead",
        )
    if variant == DISTILLED and values["guidance_scale"] != 1:
        raise UsageError(
            f"guidance_scale is {values['guidance_scale']} and the distilled model was trained without guidance",
            "leave guidance_scale out",
        )
    if values["gpus"] > 1 and values["parallel"] != "layers":
        raise UsageError(f"parallel is {values['parallel']}", "set parallel to layers, or gpus to 1")
    for name in ("image_noise_sigma", "video_noise_sigma"):
        if len(values[name]) != 2 or values[name][0] > values[name][1]:
            raise UsageError(f"{name} is {shown(values[name])}", "give two numbers, the lower one first")


def check(variant: str, values: Mapping[str, Any], sizes: tuple[str, ...]) -> None:
    """Raise UsageError for a size that the model does not support, and for options that do not go together."""
    check_size(values["size"], sizes or SIZES)
    check_generation(variant, values)


def multiple(variant: str) -> int:
    """Width and height are multiples of this: VAE stride x patch size x scale of the first stage."""
    return 16 * 2 ** (STAGES - 1) if variant in PYRAMIDS else 16


def model_fault(folder: Path, values: Mapping[str, Any]) -> Fault | None:
    """A size or prompt length that exceeds the limits of the repository. `values` are the options of encode."""
    limit, size = limits(folder), parse_size(values["size"])
    fault = not_multiple(size, multiple(detect(folder) or BASE))
    return fault or text_fault(values["max_sequence_length"], limit)


def fit_first_frame(variant: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """How extract_frames selects and fits the past: the last frames of a video, as many as the history reads."""
    count = values["num_conditioning_frames"]
    return {"select": "tail", "count": count, "size": values["size"], "multiple": multiple(variant)}


def handovers(variant: str) -> dict[str, Handover]:
    """How the links of a chain go on: from the last frames, or from the latents, as if one film went on."""
    by_latents = Handover(from_latents=True, image=NO_IMAGE, options={"whole_chunks": True})
    return {FRAME: Handover(), LATENTS: by_latents}


def detect(folder: Path) -> str | None:
    """The variant of a repository in diffusers' layout, else None."""
    index = read_index(folder)
    kinds = {"HeliosPipeline": BASE, "HeliosPyramidPipeline": DISTILLED if index.get("is_distilled") else MID}
    return kinds.get(str(index.get("_class_name")))


def minutes(variant: str, values: Mapping[str, Any]) -> float:
    """Upper estimate for a clip: a forward pass of the 14B at 640*384 takes about a second on an H100, taken five times."""
    width, height = parse_size(values["size"])
    steps = sum(values["pyramid_num_inference_steps_list"]) or values["num_inference_steps"]
    passes = steps * (1 + (values["guidance_scale"] > 1)) * (1 + (variant == DISTILLED))
    count = chunks(values["num_frames"], values["num_latent_frames_per_chunk"])
    return 5 * count * passes * width * height / (640 * 384) / 60


class HeliosTrainingOptions(CaptionTrainingOptions, LatentTrainingOptions):
    num_frames: int = LatentTrainingOptions.redeclared(
        "num_frames", default=33, help="Frames of a window, 4n+1; a clip has three windows, spread evenly over the video"
    )
    history_sizes: list[int] = option([16, 2, 1], HISTORY_HELP, unit=LATENT, minimum=1, maximum=4096)
    text_dropout: float = CaptionTrainingOptions.redeclared(
        "text_dropout", default=0.3, help="Share of the captions replaced by an empty text: the past alone says what goes on"
    )
    text_share: float = option(1 / 3, "Share of the windows without a past, for text to video", minimum=0, maximum=1)
    first_frame_share: float = option(
        0.15, "Share of the other windows whose past is one frame, for image to video", minimum=0, maximum=1
    )
    training_shift: float = option(
        1.0,
        "Shift of the sigmas drawn in training, on top of that by the size of a window: higher draws more noise, where "
        "motion is decided",
        minimum=0.01,
        maximum=100,
    )
    history_noise: float = option(
        1 / 3,
        "Upper limit of the noise on the latents of the past, which stands for errors of generated ones",
        minimum=0,
        maximum=1,
    )
    noise_share: float = option(0.9, "Share of the windows whose past gets noise", minimum=0, maximum=1)
    sample_steps: int = option(12, "Denoising steps of the sample strips", minimum=1, maximum=1000)

    def own_settings(self) -> dict[str, Any]:
        latents = (self.num_frames - 1) // 4 + 1
        options = {
            "size": self.size,
            "num_frames": self.num_frames,
            "num_latent_frames_per_chunk": latents,
            "num_conditioning_frames": self.num_frames * -(-sum(self.history_sizes) // latents),
            "history_sizes": self.history_sizes,
            "num_inference_steps": self.sample_steps,
            "guidance_scale": 1.0,
            "max_sequence_length": self.max_sequence_length,
            "negative_prompt": "",
        }
        return {"family": "helios", "variant": BASE, "sizes": [self.size], "options": options}


TRAINING = Training(
    "stages.families.helios.train:HeliosTask",
    HeliosTrainingOptions,
    "Train a transformer of Helios (HeliosTransformer3DModel) on films, each window with those before it as its past.",
)


class EncodeOptions(PromptOptions, TextLengthOption, DtypeOption, VaeTilingOption):
    size: str = option(SIZES[0], "Size of the clip, width*height", form=size_text)
    negative_prompt: str = PromptOptions.redeclared(
        "negative_prompt", default=NEGATIVE_PROMPT, default_text="the text in diffusers' documentation"
    )
    num_frames: int = option(
        132,
        "Frames of the clip, rounded up to whole chunks; up to three frames are cut at the end, so that 4n+1 are left: of "
        "132 frames 129 are left, of 33 all",
        unit="frames",
        minimum=1,
        maximum=10**6,
    )
    next_prompts: list[str] = option(
        [], "Further prompts, each of which takes over at its frame in switch_frame_indices", set_by_recipe=True
    )
    switch_frame_indices: list[int] = option(
        [],
        "Frame at which each of next_prompts takes over, counted from the start of the clip, rounded up to a chunk",
        unit=LATENT,
        minimum=1,
        maximum=10**6,
    )
    whole_chunks: bool = option(
        False, "Cut no frames at the end of the clip, because another clip goes on from its latents", set_by_recipe=True
    )
    num_latent_frames_per_chunk: int = option(9, CHUNK_HELP, unit=LATENT, minimum=2, maximum=1024)
    num_conditioning_frames: int = option(
        99,
        "Limit of the last frames of a video to go on from, rounded down to whole chunks; with fewer frames than a chunk, "
        "only the last frame is read",
        unit="frames",
        minimum=1,
        maximum=4096,
    )


class GenerateOptions(SeedOption, DtypeOption, TransformerOptions, LoraOptions):
    num_inference_steps: int = option(BASE_STEPS, "Denoising steps of a chunk (base)", minimum=1, maximum=1000)
    pyramid_num_inference_steps_list: list[int] = option(
        lambda variant, values: STAGE_STEPS[variant],
        "Denoising steps of each stage of a chunk, from the smallest size on (mid, distilled)",
        minimum=1,
        maximum=1000,
        default_text="mid: 20 20 20, distilled: 2 2 2",
    )
    guidance_scale: float = option(
        lambda variant, values: 1.0 if variant == DISTILLED else 5.0,
        "Scale of classifier-free guidance; 1 switches it off",
        minimum=0,
        maximum=100,
        default_text="5.0; distilled: 1.0, which is the only one",
    )
    history_sizes: list[int] = option([16, 2, 1], HISTORY_HELP, unit=LATENT, minimum=1, maximum=4096)
    image_noise_sigma: list[float] = option(
        [0.111, 0.135],
        "Range of the noise on the latent of the first frame of the film, lowest and highest share; 0 0 is none",
        minimum=0,
        maximum=1,
    )
    video_noise_sigma: list[float] = option(
        [0.111, 0.135],
        "Range of the noise on the latents of the source, lowest and highest share; 0 0 is none",
        minimum=0,
        maximum=1,
    )
    zero_init_steps: int = option(
        2,
        "First steps of a chunk whose prediction is 0 (mid, CFG-Zero*)",
        unit="steps",
        minimum=0,
        maximum=999,
    )
    amplify_first_chunk: bool = option(True, "Take twice as many steps for the first chunk of a film (distilled)")


class DecodeOptions(VaeTilingOption, WriteOptions):
    fps: float = WriteOptions.redeclared("fps", default=24.0)


TRANSFORMER = Component("transformer", "diffusers", ("HeliosTransformer3DModel",), sizes=WAN_TRANSFORMER_SIZES)

FAMILY = Family(
    name="helios",
    version=1,
    stages={
        "encode": encode_by_wan("stages.families.helios.encode:Encode", EncodeOptions),
        "generate": Implementation(
            worker="stages.families.helios.generate:Generate",
            options=GenerateOptions,
            weights=("model_index.json", "transformer/*", "scheduler/*", "vae/config.json"),
            in_memory=({"transformer": DTYPE},),
            on_out_of_memory={"offload": "block_level", "compile": "none"},
            minutes=minutes,
        ),
        "decode": decode_by_wan("stages.families.helios.decode:Decode", DecodeOptions),
    },
    variants=VARIANTS,
    components=(TOKENIZER, UMT5, WAN_VAE, TRANSFORMER, scheduler("HeliosScheduler", "HeliosDMDScheduler")),
    detect=detect,
    check=check,
    model_fault=model_fault,
    disk=lambda values: disk(values["size"], values["num_frames"]),
    fit_first_frame=fit_first_frame,
    handovers=handovers,
    from_text=VARIANTS,
    trainings={"helios": TRAINING},
)
