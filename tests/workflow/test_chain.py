"""Chains: each link starts from the last frame of the one before, twice the same to the bit, and grows by new links only."""

import re

import pytest

from stages.runtime import artifacts
from tests import zoo
from tests.workflow.conftest import TINY, Project, ended, frame_count

F = TINY["frame_num"]
PROMPTS = ["a first 'thing'", "a second {thing}", "a third"]
STAGES = ("encode", "generate", "decode")


def configure(project, links, prompts):
    """Chains over a generated clip, and a real one where there are real clips, without and with the source in front."""
    clips = [{"id": "made", "video": "made.mp4", "prompts": prompts}]
    if zoo.MEDIA.exists():
        clips.append({"id": "real", "video": str(zoo.real_clip("clip-10s.mp4")), "prompt": "a street"})
    chain = {"recipe": "chain", "clips": clips, "model": "two-experts"}
    options = {**TINY, "links": links}
    project.configure(chain={**chain, "options": options}, front={**chain, "options": {**options, "source_first": True}})


@pytest.fixture(scope="module")
def twins(tmp_path_factory, models):
    """The same chains made in two folders at the same time."""
    twins = [Project(tmp_path_factory.mktemp(name), models) for name in ("one", "two")]
    for twin in twins:
        zoo.plain(twin.folder, "made.mp4", frames=9, size=(64, 48))
        configure(twin, 3, PROMPTS)
    for run in ("chain", "front"):
        clips = ["made", "real"] if zoo.MEDIA.exists() else ["made"]
        for process in [twin.start("--cores", 1, *(f"results/{run}/{clip}.mp4" for clip in clips)) for twin in twins]:
            ended(process)
    return twins


@pytest.fixture(scope="module")
def project(twins):
    return twins[0]


def link(project, number, run="chain", clip="made"):
    return project.path(f"results/{run}/{clip}/video_{number:02d}_{clip}.json")


def source_frames(video) -> int:
    """Frames of a video at the film's rate, as the ffmpeg program counts them."""
    return len(zoo.rgb_by_ffmpeg(video, (32, 32), "fps=16,scale=32:32"))


def test_the_links_are_joined_without_their_seams(project):
    assert frame_count(project.path("results/chain/made.mp4")) == F + 2 * (F - 1)
    assert frame_count(project.path("results/front/made.mp4")) == 9 + 3 * (F - 1)
    assert [frame_count(link(project, n).with_suffix(".mp4")) for n in (1, 2, 3)] == [F] * 3


def test_a_real_clip_is_continued(project):
    video = zoo.real_clip("clip-10s.mp4")
    assert frame_count(project.path("results/chain/real.mp4")) == F + 2 * (F - 1)
    assert source_frames(video) == 160
    assert frame_count(project.path("results/front/real.mp4")) == 160 + 3 * (F - 1)


def test_each_link_starts_from_the_last_frame_of_the_one_before(project):
    for number in (1, 2, 3):
        encoded = artifacts.read(
            project.path(f"results/chain/steps/made/link{number:02d}/encoded.safetensors"), ("encoded",)
        )
        record = encoded.provenance[-1]
        start = (
            "results/chain/steps/made/frames.json" if number == 1 else f"results/chain/made/video_{number - 1:02d}_made.json"
        )
        assert record["files"][0] == start
        kind = "frames" if number == 1 else "clip"
        assert record["inputs"]["image"] == [artifacts.read(project.path(start), (kind,)).digest]
        if number > 1:
            clip = artifacts.read(project.path(start), ("clip",))
            assert clip.members[".last.png"]["sha256"] == artifacts.file_digest(clip.path.with_suffix(".last.png"))


def test_link_n_has_seed_plus_n_and_its_own_prompt(project):
    fields = [artifacts.read(link(project, number), ("clip",)).fields for number in (1, 2, 3)]
    assert [(f["seed"], f["prompt"]) for f in fields] == [(TINY["seed"] + n, prompt) for n, prompt in enumerate(PROMPTS)]


def test_the_log_of_prompts_is_in_order(project):
    log = project.path("results/chain/made/prompts_log.txt").read_text()
    assert re.findall(r"^prompt: (.*)$", log, re.M) == PROMPTS
    assert re.findall(r"^seed: (.*)$", log, re.M) == ["7", "8", "9"]
    assert re.findall(r"^source: (.*)$", log, re.M) == ["made.mp4", "video_01_made.mp4", "video_02_made.mp4"]
    assert re.findall(r"^link \d: (.*)$", log, re.M) == [f"video_0{n}_made.mp4" for n in (1, 2, 3)]


def test_the_same_run_in_another_folder_gives_the_same_films_to_the_bit(twins):
    films = [sorted(twin.path("results").rglob("*.mp4")) for twin in twins]
    names = [[film.relative_to(twin.folder) for film in found] for twin, found in zip(twins, films)]
    assert names[0] == names[1] and len(names[0]) >= 2 * 4
    assert [film.read_bytes() for film in films[0]] == [film.read_bytes() for film in films[1]]


def test_a_shard_loads_each_model_once(project):
    shards = project.shards("chain")
    assert {name.split(".")[0] for name in shards} >= set(STAGES)
    loads = {"encode": 1, "generate": 2, "decode": 1}  # two experts
    assert all(shard["model_loads"] == loads.get(name.split(".")[0], 0) for name, shard in shards.items())


def test_a_second_run_over_the_same_clips_loads_nothing(project):
    assert {shard["model_loads"] for shard in project.shards("front").values()} == {0}
    assert {shard["made"] for shard in project.shards("front").values()} == {0}


def test_a_longer_chain_makes_the_new_link_and_the_film(project):
    before = {number: link(project, number).stat().st_ino for number in (1, 2, 3)}
    configure(project, 4, [*PROMPTS, "a fourth"])
    report = project.run("--cores", 1, "results/chain/made.mp4")
    clips = 1 + zoo.MEDIA.exists()  # one prompt serves all links of the real one
    jobs = set(re.findall(r"rule chain\.(\w+\.link\d\d)\.000:", report))
    assert jobs == {f"{stage}.link04" for stage in ("caption_vlm", *STAGES)}
    assert f"items: {1 + 3 * clips + 1} made, 0 reused from the store, 0 failed" in report
    assert frame_count(project.path("results/chain/made.mp4")) == F + 3 * (F - 1)
    assert {number: link(project, number).stat().st_ino for number in (1, 2, 3)} == before
