"""A Wan model trained from scratch, in diffusers and in the stages: a VAE, the 5b on it, and the 14b from the 5b."""

import json

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKLWan,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from PIL import Image
from safetensors.torch import load_file

from stages.families.shared.training.data import ShapesDataset
from stages.families.wan.options import DENOISER_TRAINING
from stages.families.wan.train_denoiser import DenoiserTask
from stages.media.read import frames
from stages.runtime import artifacts
from tests.commands import stage, train_model
from tests.tiny.wan import set_schedule

RHYTHM = {"warmup_steps": 0, "max_steps": 3, "validate_every": 3, "save_every": 3, "validation_samples": 3}
CLIPS = {"data": "shapes", "num_frames": 5, "frame_size": 32, "batch_size": 2, "learning_rate": 1e-3, **RHYTHM}
VAE = {
    "base_dim": 4,
    "decoder_base_dim": 4,
    "z_dim": 4,
    "dim_mult": [1, 1, 1],
    "num_res_blocks": 1,
    "temperal_downsample": [True, True],
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
    "scale_factor_temporal": 4,
    "scale_factor_spatial": 8,
}
DENOISER = {
    "text_encoder": {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2},
    "transformer": {
        "patch_size": [1, 2, 2],
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "freq_dim": 16,
        "ffn_dim": 16,
        "num_layers": 1,
        "rope_max_seq_len": 64,
    },
}
SHORT = {"max_sequence_length": 24, "sample_steps": 2, "max_samples": 4}
PROMPT, NEGATIVE = "a red ring moving left slowly on a black background", "a blue square"


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    config = {**CLIPS, "max_samples": 16, "image_steps": 1, "crop_size": 16, "architecture": VAE}
    return train_model("wan-vae", tmp_path_factory.mktemp("vae"), config)


@pytest.fixture(scope="module")
def small(vae, tmp_path_factory):
    return train_model("wan", tmp_path_factory.mktemp("5b"), {**CLIPS, **SHORT, "architecture": DENOISER}, "--vae", vae)


@pytest.fixture(scope="module")
def large(small, tmp_path_factory):
    config = {**CLIPS, **SHORT, "variant": "14b", "start_from": str(small)}
    return train_model("wan", tmp_path_factory.mktemp("14b"), config)


def test_trained_vae_has_the_statistics_of_its_latents(vae):
    """Over the training clips: the mean per channel, and the deviation of all channels together."""
    config = json.loads((vae / "vae" / "config.json").read_text())
    model = AutoencoderKLWan.from_pretrained(vae / "vae").eval()
    assert model.config.z_dim == len(config["latents_mean"]) == len(config["latents_std"]) == 4
    clips = ShapesDataset(16, 5, 32, seed=1)
    with torch.no_grad():
        latents = (
            torch.cat([model.encode(clips[i]["video"][None]).latent_dist.mode() for i in range(16)])
            .transpose(0, 1)
            .flatten(1)
        )
    mean = latents.mean(1)
    freedom = latents.numel() - 4  # a mean was subtracted from each channel
    spread = ((latents - mean[:, None]).square().sum() / freedom).sqrt().expand(4)
    torch.testing.assert_close(torch.tensor(config["latents_std"]), spread, rtol=1e-4, atol=0)
    torch.testing.assert_close(torch.tensor(config["latents_mean"]), mean, rtol=1e-4, atol=1e-5)


def test_a_sample_of_the_posterior_of_a_trained_vae_is_its_mode(vae):
    """The training is on the mode. A pipeline that draws, such as Helios's, gets the same latents."""
    model = AutoencoderKLWan.from_pretrained(vae / "vae").eval()
    with torch.no_grad():
        posterior = model.encode(ShapesDataset(1, 5, 32, seed=1)[0]["video"][None]).latent_dist
    spread = posterior.mode().std()
    assert (posterior.sample(torch.Generator().manual_seed(0)) - posterior.mode()).abs().max() < 1e-4 * spread


def test_training_the_decoder_alone_keeps_the_latents(vae, tmp_path):
    config = {**CLIPS, "image_steps": 0, "crop_size": 16, "start_from": str(vae), "freeze_encoder": True}
    decoder = train_model("wan-vae", tmp_path / "decoder", config)
    old, new = (load_file(f / "vae" / "diffusion_pytorch_model.safetensors") for f in (vae, decoder))
    changed = {name for name, tensor in old.items() if not torch.equal(tensor, new[name])}
    assert changed and not any(name.startswith(("encoder.", "quant_conv.")) for name in changed)
    configs = [json.loads((f / "vae" / "config.json").read_text()) for f in (vae, decoder)]
    assert all(configs[0][name] == configs[1][name] for name in ("latents_mean", "latents_std"))


def test_trained_denoiser_keeps_the_vae_it_was_given(vae, small, large):
    weights = load_file(vae / "vae" / "diffusion_pytorch_model.safetensors")
    for model in (small, large):
        copied = load_file(model / "vae" / "diffusion_pytorch_model.safetensors")
        assert all(torch.equal(tensor, copied[name]) for name, tensor in weights.items())


def test_experts_of_the_14b_start_as_the_5b_without_the_condition(small):
    options = DENOISER_TRAINING.options.resolved({**CLIPS, **SHORT, "variant": "14b", "start_from": str(small)})
    experts = DenoiserTask(options, {}).experts
    old = WanTransformer3DModel.from_pretrained(small / "transformer")
    assert old.proj_out.weight.any()
    generator = torch.Generator().manual_seed(0)
    x, text = (torch.randn(shape, generator=generator) for shape in ((1, 4, 2, 4, 4), (1, 24, 16)))
    with torch.no_grad():
        expected = old(x, torch.tensor([700.0]), text, return_dict=False)[0]
        assert expected.std() > 1e-4
        for expert in experts:
            for _ in range(2):
                hidden = torch.cat([x, torch.randn(1, 8, 2, 4, 4, generator=generator)], dim=1)
                output = expert(hidden, torch.tensor([700.0]), text, return_dict=False)[0]
                torch.testing.assert_close(output, expected, rtol=0, atol=1e-6)


def test_both_experts_of_the_14b_learn_and_use_the_condition(small, large):
    old = load_file(small / "transformer" / "diffusion_pytorch_model.safetensors")
    for name in ("transformer", "transformer_2"):
        new = load_file(large / name / "diffusion_pytorch_model.safetensors")
        assert not torch.equal(new["proj_out.weight"], old["proj_out.weight"])
        assert new["patch_embedding.weight"][:, 4:].any()


def run_denoiser(small, variant, model=None, **options):
    """The calls of a denoiser that replaces the network in a training step, the latents of the batch, and the loss."""
    defaults = {"variant": variant, "start_from": str(small), "text_dropout": 0.0}
    task = DenoiserTask(DENOISER_TRAINING.options.resolved({**CLIPS, **SHORT, **defaults, **options}), {})
    calls = []

    class Recorder(torch.nn.Module):
        def forward(self, hidden, time, text, return_dict):
            calls.append((hidden, time))
            return (torch.zeros_like(hidden[:, :4]),)

    task.experts = torch.nn.ModuleList(Recorder() for _ in task.experts)
    latents = torch.randn(4, 4, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    batch = {"latents": latents, "text": ["a red ring"] * 4, "image": latents + 7, "mask": torch.ones(4, 4, 2, 4, 4)}
    with torch.no_grad():
        return calls, latents, float(task(batch, 0, torch.Generator().manual_seed(2)))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_5b_training_gives_the_first_frame_with_timestep_zero(share, small):
    calls, latents, _ = run_denoiser(small, "5b", first_frame_share=share)
    ((hidden, time),) = calls
    assert time.shape == (4, 2 * 2 * 2)
    given = (hidden[:, :, 0] == latents[:, :, 0]).all()
    assert given == bool(share) and (time[:, :4] == 0).all() == bool(share)
    assert (time[:, 4:] > 0).all() and not (hidden[:, :, 1] == latents[:, :, 1]).any()


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_5b_loss_is_the_velocity_error_of_the_frames_not_given(share, small):
    """x_s = (1 - s) x + s n has the velocity n - x, whose mean square is the loss of a network that predicts zero."""
    calls, latents, mean_loss = run_denoiser(small, "5b", first_frame_share=share)
    ((hidden, time),) = calls
    sigma = time[:, -1].view(4, 1, 1, 1, 1) / 1000
    velocity = (hidden - latents) / sigma
    assert mean_loss == pytest.approx(float((velocity[:, :, int(share) :] ** 2).mean()), rel=1e-3)


def test_14b_training_has_condition_channels_and_an_expert_per_range(small):
    calls, latents, mean_loss = run_denoiser(small, "14b", boundary_ratio=0.7)
    (high, early), (low, late) = calls
    assert (early >= 700).all() and (late < 700).all() and len(early) == len(late) == 2
    assert torch.equal(torch.cat([high, low])[:, 8:], latents + 7) and (torch.cat([high, low])[:, 4:8] == 1).all()
    sigma = torch.cat([early, late]).view(4, 1, 1, 1, 1) / 1000
    velocity = (torch.cat([high, low])[:, :4] - latents) / sigma
    assert mean_loss == pytest.approx(float((velocity**2).mean()), rel=1e-3)


# -------------------------------------------------------------------------------------------------------------- stages


@pytest.mark.parametrize("variant", ["5b", "14b"])
def test_a_trained_wan_runs_in_diffusers_and_in_the_stages(variant, small, large, tmp_path):
    model = {"5b": small, "14b": large}[variant]
    pipe = WanImageToVideoPipeline.from_pretrained(model, dtype=torch.float32)
    assert (pipe.transformer_2 is not None) == (variant == "14b")
    Image.new("RGB", (32, 32), "red").save(tmp_path / "a.png")
    quick = ("--dtype", "float32")
    arguments = ("-m", model, "--prompt", PROMPT, "--frame-num", 5, "--max-sequence-length", 24)
    stage("encode", tmp_path / "a.png", "-o", tmp_path / "e.safetensors", *arguments, *quick)
    stage("generate", tmp_path / "e.safetensors", "-o", tmp_path / "l.safetensors", "--steps", 2, "--seed", 1, *quick)
    stage("decode", tmp_path / "l.safetensors", "-o", tmp_path / "clip.json")
    clip = artifacts.read(tmp_path / "clip.json", ("clip",))
    assert (clip.fields["num_frames"], clip.fields["width"], clip.fields["variant"]) == (5, 32, variant)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("model", ["trained", "random"])
def test_text_to_video_is_bit_identical_to_the_diffusers_pipeline(model, dtype, small, tiny_wan, tmp_path):
    folder = {"trained": small, "random": tiny_wan["5b"]}[model]
    steps, seed, shift, length = 4, 9, 4.0, 24
    text = ("--prompt", PROMPT, "--negative-prompt", NEGATIVE, "--max-sequence-length", length)
    arguments = ("--size", "64*64", "--frame-num", 9, "--dtype", dtype)
    stage("encode", "-o", tmp_path / "e.safetensors", "-m", folder, *text, *arguments)
    run = ("--steps", steps, "--seed", seed, "--shift", shift, "--guidance-scale", 4, "--dtype", dtype)
    stage("generate", tmp_path / "e.safetensors", "-o", tmp_path / "l.safetensors", *run)
    stage("decode", tmp_path / "l.safetensors", "-o", tmp_path / "clip.json", "--lossless")
    ours = np.stack([frame.rgb for frame in frames(tmp_path / "clip.mkv")])

    half = getattr(torch, dtype)
    dtypes = {"transformer": half, "text_encoder": half, "default": torch.float32}
    pipe = WanPipeline.from_pretrained(folder, dtype=dtypes)
    pipe.set_progress_bar_config(disable=True)
    set_schedule(pipe, shift)
    theirs = pipe(
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        height=64,
        width=64,
        num_frames=9,
        num_inference_steps=steps,
        guidance_scale=4.0,
        max_sequence_length=length,
        generator=torch.Generator("cpu").manual_seed(seed),
        output_type="np",
    ).frames[0]
    theirs = (theirs * 255).round().astype(np.uint8)
    assert theirs.std() > 5
    assert np.array_equal(ours, theirs)


def test_encode_for_the_14b_needs_a_first_frame(large, tmp_path):
    arguments = ("-o", tmp_path / "e.safetensors", "-m", large, "--prompt", PROMPT)
    stderr = stage("encode", *arguments, fails=1)
    assert "error: item e.safetensors has no first frame: the 14b needs one: encode IMAGE" in stderr


# --------------------------------------------------------------------------------------------------------------- usage


@pytest.mark.parametrize(
    "name, config, sentence",
    [
        ("wan-vae", {"architecture": VAE, "num_frames": 8}, "num_frames is 8: this VAE needs 4n+1, for example 9"),
        ("wan-vae", {"architecture": VAE, "frame_size": 36}, "frame_size is 36: this architecture needs a multiple of 8"),
        ("wan-vae", {}, "the architecture makes no model ('z_dim' is missing): give --config"),
        (
            "wan-vae",
            {"architecture": VAE, "freeze_encoder": True},
            "freeze_encoder is on and there is no encoder yet: give --start-from, a trained VAE",
        ),
        ("wan-vae", {"architecture": {**VAE, "zdim": 4}}, "the architecture makes no model ("),
        ("wan", {"architecture": DENOISER}, "no folder has no vae/: give --vae, a folder that train wan-vae wrote"),
        ("wan", {"vae": "small", "frame_size": 40}, "frame_size is 40: this architecture needs a multiple of 16"),
        ("wan", {"vae": "small"}, "the architecture makes no model ('text_encoder' is missing): give --config"),
        ("wan", {"start_from": "vae"}, "the training cannot start from "),
        ("wan", {"start_from": "small", "variant": "14b", "batch_size": 1}, "batch_size is 1 and each of the two experts"),
    ],
)
def test_an_impossible_wan_training_is_one_sentence(name, config, sentence, vae, small, tmp_path):
    folders = {"small": str(small), "vae": str(vae)}
    config = {key: folders.get(value, value) if isinstance(value, str) else value for key, value in config.items()}
    stderr = train_model(name, tmp_path / "t", {**CLIPS, **config}, fails=2)
    lines = [line for line in stderr.splitlines() if not line.startswith("{")]
    assert len(lines) == 1 and lines[0].startswith(f"error: {sentence}"), stderr
