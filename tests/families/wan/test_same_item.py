"""Two jobs that work on the same item at once: what one finishes, the other takes from the store."""

import shutil

import pytest

from stages.families.wan import encode, generate
from tests.commands import events, stage

SHORT = ("--dtype", "float32")
FIRST_LOAD = {"encode": (encode.Encode, "load_image_encoder"), "generate": (generate.Generate, "load")}


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "removed"])
@pytest.mark.parametrize("name", ["encode", "generate"])
def test_an_item_that_another_job_finishes_between_two_phases_is_reused(
    name, finished, encoded, image, tiny_wan, tmp_path, monkeypatch
):
    """The other job fills the store, and removes the state that both have between the phases, while this one loads."""
    if name == "encode":
        rest = (image, "-m", tiny_wan["14b"], "--prompt", "a lake", "--frame-num", 5, *SHORT)
    else:
        rest = (encoded["14b"], "-m", tiny_wan["14b"], "--steps", 4, "--seed", 1, *SHORT)
    stage(name, *rest, "-o", tmp_path / "other.safetensors", "--store", tmp_path / "other")
    worker, method = FIRST_LOAD[name]
    load = getattr(worker, method)

    def load_beside_the_other(self, options):
        load(self, options)
        if self.phase in ("image", "low"):
            shutil.rmtree(tmp_path / "store/partial")
            if finished:
                shutil.copytree(tmp_path / "other", tmp_path / "store", dirs_exist_ok=True)

    monkeypatch.setattr(worker, method, load_beside_the_other)
    arguments = (*rest, "-o", tmp_path / "ours.safetensors", "--store", tmp_path / "store")
    stderr = stage(name, *arguments, fails=0 if finished else 1)
    if finished:
        (item,) = [line for line in events(stderr) if line["event"] == "item"]
        assert item["status"] == "reused"
        assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "other.safetensors").read_bytes()
    else:
        assert "is missing: run again" in stderr and "Traceback" not in stderr
