"""Frames of a video, one at a time, and pictures, as upright RGB arrays."""

import os
from collections.abc import Iterator, Set
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageFilter, ImageOps

from stages.media.colour import is_foreign, table, table_rows
from stages.media.decoding import decoding_threads
from stages.media.pixels import converter, deinterlaced
from stages.media.probe import (
    MAX_PIXELS,
    PRIMARIES,
    TRANSFERS,
    Source,
    decoded,
    faults_of,
    frame_times,
    missing_bytes,
    probe,
    said,
)
from stages.runtime.errors import ItemError
from stages.runtime.log import log

# Bytes of the numbers (ITU-T H.273) of primaries and transfer function, in a PNG's chunk cICP and an AVIF's box "colr".
NUMBER_BYTES = {"PNG": 1, "AVIF": 2}
HEADER = 1 << 16  # bytes of an AVIF in which they are looked for
BRIGHTEST = 4.0  # of floats whose white is 1
PHOTOMETRIC, WHITE_IS_ZERO = 262, 0  # of TIFF; Pillow inverts only up to 8 bits


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame: `index` from 0, `time` in seconds from the first frame on, `rgb` uint8 [H, W, 3] upright."""

    index: int
    time: float
    rgb: np.ndarray


class Damaged(ItemError):
    """A video is damaged `at` seconds from its first frame on, and can be read before and after that."""

    def __init__(self, path: Path, at: float):
        self.at = at
        super().__init__(
            f"{path} is damaged at {at:.1f} s, and what lies before and after it can be read",
            "copy it again, or allow a truncated video to use the frames that are good",
        )


class Truncated(ItemError):
    """A video ends before the end that it declares: `decoded` frames of about `declared` could be read."""

    def __init__(self, path: Path, decoded: int, declared: int):
        self.decoded, self.declared = decoded, declared
        super().__init__(
            f"{path} is truncated or damaged: {decoded} of {declared} frames could be read",
            "copy it again, or allow a truncated video to use the frames that are there",
        )


def frames(
    video: Source | Path | str,
    *,
    accurate: bool = True,
    threads: int | None = None,
    allow_damage: bool = False,
    only: Set[int] | None = None,
) -> Iterator[Frame]:
    """Every frame of a video in display order; memory does not grow with its length.

    `only`: those with these indices, and in the place of one that damage took the next one, or the last one of all.

    `accurate` converts by the picture's own matrix and range with interpolated chroma: for frames that become pixels of
    the result. Otherwise swscale's default conversion: faster, 1 to 2 levels darker, fine for looking at.
    `threads` of the decoder (default: the cores of this process, at most 4).
    Raises ItemError for what is not a video; Damaged after the last good frame before the damage, and Truncated after the
    last good frame of a video that ends early. With `allow_damage`, all good frames come instead, and the log says so.
    """
    source = video if isinstance(video, Source) else probe(video)
    times = frame_times(source) if not source.stores_times else None
    index, time, longest, decoder = 0, 0.0, 0.0, None
    with faults_of(source.path):
        to_rgb = converter(source, accurate)
        stream = decoded(source, threads=threads or decoding_threads(), stop_at_damage=not allow_damage)
        for decoder, one in deinterlaced(stream):
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
    joined = decoder.packets.restarts > 0  # a joined file declares the duration of its first part, or a span over all clocks
    if decoder.ends_early or not joined and ends_early(source, time, longest, decoder.packets.end):
        if not allow_damage:
            declared = source.declared_frames or round(source.duration * source.fps)
            raise Truncated(source.path, index, max(declared, index + 1))
        damage.append(time)
    if damage:
        places = list(dict.fromkeys(f"{at:.1f} s" for at in damage))
        where = ", ".join(places[:5]) + ", ..." * (len(places) > 5)
        log("warning", file=str(source.path), reason=f"the video is damaged at {where}; its good frames are used")


def ends_early(source: Source, last: float, longest: float, end: int) -> bool:
    """Whether a video that could be read to its end must have been longer.

    `last`: seconds of its last frame; `longest`: between two of its frames; `end`: where in the file the last packet ends. A
    file that has all the bytes it speaks of, and whose packets fill it, is whole, whatever its header says of durations.
    Where that cannot be known, the declared duration counts, but the last frame may stand for as long as any other.
    """
    missing, usual = missing_bytes(source.path), float(1 / source.fps)
    unread = 1 - end / os.path.getsize(source.path)
    grows = source.container == "gif" or source.container.startswith("mov") and not source.declared_frames
    if missing and (grows or not source.duration or unread > 0.3):  # whose durations are those of what is there
        return True
    left = source.duration - (last + usual)
    if left < (0.5 * usual if missing else 1.5 * max(usual, longest)):
        return False
    return missing is not False or unread > 0.5 * left / source.duration


def read_picture(path) -> np.ndarray:
    """The picture at `path`, upright, in sRGB, on white, as uint8 [H, W, 3].

    Raises ItemError: missing, not a picture, damaged, absurd size, greys of an unknown scale.
    """
    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise ItemError(f"{path} claims {picture.width}x{picture.height} pixels", "scale it down")
            transfer, primaries = colours_of(path, picture.format)
            if is_foreign(transfer, primaries):
                return as_rgb(in_bt709(upright(picture, str(path)), transfer, primaries))
            return as_rgb(picture, str(path))
    except FileNotFoundError as error:
        raise ItemError(f"no picture at {path}", "check the path") from error
    except ItemError:
        raise
    except Exception as error:  # Pillow's plugins raise all kinds of errors for damaged files
        raise ItemError(f"{path} is not a picture that can be read ({said(error)})", "give a PNG or JPEG file") from error


def colours_of(path, file_format: str) -> tuple[str, str]:
    """The transfer function and the primaries that a picture file names, as Source does; "" for each that it does not."""
    numbers = b""
    with open(path, "rb") as file:
        if file_format == "PNG":
            numbers = png_chunk(file, b"cICP")
        elif file_format == "AVIF":
            numbers = file.read(HEADER).partition(b"colrnclx")[2]
    size = NUMBER_BYTES.get(file_format, 0)
    primaries, transfer = (int.from_bytes(numbers[at : at + size], "big") for at in (0, size))
    return TRANSFERS.get(transfer, ""), PRIMARIES.get(primaries, "")


def png_chunk(file, name: bytes) -> bytes:
    """The first chunk of a name before a PNG's pixels; empty where there is none."""
    file.seek(8)
    while (head := file.read(8)) and head[4:] not in (b"IDAT", b"IEND"):
        content = file.read(int.from_bytes(head[:4], "big") + 4)
        if head[4:] == name:
            return content[:-4]
    return b""


def in_bt709(picture: Image.Image, transfer: str, primaries: str) -> Image.Image:
    """A picture in RGB or RGBA, its colours converted as those of videos are; its ICC profile no longer counts."""
    converted = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    values = table(transfer, primaries)
    converted = converted.filter(ImageFilter.Color3DLUT(len(values), table_rows(values).ravel()))
    converted.info = {}
    return converted


def as_rgb(picture: Image.Image, name: str = "the picture") -> np.ndarray:
    """A picture as it looks on white: upright, in sRGB, uint8 [H, W, 3]. Greys of 16 and 32 bits become 8.

    `name` is what errors and warnings call it. Raises ItemError for 32-bit greys whose white is unknown.
    """
    white_is_zero = getattr(picture, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO
    picture = in_srgb(eight_bits(upright(picture, name), name, white_is_zero), name)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return np.array(picture.convert("RGB"))


def upright(picture: Image.Image, name: str) -> Image.Image:
    """A picture turned and mirrored as its EXIF data says; as it lies where they cannot be read."""
    picture.load()
    try:
        return ImageOps.exif_transpose(picture)
    except Exception as error:  # Pillow raises all kinds of errors for damaged EXIF data
        log("warning", file=name, reason=f"its EXIF data cannot be read ({said(error)})")
        return picture


def eight_bits(picture: Image.Image, name: str, white_is_zero: bool = False) -> Image.Image:
    """A picture whose greys of 16 or 32 bits, integers or floats, have become 8; any other as it is."""
    if not picture.mode.startswith(("I", "F")):
        return picture
    greys = np.asarray(picture)
    if picture.mode.startswith("I;16"):
        white = 65535
    else:
        low, high = float(greys.min()), float(greys.max())
        # Of floats on 0..1 the brightest may lie above white; a picture on 0..255 has more than a few levels.
        whites = {1: BRIGHTEST, 255: 255, 65535: 65535} if picture.mode == "F" else {255: 255, 65535: 65535}
        white = next((white for white, highest in whites.items() if low >= 0 and high <= highest), 0)
        if not white or BRIGHTEST < high < 16 and picture.mode == "F":
            raise ItemError(
                f"{name} holds greys of 32 bits from {low:g} to {high:g}, whose white is not known",
                "save it with 8 or 16 bits, or as floats from 0 to 1",
            )
    if white_is_zero:
        greys = white - greys.astype(np.float64)
    scaled = Image.fromarray(np.round(greys * (255 / white)).clip(0, 255).astype(np.uint8))
    scaled.info = picture.info
    return scaled


def is_srgb(profile: ImageCms.ImageCmsProfile) -> bool:
    """Whether a profile leaves colours where they are: all of a few, to a level."""
    if profile.profile.xcolor_space.strip() != "RGB":
        return False
    levels = np.array([0, 40, 128, 200, 255], np.uint8)
    colours = Image.fromarray(np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(5, 25, 3))
    options = {"renderingIntent": ImageCms.Intent.RELATIVE_COLORIMETRIC, "outputMode": "RGB"}
    moved = ImageCms.profileToProfile(colours, profile, ImageCms.createProfile("sRGB"), **options)
    return bool(np.abs(np.asarray(moved).astype(int) - np.asarray(colours)).max() <= 1)


def in_srgb(picture: Image.Image, name: str) -> Image.Image:
    """A picture with its ICC profile applied, in RGB or RGBA; as it is where it has none, or one that cannot be used."""
    data = picture.info.get("icc_profile")
    if not data and picture.mode != "LAB":
        return picture
    try:
        profile = ImageCms.ImageCmsProfile(BytesIO(data)) if data else ImageCms.createProfile("LAB")
        if data and is_srgb(profile):
            return picture  # rounding alone would change it
        alpha = picture.convert("RGBA").getchannel("A") if picture.has_transparency_data else None
        modes = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}
        space = profile.profile.xcolor_space.strip() if data else "Lab"
        coloured = picture if picture.mode == modes[space] else picture.convert(modes[space])
        converted = ImageCms.profileToProfile(
            coloured,
            profile,
            ImageCms.createProfile("sRGB"),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except Exception as error:  # damaged profiles make Pillow raise all kinds of errors
        log("warning", file=name, reason=f"its colour profile cannot be used ({said(error)})")
        return picture
    if alpha:
        converted.putalpha(alpha)
    return converted
