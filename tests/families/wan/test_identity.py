"""Three stages with files between them give the frames of the diffusers pipeline, bit for bit."""

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, WanImageToVideoPipeline, WanPipeline
from PIL import Image
from safetensors.torch import load_file

from stages.media.read import frames
from tests.commands import stage
from tests.families.wan.conftest import FRAMES, NEGATIVE, PROMPT, encode
from tests.tiny.wan import set_schedule

STEPS, SEED, SHIFT = 6, 7, 4.0
GUIDANCE = {"14b": (4.0, 3.0), "14b-t2v": (4.0, 3.0), "5b": (4.0, None)}


def pipeline_frames(model, image, dtype, guidance, guidance_2, sigma_grid="wan", scheduler=None):
    """uint8 [N, H, W, 3] by the pipeline of diffusers, with the VAE in float32 and pixels rounded to nearest.

    Without an `image` it is the one for text to video. Without a `scheduler` it has UniPC."""
    dtypes = {"transformer": dtype, "transformer_2": dtype, "text_encoder": dtype, "default": torch.float32}
    pipe = (WanImageToVideoPipeline if image else WanPipeline).from_pretrained(model, dtype=dtypes)
    pipe.set_progress_bar_config(disable=True)
    set_schedule(pipe, SHIFT, sigma_grid)
    pipe.scheduler = scheduler or pipe.scheduler
    video = pipe(
        **({"image": Image.open(image)} if image else {}),
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        height=64,
        width=96,
        num_frames=FRAMES,
        num_inference_steps=STEPS,
        guidance_scale=guidance,
        guidance_scale_2=guidance_2,
        max_sequence_length=64,
        generator=torch.Generator("cpu").manual_seed(SEED),
        output_type="np",
    ).frames[0]
    return (video * 255).round().astype(np.uint8)


def stages_frames(encoded, folder, *arguments):
    """uint8 [N, H, W, 3] by generate and decode."""
    arguments = ("--steps", STEPS, "--seed", SEED, "--shift", SHIFT, *arguments)
    stage("generate", encoded, "-o", folder / "l.safetensors", *arguments)
    stage("decode", folder / "l.safetensors", "-o", folder / "clip.json", "--lossless")
    return np.stack([frame.rgb for frame in frames(folder / "clip.mkv")])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("variant", GUIDANCE)
def test_stages_give_the_frames_of_the_diffusers_pipeline(variant, dtype, tiny_wan, image, tmp_path):
    model, (guidance, guidance_2) = tiny_wan[variant], GUIDANCE[variant]
    image = None if variant == "14b-t2v" else image
    encode(image, tmp_path / "e.safetensors", model, dtype)
    arguments = ["--guidance-scale", guidance, "--dtype", dtype]
    if guidance_2:
        arguments += ["--guidance-scale-2", guidance_2]
    ours = stages_frames(tmp_path / "e.safetensors", tmp_path, *arguments)
    theirs = pipeline_frames(model, image, getattr(torch, dtype), guidance, guidance_2)
    assert theirs.std() > 20  # not a grey film, for which equality would prove little
    assert np.array_equal(ours, theirs)
    assert np.array_equal(np.array(Image.open(tmp_path / "clip.last.png")), theirs[-1])


@pytest.mark.parametrize("variant", ["14b", "5b"])
def test_guidance_of_one_equals_the_pipeline_without_guidance(variant, tiny_wan, encoded, image, tmp_path):
    ours = stages_frames(encoded[variant], tmp_path, "--guidance-scale", 1, "--dtype", "float32")
    assert np.array_equal(ours, pipeline_frames(tiny_wan[variant], image, torch.float32, 1.0, None))


@pytest.mark.parametrize("variant", ["14b", "5b"])
def test_sigma_grid_diffusers_equals_the_plain_pipeline(variant, tiny_wan, encoded, image, tmp_path):
    arguments = ("--guidance-scale", 4, "--dtype", "float32", "--sigma-grid")
    ours, on_own_grid = (stages_frames(encoded[variant], tmp_path, *arguments, grid) for grid in ("diffusers", "wan"))
    assert np.array_equal(ours, pipeline_frames(tiny_wan[variant], image, torch.float32, 4.0, None, "diffusers"))
    assert not np.array_equal(ours, on_own_grid)


SCHEDULERS = {
    "euler": FlowMatchEulerDiscreteScheduler(shift=SHIFT),
    "dpm++": DPMSolverMultistepScheduler(flow_shift=SHIFT, use_flow_sigmas=True, prediction_type="flow_prediction"),
}


@pytest.mark.parametrize("sampler", SCHEDULERS)
@pytest.mark.parametrize("variant", ["14b", "5b"])
def test_a_sampler_gives_the_frames_of_the_pipeline_with_its_scheduler(variant, sampler, tiny_wan, encoded, image, tmp_path):
    arguments = ("--guidance-scale", 4, "--dtype", "float32", "--sampler", sampler, "--sigma-grid", "diffusers")
    ours, scheduler = stages_frames(encoded[variant], tmp_path, *arguments), SCHEDULERS[sampler]
    theirs = pipeline_frames(tiny_wan[variant], image, torch.float32, 4.0, None, scheduler=scheduler)
    assert theirs.std() > 20 and np.array_equal(ours, theirs)


def test_the_defaults_of_text_to_video_by_two_experts_are_those_of_wans_own_program(tiny_wan, encoded, tmp_path):
    """Wan2.2 wan/configs/wan_t2v_A14B.py: shift 12, guidance 4 and 3, the experts change at 0.875."""
    published = ("--shift", 12, "--guidance-scale", 4, "--guidance-scale-2", 3, "--boundary-ratio", 0.875)
    latents = []
    for name, arguments in {"default": (), "published": published}.items():
        stage("generate", encoded["14b-t2v"], "-o", tmp_path / f"{name}.safetensors", "--steps", 6, "--seed", 1, *arguments)
        latents.append(load_file(tmp_path / f"{name}.safetensors")["latents"])
    assert torch.equal(*latents)


def test_generated_latents_depend_on_the_seed_alone(encoded, tmp_path):
    results = {}
    for name, seed in {"a": 3, "b": 3, "c": 4}.items():
        output = tmp_path / name / "l.safetensors"
        output.parent.mkdir()
        stage("generate", encoded["5b"], "-o", output, "--steps", 3, "--seed", seed)
        results[name] = load_file(output)["latents"]
    assert torch.equal(results["a"], results["b"])
    assert not torch.equal(results["a"], results["c"])
