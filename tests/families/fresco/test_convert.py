"""`convert fresco` brings the parts of a translation together in one repository."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import MobileViTForSemanticSegmentation

from stages.families import FAMILIES
from stages.families.fresco.control import HED
from stages.media.write import VideoWriter
from tests.commands import convert, stage
from tests.families.fresco.conftest import INTERVAL, SIZE
from tests.tiny import sd_original
from tests.tiny.sd import make_segmenter

KINDS = ("hed", "canny", "depth")


@pytest.fixture(scope="module")
def published(tiny_sd, tmp_path_factory):
    """The parts as published: each a folder of its own, and the annotator a pickle of full size."""
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


def test_convert_fresco_makes_one_repository_of_all_parts(run, published, tmp_path, keys):
    nets = [word for kind in KINDS for word in (f"--controlnet-{kind}", published / f"controlnet_{kind}")]
    run(*nets, "--hed", published / "ControlNetHED.pth", "--depth", published / "depth")
    variants = {name: family.detect(tmp_path / "out") for name, family in FAMILIES.items()}
    assert variants["fresco"] == "" and {name for name, variant in variants.items() if variant is not None} == {"fresco"}
    assert HED.load(tmp_path / "out/hed").state_dict().keys() == HED().state_dict().keys()
    command = ("encode", keys(1), "-m", tmp_path / "out", "--prompt", "a bird", "-o", tmp_path / "e.safetensors")
    stage(*command)
    assert load_file(tmp_path / "e.safetensors")["control"].any()


def test_convert_fresco_takes_another_vae(run, published, tmp_path):
    vae = shutil.copytree(published / "sd/vae", tmp_path / "vae")
    path = vae / "diffusion_pytorch_model.safetensors"
    save_file({name: weight + 1 for name, weight in load_file(path).items()}, path)
    run("--controlnet-canny", published / "controlnet_canny", "--vae", vae)
    converted = load_file(tmp_path / "out/vae/diffusion_pytorch_model.safetensors")
    assert all(torch.equal(weight, converted[name]) for name, weight in load_file(path).items())


def test_convert_fresco_adds_a_network_that_estimates_masks(run, published, tmp_path, keys):
    """The masks equal those of the network itself on whole frames, scaled as its processor says, without the crop."""
    run("--controlnet-canny", published / "controlnet_canny", "--saliency", make_segmenter(tmp_path / "segmenter"))
    command = ("encode", keys(2), "-m", tmp_path / "out", "--prompt", "a bird", "-o", tmp_path / "e.safetensors")
    stage(*command, "--estimate-masks")
    tensors = load_file(tmp_path / "e.safetensors")
    masks, frames = tensors["masks"], [Image.fromarray(rgb) for rgb in tensors["pixels"].permute(0, 2, 3, 1).numpy()]
    small = np.stack([np.asarray(frame.resize((96, 64), Image.Resampling.BICUBIC)) for frame in frames])
    pixels = torch.from_numpy(small).flip(-1).permute(0, 3, 1, 2) / 255  # MobileViT reads BGR
    with torch.no_grad():
        logits = MobileViTForSemanticSegmentation.from_pretrained(tmp_path / "segmenter").eval()(pixels).logits
    probabilities = F.interpolate(logits, masks.shape[1:], mode="bilinear").softmax(1)
    expected = 255 * probabilities[:, 1:].sum(1)  # bird or car
    assert masks.dtype == torch.uint8 and masks.shape == (2, SIZE[1], SIZE[0]) and masks.float().std() > 10
    assert (masks - expected).abs().max() <= 1
    video = tmp_path / "masks.mkv"
    with VideoWriter(video, *SIZE, 10, codec="lossless") as writer:
        for _ in range(INTERVAL + 1):
            writer.write(np.zeros((SIZE[1], SIZE[0], 3), np.uint8))
    stage(*command, "--estimate-masks", "--masks", video)
    given = load_file(tmp_path / "e.safetensors")["masks"]
    assert (given.shape, given.dtype, given.any()) == (masks.shape, masks.dtype, False)  # masks that are given count


def test_a_network_without_background_and_a_model_without_a_network_are_refused(run, published, tiny_sd, tmp_path, keys):
    other = make_segmenter(tmp_path / "segmenter", labels=("sky", "bird"))
    canny = ("--controlnet-canny", published / "controlnet_canny")
    assert f"the network in {other} has no class background: give --saliency" in run(*canny, "--saliency", other, fails=2)
    command = ("encode", keys(1), "-m", tiny_sd, "--prompt", "a bird", "-o", tmp_path / "e.safetensors", "--estimate-masks")
    stderr = stage(*command, "--controlnet-type", "canny", fails=1)
    assert "there is no saliency/" in stderr and "convert the model with --saliency, or give masks" in stderr
    run(*canny)
    shutil.copytree(other, tmp_path / "out/saliency")
    stderr = stage("encode", keys(1), "-m", tmp_path / "out", *command[4:], fails=1)
    assert "saliency has no class background: convert with another one" in stderr


def test_convert_fresco_names_missing_parts(run, published, tmp_path):
    assert "no ControlNet is given: add --controlnet-hed" in run(fails=2)
    stderr = run("--controlnet-hed", published / "controlnet_hed", fails=2)
    assert "a ControlNet for hed is given without the network for its maps: add --hed ControlNetHED.pth" in stderr
    torch.save({"norm": torch.zeros(1, 3, 1, 1)}, tmp_path / "other.pth")
    stderr = run("--controlnet-hed", published / "controlnet_hed", "--hed", tmp_path / "other.pth", fails=2)
    assert "missing, the first: block1.convs.0.weight" in stderr
    assert not (tmp_path / "out").exists()


def test_convert_fresco_takes_the_networks_of_a_single_file_checkpoint(run, published, tmp_path):
    """The base gives the configs, the tokenizer and the scheduler; it need not have weights."""
    path = sd_original.write(published / "sd", tmp_path / "realistic.safetensors")
    base = Path(shutil.copytree(published / "sd", tmp_path / "base", ignore=shutil.ignore_patterns("*.safetensors")))
    run("--controlnet-canny", published / "controlnet_canny", "--checkpoint", path, "--base", base)
    for part, name in {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}.items():
        converted, expected = (
            load_file(folder / part / f"{name}.safetensors") for folder in (tmp_path / "out", published / "sd")
        )
        assert converted.keys() == expected.keys() and all(
            torch.equal(converted[key], expected[key]) for key in converted
        ), part


@pytest.mark.parametrize("damage", [lambda weights: weights.popitem() and None, lambda weights: weights.clear()])
def test_convert_fresco_refuses_an_incomplete_single_file_checkpoint(damage, run, published, tmp_path):
    path = sd_original.write(published / "sd", tmp_path / "realistic.safetensors")
    weights = dict(sorted(load_file(path).items()))
    damage(weights)
    save_file({**weights, "other": torch.zeros(1)}, path)
    stderr = run("--controlnet-canny", published / "controlnet_canny", "--checkpoint", path, fails=2)
    assert f"{path} cannot be read as a checkpoint of Stable Diffusion 1.5" in stderr and not (tmp_path / "out").exists()
