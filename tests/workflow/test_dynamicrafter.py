"""Pictures as users have them, through snakemake: a folder with texts beside them, in any order, shard and batch."""

import shutil

import numpy as np
import pytest

from stages.media.read import read_picture
from tests import zoo
from tests.tiny import dynamicrafter as tiny
from tests.workflow.conftest import frame_count

PICTURES = ("bear.png", "campfire.png", "fire_and_beach.jpg", "guitar0.jpeg", "pour_bear.png")
STEMS = [name.partition(".")[0] for name in PICTURES]
OPTIONS = {"size": "64*64", "num_inference_steps": 2, "seed": 123, "save_frames": True}
NAME = "dynamicrafter_pipeline_{resolution}_seed{seed}/{image}.mp4"


@pytest.fixture(scope="module")
def run(project):
    images = zoo.MEDIA / "images"
    if not images.is_dir():
        pytest.skip(f"no real pictures at {images} (set KINEMAKE_MEDIA)")
    shutil.copytree(images, project.path("pictures"))
    weights = tiny.make(project.path("weights"))
    small = {"family": "dynamicrafter", "variant": "256", "path": str(weights), "dtype": "float32", "sizes": ["64*64"]}
    project.models = {**project.models, "crafter": small}
    demo = {"recipe": "dynamicrafter", "clips": {"images": "pictures"}, "model": "crafter", "name": NAME, "options": OPTIONS}
    rows = [
        {"image": f"pictures/{name}", "prompt": (images / f"{stem}.txt").read_text().strip()}
        for name, stem in zip(PICTURES, STEMS, strict=True)
    ]
    project.runs = {
        "demo": demo,
        "backwards": {**demo, "clips": rows[::-1]},
        "batches": {**demo, "options": {**OPTIONS, "batch_size": 4}},
        "captions": {
            **{"recipe": "dynamicrafter", "clips": [{"image": "pictures/bear.png"}], "model": "crafter", "captioner": "eye"},
            "options": {**OPTIONS, "max_new_tokens": 4},
        },
    }
    return project


def made(project, *runs, workers=1):
    """Make runs in a store of their own; the frames of the first one's clips by picture, before H.264."""
    project.configure(store=f"stores/{runs[0]}", **{name: project.runs[name] for name in runs})
    project.run("--cores", 2, "--resources", f"gpu={workers}")
    folder = project.path(f"results/{runs[0]}")
    films = folder / "dynamicrafter_pipeline_64_seed123"
    assert sorted(path.name for path in films.glob("*.mp4")) == sorted(f"{stem}.mp4" for stem in STEMS)
    pngs = {stem: sorted((folder / stem / stem).glob("*.png")) for stem in STEMS}
    return {stem: np.stack([read_picture(png) for png in paths]) for stem, paths in pngs.items()}


@pytest.fixture(scope="module")
def demo(run):
    return made(run, "demo")


def test_each_picture_becomes_a_clip_of_its_text(run, demo):
    assert {len(frames) for frames in demo.values()} == {16}
    for stem in STEMS:
        name = f"demo/dynamicrafter_pipeline_64_seed123/{stem}"
        assert frame_count(run.path(f"results/{name}.mp4"), (64, 64)) == 16
        facts = run.read(f"{name}.json")
        assert facts["fields"]["fps"] == "8/1"
        records = {record["stage"]: record for record in facts["provenance"]}
        assert list(records) == ["encode", "generate", "decode", "concat"]
        assert records["encode"]["options"]["prompt"] == run.path(f"pictures/{stem}.txt").read_text().strip()
        assert records["generate"]["options"]["seed"] == 123


def test_the_order_and_the_shard_do_not_count(run, demo):
    backwards = made(run, "backwards", workers=2)
    assert len(run.shards("backwards")) == 2 * len(run.shards("demo"))
    assert all(np.array_equal(backwards[stem], demo[stem]) for stem in STEMS)


def test_a_batch_of_four_is_within_one_level_and_a_picture_without_a_text_is_captioned(run, demo):
    batches = made(run, "batches", "captions")
    for stem in STEMS:
        assert np.abs(batches[stem].astype(int) - demo[stem]).max() <= 1
    records = {record["stage"]: record for record in run.read("captions/bear.json")["provenance"]}
    assert list(records) == ["caption_vlm", "encode", "generate", "decode", "concat"]
    assert records["caption_vlm"]["weights"]
