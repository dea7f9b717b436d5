"""A VAE, a Stable Diffusion and its ControlNet trained from scratch, in diffusers and in the stages."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel, StableDiffusionControlNetPipeline
from PIL import Image
from torch import nn
from transformers import AutoTokenizer

from stages.families.fresco.looks import TwoLooks
from stages.families.fresco.options import TRAINING, detect
from stages.families.fresco.train import EdgesTask
from stages.families.shared.training.data import collate
from stages.media.edges import THRESHOLDS
from stages.media.read import read_image
from stages.media.shapes.oracle import read as look_at
from stages.runtime import artifacts
from tests.commands import stage, train_model
from tests.conftest import TINY_CLIP_TEXT
from tests.families.shared.training.test_data import COLORS, write_clip

RHYTHM = {"warmup_steps": 0, "max_steps": 3, "validate_every": 3, "save_every": 3, "validation_samples": 3}
SHAPES = {"data": "shapes", "max_samples": 4, "frame_size": 64, "batch_size": 2, "learning_rate": 1e-3, **RHYTHM}
VAE = {
    "block_out_channels": [8, 8, 8, 8],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "latent_channels": 4,
}
MODEL = {
    "text_encoder": {**TINY_CLIP_TEXT, "max_position_embeddings": 24},
    "unet": {
        "block_out_channels": [16, 16, 16, 16],
        "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
        "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
        "layers_per_block": 1,
        "attention_head_dim": 2,
        "norm_num_groups": 8,
    },
    "controlnet": {"conditioning_embedding_out_channels": [4, 4, 4, 4]},
}
PROMPT = "a red ring moving left slowly on a black background, filmed"


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    return train_model("sd-vae", tmp_path_factory.mktemp("vae"), {**SHAPES, "crop_size": 32, "architecture": VAE})


@pytest.fixture(scope="module")
def model(vae, tmp_path_factory):
    return train_model("fresco", tmp_path_factory.mktemp("fresco"), {**SHAPES, "architecture": MODEL}, "--vae", vae)


def task(vae, **options):
    return EdgesTask(TRAINING.options.resolved({**SHAPES, "vae": str(vae), **options}), MODEL)


# ----------------------------------------------------------------------------------------------------------------- data


def test_training_clips_have_two_looks_and_captions_that_name_them():
    clips = TwoLooks(20, 9, 64, seed=1)
    for i in range(20):
        item = clips[i]
        scene, look = item["scene"], ("drawn", "filmed")[i % 2]
        assert item["text"] == f"{scene.caption()}, {look}"
        pixels = np.rint((item["video"].numpy() + 1) * 127.5).astype(np.uint8).transpose(1, 2, 3, 0)
        assert look_at(pixels).color == scene.color
        _, counts = np.unique(pixels[0].reshape(-1, 3), axis=0, return_counts=True)
        assert (counts.max() < 0.5 * counts.sum()) == (look == "filmed")  # the drawn look has a plain background


# ------------------------------------------------------------------------------------------------------------------ vae


def test_scaled_latents_of_a_trained_vae_have_a_deviation_of_one(vae):
    autoencoder = AutoencoderKL.from_pretrained(vae, subfolder="vae")
    video = torch.stack([TwoLooks(4, 1, 64, seed=1)[i]["video"][:, 0] for i in range(4)])
    with torch.no_grad():
        latents = autoencoder.encode(video).latent_dist.mode() * autoencoder.config.scaling_factor
    assert latents.std().item() == pytest.approx(1, rel=1e-3)


def test_longer_training_lowers_the_error_of_the_vae(vae, tmp_path):
    steps = {"max_steps": 150, "validate_every": 150, "save_every": 150}
    quick = {"batch_size": 4, "learning_rate": 5e-3, "ema_decay": 0.9, "max_samples": 32}
    longer = train_model("sd-vae", tmp_path, {**SHAPES, "crop_size": 32, "architecture": VAE, **steps, **quick})
    images = torch.stack([TwoLooks(8, 1, 64, seed=3)[i]["video"][:, 0] for i in range(8)])
    errors = []
    for folder in (vae, longer):
        autoencoder = AutoencoderKL.from_pretrained(folder, subfolder="vae")
        with torch.no_grad():
            errors.append((autoencoder(images).sample - images).abs().mean().item())
    assert errors[1] < 0.5 * errors[0]


def test_training_the_decoder_alone_keeps_the_latents(vae, tmp_path):
    config = {**SHAPES, "crop_size": 32, "start_from": str(vae), "freeze_encoder": True, "learning_rate": 1e-2}
    again, before = (
        AutoencoderKL.from_pretrained(folder, subfolder="vae") for folder in (train_model("sd-vae", tmp_path, config), vae)
    )
    image = TwoLooks(1, 1, 64, seed=1)[0]["video"][:, 0][None]
    with torch.no_grad():
        assert torch.equal(again.encode(image).latent_dist.mode(), before.encode(image).latent_dist.mode())
        assert not torch.equal(again.decode(torch.ones(1, 4, 4, 4)).sample, before.decode(torch.ones(1, 4, 4, 4)).sample)
    assert again.config.scaling_factor == before.config.scaling_factor


# --------------------------------------------------------------------------------------------------------------- denoiser


def test_diffusers_runs_a_trained_stable_diffusion(model):
    control = ControlNetModel.from_pretrained(model, subfolder="controlnet_canny")
    pipeline = StableDiffusionControlNetPipeline.from_pretrained(
        model, controlnet=control, safety_checker=None, feature_extractor=None
    )
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(PROMPT, Image.new("RGB", (64, 64)), num_inference_steps=2, output_type="np").images
    assert images.shape == (1, 64, 64, 3) and np.isfinite(images).all()


def test_stages_run_a_trained_stable_diffusion(model, keys, tmp_path):
    assert detect(model) == ""
    few = ("--num-inference-steps", 3, "--num-warmup-steps", 1, "--feature-iterations", 1, "--dtype", "float32")
    canny = ("--controlnet-type", "canny")
    stage("encode", keys(3), "-o", tmp_path / "e.safetensors", "-m", model, "--prompt", PROMPT, *canny, *few[-2:])
    stage("generate", tmp_path / "e.safetensors", "-o", tmp_path / "l.safetensors", *canny, *few)
    stage("decode", tmp_path / "l.safetensors", "-o", tmp_path / "keys.json")
    keyframes = artifacts.read(tmp_path / "keys.json", artifacts.KINDS)
    images = [read_image(keyframes.member(frame["suffix"])) for frame in keyframes.fields["frames"]]
    assert len(images) == 3 and all(image.std() > 0 for image in images)


def test_the_controlnet_is_trained_on_the_edges_of_the_frame(vae):
    import cv2

    item, clip = task(vae).data[0][1], TwoLooks(4, 1, 64, seed=1)[1]
    rgb = np.rint((clip["video"][:, 0].numpy() + 1) * 127.5).astype(np.uint8).transpose(1, 2, 0)
    assert np.array_equal(item["control"], cv2.Canny(rgb, *THRESHOLDS)) and item["control"].any()


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_controlnet_gives_zero_without_edges(vae, share):
    training, losses = task(vae, control_dropout=share), []
    batch = collate([training.data[0][i] for i in range(2)])
    for weight in (0.0, 0.5):
        for module in training.controlnet.controlnet_down_blocks:
            nn.init.constant_(module.weight, weight)
        losses.append(training(batch, 0, torch.Generator().manual_seed(0)).item())
    assert (losses[0] == losses[1]) == (share == 1)


def test_training_the_controlnet_alone_keeps_the_unet(model, tmp_path):
    again = train_model("fresco", tmp_path, {**SHAPES, "start_from": str(model), "freeze_unet": True})
    unet, control = ("unet/diffusion_pytorch_model.safetensors", "controlnet_canny/diffusion_pytorch_model.safetensors")
    assert (again / unet).read_bytes() == (model / unet).read_bytes()
    assert (again / control).read_bytes() != (model / control).read_bytes()


def test_training_on_a_folder_builds_its_vocabulary(vae, tmp_path):
    for number, word in enumerate(("Kugel", "Würfel", "Kegel")):
        write_clip(tmp_path / "data", str(number), COLORS, f"eine rote {word}", size=(64, 64))
    config = {**SHAPES, "data": str(tmp_path / "data"), "architecture": MODEL}
    tokenizer = AutoTokenizer.from_pretrained(train_model("fresco", tmp_path, config, "--vae", vae) / "tokenizer")
    assert {"eine", "rote", "kugel", "würfel", "kegel"} <= set(tokenizer.get_vocab())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_frames": 2}, "num_frames is 2 and the model generates images: give --num-frames 1"),
        ({"vae": "nowhere"}, "nowhere has no vae/: give --vae, a folder that train sd-vae wrote"),
    ],
)
def test_an_impossible_fresco_training_is_one_sentence(vae, change, message, tmp_path):
    config = {**SHAPES, "vae": str(vae), "architecture": MODEL, **change}
    assert f"error: {message}" in train_model("fresco", tmp_path, config, fails=2)


def test_a_training_size_that_the_vae_would_round_is_one_sentence(tmp_path):
    stderr = train_model("sd-vae", tmp_path, {**SHAPES, "frame_size": 60, "architecture": VAE}, fails=2)
    assert "error: frame_size is 60: this architecture needs a multiple of 8" in stderr
