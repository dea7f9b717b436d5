"""The caption sheet through snakemake: made before anything is generated, edited in a spreadsheet, and taken back."""

import csv
import io

from tests import zoo
from tests.workflow.conftest import TINY, Project, item_counts

SHEET = "results/demo/captions.csv"


def configured(folder, models, recipe, **options):
    project = Project(folder, models)
    """A project with a fused run, and a function that gives the run further keys."""
    names = "a" if recipe == "chain" else "abc"
    for number, name in enumerate(names):
        zoo.plain(folder, f"{name}.mp4", frames=5 + number, size=(64, 48))
    run = {"recipe": recipe, "fuse": True, "model": "one-expert", "captioner": "eye", "options": {**TINY, **options}}
    run["clips"] = [{"video": f"{name}.mp4"} for name in names]

    def configure(**further):
        project.configure(demo={**run, **further})

    configure()
    return project, configure


def rows(project):
    return list(csv.DictReader(io.StringIO(project.path(SHEET).read_text(encoding="utf-8-sig"))))


def test_an_edited_caption_makes_only_its_own_clip_again(tmp_path, models):
    project, configure = configured(tmp_path, models, "v2v")
    report = project.run("--cores", 1, "demo.caption_vlm")
    assert item_counts(report) == (3, 0, 0)
    assert not list(project.path("results/demo").rglob("*.safetensors"))
    sheet = rows(project)
    assert [(row["clip"], row["link"], row["source"]) for row in sheet] == [(name, "", "caption") for name in "abc"]
    assert all(
        row["caption"] == row["prompt"] == project.read(f"demo/steps/{row['clip']}/caption.json")["fields"]["prompt"]
        for row in sheet
    )

    assert item_counts(project.run("--cores", 1, "demo")) == (3 * 5, 0, 0)  # the captions are there
    configure(captions=SHEET)
    assert "Nothing to be done" in project.run("--cores", 1, "demo")

    text = project.path(SHEET).read_text(encoding="utf-8-sig").replace(",", ";").replace("\n", "\r\n")
    lines = text.split("\r\n")
    lines[2] = f"b;;{sheet[1]['caption']};a red bird lands;caption"
    project.path(SHEET).write_bytes(("\ufeff" + "\r\n".join(lines)).encode())  # as Excel saves it where ',' is in numbers
    films = {name: project.path(f"results/demo/{name}.mp4").stat().st_ino for name in "abc"}
    assert item_counts(project.run("--cores", 1, "demo")) == (5, 0, 0)  # a caption, and four steps of one clip
    assert [name for name in "abc" if project.path(f"results/demo/{name}.mp4").stat().st_ino != films[name]] == ["b"]
    assert project.read("demo/b.json")["fields"]["parts"][0]["prompt"] == "a red bird lands"
    after = rows(project)
    assert after[1] == {**sheet[1], "prompt": "a red bird lands", "source": "edited"}
    assert [after[0], after[2]] == [sheet[0], sheet[2]]
    assert "Nothing to be done" in project.run("--cores", 1, "demo")

    text = project.path(SHEET).read_text(encoding="utf-8-sig")  # edited again, before a target that takes no caption
    project.path(SHEET).write_text(text.replace("a red bird lands", "a blue bird lands"))
    project.path("results/demo/steps/a/frames.json").unlink()
    project.path("results/demo/a.mp4").unlink()
    project.run("--cores", 1, "demo.extract_frames")
    assert rows(project)[1] == {**sheet[1], "prompt": "a blue bird lands", "source": "edited, not taken back"}
    project.run("--cores", 1, "demo")
    assert rows(project)[1] == {**sheet[1], "prompt": "a blue bird lands", "source": "edited"}
    assert project.read("demo/b.json")["fields"]["parts"][0]["prompt"] == "a blue bird lands"


def test_an_edited_link_makes_itself_and_those_after_it_again(tmp_path, models):
    """With rewrite: next, a link is told the prompt of the clip that it continues, and shown the end of that clip."""
    project, configure = configured(tmp_path, models, "chain", links=3, rewrite="next", prefix="")
    assert item_counts(project.run("--cores", 1, "demo.caption_vlm")) == (1, 0, 0)
    assert [row["source"] for row in rows(project)] == ["rewritten"]  # the other links need what is generated
    assert item_counts(project.run("--cores", 1, "demo")) == (1 + 3 * 4 - 1 + 1, 0, 0)
    first, second, _ = sheet = rows(project)
    assert [row["link"] for row in sheet] == ["1", "2", "3"]
    assert "generated from: none\n" in project.read("demo/steps/a/link01/caption.json")["fields"]["request"]
    told = project.read("demo/steps/a/link02/caption.json")["fields"]
    assert f"generated from: {first['prompt']}\n" in told["request"]
    assert told["ending"][-1] == TINY["frame_num"] - 1
    log = project.path("results/demo/a/prompts_log.txt").read_text()
    assert f"prompt: {second['prompt']}\n" in log
    configure(captions=[{"clip": "a", "link": 2, "prompt": "a red bird lands"}])
    assert item_counts(project.run("--cores", 1, "demo")) == (2 * 4 + 1, 0, 0)
    changed = project.path("results/demo/a/prompts_log.txt").read_text()
    assert "prompt: a red bird lands\n" in changed and changed.split("link 2")[0] == log.split("link 2")[0]
    told = project.read("demo/steps/a/link03/caption.json")["fields"]
    assert "generated from: a red bird lands\n" in told["request"]
