"""Captions by InternVL (3 and 3.5), in the layout that transformers loads without remote code."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from stages.models.shared.training.options import STAGE, shared
from stages.models.vlm.build import VISUAL
from stages.runtime.components import Component, Size, read_config, read_object
from stages.runtime.options import DTYPES, Family, Option, Training

PUBLISHED = "use the repository whose name ends in -HF, such as OpenGVLab/InternVL3_5-8B-HF"
MODEL_TYPES = ("internvl", "internvl_chat")  # the second is the remote-code layout: recognised, to be refused by name


def detect(folder: Path) -> str | None:
    try:
        config = read_object(folder / "config.json")
    except FileNotFoundError:
        return None
    return "" if config.get("model_type") in MODEL_TYPES else None


def needs_model(stage: str, values: Mapping[str, Any]) -> bool:
    """A prompt that is given replaces the model."""
    return not values["prompt"]


def beyond(folder: Path, values: Mapping[str, Any]) -> tuple[str, str] | None:
    """More frames than the language model has positions for."""
    try:
        config = read_config(folder / "config.json")
        positions, per_frame = config["text_config"]["max_position_embeddings"], config["image_seq_length"]
        left = positions - values["max_new_tokens"]
        frames, most = values["num_segments"] + values["include_last"], max(0, left // per_frame)
    except (FileNotFoundError, LookupError, TypeError, ArithmeticError):
        return None  # what the config does not tell
    if frames > most:
        return (
            f"{frames} frames of {per_frame} tokens and {values['max_new_tokens']} new tokens are more than its {positions}",
            f"lower num_segments to {most - values['include_last']} at most, or max_new_tokens",
        )
    return None


INSTRUCTION = Option("instruction", str, "Describe this video in detail.", "What the model is asked", ("caption_vlm",))
NUM_SEGMENTS = Option(
    "num_segments",
    int,
    8,
    "Frames that the model sees: midpoints of equal segments",
    ("caption_vlm",),
    "frames",
    minimum=1,
    maximum=512,
)
INCLUDE_LAST = Option("include_last", bool, False, "Also show the very last frame", ("caption_vlm",))

TRAINING = Training(
    "stages.models.vlm.train:CaptionTask",
    (
        *shared(num_frames=17),
        *(replace(option, stages=STAGE) for option in (INSTRUCTION, NUM_SEGMENTS, INCLUDE_LAST)),
        Option(
            "pixel_noise", float, 0.1, "Noise on the frames, up to this, of a range of -1 to 1", STAGE, minimum=0, maximum=2
        ),
    ),
    "Train a captioner (InternVL) on clips with captions.",
)

FAMILY = Family(
    name="vlm",
    version=1,
    options=(
        Option(
            "prompt", str, "", "A prompt that replaces the description: no model is loaded", ("caption_vlm",), by_recipe=True
        ),
        Option("prefix", str, "", "Put before the description", ("caption_vlm",)),
        INSTRUCTION,
        NUM_SEGMENTS,
        INCLUDE_LAST,
        Option(
            "max_new_tokens",
            int,
            256,
            "Length of the description at most",
            ("caption_vlm",),
            "tokens",
            minimum=1,
            maximum=16384,
        ),
        Option(
            "dtype",
            str,
            "bfloat16",
            "Precision of the model",
            ("caption_vlm",),
            choices=DTYPES,
            reloads=True,
        ),
    ),
    workers={"caption_vlm": "stages.models.vlm.caption:Caption"},
    resident={"caption_vlm": (((".", ""),),)},
    weights={"caption_vlm": ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")},
    components=(
        Component("", "tokenizer", tokens=tuple(VISUAL), instead=PUBLISHED),
        Component("", "processor"),
        Component(
            "",
            "transformers",
            MODEL_TYPES[:1],
            sizes=(
                Size("text_config.num_hidden_layers", r"language_model\.(?:model\.)?layers\.(\d+)\."),
                Size("text_config.hidden_size", r"embed_tokens\.weight", 1),
                Size("text_config.vocab_size", r"embed_tokens\.weight", 0),
                Size("vision_config.num_hidden_layers", r"vision_tower\.encoder\.layer\.(\d+)\."),
            ),
            instead=PUBLISHED,
        ),
    ),
    detect=detect,
    beyond=beyond,
    needs_model=needs_model,
    trainings={"captioner": TRAINING},
)
