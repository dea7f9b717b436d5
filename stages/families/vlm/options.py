"""Captions by vision-language models, in the layout that transformers loads without remote code."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.families.shared.training.options import FolderTrainingOptions
from stages.families.vlm.requests import PARTS, default_request
from stages.families.vlm.traits import TRAITS
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
OFFERED = ", ".join(f"{traits.title} ({kind})" for kind, traits in TRAITS.items())
OTHER = f"captioners are {OFFERED}: {PUBLISHED}, or Qwen/Qwen3-VL-4B-Instruct"
REMOTE_CODE = "internvl_chat"  # model type of the layout that InternVL's authors published first, which brings its own code


def detect(folder: Path) -> str | None:
    """The variant "" for a captioner's repository, else None."""
    try:
        config = read_object(folder / "config.json")
    except FileNotFoundError:
        return None
    return "" if config.get("model_type") in (*TRAITS, REMOTE_CODE) else None


def recognise(published: Published) -> str | None:
    """The remedy for the layout with remote code, and for a vision-language model of a kind that is not offered."""
    try:
        config = read_object(Path(published.place, "config.json"))
    except (FileNotFoundError, JobError):  # of a repository of the hub only the names are known
        return PUBLISHED if published.find("modeling_internvl_chat.py") else None
    kind, architectures = config.get("model_type"), config.get("architectures")
    if kind == REMOTE_CODE or (kind not in TRAITS and published.find("modeling_internvl_chat.py")):
        return PUBLISHED
    writes = isinstance(architectures, list) and any("ConditionalGeneration" in str(name) for name in architectures)
    return OTHER if kind not in TRAITS and "vision_config" in config and writes else None


def needs_model(values: Mapping[str, Any]) -> bool:
    """Whether an item needs the model: a given prompt replaces it."""
    return not values["prompt"]


def model_fault(folder: Path, values: Mapping[str, Any]) -> tuple[str, str] | None:
    """A number of frames for which the language model has too few positions."""
    try:
        config = read_config(folder / "config.json")
        count = TRAITS[config["model_type"]].count
        if count is None:
            return None  # the tokens of a frame depend on its size
        positions, per_frame = config["text_config"]["max_position_embeddings"], count(config)
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
    language: str = option(
        "",
        "Language of the description, en (English) or zh (Chinese); empty: the language of the instruction",
        choices=("", "en", "zh"),
        neutral="",
    )
    structure: list[str] = option(
        [],
        "Parts of a structured description that make the prompt, in this order: subject, action, camera, setting; the model "
        "is asked for all of them as JSON. Empty: it is asked for prose",
        choices=tuple(PARTS),
        neutral=[],
    )
    rewrite: str = option(
        "none",
        "next: the captioner is shown the end of the video and asked for a prompt of what comes next; none: the description "
        "is the prompt",
        choices=("none", "next"),
        neutral="none",
    )
    rewrite_request: str = option(
        default_request,
        "With rewrite: next, what the captioner is asked; {caption} stands for the description and {previous} for the "
        "prompt that a generated clip was made of",
        default_text="the text in docs/captions.md, in the language of the description",
        neutral="",
    )
    ending_frames: int = option(
        4,
        "With rewrite: next, number of frames of the last second that are shown",
        unit="frames",
        minimum=1,
        maximum=64,
        neutral=4,
    )
    chat_template: str = option("", "File with a chat template that replaces the model's", is_file=True, reloads=True)
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
        Component("", "tokenizer", tokens={kind: traits.required for kind, traits in TRAITS.items()}, instead=OTHER),
        Component("", "processor"),
        Component(
            "",
            "transformers",
            tuple(TRAITS),
            sizes=(
                Size("text_config.num_hidden_layers", r"(?:language_model|text_model)\.(?:model\.)?layers\.(\d+)\."),
                Size("text_config.hidden_size", r"embed_tokens\.weight", 1),
                Size("text_config.vocab_size", r"embed_tokens\.weight", 0),
                Size("vision_config.num_hidden_layers", r"vision_tower\.encoder\.layer\.(\d+)\."),
                Size("vision_config.num_hidden_layers", r"vision_(?:tower\.vision_)?model\.encoder\.layers\.(\d+)\."),
                Size("vision_config.depth", r"visual\.blocks\.(\d+)\."),
            ),
            instead=OTHER,
        ),
    ),
    detect=detect,
    model_fault=model_fault,
    recognise=recognise,
    trainings={"captioner": TRAINING},
)
