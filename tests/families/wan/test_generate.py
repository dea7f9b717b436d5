"""`generate` of Wan: resuming, one load per expert, the schedule, and refusals."""

import json

import numpy as np
import pytest
import torch
from diffusers import UniPCMultistepScheduler, WanTransformer3DModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from stages.families.shared.item import check_finite
from stages.families.shared.loading import load_network
from stages.families.shared.solvers import make_scheduler
from stages.families.shared.transformer import set_attention, spread
from stages.families.wan import checkpoint
from stages.families.wan import generate as wan_generate
from stages.families.wan.sampler import State, switch_step
from stages.runtime.errors import JobError
from tests.commands import events, stage

STEPS = 6


class Killed(BaseException):
    """A stand-in for SIGKILL: nothing in the program catches it."""


def generate(encoded, output, *arguments, fails=0):
    output.parent.mkdir(exist_ok=True)
    arguments = ("--steps", STEPS, "--seed", 1, "--dtype", "float32", *arguments)
    stderr = stage("generate", encoded, "-o", output, *arguments, fails=fails)
    return stderr if fails else load_file(output)["latents"]


# -------------------------------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize("variant", ["14b", "5b"])
@pytest.mark.parametrize("killed_after", range(1, STEPS))
def test_a_killed_generate_resumes_to_identical_latents(variant, killed_after, encoded, tmp_path, monkeypatch, passes):
    whole = generate(encoded[variant], tmp_path / "whole" / "l.safetensors")
    arguments = ("--checkpoint-every", 1, "--store", tmp_path / "store")
    save = checkpoint.save

    def save_and_die(path, state):
        save(path, state)
        if state.step == killed_after:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", save_and_die)
        with pytest.raises(Killed):
            generate(encoded[variant], tmp_path / "killed" / "l.safetensors", *arguments)
    assert not list((tmp_path / "killed").iterdir())
    passes.clear()
    resumed = generate(encoded[variant], tmp_path / "killed" / "l.safetensors", *arguments)
    assert torch.equal(resumed, whole)
    assert sum(passes.values()) == 2 * (STEPS - killed_after)
    assert not list((tmp_path / "store" / "partial").iterdir())


def test_generate_discards_a_damaged_state(encoded, tmp_path, monkeypatch):
    whole = generate(encoded["5b"], tmp_path / "whole" / "l.safetensors")
    load, loaded_states = checkpoint.load, []

    def load_and_record(path, device):
        path.write_bytes(b"\x08\0\0\0\0\0\0\0torn")
        loaded_states.append(load(path, device))
        assert not path.exists()
        return loaded_states[-1]

    monkeypatch.setattr(checkpoint, "load", load_and_record)
    assert torch.equal(generate(encoded["5b"], tmp_path / "again" / "l.safetensors"), whole)
    assert loaded_states == [None]


def test_a_loaded_state_survives_the_removal_of_its_file(tmp_path):
    state = State(3, torch.randn(1, 2, 3, 4, 5), (None, torch.randn(2)), torch.randn(3), 2, 1)
    checkpoint.save(tmp_path / "s.safetensors", state)
    again = checkpoint.load(tmp_path / "s.safetensors", torch.device("cpu"))
    assert (again.step, again.this_order, again.lower_order_nums, again.model_outputs[0]) == (3, 2, 1, None)
    assert torch.equal(again.x, state.x) and torch.equal(again.last_sample, state.last_sample)
    assert torch.equal(again.model_outputs[1], state.model_outputs[1])
    assert [path.name for path in tmp_path.iterdir()] == ["s.safetensors"]
    assert checkpoint.load(tmp_path / "none.safetensors", torch.device("cpu")) is None


# -------------------------------------------------------------------------------------------------------------- shards


def test_a_generate_shard_loads_each_expert_once(encoded, tmp_path, passes):
    rows = [
        {"encoded": str(encoded["14b"]), "output": str(tmp_path / f"{seed}.safetensors"), "seed": seed, "steps": STEPS}
        for seed in (1, 2, 3)
    ]
    manifest = tmp_path / "shard.jsonl"
    manifest.write_text("".join(json.dumps({**row, "dtype": "float32"}) + "\n" for row in rows))
    stderr = stage("generate", "--manifest", manifest)
    report = json.loads(stderr.splitlines()[-1])
    assert (report["made"], report["model_loads"]) == (3, 2)
    assert sum(passes.values()) == 3 * 2 * STEPS
    alone = generate(encoded["14b"], tmp_path / "alone" / "l.safetensors", "--seed", 2)
    assert torch.equal(load_file(tmp_path / "2.safetensors")["latents"], alone)


def test_each_load_is_logged_with_its_size(encoded, tiny_wan, tmp_path, monkeypatch):
    ahead = []
    monkeypatch.setattr(wan_generate, "read_ahead", lambda kind, folder, part, dtype: ahead.append((folder, part, dtype)))
    arguments = ("--steps", STEPS, "--seed", 1, "--dtype", "bfloat16")
    log = events(stage("generate", encoded["14b"], "-o", tmp_path / "l.safetensors", *arguments))
    loads = [line for line in log if line["event"] == "load"]
    assert [(line["stage"], line["phase"], line["component"]) for line in loads] == [
        ("generate", "high", "transformer"),
        ("generate", "low", "transformer_2"),
    ]
    for line in loads:
        network = load_network(WanTransformer3DModel, tiny_wan["14b"], line["component"], dtype=torch.bfloat16)
        assert line["bytes"] == sum(t.numel() * t.element_size() for t in [*network.parameters(), *network.buffers()])
        assert line["seconds"] >= 0 and line["repacked"] is False
    assert log[-1]["model_loads"] == 2
    assert ahead == [(tiny_wan["14b"], "transformer_2", torch.bfloat16)]


@pytest.mark.parametrize("boundary, used", [(0, {"transformer"}), (1, {"transformer_2"})])
def test_expert_without_steps_is_not_loaded(boundary, used, encoded, tmp_path, passes):
    generate(encoded["14b"], tmp_path / "a" / "l.safetensors", "--boundary-ratio", boundary)
    assert passes == dict.fromkeys(used, 2 * STEPS)


def test_each_expert_has_its_own_guidance(encoded, tmp_path, passes):
    generate(encoded["14b"], tmp_path / "a" / "l.safetensors", "--guidance-scale", 4, "--guidance-scale-2", 1, "--shift", 3)
    # 6 steps at shift 3: timesteps 999, 937, 856, 749, ..., so two of them are at 900 or above
    assert passes == {"transformer": 2 * 2, "transformer_2": 4}


# ------------------------------------------------------------------------------------------------------------ schedule


@pytest.mark.parametrize("shift", [3.0, 5.0, 12.0])
@pytest.mark.parametrize("steps", [1, 4, 9, 40, 50])
def test_schedule_is_that_of_the_published_program(steps, shift, tiny_wan):
    """By the formulas of Wan2.2's wan/utils/fm_solvers_unipc.py in float64: the first and last of a thousand sigmas, in
    float32, are the ends of the grid. Then the shift is applied, and timesteps are truncated to integers."""
    config = UniPCMultistepScheduler.load_config(tiny_wan["14b"], subfolder="scheduler")
    scheduler = make_scheduler(config, steps, shift, torch.device("cpu"))
    table = (1.0 - np.linspace(1, 1 / 1000, 1000)[::-1]).astype(np.float32).astype(np.float64)
    sigma = table[0] + (table[-1] - table[0]) * np.arange(steps) / steps
    sigma = shift * sigma / (1 + (shift - 1) * sigma)
    assert config["flow_shift"] == 3.0  # that of the repository, which must not be used
    assert scheduler.timesteps.tolist() == np.floor(sigma * 1000).astype(int).tolist()
    assert np.abs(scheduler.sigmas[:-1].double().numpy() - sigma).max() < 1e-7
    assert scheduler.sigmas[-1] == 0


@pytest.mark.parametrize("sigma_grid, shift, high", [("wan", 3.0, 10), ("wan", 5.0, 15), ("diffusers", 3.0, 11)])
def test_steps_of_the_high_noise_expert_are_those_of_the_published_program(sigma_grid, shift, high, tiny_wan):
    config = UniPCMultistepScheduler.load_config(tiny_wan["14b"], subfolder="scheduler")
    assert switch_step(make_scheduler(config, 40, shift, torch.device("cpu"), sigma_grid), 0.9) == high


def test_sigma_grid_diffusers_is_the_default_of_diffusers(tiny_wan):
    config = UniPCMultistepScheduler.load_config(tiny_wan["5b"], subfolder="scheduler")
    ours, library = make_scheduler(config, 40, 5.0, "cpu", "diffusers"), UniPCMultistepScheduler.from_config(config)
    library.set_timesteps(40)
    assert torch.equal(ours.sigmas, library.sigmas) and torch.equal(ours.timesteps, library.timesteps)


def test_an_unknown_sigma_grid_is_refused(encoded, tmp_path):
    stderr = generate(encoded["5b"], tmp_path / "a" / "l.safetensors", "--sigma-grid", "karras", fails=2)
    assert "sigma" in stderr and "wan" in stderr and "diffusers" in stderr


def test_two_steps_at_one_timestep_stay_two_steps(encoded, tmp_path, passes):
    latents = generate(encoded["5b"], tmp_path / "a" / "l.safetensors", "--steps", 30, "--shift", 100)
    assert passes == {"transformer": 60}
    assert torch.isfinite(latents).all()


def test_default_shift_follows_the_size(encoded, tmp_path):
    default = generate(encoded["14b"], tmp_path / "a" / "l.safetensors")
    assert torch.equal(default, generate(encoded["14b"], tmp_path / "b" / "l.safetensors", "--shift", 3))
    assert not torch.equal(default, generate(encoded["14b"], tmp_path / "c" / "l.safetensors", "--shift", 5))


# ------------------------------------------------------------------------------------------------------------ refusals


def write_described(encoded, tensors, path):
    """Write other tensors with the fields of an artifact."""
    with safe_open(encoded, "pt") as file:
        save_file(tensors, path, file.metadata())
    return path


SIZES = [("mask", 1), ("mask", 2), ("image_latents", 1), ("image_latents", 2), ("prompt_embeds", 2), ("prompt_embeds", 0)]


@pytest.mark.parametrize("name, axis", SIZES)
@pytest.mark.parametrize("variant", ["5b", "14b"])
def test_tensors_of_sizes_that_are_not_the_model_s_fail_the_item_in_one_sentence(encoded, tmp_path, variant, name, axis):
    tensors = load_file(encoded[variant])
    tensors |= {own: torch.cat([tensors[own]] * 9, dim=axis) for own in tensors if own.endswith(name)}
    path = write_described(encoded[variant], tensors, tmp_path / "e.safetensors")
    stderr = generate(path, tmp_path / "l.safetensors", fails=1)
    assert f"{path}" in stderr.splitlines()[-1] and "bug" not in stderr


def test_generate_fails_an_item_with_values_that_are_not_finite(encoded, tmp_path):
    tensors = load_file(encoded["5b"])
    tensors["prompt_embeds"][0, 0] = 3e38  # the first product is infinite
    stderr = generate(
        write_described(encoded["5b"], tensors, tmp_path / "e.safetensors"), tmp_path / "a.safetensors", fails=1
    )
    assert "the prediction became NaN or infinite at step 1 of 6" in stderr


def test_generate_names_latents_that_are_not_finite():
    with pytest.raises(Exception, match="latents became NaN or infinite at step 3 of 9"):
        check_finite(torch.tensor([1.0, float("inf")]), "latents", at="step 3 of 9")


def test_condition_of_the_other_variant_is_refused(encoded, tiny_wan, tmp_path):
    stderr = generate(encoded["5b"], tmp_path / "a" / "l.safetensors", "-m", tiny_wan["14b"], fails=1)
    assert "was made for wan 5b" in stderr and "is wan 14b" in stderr


def test_latents_of_the_other_variant_are_refused(encoded, tiny_wan, tmp_path):
    generate(encoded["5b"], tmp_path / "a" / "l.safetensors")
    output = tmp_path / "clip.json"
    stderr = stage("decode", tmp_path / "a" / "l.safetensors", "-o", output, "-m", tiny_wan["14b"], fails=1)
    assert "was made for wan 5b" in stderr


@pytest.mark.parametrize("option", ["--guidance-scale-2", "--boundary-ratio"])
def test_options_of_a_second_expert_are_refused_for_the_5b(option, encoded, tmp_path):
    stderr = generate(encoded["5b"], tmp_path / "a" / "l.safetensors", option, 0.5, fails=2)
    assert "the 5B has one expert" in stderr


def test_an_attention_backend_that_needs_a_gpu_is_refused_on_a_cpu(encoded, tmp_path):
    stderr = generate(encoded["5b"], tmp_path / "a" / "l.safetensors", "--attention-backend", "sage", fails=1)
    assert "attention_backend sage needs a GPU" in stderr


def test_an_attention_backend_that_is_not_installed_is_named(tiny_wan):
    model = WanTransformer3DModel.from_pretrained(tiny_wan["5b"], subfolder="transformer")
    with pytest.raises(JobError, match="attention_backend sage cannot be used here"):
        set_attention(model, "sage", torch.device("cuda"))


# ---------------------------------------------------------------------------------------------------- precision, memory


def test_offload_changes_nothing_on_a_cpu(encoded, tmp_path):
    plain = generate(encoded["5b"], tmp_path / "a" / "l.safetensors")
    assert torch.equal(generate(encoded["5b"], tmp_path / "b" / "l.safetensors", "--offload", "block_level"), plain)


def test_layerwise_casting_gives_close_and_not_equal_latents(encoded, tmp_path):
    plain = generate(encoded["5b"], tmp_path / "a" / "l.safetensors")
    cast = generate(encoded["5b"], tmp_path / "b" / "l.safetensors", "--layerwise-casting", "float8_e4m3fn")
    assert not torch.equal(cast, plain)
    assert (cast - plain).abs().mean() < 0.1 * plain.abs().mean()


# ------------------------------------------------------------------------------------------------------- several GPUs


def test_blocks_are_spread_over_devices_in_order(tiny_wan):
    transformer = WanTransformer3DModel.from_pretrained(tiny_wan["14b"], subfolder="transformer")
    first, second = torch.device("cpu"), torch.device("meta")  # a stand-in for a second device: it has a name and no memory
    spread(transformer, [first, second])
    places = [{p.device for p in block.parameters()} for block in transformer.blocks]
    half = (len(places) + 1) // 2
    assert places == [{first}] * half + [{second}] * (len(places) - half) and half < len(places)
    others = {p.device for name, p in transformer.named_parameters() if not name.startswith("blocks.")}
    assert others == {first}


def test_a_spread_transformer_computes_the_same(tiny_wan):
    whole, divided = (WanTransformer3DModel.from_pretrained(tiny_wan["14b"], subfolder="transformer") for _ in range(2))
    spread(divided, [torch.device("cpu")] * 2)
    channels, text = whole.config.in_channels, whole.config.text_dim
    arguments = (torch.randn(1, channels, 2, 4, 4), torch.tensor([500.0]), torch.randn(1, 6, text))
    with torch.no_grad():
        assert torch.equal(whole(*arguments, return_dict=False)[0], divided(*arguments, return_dict=False)[0])
