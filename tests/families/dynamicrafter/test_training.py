"""DynamiCrafter trained from scratch: the inputs and targets of its U-Net, and the trained model in the stages."""

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from stages.families.dynamicrafter.options import TRAINING, detect
from stages.families.dynamicrafter.train import DynamiCrafterTask
from stages.families.shared.training.data import ShapesDataset, collate
from stages.media.read import frames
from stages.media.shapes import world
from tests.commands import stage, train_model
from tests.conftest import TINY_CLIP_TEXT
from tests.families.shared.training.test_data import COLORS, write_clip

SHAPES = {
    **{"data": "shapes", "max_samples": 4, "num_frames": 4, "frame_size": 64, "batch_size": 2, "learning_rate": 1e-3},
    **{"warmup_steps": 0, "max_steps": 3, "validate_every": 3, "save_every": 3, "validation_samples": 3, "sample_steps": 2},
}
ARCHITECTURE = {
    "text_encoder": TINY_CLIP_TEXT,
    "image_encoder": {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
        "projection_dim": 16,
    },
    "image_projector": {"dim": 16, "depth": 1, "dim_head": 8, "heads": 2, "ff_mult": 1},
    "unet": {
        "model_channels": 32,
        "channel_mult": [1, 1],
        "num_res_blocks": 1,
        "attention_resolutions": [2],
        "num_head_channels": 8,
    },
}
PROMPT = "a red ring moving left slowly on a black background"


@pytest.fixture(scope="module")
def vae(repositories):
    """The folder of a repository, of which only the VAE is used."""
    return repositories["256"]


@pytest.fixture(scope="module", params=["256", "1024"])
def model(request, vae, tmp_path_factory):
    config = {**SHAPES, "variant": request.param, "vae": str(vae), "architecture": ARCHITECTURE}
    return request.param, train_model("dynamicrafter", tmp_path_factory.mktemp("dynamicrafter"), config)


def task(vae, **options):
    return DynamiCrafterTask(TRAINING.options.resolved({**SHAPES, "vae": str(vae), **options}), ARCHITECTURE)


def test_stages_run_a_trained_dynamicrafter(model, tmp_path):
    variant, folder = model
    assert detect(folder) == variant
    config = {"models": {"mine": {"family": "dynamicrafter", "variant": variant, "path": str(folder), "sizes": ["64*64"]}}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    scene = world.sample(np.random.default_rng(0))
    Image.fromarray(world.render(scene, 1)[0]).save(tmp_path / "a.png")
    config_arguments, quick = ("--config", tmp_path / "config.yaml"), ("--num-inference-steps", 2, "--dtype", "float32")
    stage(
        *(
            "encode",
            tmp_path / "a.png",
            "-m",
            "mine",
            *config_arguments,
            "-o",
            tmp_path / "e.safetensors",
            "--prompt",
            PROMPT,
        ),
        *("--size", "64*64", "--video-length", 4),
    )
    stage("generate", tmp_path / "e.safetensors", *config_arguments, "-o", tmp_path / "l.safetensors", *quick)
    stage("decode", tmp_path / "l.safetensors", *config_arguments, "-o", tmp_path / "clip.json")
    assert [frame.rgb.shape for frame in frames(tmp_path / "clip.mp4")] == [(64, 64, 3)] * 4


def test_training_encodes_clips_like_the_stage_encode(model, vae, tmp_path):
    """The latents and CLIP tokens of a first frame are the same from a training clip and from a file by encode."""
    variant, folder = model
    training = task("", variant=variant, start_from=str(folder))
    clip = ShapesDataset(4, 4, 64, seed=1)[2]
    item = training.data[0][2]
    Image.fromarray(np.rint((clip["video"][:, 0].numpy() + 1) * 127.5).astype(np.uint8).transpose(1, 2, 0)).save(
        tmp_path / "first.png"
    )
    declared = {"family": "dynamicrafter", "variant": variant, "path": str(folder), "sizes": ["64*64"]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"models": {"mine": declared}}))
    stage(
        *("encode", tmp_path / "first.png", "-m", "mine", "--config", tmp_path / "config.yaml"),
        *("-o", tmp_path / "e.safetensors", "--prompt", item["text"], "--size", "64*64", "--video-length", 4),
    )
    output = load_file(tmp_path / "e.safetensors")
    with torch.no_grad():
        tokens, text = training._tokens(item["image"][None]), training._text([item["text"]])
    torch.testing.assert_close(output["image_latents"][0, :, 0], item["latents"][:, 0], rtol=0, atol=1e-4)
    torch.testing.assert_close(output["image_embeds"], tokens, rtol=0, atol=1e-4)
    torch.testing.assert_close(output["prompt_embeds"], text, rtol=0, atol=1e-5)


class Oracle(nn.Module):
    """A network that knows the clip, and predicts noise or velocity by the formulas."""

    def __init__(self, clip, predicts, alphas, scales):
        super().__init__()
        self.clip, self.predicts, self.alphas, self.scales = clip, predicts, alphas, scales

    def forward(self, x, timesteps, text, image, fs):
        self.shown, self.text, self.image = x, text, image
        alpha = self.alphas[timesteps].view(-1, 1, 1, 1, 1)
        clip = self.scales[timesteps].view(-1, 1, 1, 1, 1) * self.clip
        noise = (x[:, :4] - alpha.sqrt() * clip) / (1 - alpha).sqrt()
        return noise if self.predicts == "noise" else alpha.sqrt() * noise - (1 - alpha).sqrt() * clip


@pytest.mark.parametrize(
    ("variant", "predicts", "lowest"), [("256", "noise", 1.0), ("512", "velocity", 0.7), ("1024", "velocity", 0.3)]
)
def test_training_loss_is_zero_for_an_oracle_of_each_variant(vae, variant, predicts, lowest):
    """The formulas: scaled-linear betas, rescaled to zero terminal SNR except for 256, and a scale that falls until 400."""
    alphas = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
    if variant != "256":
        root = alphas.sqrt()
        alphas = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    scales = torch.cat([torch.linspace(1, lowest, 400), torch.full((600,), lowest)])
    training = task(vae, variant=variant)
    batch = collate([training.data[0][i] for i in range(2)])
    training.unet = Oracle(batch["latents"], predicts, alphas.float(), scales)
    assert training(batch, 0, torch.Generator().manual_seed(0)).item() < 1e-5
    first_frame = batch["latents"][:, :, :1]
    assert torch.equal(training.unet.shown[:, 4:], first_frame.expand(-1, -1, 4, -1, -1))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_training_drops_captions_and_images_for_guidance(vae, share):
    training = task(vae, dropout=share)
    batch = collate([training.data[0][i] for i in range(2)])
    alphas = torch.full((1000,), 0.5)
    training.unet = Oracle(batch["latents"], "noise", alphas, torch.ones(1000))
    training(batch, 0, torch.Generator().manual_seed(0))
    assert torch.equal(training.unet.text[0], training.unet.text[1]) == (share == 1)
    assert torch.equal(training.unet.image[0], training.unet.image[1]) == (share == 1)


def test_noisy_share_prefers_noisy_timesteps(vae):
    training, drawn_timesteps = task(vae, noisy_share=3.0), []
    batch = collate([training.data[0][i] for i in range(2)])

    class Recorder(nn.Module):
        def forward(self, x, timesteps, *others):
            drawn_timesteps.extend(timesteps.tolist())
            return x[:, :4]

    training.unet = Recorder()
    for step in range(200):
        training(batch, step, torch.Generator().manual_seed(step))
    assert np.mean(drawn_timesteps) == pytest.approx(750, abs=30)  # the mean of u ** (1 / 3) for u uniform in 0..1 is 3 / 4


class Faulty(Oracle):
    """An oracle that is wrong about one clip of the batch."""

    fault = 0

    def forward(self, *arguments):
        output = super().forward(*arguments)
        output[self.fault] += 1.0
        return output


@pytest.mark.parametrize(("limit", "share"), [(1.0, 0.5), (9.0, 0.9)])
def test_loss_weights_rise_at_high_noise_on_request(vae, limit, share):
    training, losses = task(vae, weight_limit=limit), []
    batch = collate([training.data[0][i] for i in range(2)])
    first, second = (1000 * torch.rand(2, generator=torch.Generator().manual_seed(0))).long().tolist()  # their timesteps
    training.alphas[first], training.alphas[second] = 0.01, 0.5  # an error of the noise is 99 and 1 times that of the clip
    training.unet = Faulty(batch["latents"], "noise", training.alphas, training.scales)
    for training.unet.fault in (0, 1):
        losses.append(training(batch, 0, torch.Generator().manual_seed(0)).item())
    assert losses[0] / sum(losses) == pytest.approx(share, abs=1e-3)


def test_encoders_stay_frozen_unless_trained_on_request(model, tmp_path):
    variant, folder = model
    config = {**SHAPES, "variant": variant, "start_from": str(folder)}
    for frozen in (True, False):
        again = train_model("dynamicrafter", tmp_path / str(frozen), {**config, "freeze_encoders": frozen})
        for name in ("text_encoder", "image_encoder"):
            same = (again / name / "model.safetensors").read_bytes() == (folder / name / "model.safetensors").read_bytes()
            assert same == frozen, name


def test_training_continues_a_model_on_a_folder_of_clips(model, tmp_path):
    variant, folder = model
    for number in range(3):
        write_clip(tmp_path / "data", str(number), COLORS, "a ring", size=(64, 64))
    config = {**SHAPES, "variant": variant, "start_from": str(folder), "data": str(tmp_path / "data")}
    again = train_model("dynamicrafter", tmp_path / "again", config)
    before, after = (load_file(path / "unet/diffusion_pytorch_model.safetensors") for path in (folder, again))
    assert before.keys() == after.keys() and any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frame_size": 96}, "frame_size is 96: it must be a multiple of 64"),
        ({"vae": "nowhere"}, "nowhere has no vae/: give --vae, a folder that train sd-vae wrote"),
        ({"vae": ""}, "no folder has no vae/: give --vae, a folder that train sd-vae wrote"),
    ],
)
def test_an_impossible_dynamicrafter_training_is_one_sentence(vae, change, message, tmp_path):
    config = {**SHAPES, "vae": str(vae), "architecture": ARCHITECTURE, **change}
    assert f"error: {message}" in train_model("dynamicrafter", tmp_path, config, fails=2)
