"""LongLive v1.0's own outputs on tiny random weights, from its published checkpoints through convert (tests/golden)."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file

from stages.models.longlive.cache import Cache
from stages.models.longlive.causal import CausalWan
from stages.models.longlive.sampler import Schedule, denoise, prefill
from stages.models.shared.wan.lora import merge
from tests.commands import convert

GOLDEN = Path(__file__).parents[2] / "golden/longlive"
CONFIG = json.loads((GOLDEN / "config.json").read_text())


@pytest.fixture(scope="module")
def repository(wan_repository, tmp_path_factory):
    output = tmp_path_factory.mktemp("converted") / "longlive"
    files = ("--base", GOLDEN / "longlive_base.pt", "--lora", GOLDEN / "lora.pt")
    convert("longlive", *files, "--ema", "--wan", wan_repository, "--output", output)
    return output


@pytest.mark.parametrize("lora, expected", [(False, "latents"), (True, "latents_lora")])
@torch.no_grad()
def test_a_converted_checkpoint_makes_what_longlive_makes_of_it(repository, lora, expected):
    transformer = WanTransformer3DModel.from_pretrained(repository / "transformer", use_safetensors=True).eval()
    if lora:
        merge(transformer, repository / "lora.safetensors", alpha=CONFIG["lora_alpha"])
    case = load_file(GOLDEN / "case.safetensors")
    video = {name: tensor.transpose(-4, -3) for name, tensor in case.items() if tensor.ndim > 3}
    schedule = Schedule.of([1000, 750, 500, 250], shift=5.0, warp=True, context_noise=0.0)
    assert [1000 * sigma for sigma in schedule.sigmas] == pytest.approx(CONFIG["timesteps"])
    model, cache = CausalWan(transformer), Cache(CONFIG["local_attn_size"], CONFIG["sink_size"])
    prefill(model, cache, video["cond"], case["prompt1"], schedule, 3)
    cache.forget_prompt()
    made = [
        denoise(model, cache, noise, fresh, case["prompt2"], schedule, 9 + 3 * block)
        for block, (noise, fresh) in enumerate(zip(video["noise"].split(3, dim=2), video["renoise"], strict=True))
    ]
    assert (torch.cat(made, dim=2) - video[expected]).abs().max() <= 2e-5
