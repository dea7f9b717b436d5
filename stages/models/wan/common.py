"""What the three Wan stages share: the check of a repository."""

from stages.models.shared.loading import read_config
from stages.models.wan.options import detect
from stages.runtime.errors import JobError
from stages.runtime.model import Model


def check_repository(model: Model) -> None:
    """Raise JobError where the repository is of another variant than declared, or wants image embeddings (Wan2.1)."""
    folder = model.folder()
    if (found := detect(folder)) != model.variant:
        raise JobError(
            f"model {model.name} is declared as variant {model.variant} and {folder} holds {found or 'no Wan2.2'}",
            "correct the variant or the folder",
        )
    if (width := read_config(folder / "transformer").get("image_dim")) is not None:
        raise JobError(
            f"the transformer in {folder} takes CLIP image embeddings (image_dim is {width})",
            "use a Wan2.2 repository: I2V-A14B or TI2V-5B in diffusers format",
        )
