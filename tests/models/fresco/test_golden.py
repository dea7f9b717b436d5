"""Ours against the Apache-licensed pipeline of FRESCO that came with diffusers, on tiny random weights and random flows."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file

from stages.models.fresco.attention import Guidance, install
from stages.models.fresco.correspondence import MASK_SCALES, TRAJECTORY_SCALES, token_masks, trajectories
from stages.models.fresco.features import Motion, directions, gram_loss, optimised, temporal_loss
from tests.upstream import golden

FRAMES = 4
KINDS = ("cross_frame", "spatial", "temporal")


@pytest.fixture(scope="module")
def case():
    return load_file(golden("fresco/case.safetensors"))


@pytest.fixture(scope="module")
def masks(case):
    """By scale; upstream's last pair, from the last frame to the first, is not looked at."""
    return {scale: token_masks(case["occ_bwd"][:-1], scale) for scale in MASK_SCALES}


@pytest.fixture(scope="module")
def paths(case):
    flow, occlusions = case["flow_bwd"][:-1], case["occ_bwd"][:-1]
    return {scale: trajectories(flow, occlusions, case["images"], scale) for scale in TRAJECTORY_SCALES}


@pytest.mark.parametrize("scale", MASK_SCALES)
def test_token_masks(case, masks, scale):
    assert torch.equal(masks[scale], case[f"token_mask_{scale}"])


@pytest.mark.parametrize("scale", TRAJECTORY_SCALES)
def test_correspondences(case, paths, scale):
    ours = paths[scale]
    assert torch.equal(ours.forward, case[f"fwd_map_{scale}"][:, 0])
    assert torch.equal(ours.backward, case[f"bwd_map_{scale}"][:, 0])
    assert torch.equal(ours.connected, case[f"traj_mask_{scale}"][:, 0])


@pytest.fixture
def guided(case, masks, paths):
    """A U-Net whose attentions are guided, and what it makes of the case."""
    unet = UNet2DConditionModel.from_pretrained(golden("fresco/unet")).eval()
    guidance = Guidance(
        FRAMES,
        {mask.shape[1]: mask for mask in masks.values()},
        {path.forward.shape[1]: path for path in paths.values()},
    )
    install(unet, guidance)

    @torch.no_grad()
    def made():
        return unet(case["sample"], case["timestep"], case["encoder_hidden_states"], return_dict=False)[0]

    guidance.collect = True
    made()
    guidance.collect = False
    return guidance, made


def test_what_the_spatial_guidance_looks_at(case, guided):
    guidance, _ = guided
    for number, states in enumerate(guidance.reference.values()):
        assert (states - case[f"stored_attn_{number}"]).abs().max() <= 1e-5
    assert len(guidance.reference) == 4


def test_without_guidance_it_is_the_plain_network(case, guided):
    _, made = guided
    assert (made() - case["vanilla"]).abs().max() <= 1e-5


@pytest.mark.parametrize("kinds", [*((kind,) for kind in KINDS), KINDS], ids=lambda kinds: "+".join(kinds))
def test_guidance(case, guided, kinds):
    guidance, made = guided
    for kind in kinds:
        setattr(guidance, kind, True)
    expected = case["out_all" if kinds == KINDS else f"out_{kinds[0]}"]
    assert (made() - expected).abs().max() <= 1e-5
    assert (made() - case["vanilla"]).abs().mean() > 5e-3  # each of them does something


@pytest.mark.parametrize("layer", range(4))
def test_feature_optimisation(case, layer):
    """Upstream ends with a spread of sqrt(1 + variance) in the place of sqrt(1e-5 + variance), by an argument in the wrong
    place; ours is the one it had. So they are compared at a spread of 1."""
    motion = Motion(case["flow_fwd"], case["flow_bwd"], case["occ_fwd"], case["occ_bwd"])
    features, expected = case[f"up_input_{layer}"], case[f"optimised_{layer}"]
    reference = directions(features)
    made = optimised(features, reference, motion)
    difference = (standardised(made) - standardised(expected)).abs().mean()
    assert difference <= 0.01 * standardised(expected).abs().mean()
    spread, mean = features.std((2, 3), keepdim=True), features.mean((2, 3), keepdim=True)
    losses = [loss(part, reference, motion) for part in (made, standardised(expected) * spread + mean)]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)


def standardised(features):
    return (features - features.mean((2, 3), keepdim=True)) / features.std((2, 3), keepdim=True)


def loss(features, reference, motion):
    motion = motion.reduced(*features.shape[2:])
    temporal = sum(temporal_loss(half, motion) for half in features.chunk(2)) / 2
    return float(temporal + 100 * gram_loss(features, reference))
