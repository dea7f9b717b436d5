"""Takes as users run them: a chain goes on from the take with the best figure, and only what changed is made again."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from stages.plan.status import status
from stages.runtime import artifacts
from tests import zoo
from tests.workflow.conftest import TINY, finish, item_counts

LINKS, FIGURE = 4, "flicker.temporal"
OPTIONS = {**TINY, "fit": "crop", "links": LINKS}


def chain(**options):
    clips = [{"id": "a", "video": "a.mp4", "prompt": "a street"}]
    return {"recipe": "chain", "clips": clips, "model": "one-expert", "options": {**OPTIONS, **options}}


def frames(path):
    """The frames of a video of 32x32 pixels, by the program ffmpeg."""
    return zoo.rgb_by_ffmpeg(path, (32, 32))


def stillness(path):
    """VBench's temporal flickering: 1 minus the mean difference of consecutive frames, as a share of 255."""
    return 1 - float(np.abs(np.diff(frames(path).astype(float), axis=0)).mean()) / 255


def take(project, link, number, ending=".mkv"):
    return project.path(f"results/chain/a/video_{link:02d}_a.take{number}{ending}")


def picked(project, link):
    """The number of the take that a link is, by its index."""
    return project.read(f"chain/a/video_{link:02d}_a.json")["fields"]["pick"]["take"]


def made(project):
    """The number of items that were made in the last run, by stage."""
    logs = project.path("results/chain/steps/logs").glob("*.log")
    lines = [
        json.loads(line) for log in logs for line in log.read_text().splitlines() if line.startswith('{"event": "item"')
    ]
    return Counter(line["stage"] for line in lines if line["status"] == "made")


@pytest.fixture(scope="module")
def takes(project):
    """The project after a chain with three takes of each link, of which the stillest goes on."""
    zoo.plain(project.folder, "a.mp4", frames=9, size=(64, 48))
    project.configure(chain=chain(takes=3, pick=FIGURE))
    project.run("--cores", 2)
    return project


@pytest.fixture(scope="module")
def best(takes):
    """The takes of each link that changes least."""
    return [max((1, 2, 3), key=lambda number: stillness(take(takes, link, number))) for link in range(1, LINKS + 1)]


def test_the_chain_goes_on_from_the_best_take(takes, best):
    assert made(takes)["generate"] == made(takes)["score"] == 3 * LINKS
    assert [picked(takes, link) for link in range(1, LINKS + 1)] == best and set(best) != {1}
    for link, number in enumerate(best, 1):
        ours = takes.path(f"results/chain/a/video_{link:02d}_a.mkv")
        assert np.array_equal(frames(ours), frames(take(takes, link, number)))
        values = takes.read(f"chain/a/video_{link:02d}_a.json")["fields"]["pick"]["values"]
        assert values.index(max(values)) + 1 == number and len(set(values)) == 3
        last = takes.path(f"results/chain/a/video_{link:02d}_a.last.png")
        assert last.read_bytes() == take(takes, link, number, ".last.png").read_bytes()
    for link in range(2, LINKS + 1):
        before = takes.path(f"results/chain/a/video_{link - 1:02d}_a.json")
        encoded = artifacts.read(takes.path(f"results/chain/steps/a/link{link:02d}/encoded.safetensors"), ("encoded",))
        assert encoded.provenance[-1]["inputs"]["image"] == [artifacts.read(before, ("clip",)).digest]
    film = frames(takes.path("results/chain/a.mp4"))
    assert len(film) == TINY["frame_num"] + (LINKS - 1) * (TINY["frame_num"] - 1)


def test_picks_overrule_the_figure_and_more_takes_make_only_those(takes, best):
    other = best[2] % 3 + 1
    project = takes
    project.configure(chain=chain(takes=3, pick=FIGURE, picks=[f"3: {other}"]))
    project.run("--cores", 2)
    assert [picked(project, link) for link in (1, 2, 3)] == [*best[:2], other]
    assert made(project)["generate"] == 3  # of the last link, which starts from another take

    project.configure(chain=chain(takes=3, pick=FIGURE))
    assert item_counts(project.run("--cores", 2))[0] == 0
    assert [picked(project, link) for link in range(1, LINKS + 1)] == best

    picks = [f"{link}: {number}" for link, number in enumerate(best, 1)]
    project.configure(chain=chain(takes=4, pick=FIGURE, picks=picks))
    project.run("--cores", 2)
    assert made(project)["generate"] == made(project)["decode"] == LINKS  # the fourth takes
    assert made(project)["concat"] == 0


def test_by_latents_more_takes_make_only_those_and_a_single_one_stays(takes):
    """The pick of each link stays, so that what follows it is current, as by frame."""

    def again(**options):
        takes.configure(chain=chain(handover="latents", known_latents=2, frame_num=9, links=3, **options))
        takes.run("--cores", 2)
        return made(takes)

    assert again() == {"extract_frames": 1, "encode": 3, "generate": 3, "decode": 3, "concat": 1}
    more = again(takes=2, picks=["1: 1", "2: 1"])
    assert (more["encode"], more["generate"], more["decode"]) == (0, 3, 3)
    more = again(takes=3, picks=["1: 1", "2: 1"])
    assert (more["encode"], more["generate"], more["decode"], more["pick"]) == (0, 3, 3, 5)
    more = again(takes=3, picks=["1: 3", "2: 1"])
    assert (more["encode"], more["generate"]) == (2, 6)
    first, other = (takes.path(f"results/chain/steps/a/link01/{name}.safetensors") for name in ("picked", "latents.take3"))
    assert artifacts.read(first, ("latents",)).digest == artifacts.read(other, ("latents",)).digest


@pytest.mark.parametrize("handover", [{}, {"handover": "latents", "known_latents": 2, "frame_num": 9}])
def test_a_take_that_failed_falls_out_until_the_next_run(project, handover):
    """The first take of the first link, in whose place is a folder. It would be picked."""
    zoo.plain(project.folder, "a.mp4", frames=9, size=(64, 48))
    options = {"links": 2, "link_takes": ["1: 2"], "seed": 70 + len(handover), **handover}
    in_the_way, film = project.path("results/failing/a/video_01_a.take1.mkv"), project.path("results/failing/a.mp4")
    film.unlink(missing_ok=True)
    if in_the_way.exists():
        in_the_way.unlink()
    in_the_way.mkdir(parents=True)
    project.configure(failing=chain(**options))
    report = project.run("--cores", 2)
    pick = project.read("failing/a/video_01_a.json")["fields"]["pick"]
    assert (pick["take"], pick["failed"]) == (2, [1])
    assert "made without a/link01.take1, which failed in decode:" in report and f"{in_the_way.name} is a folder" in report
    old, found = film.read_bytes(), status(project.path("results/failing"))
    assert found.films == (1, 1)
    assert [Path(output).name for output in found.causes] == ["video_01_a.take1.json"]
    for result in ("a.mp4", "a/video_01_a.mp4"):  # of the take that was picked, although the first one succeeds there
        (line,) = finish(project.start("--remake", f"results/failing/{result}", program="verify"))[0].splitlines()
        assert "right (" in line and "made again: equal bytes" in line

    project.configure(failing=chain(**options, picks=["1: 1"]))
    assert f"{in_the_way.name} is a folder" in project.run("--cores", 2, fails=1)
    assert film.read_bytes() == old

    in_the_way.rmdir()
    project.configure(failing=chain(**options))
    project.run("--cores", 2)
    pick = project.read("failing/a/video_01_a.json")["fields"]["pick"]
    assert pick["take"] == 1 and "failed" not in pick and film.read_bytes() != old
    assert "Nothing to be done" in project.run("--cores", 2)


def test_a_file_of_picks_is_obeyed_and_the_takes_stay(takes):
    row = {"id": "a", "video": "a.mp4", "film": "results/chain/a.mp4", "mark": "", "note": "", "picks": ["1: 3"]}
    takes.path("picks.jsonl").write_text(json.dumps(row) + "\n")
    takes.configure(chain=chain(takes=3, pick="picks.jsonl"))
    takes.run("--cores", 2)
    assert [picked(takes, link) for link in range(1, LINKS + 1)] == [3, 1, 1, 1]
    assert all(take(takes, link, number).exists() for link in range(1, LINKS + 1) for number in (1, 2, 3))


def test_one_link_is_made_again_with_another_prompt_and_the_film_stays_until_the_new_one_is_whole(project):
    zoo.plain(project.folder, "a.mp4", frames=9, size=(64, 48))
    project.configure(chain=chain(links=6))
    project.run("--cores", 2)
    film = project.path("results/chain/a.mp4")
    old, before = film.read_bytes(), project.files()

    project.configure(chain=chain(links=6, link_prompts=["4: a red ball"]))
    project.run("--cores", 2, "--until", "chain.decode")
    assert film.read_bytes() == old
    assert made(project) == {"caption_vlm": 1, "encode": 3, "generate": 3, "decode": 3}
    after = project.files()
    for link in (1, 2, 3):
        names = [name for name in before if f"video_0{link}_a" in name or f"/link0{link}/" in name]
        assert names and all(after[name] == before[name] for name in names)
    prompts = [project.read(f"chain/a/video_0{link}_a.json")["fields"]["prompt"] for link in range(1, 7)]
    assert prompts == ["a street"] * 3 + ["a red ball"] + ["a street"] * 2

    assert item_counts(project.run("--cores", 2))[0] == 1
    assert film.read_bytes() != old
    project.configure(chain=chain(links=7, link_prompts=["4: a red ball"]))
    project.run("--cores", 2)
    assert made(project)["generate"] == 1  # a chain that goes on


def test_takes_of_a_clip_share_their_caption_and_grow_by_the_missing_ones(project):
    zoo.plain(project.folder, "a.mp4", frames=9, size=(64, 48))
    zoo.plain(project.folder, "b.mp4", frames=7, size=(64, 48))
    run = {"recipe": "v2v", "clips": {"videos": "."}, "model": "one-expert", "captioner": "eye"}
    project.configure(v2v={**run, "options": {**TINY, "takes": 2}})
    assert item_counts(project.run("--cores", 1))[0] == 2 * (3 + 2 * 3)
    films = {path.name: path.read_bytes() for path in project.path("results/v2v").glob("*.mp4")}
    assert sorted(films) == ["a.mp4", "a.take2.mp4", "b.mp4", "b.take2.mp4"] and films["a.mp4"] != films["a.take2.mp4"]

    project.configure(v2v={**run, "options": {**TINY, "takes": 3}})
    assert item_counts(project.run("--cores", 1))[0] == 2 * 3
    assert all(project.path(f"results/v2v/{name}").read_bytes() == film for name, film in films.items())

    project.configure(other={**run, "options": {**TINY, "seed": TINY["seed"] + 2}})
    assert item_counts(project.run("--cores", 1))[0] == 0  # what take 3 is
    assert project.path("results/other/a.mp4").read_bytes() == project.path("results/v2v/a.take3.mp4").read_bytes()

    rows = [json.loads(line) for line in project.path("results/v2v/clips.jsonl").read_text().splitlines()]
    marks = {"a": "", "b": "reject"}
    picks = [{**row, "takes": 1, "film": f"results/v2v/{row['id']}.mp4", "mark": marks[row["id"]]} for row in rows]
    project.path("picks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in picks))
    project.configure(
        kept={**run, "clips": "picks.jsonl"}, further={**run, "clips": {"films": "picks.jsonl"}, "options": TINY}
    )
    project.run("--cores", 1)
    assert [path.name for path in project.path("results/kept").glob("*.mp4")] == ["a.mp4"]
    assert [path.name for path in project.path("results/further").glob("*.mp4")] == ["a.mp4"]
    assert project.records("further/a.json")["extract_frames"]["files"] == ["results/v2v/a.mp4"]
