"""Recipe dynamicrafter through snakemake: a folder of images with prompt files, in any order, shard and batch."""

import shutil

import numpy as np
import pytest

from stages.media.read import read_image
from tests import zoo
from tests.tiny import dynamicrafter as tiny
from tests.workflow.conftest import frame_count

IMAGES = ("bear.png", "campfire.png", "fire_and_beach.jpg", "guitar0.jpeg", "pour_bear.png")
STEMS = [name.partition(".")[0] for name in IMAGES]
OPTIONS = {"size": "64*64", "num_inference_steps": 2, "seed": 123, "save_frames": True}
NAME = "dynamicrafter_pipeline_{resolution}_seed{seed}/{image}.mp4"


@pytest.fixture(scope="module")
def run(project):
    images = zoo.MEDIA / "images"
    if not images.is_dir():
        pytest.skip(f"no real images at {images} (set KINEMAKE_MEDIA)")
    shutil.copytree(images, project.path("pictures"))
    weights = tiny.make(project.path("weights"))
    small = {"family": "dynamicrafter", "variant": "256", "path": str(weights), "dtype": "float32", "sizes": ["64*64"]}
    project.models = {**project.models, "crafter": small}
    demo = {"recipe": "dynamicrafter", "clips": {"images": "pictures"}, "model": "crafter", "name": NAME, "options": OPTIONS}
    rows = [
        {"image": f"pictures/{name}", "prompt": (images / f"{stem}.txt").read_text().strip()}
        for name, stem in zip(IMAGES, STEMS, strict=True)
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


def run_and_read_frames(project, *runs, workers=1):
    """Run some runs with a store of their own. Returns the lossless frames of the first run's clips, by image."""
    project.configure(store=f"stores/{runs[0]}", **{name: project.runs[name] for name in runs})
    project.run("--cores", 2, "--resources", f"gpu={workers}")
    films = project.path(f"results/{runs[0]}/dynamicrafter_pipeline_64_seed123")
    assert sorted(path.name for path in films.glob("*.mp4")) == sorted(f"{stem}.mp4" for stem in STEMS)
    pngs = {stem: sorted((films / stem).glob("*.png")) for stem in STEMS}
    return {stem: np.stack([read_image(png) for png in paths]) for stem, paths in pngs.items()}


@pytest.fixture(scope="module")
def demo(run):
    return run_and_read_frames(run, "demo")


def test_dynamicrafter_makes_a_clip_of_each_image_and_its_prompt(run, demo):
    assert {len(frames) for frames in demo.values()} == {16}
    for stem in STEMS:
        name = f"demo/dynamicrafter_pipeline_64_seed123/{stem}"
        assert frame_count(run.path(f"results/{name}.mp4"), (64, 64)) == 16
        assert run.read(f"{name}.json")["fields"]["fps"] == "8/1"
        records = run.records(f"{name}.json")
        assert list(records) == ["encode", "generate", "decode", "concat"]
        assert records["encode"]["options"]["prompt"] == run.path(f"pictures/{stem}.txt").read_text().strip()
        assert records["generate"]["options"]["seed"] == 123


def test_dynamicrafter_clips_do_not_depend_on_order_and_shard(run, demo):
    backwards = run_and_read_frames(run, "backwards", workers=2)
    assert len(run.shards("backwards")) == 2 * len(run.shards("demo"))
    assert all(np.array_equal(backwards[stem], demo[stem]) for stem in STEMS)


def test_dynamicrafter_batches_agree_and_images_without_a_prompt_are_captioned(run, demo):
    batches = run_and_read_frames(run, "batches", "captions")
    for stem in STEMS:
        assert np.abs(batches[stem].astype(int) - demo[stem]).max() <= 1
    records = run.records("captions/bear.json")
    assert list(records) == ["caption_vlm", "encode", "generate", "decode", "concat"]
    assert records["caption_vlm"]["weights"]
