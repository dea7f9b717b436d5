"""Images and videos of an artifact, checked against the size in its index."""

from pathlib import Path

import numpy as np
from PIL import Image

from stages.media.probe import error_text
from stages.media.read import read_image
from stages.runtime.artifacts import Artifact
from stages.runtime.errors import ItemError


def read_member(artifact: Artifact, suffix: str) -> np.ndarray:
    """The pixels of a member, uint8 [H, W, 3].

    Raises ItemError for a file that is not an image, and, before it is decoded, for an image of another size than the index
    has.
    """
    path = artifact.member(suffix)
    try:
        with Image.open(path) as image:
            size = image.size
    except Exception as error:  # Pillow's plugins raise all kinds of errors for damaged files
        raise ItemError(f"{path} is not a readable image ({error_text(error)})", "make it again") from error
    check_size(artifact, path, size)
    pixels = read_image(path)
    check_size(artifact, path, pixels.shape[1::-1])  # its EXIF orientation may have swapped width and height
    return pixels


def check_size(artifact: Artifact, path: Path, size: tuple[int, ...]) -> None:
    """Raise ItemError if the (width, height) of a member is not that of its artifact's index."""
    expected = artifact.fields["width"], artifact.fields["height"]
    if size != expected:
        sizes = f"{size[0]}x{size[1]}, and {artifact.path} says {expected[0]}x{expected[1]}"
        raise ItemError(f"{path} is {sizes}", "make it again")
