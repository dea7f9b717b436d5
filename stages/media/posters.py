"""Posters: small JPEGs that stand for videos and images until they are played."""

from pathlib import Path

from PIL import Image

from stages.media.options import IMAGE_ENDINGS
from stages.media.read import frames, read_image
from stages.runtime.files import replacing

SIDE = 320  # pixels of the longer side, at most
QUALITY = 80


def write_poster(source: Path, path: Path) -> None:
    """Write the first frame of a video, or an image, as a small JPEG. Raises ItemError for a file that is neither."""
    if source.suffix.lower() in IMAGE_ENDINGS:
        rgb = read_image(source)
    else:
        rgb = next(frames(source, accurate=False, threads=1, allow_damage=True)).rgb
    image = Image.fromarray(rgb)
    image.thumbnail((SIDE, SIDE))
    with replacing(path) as temporary:
        image.save(temporary, "JPEG", quality=QUALITY)
