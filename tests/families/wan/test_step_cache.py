"""Step caches of Wan: what they leave out, against plain passes of the library, and what they refuse."""

from itertools import pairwise

import pytest
import torch
from diffusers import FirstBlockCacheConfig, UniPCMultistepScheduler, WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttention
from safetensors.torch import load_file

from stages.families.shared.flow_options import CACHES
from stages.families.wan.options import GenerateOptions
from stages.runtime.errors import UsageError
from stages.runtime.key import digest_options
from tests.commands import events, stage
from tests.families.wan.conftest import resolved
from tests.families.wan.test_generate import generate

STEPS = ("--steps", 12)
RATIOS = (1.0, *[0.98] * 11)


def arguments(cache, variant, *others):
    names = ("--mag-ratios", "--mag-ratios-2") if variant == "14b" else ("--mag-ratios",)
    ratios = [word for name in names for ratio in RATIOS for word in (name, ratio)] if cache == "magcache" else []
    return (*STEPS, "--step-cache", cache, *ratios, *others)


@pytest.fixture
def blocks(monkeypatch):
    """The number of blocks that have computed, in a list of one."""
    counted, forward = [0], WanAttention.forward

    def counting(self, *arguments, **options):
        counted[0] += not self.is_cross_attention
        return forward(self, *arguments, **options)

    monkeypatch.setattr(WanAttention, "forward", counting)
    return counted


@pytest.mark.parametrize("variant", ["14b", "5b"])
@pytest.mark.parametrize(
    ("cache", "never"),
    [
        ("first_block", ("--cache-threshold", 0)),
        ("magcache", ("--cache-threshold", 0)),
        ("taylorseer", ("--cache-interval", 1)),
        ("calibrate", ()),
    ],
)
def test_a_cache_that_leaves_out_nothing_gives_the_same_bits(variant, cache, never, encoded, tmp_path):
    plain = generate(encoded[variant], tmp_path / "plain" / "l.safetensors", *STEPS)
    cached = generate(encoded[variant], tmp_path / "cached" / "l.safetensors", *arguments(cache, variant, *never))
    assert torch.equal(cached, plain)


@pytest.mark.parametrize("variant", ["14b", "5b"])
@pytest.mark.parametrize(
    ("cache", "strong"),
    [
        ("first_block", ("--cache-threshold", 0.5)),
        ("magcache", ("--cache-threshold", 0.5)),
        ("taylorseer", ("--cache-interval", 3)),
    ],
)
def test_a_cache_leaves_out_blocks_of_each_item_alike(variant, cache, strong, encoded, tmp_path, blocks):
    plain = generate(encoded[variant], tmp_path / "plain" / "l.safetensors", *STEPS)
    whole, blocks[0] = blocks[0], 0
    cached = generate(encoded[variant], tmp_path / "a" / "l.safetensors", *arguments(cache, variant, *strong))
    left, blocks[0] = blocks[0], 0
    assert 0 < left < whole
    again = generate(encoded[variant], tmp_path / "b" / "l.safetensors", *arguments(cache, variant, *strong))
    assert torch.equal(again, cached) and blocks[0] == left  # the cache of an item is gone with it
    assert not torch.equal(cached, plain) and cached.isfinite().all()


def test_first_block_is_that_of_the_library(encoded, tiny_wan, tmp_path):
    """In a loop of its own, of the 14b's high-noise expert without guidance."""
    options = ("--guidance-scale", 1, "--boundary-ratio", 0, "--sigma-grid", "diffusers", "--cache-threshold", 0.3)
    ours = generate(encoded["14b"], tmp_path / "l.safetensors", *arguments("first_block", "14b", *options))
    tensors = load_file(encoded["14b"])
    model = WanTransformer3DModel.from_pretrained(tiny_wan["14b"], subfolder="transformer")
    model.enable_cache(FirstBlockCacheConfig(threshold=0.3))
    scheduler = UniPCMultistepScheduler.from_pretrained(tiny_wan["14b"], subfolder="scheduler", flow_shift=3.0)
    scheduler.set_timesteps(12)
    x = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    known = [tensors["mask"].float(), tensors["image_latents"]]
    for t in scheduler.timesteps:
        with torch.no_grad(), model.cache_context("cond"):
            velocity = model(torch.cat([x, *known], 1), t.expand(1), tensors["prompt_embeds"], return_dict=False)[0]
        x = scheduler.step(velocity, t, x, return_dict=False)[0]
    assert torch.equal(ours, x)


def test_calibrate_logs_the_ratio_of_each_step(encoded, tmp_path, monkeypatch):
    """The ratio is the mean over the tokens of |r| / |r before|, of what all blocks add, computed here in float64."""
    norms, forward = [], WanTransformer3DModel.forward

    def forward_noting(self, *arguments, **options):
        given = []
        handles = [
            self.blocks[0].register_forward_pre_hook(lambda block, inputs: given.append(inputs[0])),
            self.blocks[-1].register_forward_hook(
                lambda block, inputs, output: norms.append((output - given[0]).double().norm(dim=-1))
            ),
        ]
        try:
            return forward(self, *arguments, **options)
        finally:
            for handle in handles:
                handle.remove()

    monkeypatch.setattr(WanTransformer3DModel, "forward", forward_noting)
    options = (*STEPS, "--guidance-scale", 1, "--boundary-ratio", 0, "--step-cache", "calibrate", "--dtype", "float32")
    stderr = stage("generate", encoded["14b"], "-o", tmp_path / "l.safetensors", *options)
    expected = [1.0, *(float((now / before).mean()) for before, now in pairwise(norms))]
    (line,) = [line for line in events(stderr) if line["event"] == "mag_ratios"]
    assert line["ratios"] == pytest.approx(expected, abs=2e-5) and len(expected) == 12


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"num_inference_steps": 4}, "num_inference_steps 4"),
        ({"sampler": "lcm"}, "sampler lcm"),
        ({"checkpoint_every": 2}, "checkpoint_every is 2"),
        ({"skip_layers": [1]}, "skip_layers is"),
        ({"gpus": 2}, "gpus is 2"),
        ({"offload": "block_level", "offload_stream": True}, "offload_stream is True"),
    ],
)
def test_a_cache_refuses_what_it_does_not_go_with(cache, given, words):
    ratios = {"mag_ratios": [1.0]} if cache == "magcache" else {}
    with pytest.raises(UsageError, match=words):
        resolved(step_cache=cache, **ratios, **given)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"step_cache": "magcache"}, "mag_ratios is empty"),
        ({"step_cache": "magcache", "mag_ratios": [1.0], "guidance_interval": [0.0, 0.5]}, "guidance_interval is"),
        ({"step_cache": "first_block", "cache_interval": 4}, "cache_interval is 4 and step_cache is first_block"),
        ({"cache_threshold": 0.1}, "cache_threshold is 0.1 and step_cache is none"),
        ({"step_cache": "magcache", "mag_ratios": [1.0], "mag_ratios_2": [1.0]}, "the 5B has one expert"),
    ],
)
def test_options_of_another_cache_are_refused(given, words):
    with pytest.raises(UsageError, match=words):
        resolved(**given)


def test_without_a_cache_the_key_is_as_before():
    declared = [one for one in GenerateOptions.declared if "cache" not in one.name and not one.name.startswith("mag_")]
    assert digest_options(declared, resolved()) == digest_options(GenerateOptions.declared, resolved())
