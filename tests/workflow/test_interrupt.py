"""Ctrl-C of the commands that start Snakemake: it ends its jobs and unlocks the folder, and the same command goes on."""

import os
import re
import signal

import pytest
import yaml

from tests import zoo
from tests.commands import wait_for
from tests.workflow.conftest import TINY, Project, finish, frame_count

pytestmark = pytest.mark.usefixtures("installed_programs")
COMMANDS = {
    "kinemake": "run --cores 2",
    "film": "v2v a.mp4 --model one-expert --prompt a --results results --run film --cores 2",
}


@pytest.mark.parametrize(
    ("program", "send"),
    [("kinemake", os.killpg), ("film", os.killpg), ("film", os.kill)],  # as a terminal does, and as other programs do
)
def test_a_run_that_was_interrupted_goes_on_by_the_same_command(tmp_path, models, program, send):
    project = Project(tmp_path, models)
    zoo.plain(project.folder, "a.mp4", frames=5, size=(64, 48))
    options = {**TINY, "steps": 1000}
    project.configure(film={"recipe": "v2v", "clips": [{"id": "a", "video": "a.mp4", "prompt": "a"}], "model": "one-expert"})
    config = yaml.safe_load(project.path("config.yaml").read_text())

    def write(steps):
        config["models"]["one-expert"]["options"] = {**options, "steps": steps}
        project.path("config.yaml").write_text(yaml.safe_dump(config))

    write(steps=1000)
    running = project.start(*COMMANDS[program].split(), program=program, start_new_session=True)
    generating = project.path("results/film/steps/logs/film.generate.000.log")
    wait_for(lambda: generating.is_file() and '"load"' in generating.read_text(), "no clip is being generated", 600)
    send(running.pid, signal.SIGINT)
    output = "".join(running.communicate())
    assert running.returncode == 1
    assert re.search(r"items: \d+ made, ", output), output  # the summary of an interrupted run
    assert "Traceback" not in output
    assert not list(project.folder.glob(".snakemake/locks/*"))
    write(steps=2)
    finish(project.start(*COMMANDS[program].split(), program=program))
    assert frame_count(project.path("results/film/a.mp4")) == 5
