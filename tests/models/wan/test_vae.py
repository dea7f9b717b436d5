"""Decoding frame by frame gives the frames of the library's decode, and keeps no more than one step of it."""

import pytest
import torch
from diffusers import AutoencoderKLWan

from stages.models.shared.wan.vae import decoded


@pytest.fixture(params=["14b", "5b"])
def vae(request, tiny_wan):
    return AutoencoderKLWan.from_pretrained(tiny_wan[request.param], subfolder="vae")


@pytest.fixture
def latents(vae):
    return torch.randn(1, vae.config.z_dim, 5, 4, 6, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_stream_equals_one_shot(vae, latents):
    whole = vae.decode(latents, return_dict=False)[0][0]  # [3, N, H, W]
    assert torch.equal(torch.stack(list(decoded(vae, latents)), dim=1), whole)


def test_stream_decodes_a_latent_only_when_its_frames_are_wanted(vae, latents, monkeypatch):
    calls, forward = [], vae.decoder.forward
    monkeypatch.setattr(vae.decoder, "forward", lambda x, **rest: calls.append(x.shape[2]) or forward(x, **rest))
    stream = decoded(vae, latents)
    consumed = [(next(stream).shape, len(calls)) for _ in range(6)]
    assert [count for _, count in consumed] == [1, 2, 2, 2, 2, 3]
    assert calls == [1, 1, 1]


@torch.no_grad()
def test_stream_that_is_left_early_does_not_disturb_the_next(vae, latents):
    next(decoded(vae, latents.flip(2)))
    whole = vae.decode(latents, return_dict=False)[0][0]
    assert torch.equal(torch.stack(list(decoded(vae, latents)), dim=1), whole)


@torch.no_grad()
def test_tiling_is_the_librarys(vae, latents):
    vae.enable_tiling(32, 32, 16, 16)
    whole = vae.decode(latents, return_dict=False)[0][0]
    assert torch.equal(torch.stack(list(decoded(vae, latents)), dim=1), whole)
    vae.disable_tiling()
    assert not torch.equal(vae.decode(latents, return_dict=False)[0][0], whole)
