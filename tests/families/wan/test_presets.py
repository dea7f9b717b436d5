"""Files on the hub that a model's options name: `fetch` brings them, and nothing runs without them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from stages.families import FAMILIES
from stages.families.shared.solvers import make_scheduler
from stages.families.wan.presets import PRESETS
from stages.families.wan.sampler import switch_step
from stages.runtime.errors import UsageError
from stages.runtime.model import find_model
from tests.commands import stage
from tests.hub import serve

ROOT = Path(__file__).parents[3]
LORA = "hub://us/loras/fast/style.safetensors"


def scheduler_of(preset):
    family, values = FAMILIES["wan"], {"seed": 1, **PRESETS[preset].options}
    options = family.stages["generate"].options.resolved(values, PRESETS[preset].variant)
    names = ("num_inference_steps", "shift", "sigma_grid", "sampler", "sigmas", "timesteps")
    steps, shift, grid, sampler, sigmas, timesteps = (getattr(options, name) for name in names)
    config = {"num_train_timesteps": 1000}
    return options, make_scheduler(config, steps, shift, torch.device("cpu"), grid, sampler, sigmas, timesteps)


@pytest.mark.parametrize("preset", [name for name in PRESETS if name.endswith("a14b-4")])
def test_the_four_step_releases_have_lightx2vs_sigmas_and_switch_after_two(preset):
    """Its denoising_step_list [1000, 750, 500, 250] with shift 5, and CFG off."""
    options, scheduler = scheduler_of(preset)
    wanted = [5 * t / (1000 + 4 * t) for t in (1000, 750, 500, 250)]
    torch.testing.assert_close(scheduler.sigmas.double(), torch.tensor([*wanted, 0.0]).double(), atol=1e-7, rtol=0)
    assert [round(sigma, 4) for sigma in wanted] == [1.0, 0.9375, 0.8333, 0.625]
    assert switch_step(scheduler, options.boundary_ratio) == 2
    assert type(scheduler).__name__ == "FlowMatchEulerDiscreteScheduler" and options.guidance_scale == 1


def test_fastwan_has_its_three_timesteps_as_they_are_and_new_noise_in_each_step():
    options, scheduler = scheduler_of("fastwan-ti2v-5b-3")
    assert scheduler.timesteps.tolist() == [1000, 757, 522]
    torch.testing.assert_close(scheduler.sigmas.double(), torch.tensor([1, 0.757, 0.522, 0]).double(), atol=1e-7, rtol=0)
    assert type(scheduler).__name__ == "FlowMatchLCMScheduler" and options.guidance_scale == 1


@pytest.fixture
def hub(tmp_path):
    path = tmp_path / "loras/fast/style.safetensors"
    path.parent.mkdir(parents=True)
    save_file({"diffusion_model.blocks.0.self_attn.q.diff_b": torch.full((24,), 0.5)}, path)
    with serve({"us/loras": tmp_path / "loras"}) as hub:
        yield hub


@pytest.fixture
def config(tmp_path, tiny_wan):
    path = tmp_path / "config.yaml"
    declared = {"family": "wan", "path": str(tiny_wan["5b"]), "options": {"lora": LORA}}
    path.write_text(yaml.safe_dump({"models": {"mine": declared}}))
    return path


@pytest.fixture
def fetch(hub, tmp_path, config):
    def run(fails=0):
        environment = {**os.environ, **hub.environment(tmp_path / "hf"), "PYTHONPATH": str(ROOT)}
        command = (sys.executable, "-m", "stages.fetch", "mine", "--config", config, "-o", tmp_path / "record.json")
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == fails, done.stderr
        return done.stderr

    return run


def test_fetch_brings_the_files_that_options_name_once(fetch, hub, config, tmp_path, monkeypatch, encoded):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    make = ("generate", encoded["5b"], "-o", tmp_path / "l.safetensors", "-m", "mine", "--config", config)
    make += ("--steps", 2, "--seed", 1)
    message = stage(*make, fails=1)
    assert f"{LORA} of model mine is not on this machine: fetch it once: fetch mine" in message
    fetch()
    fetch()
    assert hub.count_fetches("style.safetensors") == 1
    path = tmp_path / "hf/kinemake/files/us/loras/main/fast/style.safetensors"
    assert find_model("mine", config, FAMILIES).options["lora"] == str(path)
    assert list(json.loads((tmp_path / "record.json").read_text())["named_files"]) == [LORA]
    stage(*make)
    plain = ("generate", encoded["5b"], "-o", tmp_path / "p.safetensors", "--steps", 2, "--seed", 1, "--lora", path)
    stage(*plain)
    assert torch.equal(load_file(tmp_path / "l.safetensors")["latents"], load_file(tmp_path / "p.safetensors")["latents"])


def test_fetch_names_a_missing_file_of_the_hub(fetch, tmp_path):
    (tmp_path / "loras/fast/style.safetensors").unlink()
    (tmp_path / "loras/other.txt").write_text("")
    assert "error: us/loras has no fast/style.safetensors: mend its name" in fetch(fails=1)


def test_a_stage_by_hand_refuses_what_contradicts_the_preset(config, tiny_wan, encoded, tmp_path):
    declared = {"family": "wan", "path": str(tiny_wan["5b"]), "preset": "fastwan-ti2v-5b-3"}
    config.write_text(yaml.safe_dump({"models": {"mine": declared}}))
    make = ("generate", encoded["5b"], "-o", tmp_path / "l.safetensors", "-m", "mine", "--config", config)
    message = stage(*make, "--guidance-scale", 5, fails=2)
    assert "guidance_scale is 5.0 and preset fastwan-ti2v-5b-3 of model mine has 1.0" in message
    declared["path"] = str(tiny_wan["14b"])
    config.write_text(yaml.safe_dump({"models": {"mine": declared}}))
    with pytest.raises(UsageError, match="preset fastwan-ti2v-5b-3 is for variant 5b and model mine is 14b"):
        find_model("mine", config, FAMILIES)
