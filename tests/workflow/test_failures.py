"""One bad clip in a shard of sixteen: fifteen films, one clear failure, and only that clip is made again."""

import re

import pytest

from stages.runtime.artifacts import read_failure
from tests import zoo
from tests.workflow.conftest import ONE_WORKER, TINY, Project, frame_count

CLIPS = [f"clip{number:02d}" for number in range(16)]
BAD = "clip06"
REASON = "videos/clip06.mp4 is not a readable video"


def clips(**own) -> list[dict]:
    """A row per clip, with `own` options of clips by id."""
    return [{"id": c, "video": f"videos/{c}.mp4", "prompt": f"prompt of {c}", **own.get(c, {})} for c in CLIPS]


def run(rows) -> dict:
    return {"recipe": "v2v", "clips": rows, "model": "one-expert", "options": TINY}


def counts(report: str) -> tuple[int, ...]:
    """Items made, reused and failed, by the last word of a run."""
    return tuple(map(int, re.search(r"items: (\d+) made, (\d+) reused from the store, (\d+) failed", report).groups()))


def film(project, clip):
    return project.path(f"results/batch/{clip}.mp4")


@pytest.fixture(scope="module")
def first(project):
    """What the first run says; the index of one video never arrived."""
    folder = project.path("videos")
    folder.mkdir()
    for number, clip in enumerate(CLIPS):
        zoo.plain(folder, f"{clip}.mp4", frames=5 + number, size=(64, 48))
    video = folder / f"{BAD}.mp4"
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    project.configure(batch=run(clips()))
    return project.run(*ONE_WORKER, fails=1)


@pytest.fixture(scope="module")
def mended(project, first):
    """What the run after the repair says."""
    zoo.plain(project.path("videos"), f"{BAD}.mp4", frames=30, size=(64, 48))
    return project.run(*ONE_WORKER)


def test_the_neighbours_get_their_films(project, first):
    made = [clip for clip in CLIPS if film(project, clip).exists()]
    assert made == [clip for clip in CLIPS if clip != BAD]
    assert {frame_count(film(project, clip)) for clip in made} == {5}


def test_the_failure_travels_in_the_place_of_the_work(project, first):
    names = ("frames.json", "encoded.safetensors", "latents.safetensors", "clip.json")
    failures = [read_failure(project.path(f"results/batch/steps/{BAD}/{name}")) for name in names]
    assert {failure.reason.partition(" (")[0] for failure in failures} == {REASON}
    assert {failure.stage for failure in failures} == {"extract_frames"}


def test_sixteen_clips_were_one_shard(project, first):
    assert project.read("batch/plan.json")["shards"] == [CLIPS]


def test_the_last_table_names_film_stage_reason_and_remedy(first):
    table = first[first.index("items: ") :].splitlines()
    assert counts(first) == (5 * 15 + 16, 0, 1)  # its prompt is taken; the later stages only pass the failure on
    assert re.split(r"\s{2,}", table[1]) == ["film or job", "stage", "reason and remedy"]
    found, stage, reason = re.split(r"\s{2,}", table[2], maxsplit=2)
    assert (found, stage) == (f"results/batch/{BAD}.mp4", "extract_frames")
    assert reason.startswith(REASON) and "give a whole mp4" in reason
    assert "Traceback" not in first


def test_after_the_repair_only_that_clip_is_made(project, mended):
    assert counts(mended) == (6, 0, 0)
    made = [line["item"] for line in project.log("batch", "generate.000") if line.get("status") == "made"]
    assert made == [BAD]
    assert frame_count(film(project, BAD)) == 5


def test_after_that_there_is_nothing_to_do(project, mended):
    files = project.files()
    assert "Nothing to be done" in project.run(*ONE_WORKER)
    assert project.files() == files


def test_other_steps_for_one_clip_go_through_generate_and_what_follows(project, mended):
    project.configure(batch=run(clips(clip03={"steps": 3})))
    report = project.run(*ONE_WORKER)
    assert not [stage for stage in ("extract_frames", "caption_vlm", "encode") if f"batch.{stage}.000" in report]
    assert counts(report) == (3, 0, 0)


@pytest.fixture
def neighbour(project, mended, tmp_path):
    """Another project that uses the first one's store: a clip that the first one has, and one without its video."""
    other = Project(tmp_path, project.models)
    other.path("videos").symlink_to(project.path("videos"))
    gone = {"id": "gone", "video": "videos/gone.mp4", "prompt": "prompt"}
    other.configure(store=str(project.path("results/store")), other=run([{**clips()[0], "id": "there"}, gone]))
    return other


def test_a_missing_video_stops_no_neighbour_and_a_film_can_be_asked_for_by_name(neighbour):
    report = neighbour.run(*ONE_WORKER, "results/other/there.mp4")
    assert counts(report) == (0, 6, 2)
    assert frame_count(neighbour.path("results/other/there.mp4")) == 5
    report = neighbour.run(*ONE_WORKER, fails=1)
    row = re.split(r"\s{2,}", report[report.index("items: ") :].splitlines()[2], maxsplit=2)
    assert row[:2] == ["results/other/gone.mp4", "extract_frames"]
    assert "videos/gone.mp4" in row[2]
    assert [path.name for path in neighbour.path("results/other").glob("*.mp4")] == ["there.mp4"]


def test_work_that_two_projects_share_looks_new_to_neither(project, neighbour):
    neighbour.run(*ONE_WORKER, "results/other/there.mp4")
    everything = ("--max-checksum-file-size", 0)  # large files are compared by time alone
    assert "Nothing to be done" in project.output("-n", *ONE_WORKER, *everything)
