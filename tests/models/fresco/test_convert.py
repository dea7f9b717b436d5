"""Bringing the parts of a translation together."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.models import FAMILIES
from stages.models.fresco.control import HED
from tests.commands import convert, stage

KINDS = ("hed", "canny", "depth")


@pytest.fixture(scope="module")
def published(tiny_sd, tmp_path_factory):
    """The parts as they come from their authors: each a folder of its own, the annotator a pickle of full size."""
    folder = tmp_path_factory.mktemp("published")
    parts = [f"controlnet_{kind}" for kind in KINDS]
    shutil.copytree(tiny_sd, folder / "sd", ignore=shutil.ignore_patterns("hed", "depth", *parts))
    for part in (*parts, "depth"):
        shutil.copytree(tiny_sd / part, folder / part)
    torch.manual_seed(0)
    torch.save(HED().state_dict(), folder / "ControlNetHED.pth")
    return folder


@pytest.fixture
def run(published, tmp_path):
    def run(*arguments, fails=0):
        return convert("fresco", "--base", published / "sd", "-o", tmp_path / "out", *arguments, fails=fails)

    return run


def test_all_parts_come_to_one_repository_that_the_stages_know(run, published, tmp_path, keys):
    nets = [word for kind in KINDS for word in (f"--controlnet-{kind}", published / f"controlnet_{kind}")]
    run(*nets, "--hed", published / "ControlNetHED.pth", "--depth", published / "depth")
    found = {name: family.detect(tmp_path / "out") for name, family in FAMILIES.items()}
    assert found["fresco"] == "" and {name for name, variant in found.items() if variant is not None} == {"fresco"}
    assert HED.load(tmp_path / "out/hed").state_dict().keys() == HED().state_dict().keys()
    command = ("encode", keys(1), "-m", tmp_path / "out", "--prompt", "a bird", "-o", tmp_path / "e.safetensors")
    stage(*command)
    assert load_file(tmp_path / "e.safetensors")["control"].any()


def test_another_vae_takes_the_place_of_its_own(run, published, tmp_path):
    vae = shutil.copytree(published / "sd/vae", tmp_path / "vae")
    path = vae / "diffusion_pytorch_model.safetensors"
    save_file({name: weight + 1 for name, weight in load_file(path).items()}, path)
    run("--controlnet-canny", published / "controlnet_canny", "--vae", vae)
    made = load_file(tmp_path / "out/vae/diffusion_pytorch_model.safetensors")
    assert all(torch.equal(weight, made[name]) for name, weight in load_file(path).items())


def test_what_is_missing_is_named(run, published, tmp_path):
    assert "no ControlNet is given: add --controlnet-hed" in run(fails=2)
    said = run("--controlnet-hed", published / "controlnet_hed", fails=2)
    assert "a ControlNet for hed is given and nothing makes its maps: add --hed ControlNetHED.pth" in said
    torch.save({"norm": torch.zeros(1, 3, 1, 1)}, tmp_path / "other.pth")
    said = run("--controlnet-hed", published / "controlnet_hed", "--hed", tmp_path / "other.pth", fails=2)
    assert "missing, the first: block1.convs.0.weight" in said
    assert not (tmp_path / "out").exists()
