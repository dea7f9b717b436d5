"""A file of prompts becomes a film each, by a model that `train text2video` made."""

import pytest

from tests.workflow.conftest import frame_count

PROMPTS = ["a red ring moving left slowly on a black background", "海滩 ; $(touch pwned)", "a blue square moving up"]
OPTIONS = {"steps": 2, "sampler": "ddim", "seed": 3, "dtype": "float32"}


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


def test_each_prompt_becomes_a_film(run):
    made = films(run, "demo")
    assert len(made) == len(PROMPTS)
    for film, prompt in zip(made, PROMPTS, strict=True):
        assert frame_count(run.path(f"results/demo/{film}"), (16, 16)) == 4
        provenance = run.read(f"demo/{film.removesuffix('.mp4')}.json")["provenance"]
        records = {record["stage"]: record for record in provenance}
        assert list(records) == ["encode", "generate", "decode", "concat"]
        assert records["encode"]["options"]["prompt"] == prompt
        assert records["generate"]["options"]["seed"] == 3
    assert not list(run.folder.rglob("pwned"))


def test_after_success_there_is_nothing_to_do(run):
    assert "Nothing to be done" in run.run("demo", "--cores", 2)


def test_the_5b_of_wan_makes_films_of_the_same_prompts(run):
    run.run("wan", "--cores", 2)
    assert len(films(run, "wan")) == len(PROMPTS)
    assert frame_count(run.path(f"results/wan/{films(run, 'wan')[0]}")) == 5


def test_the_14b_is_refused_since_it_needs_a_first_frame(run):
    demo = {"recipe": "text2video", "clips": "prompts.txt", "model": "two-experts"}
    run.configure(large={**demo, "options": {"size": "32*32", "frame_num": 5, "steps": 2}})
    said = run.run("large", "--cores", 2, fails=1)
    assert "model two-experts of run large needs a first frame: name a 5b, or use recipe v2v" in said
