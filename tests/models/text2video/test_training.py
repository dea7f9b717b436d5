"""What a training of the 3D U-Net leaves for the stages."""

import math

import numpy as np
import pytest
import torch
import yaml
from diffusers import DDPMScheduler
from torch import nn

from stages.models.shared.training.data import collate
from stages.models.text2video.options import TRAINING
from stages.models.text2video.train import Text2VideoTask
from stages.runtime.options import resolve
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


class Constant(nn.Module):
    """A network that keeps what it is shown, and predicts one number for the first frame and another for the rest."""

    first, rest = 0.0, 0.5

    def forward(self, x, timestep, text):
        self.shown = x
        made = torch.full_like(x, self.rest)
        made[:, :, 0] = self.first
        return made


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_first_frame_that_is_given_has_no_noise_and_no_loss(share, kind):
    config = {**TINY_TEXT2VIDEO, "first_frame_share": share, "prediction_type": kind}
    architecture, _ = config.pop("architecture"), config.pop("training")
    task = Text2VideoTask(resolve(TRAINING.options, config), architecture)
    task.unet = Constant()
    batch = collate([task.data[0][i] for i in range(2)])
    losses = []
    for task.unet.first in (0.0, 7.0):
        losses.append(task(batch, 0, torch.Generator().manual_seed(0)).item())
    assert torch.equal(task.unet.shown[:, :, 0], batch["video"][:, :, 0]) == (share == 1)
    assert not torch.equal(task.unet.shown[:, :, 1:], batch["video"][:, :, 1:])
    assert (losses[0] == losses[1]) == (share == 1)
