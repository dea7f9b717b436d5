"""The engines on scenes whose translated frames are all known."""

import stat

import cv2
import numpy as np
import pytest

from stages.media.propagate.engines import Engine
from stages.media.propagate.patches import Pair
from stages.media.write import write_png
from stages.runtime.errors import ItemError, JobError
from tests.media.propagate.scenes import layered_scene, panning, psnr, restyle


def propagate_frames(engine, frames, **options):
    return [result.image for result in Engine(engine, **options).propagate(Pair(frames[0], restyle(frames[0])), frames[1:])]


@pytest.mark.parametrize("engine", ["warp", "hybrid", "patch", "auto"])
def test_engines_keep_the_key_in_a_still_clip(engine):
    frame = panning(1)[0]
    for image in propagate_frames(engine, [frame] * 3):
        assert np.array_equal(image, restyle(frame))


def test_patches_fill_disoccluded_regions_better_than_warping():
    frames = layered_scene(6)
    quality = {
        engine: [psnr(image, restyle(frame)) for image, frame in zip(propagate_frames(engine, frames), frames[1:])]
        for engine in ("warp", "hybrid", "patch", "auto")
    }
    assert all(hybrid >= warp for hybrid, warp in zip(quality["hybrid"], quality["warp"]))
    assert quality["hybrid"][-1] >= quality["warp"][-1] + 2
    for auto, warp, patch in zip(quality["auto"], quality["warp"], quality["patch"]):
        assert auto >= max(warp, patch) - 0.2


def test_auto_engine_uses_patches_above_its_threshold():
    frames = layered_scene(3)
    hybrid, never, always = (
        propagate_frames("hybrid", frames),
        propagate_frames("auto", frames, full_above=1.0),
        propagate_frames("auto", frames, full_above=0.0),
    )
    assert np.array_equal(hybrid, never) and not np.array_equal(hybrid, always)


def test_engine_error_is_large_where_the_flow_is_wrong():
    frames = layered_scene(4)
    *_, last = Engine("warp").propagate(Pair(frames[0], restyle(frames[0])), frames[1:])
    wrong = np.abs(last.image.astype(int) - restyle(frames[3])).mean(axis=-1) > 30
    assert last.error[wrong].mean() > 10 * last.error[~wrong].mean()


def test_engine_result_does_not_depend_on_the_number_of_threads():
    frames, threads, results = layered_scene(4), cv2.getNumThreads(), []
    for count in (1, 2):
        cv2.setNumThreads(count)
        results.append(propagate_frames("auto", frames, full_above=0.05))
    cv2.setNumThreads(threads)
    assert np.array_equal(*results)


# --------------------------------------------------------------------------------------------------------------- ebsynth


@pytest.fixture
def ebsynth(tmp_path, monkeypatch):
    """A function that installs a script as the program ebsynth on an otherwise empty PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def install(script: str) -> None:
        program = tmp_path / "ebsynth"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    return install


def test_ebsynth_is_called_with_its_guides_and_its_image_is_used(ebsynth, tmp_path):
    frames = panning(2)
    # the last argument is the output image; the 5th and 6th are the colour guide and its target
    ebsynth(
        f'echo "$@" > {tmp_path}/words\nwhile [ $# -gt 1 ]; do last=$2; shift; done\n/bin/cp {tmp_path}/made.png "$last"'
    )
    expected = panning(3)[2]
    write_png(tmp_path / "made.png", expected)
    (image,) = propagate_frames("ebsynth", frames)
    assert np.array_equal(image, expected)
    argv = (tmp_path / "words").read_text().split()
    assert argv[0] == "-style" and argv.count("-guide") == 2 and argv[argv.index("-weight") + 1] == "6.0"
    assert argv[argv.index("-searchvoteiters") + 1] == "3" and argv[argv.index("-patchmatchiters") + 1] == "2"


def test_a_failing_ebsynth_is_reported(ebsynth):
    ebsynth("echo no such device >&2; exit 3")
    with pytest.raises(ItemError, match="ebsynth failed with exit code 3: no such device"):
        propagate_frames("ebsynth", panning(2))
    ebsynth("exit 0")
    with pytest.raises(ItemError, match="exit code 0: no message"):
        propagate_frames("ebsynth", panning(2))


def test_ebsynth_engine_without_the_program_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(JobError, match="no program ebsynth on the PATH"):
        propagate_frames("ebsynth", panning(2))
