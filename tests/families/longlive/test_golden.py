"""Outputs of LongLive v1.0 on tiny random weights, from checkpoints in its published format through convert."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file

from stages.families.longlive.cache import Cache
from stages.families.longlive.causal import CausalWan
from stages.families.longlive.sampler import Schedule, denoise, prefill, update_cache
from stages.families.shared.wan.lora import Lora, merge
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
def test_a_converted_checkpoint_gives_the_golden_video(repository, lora, expected):
    transformer = WanTransformer3DModel.from_pretrained(repository / "transformer", use_safetensors=True).eval()
    if lora:
        merge(transformer, [Lora(repository / "lora.safetensors", alpha=CONFIG["lora_alpha"])])
    case = load_file(GOLDEN / "case.safetensors")
    video = {name: tensor.transpose(-4, -3) for name, tensor in case.items() if tensor.ndim > 3}
    schedule = Schedule.of([1000, 750, 500, 250], shift=5.0, warp=True, context_noise=0.0)
    assert [1000 * sigma for sigma in schedule.sigmas] == pytest.approx(CONFIG["timesteps"])
    model, cache = CausalWan(transformer), Cache(CONFIG["local_attn_size"], CONFIG["sink_size"])
    prefill(model, cache, video["cond"], case["prompt1"], schedule, 3)
    cache.clear_cross_attention()
    output_blocks = []
    for block, (noise, fresh) in enumerate(zip(video["noise"].split(3, dim=2), video["renoise"], strict=True)):
        clean = denoise(model, cache, noise, fresh, case["prompt2"], schedule, 9 + 3 * block)
        update_cache(model, cache, clean, case["prompt2"], schedule, 9 + 3 * block)
        output_blocks.append(clean)
    assert (torch.cat(output_blocks, dim=2) - video[expected]).abs().max() <= 2e-5
