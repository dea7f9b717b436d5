"""A full disk, mounted for real: each stage reports it, leaves no result, and works once there is room."""

import os
import subprocess
import sys

import pytest

from stages.runtime.stages import STAGES
from tests import zoo
from tests.commands import stage
from tests.workflow.conftest import ONE_WORKER, ROOT, TINY, Project

ROOM = 24 * 2**20  # bytes of the disk: more than the films of tiny models take


@pytest.fixture
def disk(tmp_path):
    """The folder of a small file system."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", folder]
    if subprocess.run(mounting, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here (only root may)")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk):
    """Fill a disk completely."""
    with open(disk / "filler", "wb", buffering=0) as file:
        try:
            while file.write(b"0" * 2**16):
                pass
        except OSError:
            pass
    assert os.statvfs(disk).f_bavail == 0


def test_every_stage_reports_a_full_disk_and_works_once_there_is_room(disk, tiny_wan, tiny_vlm, monkeypatch, own_cache):
    zoo.plain(disk, "a.mp4", frames=5, size=(64, 48))
    monkeypatch.chdir(disk)
    store = ("--store", "store")
    wan, captioner = ("--model", tiny_wan["5b"]), ("--model", tiny_vlm)
    steps = {
        "extract_frames": ("a.mp4", "--size", "32*32", "--select", "first", "--count", 1, "-o", "frames.json"),
        "caption_vlm": ("a.mp4", *captioner, "--max-new-tokens", 4, "--dtype", "float32", "-o", "caption.json"),
        "encode": ("frames.json", "--caption", "caption.json", *wan, "--frame-num", 5, "-o", "encoded.safetensors"),
        "generate": ("encoded.safetensors", "--steps", 2, "-o", "latents.safetensors"),
        "decode": ("latents.safetensors", "-o", "clip.json"),
        "pick": ("clip.json", "-o", "picked.json"),
        "concat": ("clip.json", "-o", "film.mp4"),
        "propagate": ("frames.json", "--keys", "frames.json", "-o", "propagated.json"),
        "score": ("film.mp4", "-o", "film.scores.json"),
    }
    assert steps.keys() == STAGES.keys()
    for name, arguments in steps.items():
        before = set(os.listdir(disk))
        fill(disk)
        stderr = stage(name, *arguments, *store, fails=1)
        (sentence,) = [line for line in stderr.splitlines() if not line.startswith("{")]
        assert "the disk is full" in sentence or "No space left on device" in sentence, name
        (disk / "filler").unlink()
        assert set(os.listdir(disk)) - before <= {"store"}, name
        stage(name, *arguments, *store)
    assert os.path.getsize("film.mp4") > 0


def test_results_on_a_full_disk_are_reported_before_any_job(disk, tmp_path, models):
    project = Project(tmp_path / "project", models)
    clip = {"video": "a.mp4", "prompt": "p"}
    run = {"recipe": "v2v", "clips": [clip], "model": "one-expert", "options": TINY}
    project.configure(results=str(disk / "results"), store=str(disk / "store"), demo=run)
    fill(disk)
    report = project.run(*ONE_WORKER, fails=1)
    assert f"error: {disk / 'results'} cannot be written (the disk is full): mend that" in report
    assert "Traceback" not in report and "rule demo." not in report


@pytest.mark.parametrize("room", [0, 2**17])
def test_a_log_on_a_full_disk_ends_with_the_error(disk, monkeypatch, room):
    """The log of a Snakemake job lies beside its results."""
    zoo.plain(disk, "a.mp4", frames=5, size=(640, 480))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "stages.extract_frames", "a.mp4", "--select", "all", "-o", "f.json", "--store", "store"]
    with open(disk / "log", "wb") as log:
        fill(disk)
        os.truncate(disk / "filler", os.path.getsize(disk / "filler") - 2**17 - room)
        process = subprocess.run(command, stderr=log, cwd=disk, env=environment)
    assert process.returncode == 1
    last = (disk / "log").read_text().splitlines()[-1]
    assert last.startswith("error: ") and "the disk is full" in last
