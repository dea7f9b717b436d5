"""Background smoothing: the formula on images, and its effect on a film."""

import numpy as np
import torch
from safetensors.torch import load_file

from stages.families.fresco.features import Motion
from stages.families.fresco.smoothing import background_mask, blend_background
from stages.media.read import read_image
from stages.media.write import VideoWriter
from stages.runtime import artifacts
from tests.commands import stage
from tests.families.fresco.conftest import INTERVAL, SIZE
from tests.families.fresco.test_stages import CANNY, FEW, FULL

FRAMES = 4


def still_motion(frames, size):
    """A flow of zero that is reliable everywhere."""
    flows, occlusions = torch.zeros(2, frames, 2, *size), torch.zeros(2, frames, *size)
    return Motion(*flows, *occlusions)


def mask_video(path, frames, front):
    """Write a mask video: white in a rectangle (top, bottom, left, right), black elsewhere."""
    top, bottom, left, right = front
    image = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
    image[top:bottom, left:right] = 255
    with VideoWriter(path, *SIZE, 8, crf=4) as video:
        for _ in range(frames):
            video.write(image)
    return path


def test_blend_background_copies_a_still_background_and_keeps_the_foreground():
    images, masks = torch.rand(FRAMES, 3, 32, 32), torch.zeros(FRAMES, 32, 32)
    masks[:, 10:20, 10:20] = 1
    blended = blend_background(images, still_motion(FRAMES, (32, 32)), background_mask(masks))
    assert torch.allclose(blended[:, :, :6], images[:1, :, :6].expand(FRAMES, -1, -1, -1), atol=1e-6)
    assert torch.equal(blended[:, :, 10:20, 10:20], images[:, :, 10:20, 10:20])
    assert torch.equal(blended[:, :, 8, 8], images[:, :, 8, 8])  # close to the foreground


def test_blend_background_follows_a_moving_background():
    """The flow is 2 pixels to the left. Pixels that enter the image have no match in the first frame and stay."""
    images, motion = torch.rand(2, 3, 16, 16), still_motion(2, (16, 16))
    motion.backward[:, 0] = 2  # content of the second frame is 2 pixels further right in the first
    motion.occluded_forward[:] = 1
    blended = blend_background(images, motion, torch.ones(2, 16, 16))
    assert torch.allclose(blended[1, :, :, :14], images[0, :, :, 2:], atol=1e-5)
    assert torch.equal(blended[1, :, :, 14:], images[1, :, :, 14:])


def test_blend_background_keeps_pixels_without_a_match():
    images, motion = torch.rand(2, 3, 16, 16), still_motion(2, (16, 16))
    motion.occluded_backward[:] = motion.occluded_forward[:] = 1
    assert torch.equal(blend_background(images, motion, torch.ones(2, 16, 16)), images)


def test_encode_writes_the_masks_of_the_keyframes(encoded, tmp_path):
    video = mask_video(tmp_path / "masks.mkv", 3 * INTERVAL, (32, 96, 48, 144))
    masks = load_file(encoded(3, *CANNY, "--masks", video))["masks"]
    assert masks.shape == (3, SIZE[1], SIZE[0]) and masks.dtype == torch.uint8
    assert masks[:, 40:88, 56:136].min() > 240 and masks[:, :24].max() < 15 and masks[:, 104:].max() < 15


def test_masks_make_the_background_of_a_film_calmer(encoded, tiny_sd, tmp_path):
    """With everything as background, neighbouring keyframes differ less along the known motion of the source."""
    video, changes = mask_video(tmp_path / "masks.mkv", 3 * INTERVAL, (0, 0, 0, 0)), {}
    for name, masks in (("with", ("--masks", video)), ("without", ())):
        latents = tmp_path / f"{name}.safetensors"
        stage("generate", encoded(3, *CANNY, *masks), "-o", latents, *CANNY, *FEW, *FULL)
        stage("decode", latents, "-o", tmp_path / f"{name}.json")
        keyframes = artifacts.read(tmp_path / f"{name}.json", artifacts.KINDS)
        images = [read_image(keyframes.member(frame["suffix"])).astype(int) for frame in keyframes.fields["frames"]]
        changes[name] = np.mean([np.abs(b[:, :-4] - a[:, 4:]).mean() for a, b in zip(images, images[1:])])
    assert changes["with"] < 0.9 * changes["without"]


def test_too_few_masks_are_reported_in_one_sentence(keys, tiny_sd, tmp_path):
    video = mask_video(tmp_path / "masks.mkv", 4, (0, 10, 0, 10))
    options = ("-m", tiny_sd, "--prompt", "a bird", "--masks", video, *CANNY)
    stderr = stage("encode", keys(3), "-o", tmp_path / "e.safetensors", *options, fails=1)
    assert f"{video} has 4 masks, fewer than the source has frames: give one mask per frame" in stderr
