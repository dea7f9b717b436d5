"""The image of every stage, built from Debian's packages: its contents, and the users who may run it."""

import os
import shutil
import stat
import subprocess

import pytest

from containers.build import EXTRAS
from tests.cluster.images import IMAGES, build

NOBODY = 65534


def run_inside(stage, *command):
    process = subprocess.run(["apptainer", "exec", IMAGES / f"{stage}.sif", *command], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_each_stage_has_an_image_and_equal_ones_share_a_file(images):
    assert [f"{name}.sif" for name in EXTRAS if not (IMAGES / f"{name}.sif").is_file()] == []
    assert os.path.samefile(IMAGES / "encode.sif", IMAGES / "decode.sif")
    assert len({os.stat(IMAGES / f"{name}.sif").st_ino for name in EXTRAS}) == len(set(EXTRAS.values()))


def test_an_existing_image_is_not_built_again(images):
    before = os.stat(IMAGES / "concat.sif")
    assert "concat" in build("concat")
    assert os.stat(IMAGES / "concat.sif").st_ino == before.st_ino


def test_an_image_has_only_the_packages_of_its_stage(images):
    names = {
        stage: set(run_inside(stage, "ls", packages_of(stage)).split())
        for stage in ("extract_frames", "caption_vlm", "generate")
    }
    assert "torch" not in names["extract_frames"] and "av" in names["extract_frames"]
    assert "diffusers" not in names["caption_vlm"] and "transformers" in names["caption_vlm"]
    assert {"torch", "diffusers", "transformers"} <= names["generate"] and "snakemake" not in names["generate"]


def packages_of(stage):
    return run_inside(stage, "python3", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()


def test_a_user_without_root_runs_an_image(images, tmp_path):
    if not os.stat("/dev/fuse").st_mode & stat.S_IWOTH:
        pytest.skip("/dev/fuse is closed to all but root here (chmod 666 /dev/fuse)")
    image = shutil.copy(IMAGES / "extract_frames.sif", tmp_path)
    for folder in (tmp_path, *tmp_path.parents):
        if not folder.stat().st_mode & stat.S_IXOTH:
            folder.chmod(0o755)
    process = subprocess.run(
        ["apptainer", "run", image, "--help"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "HOME": "/tmp"},
        user=NOBODY,
        group=NOBODY,
        capture_output=True,
        text=True,
    )
    assert process.stdout.startswith("Usage: kinemake extract_frames "), process.stderr


def test_an_image_of_other_code_than_the_plan_refuses_to_run(images, tmp_path):
    process = subprocess.run(
        ["apptainer", "exec", IMAGES / "concat.sif", "kinemake", "concat", "clip.json", "-o", "film.mp4"],
        cwd=tmp_path,
        env={**os.environ, "KINEMAKE_CODE": "another"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 1
    assert "the image concat.sif is of another version: build the images again with make containers" in process.stderr
