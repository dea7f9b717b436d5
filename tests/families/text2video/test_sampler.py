"""DDIM and DDPM against their formulas in float64."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from stages.families.text2video.sampler import denoise, trailing_timesteps
from stages.runtime.errors import ItemError

TRAINED = 1000
TEXT, NEGATIVE = torch.ones(1, 2, 4), torch.zeros(1, 2, 4)
SHAPE = (1, 3, 2, 4, 4)


def alphas() -> torch.Tensor:
    """Cumulative alphas of the cosine schedule (Nichol & Dhariwal 2021, arXiv:2102.09672), float64 [1000]."""
    level = lambda t: math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2  # noqa: E731
    betas = [min(1 - level((i + 1) / TRAINED) / level(i / TRAINED), 0.999) for i in range(TRAINED)]
    return torch.cumprod(1 - torch.tensor(betas, dtype=torch.float64), 0)


def schedule(kind="sample"):
    return DDPMScheduler(TRAINED, beta_schedule="squaredcos_cap_v2", prediction_type=kind, clip_sample=True).config


def true_clip():
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(1)) * 1.8 - 0.9


def noise(seed=2):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def run(model, steps=20, sampler="ddim", guidance=1.0, kind="sample", seed=3, x=None):
    generator = torch.Generator().manual_seed(seed)
    settings = {"sampler": sampler, "steps": steps, "guidance": guidance, "generator": generator}
    return denoise(model, noise() if x is None else x, TEXT, NEGATIVE, schedule(kind), **settings)


def oracle(kind):
    """A model that knows the true clip, and returns the matching prediction of a kind."""
    levels = alphas()

    def model(x, timestep, text):
        level, clip = levels[int(timestep)], true_clip().double()
        noise_estimate = (x.double() - level.sqrt() * clip) / (1 - level).sqrt()
        velocity = level.sqrt() * noise_estimate - (1 - level).sqrt() * clip
        return {"sample": clip, "epsilon": noise_estimate, "v_prediction": velocity}[kind].float()

    return model


def after(steps_done, steps, sampler, kind, seed=3):
    """The timestep and the x with which the model is called after `steps_done` steps."""
    calls, answer = [], oracle(kind)

    def record(x, timestep, text):
        calls.append((int(timestep), x.clone()))
        return answer(x, timestep, text)

    run(record, steps, sampler, kind=kind, seed=seed)
    return calls[steps_done]


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
@pytest.mark.parametrize("kind", ["sample", "v_prediction"])
@pytest.mark.parametrize("steps", [1, 20, 30, 61, 600])
def test_sampler_restores_the_clip_of_an_oracle_in_the_requested_steps(sampler, kind, steps):
    """By the spacing of diffusers, 61 of 1000 steps are 62, and its DDIM leaves noise after 600 steps."""
    called, tell = [], oracle(kind)

    def model(*arguments):
        called.append(int(arguments[1]))
        return tell(*arguments)

    torch.testing.assert_close(run(model, steps, sampler, kind=kind), true_clip(), rtol=0, atol=1e-4)
    assert len(called) == steps
    assert called == sorted(set(called), reverse=True) and called[0] == TRAINED - 1 and called[-1] >= 0


@pytest.mark.parametrize("kind", ["sample", "v_prediction", "epsilon"])
@pytest.mark.parametrize("steps", [20, 30])
def test_ddim_steps_agree_with_the_formula(kind, steps):
    """The steps start at a medium noise level: at the highest, a noise prediction hardly determines the clip."""
    levels, times = alphas(), trailing_timesteps(TRAINED, steps)
    step = steps // 2
    t, x = after(step, steps, "ddim", kind)
    assert t == times[step]
    _, after_step = after(step + 1, steps, "ddim", kind)
    level, below, clip = levels[t], levels[times[step + 1]], true_clip().double()
    predicted = (x.double() - level.sqrt() * clip) / (1 - level).sqrt()
    torch.testing.assert_close(after_step.double(), below.sqrt() * clip + (1 - below).sqrt() * predicted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
@pytest.mark.parametrize("steps", [10, 30])
def test_all_sampler_steps_agree_with_the_formula(sampler, steps):
    generator = torch.Generator().manual_seed(3)
    draws = [torch.randn(SHAPE, generator=generator) for _ in range(steps)]
    _, x = after(steps - 1, steps, sampler, "sample")
    torch.testing.assert_close(x.double(), before_the_last(sampler, steps, draws), rtol=0, atol=1e-4)


def before_the_last(sampler, steps, draws):
    """The x before the last step, by formula. The last step leaves only the oracle's clip."""
    levels, x, clip = alphas(), noise().double(), true_clip().double()
    times = [round(TRAINED * left / steps) - 1 for left in range(steps, 0, -1)]
    for step in range(steps - 1):
        level, below = levels[times[step]], levels[times[step + 1]]
        if sampler == "ddim":  # Song et al., (12), sigma 0
            x = below.sqrt() * clip + (1 - below).sqrt() * (x - level.sqrt() * clip) / (1 - level).sqrt()
        else:  # Ho et al., (7), with the variance of the posterior
            beta = 1 - level / below
            x = below.sqrt() * beta / (1 - level) * clip + (level / below).sqrt() * (1 - below) / (1 - level) * x
            x = x + (beta * (1 - below) / (1 - level)).sqrt() * draws[step].double()
    return x


@pytest.mark.parametrize("sampler, library", [("ddim", DDIMScheduler), ("ddpm", DDPMScheduler)])
@pytest.mark.parametrize("kind", ["sample", "v_prediction", "epsilon"])
def test_sampler_is_bit_identical_to_diffusers_where_steps_divide_the_training(sampler, library, kind):
    """The model's clips exceed -1..1, so that clipping has an effect."""
    model = lambda x, timestep, text: (1.5 * x).tanh() * 1.3 + timestep / TRAINED  # noqa: E731
    scheduler = library.from_config(schedule(kind), timestep_spacing="trailing")
    scheduler.set_timesteps(20)
    generator, x = torch.Generator().manual_seed(3), noise()
    for timestep in scheduler.timesteps:
        draws = {"generator": generator} if sampler == "ddpm" else {}
        x = scheduler.step(model(x, timestep, None), timestep, x, **draws).prev_sample
    assert torch.equal(run(model, 20, sampler, kind=kind), x)


@pytest.mark.parametrize("guidance, calls", [(0.0, 5), (1.0, 5), (1.5, 10)])
def test_sampler_calls_the_model_twice_only_for_guidance_above_one(guidance, calls):
    texts = []

    def model(x, timestep, text):
        texts.append(text)
        return true_clip()

    run(model, 5, guidance=guidance)
    assert len(texts) == calls
    assert sum(torch.equal(text, NEGATIVE) for text in texts) == calls - 5


def test_guidance_extrapolates_from_the_negative_prompt():
    """negative + g (text - negative): 0.1 + 3 (0.3 - 0.1)."""
    model = lambda x, timestep, text: torch.full(SHAPE, 0.3 if text.any() else 0.1)  # noqa: E731
    torch.testing.assert_close(run(model, 1, guidance=3.0), torch.full(SHAPE, 0.7))


def test_ddim_depends_on_the_noise_and_ddpm_also_on_the_generator():
    model = lambda x, timestep, text: (x / 2).tanh()  # noqa: E731
    assert torch.equal(run(model, 5, "ddim", seed=3), run(model, 5, "ddim", seed=4))
    assert torch.equal(run(model, 5, "ddpm", seed=3), run(model, 5, "ddpm", seed=3))
    assert not torch.equal(run(model, 5, "ddpm", seed=3), run(model, 5, "ddpm", seed=4))


def test_numbers_that_are_not_finite_fail_the_item():
    broken = lambda x, timestep, text: x / (0 if timestep < 500 else 1)  # noqa: E731
    with pytest.raises(ItemError, match="the clip became NaN or infinite at step 4 of 5: try --dtype float32"):
        run(broken, 5, kind="v_prediction")
