"""A tiny Stable Diffusion with ControlNets, and keyframes of a picture that is moved."""

import cv2
import numpy as np
import pytest
from PIL import Image

from stages.runtime.artifacts import write_index
from tests.commands import stage

SIZE = (192, 128)
STEP = 4  # pixels that the picture moves from keyframe to keyframe
INTERVAL = 5  # frames from keyframe to keyframe


def picture(width, height):
    """A smooth texture with something everywhere."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 7 + y / 11), np.cos(x / 5 - y / 9), np.sin((x + y) / 6)]
    return (127 + 100 * np.stack(waves, axis=-1)).astype(np.uint8)


@pytest.fixture(scope="session")
def keys(tmp_path_factory):
    """Makes `count` keyframes of a picture that moves left, or by so many pixels, as extract_frames would write them."""
    wide = picture(SIZE[0] + STEP * 16, SIZE[1])

    def make(count, step=STEP):
        path = tmp_path_factory.mktemp("keys") / "keys.json"
        (path.parent / "keys").mkdir()
        listed = []
        for number in range(count):
            suffix = f"/{number * INTERVAL:06d}.png"
            edges, rgb = f"/{number * INTERVAL:06d}.canny.png", wide[:, number * step : number * step + SIZE[0]]
            Image.fromarray(rgb).save(f"{path.parent}/keys{suffix}")
            Image.fromarray(cv2.Canny(np.ascontiguousarray(rgb), 50, 100)).save(f"{path.parent}/keys{edges}")
            listed.append({"index": number * INTERVAL, "time": number / 2, "suffix": suffix, "canny": edges})
        fields = {"width": SIZE[0], "height": SIZE[1], "select": "keyframes", "frames": listed, "source": {"fps": "10"}}
        write_index(path, "frames", fields, [frame[name] for frame in listed for name in ("suffix", "canny")])
        return path

    return make


@pytest.fixture(scope="session")
def encoded(tiny_sd, keys, tmp_path_factory):
    """Encodes so many keyframes; once for equal arguments."""
    made = {}

    def make(count, *arguments):
        if (count, arguments) not in made:
            path = tmp_path_factory.mktemp("encoded") / "encoded.safetensors"
            given = ("-m", tiny_sd, "--prompt", "a blue bird", "--dtype", "float32", *arguments)
            stage("encode", keys(count), "-o", path, *given)
            made[count, arguments] = path
        return made[count, arguments]

    return make
