"""Shapes world draws what its scenes and captions state."""

import numpy as np
import pytest

from stages.media.shapes import world


def scenes(count, seed=5, **options):
    return [world.sample(np.random.default_rng([seed, i]), **options) for i in range(count)]


def test_a_seed_determines_a_scene_and_a_scene_its_pixels():
    assert scenes(5) == scenes(5)
    assert scenes(5) != scenes(5, seed=6)
    scene = scenes(1)[0]
    clip = world.render(scene, 40)
    assert np.array_equal(clip, world.render(scene, 40))
    assert np.array_equal(clip[16:33], world.render(scene, 17, start=16))


@pytest.mark.parametrize("width, height, frames", [(64, 64, 17), (32, 32, 1), (96, 64, 5), (33, 50, 2), (128, 128, 81)])
def test_a_rendered_clip_may_have_any_size_and_length(width, height, frames):
    video = world.render(scenes(1)[0], frames, width, height)
    assert video.shape == (frames, height, width, 3) and video.dtype == np.uint8


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (48, 128)])
def test_a_shape_stays_visible_for_a_chain_of_twelve(size):
    for scene in scenes(20):
        video = world.render(scene, 17 + 12 * 16, *size)
        visible_pixels = (abs(video.astype(int) - world.BACKGROUNDS[scene.background]).max(axis=-1) > 20).sum(axis=(1, 2))
        assert visible_pixels.min() > 0.85 * visible_pixels.max()  # the whole shape, at times in two pieces


@pytest.mark.parametrize("size", [(64, 64), (96, 64)])
def test_a_shape_moves_as_its_caption_says_without_jumps(size):
    for scene in scenes(50):
        steps = world.wrap(np.diff(scene.centers(17 + 12 * 16, *size), axis=0), np.array(size))
        direction = np.array(world.DIRECTIONS[scene.direction])
        assert np.allclose(steps, 64 * world.SPEEDS[scene.speed] * direction)
        assert f" moving {scene.direction} {scene.speed} " in scene.caption()


def test_a_shape_that_leaves_on_one_side_enters_on_the_other():
    middle = world.Scene("red", "square", "right", "quickly", "black", 0.15, 0.5, 0.5)
    border = world.Scene("red", "square", "right", "quickly", "black", 0.15, 1.0, 0.5)
    (clip,), (wrapped,) = world.render(middle, 1), world.render(border, 1)
    assert np.array_equal(np.roll(clip, 32, axis=1), wrapped)


def test_a_scene_caption_is_a_sentence_of_known_words():
    assert world.Scene("orange", "ring", "left", "slowly", "gray", 0.13, 0.5, 0.5).caption() == (
        "an orange ring moving left slowly on a gray background"
    )
    assert all(set(scene.caption().split()) <= set(world.WORDS) for scene in scenes(100))


def test_held_out_combinations_are_drawn_only_on_request():
    assert not {(s.color, s.shape) for s in scenes(500)} & set(world.HELD_OUT)
    assert {(s.color, s.shape) for s in scenes(50, held_out=True)} == set(world.HELD_OUT)


def test_every_combination_of_the_world_is_drawn():
    drawn = scenes(500)
    assert len({(s.color, s.shape) for s in drawn}) == len(world.COLORS) * len(world.SHAPES) - len(world.HELD_OUT)
    assert {s.direction for s in drawn} == set(world.DIRECTIONS)
    assert {s.speed for s in drawn} == set(world.SPEEDS)
    assert {s.background for s in drawn} == set(world.BACKGROUNDS)


@pytest.mark.parametrize("size", [32, 64, 128])
def test_inside_scenes_cross_no_border(size):
    for scene in scenes(200, inside=17):
        centers, reach = scene.centers(17, size, size), scene.radius * size
        assert (centers >= reach - 1e-6).all() and (centers <= size - reach + 1e-6).all()


def test_a_rendered_frame_has_the_colors_of_background_and_shape():
    scene = world.Scene("blue", "square", "up", "quickly", "white", 0.15, 0.4, 0.6)
    (frame,) = world.render(scene, 1)
    x, y = scene.centers(1)[0].astype(int)
    assert tuple(frame[0, 0]) == world.BACKGROUNDS["white"] and tuple(frame[y, x]) == world.COLORS["blue"]
