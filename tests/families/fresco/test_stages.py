"""The stages of FRESCO by hand on a tiny Stable Diffusion with random weights."""

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, ControlNetModel, DDPMScheduler, UNet2DConditionModel
from diffusers.pipelines import StableDiffusionControlNetImg2ImgPipeline
from PIL import Image
from safetensors.torch import load_file
from transformers import DPTForDepthEstimation

from stages.families.fresco import attention, sampler
from stages.families.fresco.options import keyframe_batches
from stages.media.read import read_image
from stages.runtime import artifacts
from tests.commands import stage
from tests.families.fresco.conftest import INTERVAL, SIZE, STEP

CANNY = ("--controlnet-type", "canny")
FEW = ("--num-inference-steps", 4, "--num-warmup-steps", 1, "--end-opt-step", 2, "--feature-iterations", 3)
FULL = ("--seed", 3, "--dtype", "float32")


def generate(encoded, output, *arguments, fails=0):
    return stage("generate", encoded, "-o", output, *CANNY, *FEW, *FULL, *arguments, fails=fails)


def read(path):
    return artifacts.read(path, artifacts.KINDS)


# ------------------------------------------------------------------------------------------------------------- batches


def test_keyframe_batches_start_with_the_first_keyframe_and_the_previous_one():
    assert keyframe_batches(10, 4) == [[0, 1, 2, 3], [0, 3, 4, 5], [0, 5, 6, 7], [0, 7, 8, 9]]
    assert keyframe_batches(8, 8) == [list(range(8))]
    assert keyframe_batches(9, 8) == [list(range(8)), [0, 7, 8]]
    assert [keyframe_batches(count, 8) for count in (1, 2, 3)] == [[[0]], [[0, 1]], [[0, 1, 2]]]


@pytest.mark.parametrize("size", [3, 4, 8])
def test_keyframe_batches_cover_every_keyframe_once(size):
    for count in range(1, 30):
        first, *others = keyframe_batches(count, size)
        assert [*first, *(key for batch in others for key in batch[2:])] == list(range(count))
        assert all(len(batch) <= size for batch in (first, *others))


# -------------------------------------------------------------------------------------------------------------- encode


def test_encode_appends_the_prompt_suffix(tiny_sd, keys, encoded, tmp_path):
    suffixed = encoded(1, *CANNY, "--prompt-suffix", ", a photo")
    whole = tmp_path / "whole.safetensors"
    stage("encode", keys(1), "-o", whole, "-m", tiny_sd, "--prompt", "a blue bird, a photo", "--dtype", "float32", *CANNY)
    assert read(suffixed).fields["prompt"] == "a blue bird, a photo"
    assert torch.equal(load_file(suffixed)["prompt_embeds"], load_file(whole)["prompt_embeds"])
    assert not torch.equal(load_file(suffixed)["prompt_embeds"], load_file(encoded(1, *CANNY))["prompt_embeds"])


def test_encode_uses_the_canny_edges_of_the_keyframes(encoded, keys, tiny_sd, tmp_path):
    tensors = load_file(encoded(2, *CANNY))
    frames = [keys(2).parent / f"keys/{number * INTERVAL:06d}.png" for number in range(2)]
    for path, edges in zip(frames, tensors["control"]):
        assert np.array_equal(edges, cv2.Canny(read_image(path), 50, 100))
    clip = "examples/shapes/videos/0000.mp4"
    stage("extract_frames", clip, "--select", "first", "--count", 1, "-o", tmp_path / "f.json")
    command = ("encode", tmp_path / "f.json", "-o", tmp_path / "e.safetensors", "-m", tiny_sd, "--prompt", "a bird", *CANNY)
    assert "has no hard edges: extract its frames with --canny" in stage(*command, fails=1)


def test_encoded_hed_edges_are_the_mean_of_five_maps(encoded, tiny_sd):
    """The expected maps come from the weights by their published names, one convolution after the other."""
    tensors, weights = load_file(encoded(2)), load_file(tiny_sd / "hed/hed.safetensors")
    x, maps = tensors["pixels"].float() - weights["norm"], []
    for number, convolutions in enumerate((2, 2, 3, 3, 3), 1):
        x = F.max_pool2d(x, 2) if number > 1 else x
        for name in (f"block{number}.convs.{layer}" for layer in range(convolutions)):
            x = F.relu(F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1))
        name = f"block{number}.projection"
        maps.append(
            F.interpolate(F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"]), SIZE[::-1], mode="bilinear")
        )
    expected = 255 * torch.sigmoid(torch.cat(maps, 1).mean(1))
    assert (tensors["control"].float() - expected.floor()).abs().max() <= 1


def test_encoded_depth_is_normalised_over_the_whole_clip(encoded, tiny_sd):
    """Normalising each frame would make the same place brighter and darker."""
    tensors = load_file(encoded(2, "--controlnet-type", "depth"))
    net = DPTForDepthEstimation.from_pretrained(tiny_sd / "depth")
    frames = [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in tensors["pixels"]]
    small = np.stack([frame.resize((32, 32), Image.Resampling.BICUBIC) for frame in frames])
    pixels = (torch.from_numpy(small).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    with torch.no_grad():
        near = F.interpolate(net(pixels).predicted_depth[None], SIZE[::-1], mode="bicubic")[0]
    expected = 255 * (near - near.min()) / (near.max() - near.min())
    assert (tensors["control"].float() - expected).abs().max() <= 1
    assert tensors["control"].amax() == 255 and tensors["control"].amin() == 0


def test_encoded_flow_is_that_of_the_moving_image(encoded):
    tensors, fields = load_file(encoded(4, *CANNY)), read(encoded(4, *CANNY)).fields
    assert fields["pairs"] == [[0, 1], [1, 2], [2, 3], [3, 0]] and [frame["index"] for frame in fields["frames"]] == [
        0,
        5,
        10,
        15,
    ]
    middle = slice(16, 112), slice(24, 168)
    for flow, sign in (("flow_forward", -1), ("flow_backward", 1)):
        for pair in range(3):
            x, y = tensors[flow][pair].float()
            assert (x[middle] - sign * STEP).abs().max() < 0.5 and y[middle].abs().max() < 0.5
    occluded = tensors["occluded_forward"][0]  # the left border moves out of the image
    assert occluded[:, : STEP // 2].float().mean() > 0.9 and occluded[middle].float().mean() < 0.05


def test_encoded_latents_are_those_of_the_vae(encoded, tiny_sd):
    tensors = load_file(encoded(2, *CANNY))
    vae = AutoencoderKL.from_pretrained(tiny_sd, subfolder="vae")
    with torch.no_grad():
        expected = vae.encode(tensors["pixels"].float() / 127.5 - 1).latent_dist.mode() * vae.config.scaling_factor
    assert (tensors["image_latents"][0].transpose(0, 1) - expected).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--controlnet-type", "sketch"), "'sketch' is not one of 'hed', 'canny', 'depth'"),
        (("--batch-size", 2), "option keyframe_batch_size is 2: it must be at least 3"),
    ],
)
def test_invalid_fresco_options_are_refused(keys, tiny_sd, tmp_path, arguments, message):
    command = ("encode", keys(2), "-o", tmp_path / "e.safetensors", "-m", tiny_sd, "--prompt", "a bird", *arguments)
    assert message in stage(*command, fails=2)


def test_encode_refuses_a_size_that_the_network_does_not_take(tiny_sd, tmp_path):
    clip = "examples/shapes/videos/0000.mp4"
    stage("extract_frames", clip, "--select", "first", "--count", 2, "--size", "96*64", "-o", tmp_path / "f.json")
    command = ("encode", tmp_path / "f.json", "-o", tmp_path / "e.safetensors", "-m", tiny_sd, "--prompt", "a bird")
    assert "are 96*64: use multiples of 64, 128 and more" in stage(*command, fails=1)


# ------------------------------------------------------------------------------------------------------------ generate


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_generate_takes_few_keyframes(encoded, tmp_path, count):
    generate(encoded(count, *CANNY), tmp_path / "l.safetensors")
    latents = load_file(tmp_path / "l.safetensors")["latents"]
    assert latents.shape == (1, 4, count, SIZE[1] // 8, SIZE[0] // 8) and latents.isfinite().all()


def test_later_keyframes_change_nothing_in_an_earlier_batch(encoded, tmp_path):
    for count in (4, 6):
        generate(encoded(count, *CANNY, "--batch-size", 4), tmp_path / f"{count}.safetensors")
    short, long = (load_file(tmp_path / f"{count}.safetensors")["latents"] for count in (4, 6))
    assert torch.equal(short, long[:, :, :4]) and not torch.equal(long[:, :, 4], long[:, :, 3])


def test_a_batch_depends_on_the_batch_before(encoded, tmp_path):
    """The same last keyframes after other keyframes have other results."""
    generate(encoded(6, *CANNY, "--batch-size", 4), tmp_path / "led.safetensors")
    generate(encoded(6, *CANNY, "--batch-size", 8), tmp_path / "whole.safetensors")
    with_context, whole = (load_file(tmp_path / f"{name}.safetensors")["latents"] for name in ("led", "whole"))
    assert not torch.allclose(with_context[:, :, 4:], whole[:, :, 4:], atol=1e-3)


def test_a_single_keyframe_equals_the_pipeline_of_diffusers(encoded, tiny_sd, tmp_path, monkeypatch):
    """The spatial guidance, which only FRESCO has, and the optimisation are off."""
    monkeypatch.setattr(attention, "spatial_guided_attention", lambda queries, keys, values: values)
    generate(encoded(1, *CANNY), tmp_path / "l.safetensors", "--feature-iterations", 0)
    tensors = load_file(encoded(1, *CANNY))
    pipeline = StableDiffusionControlNetImg2ImgPipeline(
        vae=AutoencoderKL.from_pretrained(tiny_sd, subfolder="vae"),
        unet=UNet2DConditionModel.from_pretrained(tiny_sd, subfolder="unet"),
        controlnet=ControlNetModel.from_pretrained(tiny_sd, subfolder="controlnet_canny"),
        scheduler=DDPMScheduler.from_pretrained(tiny_sd, subfolder="scheduler"),
        **dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor")),
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    control = tensors["control"][:, None].expand(-1, 3, -1, -1).float() / 255
    expected = pipeline(
        image=tensors["image_latents"][0].transpose(0, 1),
        control_image=control,
        prompt_embeds=tensors["prompt_embeds"],
        negative_prompt_embeds=tensors["negative_prompt_embeds"],
        height=SIZE[1],
        width=SIZE[0],
        num_inference_steps=4,
        strength=0.75,
        guidance_scale=7.5,
        controlnet_conditioning_scale=0.7,
        generator=torch.manual_seed(3),
        output_type="latent",
        return_dict=False,
    )[0]
    ours = load_file(tmp_path / "l.safetensors")["latents"][:, :, 0]
    assert (ours - expected).abs().max() <= 1e-4


@pytest.mark.parametrize(
    "arguments",
    [
        ("--num-warmup-steps", -1),
        ("--cond-scale", 0),
        ("--feature-iterations", 0),
        ("--temporal-end", 1000),
        ("--use-freeu",),
    ],
    ids=lambda arguments: arguments[0],
)
def test_generated_keyframes_depend_on_each_option(encoded, tmp_path, arguments):
    generate(encoded(3, *CANNY), tmp_path / "as_is.safetensors")
    generate(encoded(3, *CANNY), tmp_path / "other.safetensors", *arguments)
    as_is, other = (load_file(tmp_path / f"{name}.safetensors")["latents"] for name in ("as_is", "other"))
    assert other.isfinite().all() and not torch.equal(as_is, other)


def test_the_precision_of_products_is_that_of_the_option_in_the_optimisation_alone(encoded, tmp_path, monkeypatch):
    """float32 is the default, and its key is as if the option did not exist."""
    seen, keys, optimise = [], [], sampler.optimise
    monkeypatch.setattr(
        sampler, "optimise", lambda *given: seen.append(torch.get_float32_matmul_precision()) or optimise(*given)
    )
    before = torch.get_float32_matmul_precision()
    for arguments in ((), ("--matmul-precision", "highest"), ("--matmul-precision", "high")):
        generate(encoded(2, *CANNY), tmp_path / "l.safetensors", *arguments)
        keys.append(read(tmp_path / "l.safetensors").provenance[-1]["key"])
        assert torch.get_float32_matmul_precision() == before
        assert {*seen} == {arguments[-1] if arguments else "highest"}
        seen.clear()
    assert keys[0] == keys[1] != keys[2]


def test_generate_refuses_control_maps_of_another_kind(encoded, tmp_path):
    stderr = stage("generate", encoded(2), "-o", tmp_path / "l.safetensors", *CANNY, *FULL, fails=1)
    assert "has hed maps and controlnet_type is canny" in stderr


# -------------------------------------------------------------------------------------------------------------- decode


def test_decoded_keyframes_are_images_named_by_their_index(encoded, tiny_sd, tmp_path):
    generate(encoded(3, *CANNY), tmp_path / "l.safetensors")
    stage("decode", tmp_path / "l.safetensors", "-m", tiny_sd, "-o", tmp_path / "keys.json")
    suffixes = [suffix for suffix in read(tmp_path / "keys.json").members if suffix.startswith("/")]
    assert suffixes == [f"/{number * INTERVAL:06d}.png" for number in range(3)]
    vae = AutoencoderKL.from_pretrained(tiny_sd, subfolder="vae")
    latents = load_file(tmp_path / "l.safetensors")["latents"][0].transpose(0, 1)
    with torch.no_grad():
        image = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
    expected = ((image / 2 + 0.5).clamp(0, 1) * 255).permute(0, 2, 3, 1)
    for number, suffix in enumerate(suffixes):
        ours = torch.from_numpy(read_image(read(tmp_path / "keys.json").member(suffix))).float()
        assert (ours - expected[number]).abs().max() <= 1


def test_still_keyframes_are_generated_alike(tiny_sd, keys, tmp_path):
    """All keyframes have the same noise, also the noise of each step."""
    options = ("-m", tiny_sd, "--prompt", "a blue bird", "--dtype", "float32", *CANNY)
    stage("encode", keys(3, step=0), "-o", tmp_path / "e.safetensors", *options)
    generate(tmp_path / "e.safetensors", tmp_path / "l.safetensors", "--feature-iterations", 0)
    latents = load_file(tmp_path / "l.safetensors")["latents"][0].transpose(0, 1)
    assert (latents[1:] - latents[:1]).abs().max() <= 1e-4 * latents.abs().max()
