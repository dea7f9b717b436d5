"""The 5b with a row for each different timestep: the library's predictions, and no more rows than timesteps."""

import pytest
import torch
from diffusers import WanTransformer3DModel

from stages.families.wan.timesteps import ENOUGH, embed_each_timestep_once

CLIP = (1, 48, 5, 8, 12)
TOKENS = 5 * 4 * 6


def load(tiny_wan, dtype):
    return WanTransformer3DModel.from_pretrained(tiny_wan["5b"], subfolder="transformer", dtype=dtype).eval()


def of_first_frame(t):
    return torch.tensor([0.0] * 24 + [t] * (TOKENS - 24))


def inputs(timesteps, dtype):
    """Those of a pass: a clip for each row of `timesteps` [B, tokens]."""
    random, count = torch.Generator().manual_seed(0), len(timesteps)
    x = torch.randn(count, *CLIP[1:], generator=random).to(dtype)
    return x, timesteps, torch.randn(count, 16, 32, generator=random).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "timesteps",
    [
        of_first_frame(937.5)[None],
        torch.full((1, TOKENS), 500.0),
        torch.stack([of_first_frame(937.5), of_first_frame(20.0).flip(0)]),
    ],
    ids=["first frame", "text alone", "two clips"],
)
@torch.no_grad()
def test_predictions_are_those_of_the_library(timesteps, dtype, tiny_wan):
    given = inputs(timesteps, dtype)
    plain, ours = load(tiny_wan, dtype), load(tiny_wan, dtype)
    embed_each_timestep_once(ours)
    expected, found = (model(*given, return_dict=False)[0] for model in (plain, ours))
    assert (found.float() - expected.float()).abs().max() <= 1e-5 * expected.float().abs().max()
    other = plain(given[0], timesteps.clamp(max=400), given[2], return_dict=False)[0]
    assert (other.float() - expected.float()).abs().max() > 1e-3  # the timestep of a token matters


@torch.no_grad()
def test_rows_are_computed_for_timesteps_and_not_for_tokens(tiny_wan):
    model, seen = load(tiny_wan, torch.float32), []
    embed_each_timestep_once(model)
    model.condition_embedder.time_proj.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0].shape[-2]))
    model.blocks[1].register_forward_pre_hook(lambda block, inputs: seen.append(len(inputs[2].rows)))
    model(*inputs(of_first_frame(937.5)[None], torch.float32))
    assert seen == [ENOUGH, 2]
