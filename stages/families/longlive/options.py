"""LongLive: causal, block-wise generation over a KV cache, on Wan2.1's text-to-video model (arXiv:2509.22622).

Lengths have two units. The first latent frame stands for 1 frame of the film, each later one for 4: L latent frames are
4 L - 3 frames. The defaults are those of the video-conditional program that this family replaces.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from stages.families.shared.common_options import CompileOption, SeedOption
from stages.families.shared.model_index import read_index
from stages.families.shared.parts import TOKENIZER, UMT5, WAN_VAE, wan_transformer
from stages.families.shared.wan.limits import Fault, frames_fault, limits, size_fault, text_fault
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
from stages.runtime.errors import UsageError
from stages.runtime.options import DTYPE, REQUIRED, Conversion, Family, Implementation, Options, Published, Training, option
from stages.runtime.sizes import check_size, parse_size, size_text

SIZES = ("832*480",)
LONGEST = 1024  # latent frames: rows of the rotary table that the model was trained with
LONGEST_FILM = 15_000  # latent frames: about an hour
LATENT = "latent frames"
BLOCK_HELP = "Frames of a block, which are denoised together"
WINDOW_HELP = "Attention window: the sinks, the latest frames and the block itself"
SINK_HELP = "Attention sinks: this many first frames stay in the window for the whole film"


class Lengths(NamedTuple):
    """How much of a source is used: its first `frames`, which make `latent_frames`, a whole number of blocks."""

    frames: int
    latent_frames: int


def lengths(frames: int, block: int) -> Lengths:
    """The most of a source's first `frames` that makes whole blocks of latent frames; 0 if they make less than a block."""
    latent_frames = (1 + (frames - 1) // 4) // block * block if frames else 0
    return Lengths(pixel_frames(latent_frames), latent_frames)


def pixel_frames(latent: int) -> int:
    """Frames of the film that `latent` latent frames stand for."""
    return max(0, 4 * latent - 3)


def prompt_starts(encoded: Mapping[str, Any]) -> list[int]:
    """The frames of a film at which its further prompts begin, by the fields of `encoded`: each with a whole block."""
    return [pixel_frames(-(-switch // encoded["block"]) * encoded["block"]) for switch in encoded["switches"]]


def check_lengths(values: Mapping[str, Any]) -> None:
    """Raise UsageError for a length that is not a whole number of blocks."""
    latent, block = values["num_output_frames"], values["num_frame_per_block"]
    if latent % block:
        raise UsageError(
            f"num_output_frames is {latent} latent frames and a block has {block}",
            f"take {latent // block * block or block} or {(latent // block + 1) * block}",
        )


def check_window(values: Mapping[str, Any], block: int) -> None:
    """Raise UsageError for a window that cannot hold a block beside the sinks."""
    window, sink = values["local_attn_size"], values["sink_size"]
    if window < sink + block:
        raise UsageError(
            f"local_attn_size is {window}, with {sink} sinks and blocks of {block}", f"take {sink + block} or more"
        )


def check(variant: str, values: Mapping[str, Any], sizes: tuple[str, ...]) -> None:
    """Raise UsageError for sizes and lengths that do not go together."""
    check_size(values["size"], sizes or SIZES)
    check_lengths(values)
    check_window(values, values["num_frame_per_block"])
    check_loras(values)
    check_compile(values)
    check_longest(values["num_output_frames"], values)


def check_compile(values: Mapping[str, Any]) -> None:
    """Raise UsageError for compiled blocks that move to the GPU one by one."""
    if values["compile"] != "none" and values["low_memory"]:
        raise UsageError(f"compile is {values['compile']} and low_memory is true", "leave one of them out")


def check_longest(latent: int, values: Mapping[str, Any], rows: int = LONGEST) -> None:
    """Raise UsageError for a film of more latent frames than the rotary table has rows, unless positions are relative."""
    if latent > rows and not values["relative_positions"]:
        raise UsageError(
            f"num_output_frames is {latent} latent frames and the model has positions for {rows}", "set relative_positions"
        )


def minutes(variant: str, values: Mapping[str, Any]) -> float:
    """Upper estimate for a film: 3 seconds per latent frame of 832*480, twice what low_memory takes on an H200."""
    width, height = parse_size(values["size"])
    return values["num_output_frames"] * width * height / (832 * 480) * 3 / 60


def model_fault(folder: Path, values: Mapping[str, Any]) -> Fault | None:
    """A size, length or prompt length that exceeds the limits of the repository.

    The length of a film is limited only by absolute positions. The options of encode do not say which positions generate
    will use; without that option the length is not checked.
    """
    limit, size = limits(folder), parse_size(values["size"])
    absolute = not values.get("relative_positions", True)
    return (
        size_fault(size, limit)
        or (frames_fault(values["num_output_frames"], limit) if absolute else None)
        or text_fault(values["max_sequence_length"], limit)
    )


def detect(folder: Path) -> str | None:
    """The variant "" for a Wan2.1 text-to-video repository in diffusers' layout, else None."""
    index = read_index(folder)
    transformer = index.get("transformer")
    is_wan = index.get("_class_name") == "WanPipeline" and isinstance(transformer, list) and any(transformer)
    return "" if is_wan and not index.get("expand_timesteps") and index.get("boundary_ratio") is None else None


class CausalTrainingOptions(LatentTrainingOptions):
    num_frames: int = LatentTrainingOptions.redeclared("num_frames", default=81)
    num_frame_per_block: int = option(3, BLOCK_HELP, unit=LATENT, minimum=1, maximum=128)
    local_attn_size: int = option(12, WINDOW_HELP, unit=LATENT, minimum=1, maximum=4096)
    sink_size: int = option(3, SINK_HELP, unit=LATENT, minimum=0, maximum=4096)
    recache_share: float = option(
        0.3, "Share of the clips that train a prompt switch with a recomputed window", minimum=0, maximum=1
    )
    context_fault: float = option(
        0.1,
        "Upper limit of the noise on the clean context frames, which stands for errors of generated frames",
        minimum=0,
        maximum=10,
    )
    training_shift: float = option(5.0, "Shift of the sigmas drawn in training", minimum=0.01, maximum=100)

    def own_settings(self) -> dict[str, Any]:
        kept = ("num_frame_per_block", "local_attn_size", "sink_size", "max_sequence_length")
        options = {"size": self.size, "num_output_frames": (self.num_frames - 1) // 4 + 1}
        options |= {name: getattr(self, name) for name in kept}
        # without the mark of averaged weights that the model of start_from may have
        return {"family": "longlive", "sizes": [self.size], "options": options, "recipe": {}}


TRAINING = Training(
    "stages.families.longlive.train:CausalTask",
    CausalTrainingOptions,
    "Train a causal Wan (WanTransformer3DModel) on clips whose prompt changes midway.",
)


class EncodeOptions(TextLengthOption, DtypeOption, VaeTilingOption):
    size: str = option(SIZES[0], "Size of the film, width*height", form=size_text)
    prompt1: str = option(
        "", "Prompt that describes the source; it takes precedence over a caption file", set_by_recipe=True
    )
    prompt: str = option("", "Prompt of the new frames", set_by_recipe=True)
    next_prompts: list[str] = option(
        [], "Further prompts, each of which takes over at its frame in switch_frame_indices", set_by_recipe=True
    )
    switch_frame_indices: list[int] = option(
        [],
        "Frame at which each of next_prompts takes over, counted from the start of the film, rounded up to a block",
        unit=LATENT,
        minimum=1,
        maximum=LONGEST_FILM,
    )
    num_conditioning_frames: int = option(
        40,
        "Limit of the source's first frames to use, rounded down to whole blocks: of 40 frames 33 are used, 9 latent frames",
        unit="frames",
        minimum=1,
        maximum=4096,
    )
    num_output_frames: int = option(
        240,
        "Length of the film, with its source: L latent frames are 4 L - 3 frames, so 240 are 957",
        unit=LATENT,
        minimum=1,
        maximum=LONGEST_FILM,
    )
    num_frame_per_block: int = option(3, BLOCK_HELP, unit=LATENT, minimum=1, maximum=128)


class GenerateOptions(SeedOption, DtypeOption, CompileOption, LoraOptions):
    denoising_step_list: list[int] = option(
        [1000, 750, 500, 250], "Timesteps of the denoising steps of a block, from 1000 down", minimum=1, maximum=1000
    )
    warp_denoising_step: bool = option(True, "Apply shift to the timesteps of denoising_step_list")
    shift: float = option(
        5.0,
        "Shift of the noise schedule: higher spends more steps on much noise",
        aliases=("timestep_shift",),
        minimum=0.01,
        maximum=100,
    )
    context_noise: float = option(
        0.0, "Timestep at which the model reads finished frames; 0 is clean", minimum=0, maximum=1000
    )
    local_attn_size: int = option(12, WINDOW_HELP, unit=LATENT, minimum=1, maximum=4096)
    sink_size: int = option(3, SINK_HELP, unit=LATENT, minimum=0, maximum=4096)
    recache_on_switch: bool = option(
        False, "When the prompt changes, recompute the cached window with the new prompt, so that the film follows it sooner"
    )
    global_sink: bool = option(True, "Keep the attention sinks when recache_on_switch recomputes the window")
    relative_positions: bool = option(
        False,
        "Count rotary positions within the window: removes the limit of 1024 latent frames, and changes the result",
        reloads=True,
    )
    lora: list[str] = LoraOptions.redeclared(
        "lora", help="LoRA weights (safetensors files): those that convert wrote, and those of a trainer"
    )
    lora_scale: list[float] = LoraOptions.redeclared("lora_scale", neutral=[1.0])
    lora_alpha: float = option(
        256.0,
        "Alpha of the files in lora that state none; their strength is alpha / rank. LongLive's own LoRA has 256",
        reloads=True,
        minimum=-(10**6),
        maximum=10**6,
    )
    low_memory: bool | None = option(
        None,
        "Keep the transformer in main memory and move it to the GPU block by block",
        default_text="on a GPU that has no room for weights, KV cache and activations",
        changes_result=False,
        reloads=True,
        offloads=(True,),
    )
    checkpoint_every: int = option(
        10,
        "Save the finished blocks after every N blocks, so that a killed job can resume; 0: never",
        unit="blocks",
        minimum=0,
        changes_result=False,
        maximum=LONGEST_FILM,
    )


class DecodeOptions(VaeTilingOption, WriteOptions):
    new_only: bool = option(False, "Drop the frames of the source from the film")
    fps: float = WriteOptions.redeclared("fps", default=16.0, help="Frame rate of the film")


LORA_FILE = "lora.safetensors"  # of a converted model
WAN_PARTS = ("text_encoder", "tokenizer", "vae", "scheduler")  # of a Wan2.1 repository


def converted_settings(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of a converted model: its LoRA, if it has one, and whether its weights are the averaged ones."""
    lora = {"options": {"lora": LORA_FILE}} if values["lora"] else {}
    return {**lora, "recipe": {"ema": True}} if values["ema"] else lora


def recognise(published: Published) -> str | None:
    """The remedy for a folder with LongLive's own checkpoints."""
    base = published.find("longlive_base.pt", "models/longlive_base.pt")
    lora = published.find("lora.pt", "models/lora.pt")
    if published.find("model_index.json") or not (base or lora):
        return None
    return published.converted_by(
        "longlive",
        base=base or "hub://Efficient-Large-Model/LongLive-1.3B/models/longlive_base.pt",
        lora=lora,
        wan="hub://Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    )


class ConvertOptions(Options):
    base: str = option(REQUIRED, "LongLive's checkpoint longlive_base.pt", exists="file")
    lora: str = option("", "LongLive's LoRA lora.pt; it is written to OUTPUT/lora.safetensors", exists="file")
    ema: bool = option(
        False,
        "Take the averaged weights (generator_ema). Without --ema the weights that all published configs use "
        "(generator), or the only set in the file",
    )
    wan: str = option(
        REQUIRED, "Repository with the other components, such as Wan-AI/Wan2.1-T2V-1.3B-Diffusers", exists="folder"
    )


FAMILY = Family(
    name="longlive",
    version=2,
    stages={
        "encode": encode_by_wan("stages.families.longlive.encode:Encode", EncodeOptions),
        "generate": Implementation(
            worker="stages.families.longlive.generate:Generate",
            options=GenerateOptions,
            weights=("transformer/*", "vae/config.json"),
            in_memory=({"transformer": DTYPE},),
            on_out_of_memory={"low_memory": True, "compile": "none"},
            minutes=minutes,
        ),
        "decode": decode_by_wan("stages.families.longlive.decode:Decode", DecodeOptions),
    },
    components=(TOKENIZER, UMT5, WAN_VAE, wan_transformer("transformer")),
    detect=detect,
    check=check,
    model_fault=model_fault,
    disk=lambda values: disk(values["size"], pixel_frames(values["num_output_frames"])),
    trainings={"longlive": TRAINING},
    conversion=Conversion(
        "stages.families.longlive.convert:convert",
        ConvertOptions,
        "LongLive's checkpoint, with the text encoder and the VAE of a Wan2.1 repository.",
        reads=lambda values: {"wan": (*(f"{part}/*" for part in WAN_PARTS), "model_index.json", "transformer/config.json")},
        links=("wan",),
        settings=converted_settings,
    ),
    recognise=recognise,
)
