"""The conditions of the networks: the pixels for CLIP, and images of any mode and orientation."""

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import _resize_with_antialiasing
from PIL import Image
from transformers import CLIPTokenizer

from stages.families.dynamicrafter.condition import (
    CLIP_MEAN,
    CLIP_STD,
    TextEncoder,
    clip_pixels,
    clip_tokenizer,
    resize_and_crop,
)
from stages.families.dynamicrafter.convert import read_tokenizer
from stages.families.dynamicrafter.options import FAMILY
from stages.families.shared.clip_text import clean
from stages.media.read import read_image
from stages.runtime.model import find_model


@pytest.mark.parametrize("size", [(256, 256), (320, 512), (576, 1024), (64, 64), (224, 224), (100, 333)])
def test_clip_pixels_agree_with_the_antialiased_resize_of_diffusers(size):
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = (_resize_with_antialiasing(image, (224, 224)) + 1) / 2
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (CLIP_MEAN, CLIP_STD))
    assert (clip_pixels(image, 224) * std + mean - expected).abs().max() <= 1e-5


def halves(width, height):
    """An image that is red on the left and blue on the right."""
    rgb = np.zeros((height, width, 3), np.uint8)
    rgb[:, : width // 2, 0], rgb[:, width // 2 :, 2] = 255, 255
    return rgb


def published_pixels(rgb, width, height):
    """float64 [3, height, width] by torchvision's Resize(min(height, width)) and CenterCrop on a PIL image, like the
    published program. None if CenterCrop would pad."""
    high, wide, _ = rgb.shape
    target = min(width, height)
    scaled = (target, int(target * high / wide)) if wide <= high else (int(target * wide / high), target)
    if scaled[0] < width or scaled[1] < height:
        return None
    left, top = int(round((scaled[0] - width) / 2.0)), int(round((scaled[1] - height) / 2.0))
    pixels = np.asarray(Image.fromarray(rgb).resize(scaled, Image.BILINEAR), np.float64)
    return (pixels[top : top + height, left : left + width].transpose(2, 0, 1) / 255 - 0.5) / 0.5


@pytest.mark.parametrize("width, height", [(128, 128), (256, 160), (160, 256), (512, 320)])
def test_fit_resizes_and_crops_like_the_published_program(width, height):
    rng, compared = np.random.default_rng(0), 0
    for _ in range(60):
        wide, high = (int(side) for side in rng.integers(40, 700, 2))
        rgb = rng.integers(0, 256, (high, wide, 3), dtype=np.uint8)
        expected = published_pixels(rgb, width, height)
        if expected is not None:
            assert np.abs(resize_and_crop(rgb, (width, height))[0].double().numpy() - expected).max() < 1e-6, (wide, high)
            compared += 1
    assert compared >= 15


def test_fit_returns_an_image_of_the_right_size_unchanged():
    rgb = np.random.default_rng(1).integers(0, 256, (64, 128, 3), dtype=np.uint8)
    assert np.allclose(resize_and_crop(rgb, (128, 64))[0].numpy(), rgb.transpose(2, 0, 1) / 127.5 - 1, atol=1e-6)


@pytest.fixture(scope="module")
def encoder(repositories):
    return TextEncoder(find_model(str(repositories["256"]), None, {FAMILY.name: FAMILY}), "cpu")


@pytest.mark.parametrize(
    "written, read",
    [
        ("a bear\u2019s guitar", "a bear's guitar"),
        ("\u201cfish\u201d &amp; chips", '"fish" & chips'),
        ("&amp;lt;b&amp;gt;", "<b>"),  # entities twice
        ("\ufb01ne \ufb02ow", "fine flow"),
        ("\uff26\uff55\uff4c\uff4c width", "full width"),
        ("sch\u00c3\u00b6n", "sch\u00f6n"),  # UTF-8 read as Latin-1
        ("cafe\u0301", "caf\u00e9"),
        ("  two \t\n\u3000 spaces ", "two spaces"),
        ("A Bear", "a bear"),
    ],
)
def test_prompts_are_cleaned_like_open_clip(written, read, encoder):
    assert clean(written) == read
    result, expected = (encoder.encode(text, text) for text in (written, read))
    for name in ("prompt_embeds", "negative_prompt_embeds"):
        assert torch.equal(result[name], expected[name])


def test_special_tokens_in_a_prompt_are_text(tmp_path):
    """open_clip pads with token 0, which is "!". An exclamation mark in a prompt is another token."""
    vocabulary = ["!", "a", "!</w>", "a</w>", "!!</w>", "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer({token: number for number, token in enumerate(vocabulary)}, [("!", "!</w>")])
    tokenizer.save_pretrained(tmp_path / "clip")
    read_tokenizer(tmp_path / "clip").save_pretrained(tmp_path / "tokenizer")
    ids = clip_tokenizer(tmp_path)(["a! a !!"], padding="max_length", max_length=9).input_ids[0]
    assert ids == [5, 3, 2, 3, 4, 6, 0, 0, 0]


@pytest.mark.parametrize("size", [(60, 200), (200, 60), (100, 100)])
def test_an_image_covers_the_size_and_is_cropped_in_the_middle(size):
    pixels = resize_and_crop(halves(*size), (128, 64))
    assert pixels.shape == (1, 3, 64, 128) and pixels.dtype == torch.float32
    red, _, blue = pixels[0].unbind(0)
    assert (red[:, :56] > 0.99).all() and (blue[:, 72:] > 0.99).all()  # no bars
    assert pixels.min() >= -1 and pixels.max() <= 1


def read_saved(folder, image, name, **options):
    path = folder / name
    image.save(path, **options)
    return read_image(path)


def test_images_of_any_mode_and_orientation_are_read_as_they_look(tmp_path):
    rgb = halves(40, 20)
    upright = Image.fromarray(rgb)
    assert np.array_equal(read_saved(tmp_path, upright, "a.png"), rgb)
    for name in ("a.bmp", "a.tiff"):
        assert np.array_equal(read_saved(tmp_path, upright, name), rgb)
    turned, exif = upright.transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[0x0112] = 6  # to be rotated clockwise
    assert np.array_equal(read_saved(tmp_path, turned, "turned.png", exif=exif), rgb)
    grey = np.linspace(0, 255, 40, dtype=np.uint8)[None].repeat(20, 0)
    expected = np.stack([grey] * 3, axis=-1)
    assert np.array_equal(read_saved(tmp_path, Image.fromarray(grey), "grey.png"), expected)
    for name in ("deep.png", "deep.tiff"):
        assert np.array_equal(read_saved(tmp_path, Image.fromarray(grey.astype(np.uint16) * 257), name), expected)


def test_transparent_pixels_become_white(tmp_path):
    rgba = np.dstack([halves(40, 20), np.full((20, 40), 255, np.uint8)])
    rgba[:10, :, 3], rgba[10:, :20, 3] = 0, 128
    result = read_saved(tmp_path, Image.fromarray(rgba), "clear.png")
    assert (result[:10] == 255).all() and (result[10:, 20:] == (0, 0, 255)).all()
    assert np.abs(result[10:, :20].astype(int) - (255, 127, 127)).max() <= 1
    palette = Image.fromarray(halves(40, 20)).quantize(2)
    result = read_saved(tmp_path, palette, "palette.png", transparency=palette.getpixel((0, 0)))
    assert (result[:, :20] == 255).all() and (result[:, 20:] == (0, 0, 255)).all()
