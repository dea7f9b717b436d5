"""Recipe fresco through snakemake: folders of videos and prompts become films, and bad clips are reported."""

import shutil

import pytest

from stages.media.marks import COMPOSITE, read_marks
from stages.media.probe import probe
from tests import zoo
from tests.workflow.conftest import Project, frame_count

SIZE = (128, 128)
FEW = {"seed": 1, "size": "128*128", "num_inference_steps": 3, "num_warmup_steps": 1, "end_opt_step": 2, "batch_size": 4}


@pytest.fixture(scope="module")
def run(tiny_sd, tmp_path_factory):
    """A run over two folders, with a damaged video and a missing prompt, and a run with a control type without a network."""
    folder = tmp_path_factory.mktemp("fresco")
    without_depth = shutil.copytree(tiny_sd, folder / "poor", ignore=shutil.ignore_patterns("controlnet_depth", "depth"))
    declared = {"family": "fresco", "dtype": "float32"}
    project = Project(
        folder / "project", {"sd": {**declared, "path": str(tiny_sd)}, "poor": {**declared, "path": str(without_depth)}}
    )
    for name in ("videos", "prompts"):
        project.path(name).mkdir()
    zoo.plain(project.path("videos"), "good.mp4", frames=8, size=SIZE, sound=2)
    zoo.plain(project.path("videos"), "silent.mp4", frames=3, size=SIZE)
    zoo.truncated(project.path("videos"))
    project.path("videos/front.mp4").unlink()  # the file that was cut
    for name in ("good", "cut_front"):
        project.path(f"prompts/{name}.txt").write_text(f"a photo of {name}")
    rows = [{"id": f"as-{control}", "video": "videos/good.mp4", "prompt": "a photo"} for control in ("hed", "depth")]
    for row in rows:
        row["controlnet_type"] = row["id"].removeprefix("as-")
    project.configure(
        folders={
            "recipe": "fresco",
            "clips": {"videos": "videos", "prompts": "prompts", "missing_prompt": "skip"},
            "model": "sd",
            "options": {**FEW, "controlnet_type": "canny", "parts": 2},
        },
        controls={"recipe": "fresco", "clips": rows, "model": "poor", "options": FEW},
    )
    project.stderr = project.run("--cores", 2, fails=1)
    return project


def test_a_fresco_film_has_all_frames_and_the_sound_of_its_source(run):
    film, source = probe(run.path("results/folders/good.mp4")), probe(run.path("videos/good.mp4"))
    assert frame_count(film.path, SIZE) == 8 and (film.fps, film.size) == (source.fps, SIZE)
    assert film.has_audio and film.duration == pytest.approx(8 / float(source.fps), abs=0.1)
    keys = sorted(path.name for path in run.path("results/folders/good/keys").glob("*.png"))
    assert keys == ["000000.png", "000005.png", "000007.png"]


def test_provenance_of_a_fresco_film_has_every_stage(run):
    records = [record["stage"] for record in run.read("folders/good.json")["provenance"]]
    assert sorted(records) == sorted(
        [
            "extract_frames",
            "extract_frames",
            "caption_vlm",
            "encode",
            "generate",
            "decode",
            "propagate",
            "propagate",
            "concat",
        ]
    )


def test_a_fresco_film_says_that_it_is_composite(run):
    marks = read_marks(run.path("results/folders/good.mp4"))
    assert marks.source == COMPOSITE and marks.model == ("fresco",)
    assert marks.prompt == ("a photo of good",) and marks.seed == (1,) and len(marks.weights) == 1


def test_failed_fresco_clips_are_reported_and_stop_no_other(run):
    assert "warning: silent.mp4 has no prompt prompts/silent.txt and is skipped" in run.stderr
    assert "videos/cut_front.mp4 is truncated or damaged" in run.stderr
    assert "there is no ControlNet for depth (model poor): use canny, hed" in run.stderr
    films = {str(path.relative_to(run.path("results"))) for path in run.path("results").glob("*/*.mp4")}
    assert films == {"folders/good.mp4", "controls/as-hed.mp4"}
