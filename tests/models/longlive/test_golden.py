"""LongLive v1.0's own outputs on tiny random weights, from its published checkpoint layout (tests/golden/longlive)."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file

from stages.models.longlive.cache import Cache
from stages.models.longlive.causal import CausalWan
from stages.models.longlive.sampler import Schedule, denoise, prefill
from stages.models.shared.wan.names import diffusers_name

GOLDEN = Path(__file__).parents[2] / "golden/longlive"
CONFIG = json.loads((GOLDEN / "config.json").read_text())


@pytest.fixture
def transformer():
    names = ("num_attention_heads", "attention_head_dim", "num_layers", "ffn_dim", "freq_dim", "text_dim", "in_channels")
    model = WanTransformer3DModel(**{name: CONFIG[name] for name in names}, out_channels=CONFIG["out_channels"])
    weights = torch.load(GOLDEN / "longlive_base.pt", weights_only=True)["generator_ema"]
    model.load_state_dict({diffusers_name(name.removeprefix("model.")): tensor for name, tensor in weights.items()})
    return model.eval()


@torch.no_grad()
def test_sampler_and_cache_compute_what_longlive_does(transformer):
    case = {
        name: tensor.transpose(-4, -3) for name, tensor in load_file(GOLDEN / "case.safetensors").items() if tensor.ndim > 3
    }
    texts = load_file(GOLDEN / "case.safetensors")
    schedule = Schedule.of([1000, 750, 500, 250], shift=5.0, warp=True, context_noise=0.0)
    assert [1000 * sigma for sigma in schedule.sigmas] == pytest.approx(CONFIG["timesteps"])
    model, cache = CausalWan(transformer), Cache(CONFIG["local_attn_size"], CONFIG["sink_size"])
    prefill(model, cache, case["cond"], texts["prompt1"], schedule, 3)
    cache.forget_prompt()
    made = [
        denoise(model, cache, noise, fresh, texts["prompt2"], schedule, 9 + 3 * block)
        for block, (noise, fresh) in enumerate(zip(case["noise"].split(3, dim=2), case["renoise"], strict=True))
    ]
    assert (torch.cat(made, dim=2) - case["latents"]).abs().max() <= 2e-5
