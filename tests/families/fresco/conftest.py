"""Keyframes of a moving image, and their encodings by a tiny Stable Diffusion with ControlNets."""

import cv2
import numpy as np
import pytest
from PIL import Image

from stages.runtime.artifacts import write_index
from tests.commands import stage

SIZE = (192, 128)
STEP = 4  # pixels that the image moves from keyframe to keyframe
INTERVAL = 5  # frames from keyframe to keyframe


def texture(width, height):
    """A smooth texture with contrast everywhere."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 7 + y / 11), np.cos(x / 5 - y / 9), np.sin((x + y) / 6)]
    return (127 + 100 * np.stack(waves, axis=-1)).astype(np.uint8)


@pytest.fixture(scope="session")
def keys(tmp_path_factory):
    """A function that writes `count` keyframes of an image that moves left by `step` pixels, as extract_frames would."""
    panorama = texture(SIZE[0] + STEP * 16, SIZE[1])

    def make_keys(count, step=STEP):
        path = tmp_path_factory.mktemp("keys") / "keys.json"
        (path.parent / "keys").mkdir()
        entries = []
        for number in range(count):
            suffix = f"/{number * INTERVAL:06d}.png"
            edges, rgb = f"/{number * INTERVAL:06d}.canny.png", panorama[:, number * step : number * step + SIZE[0]]
            Image.fromarray(rgb).save(f"{path.parent}/keys{suffix}")
            Image.fromarray(cv2.Canny(np.ascontiguousarray(rgb), 50, 100)).save(f"{path.parent}/keys{edges}")
            entries.append({"index": number * INTERVAL, "time": number / 2, "suffix": suffix, "canny": edges})
        fields = {"width": SIZE[0], "height": SIZE[1], "select": "keyframes", "frames": entries, "source": {"fps": "10"}}
        write_index(path, "frames", fields, [frame[name] for frame in entries for name in ("suffix", "canny")])
        return path

    return make_keys


@pytest.fixture(scope="session")
def encoded(tiny_sd, keys, tmp_path_factory):
    """A function that encodes `count` keyframes, once for equal arguments."""
    cache = {}

    def encode_keys(count, *arguments):
        if (count, arguments) not in cache:
            path = tmp_path_factory.mktemp("encoded") / "encoded.safetensors"
            options = ("-m", tiny_sd, "--prompt", "a blue bird", "--dtype", "float32", *arguments)
            stage("encode", keys(count), "-o", path, *options)
            cache[count, arguments] = path
        return cache[count, arguments]

    return encode_keys
