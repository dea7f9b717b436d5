"""LongLive: causal, block-wise generation over a KV cache, on Wan2.1's text-to-video model (arXiv:2509.22622).

Lengths are told in two units. A latent frame stands for 4 frames of the film, the first one for 1: L latent frames are
4 L - 3 frames. The defaults are those of the video-conditional program that this replaces.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from stages.media.options import WRITE_OPTIONS
from stages.models.shared.index import read_index
from stages.models.shared.noise import SEED
from stages.models.shared.parts import TOKENIZER, UMT5, WAN_VAE, wan_transformer
from stages.models.shared.training.options import STAGE, shared
from stages.models.shared.wan.limits import Fault, frames_beyond, limits, size_beyond, text_beyond
from stages.models.shared.wan.options import DTYPE, ON_LATENTS, TEXT_LENGTH, VAE_TILING, disk
from stages.runtime.errors import UsageError
from stages.runtime.options import Family, Option, Training
from stages.runtime.size import size_text

SIZES = ("832*480",)
LONGEST = 1024  # latent frames: the rows of the rotary table that the model was trained with
LONGEST_FILM = 15_000  # latent frames: an hour
LATENT = "latent frames"


class Lengths(NamedTuple):
    """What becomes of the frames of a source: `used` of them are encoded, to `given` latent frames, whole blocks."""

    used: int
    given: int


def lengths(frames: int, block: int) -> Lengths:
    """Of the first `frames` frames of a source as many as make whole blocks of latent frames; 0 of fewer than one block."""
    given = (1 + (frames - 1) // 4) // block * block if frames else 0
    return Lengths(pixel_frames(given), given)


def pixel_frames(latent: int) -> int:
    return max(0, 4 * latent - 3)


def check_lengths(values: Mapping[str, Any]) -> None:
    """Refuse lengths that are no whole blocks, before anything is loaded. Raises UsageError."""
    latent, block = values["num_output_frames"], values["num_frame_per_block"]
    if latent % block:
        raise UsageError(
            f"num_output_frames is {latent} latent frames and a block has {block}",
            f"take {latent // block * block or block} or {(latent // block + 1) * block}",
        )


def check_window(values: Mapping[str, Any], block: int) -> None:
    """Refuse a window that has no room for a block beside the sinks. Raises UsageError."""
    window, sink = values["local_attn_size"], values["sink_size"]
    if window < sink + block:
        raise UsageError(
            f"local_attn_size is {window}, with {sink} sinks and blocks of {block}", f"take {sink + block} or more"
        )


def check(variant: str, values: Mapping[str, Any], sizes: tuple[str, ...]) -> None:
    allowed = sizes or SIZES
    if values["size"] not in allowed:
        raise UsageError(f"size {values['size']} is not one of this model's", f"choose {', '.join(allowed)} (width*height)")
    check_lengths(values)
    check_window(values, values["num_frame_per_block"])
    check_longest(values["num_output_frames"], values)


def check_longest(latent: int, values: Mapping[str, Any], rows: int = LONGEST) -> None:
    """Refuse a film that is longer than the `rows` of the model's rotary table. Raises UsageError."""
    if latent > rows and not values["relative_positions"]:
        raise UsageError(
            f"num_output_frames is {latent} latent frames and the model counts up to {rows}", "set relative_positions"
        )


def beyond(folder: Path, values: Mapping[str, Any]) -> Fault | None:
    """A size, a length or a text that the repository cannot make.

    How long a film is counts where its positions do, which encode is not told.
    """
    limit, (width, height) = limits(folder), map(int, values["size"].split("*"))
    absolute = not values.get("relative_positions", True)
    return (
        size_beyond((width, height), limit)
        or (frames_beyond(values["num_output_frames"], limit) if absolute else None)
        or text_beyond(values["max_sequence_length"], limit)
    )


def detect(folder: Path) -> str | None:
    """A Wan2.1 text-to-video repository, in diffusers' layout."""
    index = read_index(folder)
    transformer = index.get("transformer")
    is_wan = index.get("_class_name") == "WanPipeline" and isinstance(transformer, list) and any(transformer)
    return "" if is_wan and not index.get("expand_timesteps") and index.get("boundary_ratio") is None else None


TRAINING = Training(
    "stages.models.longlive.train:CausalTask",
    (
        *shared(without=("num_workers",), num_frames=81),  # its clips are encoded once, by the VAE in this process
        *ON_LATENTS,
        Option("num_frame_per_block", int, 3, "Frames made together", STAGE, LATENT, minimum=1, maximum=128),
        Option(
            "local_attn_size",
            int,
            12,
            "Frames that are seen, sinks and the block with them",
            STAGE,
            LATENT,
            minimum=1,
            maximum=4096,
        ),
        Option("sink_size", int, 3, "First frames, which are seen to the end", STAGE, LATENT, minimum=0, maximum=4096),
        Option(
            "recache_share",
            float,
            0.3,
            "Part of the clips in which a switch goes over the window again",
            STAGE,
            minimum=0,
            maximum=1,
        ),
        Option(
            "context_fault", float, 0.1, "Noise at most on the frames that were made before", STAGE, minimum=0, maximum=10
        ),
        Option("training_shift", float, 5.0, "Shift of the sigmas that are drawn", STAGE, minimum=0.01, maximum=100),
    ),
    "Train a causal Wan (WanTransformer3DModel) on clips whose prompt changes on the way.",
)

FAMILY = Family(
    name="longlive",
    version=2,
    options=(
        Option("size", str, SIZES[0], "Size of the film, width*height", ("encode",), form=size_text),
        Option("prompt1", str, "", "What the source shows, where no caption file is given", ("encode",), by_recipe=True),
        Option("prompt", str, "", "What is made; behind a source this is its prompt2", ("encode",), by_recipe=True),
        Option(
            "next_prompts",
            str,
            [],
            "The prompts after that, each from its switch on",
            ("encode",),
            many=True,
            by_recipe=True,
        ),
        Option(
            "switch_frame_indices",
            int,
            [],
            "When each of them begins, counted from the film's start; it does at the next block",
            ("encode",),
            LATENT,
            minimum=1,
            many=True,
            maximum=LONGEST_FILM,
        ),
        Option(
            "num_conditioning_frames",
            int,
            40,
            "Frames of the source that are looked at, in pixel frames: of 40 the first 33 are used, 9 latent frames",
            ("encode",),
            "frames",
            minimum=1,
            maximum=4096,
        ),
        Option(
            "num_output_frames",
            int,
            240,
            "Length of the film, its source with it: L latent frames are 4 L - 3 frames, 240 are 957",
            ("encode",),
            LATENT,
            minimum=1,
            maximum=LONGEST_FILM,
        ),
        Option("num_frame_per_block", int, 3, "Frames made together", ("encode",), LATENT, minimum=1, maximum=128),
        TEXT_LENGTH,
        Option(
            "denoising_step_list",
            int,
            [1000, 750, 500, 250],
            "Denoising steps of a block, from 1000 down",
            ("generate",),
            many=True,
            minimum=1,
            maximum=1000,
        ),
        Option("warp_denoising_step", bool, True, "Shift those steps by timestep_shift", ("generate",)),
        Option("timestep_shift", float, 5.0, "That shift: higher is more noise", ("generate",), minimum=0.01, maximum=100),
        Option(
            "context_noise",
            float,
            0.0,
            "What the model is told of frames that are done: their timestep, 0 is clean",
            ("generate",),
            minimum=0,
            maximum=1000,
        ),
        Option(
            "local_attn_size",
            int,
            12,
            "Frames that are seen, sinks and the block with them",
            ("generate",),
            LATENT,
            minimum=1,
            maximum=4096,
        ),
        Option(
            "sink_size", int, 3, "First frames, which are seen to the end", ("generate",), LATENT, minimum=0, maximum=4096
        ),
        Option(
            "recache_on_switch",
            bool,
            False,
            "At a prompt's switch go over the window once more with the new prompt: it is followed sooner",
            ("generate",),
        ),
        Option("global_sink", bool, True, "Leave the sinks as they are when that is done", ("generate",)),
        Option(
            "relative_positions",
            bool,
            False,
            "Count positions within the window: there is no longest film, up to 1024 latent frames it is another film",
            ("generate",),
            reloads=True,
        ),
        SEED,
        DTYPE,
        Option(
            "lora",
            str,
            "",
            "LoRA weights, those that convert wrote or a trainer's (a safetensors file)",
            ("generate",),
            reloads=True,
            is_file=True,
        ),
        Option(
            "lora_alpha",
            float,
            256.0,
            "Alpha of lora where its file states none; 256 is that of LongLive's own. A LoRA counts alpha / rank times",
            ("generate",),
            reloads=True,
            minimum=-(10**6),
            maximum=10**6,
        ),
        Option(
            "low_memory",
            bool,
            None,
            "Keep the transformer in main memory and bring it to the GPU block by block",
            ("generate",),
            default_text="on a GPU of less than 40 GB",
            changes_result=False,
            reloads=True,
            offloads=(True,),
        ),
        Option(
            "checkpoint_every",
            int,
            10,
            "Keep the finished blocks in the store every so many, for a killed job to go on from; 0: never",
            ("generate",),
            "blocks",
            minimum=0,
            changes_result=False,
            maximum=LONGEST_FILM,
        ),
        VAE_TILING,
        Option("new_only", bool, False, "Leave the source out of the film", ("decode",)),
        Option("fps", float, 16.0, "Rate of the film", ("decode",), "frames per second", minimum=1, maximum=240),
        *WRITE_OPTIONS,
    ),
    workers={
        "encode": "stages.models.longlive.encode:Encode",
        "generate": "stages.models.longlive.generate:Generate",
        "decode": "stages.models.longlive.decode:Decode",
    },
    weights={
        "encode": ("model_index.json", "tokenizer/*", "text_encoder/*", "vae/*"),
        "generate": ("transformer/*", "vae/config.json"),
        "decode": ("vae/*",),
    },
    components=(TOKENIZER, UMT5, WAN_VAE, wan_transformer("transformer")),
    detect=detect,
    check=check,
    beyond=beyond,
    resident={
        "encode": ((("text_encoder", ""), ("vae", "float32")),),
        "generate": ((("transformer", ""),),),
        "decode": ((("vae", "float32"),),),
    },
    memory_saving={
        "encode": {"vae_tiling": True},
        "generate": {"low_memory": True},
        "decode": {"vae_tiling": True},
    },
    disk=lambda values: disk(values["size"], pixel_frames(values["num_output_frames"])),
    trainings={"longlive": TRAINING},
)
