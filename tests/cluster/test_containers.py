"""An image for every stage, built of Debian's packages: what is in it, and who may run it."""

import os
import shutil
import stat
import subprocess

import pytest

from containers.build import EXTRAS
from tests.cluster.images import IMAGES, build

NOBODY = 65534


def inside(stage, *command):
    done = subprocess.run(["apptainer", "exec", IMAGES / f"{stage}.sif", *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_one_image_per_stage_and_one_file_for_those_that_need_the_same(images):
    assert [f"{name}.sif" for name in EXTRAS if not (IMAGES / f"{name}.sif").is_file()] == []
    assert os.path.samefile(IMAGES / "encode.sif", IMAGES / "decode.sif")
    assert len({os.stat(IMAGES / f"{name}.sif").st_ino for name in EXTRAS}) == len(set(EXTRAS.values()))


def test_what_is_built_is_kept(images):
    before = os.stat(IMAGES / "concat.sif")
    assert "concat" in build("concat")
    assert os.stat(IMAGES / "concat.sif").st_ino == before.st_ino


def test_an_image_holds_what_its_stage_needs_and_no_more(images):
    names = {stage: set(inside(stage, "ls", site(stage)).split()) for stage in ("extract_frames", "caption_vlm", "generate")}
    assert "torch" not in names["extract_frames"] and "av" in names["extract_frames"]
    assert "diffusers" not in names["caption_vlm"] and "transformers" in names["caption_vlm"]
    assert {"torch", "diffusers", "transformers"} <= names["generate"] and "snakemake" not in names["generate"]


def site(stage):
    return inside(stage, "python3", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()


def test_a_person_who_is_not_root_runs_an_image_by_its_name(images, tmp_path):
    if not os.stat("/dev/fuse").st_mode & stat.S_IWOTH:
        pytest.skip("/dev/fuse is closed to all but root here (chmod 666 /dev/fuse)")
    image = shutil.copy(IMAGES / "extract_frames.sif", tmp_path)
    for folder in (tmp_path, *tmp_path.parents):
        if not folder.stat().st_mode & stat.S_IXOTH:
            folder.chmod(0o755)
    done = subprocess.run(
        ["apptainer", "run", image, "--help"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "HOME": "/tmp"},
        user=NOBODY,
        group=NOBODY,
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("Usage: extract_frames "), done.stderr
