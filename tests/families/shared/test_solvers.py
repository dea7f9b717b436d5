"""The solvers against their formulas in float64, against diffusers' schedulers, and their sigmas against the programs'."""

import math

import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchLCMScheduler,
    UniPCMultistepScheduler,
)

from stages.families.shared.flow_options import SAMPLERS
from stages.families.shared.solvers import make_scheduler, take_step

CONFIG = {"solver_order": 2, "num_train_timesteps": 1000}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
CPU = torch.device("cpu")
X = np.random.default_rng(3).standard_normal((4, 5))
NOISES = np.random.default_rng(4).standard_normal((60, 4, 5)).astype(np.float32).astype(np.float64)


def velocity(x, t):
    """A velocity that is not linear in x or t, for arrays and tensors alike."""
    return (x**3 / (1 + x**2) - 0.3) * (0.4 + t / 1000)


def solve(scheduler, generator=None):
    """The float32 latents after all steps of our loop."""
    x = torch.tensor(X, dtype=torch.float32)
    for step, t in enumerate(scheduler.timesteps):
        x = take_step(scheduler, velocity(x, float(t)), step, x, generator)
    return x.numpy()


# --------------------------------------------------------------------------------------------------- formulas, float64


def euler(x, sigmas, timesteps):
    for s, t, time in zip(sigmas, sigmas[1:], timesteps, strict=False):
        x = x + (t - s) * velocity(x, time)
    return x


def lcm(x, sigmas, timesteps):
    for step, time in enumerate(timesteps):
        s, t = sigmas[step], sigmas[step + 1]
        x = (1 - t) * (x - s * velocity(x, time)) + t * NOISES[step]
    return x


def half_log_snr(sigma):
    return math.inf if sigma == 0 else -math.inf if sigma == 1 else math.log((1 - sigma) / sigma)


def dpm(x, sigmas, timesteps):
    """DPM-Solver++(2M), algorithm 2 of arXiv:2211.01095, with a first and a last step of first order."""
    before, h_before = None, None
    for step, time in enumerate(timesteps):
        s, t = sigmas[step], sigmas[step + 1]
        clean = x - s * velocity(x, time)
        h = half_log_snr(t) - half_log_snr(s)
        first_order = before is None or t == 0
        # 1 / r of the paper, 0 behind a step from pure noise, whose h is infinite
        slope = 0 if first_order or math.isinf(h_before) else h / h_before
        mixed = clean if first_order else clean + slope / 2 * (clean - before)
        x = t / s * x - (1 - t) * math.expm1(-h) * mixed
        before, h_before = clean, h
    return x


def unipc(x, sigmas, timesteps):
    """UniPC of order 2 with B(h) = e^h - 1, for a predicted clean clip: section 3 and appendix of arXiv:2302.04867."""
    outputs, lambdas, order, base = [], [], 0, x
    steps = len(timesteps)
    for step, time in enumerate(timesteps):
        s, t = sigmas[step], sigmas[step + 1]
        clean = x - s * velocity(x, time)
        if step:  # the corrector, from the step before to this one
            h = half_log_snr(s) - lambdas[-1]
            ratios = [(lambdas[-2] - lambdas[-1]) / h] if order == 2 else []
            differences = [(outputs[-2] - outputs[-1]) / r for r in ratios] + [clean - outputs[-1]]
            weights, phi = [0.5], math.expm1(-h)
            if order == 2:
                k1 = phi / -h - 1
                k2 = k1 / -h - 0.5
                weights = np.linalg.solve([[1, 1], [ratios[0], 1]], [k1 / phi, 2 * k2 / phi])
            x = s / sigmas[step - 1] * base - (1 - s) * phi * outputs[-1]
            x = x - (1 - s) * phi * sum(weight * one for weight, one in zip(weights, differences, strict=True))
        outputs, lambdas, base = [*outputs, clean], [*lambdas, half_log_snr(s)], x
        order = min(2, step + 1, steps - step)
        h = half_log_snr(t) - lambdas[-1]
        phi = math.expm1(-h)
        x = t / s * base - (1 - t) * phi * clean
        if order == 2:
            slope = (outputs[-2] - clean) * h / (lambdas[-2] - lambdas[-1])
            x = x - (1 - t) * phi * 0.5 * slope
    return x


FORMULAS = {"unipc": unipc, "euler": euler, "dpm++": dpm, "lcm": lcm}


def published_sigmas(sampler, steps, shift):
    """float64, with the 0 at the end: Wan2.2's get_sampling_sigmas and FlowUniPCMultistepScheduler, lightx2v's list."""
    sigma = np.linspace(0.999 if sampler == "unipc" else 1, 0, steps + 1)
    return shift * sigma / (1 + (shift - 1) * sigma)


def with_noises(monkeypatch):
    """Have the library draw NOISES, one after the other."""
    noises = iter(torch.tensor(NOISES, dtype=torch.float32))
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_flow_match_lcm.randn_tensor", lambda *shape, **options: next(noises)
    )


@pytest.mark.parametrize("steps, shift", [(1, 5.0), (2, 1.0), (4, 5.0), (7, 3.0), (20, 5.0)])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_each_solver_is_its_formula(sampler, steps, shift, monkeypatch):
    with_noises(monkeypatch)
    scheduler = make_scheduler(CONFIG, steps, shift, CPU, "wan", sampler)
    sigmas = published_sigmas(sampler, steps, shift)
    assert np.abs(scheduler.sigmas.double().numpy() - sigmas).max() < 1e-7
    timesteps = 1000 * sigmas[:-1]
    timesteps = np.floor(timesteps) if sampler in ("unipc", "dpm++") else timesteps
    assert np.abs(scheduler.timesteps.double().numpy() - timesteps).max() < 2e-4
    found, expected = solve(scheduler), FORMULAS[sampler](X, sigmas, timesteps)
    assert np.abs(found - expected).max() <= 1e-6
    assert np.abs(expected - X).max() > 0.3


def test_each_solver_is_another_one():
    found = [solve(make_scheduler(CONFIG, 6, 5.0, CPU, "wan", sampler)) for sampler in SAMPLERS]
    assert min(np.abs(a - b).max() for i, a in enumerate(found) for b in found[:i]) > 1e-4


# ----------------------------------------------------------------------------------------------------------- diffusers

LIBRARY = {
    "unipc": lambda shift: UniPCMultistepScheduler(flow_shift=shift, **FLOW),
    "dpm++": lambda shift: DPMSolverMultistepScheduler(flow_shift=shift, **FLOW),
    "euler": lambda shift: FlowMatchEulerDiscreteScheduler(shift=shift),
    "lcm": lambda shift: FlowMatchLCMScheduler(shift=shift),
}


@pytest.mark.parametrize("steps, shift", [(1, 5.0), (4, 5.0), (20, 3.0)])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_sigma_grid_diffusers_is_the_library_s_scheduler(sampler, steps, shift):
    library = LIBRARY[sampler](shift)
    library.set_timesteps(steps)
    ours = make_scheduler(CONFIG, steps, shift, CPU, "diffusers", sampler)
    assert torch.equal(ours.sigmas, library.sigmas) and torch.equal(ours.timesteps, library.timesteps)
    x, generator = torch.tensor(X, dtype=torch.float32), torch.Generator().manual_seed(8)
    further = {} if sampler == "unipc" else {"generator": generator}
    for t in library.timesteps:
        x = library.step(velocity(x, float(t)), t, x, **further).prev_sample
    assert np.abs(solve(ours, torch.Generator().manual_seed(8)) - x.numpy()).max() <= 1e-6


@pytest.mark.parametrize("sampler", ["unipc", "euler", "lcm"])  # dpm++ takes no sigmas in the library
def test_listed_sigmas_are_the_library_s_custom_sigmas(sampler):
    sigmas = [0.995, 0.9338, 0.8529, 0.609]
    library = LIBRARY[sampler](1.0)
    library.set_timesteps(sigmas=np.array(sigmas))
    ours = make_scheduler(CONFIG, 4, 1.0, CPU, "wan", sampler, sigmas)
    assert torch.equal(ours.sigmas, library.sigmas) and torch.equal(ours.timesteps, library.timesteps)


# ------------------------------------------------------------------------------------------------- published schedules


@pytest.mark.parametrize("sampler", ["euler", "lcm"])
@pytest.mark.parametrize("listed", [(), (1, 0.9375, 5 / 6, 0.625)])
def test_four_steps_of_euler_are_exactly_those_of_lightx2v(sampler, listed):
    """Timesteps 1000, 750, 500 and 250 of 1000, shifted by 5 and not rounded."""
    scheduler = make_scheduler(CONFIG, 4, 1.0 if listed else 5.0, CPU, "wan", sampler, listed)
    assert torch.equal(scheduler.sigmas, torch.tensor([1, 0.9375, 5 / 6, 0.625, 0]))
    assert torch.equal(scheduler.timesteps, torch.tensor([1, 0.9375, 5 / 6, 0.625]) * 1000)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_listed_timesteps_reach_the_model_as_they_are(sampler):
    """Those of FastWan2.2-TI2V-5B."""
    scheduler = make_scheduler(CONFIG, 3, 1.0, CPU, "wan", sampler, (), [1000, 757, 522])
    assert scheduler.timesteps.tolist() == [1000, 757, 522]
    sigmas = torch.tensor([1, 0.757, 0.522, 0])
    assert (scheduler.sigmas - sigmas).abs().max() <= (1.1e-6 if sampler == "unipc" else 0)  # which needs a sigma below 1
    assert np.isfinite(solve(scheduler)).all()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_latents_stay_float32_whatever_the_precision_of_the_model(sampler):
    scheduler = make_scheduler(CONFIG, 3, 5.0, CPU, "wan", sampler)
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    x = take_step(scheduler, velocity(x, 1000.0).bfloat16(), 0, x, torch.Generator())
    assert x.dtype == torch.float32 and not torch.equal(x, x.bfloat16().float())
