"""Three stages with files between them give the frames of the pipelines of diffusers, bit for bit."""

import numpy as np
import pytest
import torch
from diffusers import HeliosPipeline, HeliosPyramidPipeline

from stages.media.read import frames
from tests.commands import stage
from tests.families.helios.conftest import BLOCK, FILM, HISTORY, NEGATIVE, PROMPT, SEED, SHOWN, SIZE, encode, images

STEPS = {"base": [3], "mid": [3, 2, 2], "distilled": [2, 2, 2]}
GUIDANCE = {"base": 4.0, "mid": 4.0, "distilled": 1.0}


def pipeline_frames(model, variant, dtype, **given):
    """uint8 [N, H, W, 3] by the pipeline of diffusers, with the VAE in float32 and pixels rounded to nearest."""
    dtypes = {"transformer": dtype, "text_encoder": dtype, "default": torch.float32}
    pipe = (HeliosPipeline if variant == "base" else HeliosPyramidPipeline).from_pretrained(model, dtype=dtypes)
    pipe.set_progress_bar_config(disable=True)
    steps = {"num_inference_steps": STEPS["base"][0]}
    if variant != "base":
        steps = {"pyramid_num_inference_steps_list": STEPS[variant], "is_amplify_first_chunk": variant == "distilled"}
    video = pipe(
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        height=SIZE[variant],
        width=SIZE[variant],
        num_frames=FILM,
        guidance_scale=GUIDANCE[variant],
        generator=torch.Generator("cpu").manual_seed(SEED),
        output_type="np",
        max_sequence_length=64,
        history_sizes=list(HISTORY),
        num_latent_frames_per_chunk=BLOCK,
        **steps,
        **given,
    ).frames[0]
    return (video * 255).round().astype(np.uint8)


def stages_frames(encoded, folder, variant, dtype, *arguments):
    """uint8 [N, H, W, 3] by generate and decode."""
    name = "--num-inference-steps" if variant == "base" else "--pyramid-num-inference-steps-list"
    steps = [flag for number in STEPS[variant] for flag in (name, number)]
    sizes = [flag for number in HISTORY for flag in ("--history-sizes", number)]
    flags = ("--guidance-scale", GUIDANCE[variant], "--seed", SEED, "--dtype", dtype)
    stage("generate", encoded, "-o", folder / "l.safetensors", *steps, *sizes, *flags, *arguments)
    stage("decode", folder / "l.safetensors", "-o", folder / "clip.json", "--lossless")
    return np.stack([frame.rgb for frame in frames(folder / "clip.mkv")])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mode", ["text", "image", "video"])
@pytest.mark.parametrize("variant", SIZE)
def test_stages_give_the_frames_of_the_diffusers_pipeline(
    variant, mode, dtype, tiny_helios, source, tmp_path, one_generator
):
    model, side = tiny_helios[variant], SIZE[variant]
    past = images(source(side))
    inputs = {"text": (), "image": (past[-1].filename,), "video": (source(side),)}[mode]
    encode(tmp_path / "e.safetensors", model, side, *inputs, "--prompt", PROMPT, dtype=dtype)
    ours = stages_frames(tmp_path / "e.safetensors", tmp_path, variant, dtype)
    given = {"text": {}, "image": {"image": past[-1]}, "video": {"video": past}}[mode]
    theirs = pipeline_frames(model, variant, getattr(torch, dtype), **given)
    assert theirs.std() > 20  # not a grey film, for which equality would prove little
    assert len(theirs) == SHOWN and np.array_equal(ours, theirs)
