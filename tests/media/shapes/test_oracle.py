"""The oracle reads true clips right, and is not fooled by wrong ones."""

import numpy as np
import pytest

from stages.media.shapes import oracle, world


def clip(seed=0, size=64, frames=17):
    scene = world.sample(np.random.default_rng([11, seed]))
    return scene, world.render(scene, frames, size, size)


def noisy(video, sigma, seed=0):
    noise = sigma * np.random.default_rng(seed).normal(size=video.shape)
    return (video + noise).round().clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", [64, 32])
@pytest.mark.parametrize("sigma", [0, 12])
def test_true_clips_are_read_right(size, sigma):
    right = 0
    for seed in range(100):
        scene, video = clip(seed, size)
        reading = oracle.read(noisy(video, sigma, seed))
        right += all(getattr(reading, fact) == getattr(scene, fact) for fact in ("color", "shape", "direction", "speed"))
    assert right >= 99


def test_centers_are_those_of_the_scene():
    scene = world.Scene("red", "ring", "right", "quickly", "black", 0.15, 0.7, 0.5)  # over the border
    reading = oracle.read(world.render(scene, 17))
    way = world.wrapped(reading.centers - scene.centers(17), 64)
    assert np.abs(way).max() < 0.6
    assert reading.present == 1 and reading.junk == 0 and reading.background == "black"


def test_a_shape_that_turns_back_has_no_direction():
    scene = world.Scene("red", "square", "right", "quickly", "black", 0.13, 0.3, 0.5)
    there = world.render(scene, 9)
    assert oracle.read(np.concatenate([there, there[-2::-1]])).direction is None


def test_a_still_shape_has_no_direction():
    _, video = clip()
    reading = oracle.read(np.repeat(video[:1], 17, axis=0))
    assert reading.direction is reading.speed is None
    assert reading.color and reading.shape


def test_a_color_between_two_is_neither():
    _, video = clip()
    dull = video.mean(axis=-1, keepdims=True).astype(np.uint8).repeat(3, axis=-1)
    assert oracle.read(dull).color is None


def test_another_color_is_read_as_that():
    scene = world.Scene("red", "square", "right", "slowly", "black", 0.15, 0.2, 0.5)
    video = world.render(scene, 17)[..., ::-1]  # its red has become blue
    assert oracle.read(video).color == "blue"


def test_a_shape_that_jumps_has_no_direction():
    rng = np.random.default_rng(3)
    for _ in range(10):
        scene = world.sample(rng)
        places = [world.Scene(**{**vars(scene), "x": rng.uniform(), "y": rng.uniform()}) for _ in range(17)]
        reading = oracle.read(np.concatenate([world.render(place, 1) for place in places]))
        assert reading.direction is None


def test_a_shape_that_comes_and_goes_is_not_there():
    scene, video = clip()
    video[::2] = world.BACKGROUNDS[scene.background]
    reading = oracle.read(video)
    assert reading.present < 0.5 and reading.color is reading.shape is reading.direction is None


def test_an_empty_picture_shows_nothing():
    reading = oracle.read(np.full((17, 64, 64, 3), 118, np.uint8))
    assert reading.present == 0 and np.isnan(reading.centers).all()
    assert reading.color is reading.shape is reading.direction is reading.speed is None


def test_noise_shows_nothing():
    reading = oracle.read(np.random.default_rng(0).integers(0, 256, (17, 64, 64, 3)).astype(np.uint8))
    assert reading.color is reading.shape is reading.direction is None
