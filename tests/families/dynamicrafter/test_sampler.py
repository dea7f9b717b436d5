"""The sampler against its formulas in float64, for every possible number of steps."""

import math

import numpy as np
import pytest
import torch

from stages.families.dynamicrafter.sampler import (
    PARAMETERISATIONS,
    alphas_cumprod,
    apply_guidance,
    denoise,
    schedule,
    timesteps,
)

PUBLISHED = {  # predicts, zero terminal SNR, trailing, base_scale
    "256": ("epsilon", False, False, 1.0),
    "512": ("v", True, True, 0.7),
    "1024": ("v", True, True, 0.3),
    "512_interp": ("v", True, True, 0.7),
}


def test_sampler_variants_are_parameterised_as_published():
    assert {name: tuple(parameterisation) for name, parameterisation in PARAMETERISATIONS.items()} == PUBLISHED


def test_the_last_alpha_is_zero_except_for_variant_256():
    assert alphas_cumprod(True)[-1] == 0 and alphas_cumprod(True)[979] == pytest.approx(8.578784e-5, rel=1e-6)
    assert alphas_cumprod(True)[0] == alphas_cumprod(False)[0] == pytest.approx(1 - 0.00085)
    assert alphas_cumprod(False)[-1] == pytest.approx(0.0047, abs=1e-4)


def test_timesteps_of_50_steps_are_the_published_ones():
    assert timesteps(50, trailing=True) == list(range(999, 0, -20))
    assert timesteps(50, trailing=False) == list(range(981, 0, -20))


def test_any_number_of_steps_gives_as_many_finite_steps():
    for variant in ("256", "1024"):  # 512 has the timesteps of 1024, and its coefficients except for a smaller scale
        trailing = PUBLISHED[variant][2]
        for number in range(1, 1001):
            steps = schedule(PARAMETERISATIONS[variant], number, 1.0)
            at = [step.timestep for step in steps]
            assert len(at) == number and at == sorted(set(at), reverse=True) and at[-1] >= 0 and at[0] <= 999
            assert np.isfinite(np.array(steps)).all(), (variant, number)
            assert all(1 - step.alpha_next - step.sigma**2 > -1e-15 for step in steps)
            if trailing:
                assert at == [int(t) - 1 for t in np.round(np.arange(1000, 0, -1000 / number)) if t >= 1]
            elif 1000 % number == 0 and number < 1000:
                assert at == list(range(1, 1000, 1000 // number))[::-1]


def by_formula(variant, number, eta, x, noises):
    """DDIM with the network below, in float64."""
    predicts, zero, trailing, base = PUBLISHED[variant]
    root = np.sqrt(np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2))
    if zero:
        root = (root - root[999]) * root[0] / (root[0] - root[999])
    scale = np.concatenate([np.linspace(1, base, 400), np.full(600, base)])
    at, x = timesteps(number, trailing), x.double()
    for k, t in enumerate(at):
        m = network(x, t)
        signal_now, noise_now = root[t], math.sqrt(1 - root[t] ** 2)
        x0 = signal_now * x - noise_now * m if predicts == "v" else (x - noise_now * m) / signal_now
        e = signal_now * m + noise_now * x if predicts == "v" else m
        p = at[k + 1] if k + 1 < len(at) else None
        a, a_p = root[t] ** 2, root[0 if p is None else p] ** 2
        x0 = x0 * (1 if p is None else scale[p] / scale[t])
        variance = eta**2 * (1 - a_p) / (1 - a) * (1 - a / a_p)
        x = (
            math.sqrt(a_p) * x0
            + math.sqrt(max(1 - a_p - variance, 0)) * e
            + math.sqrt(max(variance, 0)) * noises[k].double()
        )
    return x


def network(x, t):
    """A smooth function in place of a network, in the precision of `x`."""
    return 0.6 * torch.roll(x, 1, dims=-1) - 0.2 * x + 0.1 * math.sin(t / 100)


@pytest.mark.parametrize("number", [10, 25, 30, 50])
@pytest.mark.parametrize("variant", PUBLISHED)
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_sampler_agrees_with_its_formulas(variant, number, eta):
    generator = torch.Generator().manual_seed(number)
    x, noises = torch.randn(2, 4, 3, 4, 4, generator=generator), torch.randn(number, 2, 4, 3, 4, 4, generator=generator)
    expected = by_formula(variant, number, eta, x, noises)
    steps = schedule(PARAMETERISATIONS[variant], number, eta)
    result = denoise(network, x, PARAMETERISATIONS[variant], steps, noises)
    assert result.dtype == torch.float32
    assert (result.double() - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_guidance_and_rescale_agree_with_their_formulas():
    c, u = torch.randn(2, 2, 4, 3, 4, 4, generator=torch.Generator().manual_seed(0)).unbind(0)
    assert torch.allclose(apply_guidance(c, u, 7.5, 0.0), u + 7.5 * (c - u))
    for row, result in enumerate(apply_guidance(c, u, 7.5, 0.7)):
        m = u[row] + 7.5 * (c[row] - u[row])
        assert torch.allclose(result, 0.7 * m * c[row].std() / m.std() + 0.3 * m, atol=1e-6)
