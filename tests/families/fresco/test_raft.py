"""RAFT equals torchvision's network, and encode computes the flow of keyframes with it on request."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from stages.families.fresco.raft import RAFT
from stages.media.flow import grid
from tests.commands import stage

CANNY = ("--controlnet-type", "canny")
# the flow of torchvision 0.29.1's raft_large with the weights of `state` and 12 updates, for the images of the test: every
# 40th row and 60th column
X = [
    [9.83783, 19.40302, 21.63048, 23.52348],
    [25.39500, 15.47746, 34.27289, 48.26758],
    [22.82275, 22.26265, 42.34235, 58.95711],
    [14.67600, 25.65492, 30.58078, 29.47056],
]
Y = [
    [4.07491, 22.20572, 17.23438, 16.89232],
    [18.87641, 45.93411, 55.95535, 51.51810],
    [16.28083, 36.59446, 39.95576, 50.27184],
    [9.04000, 10.06614, 7.60506, 12.27965],
]


def state():
    """Random weights of the network in the order of their names, scaled so that signals pass every layer."""
    generator, weights = torch.Generator().manual_seed(0), {}
    for name, weight in sorted(RAFT().state_dict().items()):
        if not weight.is_floating_point():
            weights[name] = weight
        elif name.endswith("running_var"):
            weights[name] = torch.rand(weight.shape, generator=generator) + 0.5
        else:
            drawn = torch.randn(weight.shape, generator=generator)
            scaled = drawn * (2 / weight[0].numel()) ** 0.5 if weight.ndim == 4 else 0.1 * drawn
            weights[name] = scaled + 1 if weight.ndim == 1 and name.endswith("weight") else scaled
    weights["update_block.flow_head.conv2.weight"] *= 0.2
    return weights


@pytest.fixture(scope="module")
def net():
    net = RAFT().eval()
    net.load_state_dict(state())
    return net


def test_raft_finds_the_flow_of_torchvision(net):
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.rand(1, 3, 128, 192, generator=generator) * 2 - 1 for _ in range(2))
    with torch.no_grad():
        flow = net(a, b)
    assert flow.shape == (1, 2, 128, 192)
    assert (flow[0, :, ::40, ::60] - torch.tensor([X, Y])).abs().max() <= 0.01  # pixels


def test_raft_has_the_published_weights():
    assert sum(weight.numel() for weight in RAFT().parameters()) == 5_257_536


@pytest.fixture(scope="module")
def converted(tiny_sd, tmp_path_factory):
    folder = tmp_path_factory.mktemp("raft")
    torch.save(state(), folder / "raft.pth")
    control = ("--controlnet-canny", tiny_sd / "controlnet_canny")
    stage("convert", "fresco", "--base", tiny_sd, *control, "--raft", folder / "raft.pth", "-o", folder / "sd")
    return folder / "sd"


def test_encode_computes_the_flow_of_keyframes_by_raft(converted, net, keys, tmp_path):
    keyframes = keys(2)
    options = ("-m", converted, "--prompt", "a bird", "--dtype", "float32", *CANNY)
    stage("encode", keyframes, "-o", tmp_path / "e.safetensors", *options, "--flow", "raft")
    first, second = (np.array(Image.open(path)) for path in sorted((keyframes.parent / "keys").glob("??????.png")))
    encoded = load_file(tmp_path / "e.safetensors")
    for name, a, b in (("flow_forward", first, second), ("flow_backward", second, first)):
        expected = (net.correspondence(a, b) - grid(a.shape)).transpose(2, 0, 1)
        assert np.abs(encoded[name][0].float().numpy() - expected).max() <= 0.05  # stored in half precision


def test_encode_without_raft_in_the_model_is_one_sentence(tiny_sd, keys, tmp_path):
    command = ("encode", keys(2), "-o", tmp_path / "e.safetensors", "-m", tiny_sd, "--prompt", "a bird", *CANNY)
    stderr = stage(*command, "--flow", "raft", fails=1)
    assert f"there is no raft/ (model {tiny_sd}): convert the model with --raft, or set --flow dis" in stderr
