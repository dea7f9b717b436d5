"""Samplers and listed steps of `generate` of Wan: resuming, noise, and refusals. Formulas: tests/families/shared."""

import pytest
import torch
from diffusers import FlowMatchLCMScheduler, WanTransformer3DModel
from safetensors.torch import load_file

from stages.families import FAMILIES
from stages.families.wan import checkpoint
from stages.runtime.key import digest_options
from tests.families.wan.conftest import resolved
from tests.families.wan.test_generate import STEPS, Killed, generate


def generate_killed_after_each_step(encoded, folder, monkeypatch, *arguments):
    """The latents of a generate that is killed each time it has saved a step, and how often it was."""
    arguments, killed, save = (*arguments, "--checkpoint-every", 1, "--store", folder / "store"), [], checkpoint.save

    def save_and_die(path, state):
        save(path, state)
        if state.step not in killed and state.step < STEPS:
            killed.append(state.step)
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", save_and_die)
        while True:
            try:
                return generate(encoded, folder / "l.safetensors", *arguments), killed
            except Killed:
                pass


@pytest.mark.parametrize("sampler", ["euler", "dpm++", "lcm"])
@pytest.mark.parametrize("variant", ["14b", "5b"])
def test_a_generate_killed_after_each_step_gives_the_same_bits(variant, sampler, encoded, tmp_path, monkeypatch):
    whole = generate(encoded[variant], tmp_path / "whole" / "l.safetensors", "--sampler", sampler)
    again, killed = generate_killed_after_each_step(encoded[variant], tmp_path / "killed", monkeypatch, "--sampler", sampler)
    assert killed == list(range(1, STEPS))
    assert torch.equal(again, whole) and whole.std() > 0.1


def test_lcm_draws_the_noise_of_each_step_from_the_generator_of_the_item(encoded, tiny_wan, tmp_path):
    """By diffusers' scheduler in a loop of its own, of the 14b's prediction without guidance."""
    arguments = ("--sampler", "lcm", "--guidance-scale", 1, "--boundary-ratio", 0, "--steps", 4, "--shift", 5)
    ours = generate(encoded["14b"], tmp_path / "a" / "l.safetensors", *arguments)
    tensors = load_file(encoded["14b"])
    model = WanTransformer3DModel.from_pretrained(tiny_wan["14b"], subfolder="transformer")
    scheduler, generator = FlowMatchLCMScheduler(shift=5.0), torch.Generator().manual_seed(1)
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    x = torch.randn(ours.shape, generator=generator)
    known = [tensors["mask"].float(), tensors["image_latents"]]
    for t in scheduler.timesteps:
        with torch.no_grad():
            velocity = model(torch.cat([x, *known], 1), t.expand(1), tensors["prompt_embeds"], return_dict=False)[0]
        x = scheduler.step(velocity, t, x, generator=generator).prev_sample
    assert (ours - x).abs().max() <= 1e-6
    assert not torch.equal(ours, generate(encoded["14b"], tmp_path / "b" / "l.safetensors", *arguments, "--seed", 2))


def test_listed_sigmas_are_the_steps(encoded, tmp_path):
    sigmas = [word for sigma in (1, 0.9375, 5 / 6, 0.625) for word in ("--sigmas", sigma)]
    four = ("--sampler", "euler", "--steps", 4)
    by_shift = generate(encoded["14b"], tmp_path / "a" / "l.safetensors", *four, "--shift", 5)
    assert torch.equal(generate(encoded["14b"], tmp_path / "b" / "l.safetensors", *four, *sigmas), by_shift)
    timesteps = [word for timestep in (1000, 750) for word in ("--timesteps", timestep)]
    two = ("--sampler", "lcm", "--steps", 2)
    listed = generate(encoded["5b"], tmp_path / "c" / "l.safetensors", *two, *timesteps)
    sigmas = ("--sigmas", 1, "--sigmas", 0.75)
    assert torch.equal(generate(encoded["5b"], tmp_path / "d" / "l.safetensors", *two, *sigmas), listed)


def test_listed_steps_set_their_number_and_no_shift():
    values = resolved(sigmas=[1, 0.75, 0.5])
    assert (values["num_inference_steps"], values["shift"]) == (3, 1.0)
    values = resolved(timesteps=[1000, 757], num_inference_steps=2)
    assert (values["num_inference_steps"], values["shift"]) == (2, 1.0)
    assert (resolved()["num_inference_steps"], resolved()["shift"]) == (40, 5.0)


def test_new_options_change_the_key_only_where_they_are_used():
    options = FAMILIES["wan"].options_of("generate")
    old = [one for one in options if one.name not in ("sampler", "sigmas", "timesteps")]
    assert digest_options(options, resolved()) == digest_options(old, resolved())
    others = [resolved(sampler=name) for name in ("euler", "dpm++", "lcm")]
    others += [resolved(sigmas=[1, 0.5]), resolved(timesteps=[1000, 500])]
    assert len({digest_options(options, values) for values in (resolved(), *others)}) == 6


@pytest.mark.parametrize(
    "given, message",
    [
        ({"sampler": "heun"}, "option sampler is 'heun': it must be one of unipc, euler, dpm\\+\\+, lcm"),
        ({"sigmas": [1, 0.5], "timesteps": [1000]}, "sigmas and timesteps are both given: leave one of them out"),
        ({"sigmas": [0.5, 0.75]}, "sigmas is \\[0.5, 0.75\\]: each has to be at least 0.0001 below the one before"),
        ({"sigmas": [1, 0.5, 0.499999999]}, "each has to be at least 0.0001 below"),
        ({"timesteps": [757, 757]}, "timesteps is \\[757, 757\\]: each has to be at least 1 below the one before"),
        ({"sigmas": [1, 0.5, 0]}, "option sigmas is 0.0: it must be at least 0.0001; the last step goes to 0 by itself"),
        ({"sigmas": [1.1]}, "option sigmas is 1.1: it must be at most 1"),
        ({"sigmas": ["nan"]}, "it must be a finite number"),
        ({"timesteps": [1001]}, "option timesteps is 1001: it must be at most 1000"),
        ({"timesteps": [937.5]}, "option timesteps is 937.5: it must be a whole number"),
        (
            {"sigmas": [1, 0.5], "num_inference_steps": 40},
            "num_inference_steps is 40 and sigmas lists 2 steps as they are: leave num_inference_steps out or set it to 2",
        ),
        ({"timesteps": [1000], "shift": 5}, "shift is 5.0 and timesteps lists 1 steps as they are: leave shift out"),
        ({"sigmas": [1], "sigma_grid": "diffusers"}, "sigma_grid is diffusers and sigmas lists"),
    ],
)
def test_contradictions_are_refused_by_the_plan_in_one_sentence(given, message):
    with pytest.raises(Exception, match=f"{message}") as caught:
        resolved(**given)
    assert type(caught.value).__name__ == "UsageError" and "\n" not in str(caught.value)


def test_contradictions_are_refused_by_hand(encoded, tmp_path):
    stderr = generate(encoded["5b"], tmp_path / "a" / "l.safetensors", "--sigmas", 1, "--sigmas", 0.5, fails=2)
    assert "num_inference_steps is 6 and sigmas lists 2 steps" in stderr
