"""A link that goes on from the latents of the one before, against the pipeline of diffusers with the same history."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import load_file

from stages.families.helios import generate
from stages.families.helios.noise import SOURCE, generator
from tests.families.helios.conftest import BLOCK, PROMPT, SIZE, encode, images
from tests.families.helios.test_identity import SEED, pipeline_frames, stages_frames

NO_NOISE = ("--image-noise-sigma", 0, "--image-noise-sigma", 0, "--video-noise-sigma", 0, "--video-noise-sigma", 0)


def first_latent(model, image):
    """The normalised latent of an image, sampled as for a source, by diffusers."""
    vae = AutoencoderKLWan.from_pretrained(model, subfolder="vae")
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None, :, None].float() / 127.5 - 1
    mean, std = (torch.tensor(vae.config[name]).view(1, -1, 1, 1, 1) for name in ("latents_mean", "latents_std"))
    with torch.no_grad():
        sampled = vae.encode(pixels).latent_dist.sample(generator(SEED, SOURCE))
    return (sampled - mean) * (1.0 / std)


@pytest.mark.parametrize("variant", ["base", "distilled"])
def test_a_link_goes_on_from_latents_as_the_pipeline_does(variant, tiny_helios, source, tmp_path, monkeypatch):
    model, side = tiny_helios[variant], SIZE[variant]
    encode(tmp_path / "before.safetensors", model, side, "--prompt", PROMPT)
    stages_frames(tmp_path / "before.safetensors", tmp_path, variant, "float32")
    before = tmp_path / "l.safetensors"
    latents = load_file(before)["latents"]
    assert latents.shape[2] == 3 * BLOCK

    encode(tmp_path / "e.safetensors", model, side, source(side), "--past", before, "--prompt", PROMPT)
    assert torch.equal(load_file(tmp_path / "e.safetensors")["past_latents"], latents)
    draws = torch.Generator("cpu").manual_seed(SEED)
    monkeypatch.setattr(generate, "generator", lambda seed, number: draws if number else generator(seed, number))
    folder = tmp_path / "link"
    folder.mkdir()
    ours = stages_frames(tmp_path / "e.safetensors", folder, variant, "float32", *NO_NOISE)
    theirs = pipeline_frames(
        model,
        variant,
        torch.float32,
        image_latents=first_latent(model, images(source(side))[0]),
        video_latents=latents,
        add_noise_to_image_latents=False,
        add_noise_to_video_latents=False,
    )
    assert theirs.std() > 20 and np.array_equal(ours, theirs)
