"""Recipe longlive through snakemake: lines of the old program's JSONL file, some of them bad."""

import json

import pytest

from examples.shipped import declared_models
from tests import zoo
from tests.workflow.conftest import frame_count

ONE = "a red square moving right slowly on a white background"
OTHER = "a red square moving up slowly on a white background"
OPTIONS = {"num_output_frames": 6, "seed": 3, "num_samples": 2}


@pytest.fixture(scope="module")
def run(project):
    project.models = declared_models()
    folder = project.path("videos")
    folder.mkdir()
    zoo.plain(folder, "good.mp4", frames=17, size=(64, 64))
    zoo.plain(folder, "short.mp4", frames=7, size=(64, 64))
    rows = [{"video_path": f"videos/{name}.mp4", "prompt1": ONE, "prompt2": OTHER} for name in ("good", "missing", "short")]
    project.path("clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    name = "rank{rank}-{idx}-{sample}_{model_type}.mp4"
    demo = {"recipe": "longlive", "clips": "clips.jsonl", "model": "shapes-longlive", "name": name, "options": OPTIONS}
    project.configure(demo=demo)
    project.stderr = project.run("demo", "--cores", 2, fails=1)
    return project


def test_longlive_makes_a_film_per_sample_with_the_old_names(run):
    films = sorted(path.name for path in run.path("results/demo").glob("*.mp4"))
    assert films == ["rank0-0-0_regular.mp4", "rank0-0-1_regular.mp4"]
    assert [frame_count(run.path(f"results/demo/{film}"), (64, 64)) for film in films] == [21, 21]
    seeds = []
    for film in films:
        records = run.records(f"demo/{film.removesuffix('.mp4')}.json")
        assert list(records) == ["extract_frames", "caption_vlm", "encode", "generate", "decode", "concat"]
        seeds.append(records["generate"]["options"]["seed"])
        parts = run.read(f"demo/{film.removesuffix('.mp4')}.json")["fields"]["parts"]
        assert [(part["frames"], part["prompt"]) for part in parts] == [(9, ONE), (12, OTHER)]
    assert seeds == [3, 4]


def test_bad_longlive_lines_are_reported_with_the_remedy(run):
    assert "videos/missing.mp4 does not exist" in run.stderr
    assert "the source of short has 7 frames to use: give at least 9, which make a block of 3 latent frames" in run.stderr


def test_longlive_captions_a_source_without_prompt1(project):
    zoo.plain(project.folder, "alone.mp4", frames=9, size=(64, 64))
    clips = [{"video": "alone.mp4", "prompt2": OTHER}]
    models = {"model": "shapes-longlive", "captioner": "shapes-internvl"}
    project.configure(alone={"recipe": "longlive", "clips": clips, **models, "options": {**OPTIONS, "num_samples": 1}})
    project.run("alone", "--cores", 2)
    record = project.records("alone/alone.json")["caption_vlm"]
    assert record["weights"] and not record["options"]["prompt"]
