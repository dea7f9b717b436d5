"""What the networks are shown: CLIP's view of a picture, and pictures of any form."""

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import _resize_with_antialiasing
from PIL import Image

from stages.media.read import read_picture
from stages.models.dynamicrafter.condition import CLIP_MEAN, CLIP_STD, as_pixels, clip_pixels


@pytest.mark.parametrize("size", [(256, 256), (320, 512), (576, 1024), (64, 64), (224, 224), (100, 333)])
def test_clip_sees_what_the_antialiased_resize_of_diffusers_shows(size):
    picture = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = (_resize_with_antialiasing(picture, (224, 224)) + 1) / 2
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (CLIP_MEAN, CLIP_STD))
    assert (clip_pixels(picture, 224) * std + mean - expected).abs().max() <= 1e-5


def halves(width, height):
    """Red on the left, blue on the right."""
    rgb = np.zeros((height, width, 3), np.uint8)
    rgb[:, : width // 2, 0], rgb[:, width // 2 :, 2] = 255, 255
    return rgb


@pytest.mark.parametrize("size", [(60, 200), (200, 60), (100, 100)])
def test_a_picture_covers_the_size_and_is_cut_in_the_middle(size):
    pixels = as_pixels(halves(*size), (128, 64))
    assert pixels.shape == (1, 3, 64, 128) and pixels.dtype == torch.float32
    red, _, blue = pixels[0].unbind(0)
    assert (red[:, :56] > 0.99).all() and (blue[:, 72:] > 0.99).all()  # no bars
    assert pixels.min() >= -1 and pixels.max() <= 1


def saved(folder, picture, name, **options):
    path = folder / name
    picture.save(path, **options)
    return read_picture(path)


def test_pictures_of_any_form_come_as_they_look(tmp_path):
    rgb = halves(40, 20)
    upright = Image.fromarray(rgb)
    assert np.array_equal(saved(tmp_path, upright, "a.png"), rgb)
    for name in ("a.bmp", "a.tiff"):
        assert np.array_equal(saved(tmp_path, upright, name), rgb)
    turned, exif = upright.transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    assert np.array_equal(saved(tmp_path, turned, "turned.png", exif=exif), rgb)
    grey = np.linspace(0, 255, 40, dtype=np.uint8)[None].repeat(20, 0)
    expected = np.stack([grey] * 3, axis=-1)
    assert np.array_equal(saved(tmp_path, Image.fromarray(grey), "grey.png"), expected)
    for name in ("deep.png", "deep.tiff"):
        assert np.array_equal(saved(tmp_path, Image.fromarray(grey.astype(np.uint16) * 257), name), expected)


def test_what_is_transparent_is_white(tmp_path):
    rgba = np.dstack([halves(40, 20), np.full((20, 40), 255, np.uint8)])
    rgba[:10, :, 3], rgba[10:, :20, 3] = 0, 128
    made = saved(tmp_path, Image.fromarray(rgba), "clear.png")
    assert (made[:10] == 255).all() and (made[10:, 20:] == (0, 0, 255)).all()
    assert np.abs(made[10:, :20].astype(int) - (255, 127, 127)).max() <= 1
    palette = Image.fromarray(halves(40, 20)).quantize(2)
    made = saved(tmp_path, palette, "palette.png", transparency=palette.getpixel((0, 0)))
    assert (made[:, :20] == 255).all() and (made[:, 20:] == (0, 0, 255)).all()
