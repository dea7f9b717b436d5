import numpy as np
import pytest
from PIL import Image

from stages.media.shapes import dataset


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Seven clips of shapes world, and a single image of another one."""
    folder = tmp_path_factory.mktemp("clips")
    list(dataset.write(folder, dataset.draw(7, 64, 17, seed=3), 8))
    image = folder / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(image)
    return [*sorted(folder.glob("videos/*.mp4")), image]
