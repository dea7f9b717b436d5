"""The picture that an item of `encode` starts from."""

from pathlib import Path

from stages.runtime.artifacts import Artifact
from stages.runtime.errors import ItemError


def picture_of(source: Artifact | Path) -> Path:
    """The file of the first frame: the last one of frames, the last frame of a clip, or the user's own picture."""
    if not isinstance(source, Artifact):
        return source
    if source.kind == "clip":
        return source.member(".last.png")
    if not source.fields["frames"]:
        raise ItemError(f"{source.path} lists no frames", "make it again")
    return source.member(source.fields["frames"][-1]["suffix"])
