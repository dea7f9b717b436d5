"""CLIP's text encoder with its tokenizer: no stage runs it alone, and `train text2video` starts from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from stages.families.shared.model_index import read_config
from stages.families.shared.parts import CLIP_TEXT, TOKENIZER
from stages.runtime.options import Family


def detect(folder: Path) -> str | None:
    """The variant "" for a CLIP repository, else None."""
    return "" if read_config(folder).get("model_type") in CLIP_TEXT.classes else None


FAMILY = Family(
    name="clip",
    version=1,
    stages={},
    files=("*.json", "*.txt", "*.safetensors"),
    components=(replace(TOKENIZER, folder=""), replace(CLIP_TEXT, folder="")),
    detect=detect,
)
