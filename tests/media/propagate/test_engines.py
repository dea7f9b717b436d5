"""The engines side by side, on scenes whose every translated frame is known."""

import stat

import cv2
import numpy as np
import pytest

from stages.media.propagate.engines import Engine
from stages.media.propagate.patches import Pair
from stages.media.write import write_png
from stages.runtime.errors import ItemError, JobError
from tests.media.propagate.scenes import layered, panning, psnr, toned


def carried(engine, frames, **options):
    return [made.picture for made in Engine(engine, **options).carry(Pair(frames[0], toned(frames[0])), frames[1:])]


@pytest.mark.parametrize("engine", ["warp", "hybrid", "patch", "auto"])
def test_a_still_clip_keeps_the_key(engine):
    frame = panning(1)[0]
    for picture in carried(engine, [frame] * 3):
        assert np.array_equal(picture, toned(frame))


def test_patches_fill_what_comes_into_sight():
    frames = layered(6)
    quality = {
        engine: [psnr(made, toned(frame)) for made, frame in zip(carried(engine, frames), frames[1:])]
        for engine in ("warp", "hybrid", "patch", "auto")
    }
    assert all(hybrid >= warp for hybrid, warp in zip(quality["hybrid"], quality["warp"]))
    assert quality["hybrid"][-1] >= quality["warp"][-1] + 2
    for auto, warp, patch in zip(quality["auto"], quality["warp"], quality["patch"]):
        assert auto >= max(warp, patch) - 0.2


def test_auto_goes_over_to_patches_above_its_share():
    frames = layered(3)
    hybrid, never, always = (
        carried("hybrid", frames),
        carried("auto", frames, full_above=1.0),
        carried("auto", frames, full_above=0.0),
    )
    assert np.array_equal(hybrid, never) and not np.array_equal(hybrid, always)


def test_the_error_tells_where_the_flow_is_wrong():
    frames = layered(4)
    *_, made = Engine("warp").carry(Pair(frames[0], toned(frames[0])), frames[1:])
    wrong = np.abs(made.picture.astype(int) - toned(frames[3])).mean(axis=-1) > 30
    assert made.error[wrong].mean() > 10 * made.error[~wrong].mean()


def test_the_result_is_the_same_on_any_number_of_threads():
    frames, threads, made = layered(4), cv2.getNumThreads(), []
    for count in (1, 2):
        cv2.setNumThreads(count)
        made.append(carried("auto", frames, full_above=0.05))
    cv2.setNumThreads(threads)
    assert np.array_equal(*made)


# -------------------------------------------------------------------------------------------------- a program of others


@pytest.fixture
def ebsynth(tmp_path, monkeypatch):
    """Puts a program called ebsynth on an otherwise empty PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def put(script: str) -> None:
        program = tmp_path / "ebsynth"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    return put


def test_ebsynth_gets_its_guides_and_its_picture_is_taken(ebsynth, tmp_path):
    frames = panning(2)
    # The picture to make is the last word; the 5th and the 6th are the colour guide and its target.
    ebsynth(
        f'echo "$@" > {tmp_path}/words\nwhile [ $# -gt 1 ]; do last=$2; shift; done\n/bin/cp {tmp_path}/made.png "$last"'
    )
    made = panning(3)[2]
    write_png(tmp_path / "made.png", made)
    (picture,) = carried("ebsynth", frames)
    assert np.array_equal(picture, made)
    words = (tmp_path / "words").read_text().split()
    assert words[0] == "-style" and words.count("-guide") == 2 and words[words.index("-weight") + 1] == "6.0"
    assert words[words.index("-searchvoteiters") + 1] == "3" and words[words.index("-patchmatchiters") + 1] == "2"


def test_a_failing_ebsynth_is_heard(ebsynth):
    ebsynth("echo no such device >&2; exit 3")
    with pytest.raises(ItemError, match="ebsynth failed with exit code 3: no such device"):
        carried("ebsynth", panning(2))
    ebsynth("exit 0")
    with pytest.raises(ItemError, match="exit code 0: it says nothing"):
        carried("ebsynth", panning(2))


def test_without_ebsynth_on_the_path(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(JobError, match="no program ebsynth on the PATH"):
        carried("ebsynth", panning(2))
