"""U-Net, Resampler and ten steps of DDIM agree with the published program on its own tiny weights."""

import pytest
import torch

from stages.families.dynamicrafter.sampler import PARAMETERISATIONS, apply_guidance, denoise, schedule
from tests.families.dynamicrafter import golden

RESCALE = {"256": 0.0, "512": 0.7, "1024": 0.7}


def predict(unet, case, which="context"):
    """The U-Net on noisy latents and the latents of the first frame, with a prompt and the image tokens."""
    text, image = case[which].split([golden.TEXT_TOKENS, 256], dim=1)
    first_frame = case["first_frame_latent"].expand(-1, -1, 16, -1, -1)
    return lambda x, t: unet(torch.cat([x, first_frame], dim=1), torch.tensor([t]), text, image, case["fs"])


@pytest.mark.parametrize("name", ["256", "512"])
@torch.no_grad()
def test_unet_predicts_the_golden_output(name):
    case = golden.case(name)
    result = predict(golden.unet(name), case)(case["x_T"], 500)
    assert case["unet_t500"].std() > 0.1
    assert (result - case["unet_t500"]).abs().max() <= 1e-5


@pytest.mark.parametrize("name", ["256", "512"])
@torch.no_grad()
def test_resampler_gives_the_golden_tokens(name):
    case = golden.case(name)
    assert (golden.resampler(name)(case["image_tokens"]) - case["resampler"]).abs().max() <= 1e-5


@pytest.mark.parametrize("eta", [0, 1])
@pytest.mark.parametrize("variant", ["256", "512", "1024"])
@torch.no_grad()
def test_ten_ddim_steps_end_in_the_golden_latents(variant, eta):
    name = "256" if variant == "256" else "512"
    case, unet = golden.case(name), golden.unet(name)
    conditional, unconditional = predict(unet, case), predict(unet, case, "uncond_context")

    def guided(x, t):
        return apply_guidance(conditional(x, t), unconditional(x, t), 7.5, RESCALE[variant])

    parameterisation = PARAMETERISATIONS[variant]
    steps = schedule(parameterisation, 10, eta)
    result = denoise(guided, case["x_T"], parameterisation, steps, case["step_noise"])
    assert (result - case[f"latents_{variant}_eta{eta}"]).abs().max() <= 2e-4
