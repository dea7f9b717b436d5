"""A background that stays the same: the formula on pictures, and what it does to a film."""

import numpy as np
import torch
from safetensors.torch import load_file

from stages.media.read import read_picture
from stages.media.write import VideoWriter
from stages.models.fresco.features import Motion
from stages.models.fresco.smoothing import behind, fused
from stages.runtime import artifacts
from tests.commands import stage
from tests.models.fresco.conftest import INTERVAL, SIZE
from tests.models.fresco.test_stages import CANNY, FEW, FULL

FRAMES = 4


def still(frames, size):
    """Nothing moves and all can be trusted."""
    flows, occlusions = torch.zeros(2, frames, 2, *size), torch.zeros(2, frames, *size)
    return Motion(*flows, *occlusions)


def mask_video(path, frames, front):
    """White in a rectangle (top, bottom, left, right), black elsewhere."""
    top, bottom, left, right = front
    picture = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
    picture[top:bottom, left:right] = 255
    with VideoWriter(path, *SIZE, 8, crf=4) as video:
        for _ in range(frames):
            video.write(picture)
    return path


def test_a_still_background_becomes_that_of_the_first_frame_and_the_front_stays():
    images, masks = torch.rand(FRAMES, 3, 32, 32), torch.zeros(FRAMES, 32, 32)
    masks[:, 10:20, 10:20] = 1
    made = fused(images, still(FRAMES, (32, 32)), behind(masks))
    assert torch.allclose(made[:, :, :6], images[:1, :, :6].expand(FRAMES, -1, -1, -1), atol=1e-6)
    assert torch.equal(made[:, :, 10:20, 10:20], images[:, :, 10:20, 10:20])
    assert torch.equal(made[:, :, 8, 8], images[:, :, 8, 8])  # close to what is in front


def test_a_background_that_moves_is_followed():
    """The flow is 2 pixels to the left; what comes into the picture there was not seen before and stays."""
    images, motion = torch.rand(2, 3, 16, 16), still(2, (16, 16))
    motion.backward[:, 0] = 2  # what is seen in the second frame lies 2 pixels to the right in the first
    motion.occluded_forward[:] = 1
    made = fused(images, motion, torch.ones(2, 16, 16))
    assert torch.allclose(made[1, :, :, :14], images[0, :, :, 2:], atol=1e-5)
    assert torch.equal(made[1, :, :, 14:], images[1, :, :, 14:])


def test_what_cannot_be_followed_stays():
    images, motion = torch.rand(2, 3, 16, 16), still(2, (16, 16))
    motion.occluded_backward[:] = motion.occluded_forward[:] = 1
    assert torch.equal(fused(images, motion, torch.ones(2, 16, 16)), images)


def test_masks_are_those_of_the_keyframes(encoded, tmp_path):
    video = mask_video(tmp_path / "masks.mkv", 3 * INTERVAL, (32, 96, 48, 144))
    masks = load_file(encoded(3, *CANNY, "--masks", video))["masks"]
    assert masks.shape == (3, SIZE[1], SIZE[0]) and masks.dtype == torch.uint8
    assert masks[:, 40:88, 56:136].min() > 240 and masks[:, :24].max() < 15 and masks[:, 104:].max() < 15


def test_a_film_with_masks_has_a_calmer_background(encoded, tiny_sd, tmp_path):
    """Everything is background: neighbouring keyframes differ less along the known motion of the source."""
    video, changes = mask_video(tmp_path / "masks.mkv", 3 * INTERVAL, (0, 0, 0, 0)), {}
    for name, masks in (("with", ("--masks", video)), ("without", ())):
        latents = tmp_path / f"{name}.safetensors"
        stage("generate", encoded(3, *CANNY, *masks), "-o", latents, *CANNY, *FEW, *FULL)
        stage("decode", latents, "-o", tmp_path / f"{name}.json")
        made = artifacts.read(tmp_path / f"{name}.json", artifacts.KINDS)
        pictures = [read_picture(made.member(frame["suffix"])).astype(int) for frame in made.fields["frames"]]
        changes[name] = np.mean([np.abs(b[:, :-4] - a[:, 4:]).mean() for a, b in zip(pictures, pictures[1:])])
    assert changes["with"] < 0.9 * changes["without"]


def test_too_few_masks_are_one_sentence(keys, tiny_sd, tmp_path):
    video = mask_video(tmp_path / "masks.mkv", 4, (0, 10, 0, 10))
    given = ("-m", tiny_sd, "--prompt", "a bird", "--masks", video, *CANNY)
    said = stage("encode", keys(3), "-o", tmp_path / "e.safetensors", *given, fails=1)
    assert f"{video} has 4 masks, and the clip more frames: give a mask of each frame" in said
