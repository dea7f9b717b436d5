"""The results of a training of the 3D U-Net."""

import json
import math
import re
import shutil

import numpy as np
import pytest
import torch
import yaml
from diffusers import DDPMScheduler
from safetensors.torch import load_file
from torch import nn
from transformers import AutoTokenizer, CLIPTextModel

from stages.families.shared.training.data import collate
from stages.families.text2video.options import TRAINING
from stages.families.text2video.train import Text2VideoTask
from stages.families.text2video.unet import UNet3D
from tests.commands import stage, train, train_model
from tests.conftest import TINY_TEXT2VIDEO
from tests.families.shared.training.test_data import COLORS, write_clip


def cosine(steps):
    """Cumulative alphas by formula 17 of Nichol & Dhariwal 2021 (arXiv:2102.09672), each beta at most 0.999."""
    f = [math.cos((t / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(steps + 1)]
    return np.cumprod([max(0.001, f[t + 1] / f[t]) for t in range(steps)])


def linear(steps):
    """Cumulative alphas by section 4 of Ho et al. 2020 (arXiv:2006.11239)."""
    return np.cumprod(1 - np.linspace(1e-4, 0.02, steps))


@pytest.mark.parametrize("formula", [cosine, linear])
def test_trained_model_has_its_noise_schedule(formula, tmp_path):
    config = {**TINY_TEXT2VIDEO, "max_steps": 1, "num_timesteps": 1000, "noise_schedule": formula.__name__}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    train("text2video", "--config", tmp_path / "config.yaml", "--output", tmp_path / "t")
    scheduler = DDPMScheduler.from_pretrained(tmp_path / "t" / "model", subfolder="scheduler")
    np.testing.assert_allclose(scheduler.alphas_cumprod, formula(1000), rtol=2e-3, atol=1e-7)


def test_own_words_train_without_a_public_text_encoder(tmp_path):
    """The captions of a folder, one of them in Chinese, whose characters are its words."""
    for name, text in {"a": "A red Ring, moving", "b": "红色的圆环", "c": "红色 square"}.items():
        write_clip(tmp_path / "data", name, COLORS, text)
    config = {**TINY_TEXT2VIDEO, "data": str(tmp_path / "data"), "max_steps": 1}
    config["architecture"] = {"unet": config["architecture"]["unet"]}
    said = train_model("text2video", tmp_path, config, fails=2)
    assert "error: the text encoder openai/clip-vit-large-patch14 is not on this machine: fetch it once" in said
    assert "or add --text-encoder words, which trains a small one on the captions" in said
    model = train_model("text2video", tmp_path, config, "--text-encoder", "words")
    tokenizer = AutoTokenizer.from_pretrained(model / "tokenizer")
    words = {"a", "red", "ring", "moving", "square", ",", "红", "色", "的", "圆", "环"}
    assert set(tokenizer.get_vocab()) == words | {"<|startoftext|>", "<|endoftext|>", "<unk>"}
    said = stage("encode", "-m", model, "-o", tmp_path / "e.safetensors", "--prompt", "A red square, 红色的方块")
    assert "the model does not know: 方, 块" in said
    assert CLIPTextModel.from_pretrained(model / "text_encoder").config.max_position_embeddings == 77


def test_text_encoder_of_own_words_is_trained_along(tmp_path):
    write_clip(tmp_path / "data", "a", COLORS, "a red ring")
    config = {**TINY_TEXT2VIDEO, "data": str(tmp_path / "data"), "text_encoder": "words"}
    architecture, _ = {"unet": config.pop("architecture")["unet"]}, config.pop("training")
    task = Text2VideoTask(TRAINING.options.resolved(config), architecture)
    assert all(parameter.requires_grad for parameter in task.text.parameters())
    assert task.unet.config.text_dim == task.text.config.hidden_size


FROM_2D = {name: value for name, value in TINY_TEXT2VIDEO.items() if name != "architecture"} | {"max_steps": 1}


def warning(said):
    return next(json.loads(line) for line in said.splitlines() if "of_2d" in line)


def test_start_from_a_2d_unet_takes_its_widths_and_says_which_share_fits(tiny_sd, tmp_path):
    """With a rate of 0 the model has the weights that it started with."""
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**FROM_2D, "start_from": str(tiny_sd), "learning_rate": 0.0}))
    said = train("text2video", "--config", tmp_path / "config.yaml", "--output", tmp_path / "t")
    model = UNet3D.from_pretrained(tmp_path / "t/model/unet")
    assert (model.config.model_channels, model.config.channel_mult, model.config.head_dim) == (
        16,
        [1, 1, 2, 2],
        [8, 8, 16, 16],
    )
    own = model.state_dict()
    flat = load_file(tiny_sd / "unet/diffusion_pytorch_model.safetensors")
    copied = 0
    for name, weight in flat.items():
        ours = own.get(name.replace(".transformer_blocks.0.", "."))
        if ours is not None and ours.numel() == weight.numel():
            assert torch.equal(ours.flatten(), weight.flatten()), name
            copied += weight.numel()
    shares = [copied / sum(weight.numel() for weight in weights) for weights in (flat.values(), own.values())]
    assert shares == pytest.approx([warning(said)["of_2d"], warning(said)["of_3d"]], abs=1e-3)
    assert 0.5 < shares[0] < 1 and f"{shares[0]:.0%} of the weights of {tiny_sd}/unet fit" in warning(said)["reason"]


def test_start_from_a_2d_unet_alone_needs_a_text_encoder(tiny_sd, tmp_path):
    shutil.copytree(tiny_sd / "unet", tmp_path / "flat/unet")
    config = {**FROM_2D, "start_from": str(tmp_path / "flat")}
    assert "--text-encoder words" in train_model("text2video", tmp_path, config, fails=2)
    model = train_model("text2video", tmp_path, config, "--text-encoder", "words")
    assert (
        UNet3D.load_config(model / "unet")["text_dim"]
        == CLIPTextModel.from_pretrained(model / "text_encoder").config.hidden_size
    )


@pytest.mark.parametrize(
    "unet, architecture, sentence",
    [
        ({}, {"unet": {"model_channels": 24, "channel_mult": [1], "attention": ["joint"], "head_dim": 8}}, "no weight of "),
        (
            {"block_out_channels": [16, 16, 32, 40]},
            {},
            "the training cannot start from .*block_out_channels are .16, 16, 32, 40",
        ),
        ({"layers_per_block": [1, 1, 2, 1]}, {}, "the training cannot start from .*layers_per_block is .1, 1, 2, 1."),
    ],
)
def test_2d_unet_that_does_not_fit_is_one_sentence(unet, architecture, sentence, tiny_sd, tmp_path):
    start = shutil.copytree(tiny_sd, tmp_path / "flat")
    config = json.loads((start / "unet/config.json").read_text())
    (start / "unet/config.json").write_text(json.dumps(config | unet))
    said = train_model("text2video", tmp_path, {**FROM_2D, "start_from": str(start), "architecture": architecture}, fails=2)
    assert re.search(f"error: {sentence}", said) and not (tmp_path / "training").exists()


class Constant(nn.Module):
    """A network that keeps its input, and predicts one number for the first frame and another for the rest."""

    first, rest = 0.0, 0.5

    def forward(self, x, timestep, text):
        self.shown = x
        output = torch.full_like(x, self.rest)
        output[:, :, 0] = self.first
        return output


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_given_first_frame_has_no_noise_and_no_loss(share, kind):
    config = {**TINY_TEXT2VIDEO, "first_frame_share": share, "prediction_type": kind}
    architecture, _ = config.pop("architecture"), config.pop("training")
    task = Text2VideoTask(TRAINING.options.resolved(config), architecture)
    task.unet = Constant()
    batch = collate([task.data[0][i] for i in range(2)])
    losses = []
    for task.unet.first in (0.0, 7.0):
        losses.append(task(batch, 0, torch.Generator().manual_seed(0)).item())
    assert torch.equal(task.unet.shown[:, :, 0], batch["video"][:, :, 0]) == (share == 1)
    assert not torch.equal(task.unet.shown[:, :, 1:], batch["video"][:, :, 1:])
    assert (losses[0] == losses[1]) == (share == 1)
