"""The optimisation's two losses against their formulas; what it takes is measured by benchmarks.fresco."""

import pytest
import torch
import torch.nn.functional as F

from stages.models.fresco import features as room
from stages.models.fresco.features import Motion, directions, gram_loss, optimised, temporal_loss, warped

GENERATOR = torch.manual_seed(0)


def whole_gram_loss(features, reference):
    """As the paper writes it, all at once."""
    own = F.normalize(features.flatten(2).transpose(1, 2), dim=2)
    return (own @ own.transpose(1, 2) - reference @ reference.transpose(1, 2)).abs().mean()


@pytest.mark.parametrize("rows", [7, 64, 1000])
def test_the_gram_loss_by_rows_is_that_of_whole_matrices(monkeypatch, rows):
    monkeypatch.setattr(room, "ROWS", rows)
    features = torch.randn(6, 16, 8, 8, generator=GENERATOR, dtype=torch.float64)
    reference = directions(torch.randn(6, 16, 8, 8, generator=GENERATOR, dtype=torch.float64))
    ours, theirs = features.clone().requires_grad_(), features.clone().requires_grad_()
    one, other = gram_loss(ours, reference), whole_gram_loss(theirs, reference)
    one.backward()
    other.backward()
    assert one.item() == pytest.approx(other.item(), abs=1e-12)
    assert (ours.grad - theirs.grad).abs().max() <= 1e-12


def still(frames, side):
    none = torch.zeros(frames, 2, side, side)
    return Motion(none, none, torch.zeros(frames, side, side), torch.zeros(frames, side, side))


def test_equal_frames_that_stand_still_follow_the_flow():
    features = torch.randn(1, 4, 8, 8, generator=GENERATOR).expand(3, -1, -1, -1)
    assert temporal_loss(features, still(3, 8)) <= 1e-6


def test_frames_that_follow_their_flow_are_no_loss_where_it_can_be_trusted():
    """A picture that moves right by two pixels a frame."""
    wide = torch.randn(1, 4, 8, 12, generator=GENERATOR)
    frames = torch.cat([wide[..., 4 - 2 * n : 12 - 2 * n] for n in range(3)])
    right, untrusted = torch.zeros(3, 2, 8, 8), torch.zeros(3, 8, 8)
    right[:, 0] = 2.0
    untrusted[2] = 1  # from the last back to the first nothing is known
    border_right, border_left = untrusted.clone(), untrusted.clone()
    border_right[:, :, 6:] = 1
    border_left[:, :, :2] = 1
    motion = Motion(right, -right, border_right, border_left)
    assert temporal_loss(frames, motion) <= 1e-6
    assert temporal_loss(frames, Motion(-right, right, border_left, border_right)) > 0.1


def test_a_warp_by_whole_pixels_is_a_shift():
    image, flow = torch.rand(1, 2, 6, 9, generator=GENERATOR), torch.zeros(1, 2, 6, 9)
    flow[:, 0], flow[:, 1] = 3.0, -1.0
    assert (warped(image, flow)[..., 1:, :6] - image[..., :-1, 3:]).abs().max() <= 1e-5


def test_it_brings_features_nearer_to_their_flow_and_keeps_their_statistics():
    features = torch.randn(6, 8, 8, 8, generator=GENERATOR)
    reference, motion = directions(torch.randn(1, 8, 8, 8, generator=GENERATOR)).expand(6, -1, -1), still(3, 32)

    def loss(of):
        temporal = sum(temporal_loss(half, motion.reduced(8, 8)) for half in of.chunk(2)) / 2
        return temporal + 100 * gram_loss(of, reference)

    made = optimised(features, reference, motion)
    assert loss(made) < 0.5 * loss(features)
    for statistic in (torch.mean, torch.std):
        assert (statistic(made, (2, 3)) - statistic(features, (2, 3))).abs().max() <= 1e-3
