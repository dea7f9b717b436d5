"""Who made an artifact, whether that is the model at hand, and whether the model can make what is asked for."""

from collections.abc import Mapping
from typing import Any

from stages.runtime.artifacts import Artifact
from stages.runtime.errors import ItemError, shown
from stages.runtime.model import Model
from stages.runtime.options import Family
from stages.runtime.worker import Work


def model_fields(model: Model, work: Work) -> dict[str, str]:
    """The fields by which every artifact tells who made it."""
    return {"model": model.name, "family": model.family, "variant": model.variant, "weights": work.weights}


def check_origin(artifact: Artifact, model: Model) -> None:
    """Raise ItemError for an artifact of another family or variant than the model's, and for tensors of other widths."""
    origin = f"{artifact.fields['family']} {artifact.fields['variant']}".strip()
    if origin != (own := f"{model.family} {model.variant}".strip()):
        raise ItemError(
            f"{artifact.path} was made for {origin} and model {model.name} is {own}",
            "use the same model in encode, generate and decode",
        )
    from stages.models.shared.loading import read_config  # only here: it imports torch, which a caption may do without

    folder = model.folder()
    texts, pictures = read_config(folder / "text_encoder"), read_config(folder / "vae")
    for name, axis, width in (
        ("prompt_embeds", 2, texts.get("d_model", texts.get("hidden_size"))),
        ("image_latents", 1, pictures.get("z_dim", pictures.get("latent_channels"))),
        ("latents", 1, pictures.get("z_dim", pictures.get("latent_channels"))),
    ):
        shape = artifact.shapes.get(name)
        if shape and width and shape[axis] != width:
            raise ItemError(
                f"{name} in {artifact.path} are {shape[axis]} wide, those of model {model.name} {width}", "make it again"
            )


def check_frames(encoded: Artifact, *counts: int) -> None:
    """Raise ItemError unless the number of frames of `image_latents` is one of `counts`; it is 0 where there are none."""
    if (found := encoded.shapes.get("image_latents", (0,) * 5)[2]) not in counts:
        raise ItemError(
            f"the image_latents in {encoded.path} are {found} frames, none of the lengths {shown([*counts])}",
            "make it again with encode",
        )


def check_beyond(family: Family, model: Model, values: Mapping[str, Any]) -> None:
    """Raise ItemError for options of encode that the configs in the model's folder rule out."""
    if fault := family.beyond(model.folder(), values):
        raise ItemError(f"{fault[0]} (model {model.name})", fault[1])
