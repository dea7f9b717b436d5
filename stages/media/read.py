"""Reading of videos, frame by frame, and of images, as upright RGB arrays."""

import os
from collections.abc import Iterator, Set
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageCms, ImageFilter, ImageOps

from stages.media.colour import needs_conversion, table, table_rows
from stages.media.decoding import Decoder, decoding_threads
from stages.media.pixels import converter, deinterlace
from stages.media.probe import (
    MAX_PIXELS,
    PRIMARIES,
    TRANSFERS,
    Source,
    decode_video,
    error_text,
    frame_times,
    missing_bytes,
    probe,
    reading_errors,
)
from stages.runtime.errors import ItemError
from stages.runtime.log import log

# Bytes of each colour tag (numbers of ITU-T H.273), in a PNG's chunk cICP and in an AVIF's box "colr".
NUMBER_BYTES = {"PNG": 1, "AVIF": 2}
HEADER = 1 << 16  # bytes of an AVIF that are searched for them
MAX_FLOAT = 4.0  # of images of floats whose white is 1
PHOTOMETRIC, WHITE_IS_ZERO = 262, 0  # TIFF tag and value; Pillow inverts only up to 8 bits


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame: `index` from 0, `time` in seconds relative to the first frame, `rgb` uint8 [H, W, 3], upright."""

    index: int
    time: float
    rgb: np.ndarray


class Damaged(ItemError):
    """A video is damaged `at` seconds after its first frame, and can be read before and after that."""

    def __init__(self, path: Path, at: float):
        self.at = at
        super().__init__(
            f"{path} is damaged at {at:.1f} s, and can be read before and after that",
            "copy it again, or set allow_truncated to use the good frames",
        )


class Truncated(ItemError):
    """A video ends before the end that it declares: `decoded` frames of about `declared` could be read."""

    def __init__(self, path: Path, decoded: int, declared: int):
        self.decoded, self.declared = decoded, declared
        super().__init__(
            f"{path} is truncated or damaged: {decoded} of {declared} frames could be read",
            "copy it again, or set allow_truncated to use these frames",
        )


def frames(
    video: Source | Path | str,
    *,
    accurate: bool = True,
    threads: int | None = None,
    allow_damage: bool = False,
    only: Set[int] | None = None,
) -> Iterator[Frame]:
    """Yield every frame of a video in display order; the memory does not depend on its length.

    - `accurate` converts by the video's own matrix and range, with interpolated chroma: for frames that become pixels of a
      result. swscale's default conversion is faster and 1 to 2 levels darker: enough for frames that a model looks at.
    - `threads`: of the decoder, by default the cores of this process, at most 4.
    - `allow_damage`: yield all good frames of a damaged video, with a warning in the log.
    - `only`: yield only frames with these indices. A lost frame is replaced by the next one, or by the last one of all.

    Raises ItemError for a file that is no video; Damaged after the last good frame before damage; Truncated after the last
    good frame of a video that ends early.
    """
    source = video if isinstance(video, Source) else probe(video)
    times = frame_times(source) if not source.stores_times else None
    index, time, longest = 0, 0.0, 0.0
    decoder: Decoder | None = None
    with reading_errors(source.path):
        to_rgb = converter(source, accurate)
        stream = decode_video(source, threads=threads or decoding_threads(), stop_at_damage=not allow_damage)
        for decoder, one in deinterlace(stream):
            shown = one.tick * decoder.clock - source.start if times is None else times[min(one.index, len(times) - 1)]
            wanted = only is None or any(place in only for place in range(index, one.index + 1))
            index, longest, time = one.index + 1, max(longest, shown - time), float(shown)
            if wanted:
                yield Frame(one.index, time, to_rgb(one.frame))
    if decoder is None:
        raise ItemError(f"{source.path} has no frame that can be decoded", "check the file, or encode it again")
    if only and max(only) >= index and not wanted:
        yield Frame(one.index, time, to_rgb(one.frame))
    damage = [max(0.0, tick * decoder.clock - source.start) for tick in decoder.damage]
    if damage and not (allow_damage or decoder.ends_early):
        raise Damaged(source.path, damage[0])
    joined = decoder.packets.restarts > 0  # such a file declares the duration of its first part, or of all clocks together
    if decoder.ends_early or (not joined and ends_early(source, time, longest, decoder.packets.end)):
        if not allow_damage:
            declared = source.declared_frames or round(source.duration * source.fps)
            raise Truncated(source.path, index, max(declared, index + 1))
        damage.append(time)
    if damage:
        places = list(dict.fromkeys(f"{at:.1f} s" for at in damage))
        where = ", ".join(places[:5] + ["..."] if len(places) > 5 else places)
        log("warning", file=str(source.path), reason=f"the video is damaged at {where}; its good frames are used")


def ends_early(source: Source, last: float, longest: float, end: int) -> bool:
    """Whether a video that was read to its end is truncated.

    `last`: seconds of its last frame. `longest`: seconds between two of its frames at most. `end`: the byte at which its
    last packet ends. A file without missing bytes, filled by its packets, is complete whatever duration its header has.
    Where missing bytes cannot be detected, the declared duration counts; the last frame may last as long as any other.
    """
    missing, usual = missing_bytes(source.path), float(1 / source.fps)
    unread = 1 - end / os.path.getsize(source.path)
    grows = source.container == "gif" or (source.container.startswith("mov") and not source.declared_frames)
    if missing and (grows or not source.duration or unread > 0.3):  # their durations are those of the frames present
        return True
    left = source.duration - (last + usual)
    if left < (0.5 * usual if missing else 1.5 * max(usual, longest)):
        return False
    return missing is not False or unread > 0.5 * left / source.duration


def read_image(path: Path | str) -> np.ndarray:
    """Read the image at `path`: upright, in sRGB, on white, uint8 [H, W, 3].

    Raises ItemError for a missing or damaged file, a file that is no image, a size above `MAX_PIXELS`, and greys of an
    unknown scale.
    """
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ItemError(f"{path} claims {image.width}x{image.height} pixels", "scale it down")
            transfer, primaries = colour_tags(path, image.format or "")
            if needs_conversion(transfer, primaries):
                return as_rgb(to_bt709(orient(image, str(path)), transfer, primaries))
            return as_rgb(image, str(path))
    except FileNotFoundError as error:
        raise ItemError(f"no image at {path}", "check the path") from error
    except ItemError:
        raise
    except Exception as error:  # Pillow's plugins raise all kinds of errors for damaged files
        raise ItemError(f"{path} is not a readable image ({error_text(error)})", "give a PNG or JPEG file") from error


def colour_tags(path: Path | str, file_format: str) -> tuple[str, str]:
    """The transfer function and the primaries of an image file, by the names that Source uses; "" for a missing one."""
    numbers = b""
    with open(path, "rb") as file:
        if file_format == "PNG":
            numbers = png_chunk(file, b"cICP")
        elif file_format == "AVIF":
            numbers = file.read(HEADER).partition(b"colrnclx")[2]
    size = NUMBER_BYTES.get(file_format, 0)
    primaries, transfer = (int.from_bytes(numbers[at : at + size], "big") for at in (0, size))
    return TRANSFERS.get(transfer, ""), PRIMARIES.get(primaries, "")


def png_chunk(file: BinaryIO, name: bytes) -> bytes:
    """The content of the first chunk `name` before a PNG's pixels; empty if there is none."""
    file.seek(8)
    while (head := file.read(8)) and head[4:] not in (b"IDAT", b"IEND"):
        content = file.read(int.from_bytes(head[:4], "big") + 4)
        if head[4:] == name:
            return content[:-4]
    return b""


def to_bt709(image: Image.Image, transfer: str, primaries: str) -> Image.Image:
    """Convert an image to RGB or RGBA in BT.709's colours, as videos are; its ICC profile is dropped."""
    converted = image.convert("RGBA" if image.has_transparency_data else "RGB")
    values = table(transfer, primaries)
    converted = converted.filter(ImageFilter.Color3DLUT(len(values), table_rows(values).ravel()))
    converted.info = {}
    return converted


def as_rgb(image: Image.Image, name: str = "the image") -> np.ndarray:
    """The pixels of an image: upright, in sRGB, on white, uint8 [H, W, 3]. Greys of 16 and 32 bits become 8 bits.

    `name` stands for the image in errors and warnings. Raises ItemError for 32-bit greys whose white is unknown.
    """
    white_is_zero = getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO
    image = to_srgb(to_eight_bits(orient(image, name), name, white_is_zero), name)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def orient(image: Image.Image, name: str) -> Image.Image:
    """Rotate and mirror an image by its EXIF data; an image with unreadable EXIF data is returned as stored."""
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception as error:  # Pillow raises all kinds of errors for damaged EXIF data
        log("warning", file=name, reason=f"its EXIF data cannot be read ({error_text(error)})")
        return image


def to_eight_bits(image: Image.Image, name: str, white_is_zero: bool = False) -> Image.Image:
    """Convert greys of 16 or 32 bits, integers or floats, to 8 bits; other images are returned unchanged."""
    if not image.mode.startswith(("I", "F")):
        return image
    greys = np.asarray(image)
    if image.mode.startswith("I;16"):
        white = 65535
    else:
        low, high = float(greys.min()), float(greys.max())
        # Floats in 0..1 may exceed white; an image in 0..255 has more than a few levels.
        whites = {1: MAX_FLOAT, 255: 255, 65535: 65535} if image.mode == "F" else {255: 255, 65535: 65535}
        white = next((white for white, highest in whites.items() if low >= 0 and high <= highest), 0)
        if not white or (MAX_FLOAT < high < 16 and image.mode == "F"):
            raise ItemError(
                f"{name} has greys of 32 bits from {low:g} to {high:g}, whose white is unknown",
                "save it with 8 or 16 bits, or as floats from 0 to 1",
            )
    if white_is_zero:
        greys = white - greys.astype(np.float64)
    scaled = Image.fromarray(np.round(greys * (255 / white)).clip(0, 255).astype(np.uint8))
    scaled.info = image.info
    return scaled


def is_srgb(profile: ImageCms.ImageCmsProfile) -> bool:
    """Whether a profile changes none of a few test colours by more than one level."""
    if profile.profile.xcolor_space.strip() != "RGB":
        return False
    levels = np.array([0, 40, 128, 200, 255], np.uint8)
    colours = Image.fromarray(np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(5, 25, 3))
    intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
    srgb = ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(colours, profile, srgb, renderingIntent=intent, outputMode="RGB")
    return bool(np.abs(np.asarray(converted).astype(int) - np.asarray(colours)).max() <= 1)


def to_srgb(image: Image.Image, name: str) -> Image.Image:
    """Apply an image's ICC profile: RGB or RGBA. An image without a usable profile is returned unchanged."""
    data = image.info.get("icc_profile")
    if not data and image.mode != "LAB":
        return image
    try:
        profile: Any = ImageCms.ImageCmsProfile(BytesIO(data)) if data else ImageCms.createProfile("LAB")
        if data and is_srgb(profile):
            return image  # a conversion would only add rounding errors
        alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
        modes = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}
        space = profile.profile.xcolor_space.strip() if data else "Lab"
        coloured = image if image.mode == modes[space] else image.convert(modes[space])
        converted: Any = ImageCms.profileToProfile(  # an image: the stub has None for a conversion in place
            coloured,
            profile,
            ImageCms.createProfile("sRGB"),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except Exception as error:  # damaged profiles make Pillow raise all kinds of errors
        log("warning", file=name, reason=f"its colour profile cannot be used ({error_text(error)})")
        return image
    if alpha:
        converted.putalpha(alpha)
    return converted
