"""One bad clip in a shard of sixteen: fifteen films, one clear failure, and only that clip is made again."""

import re

import pytest

from stages.runtime.artifacts import read_failure
from tests import zoo
from tests.workflow.conftest import ONE_WORKER, TINY, Project, frame_count, item_counts

CLIPS = [f"clip{number:02d}" for number in range(16)]
BAD = "clip06"
REASON = "videos/clip06.mp4 is not a readable video"


def clip_rows(**overrides) -> list[dict]:
    """A row per clip, with `overrides` of options by clip id."""
    return [{"id": c, "video": f"videos/{c}.mp4", "prompt": f"prompt of {c}", **overrides.get(c, {})} for c in CLIPS]


def make_run(rows) -> dict:
    return {"recipe": "v2v", "clips": rows, "model": "one-expert", "options": TINY}


def film(project, clip):
    return project.path(f"results/batch/{clip}.mp4")


@pytest.fixture(scope="module")
def first_report(project):
    """Standard error of the first run, in which the end of one video is missing."""
    folder = project.path("videos")
    folder.mkdir()
    for number, clip in enumerate(CLIPS):
        zoo.plain(folder, f"{clip}.mp4", frames=5 + number, size=(64, 48))
    video = folder / f"{BAD}.mp4"
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    project.configure(batch=make_run(clip_rows()))
    return project.run(*ONE_WORKER, fails=1)


@pytest.fixture(scope="module")
def second_report(project, first_report):
    """Standard error of the run after the video was repaired."""
    zoo.plain(project.path("videos"), f"{BAD}.mp4", frames=30, size=(64, 48))
    return project.run(*ONE_WORKER)


def test_a_failed_clip_does_not_stop_the_others(project, first_report):
    made_clips = [clip for clip in CLIPS if film(project, clip).exists()]
    assert made_clips == [clip for clip in CLIPS if clip != BAD]
    assert {frame_count(film(project, clip)) for clip in made_clips} == {5}


def test_later_stages_pass_a_failure_on(project, first_report):
    names = ("frames.json", "encoded.safetensors", "latents.safetensors", "clip.json")
    failures = [read_failure(project.path(f"results/batch/steps/{BAD}/{name}")) for name in names]
    assert {failure.reason.partition(" (")[0] for failure in failures} == {REASON}
    assert {failure.stage for failure in failures} == {"extract_frames"}


def test_sixteen_clips_are_one_shard(project, first_report):
    assert project.read("batch/plan.json")["shards"] == [CLIPS]


def test_the_summary_names_film_stage_reason_and_remedy_of_a_failure(first_report):
    table = first_report[first_report.index("items: ") :].splitlines()
    # the given prompt of the bad clip is an item too; its later stages pass the failure on
    assert item_counts(first_report) == (5 * 15 + 16, 0, 1)
    assert re.split(r"\s{2,}", table[1]) == ["film or job", "stage", "reason and remedy"]
    target, stage, reason = re.split(r"\s{2,}", table[2], maxsplit=2)
    assert (target, stage) == (f"results/batch/{BAD}.mp4", "extract_frames")
    assert reason.startswith(REASON) and "give a complete mp4" in reason
    assert "Traceback" not in first_report


def test_after_a_repair_only_the_failed_clip_is_made(project, second_report):
    assert item_counts(second_report) == (6, 0, 0)
    generated = [line["item"] for line in project.log("batch", "generate.000") if line.get("status") == "made"]
    assert generated == [BAD]
    assert frame_count(film(project, BAD)) == 5


def test_after_the_repair_nothing_is_to_be_done(project, second_report):
    files = project.files()
    assert "Nothing to be done" in project.run(*ONE_WORKER)
    assert project.files() == files


def test_changed_steps_of_one_clip_run_generate_and_later_stages(project, second_report):
    project.configure(batch=make_run(clip_rows(clip03={"steps": 3})))
    report = project.run(*ONE_WORKER)
    assert not [stage for stage in ("extract_frames", "caption_vlm", "encode") if f"batch.{stage}.000" in report]
    assert item_counts(report) == (3, 0, 0)


@pytest.fixture
def second_project(project, second_report, tmp_path):
    """Another project that uses the first one's store: a clip that the first one has, and a clip whose video is missing."""
    other = Project(tmp_path, project.models)
    other.path("videos").symlink_to(project.path("videos"))
    gone = {"id": "gone", "video": "videos/gone.mp4", "prompt": "prompt"}
    other.configure(store=str(project.path("results/store")), other=make_run([{**clip_rows()[0], "id": "there"}, gone]))
    return other


def test_a_missing_video_stops_no_other_clip(second_project):
    report = second_project.run(*ONE_WORKER, "results/other/there.mp4")
    assert item_counts(report) == (0, 6, 2)
    assert frame_count(second_project.path("results/other/there.mp4")) == 5
    report = second_project.run(*ONE_WORKER, fails=1)
    row = re.split(r"\s{2,}", report[report.index("items: ") :].splitlines()[2], maxsplit=2)
    assert row[:2] == ["results/other/gone.mp4", "extract_frames"]
    assert "videos/gone.mp4" in row[2]
    assert [path.name for path in second_project.path("results/other").glob("*.mp4")] == ["there.mp4"]


def test_shared_store_entries_outdate_neither_project(project, second_project):
    second_project.run(*ONE_WORKER, "results/other/there.mp4")
    everything = ("--max-checksum-file-size", 0)  # large files are compared by time alone
    assert "Nothing to be done" in project.output("-n", *ONE_WORKER, *everything)
