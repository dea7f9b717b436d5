"""Captions by InternVL (3 and 3.5), in the layout that transformers loads without remote code."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from stages.models.shared.training.options import STAGE, shared
from stages.runtime.options import DTYPES, Family, Option, Training

MODEL_TYPES = ("internvl", "internvl_chat")  # the second is the remote-code layout: recognised, to be refused by name


def detect(folder: Path) -> str | None:
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return None
    return "" if config.get("model_type") in MODEL_TYPES else None


def needs_model(stage: str, values: Mapping[str, Any]) -> bool:
    """A prompt that is given replaces the model."""
    return not values["prompt"]


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
    detect=detect,
    needs_model=needs_model,
    trainings={"captioner": TRAINING},
)
