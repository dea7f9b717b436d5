"""What generate promises beside identity: resuming, one load per expert, its schedule, its refusals."""

import json

import numpy as np
import pytest
import torch
from diffusers import UniPCMultistepScheduler, WanTransformer3DModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from stages.models.shared.wan.transformer import set_attention, spread
from stages.models.wan import checkpoint, sampler
from stages.models.wan.sampler import State, make_scheduler, switch_step
from stages.runtime.errors import JobError
from tests.commands import stage

STEPS = 6


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the program catches it."""


def generate(encoded, output, *arguments, fails=0):
    output.parent.mkdir(exist_ok=True)
    arguments = ("--steps", STEPS, "--seed", 1, "--dtype", "float32", *arguments)
    said = stage("generate", encoded, "-o", output, *arguments, fails=fails)
    return said if fails else load_file(output)["latents"]


@pytest.fixture
def passes(monkeypatch):
    """Forward passes of any Wan transformer, by the file that its weights came from."""
    counted, forward, load = {}, WanTransformer3DModel.forward, WanTransformer3DModel.from_pretrained

    def loaded(folder, **options):
        model, told = load(folder, **options)
        model.comes_from = folder.name
        counted.setdefault(folder.name, 0)
        return model, told

    def counting(self, *arguments, **options):
        counted[self.comes_from] += 1
        return forward(self, *arguments, **options)

    monkeypatch.setattr(WanTransformer3DModel, "from_pretrained", loaded)
    monkeypatch.setattr(WanTransformer3DModel, "forward", counting)
    return counted


# -------------------------------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize("variant", ["14b", "5b"])
@pytest.mark.parametrize("killed_after", range(1, STEPS))
def test_killed_run_goes_on_to_the_same_bits(variant, killed_after, encoded, tmp_path, monkeypatch, passes):
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


def test_damaged_state_is_thrown_away(encoded, tmp_path, monkeypatch):
    whole = generate(encoded["5b"], tmp_path / "whole" / "l.safetensors")
    load, seen = checkpoint.load, []

    def damaged(path, device):
        path.write_bytes(b"\x08\0\0\0\0\0\0\0torn")
        seen.append(load(path, device))
        assert not path.exists()
        return seen[-1]

    monkeypatch.setattr(checkpoint, "load", damaged)
    assert torch.equal(generate(encoded["5b"], tmp_path / "again" / "l.safetensors"), whole)
    assert seen == [None]


def test_state_survives_its_file(tmp_path):
    state = State(3, torch.randn(1, 2, 3, 4, 5), (None, torch.randn(2)), torch.randn(3), 2, 1)
    checkpoint.save(tmp_path / "s.safetensors", state)
    again = checkpoint.load(tmp_path / "s.safetensors", torch.device("cpu"))
    assert (again.step, again.order, again.warm, again.outputs[0]) == (3, 2, 1, None)
    assert torch.equal(again.x, state.x) and torch.equal(again.sample, state.sample)
    assert torch.equal(again.outputs[1], state.outputs[1])
    assert [path.name for path in tmp_path.iterdir()] == ["s.safetensors"]
    assert checkpoint.load(tmp_path / "none.safetensors", torch.device("cpu")) is None


# -------------------------------------------------------------------------------------------------------------- shards


def test_shard_loads_each_expert_once(encoded, tmp_path, passes):
    rows = [
        {"encoded": str(encoded["14b"]), "output": str(tmp_path / f"{seed}.safetensors"), "seed": seed, "steps": STEPS}
        for seed in (1, 2, 3)
    ]
    manifest = tmp_path / "shard.jsonl"
    manifest.write_text("".join(json.dumps({**row, "dtype": "float32"}) + "\n" for row in rows))
    said = stage("generate", "--manifest", manifest)
    report = json.loads(said.splitlines()[-1])
    assert (report["made"], report["model_loads"]) == (3, 2)
    assert sum(passes.values()) == 3 * 2 * STEPS
    alone = generate(encoded["14b"], tmp_path / "alone" / "l.safetensors", "--seed", 2)
    assert torch.equal(load_file(tmp_path / "2.safetensors")["latents"], alone)


@pytest.mark.parametrize("boundary, used", [(0, {"transformer"}), (1, {"transformer_2"})])
def test_expert_without_steps_is_not_loaded(boundary, used, encoded, tmp_path, passes):
    generate(encoded["14b"], tmp_path / "a" / "l.safetensors", "--boundary-ratio", boundary)
    assert passes == dict.fromkeys(used, 2 * STEPS)


def test_guidance_is_each_experts_own(encoded, tmp_path, passes):
    generate(encoded["14b"], tmp_path / "a" / "l.safetensors", "--guidance-scale", 4, "--guidance-scale-2", 1, "--shift", 3)
    # 6 steps at shift 3: timesteps 999, 937, 856, 749, ..., so two of them are at 900 or above
    assert passes == {"transformer": 2 * 2, "transformer_2": 4}


# ------------------------------------------------------------------------------------------------------------ schedule


@pytest.mark.parametrize("shift", [3.0, 5.0, 12.0])
@pytest.mark.parametrize("steps", [1, 4, 9, 40, 50])
def test_schedule_is_the_published_programs(steps, shift, tiny_wan):
    """In float64, as Wan2.2's wan/utils/fm_solvers_unipc.py has it: a thousand sigmas of which the first and the last, in
    float32, are the ends of the grid; the shift; timesteps cut to integers."""
    config = UniPCMultistepScheduler.load_config(tiny_wan["14b"], subfolder="scheduler")
    scheduler = make_scheduler(config, steps, shift, torch.device("cpu"))
    table = (1.0 - np.linspace(1, 1 / 1000, 1000)[::-1]).astype(np.float32).astype(np.float64)
    sigma = table[0] + (table[-1] - table[0]) * np.arange(steps) / steps
    sigma = shift * sigma / (1 + (shift - 1) * sigma)
    assert config["flow_shift"] == 3.0  # the repository's, which must not be used
    assert scheduler.timesteps.tolist() == np.floor(sigma * 1000).astype(int).tolist()
    assert np.abs(scheduler.sigmas[:-1].double().numpy() - sigma).max() < 1e-7
    assert scheduler.sigmas[-1] == 0


@pytest.mark.parametrize("sigma_grid, shift, high", [("wan", 3.0, 10), ("wan", 5.0, 15), ("diffusers", 3.0, 11)])
def test_steps_of_the_high_noise_expert_are_the_published_programs(sigma_grid, shift, high, tiny_wan):
    config = UniPCMultistepScheduler.load_config(tiny_wan["14b"], subfolder="scheduler")
    assert switch_step(make_scheduler(config, 40, shift, torch.device("cpu"), sigma_grid), 0.9) == high


def test_grid_of_diffusers_is_the_librarys_default(tiny_wan):
    config = UniPCMultistepScheduler.load_config(tiny_wan["5b"], subfolder="scheduler")
    ours, library = make_scheduler(config, 40, 5.0, "cpu", "diffusers"), UniPCMultistepScheduler.from_config(config)
    library.set_timesteps(40)
    assert torch.equal(ours.sigmas, library.sigmas) and torch.equal(ours.timesteps, library.timesteps)


def test_a_grid_that_is_not_known_is_refused(encoded, tmp_path):
    said = generate(encoded["5b"], tmp_path / "a" / "l.safetensors", "--sigma-grid", "karras", fails=2)
    assert "sigma" in said and "wan" in said and "diffusers" in said


def test_two_steps_at_one_timestep_are_two_steps(encoded, tmp_path, passes):
    latents = generate(encoded["5b"], tmp_path / "a" / "l.safetensors", "--steps", 30, "--shift", 100)
    assert passes == {"transformer": 60}
    assert torch.isfinite(latents).all()


def test_default_shift_follows_the_size(encoded, tmp_path):
    default = generate(encoded["14b"], tmp_path / "a" / "l.safetensors")
    assert torch.equal(default, generate(encoded["14b"], tmp_path / "b" / "l.safetensors", "--shift", 3))
    assert not torch.equal(default, generate(encoded["14b"], tmp_path / "c" / "l.safetensors", "--shift", 5))


# ------------------------------------------------------------------------------------------------------------ refusals


def described_as(encoded, tensors, path):
    """Other tensors under the description of an artifact."""
    with safe_open(encoded, "pt") as file:
        save_file(tensors, path, file.metadata())
    return path


SIZES = [("mask", 1), ("mask", 2), ("image_latents", 1), ("image_latents", 2), ("prompt_embeds", 2), ("prompt_embeds", 0)]


@pytest.mark.parametrize("name, axis", SIZES)
@pytest.mark.parametrize("variant", ["5b", "14b"])
def test_tensors_of_sizes_that_are_not_the_model_s_fail_the_item_in_one_sentence(encoded, tmp_path, variant, name, axis):
    tensors = load_file(encoded[variant])
    tensors |= {own: torch.cat([tensors[own]] * 9, dim=axis) for own in tensors if own.endswith(name)}
    path = described_as(encoded[variant], tensors, tmp_path / "e.safetensors")
    said = generate(path, tmp_path / "l.safetensors", fails=1)
    assert f"{path}" in said.splitlines()[-1] and "bug" not in said


def test_numbers_that_are_not_finite_fail_the_item(encoded, tmp_path):
    tensors = load_file(encoded["5b"])
    tensors["prompt_embeds"][0, 0] = 3e38  # the first product is infinite
    said = generate(described_as(encoded["5b"], tensors, tmp_path / "e.safetensors"), tmp_path / "a.safetensors", fails=1)
    assert "the prediction became NaN or infinite at step 1 of 6" in said


def test_latents_that_are_not_finite_are_named():
    with pytest.raises(Exception, match="latents became NaN or infinite at step 3 of 9"):
        sampler.check_finite("latents", torch.tensor([1.0, float("inf")]), 2, 9)


def test_condition_of_the_other_variant_is_refused(encoded, tiny_wan, tmp_path):
    said = generate(encoded["5b"], tmp_path / "a" / "l.safetensors", "-m", tiny_wan["14b"], fails=1)
    assert "was made for wan 5b" in said and "is wan 14b" in said


def test_latents_of_the_other_variant_are_refused(encoded, tiny_wan, tmp_path):
    generate(encoded["5b"], tmp_path / "a" / "l.safetensors")
    output = tmp_path / "clip.json"
    said = stage("decode", tmp_path / "a" / "l.safetensors", "-o", output, "-m", tiny_wan["14b"], fails=1)
    assert "was made for wan 5b" in said


@pytest.mark.parametrize("option", ["--guidance-scale-2", "--boundary-ratio"])
def test_options_of_a_second_expert_are_refused_for_the_5b(option, encoded, tmp_path):
    said = generate(encoded["5b"], tmp_path / "a" / "l.safetensors", option, 0.5, fails=2)
    assert "the 5B has one expert" in said


def test_attention_that_needs_a_gpu_is_refused_on_a_cpu(encoded, tmp_path):
    said = generate(encoded["5b"], tmp_path / "a" / "l.safetensors", "--attention-backend", "sage", fails=1)
    assert "attention_backend sage needs a GPU" in said


def test_attention_that_is_not_installed_is_named(tiny_wan):
    model = WanTransformer3DModel.from_pretrained(tiny_wan["5b"], subfolder="transformer")
    with pytest.raises(JobError, match="attention_backend sage cannot be used here"):
        set_attention(model, "sage", torch.device("cuda"))


# ---------------------------------------------------------------------------------------------------- precision, memory


def test_offload_changes_nothing_on_a_cpu(encoded, tmp_path):
    plain = generate(encoded["5b"], tmp_path / "a" / "l.safetensors")
    assert torch.equal(generate(encoded["5b"], tmp_path / "b" / "l.safetensors", "--offload", "block_level"), plain)


def test_layerwise_casting_is_close_and_not_equal(encoded, tmp_path):
    plain = generate(encoded["5b"], tmp_path / "a" / "l.safetensors")
    cast = generate(encoded["5b"], tmp_path / "b" / "l.safetensors", "--layerwise-casting", "float8_e4m3fn")
    assert not torch.equal(cast, plain)
    assert (cast - plain).abs().mean() < 0.1 * plain.abs().mean()


# ------------------------------------------------------------------------------------------------------- several GPUs


def test_blocks_are_dealt_over_devices_in_order(tiny_wan):
    transformer = WanTransformer3DModel.from_pretrained(tiny_wan["14b"], subfolder="transformer")
    first, second = torch.device("cpu"), torch.device("meta")  # stands for a second device: has a name and no memory
    spread(transformer, [first, second])
    places = [{p.device for p in block.parameters()} for block in transformer.blocks]
    half = (len(places) + 1) // 2
    assert places == [{first}] * half + [{second}] * (len(places) - half) and half < len(places)
    others = {p.device for name, p in transformer.named_parameters() if not name.startswith("blocks.")}
    assert others == {first}


def test_a_transformer_that_is_spread_computes_the_same(tiny_wan):
    whole, dealt = (WanTransformer3DModel.from_pretrained(tiny_wan["14b"], subfolder="transformer") for _ in range(2))
    spread(dealt, [torch.device("cpu")] * 2)
    channels, text = whole.config.in_channels, whole.config.text_dim
    arguments = (torch.randn(1, channels, 2, 4, 4), torch.tensor([500.0]), torch.randn(1, 6, text))
    with torch.no_grad():
        assert torch.equal(whole(*arguments, return_dict=False)[0], dealt(*arguments, return_dict=False)[0])
