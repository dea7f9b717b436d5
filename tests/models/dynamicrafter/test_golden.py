"""Ours computes what the published program does: U-Net, Resampler and ten steps of DDIM on its own tiny weights."""

import pytest
import torch

from stages.models.dynamicrafter.sampler import PARAMETERISATIONS, denoise, guided, schedule
from tests.models.dynamicrafter import golden

RESCALE = {"256": 0.0, "512": 0.7, "1024": 0.7}


def predict(unet, case, which="context"):
    """The U-Net on the noisy latents and those of the picture, told a prompt and the picture's tokens."""
    text, image = case[which].split([golden.TEXT_TOKENS, 256], dim=1)
    picture = case["first_frame_latent"].expand(-1, -1, 16, -1, -1)
    return lambda x, t: unet(torch.cat([x, picture], dim=1), torch.tensor([t]), text, image, case["fs"])


@pytest.mark.parametrize("name", ["256", "512"])
@torch.no_grad()
def test_the_unet_predicts_the_same(name):
    case = golden.case(name)
    made = predict(golden.unet(name), case)(case["x_T"], 500)
    assert case["unet_t500"].std() > 0.1
    assert (made - case["unet_t500"]).abs().max() <= 1e-5


@pytest.mark.parametrize("name", ["256", "512"])
@torch.no_grad()
def test_the_resampler_makes_the_same_tokens(name):
    case = golden.case(name)
    assert (golden.resampler(name)(case["image_tokens"]) - case["resampler"]).abs().max() <= 1e-5


@pytest.mark.parametrize("eta", [0, 1])
@pytest.mark.parametrize("variant", ["256", "512", "1024"])
@torch.no_grad()
def test_ten_steps_end_in_the_same_latents(variant, eta):
    name = "256" if variant == "256" else "512"
    case, unet = golden.case(name), golden.unet(name)
    told, untold = predict(unet, case), predict(unet, case, "uncond_context")

    def both(x, t):
        return guided(told(x, t), untold(x, t), 7.5, RESCALE[variant])

    parameterisation = PARAMETERISATIONS[variant]
    steps = schedule(parameterisation, 10, eta)
    made = denoise(both, case["x_T"], parameterisation, steps, case["step_noise"])
    assert (made - case[f"latents_{variant}_eta{eta}"]).abs().max() <= 2e-4
