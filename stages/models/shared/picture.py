"""The picture that an item of `encode` starts from."""

from pathlib import Path

import numpy as np

from stages.media.members import read_member
from stages.media.read import read_picture
from stages.runtime.artifacts import Artifact
from stages.runtime.errors import ItemError


def picture_of(source: Artifact | Path) -> Path:
    """The file of the first frame: the last one of frames, the last frame of a clip, or the user's own picture."""
    return source.member(last_of(source)) if isinstance(source, Artifact) else source


def read_first(source: Artifact | Path) -> np.ndarray:
    """The first frame, uint8 [H, W, 3]. Raises ItemError."""
    return read_member(source, last_of(source)) if isinstance(source, Artifact) else read_picture(source)


def last_of(source: Artifact) -> str:
    """The suffix of the last picture of an artifact."""
    if source.kind == "clip":
        return ".last.png"
    if not source.fields["frames"]:
        raise ItemError(f"{source.path} lists no frames", "make it again")
    return source.fields["frames"][-1]["suffix"]
