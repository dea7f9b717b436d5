"""Decoding frame by frame gives the frames of diffusers' decode, and keeps only one step in memory."""

import pytest
import torch
from diffusers import AutoencoderKLWan

from stages.families.shared.wan.vae import decode_video


@pytest.fixture(params=["14b", "5b"])
def vae(request, tiny_wan):
    return AutoencoderKLWan.from_pretrained(tiny_wan[request.param], subfolder="vae")


@pytest.fixture
def latents(vae):
    return torch.randn(1, vae.config.z_dim, 5, 4, 6, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_streaming_decode_equals_the_decode_of_diffusers(vae, latents):
    frames = vae.decode(latents, return_dict=False)[0][0]  # [3, N, H, W]
    assert torch.equal(torch.stack(list(decode_video(vae, latents)), dim=1), frames)


def test_streaming_decode_decodes_a_latent_only_on_demand(vae, latents, monkeypatch):
    calls, forward = [], vae.decoder.forward
    monkeypatch.setattr(vae.decoder, "forward", lambda x, **rest: calls.append(x.shape[2]) or forward(x, **rest))
    stream = decode_video(vae, latents)
    consumed = [(next(stream).shape, len(calls)) for _ in range(6)]
    assert [count for _, count in consumed] == [1, 2, 2, 2, 2, 3]
    assert calls == [1, 1, 1]


@torch.no_grad()
def test_an_abandoned_streaming_decode_does_not_disturb_the_next(vae, latents):
    next(decode_video(vae, latents.flip(2)))
    frames = vae.decode(latents, return_dict=False)[0][0]
    assert torch.equal(torch.stack(list(decode_video(vae, latents)), dim=1), frames)


@torch.no_grad()
def test_tiled_decode_equals_that_of_diffusers(vae, latents):
    vae.enable_tiling(32, 32, 16, 16)
    frames = vae.decode(latents, return_dict=False)[0][0]
    assert torch.equal(torch.stack(list(decode_video(vae, latents)), dim=1), frames)
    vae.disable_tiling()
    assert not torch.equal(vae.decode(latents, return_dict=False)[0][0], frames)
