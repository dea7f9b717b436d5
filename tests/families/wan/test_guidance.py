"""Guidance of `generate` of Wan: passes, resuming, blocks left out, and refusals. Formulas: tests/families/shared."""

import pytest
import torch
from diffusers import LayerSkipConfig, WanTransformer3DModel, apply_layer_skip
from diffusers.hooks import HookRegistry

from stages.families import FAMILIES
from stages.families.shared.flow_options import GuidanceOptions
from stages.families.shared.guidance import without_blocks
from stages.runtime.key import digest_options
from tests.families.wan.conftest import resolved
from tests.families.wan.test_generate import STEPS, generate
from tests.families.wan.test_samplers import generate_killed_after_each_step

INTERVAL = ("--guidance-interval", 0, "--guidance-interval", 0.5)
SKIP = ("--skip-layers", 1, "--skip-layer-interval", 0.3, "--skip-layer-interval", 0.7)


@pytest.mark.parametrize(
    "arguments, passes_per_clip",
    [
        (INTERVAL, 3 * 2 + 3),
        (("--guider", "cfg_zero_star", "--zero-init-steps", 2), 4 * 2),
        (SKIP, 3 * 2 + 3 * 3),
        ((*SKIP, "--guidance-scale", 1), 3 + 3 * 2),
    ],
)
def test_passes_of_a_clip(arguments, passes_per_clip, encoded, tmp_path, passes):
    latents = generate(encoded["5b"], tmp_path / "a" / "l.safetensors", *arguments)
    assert passes == {"transformer": passes_per_clip}
    assert not torch.equal(latents, generate(encoded["5b"], tmp_path / "b" / "l.safetensors"))


@pytest.mark.parametrize("variant", ["14b", "5b"])
def test_apg_killed_after_each_step_gives_the_same_bits(variant, encoded, tmp_path, monkeypatch):
    arguments = ("--guider", "apg", "--apg-momentum", -0.5, "--apg-norm-threshold", 20, *INTERVAL)
    whole = generate(encoded[variant], tmp_path / "whole" / "l.safetensors", *arguments)
    again, killed = generate_killed_after_each_step(encoded[variant], tmp_path / "killed", monkeypatch, *arguments)
    assert killed == list(range(1, STEPS)) and torch.equal(again, whole)
    without = generate(encoded[variant], tmp_path / "c" / "l.safetensors", *arguments, "--apg-momentum", 0)
    assert not torch.equal(without, whole)


def test_guidance_over_the_whole_schedule_is_that_without_an_interval(encoded, tmp_path):
    whole = ("--guidance-interval", 0, "--guidance-interval", 1, "--guider", "cfg")
    plain = generate(encoded["14b"], tmp_path / "a" / "l.safetensors")
    assert torch.equal(generate(encoded["14b"], tmp_path / "b" / "l.safetensors", *whole), plain)


@pytest.mark.parametrize("offload", [False, True])
def test_blocks_are_left_out_as_by_diffusers(offload, tiny_wan):
    ours, theirs = (WanTransformer3DModel.from_pretrained(tiny_wan["14b"], subfolder="transformer") for _ in range(2))
    apply_layer_skip(theirs, LayerSkipConfig([1], fqn="blocks"))
    if offload:
        ours.enable_group_offload(onload_device=torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1)
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(1, ours.config.in_channels, 2, 4, 4, generator=generator)
    text = torch.randn(1, 6, ours.config.text_dim, generator=generator)

    @torch.no_grad()
    def predict(model):
        return model(x, torch.tensor([500.0]), text, return_dict=False)[0]

    plain = predict(ours)
    with without_blocks(ours, [1]):
        assert torch.equal(predict(ours), predict(theirs))
    assert torch.equal(predict(ours), plain) and not torch.equal(plain, predict(theirs))
    HookRegistry.check_if_exists_or_initialize(theirs.blocks[1]).remove_hook("layer_skip_hook")
    assert torch.equal(predict(theirs), plain)


def test_a_block_that_the_model_lacks_is_refused_before_it_is_loaded(encoded, tmp_path, passes):
    stderr = generate(encoded["5b"], tmp_path / "a" / "l.safetensors", "--skip-layers", 2, fails=1)
    assert "skip_layers is [2] and model" in stderr and "has 2 blocks: choose from 0 to 1" in stderr and not passes


def test_options_of_guidance_change_the_key_only_where_they_are_used():
    options = FAMILIES["wan"].options_of("generate")
    old = [one for one in options if one.name not in {one.name for one in GuidanceOptions.declared}]
    assert digest_options(options, resolved()) == digest_options(old, resolved())
    others = [
        {"guider": "apg"},
        {"guider": "apg", "apg_eta": 0.5},
        {"guider": "apg", "apg_momentum": -0.5},
        {"guider": "apg", "apg_norm_threshold": 50},
        {"guider": "cfg_zero_star"},
        {"guider": "cfg_zero_star", "zero_init_steps": 2},
        {"guidance_interval": [0.1, 0.9]},
        {"skip_layers": [9]},
        {"skip_layers": [9], "skip_layer_scale": 3},
        {"skip_layers": [9], "skip_layer_interval": [0, 0.5]},
    ]
    keys = {digest_options(options, resolved(**given)) for given in ({}, *others)}
    assert len(keys) == 1 + len(others)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"guider": "pag"}, "option guider is 'pag': it must be one of cfg, apg, cfg_zero_star"),
        (
            {"guider": "apg", "guidance_scale": 1},
            "guider is 'apg' and guidance_scale 1.0 switches guidance off: leave guider out",
        ),
        ({"guidance_interval": [0, 0.5], "guidance_scale": 1}, r"guidance_interval is \[0.0, 0.5\] and guidance_scale 1.0"),
        ({"guidance_interval": [0.5]}, r"guidance_interval is \[0.5\]: give two numbers"),
        ({"guidance_interval": [0.5, 0.2]}, "give two numbers, the first below the second"),
        ({"guidance_interval": []}, r"guidance_interval is \[\]: give two numbers"),
        (
            {"guidance_interval": [0.3, 0.45], "num_inference_steps": 4},
            "in which there is none of 4 steps: choose a wider one",
        ),
        ({"guidance_interval": [0, 2]}, "option guidance_interval is 2.0: it must be at most 1"),
        ({"apg_momentum": -0.5}, "apg_momentum is -0.5 and guider is cfg: leave apg_momentum out or set guider to apg"),
        ({"zero_init_steps": 2, "guider": "apg"}, "zero_init_steps is 2 and guider is apg: leave zero_init_steps out"),
        ({"guider": "cfg_zero_star", "zero_init_steps": 4, "num_inference_steps": 4}, "zero_init_steps is 4 of 4 steps"),
        ({"skip_layer_scale": 2}, "skip_layer_scale is 2.0 and skip_layers is empty: leave skip_layer_scale out"),
        ({"skip_layers": [9], "guider": "apg"}, r"skip_layers is \[9\] and guider is apg: leave one of them out"),
        (
            {"skip_layers": [9], "num_inference_steps": 4},
            r"skip_layer_interval is \[0.01, 0.2\], in which there is none of 4",
        ),
        ({"skip_layers": [-1]}, "option skip_layers is -1: it must be at least 0"),
    ],
)
def test_contradictions_are_refused_by_the_plan_in_one_sentence(given, message):
    with pytest.raises(Exception, match=message) as caught:
        resolved(**given)
    assert type(caught.value).__name__ == "UsageError" and "\n" not in str(caught.value)


def test_an_expert_without_guidance_leaves_the_other_s_as_it_is():
    """The 14b may have guidance in one expert alone."""
    family = FAMILIES["wan"]
    values = {**resolved(), "guider": "apg", "guidance_scale": 1.0, "guidance_scale_2": 3.0, "boundary_ratio": 0.9}
    family.check("14b", {**values, "size": "1280*720"}, ())
