"""What a training of the 3D U-Net leaves for the stages."""

import math

import numpy as np
import pytest
import yaml
from diffusers import DDPMScheduler

from tests.commands import train
from tests.conftest import TINY_TEXT2VIDEO


def cosine(steps):
    """Formula 17 of Nichol & Dhariwal 2021 (arXiv:2102.09672), no step's beta above 0.999: what is left of the clip."""
    f = [math.cos((t / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(steps + 1)]
    return np.cumprod([max(0.001, f[t + 1] / f[t]) for t in range(steps)])


def linear(steps):
    """Section 4 of Ho et al. 2020 (arXiv:2006.11239)."""
    return np.cumprod(1 - np.linspace(1e-4, 0.02, steps))


@pytest.mark.parametrize("formula", [cosine, linear])
def test_model_is_told_its_noise_schedule(formula, tmp_path):
    config = {**TINY_TEXT2VIDEO, "max_steps": 1, "num_timesteps": 1000, "noise_schedule": formula.__name__}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    train("text2video", "--config", tmp_path / "config.yaml", "--output", tmp_path / "t")
    scheduler = DDPMScheduler.from_pretrained(tmp_path / "t" / "model", subfolder="scheduler")
    np.testing.assert_allclose(scheduler.alphas_cumprod, formula(1000), rtol=2e-3, atol=1e-7)
