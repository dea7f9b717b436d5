import numpy as np
import pytest
from PIL import Image

from stages.media.fit import fit_image, target_size
from stages.runtime.errors import UsageError


@pytest.mark.parametrize(
    ("source", "result"),
    [
        ((1920, 1080), (1248, 704)),  # by Wan2.2's own rule
        ((1280, 720), (1248, 704)),
        ((832, 480), (1248, 704)),
        ((640, 480), (1088, 800)),
        ((500, 500), (960, 928)),
        ((1080, 1920), (704, 1248)),
    ],
)
def test_fit_area_keeps_the_aspect(source, result):
    assert target_size(source, (1280, 704), "area", 32) == result


@pytest.mark.parametrize("size", [(1280, 704), (704, 1280)])
def test_fit_area_by_the_rule_of_wan_5b(size):
    """As best_output_size of wan/utils/utils.py, in floats: one side is rounded down, the other gets the rest of the area.
    Of the two sizes the one with the nearer aspect wins."""
    area = size[0] * size[1]
    for width, height in np.random.default_rng(1).integers(64, 4097, (200, 2)).tolist():
        ratio = width / height
        across = (area * ratio) ** 0.5
        first = int(across // 32 * 32)
        by_width = first, int(area / first // 32 * 32)
        second = int(area / across // 32 * 32)
        by_height = int(area / second // 32 * 32), second
        distance = [max(ratio / (w / h), (w / h) / ratio) for w, h in (by_width, by_height)]
        expected = by_width if distance[0] < distance[1] else by_height
        assert target_size((width, height), size, "area", 32) == expected, (width, height)


def test_fit_area_is_never_exceeded_nor_empty():
    for source in ((64, 4000), (4000, 64), (3, 2), (1, 5000)):
        width, height = target_size(source, (1280, 704), "area", 32)
        assert width * height <= 1280 * 704 and width >= 32 and height >= 32
        assert width % 32 == height % 32 == 0
    with pytest.raises(UsageError, match="larger"):
        target_size((64, 64), (16, 16), "area", 32)


@pytest.mark.parametrize("size", [(832, 480), (480, 832), (1280, 720), (720, 1280), (1280, 704)])
def test_fit_area_by_the_rule_of_wan_14b(size):
    """As in wan/image2video.py: latents of stride 8 in patches of 2, each side rounded down on its own."""
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


def test_fit_area_of_a_sliver_by_the_rule_of_wan_14b_is_not_empty():
    width, height = target_size((9000, 1), (832, 480), "area", 16, "independent")
    assert height == 16 and width % 16 == 0 and width * height <= 832 * 480


def test_fit_refuses_an_exact_size_that_is_no_multiple():
    assert target_size((99, 77), (1280, 704), "crop", 32) == (1280, 704)
    with pytest.raises(UsageError, match=r"1280\*720 is not a multiple of 32: use 1280\*704"):
        target_size((99, 77), (1280, 720), "pad", 32)
    with pytest.raises(UsageError, match="stretch"):
        target_size((99, 77), (1280, 704), "stretch", 32)


def random_image(width, height) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, (height, width, 3), dtype=np.uint8)


def test_fit_crop_covers_the_size_and_keeps_the_centre():
    rgb = random_image(200, 100)
    cover = np.asarray(Image.fromarray(rgb).resize((160, 80), Image.Resampling.LANCZOS))
    assert np.array_equal(fit_image(rgb, (80, 80), "crop"), cover[:, 40:120])
    assert np.array_equal(fit_image(rgb, (100, 100), "crop"), rgb[:, 50:150])


def test_fit_pad_shows_the_whole_image_on_black():
    rgb = random_image(200, 100)
    inside = np.asarray(Image.fromarray(rgb).resize((100, 50), Image.Resampling.LANCZOS))
    result = fit_image(rgb, (100, 100), "pad")
    assert np.array_equal(result[25:75], inside)
    assert not result[:25].any() and not result[75:].any()


def test_fit_returns_an_image_of_the_right_size_unchanged():
    rgb = random_image(64, 48)
    for fit in ("crop", "pad", "area"):
        assert fit_image(rgb, (64, 48), fit) is rgb


@pytest.mark.parametrize(
    ("source", "size"), [((832, 480), (896, 512)), ((480, 832), (512, 896)), ((640, 480), (704, 512)), ((9, 9), (512, 512))]
)
def test_fit_short_makes_the_shorter_side_that_of_the_size(source, size):
    assert target_size(source, (512, 512), "short", 64) == size
