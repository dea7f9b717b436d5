"""Three stages with files between them give the frames of the library's own pipeline, bit for bit."""

import numpy as np
import pytest
import torch
from diffusers import UniPCMultistepScheduler, WanImageToVideoPipeline
from PIL import Image
from safetensors.torch import load_file

from stages.media.read import frames
from tests.commands import stage
from tests.models.wan.conftest import NEGATIVE, PROMPT, encode

STEPS, SEED, SHIFT = 6, 7, 4.0
GUIDANCE = {"14b": (4.0, 3.0), "5b": (4.0, None)}


def pipeline_frames(model, picture, dtype, guidance, guidance_2):
    """uint8 [N, H, W, 3] by `WanImageToVideoPipeline.__call__`, the VAE in float32, its pixels rounded to the nearest."""
    dtypes = {"transformer": dtype, "transformer_2": dtype, "text_encoder": dtype, "default": torch.float32}
    pipe = WanImageToVideoPipeline.from_pretrained(model, dtype=dtypes)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config, flow_shift=SHIFT)
    video = pipe(
        image=Image.open(picture),
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        height=64,
        width=96,
        num_frames=17,
        num_inference_steps=STEPS,
        guidance_scale=guidance,
        guidance_scale_2=guidance_2,
        max_sequence_length=64,
        generator=torch.Generator("cpu").manual_seed(SEED),
        output_type="np",
    ).frames[0]
    return (video * 255).round().astype(np.uint8)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("variant", ["14b", "5b"])
def test_stages_give_the_pipelines_frames(variant, dtype, tiny_wan, picture, tmp_path):
    model, (guidance, guidance_2) = tiny_wan[variant], GUIDANCE[variant]
    encode(picture, tmp_path / "e.safetensors", model, dtype)
    arguments = ["--steps", STEPS, "--seed", SEED, "--shift", SHIFT, "--guidance-scale", guidance, "--dtype", dtype]
    if guidance_2:
        arguments += ["--guidance-scale-2", guidance_2]
    stage("generate", tmp_path / "e.safetensors", "-o", tmp_path / "l.safetensors", *arguments)
    stage("decode", tmp_path / "l.safetensors", "-o", tmp_path / "clip.json", "--lossless")
    ours = np.stack([frame.rgb for frame in frames(tmp_path / "clip.mkv")])
    theirs = pipeline_frames(model, picture, getattr(torch, dtype), guidance, guidance_2)
    assert theirs.std() > 20  # not a grey film, in which equality would say little
    assert np.array_equal(ours, theirs)
    assert np.array_equal(np.array(Image.open(tmp_path / "clip.last.png")), theirs[-1])


@pytest.mark.parametrize("variant", ["14b", "5b"])
def test_guidance_of_one_is_the_pipeline_without_guidance(variant, tiny_wan, encoded, picture, tmp_path):
    arguments = ["--steps", STEPS, "--seed", SEED, "--shift", SHIFT, "--guidance-scale", 1, "--dtype", "float32"]
    stage("generate", encoded[variant], "-o", tmp_path / "l.safetensors", *arguments)
    stage("decode", tmp_path / "l.safetensors", "-o", tmp_path / "clip.json", "--lossless")
    ours = np.stack([frame.rgb for frame in frames(tmp_path / "clip.mkv")])
    assert np.array_equal(ours, pipeline_frames(tiny_wan[variant], picture, torch.float32, 1.0, None))


def test_seed_is_all_that_is_random(encoded, tmp_path):
    made = {}
    for name, seed in {"a": 3, "b": 3, "c": 4}.items():
        output = tmp_path / name / "l.safetensors"
        output.parent.mkdir()
        stage("generate", encoded["5b"], "-o", output, "--steps", 3, "--seed", seed)
        made[name] = load_file(output)["latents"]
    assert torch.equal(made["a"], made["b"])
    assert not torch.equal(made["a"], made["c"])
