"""Comparisons of figures film by film."""

import numpy as np
import pytest

from stages.media.scores import compare as comparing
from stages.media.scores.compare import compare, compare_all, interval, student

DRAWS = {
    "normal": lambda generator, count: generator.normal(0.5, 2, count),
    "uniform": lambda generator, count: generator.uniform(-1, 2, count),
    "yes or no": lambda generator, count: (
        generator.binomial(1, 0.75, count) - generator.binomial(1, 0.25, count).astype(float)
    ),
}


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("count", [12, 40])
def test_the_interval_covers_a_known_difference_in_95_percent_of_simulated_runs(monkeypatch, draw, count):
    monkeypatch.setattr(comparing, "RESAMPLES", 1000)
    generator = np.random.default_rng(2)
    intervals = [interval(DRAWS[draw](generator, count)) for _ in range(2000)]
    assert 0.93 <= np.mean([low <= 0.5 <= high for low, high in intervals]) <= 0.97


def test_quantiles_of_student_are_those_of_the_tables():
    assert [student(0.975, freedom) for freedom in (4, 9, 29)] == pytest.approx([2.776, 2.262, 2.045], abs=1e-3)


def test_the_same_figures_give_the_same_interval_in_any_number_of_batches(monkeypatch):
    differences = np.random.default_rng(0).normal(1, 1, 30)
    low, high = interval(differences)
    assert interval(differences) == (low, high) and low < differences.mean() < high
    monkeypatch.setattr(comparing, "BATCH", 3000)
    assert interval(differences) == pytest.approx((low, high), abs=0.05)


def test_wins_follow_the_direction_that_is_better():
    first, second = [1.0, 2.0, 3.0, 4.0], [0.5, 2.0, 2.0, 5.0]
    lower = compare("flicker.warping_error", first, second)
    assert (lower.wins, lower.ties, lower.losses) == (2, 1, 1) and lower.better == "lower"
    higher = compare("motion.smoothness", first, second)
    assert (higher.wins, higher.ties, higher.losses) == (1, 1, 2)
    assert higher.difference == pytest.approx(-0.125) and (higher.first, higher.second) == (2.5, 2.375)
    neither = compare("motion.magnitude", first, second)
    assert (neither.wins, neither.losses, neither.better) == (1, 2, "")


def test_only_films_that_both_runs_have_a_figure_of_are_compared():
    first = {"a": {"health.blur": 1.0, "health.black_at": None}, "b": {"health.blur": 2.0}, "c": {"health.blur": 9.0}}
    second = {"a": {"health.blur": 2.0, "health.black_at": 1.0}, "b": {"health.blur": 4.0, "shapes.color": 1.0}}
    (blur,) = compare_all(first, second)
    assert (blur.figure, blur.films, blur.difference) == ("health.blur", 2, 1.5)
    alone = compare("health.blur", [1.0], [2.0])
    assert alone.low is None and not alone.is_clear
