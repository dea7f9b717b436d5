"""Networks that look at the frames of a film: CLIP, SigLIP (2), DINOv2, and Depth Anything. They score films."""

from pathlib import Path

from stages.families.shared.model_index import read_config
from stages.runtime.components import Component, Size
from stages.runtime.options import DTYPE, DTYPES, Family, Implementation, Options, option

VARIANTS = {  # by the model type in config.json
    "clip": "clip",
    "siglip": "siglip",
    "dinov2": "dinov2",
    "depth_anything": "depth",
}
WITH_TEXT = ("clip", "siglip")


def detect(folder: Path) -> str | None:
    """The variant of a repository in transformers' layout, else None."""
    return VARIANTS.get(read_config(folder).get("model_type", ""))


class VisionOptions(Options):
    prompt: str = option(
        "", "Text that the film is compared with (clip, siglip); without it, the prompts in the index of the film"
    )
    sampled_frames: int = option(
        0, "Number of frames that are looked at, spread evenly; 0: all", unit="frames", minimum=0, maximum=10**6
    )
    frame_batch_size: int = option(
        16, "Frames that the network takes together", minimum=1, maximum=4096, changes_result=False
    )
    dtype: str = option("float32", "Precision of the network", choices=DTYPES, reloads=True)


FAMILY = Family(
    name="vision",
    version=1,
    stages={
        "score": Implementation(
            worker="stages.families.vision.score:Score",
            options=VisionOptions,
            weights=("*.json", "*.safetensors", "*.txt", "*.model"),
            in_memory=({".": DTYPE},),
            extra="caption",
            minutes=lambda variant, values: 2.0,  # some hundred frames on a GPU
        ),
    },
    variants=tuple(dict.fromkeys(VARIANTS.values())),
    components=(
        Component("", "tokenizer", variants=WITH_TEXT),
        Component("", "processor"),
        Component(
            "",
            "transformers",
            tuple(VARIANTS),
            sizes=(Size("vision_config.num_hidden_layers", r"vision_model\.encoder\.layers\.(\d+)\."),),
        ),
    ),
    detect=detect,
)
