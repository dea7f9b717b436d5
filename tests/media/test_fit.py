import numpy as np
import pytest
from PIL import Image

from stages.media.fit import fit_image, target_size
from stages.runtime.errors import UsageError


@pytest.mark.parametrize(
    ("source", "result"),
    [
        ((1920, 1080), (1248, 704)),  # as Wan2.2's own rule gives them
        ((1280, 720), (1248, 704)),
        ((832, 480), (1248, 704)),
        ((640, 480), (1088, 800)),
        ((500, 500), (960, 928)),
        ((1080, 1920), (704, 1248)),
    ],
)
def test_an_area_keeps_the_aspect(source, result):
    assert target_size(source, (1280, 704), "area", 32) == result


def test_an_area_is_never_exceeded_nor_empty():
    for source in ((64, 4000), (4000, 64), (3, 2), (1, 5000)):
        width, height = target_size(source, (1280, 704), "area", 32)
        assert width * height <= 1280 * 704 and width >= 32 and height >= 32
        assert width % 32 == height % 32 == 0
    with pytest.raises(UsageError, match="larger"):
        target_size((64, 64), (16, 16), "area", 32)


@pytest.mark.parametrize("size", [(832, 480), (480, 832), (1280, 720), (720, 1280), (1280, 704)])
def test_an_area_by_the_rule_of_wans_14b(size):
    """wan/image2video.py: latents of a stride of 8 in patches of 2, each side floored on its own."""
    rng = np.random.default_rng(0)
    sources = [*rng.integers(64, 4097, (1500, 2)).tolist(), [832, 480], [480, 832], [1920, 1080], [640, 480], list(size)]
    for width, height in sources:
        ratio = height / width
        rows = round(np.sqrt(size[0] * size[1] * ratio) // 8 // 2 * 2)
        columns = round(np.sqrt(size[0] * size[1] / ratio) // 8 // 2 * 2)
        if min(rows, columns) > 0:
            assert target_size((width, height), size, "area", 16, "independent") == (8 * columns, 8 * rows), (width, height)
    assert target_size((500, 500), (832, 480), "area", 16, "independent") == (624, 624)
    assert target_size((500, 500), (832, 480), "area", 16) == (640, 624)


def test_a_sliver_by_the_rule_of_wans_14b_is_not_empty():
    width, height = target_size((9000, 1), (832, 480), "area", 16, "independent")
    assert height == 16 and width % 16 == 0 and width * height <= 832 * 480


def test_an_exact_size_must_be_a_multiple():
    assert target_size((99, 77), (1280, 704), "crop", 32) == (1280, 704)
    with pytest.raises(UsageError, match=r"1280\*720 is not a multiple of 32: take 1280\*704"):
        target_size((99, 77), (1280, 720), "pad", 32)
    with pytest.raises(UsageError, match="stretch"):
        target_size((99, 77), (1280, 704), "stretch", 32)


def picture(width, height) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, (height, width, 3), dtype=np.uint8)


def test_crop_covers_and_keeps_the_centre():
    rgb = picture(200, 100)
    cover = np.asarray(Image.fromarray(rgb).resize((160, 80), Image.Resampling.LANCZOS))
    assert np.array_equal(fit_image(rgb, (80, 80), "crop"), cover[:, 40:120])
    assert np.array_equal(fit_image(rgb, (100, 100), "crop"), rgb[:, 50:150])


def test_pad_shows_all_on_black():
    rgb = picture(200, 100)
    inside = np.asarray(Image.fromarray(rgb).resize((100, 50), Image.Resampling.LANCZOS))
    got = fit_image(rgb, (100, 100), "pad")
    assert np.array_equal(got[25:75], inside)
    assert not got[:25].any() and not got[75:].any()


def test_the_right_size_is_left_alone():
    rgb = picture(64, 48)
    for fit in ("crop", "pad", "area"):
        assert fit_image(rgb, (64, 48), fit) is rgb


@pytest.mark.parametrize(
    ("source", "size"), [((832, 480), (896, 512)), ((480, 832), (512, 896)), ((640, 480), (704, 512)), ((9, 9), (512, 512))]
)
def test_the_shorter_side_is_that_of_the_size(source, size):
    assert target_size(source, (512, 512), "short", 64) == size
