"""Damaged files of every container: each is read, or refused as an error of the item in one sentence."""

import numpy as np
import pytest
from PIL import Image

from stages.media.probe import frame_times, probe
from stages.media.read import read_image
from stages.media.select import last, midpoints, sample
from stages.runtime.errors import ItemError
from tests import zoo
from tests.zoo import H264, MPEG2

MUTATIONS = 40
NUMBERS = (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\x80\0\0\0")
ALPHA = ["-c:v", "libvpx", "-pix_fmt", "yuva420p", "-auto-alt-ref", "0"]
HDR = ["-c:v", "libx265", "-x265-params", "log-level=error", "-pix_fmt", "yuv420p10le", "-color_trc", "smpte2084"]


def mutate(data: bytes, rng: np.random.Generator, kind: int) -> bytes:
    """A file with changed bytes anywhere or near its start, a stretch of noise, a missing stretch, or an absurd number."""
    data = bytearray(data)
    position = int(rng.integers(len(data) - 4))
    if kind < 2:
        for at in rng.integers(0, len(data) if kind else min(len(data), 2000), int(rng.integers(1, 20))):
            data[at] = int(rng.integers(256))
    elif kind == 2:
        noise = rng.integers(0, 256, int(rng.integers(1, 400))).astype(np.uint8).tobytes()
        data[position : position + len(noise)] = noise
    elif kind == 3:
        del data[position : position + int(rng.integers(1, 200))]
    else:
        data[position : position + 4] = NUMBERS[rng.integers(len(NUMBERS))]
    return bytes(data)


def count_refusals(path, data: bytes, *readers) -> int:
    """The number of refusals by the readers of mutations of a file. Each must be an ItemError of one line."""
    rng, refusals = np.random.default_rng(len(data)), 0
    for number in range(MUTATIONS):
        path.write_bytes(mutate(data, rng, number % 5))
        for reader in readers:
            try:
                reader(path)
            except ItemError as error:
                refusals += 1
                assert "\n" not in str(error) and str(path) in str(error) and error.remedy
    return refusals


@pytest.mark.parametrize(
    ("name", "encoder", "fps"),
    [
        ("a.mp4", H264, 12),
        ("a.mkv", H264, 12),
        ("a.avi", ["-c:v", "mpeg4", "-bf", "2"], 12),
        ("a.ts", H264, 12),
        ("a.vob", MPEG2, 25),
        ("a.flv", H264, 12),
        ("a.webm", ALPHA, 12),
        ("a.wmv", ["-c:v", "wmv2"], 12),
        ("hdr.mp4", HDR, 12),
    ],
)
def test_mutated_videos_are_read_or_refused_as_an_item_error(tmp_path, name, encoder, fps):
    tags = ["-metadata", "title=a title", "-metadata:s:v", "language=eng"]
    path = zoo.numbered_video(tmp_path, name, [*encoder, *tags], frames=12, fps=fps, size=(64, 48))
    assert count_refusals(
        path,
        path.read_bytes(),
        lambda path: last(path, 2, allow_truncated=True),
        lambda path: sample(path, 3, include_last=True),
        lambda path: midpoints(path, 3),
        lambda path: frame_times(probe(path)),
    )


@pytest.mark.parametrize("ending", ["png", "jpg", "tif", "gif", "webp", "bmp"])
def test_mutated_images_are_read_or_refused_as_an_item_error(tmp_path, ending):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / f"a.{ending}"
    Image.fromarray(zoo.numbered_image(5)).save(path, exif=exif)
    assert count_refusals(path, path.read_bytes(), read_image)
