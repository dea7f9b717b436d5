"""Recipe v2v through snakemake: a folder of videos and a folder of prompts, with hostile names and texts."""

import json

import pytest

from tests import zoo
from tests.workflow.conftest import TINY, frame_count

STAGES = ["extract_frames", "caption_vlm", "encode", "generate", "decode", "concat"]
IDS = {
    'it\'s "fine"': "it-s-fine",
    "$(touch pwned)": "touch-pwned",
    "two  words": "two-words",
    "new\nline": "new-line",
    "-rf": "rf",
    "海滩": "海滩",
    "{input}": "input",
}
HOSTILE = "; $(touch pwned) `touch pwned` 'one' \"two\" {input} {{}} %s \\n\n海滩 & > pwned | <x> #"


def prompt_of(name: str) -> str:
    return name + HOSTILE


@pytest.fixture(scope="module")
def hostile(project):
    """A project with hostile names and prompts, and one real clip without a prompt if real clips are present."""
    videos, prompts = project.path("videos"), project.path("prompts")
    videos.mkdir(), prompts.mkdir()
    for number, name in enumerate(IDS):
        zoo.plain(videos, f"{name}.mp4", frames=5 + number, size=(64, 48))
        (prompts / f"{name}.txt").write_text(prompt_of(name) + "\n")
    if (zoo.MEDIA / "videos").exists():
        (videos / "car-turn.mp4").symlink_to(zoo.real_clip("car-turn.mp4"))
    clips = {"videos": "videos", "prompts": "prompts"}
    project.configure(
        demo={"recipe": "v2v", "clips": clips, "model": "one-expert", "captioner": "eye", "options": TINY},
    )
    return project


@pytest.fixture(scope="module")
def report(hostile):
    return hostile.run("--cores", 2)


def test_a_dry_run_of_v2v_changes_no_file(hostile):
    before = hostile.files()
    assert "generate" in hostile.output("-n", "--cores", 2)
    assert hostile.files() == before
    assert not hostile.path("results").exists()


def test_a_v2v_run_reports_the_number_of_items(report):
    assert f"items: {6 * (len(IDS) + zoo.MEDIA.exists())} made, 0 reused from the store, 0 failed" in report


@pytest.mark.parametrize(("name", "clip"), IDS.items(), ids=IDS.values())
def test_a_hostile_name_and_prompt_make_a_film(hostile, name, clip):
    film = hostile.path(f"results/demo/{clip}.mp4")
    assert frame_count(film) == TINY["frame_num"]
    caption = hostile.read(f"demo/steps/{clip}/caption.json")["fields"]
    assert (caption["prompt"], caption["raw"]) == (prompt_of(name), "")
    records = hostile.records(f"demo/{clip}.json")
    assert list(records) == STAGES
    assert records["caption_vlm"]["options"]["prompt"] == prompt_of(name)
    assert records["extract_frames"]["files"] == [f"videos/{name}.mp4"]


def test_no_name_or_prompt_reaches_a_shell(hostile):
    assert not list(hostile.folder.rglob("pwned"))


def test_v2v_captions_and_continues_a_real_video(hostile, report):
    zoo.real_clip("car-turn.mp4")
    assert frame_count(hostile.path("results/demo/car-turn.mp4")) == TINY["frame_num"]
    caption = hostile.read("demo/steps/car-turn/caption.json")["fields"]
    assert caption["frames"] == [4, 14, 24, 34, 44, 53, 63, 73]  # middles of 8 segments of 80 frames, by InternVL's formula
    assert caption["prompt"] == caption["raw"].strip()
    assert "car-turn.mp4 has no prompt" in report


def test_a_v2v_shard_loads_its_model_once(hostile):
    shards = hostile.shards("demo")
    assert len(shards) == 2 * 6
    for name, shard in shards.items():
        stage = name.partition(".")[0]
        assert shard["items"] == shard["made"] >= 3
        if stage in ("encode", "generate", "decode"):
            assert shard["model_loads"] == (2 if stage == "encode" else 1)  # text encoder and VAE one after the other
        if stage == "extract_frames":
            assert shard["model_loads"] == 0
    captioned = zoo.MEDIA.exists()
    assert sum(shards[f"caption_vlm.00{n}"]["model_loads"] for n in (0, 1)) == captioned


def test_a_second_v2v_run_on_any_number_of_cores_has_nothing_to_do(hostile):
    files = hostile.files()
    for cores in (2, 1, 4):
        assert "Nothing to be done" in hostile.run("--cores", cores)
    assert hostile.files() == files


def test_command_line_options_override_the_config(hostile):
    dry_run = hostile.output("-n", "--cores", 2, "--quiet", "rules", "--config", "options={steps: 3}")
    assert {stage for stage in STAGES if stage in dry_run} == {"generate", "decode", "concat"}


def test_the_resolved_config_of_a_v2v_run_gives_the_same_films(hostile):
    rows = [json.loads(line) for line in hostile.path("results/demo/clips.jsonl").read_text().splitlines()]
    assert {row["id"] for row in rows} >= set(IDS.values())
    assert "Nothing to be done" in hostile.output("-n", "--cores", 1, "--configfile", "results/demo/config.yaml")
