"""The filmed look, which translations are to reach: the same scene with light and shadow."""

import numpy as np
import pytest

from stages.media.shapes import filmed, world
from stages.media.shapes.oracle import read

SCENE = world.Scene("red", "square", "right", "slowly", "gray", 0.15, 0.4, 0.5)


def test_the_oracle_reads_the_filmed_look():
    correct = 0
    for i in range(40):
        scene = world.sample(np.random.default_rng([5, i]))
        reading = read(filmed.film(scene, 17, 128, 128, grain=i))
        correct += all(
            getattr(reading, name) == getattr(scene, name) for name in ("color", "shape", "direction", "background")
        )
    assert correct >= 39


def test_filmed_light_comes_from_the_upper_left_and_casts_a_shadow():
    (frame,) = filmed.film(SCENE, 1).astype(int)
    x, y = np.rint(SCENE.centers(1)[0]).astype(int)
    inside, outside = round(0.6 * SCENE.radius * 64), round(1.1 * SCENE.radius * 64)
    assert frame[y - inside, x - inside, 0] > frame[y + inside, x + inside, 0] + 40
    assert frame[y + outside, x + outside].max() < frame[y - outside, x - outside].min() - 10


def test_filmed_grain_is_fixed_within_a_clip_and_differs_between_clips():
    first, second = (filmed.film(SCENE, 2, grain=seed).astype(int) for seed in (1, 2))
    assert np.array_equal(first[0, :16], first[1, :16])  # above the shape and its shadow
    assert np.abs(first[0, :16] - second[0, :16]).mean() > 4
    assert first[0, :16].std() > filmed.film(SCENE, 1)[0, :16].std()


@pytest.mark.parametrize("start", [0, 7])
def test_nearness_is_0_for_the_drawn_and_1_for_the_filmed_look(start):
    drawn, film = world.render(SCENE, 4, start=start), filmed.film(SCENE, 4, start=start)
    assert filmed.nearness(drawn, SCENE, start) == 0
    assert filmed.nearness(film, SCENE, start) == 1
    between = ((drawn.astype(int) + film) / 2).round().astype(np.uint8)
    assert filmed.nearness(between, SCENE, start) == pytest.approx(0.5, abs=0.05)
    assert filmed.nearness(filmed.film(SCENE, 4, start=start, grain=3), SCENE, start) == pytest.approx(1, abs=0.15)


def test_flicker_measures_changes_of_the_background():
    still = filmed.film(SCENE, 5, 128, 128, grain=4)
    assert filmed.flicker(still, SCENE) < 0.2
    noisy = np.clip(still + np.random.default_rng(0).normal(0, 5, still.shape), 0, 255).astype(np.uint8)
    # the mean difference of two normally distributed numbers
    assert filmed.flicker(noisy, SCENE) == pytest.approx(5 * 2 / np.sqrt(np.pi), rel=0.1)
    grains = np.stack([filmed.film(SCENE, 1, 128, 128, start=frame, grain=frame)[0] for frame in range(5)])
    assert filmed.flicker(grains, SCENE) > 4
    assert filmed.flicker(np.repeat(still[:1], 5, axis=0), SCENE) > filmed.flicker(still, SCENE)  # a shape that stands still
