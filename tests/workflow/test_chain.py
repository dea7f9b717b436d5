"""Chains: each link starts from the last frame of the previous one, one job or many make equal films, only new links run."""

import re

import pytest

from stages.media.marks import COMPOSITE, MADE, read_marks
from stages.runtime import artifacts
from tests import zoo
from tests.tiny import dynamicrafter
from tests.workflow.conftest import TINY, Project, finish, frame_count

F = TINY["frame_num"]
PROMPTS = ["a first 'thing'", "a second {thing}", "a third"]
STAGES = ("encode", "generate", "decode")


def configure(project, links, prompts, fuse):
    """Chains over a generated clip, and a real one if real clips are present, without and with the source in front."""
    clips = [{"id": "made", "video": "made.mp4", "prompts": prompts}]
    if zoo.MEDIA.exists():
        clips.append({"id": "real", "video": str(zoo.real_clip("clip-10s.mp4")), "prompt": "a street"})
    chain = {"recipe": "chain", "clips": clips, "model": "two-experts", "fuse": fuse}
    options = {**TINY, "fit": "crop", "links": links}  # every film is 32x32
    project.configure(chain={**chain, "options": options}, front={**chain, "options": {**options, "source_first": True}})


@pytest.fixture(scope="module")
def twins(tmp_path_factory, models):
    """Two projects in which the same chains were run at the same time: a job per stage of each link, and fused jobs."""
    twins = [Project(tmp_path_factory.mktemp(name), models) for name in ("one", "two")]
    for twin, fuse in zip(twins, (False, True)):
        zoo.plain(twin.folder, "made.mp4", frames=9, size=(64, 48))
        configure(twin, 3, PROMPTS, fuse)
    for run in ("chain", "front"):
        clips = ["made", "real"] if zoo.MEDIA.exists() else ["made"]
        for process in [twin.start("--cores", 1, *(f"results/{run}/{clip}.mp4" for clip in clips)) for twin in twins]:
            finish(process)
    return twins


@pytest.fixture(scope="module")
def project(twins):
    """The project with a job per stage of each link."""
    return twins[0]


@pytest.fixture(scope="module")
def fused(twins):
    """The project with fused jobs."""
    return twins[1]


def link(project, number, run="chain", clip="made"):
    return project.path(f"results/{run}/{clip}/video_{number:02d}_{clip}.json")


def source_frames(video) -> int:
    """Number of frames of a video at the film's rate, by the program ffmpeg."""
    return len(zoo.rgb_by_ffmpeg(video, (32, 32), "fps=16,scale=32:32"))


def test_chain_links_are_joined_without_repeated_frames(project):
    assert frame_count(project.path("results/chain/made.mp4")) == F + 2 * (F - 1)
    assert frame_count(project.path("results/front/made.mp4")) == 9 + 3 * (F - 1)
    assert [frame_count(link(project, n).with_suffix(".mp4")) for n in (1, 2, 3)] == [F] * 3


def test_films_and_links_of_chains_say_what_made_them(project):
    chain, front = (read_marks(project.path(f"results/{run}/made.mp4")) for run in ("chain", "front"))
    assert chain.prompt == front.prompt == tuple(PROMPTS) and chain.seed == (7, 8, 9)
    assert chain.model == ("wan 14b",) and (chain.source, front.source) == (MADE, COMPOSITE)
    second = read_marks(link(project, 2).with_suffix(".mp4"))
    assert (second.prompt, second.seed, second.source) == ((PROMPTS[1],), (8,), MADE)


def test_chain_continues_a_real_clip(project):
    video = zoo.real_clip("clip-10s.mp4")
    assert frame_count(project.path("results/chain/real.mp4")) == F + 2 * (F - 1)
    assert source_frames(video) == 160
    assert frame_count(project.path("results/front/real.mp4")) == 160 + 3 * (F - 1)


def test_each_chain_link_starts_from_the_last_frame_of_the_previous_one(project):
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


def test_chain_link_n_has_seed_plus_n_and_its_own_prompt(project):
    fields = [artifacts.read(link(project, number), ("clip",)).fields for number in (1, 2, 3)]
    assert [(f["seed"], f["prompt"]) for f in fields] == [(TINY["seed"] + n, prompt) for n, prompt in enumerate(PROMPTS)]


def test_prompts_log_of_a_chain_is_in_order(project):
    log = project.path("results/chain/made/prompts_log.txt").read_text()
    assert re.findall(r"^prompt: (.*)$", log, re.M) == PROMPTS
    assert re.findall(r"^seed: (.*)$", log, re.M) == ["7", "8", "9"]
    assert re.findall(r"^source: (.*)$", log, re.M) == ["made.mp4", "video_01_made.mp4", "video_02_made.mp4"]
    assert re.findall(r"^link \d: (.*)$", log, re.M) == [f"video_0{n}_made.mp4" for n in (1, 2, 3)]


def test_one_job_and_a_job_per_stage_give_identical_films_and_keys(twins):
    films = [sorted(twin.path("results").rglob("*.mp4")) for twin in twins]
    names = [[film.relative_to(twin.folder) for film in paths] for twin, paths in zip(twins, films)]
    assert names[0] == names[1] and len(names[0]) >= 2 * 4
    assert [film.read_bytes() for film in films[0]] == [film.read_bytes() for film in films[1]]
    keys = [{path.name for path in twin.path("results/store").glob("??/*")} for twin in twins]
    assert keys[0] == keys[1] and keys[0]


def test_a_fused_chain_is_one_job_that_loads_each_model_once(fused):
    assert list(fused.shards("chain")) == ["fused.000"]
    events = fused.log("chain", "fused.000")
    steps = [event["stage"] for event in events if event["event"] == "step"]
    assert steps == ["extract_frames", *(("caption_vlm", *STAGES) * 3)]
    loads = [event["component"] for event in events if event["event"] == "load"]
    assert sorted(loads) == ["text_encoder", "transformer", "transformer_2", "vae"]


def test_a_chain_shard_loads_each_model_once(project):
    shards = project.shards("chain")
    assert {name.split(".")[0] for name in shards} >= set(STAGES)
    loads = {"encode": 2, "generate": 2, "decode": 1}  # text encoder and VAE, two experts
    assert all(shard["model_loads"] == loads.get(name.split(".")[0], 0) for name, shard in shards.items())


def test_a_second_chain_over_the_same_clips_loads_no_model(project):
    assert {shard["model_loads"] for shard in project.shards("front").values()} == {0}
    assert {shard["made"] for shard in project.shards("front").values()} == {0}


def test_deleted_and_edited_results_of_a_chain_are_restored(project):
    folder = project.path("results/chain/made")
    names = ["video_01_made.mp4", "video_02_made.json", "video_03_made.mp4", "prompts_log.txt"]
    before = {name: (folder / name).read_bytes() for name in names}
    for name in names[:3]:
        (folder / name).unlink()
    assert "items: 0 made, 3 reused from the store" in project.run("--cores", 1, "chain", "--until", "chain.decode")
    (folder / "prompts_log.txt").unlink()
    (folder / "video_03_made.mp4").write_bytes(b"edited")
    stderr = project.run("--cores", 1, "chain")
    assert "results/chain/made/video_03_made.mp4 was changed after it was made, and is made again" in stderr
    assert {name: (folder / name).read_bytes() for name in names} == before
    lossless = (folder / "video_01_made.mkv").rename(project.path("away.mkv"))  # not a result: only other stages need it
    assert "Nothing to be done" in project.run("--cores", 1, "chain")
    lossless.rename(folder / "video_01_made.mkv")


def test_a_longer_chain_makes_only_the_new_link_and_the_film(project):
    before = {number: link(project, number).stat().st_ino for number in (1, 2, 3)}
    configure(project, 4, [*PROMPTS, "a fourth"], fuse=False)
    report = project.run("--cores", 1, "results/chain/made.mp4")
    clips = 1 + zoo.MEDIA.exists()  # one prompt serves all links of the real one
    jobs = set(re.findall(r"rule chain\.(\w+\.link\d\d)\.000:", report))
    assert jobs == {f"{stage}.link04" for stage in ("caption_vlm", *STAGES)}
    assert f"items: {1 + 3 * clips + 1} made, 0 reused from the store, 0 failed" in report
    assert frame_count(project.path("results/chain/made.mp4")) == F + 3 * (F - 1)
    assert {number: link(project, number).stat().st_ino for number in (1, 2, 3)} == before


def test_a_longer_fused_chain_makes_only_the_new_link(fused):
    before = {number: link(fused, number).stat().st_ino for number in (1, 2, 3)}
    configure(fused, 4, [*PROMPTS, "a fourth"], fuse=True)
    report = fused.run("--cores", 1, "results/chain/made.mp4")
    assert [event["stage"] for event in fused.log("chain", "fused.000") if event["event"] == "step"] == [
        "caption_vlm",
        *STAGES,
    ]
    clips = 1 + zoo.MEDIA.exists()  # one prompt serves all links of the real one
    assert f"items: {1 + 3 * clips + 1} made, 0 reused from the store, 0 failed" in report
    assert frame_count(fused.path("results/chain/made.mp4")) == F + 3 * (F - 1)
    assert {number: link(fused, number).stat().st_ino for number in (1, 2, 3)} == before


def test_an_image_to_video_family_makes_chains(tmp_path, models):
    """The second link equals the clip that recipe dynamicrafter makes of the first link's last frame."""
    weights = dynamicrafter.make(tmp_path / "weights")
    crafter = {"family": "dynamicrafter", "path": str(weights), "dtype": "float32", "sizes": ["64*64"]}
    project = Project(tmp_path / "project", {"crafter": crafter})
    zoo.plain(project.folder, "made.mp4", frames=9, size=(96, 64))
    options = {"size": "64*64", "video_length": 4, "num_inference_steps": 2}
    clip = {"id": "made", "video": "made.mp4", "prompt": "a kite"}
    chain = {"recipe": "chain", "clips": [clip], "model": "crafter", "options": {**options, "links": 2, "seed": 7}}
    project.configure(chain=chain)
    project.run("chain", "--cores", 1)
    assert frame_count(project.path("results/chain/made.mp4"), (64, 64)) == 4 + 3
    first, second = link(project, 1), link(project, 2)
    again = {"id": "again", "image": str(first.with_suffix(".last.png")), "prompt": "a kite"}
    alone = {"recipe": "dynamicrafter", "clips": [again], "model": "crafter", "options": {**options, "seed": 8}}
    project.configure(store="another", chain=chain, alone=alone)
    project.run("alone", "--cores", 1)
    last_frame = project.path("results/alone/steps/again/clip.last.png")
    assert last_frame.read_bytes() == second.with_suffix(".last.png").read_bytes()
