"""Pictures that an artifact lists, held to the size that its index tells."""

from pathlib import Path

import numpy as np
from PIL import Image

from stages.media.probe import said
from stages.media.read import read_picture
from stages.runtime.artifacts import Artifact
from stages.runtime.errors import ItemError


def read_member(artifact: Artifact, suffix: str) -> np.ndarray:
    """A member's pixels, uint8 [H, W, 3].

    Raises ItemError for what is no picture, and, before it is decoded, for one of another size than the index tells.
    """
    path = artifact.member(suffix)
    try:
        with Image.open(path) as picture:
            size = picture.size
    except Exception as error:  # Pillow's plugins raise all kinds of errors for damaged files
        raise ItemError(f"{path} is not a picture that can be read ({said(error)})", "make it again") from error
    check_size(artifact, path, size)
    pixels = read_picture(path)
    check_size(artifact, path, pixels.shape[1::-1])  # which a note of its orientation may have turned
    return pixels


def check_size(artifact: Artifact, path: Path, size: tuple[int, ...]) -> None:
    """Raise ItemError where a member has another width and height than its artifact tells."""
    told = artifact.fields["width"], artifact.fields["height"]
    if size != told:
        sizes = f"{size[0]}x{size[1]}, and {artifact.path} says {told[0]}x{told[1]}"
        raise ItemError(f"{path} is {sizes}", "make it again")
