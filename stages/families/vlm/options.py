"""Captions by InternVL (3 and 3.5), in the layout that transformers loads without remote code."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.families.shared.training.options import FolderTrainingOptions
from stages.families.vlm.build import VISUAL
from stages.runtime.components import Component, Size, read_config, read_object
from stages.runtime.errors import JobError
from stages.runtime.options import (
    DTYPE,
    DTYPES,
    BatchOption,
    Family,
    Implementation,
    Options,
    Published,
    Training,
    option,
)

PUBLISHED = "use the repository whose name ends in -HF, such as OpenGVLab/InternVL3_5-8B-HF"
MODEL_TYPE = "internvl"
REMOTE_CODE = "internvl_chat"  # model type of the layout that its authors published first, which brings its own code


def detect(folder: Path) -> str | None:
    """The variant "" for an InternVL repository, else None."""
    try:
        config = read_object(folder / "config.json")
    except FileNotFoundError:
        return None
    return "" if config.get("model_type") in (MODEL_TYPE, REMOTE_CODE) else None


def recognise(published: Published) -> str | None:
    """The remedy for the layout with remote code."""
    try:
        kind = read_object(Path(published.place, "config.json")).get("model_type")
    except (FileNotFoundError, JobError):  # of a repository of the hub only the names are known
        kind = None
    has_code = kind == REMOTE_CODE or (kind is None and published.find("modeling_internvl_chat.py"))
    return PUBLISHED if has_code else None


def needs_model(values: Mapping[str, Any]) -> bool:
    """Whether an item needs the model: a given prompt replaces it."""
    return not values["prompt"]


def model_fault(folder: Path, values: Mapping[str, Any]) -> tuple[str, str] | None:
    """A number of frames for which the language model has too few positions."""
    try:
        config = read_config(folder / "config.json")
        positions, per_frame = config["text_config"]["max_position_embeddings"], config["image_seq_length"]
        frames = values["num_segments"] + values["include_last"]
        most = max(0, (positions - values["max_new_tokens"]) // per_frame)
    except (FileNotFoundError, LookupError, TypeError, ArithmeticError):
        return None  # the config does not state its limits
    if frames > most:
        return (
            f"{frames} frames of {per_frame} tokens and {values['max_new_tokens']} new tokens exceed {positions} positions",
            f"lower num_segments to {most - values['include_last']} at most, or max_new_tokens",
        )
    return None


class FramesOptions(Options):
    """Which frames the model sees and what it is asked, in captioning and in training."""

    instruction: str = option("Describe this video in detail.", "Instruction to the model")
    num_segments: int = option(
        8,
        "Number of frames that the model sees, the midpoints of equal segments of the video",
        unit="frames",
        minimum=1,
        maximum=512,
    )
    include_last: bool = option(False, "Also show the last frame of the video")


class CaptionTrainingOptions(FramesOptions, FolderTrainingOptions):
    num_frames: int = FolderTrainingOptions.redeclared("num_frames", default=17)
    pixel_noise: float = option(
        0.1, "Upper limit of the standard deviation of noise on the frames, whose range is -1 to 1", minimum=0, maximum=2
    )

    def own_settings(self) -> dict[str, Any]:
        declared = ("instruction", "num_segments", "include_last")
        return {"family": "vlm", "options": {name: getattr(self, name) for name in declared}}


TRAINING = Training(
    "stages.families.vlm.train:CaptionTask", CaptionTrainingOptions, "Train a captioner (InternVL) on clips with captions."
)


class CaptionOptions(FramesOptions):
    prompt: str = option("", "Prompt that replaces the description; no model is loaded then", set_by_recipe=True)
    prefix: str = option("", "Text put before the description", aliases=("custom_prompt",))
    max_new_tokens: int = option(256, "Maximum length of the description", unit="tokens", minimum=1, maximum=16384)
    caption_batch_size: int = BatchOption.redeclared(  # a run with a captioner may have another batch_size
        "batch_size", help="Clips of a job that are described together, which takes less time for each and more memory"
    )
    dtype: str = option("bfloat16", "Precision of the model", choices=DTYPES, reloads=True)


FAMILY = Family(
    name="vlm",
    version=1,
    stages={
        "caption_vlm": Implementation(
            worker="stages.families.vlm.caption:Caption",
            options=CaptionOptions,
            weights=("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"),
            in_memory=({".": DTYPE},),
            on_out_of_memory={"caption_batch_size": 1},
            needs_model=needs_model,
        ),
    },
    components=(
        Component("", "tokenizer", tokens=tuple(VISUAL), instead=PUBLISHED),
        Component("", "processor"),
        Component(
            "",
            "transformers",
            (MODEL_TYPE,),
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
    model_fault=model_fault,
    recognise=recognise,
    trainings={"captioner": TRAINING},
)
