"""What an item carries from stage to stage: prompt, first frame, the model that made it; and checks of its tensors.

Imports no torch, since a caption may need none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.families.shared.model_index import read_config
from stages.media import select
from stages.media.members import read_member
from stages.media.read import read_image
from stages.runtime.artifacts import Artifact
from stages.runtime.errors import ItemError, shown
from stages.runtime.model import Model
from stages.runtime.options import LATENTS, Family
from stages.runtime.worker import Work

if TYPE_CHECKING:
    import torch

CARRIED = ("width", "height", "num_frames", "prompt", "raw")
CARRIED_IF_PRESENT = ("repeated_frames",)
PRECISION = "try --dtype float32 or bfloat16"
PRECISION_OR_GUIDANCE = f"{PRECISION}, and a lower guidance_scale"

# -------------------------------------------------------------------------------------------------- prompt, first frame


def require_prompt(work: Work) -> tuple[str, str]:
    """The prompt, and the raw caption it comes from. Option prompt takes precedence. Raises ItemError without a prompt."""
    caption = work.artifact("caption") if "caption" in work.inputs else None
    if work.options.prompt:
        return work.options.prompt, ""
    if caption is None:
        raise ItemError(f"item {work.item.id} has no prompt", "add --prompt TEXT, or --caption FILE of caption_vlm")
    return caption.fields["prompt"], caption.fields["raw"]


def parts_of(encoded: Mapping[str, Any], starts: Sequence[int]) -> dict[str, list]:
    """The frames of each part of a clip, those of one prompt, and the prompts, by the fields of `encoded`.

    `starts` are the frames at which the further prompts begin. Of two with the same start, the later one has it.
    """
    places = sorted({0, *starts, encoded["num_frames"]})
    return {
        "part_frames": [after - before for before, after in pairwise(places)],
        "part_prompts": [encoded["prompts"][sum(start <= place for start in starts)] for place in places[:-1]],
    }


def first_frame_path(source: Artifact | Path) -> Path:
    """The file of the first frame: the last frame of a `frames` or `clip` artifact, or the user's own image."""
    return source.member(_last_suffix(source)) if isinstance(source, Artifact) else source


def size_of(source: Artifact | Path) -> tuple[int, int]:
    """Width and height of the first frame."""
    if isinstance(source, Artifact):
        return source.fields["width"], source.fields["height"]
    height, width, _ = read_image(source).shape
    return width, height


def first_frame(source: Artifact | Path) -> np.ndarray:
    """The first frame, uint8 [H, W, 3]. Raises ItemError."""
    return read_member(source, _last_suffix(source)) if isinstance(source, Artifact) else read_image(source)


def last_frames(source: Artifact | Path, count: int) -> list[np.ndarray]:
    """The last frames of a source, at most `count`, each uint8 [H, W, 3]; of an image, that alone. Raises ItemError."""
    if isinstance(source, Path):
        return [read_image(source)]
    if count == 1:
        return [first_frame(source)]
    if source.kind == "frames":
        return [read_member(source, frame["suffix"]) for frame in _listed(source)[-count:]]
    video = source.member(".mkv" if ".mkv" in source.members else ".mp4")
    return [frame.rgb for frame in select.last(video, count)]


def _last_suffix(source: Artifact) -> str:
    """The suffix of an artifact's last frame."""
    if source.kind == "clip":
        return ".last.png"
    return _listed(source)[-1]["suffix"]


def _listed(source: Artifact) -> list[dict[str, Any]]:
    """The frames that a `frames` artifact lists. Raises ItemError if there are none."""
    if not source.fields["frames"]:
        raise ItemError(f"{source.path} lists no frames", "make it again")
    return source.fields["frames"]


# --------------------------------------------------------------------------------------------------------------- fields


def model_fields(model: Model, work: Work) -> dict[str, str]:
    """The fields of every artifact that name the model that made it."""
    return {"model": model.name, "family": model.family, "variant": model.variant, "weights": work.weights}


def encoded_fields(
    model: Model, work: Work, size: tuple[int, int], num_frames: int, prompt: str, raw: str, **further: Any
) -> dict[str, Any]:
    """The fields of `encoded`, with `further` ones of a family. `size` is width and height in pixels."""
    return {
        **model_fields(model, work),
        "width": size[0],
        "height": size[1],
        "num_frames": num_frames,
        "prompt": prompt,
        "negative_prompt": getattr(work.options, "negative_prompt", ""),
        "raw": raw,
        **further,
    }


def carry(model: Model, work: Work, source: Artifact, *further: str, **own: Any) -> dict[str, Any]:
    """The fields of an artifact made of `source`: those taken over, with the family's `further` ones, and its `own`."""
    names = (*CARRIED, *further, *(name for name in CARRIED_IF_PRESENT if name in source.fields))
    return {**{name: source.fields[name] for name in names}, **model_fields(model, work), **own}


# --------------------------------------------------------------------------------------------------------------- checks


def check_past(work: Work, family: Family, variant: str) -> None:
    """Raise ItemError for the latents of an earlier clip where the family does not go on from latents."""
    if "past" in work.inputs and LATENTS not in family.handovers(variant):
        able = f"{family.name} {variant}".strip()
        raise ItemError(f"item {work.item.id} has a past and {able} starts from frames alone", "leave --past out")


def past_of(work: Work) -> Artifact | None:
    """The latents that the item goes on from; None without."""
    return work.artifact("past") if "past" in work.inputs else None


def check_lineage(artifact: Artifact, model: Model) -> None:
    """Raise ItemError for an artifact of another family or variant than the model's, or with tensors of other widths."""
    origin = f"{artifact.fields['family']} {artifact.fields['variant']}".strip()
    if origin != (own := f"{model.family} {model.variant}".strip()):
        raise ItemError(
            f"{artifact.path} was made for {origin} and model {model.name} is {own}",
            "use the same model in encode, generate and decode",
        )
    folder = model.folder()
    text_encoder, vae = read_config(folder / "text_encoder"), read_config(folder / "vae")
    latent_channels = vae.get("z_dim", vae.get("latent_channels"))
    for name, axis, width in (
        ("prompt_embeds", 2, text_encoder.get("d_model", text_encoder.get("hidden_size"))),
        ("image_latents", 1, latent_channels),
        ("latents", 1, latent_channels),
    ):
        shape = artifact.shapes.get(name)
        if shape and width and shape[axis] != width:
            raise ItemError(
                f"{name} in {artifact.path} are {shape[axis]} wide, those of model {model.name} {width}", "make it again"
            )


def check_frames(encoded: Artifact, *counts: int) -> None:
    """Raise ItemError unless the number of frames of `image_latents` is one of `counts`; without them it is 0."""
    if (found := encoded.shapes.get("image_latents", (0,) * 5)[2]) not in counts:
        raise ItemError(
            f"the image_latents in {encoded.path} are {found} frames, none of the lengths {shown([*counts])}",
            "make it again with encode",
        )


def check_against_model(family: Family, model: Model, values: Mapping[str, Any]) -> None:
    """Raise ItemError for options of encode that exceed the limits in the configs of the model's folder."""
    if fault := family.model_fault(model.folder(), values):
        raise ItemError(f"{fault[0]} (model {model.name})", fault[1])


def check_finite(tensor: torch.Tensor, name: str, remedy: str = PRECISION, at: str = "") -> None:
    """Raise ItemError for a tensor with NaN or infinite values; `at` says at which step."""
    if not tensor.isfinite().all():
        raise ItemError(f"{name} became NaN or infinite{f' at {at}' if at else ''}", remedy)
