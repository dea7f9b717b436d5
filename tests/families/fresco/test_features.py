"""The two losses of the feature optimisation against their formulas. benchmarks.fresco measures its memory and time."""

import pytest
import torch
import torch.nn.functional as F

from stages.families.fresco import features as room
from stages.families.fresco.features import Motion, Reference, gram_gradient, optimise, temporal_loss, unit_tokens, warp

GENERATOR = torch.manual_seed(0)


def whole_gram_loss(features, reference):
    """The formula of the paper, on whole Gram matrices."""
    normalised = F.normalize(features.flatten(2).transpose(1, 2), dim=2)
    return (normalised @ normalised.transpose(1, 2) - reference @ reference.transpose(1, 2)).abs().mean()


@pytest.mark.parametrize("room_for", [0, 4, 6])
@pytest.mark.parametrize("rows", [7, 64, 1000])
def test_gram_gradient_is_that_of_autograd_on_whole_matrices(monkeypatch, rows, room_for):
    """Whether the Gram matrices of the reference are kept for none, some or all of six frames."""
    monkeypatch.setattr(room, "ROWS", rows)
    features = torch.randn(6, 16, 8, 8, generator=GENERATOR, dtype=torch.float64)
    tokens = unit_tokens(torch.randn(6, 16, 8, 8, generator=GENERATOR, dtype=torch.float64))
    reference = Reference(tokens, room_for * 64**2 * 8)
    assert len(reference.kept) == room_for
    ours = torch.stack([gram_gradient(row, reference.rows(frame), 3.0) for frame, row in enumerate(features)])
    theirs = features.clone().requires_grad_()
    (3.0 * len(features) * whole_gram_loss(theirs, tokens)).backward()
    assert (ours - theirs.grad).abs().max() <= 1e-12
    assert theirs.grad.abs().max() > 1e-3


@pytest.mark.parametrize("rows", [7, 64])
def test_kept_gram_matrices_change_no_bit_of_the_optimisation(monkeypatch, rows):
    monkeypatch.setattr(room, "ROWS", rows)
    features, tokens = (torch.randn(4, 16, 8, 8, generator=GENERATOR) for _ in range(2))
    kept, computed = (optimise(features, Reference(unit_tokens(tokens), size), still(2, 32)) for size in (1e9, 0))
    assert torch.equal(kept, computed)


def still(frames, side):
    none = torch.zeros(frames, 2, side, side)
    return Motion(none, none, torch.zeros(frames, side, side), torch.zeros(frames, side, side))


def test_temporal_loss_of_equal_still_frames_is_zero():
    features = torch.randn(1, 4, 8, 8, generator=GENERATOR).expand(3, -1, -1, -1)
    assert temporal_loss(features, still(3, 8)) <= 1e-6


def test_temporal_loss_is_zero_where_frames_follow_a_reliable_flow():
    """The frames are of an image that moves right by two pixels a frame."""
    wide = torch.randn(1, 4, 8, 12, generator=GENERATOR)
    frames = torch.cat([wide[..., 4 - 2 * n : 12 - 2 * n] for n in range(3)])
    right, occluded = torch.zeros(3, 2, 8, 8), torch.zeros(3, 8, 8)
    right[:, 0] = 2.0
    occluded[2] = 1  # no flow is known from the last frame to the first
    border_right, border_left = occluded.clone(), occluded.clone()
    border_right[:, :, 6:] = 1
    border_left[:, :, :2] = 1
    motion = Motion(right, -right, border_right, border_left)
    assert temporal_loss(frames, motion) <= 1e-6
    assert temporal_loss(frames, Motion(-right, right, border_left, border_right)) > 0.1


def test_warp_by_whole_pixels_is_a_shift():
    image, flow = torch.rand(1, 2, 6, 9, generator=GENERATOR), torch.zeros(1, 2, 6, 9)
    flow[:, 0], flow[:, 1] = 3.0, -1.0
    assert (warp(image, flow)[..., 1:, :6] - image[..., :-1, 3:]).abs().max() <= 1e-5


def test_optimise_reduces_the_loss_and_keeps_the_statistics_of_features():
    features = torch.randn(6, 8, 8, 8, generator=GENERATOR)
    tokens, motion = unit_tokens(torch.randn(1, 8, 8, 8, generator=GENERATOR)).expand(6, -1, -1), still(3, 32)

    def loss(of):
        temporal = sum(temporal_loss(half, motion.resize(8, 8)) for half in of.chunk(2)) / 2
        return temporal + 100 * whole_gram_loss(of, tokens)

    optimised = optimise(features, Reference(tokens), motion)
    assert loss(optimised) < 0.5 * loss(features)
    for statistic in (torch.mean, torch.std):
        assert (statistic(optimised, (2, 3)) - statistic(features, (2, 3))).abs().max() <= 1e-3
