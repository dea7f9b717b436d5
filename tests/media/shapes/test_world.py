"""Shapes world keeps its promises: what it draws is where and what it says."""

import numpy as np
import pytest

from stages.media.shapes import world


def scenes(count, seed=5, **options):
    return [world.sample(np.random.default_rng([seed, i]), **options) for i in range(count)]


def test_a_seed_is_a_scene_and_a_scene_is_its_pixels():
    assert scenes(5) == scenes(5)
    assert scenes(5) != scenes(5, seed=6)
    scene = scenes(1)[0]
    whole = world.render(scene, 40)
    assert np.array_equal(whole, world.render(scene, 40))
    assert np.array_equal(whole[16:33], world.render(scene, 17, start=16))


@pytest.mark.parametrize("width, height, frames", [(64, 64, 17), (32, 32, 1), (96, 64, 5), (33, 50, 2), (128, 128, 81)])
def test_a_clip_has_any_size_and_length(width, height, frames):
    video = world.render(scenes(1)[0], frames, width, height)
    assert video.shape == (frames, height, width, 3) and video.dtype == np.uint8


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (48, 128)])
def test_a_shape_stays_in_the_picture_for_a_chain_of_twelve(size):
    for scene in scenes(50):
        reach = scene.radius * min(size)
        centers = scene.centers(17 + 12 * 16, *size)
        assert (centers >= reach).all() and (centers <= np.array(size) - reach).all()


def test_a_shape_never_jumps():
    for scene in scenes(50):
        steps = np.abs(np.diff(scene.centers(17 + 12 * 16), axis=0)).sum(axis=1)
        assert steps.max() <= 64 * world.SPEEDS[scene.speed] + 1e-9


def test_the_direction_of_a_caption_is_that_of_the_motion():
    for scene in scenes(50):
        motion = np.diff(scene.centers(80, 96, 64, start=3), axis=0)
        for step, frame in zip(motion, range(3, 82)):
            if abs(step).max() > 64 * world.SPEEDS[scene.speed] - 1e-6:  # the others are those with a wall in between
                way = world.DIRECTIONS[scene.direction_at(frame, 96, 64)]
                assert np.array_equal(np.sign(step.round(6)), way)
                assert f" moving {scene.direction_at(frame, 96, 64)} " in scene.caption(frame, 96, 64)


def test_a_caption_is_a_sentence_of_known_words():
    assert world.Scene("orange", "ring", "left", "slowly", "gray", 0.13, 0.5, 0.5).caption() == (
        "an orange ring moving left slowly on a gray background"
    )
    assert all(set(scene.caption().split()) <= set(world.WORDS) for scene in scenes(100))


def test_held_out_combinations_are_drawn_only_when_asked_for():
    assert not {(s.color, s.shape) for s in scenes(500)} & set(world.HELD_OUT)
    assert {(s.color, s.shape) for s in scenes(50, held_out=True)} == set(world.HELD_OUT)


def test_all_that_there_is_is_drawn():
    drawn = scenes(500)
    assert len({(s.color, s.shape) for s in drawn}) == len(world.COLORS) * len(world.SHAPES) - len(world.HELD_OUT)
    assert {s.direction for s in drawn} == set(world.DIRECTIONS)
    assert {s.speed for s in drawn} == set(world.SPEEDS)
    assert {s.background for s in drawn} == set(world.BACKGROUNDS)


@pytest.mark.parametrize("size", [32, 64, 128])
def test_a_straight_clip_meets_no_wall(size):
    for scene in scenes(200, straight=17):
        steps = np.diff(scene.centers(17, size, size), axis=0)
        assert np.allclose(steps, steps[0])
        assert np.array_equal(np.sign(steps[0].round(6)), world.DIRECTIONS[scene.direction])


def test_the_corner_is_ground_and_the_middle_of_a_shape_its_color():
    scene = world.Scene("blue", "square", "up", "quickly", "white", 0.15, 0.4, 0.6)
    (frame,) = world.render(scene, 1)
    x, y = scene.centers(1)[0].astype(int)
    assert tuple(frame[0, 0]) == world.BACKGROUNDS["white"] and tuple(frame[y, x]) == world.COLORS["blue"]
