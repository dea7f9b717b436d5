"""A shot list as users run it: a film of its shots, of which one is changed and only what depends on it is made again."""

import json
from collections import Counter

import yaml
from PIL import Image

from tests import zoo
from tests.workflow.conftest import TINY, frame_count

F = TINY["frame_num"]
SHOTS = [
    {"shot": "street", "prompt": "a street", "from": "a.mp4"},
    {"shot": "rain", "prompt": "rain begins", "frames": 9},
    {"shot": "door", "prompt": "a door", "from": "door.png"},
    {"shot": "dream", "prompt": "a red ball", "from": "text"},
]


def made(project):
    """The items that were made in the last run, by stage."""
    logs = project.path("results/film/steps/logs").glob("*.log")
    lines = [
        json.loads(line) for log in logs for line in log.read_text().splitlines() if line.startswith('{"event": "item"')
    ]
    return Counter(line["stage"] for line in lines if line["status"] == "made")


def write(project, shots):
    project.path("shots.yaml").write_text(yaml.safe_dump([{"film": "night", **shots[0]}, *shots[1:]]))


def test_a_film_of_shots_of_which_one_is_changed(project):
    zoo.plain(project.folder, "a.mp4", frames=9, size=(64, 48))
    Image.new("RGB", (64, 48), (200, 30, 30)).save(project.path("door.png"))
    write(project, SHOTS)
    options = {**TINY, "fit": "crop"}
    project.configure(film={"recipe": "chain", "clips": {"shots": "shots.yaml"}, "model": "one-expert", "options": options})
    project.run("--cores", 2)
    film = project.read("film/night.json")["fields"]
    assert [part["name"] for part in film["parts"]] == ["street", "rain", "door", "dream"]
    assert [part["frames"] for part in film["parts"]] == [F, 8, F, F]  # the first frame of a cut repeats none
    assert [part["prompt"] for part in film["parts"]] == [shot["prompt"] for shot in SHOTS]
    assert frame_count(project.path("results/film/night.mp4")) == 3 * F + 8

    write(project, [SHOTS[0], {**SHOTS[1], "prompt": "snow falls"}, *SHOTS[2:]])
    project.run("--cores", 2)
    assert made(project) == {"caption_vlm": 1, "encode": 1, "generate": 1, "decode": 1, "concat": 1}

    write(project, [*SHOTS[:2], {"shot": "sun", "prompt": "the sun"}, *SHOTS[2:]])
    project.run("--cores", 2)
    assert made(project)["generate"] == 1  # the old rain is in the store, and what comes after a cut starts anew
    assert frame_count(project.path("results/film/night.mp4")) == 3 * F + 8 + F - 1


def test_of_the_takes_of_shots_the_one_with_the_best_figure_is_in_the_film(project):
    zoo.plain(project.folder, "a.mp4", frames=9, size=(64, 48))
    write(project, [{**SHOTS[0], "takes": 2}, {**SHOTS[3], "takes": 2}])
    run = {"recipe": "chain", "clips": {"shots": "shots.yaml"}, "model": "one-expert"}
    project.configure(film={**run, "options": {**TINY, "fit": "crop", "pick": "highest motion.magnitude"}})
    project.run("--cores", 2)
    for link in (1, 2):
        pick = project.read(f"film/night/video_{link:02d}_night.json")["fields"]["pick"]
        assert len(pick["values"]) == 2 and pick["values"][pick["take"] - 1] == max(pick["values"])
