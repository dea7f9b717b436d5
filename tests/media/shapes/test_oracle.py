"""The oracle reads rendered clips correctly and rejects wrong ones."""

import numpy as np
import pytest

from stages.media.shapes import oracle, world


def clip(seed=0, size=64, frames=17):
    scene = world.sample(np.random.default_rng([11, seed]))
    return scene, world.render(scene, frames, size, size)


def add_noise(video, sigma, seed=0):
    noise = sigma * np.random.default_rng(seed).normal(size=video.shape)
    return (video + noise).round().clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", [64, 32])
@pytest.mark.parametrize("sigma", [0, 12])
def test_oracle_reads_rendered_clips_correctly(size, sigma):
    correct = 0
    for seed in range(100):
        scene, video = clip(seed, size)
        reading = oracle.read(add_noise(video, sigma, seed))
        correct += all(getattr(reading, fact) == getattr(scene, fact) for fact in ("color", "shape", "direction", "speed"))
    assert correct >= 99


def test_oracle_centers_are_those_of_the_scene():
    scene = world.Scene("red", "ring", "right", "quickly", "black", 0.15, 0.7, 0.5)  # across the border
    reading = oracle.read(world.render(scene, 17))
    error = world.wrap(reading.centers - scene.centers(17), 64)
    assert np.abs(error).max() < 0.6
    assert reading.present == 1 and reading.junk == 0 and reading.background == "black"


def test_oracle_gives_no_direction_to_a_shape_that_turns_back():
    scene = world.Scene("red", "square", "right", "quickly", "black", 0.13, 0.3, 0.5)
    forward = world.render(scene, 9)
    assert oracle.read(np.concatenate([forward, forward[-2::-1]])).direction is None


def test_oracle_gives_no_direction_to_a_still_shape():
    _, video = clip()
    reading = oracle.read(np.repeat(video[:1], 17, axis=0))
    assert reading.direction is reading.speed is None
    assert reading.color and reading.shape


def test_oracle_gives_no_color_to_a_grey_shape():
    _, video = clip()
    grey = video.mean(axis=-1, keepdims=True).astype(np.uint8).repeat(3, axis=-1)
    assert oracle.read(grey).color is None


def test_oracle_reads_a_changed_color():
    scene = world.Scene("red", "square", "right", "slowly", "black", 0.15, 0.2, 0.5)
    video = world.render(scene, 17)[..., ::-1]  # its red has become blue
    assert oracle.read(video).color == "blue"


def test_oracle_gives_no_direction_to_a_shape_that_jumps():
    rng = np.random.default_rng(3)
    for _ in range(10):
        scene = world.sample(rng)
        places = [world.Scene(**{**vars(scene), "x": rng.uniform(), "y": rng.uniform()}) for _ in range(17)]
        reading = oracle.read(np.concatenate([world.render(place, 1) for place in places]))
        assert reading.direction is None


def test_oracle_finds_no_shape_that_comes_and_goes():
    scene, video = clip()
    video[::2] = world.BACKGROUNDS[scene.background]
    reading = oracle.read(video)
    assert reading.present < 0.5 and reading.color is reading.shape is reading.direction is None


def test_oracle_finds_nothing_in_an_empty_image():
    reading = oracle.read(np.full((17, 64, 64, 3), 118, np.uint8))
    assert reading.present == 0 and np.isnan(reading.centers).all()
    assert reading.color is reading.shape is reading.direction is reading.speed is None


def test_oracle_finds_nothing_in_noise():
    reading = oracle.read(np.random.default_rng(0).integers(0, 256, (17, 64, 64, 3)).astype(np.uint8))
    assert reading.color is reading.shape is reading.direction is None
