"""Guidance against its formulas in float64, and against diffusers' guiders where these compute the same."""

import numpy as np
import pytest
import torch
from diffusers.guiders.adaptive_projected_guidance import AdaptiveProjectedGuidance
from diffusers.guiders.classifier_free_zero_star_guidance import ClassifierFreeZeroStarGuidance
from diffusers.guiders.skip_layer_guidance import SkipLayerGuidance

from stages.families.shared.flow_options import GuidanceOptions, in_interval
from stages.families.shared.guidance import Guidance

SHAPE, STEPS, SCALE = (1, 3, 2, 4, 5), 10, 4.0
RANDOM = np.random.default_rng(1)
COND, UNCOND, WEAK = (RANDOM.standard_normal((STEPS, *SHAPE)).astype(np.float32).astype(np.float64) for _ in range(3))


class Passes:
    """Predictions of a step, and which of them were made."""

    def __init__(self, step, dtype=torch.float32):
        self.step, self.dtype, self.made = step, dtype, []

    def __call__(self, *, negative=False, skip=()):
        self.made.append("uncond" if negative else "weak" if skip else "cond")
        return torch.tensor({"cond": COND, "uncond": UNCOND, "weak": WEAK}[self.made[-1]][self.step], dtype=self.dtype)


def guide(scale=SCALE, **options):
    """The guided velocities of all steps [STEPS, *SHAPE], and the passes of each step."""
    guidance, momentum = Guidance(scale, GuidanceOptions.resolved(options)), None
    velocities, made = [], []
    for step in range(STEPS):
        passes = Passes(step)
        velocity, momentum = guidance.guide(passes, step, STEPS, torch.zeros(SHAPE), momentum)
        velocities.append(velocity.double().numpy())
        made.append(passes.made)
    return np.stack(velocities), made


# ------------------------------------------------------------------------------------------------------------ formulas


def cfg(cond, uncond, scale=SCALE):
    return uncond + scale * (cond - uncond)


def apg(eta, momentum, threshold):
    """Algorithm 1 of arXiv:2410.02416."""
    average, velocities = np.zeros(SHAPE), []
    for cond, uncond in zip(COND, UNCOND, strict=True):
        average = cond - uncond + momentum * average
        update = average
        if threshold:
            update = update * min(1, threshold / np.sqrt((update**2).sum()))
        parallel = (update * cond).sum() / (cond**2).sum() * cond
        velocities.append(cond + (SCALE - 1) * (update - parallel + eta * parallel))
    return np.stack(velocities)


def cfg_zero_star(zero_steps):
    """Algorithm 1 of arXiv:2503.18886."""
    velocities = []
    for step, (cond, uncond) in enumerate(zip(COND, UNCOND, strict=True)):
        fitted = (cond * uncond).sum() / (uncond**2).sum() * uncond
        velocities.append(np.zeros(SHAPE) if step < zero_steps else fitted + SCALE * (cond - fitted))
    return np.stack(velocities)


def close(found, expected):
    assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()
    return True


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("momentum, threshold", [(0.0, 0.0), (-0.75, 0.0), (0.5, 3.0), (0.0, 3.0)])
def test_apg_is_its_formula(eta, momentum, threshold):
    found, made = guide(guider="apg", apg_eta=eta, apg_momentum=momentum, apg_norm_threshold=threshold)
    assert close(found, apg(eta, momentum, threshold)) and made == [["cond", "uncond"]] * STEPS


def test_apg_with_all_of_its_parts_is_plain_guidance():
    assert close(guide(guider="apg", apg_eta=1.0)[0], cfg(COND, UNCOND))
    assert np.abs(guide(guider="apg")[0] - cfg(COND, UNCOND)).max() > 0.1


@pytest.mark.parametrize("zero_steps", [0, 1, 4])
def test_cfg_zero_star_is_its_formula(zero_steps):
    found, made = guide(guider="cfg_zero_star", zero_init_steps=zero_steps)
    assert close(found, cfg_zero_star(zero_steps))
    assert made == [[]] * zero_steps + [["cond", "uncond"]] * (STEPS - zero_steps)


@pytest.mark.parametrize("interval, guided", [([0.0, 1.0], range(10)), ([0.2, 0.7], range(2, 7)), ([0.0, 0.55], range(6))])
def test_guidance_interval_guides_its_steps_alone(interval, guided):
    found, made = guide(guidance_interval=interval)
    expected = [cfg(COND[step], UNCOND[step]) if step in guided else COND[step] for step in range(STEPS)]
    assert close(found, np.stack(expected))
    assert [step for step in range(STEPS) if "uncond" in made[step]] == list(guided)


def test_momentum_of_apg_passes_over_the_steps_that_are_not_guided():
    found, _ = guide(guider="apg", apg_momentum=-0.5, apg_eta=1.0, guidance_interval=[0.4, 1.0])
    average = COND[4] - UNCOND[4]
    assert close(found[:5], np.stack([*COND[:4], COND[4] + (SCALE - 1) * average]))
    assert close(found[5], COND[5] + (SCALE - 1) * (COND[5] - UNCOND[5] - 0.5 * average))


@pytest.mark.parametrize("scale", [1.0, SCALE])
def test_skip_layer_guidance_is_its_formula(scale):
    found, made = guide(scale, skip_layers=[1], skip_layer_scale=2.0, skip_layer_interval=[0.1, 0.4])
    skipped = [step in (1, 2, 3) for step in range(STEPS)]
    plain = cfg(COND, UNCOND, scale) if scale > 1 else COND
    assert close(found, plain + 2.0 * (COND - WEAK) * np.array(skipped).reshape(-1, *[1] * len(SHAPE)))
    assert [("weak" in one) for one in made] == skipped


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plain_guidance_has_the_bits_of_diffusers_pipelines(dtype):
    passes = Passes(0, dtype)
    velocity, momentum = Guidance(SCALE, GuidanceOptions.resolved({})).guide(passes, 0, STEPS, torch.zeros(SHAPE), None)
    cond, uncond = (torch.tensor(one[0], dtype=dtype) for one in (COND, UNCOND))
    assert torch.equal(velocity, uncond + SCALE * (cond - uncond)) and velocity.dtype == dtype and momentum is None


# ----------------------------------------------------------------------------------------------------------- diffusers


def by_guider(guider, third=False):
    velocities = []
    for step in range(STEPS):
        guider.set_state(step, STEPS, None)
        predictions = [torch.tensor(one[step], dtype=torch.float32) for one in (COND, UNCOND, WEAK)]
        velocities.append(guider.forward(*predictions[: 2 + third]).pred)
    return torch.stack(velocities).double().numpy()


def test_the_guiders_of_diffusers_compute_the_same():
    theirs = by_guider(ClassifierFreeZeroStarGuidance(SCALE, zero_init_steps=2))
    assert close(guide(guider="cfg_zero_star", zero_init_steps=2)[0], theirs)
    theirs = by_guider(SkipLayerGuidance(SCALE, 2.8, 0.01, 0.5, skip_layer_guidance_layers=[1]), third=True)
    assert close(guide(skip_layers=[1], skip_layer_interval=[0.01, 0.5])[0], theirs)
    paper = AdaptiveProjectedGuidance(
        SCALE - 1, adaptive_projected_guidance_rescale=3.0, eta=0.0, use_original_formulation=True
    )
    assert close(guide(guider="apg", apg_norm_threshold=3.0)[0], by_guider(paper))


def test_an_interval_counts_decimal_shares_exactly():
    for steps in (7, 10, 50, 100):
        for first in range(steps):
            assert in_interval(first, steps, [first / steps, 1.0])
            assert not in_interval(first, steps, [0.0, first / steps])
