"""Recipe text2video makes a film of each line of a prompt file, by a model from `train text2video`."""

import json

import pytest
from PIL import Image

from stages.media.marks import MADE, read_marks
from tests import zoo
from tests.workflow.conftest import frame_count, item_counts

PROMPTS = ["a red ring moving left slowly on a black background", "海滩 ; $(touch pwned)", "a blue square moving up"]
EXTRAS = {"save_gif": True, "save_frames": True, "visualize": True}
OPTIONS = {"steps": 2, "sampler": "ddim", "seed": 3, "dtype": "float32", **EXTRAS}


@pytest.fixture(scope="module")
def run(project, tiny_text2video):
    project.models = {**project.models, "shapes": {"family": "text2video", "path": str(tiny_text2video / "model")}}
    project.path("prompts.txt").write_text("\n\n".join(PROMPTS) + "\n", encoding="utf-8")
    demo = {"recipe": "text2video", "clips": "prompts.txt", "model": "shapes", "options": OPTIONS}
    wan = {**demo, "model": "one-expert", "options": {"size": "32*32", "frame_num": 5, "steps": 2, "seed": 3}}
    project.configure(demo=demo, wan=wan)
    project.run("demo", "--cores", 2)
    return project


def films(project, run):
    return sorted(path.name for path in project.path(f"results/{run}").glob("*.mp4"))


def test_text2video_makes_a_film_of_each_prompt(run):
    names = films(run, "demo")
    assert len(names) == len(PROMPTS)
    for film, prompt in zip(names, PROMPTS, strict=True):
        assert frame_count(run.path(f"results/demo/{film}"), (16, 16)) == 4
        records = run.records(f"demo/{film.removesuffix('.mp4')}.json")
        assert list(records) == ["encode", "generate", "decode", "concat"]
        assert records["encode"]["options"]["prompt"] == prompt
        assert records["generate"]["options"]["seed"] == 3
    assert not list(run.folder.rglob("pwned"))


def test_a_text2video_film_has_a_gif_images_and_a_contact_sheet_beside_it(run):
    for film in films(run, "demo"):
        stem = run.path(f"results/demo/{film}").with_suffix("")
        assert Image.open(f"{stem}.gif").n_frames == 4 and Image.open(f"{stem}.sheet.png").size[1] > 16
        assert [path.name for path in sorted(stem.glob("*.png"))] == [f"{number:06d}.png" for number in range(4)]
        assert list(stem.glob("*.mp4")) == []  # the film exists once


def test_a_film_says_what_made_it_and_a_private_one_not_its_prompt(run):
    marks = [read_marks(run.path(f"results/demo/{film}")) for film in films(run, "demo")]
    assert [mark.prompt for mark in marks] == [(prompt,) for prompt in PROMPTS]
    assert {mark.source for mark in marks} == {MADE} and {mark.seed for mark in marks} == {(3,)}
    weights = run.records(f"demo/{films(run, 'demo')[0].removesuffix('.mp4')}.json")["generate"]["weights"]
    assert {(mark.model, mark.weights) for mark in marks} == {(("text2video",), (weights,))}
    config = run.path("config.yaml").read_text()
    run.path("config.yaml").write_text(config.replace("recipe: text2video\n", "recipe: text2video\n    private: true\n", 1))
    before = [zoo.rgb_by_ffmpeg(run.path(f"results/demo/{film}"), (16, 16)) for film in films(run, "demo")]
    report = run.run("demo", "--cores", 2)
    run.path("config.yaml").write_text(config)
    assert item_counts(report) == (2 * len(PROMPTS), 0, 0)  # decode and concat alone
    for film, prompt, pixels in zip(films(run, "demo"), PROMPTS, before, strict=True):
        content = run.path(f"results/demo/{film}").read_bytes()
        assert read_marks(run.path(f"results/demo/{film}")).prompt == () and prompt.encode() not in content
        assert json.dumps(prompt)[1:-1].encode() not in content
        assert (zoo.rgb_by_ffmpeg(run.path(f"results/demo/{film}"), (16, 16)) == pixels).all()
    assert item_counts(run.run("demo", "--cores", 2)) == (0, 2 * len(PROMPTS), 0)  # not private again


def test_a_second_text2video_run_has_nothing_to_do(run):
    assert "Nothing to be done" in run.run("demo", "--cores", 2)


def test_wan_5b_makes_text2video_films(run):
    run.run("wan", "--cores", 2)
    assert len(films(run, "wan")) == len(PROMPTS)
    assert frame_count(run.path(f"results/wan/{films(run, 'wan')[0]}")) == 5


def test_wan_14b_is_refused_for_text2video(run):
    demo = {"recipe": "text2video", "clips": "prompts.txt", "model": "two-experts"}
    run.configure(large={**demo, "options": {"size": "32*32", "frame_num": 5, "steps": 2}})
    stderr = run.run("large", "--cores", 2, fails=1)
    remedy = "name a model that generates clips from a prompt alone, or use recipe v2v"
    assert f"model two-experts of run large needs a first frame: {remedy}" in stderr
