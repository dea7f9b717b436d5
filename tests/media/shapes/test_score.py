"""The scores of correct and wrong clips."""

import numpy as np
import pytest

from stages.media.shapes import score, world
from stages.media.shapes.score import Row

START = 16
SCENE = world.Scene("red", "square", "right", "slowly", "black", 0.15, 0.1, 0.5)


def clip(frames=17, start=START, size=64, **changed):
    return world.render(world.Scene(**{**vars(SCENE), **changed}), frames, size, size, start)


def correct(figures):
    return {name for name in ("color", "shape", "direction", "speed") if figures[name]}


@pytest.mark.parametrize("size", [32, 64, 128])
def test_score_of_a_perfect_continuation(size):
    figures = score.continuation(clip(size=size), SCENE, START)
    assert correct(figures) == {"color", "shape", "direction", "speed"}
    assert figures["psnr_db"] == score.MAX_PSNR and figures["gain_db"] > 60
    assert figures["end_point_px"] == figures["seam_px"] == 0


def test_every_rendered_clip_is_a_perfect_continuation_of_itself():
    count = 0
    for i in range(40):
        scene = world.sample(np.random.default_rng([21, i]))
        count += len(correct(score.continuation(world.render(scene, 17, start=16), scene, 16))) == 4
    assert count >= 39


def test_score_of_a_still_frame_has_no_gain():
    figures = score.continuation(clip()[:1].repeat(17, axis=0), SCENE, START)
    assert figures["gain_db"] == 0
    assert correct(figures) == {"color", "shape"}
    assert figures["seam_px"] == 0 and figures["end_point_px"] == pytest.approx(16, abs=0.6)


def test_score_of_another_color():
    assert correct(score.continuation(clip(color="blue"), SCENE, START)) == {"shape", "direction", "speed"}


def test_score_of_another_shape():
    assert correct(score.continuation(clip(shape="triangle"), SCENE, START)) == {"color", "direction", "speed"}


def test_score_of_the_opposite_direction():
    figures = score.continuation(clip()[::-1], SCENE, START)
    assert correct(figures) == {"color", "shape", "speed"}
    assert figures["seam_px"] == pytest.approx(16, abs=0.6)


def test_score_of_another_speed():
    figures = score.continuation(world.render(SCENE, 33, start=START)[::2], SCENE, START)
    assert correct(figures) == {"color", "shape", "direction"}
    assert figures["end_point_px"] == pytest.approx(16, abs=0.6)


def test_score_of_an_empty_image_has_the_largest_distance():
    figures = score.continuation(np.zeros((17, 64, 64, 3), np.uint8), SCENE, START)
    assert not correct(figures)
    assert figures["end_point_px"] == figures["seam_px"] == 64


def test_score_distances_wrap_around_the_borders():
    scene = world.Scene(**{**vars(SCENE), "x": 0.98})
    beside = world.Scene(**{**vars(SCENE), "x": 0.02})
    figures = score.continuation(world.render(beside, 17), scene, 0)
    assert figures["seam_px"] == pytest.approx(0.04 * 64, abs=0.6)


def test_score_psnr_is_that_of_the_formula():
    gray = np.full((2, 8, 8, 3), 100, np.uint8)
    assert score.psnr(gray, gray + 10) == pytest.approx(10 * np.log10(255**2 / 100))


def test_score_of_captions():
    true = SCENE.caption()
    assert all(score.caption(f" {true.capitalize()} \n", true).values())
    measures = score.caption("a red square moving left slowly on a black background.", true)
    assert [name for name, value in measures.items() if not value] == ["caption_exact", "caption_direction"]
    assert not any(score.caption("", true).values())


def test_score_of_a_chain_with_a_wrong_link():
    links = [clip(9), clip(9, START + 8, color="blue"), clip(9, START + 16)]
    figures = score.chain(links, SCENE, START, planned=4)
    assert [figures[f"link{k:02d}_color"] for k in (1, 2, 3, 4)] == [True, False, True, False]
    assert figures["link03_direction"] and not figures["link04_direction"]
    assert not figures["color_in_every_link"] and not figures["shape_in_every_link"]
    assert figures["seam_px"] == 0 and figures["end_point_px"] == 0
    assert score.chain(links[::2], SCENE, START, 2)["seam_px"] == pytest.approx(4, abs=0.5)  # 8 between the two
    whole = score.chain([clip(9), clip(9, START + 8)], SCENE, START, planned=2)
    assert whole["color_in_every_link"] and whole["shape_in_every_link"] and whole["direction_in_every_link"]


@pytest.mark.parametrize("step", [1, 2, 0])
def test_the_speed_after_a_seam_is_a_share_of_that_before(step):
    """The second link shows every frame, every second one, or one frame again and again, across the border of the frame."""
    film = clip(50, START)
    after = film[16 + step * np.arange(17)]
    figures = score.chain([film[:17], after], SCENE, START, planned=2)
    assert figures["seam_speed"] == pytest.approx(step, abs=0.1)


def test_a_link_that_repeats_several_frames_is_measured_from_the_first_new_one():
    film = clip(40, START)
    figures = score.chain([film[:17], film[12:29]], SCENE, START, planned=2, repeated=5)
    assert figures["seam_speed"] == pytest.approx(1, abs=0.1)


def test_a_shape_that_stood_still_has_no_speed_at_the_seam():
    film = clip(17, START)
    still = np.repeat(film[:1], 17, axis=0)
    assert "seam_speed" not in score.chain([still, film], SCENE, START, planned=2)


def test_score_of_an_empty_chain_is_wrong():
    figures = score.chain([], SCENE, START, planned=2)
    assert not any(figures.values()) and "seam_px" not in figures


def test_score_of_a_prompt_match():
    assert score.prompt_match(clip(), SCENE.caption())["color_shape_direction"]
    figures = score.prompt_match(clip(), "A blue square, moving right.")
    assert figures == {"color": False, "shape": True, "direction": True, "color_shape_direction": False}
    assert score.missing_clip("a blue square") == {"color": False, "shape": False, "color_shape_direction": False}


def test_score_summary_by_group():
    rows = [
        Row("a", False, "", {"color": True, "end_point_px": 1.0}),
        Row("b", False, "", {"color": True, "end_point_px": 2.0}),
        Row("c", False, "", {"color": False, "end_point_px": 9.0}),
        Row("d", False, "no memory", {"color": False}),
        Row("e", True, "", {"color": True}),
    ]
    summary = score.summarize(rows)
    assert summary["seen"] == {"clips": 4, "failed": 1, "color": 0.5, "end_point_px": 4.0, "median_end_point_px": 2.0}
    assert summary["held_out"] == {"clips": 1, "failed": 0, "color": 1.0}
    assert [*score.summarize(rows[:1])] == ["seen"]
