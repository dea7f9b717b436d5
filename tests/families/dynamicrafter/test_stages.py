"""The three stages on tiny random weights: their outputs, batches, and values that are not finite."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from stages.families.dynamicrafter.options import FAMILY
from stages.runtime import artifacts
from stages.runtime.model import Model
from stages.runtime.weights import bytes_in_memory
from tests import zoo
from tests.commands import events, stage, stage_manifest
from tests.tiny import dynamicrafter as tiny

SMALL = ("--size", "64*64")
FAST = ("--num-inference-steps", 2, "--dtype", "float32")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Five different images of different sizes."""
    folder, paths = tmp_path_factory.mktemp("pictures"), []
    for number, size in enumerate([(64, 64), (120, 80), (80, 120), (65, 64), (200, 200)]):
        colours = np.random.default_rng(number).integers(0, 255, (4, 4, 3), np.uint8)
        paths.append(folder / f"{number}.png")
        Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC).save(paths[-1])
    return paths


@pytest.fixture(scope="module")
def encoded(repositories, images, tmp_path_factory):
    """The encodings of the images for the 256 model."""
    folder = tmp_path_factory.mktemp("encoded")
    rows = [
        {"image": str(path), "prompt": f"picture {path.stem}", "output": str(folder / f"{path.stem}.safetensors")}
        for path in images
    ]
    run("encode", rows, folder, model=str(repositories["256"]), size="64*64", negative_prompt="blurry")
    return [folder / f"{path.stem}.safetensors" for path in images]


def run(name, rows, folder, *arguments, **options):
    """Run a stage over rows with the same options and return the events of its log."""
    return events(stage_manifest(name, folder, [{**row, **options} for row in rows], *arguments))


def generate_latents(encoded, folder, **options):
    """The latents of encoded files by name, and the events of the log."""
    folder.mkdir(exist_ok=True)
    rows = [{"encoded": str(path), "output": str(folder / path.name)} for path in encoded]
    values = {"num_inference_steps": 2, "dtype": "float32", **options}
    events = run("generate", rows, folder, **values)
    return {path.name: load_file(folder / path.name) for path in encoded}, events


def test_encode_writes_the_conditions_of_the_unet(encoded, repositories):
    artifact = artifacts.read(encoded[1], ("encoded",))
    shapes = {name: tuple(tensor.shape) for name, tensor in artifact.tensors().items()}
    assert shapes == {
        "prompt_embeds": (1, 77, 24),
        "negative_prompt_embeds": (1, 77, 24),
        "image_embeds": (1, 256, 24),
        "negative_image_embeds": (1, 256, 24),
        "image_latents": (1, 4, 1, 8, 8),
    }
    fields = artifact.fields
    assert (fields["width"], fields["height"], fields["num_frames"]) == (64, 64, 16)
    assert (fields["prompt"], fields["negative_prompt"], fields["variant"]) == ("picture 1", "blurry", "256")
    grey = [artifacts.read(path, ("encoded",)).tensors()["negative_image_embeds"] for path in encoded]
    assert all(torch.equal(tokens, grey[0]) for tokens in grey)


def test_encoded_latents_are_the_scaled_mode_of_the_vae(encoded, repositories, images):
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(repositories["256"] / "vae")
    pixels = torch.from_numpy(np.array(Image.open(images[0]))).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        expected = vae.encode(pixels).latent_dist.mean * 0.18215
    assert torch.allclose(load_file(encoded[0])["image_latents"][:, :, 0], expected, atol=1e-6)


def test_encode_for_the_interpolating_model_writes_both_ends(repositories, images, tmp_path):
    ends = "--last-image", images[4]
    for name, options in (("two", ends), ("round", ("--loop",))):
        arguments = ("--prompt", "p", "--model", repositories["512_interp"], *SMALL, *options)
        stage("encode", images[0], *arguments, "-o", tmp_path / f"{name}.safetensors")
    two, loop = (load_file(tmp_path / f"{name}.safetensors")["image_latents"] for name in ("two", "round"))
    for latents in (two, loop):
        assert latents.shape == (1, 4, 16, 8, 8) and not latents[:, :, 1:-1].any()
    assert torch.equal(two[:, :, 0], loop[:, :, 0]) and torch.equal(loop[:, :, 0], loop[:, :, -1])
    assert not torch.allclose(two[:, :, -1], loop[:, :, -1], atol=1e-3)
    stage("generate", tmp_path / "round.safetensors", *FAST, "-o", tmp_path / "latents.safetensors")
    stage("decode", tmp_path / "latents.safetensors", "-o", tmp_path / "clip.json")
    assert len(zoo.rgb_by_ffmpeg(tmp_path / "clip.mp4", (64, 64))) == 15


@pytest.mark.parametrize(
    "variant, arguments, message",
    [
        ("256", ("--size", "100*64"), "both sides have to be multiples of 64"),
        ("512", ("--loop",), "use a model of variant 512_interp"),
        ("512_interp", (), "neither last_image nor loop are set"),
    ],
)
def test_unencodable_inputs_are_reported(repositories, images, tmp_path, variant, arguments, message):
    command = (images[0], "--prompt", "p", "--model", repositories[variant], *SMALL, *arguments)
    fails = 1 if variant == "256" else 2
    assert message in stage("encode", *command, "-o", tmp_path / "e.safetensors", fails=fails)


def test_encode_warns_of_lengths_other_than_16(repositories, images, tmp_path):
    arguments = (images[0], "--prompt", "p", "--model", repositories["512"], *SMALL, "--video-length", 5)
    assert "trained on 16, other lengths move badly" in stage("encode", *arguments, "-o", tmp_path / "e.safetensors")
    stage("generate", tmp_path / "e.safetensors", *FAST, "-o", tmp_path / "l.safetensors")
    assert load_file(tmp_path / "l.safetensors")["latents"].shape == (1, 4, 5, 8, 8)


def test_a_seed_gives_the_same_clip_in_any_order_shard_and_batch(encoded, tmp_path):
    whole, _ = generate_latents(encoded, tmp_path / "whole")
    backwards, _ = generate_latents(encoded[2::-1], tmp_path / "backwards")
    alone, _ = generate_latents(encoded[2:3], tmp_path / "alone")
    batches, _ = generate_latents(encoded, tmp_path / "batches", batch_size=4)
    assert all(torch.equal(whole[name]["latents"], result["latents"]) for name, result in {**backwards, **alone}.items())
    for name, result in batches.items():
        single = whole[name]["latents"]
        assert (result["latents"] - single).abs().max() <= 1e-4 * single.abs().max()
    firsts = [result["latents"] for result in whole.values()]
    assert not torch.allclose(firsts[0], firsts[1], atol=1e-2)


@pytest.mark.parametrize("options", [{"seed": 7}, {"eta": 0.0}, {"frame_stride": 6}, {"guidance_scale": 1.0}])
def test_generated_latents_depend_on_each_option(encoded, tmp_path, options):
    plain, _ = generate_latents(encoded[:1], tmp_path / "plain")
    other, _ = generate_latents(encoded[:1], tmp_path / "other", **options)
    assert not torch.allclose(plain["0.safetensors"]["latents"], other["0.safetensors"]["latents"], atol=1e-3)


def test_clips_of_different_options_are_not_batched(encoded, tmp_path):
    rows = [
        {"encoded": str(path), "output": str(tmp_path / path.name), "num_inference_steps": 1 + number % 2}
        for number, path in enumerate(encoded)
    ]
    run("generate", rows, tmp_path, dtype="float32", batch_size=4)
    single, _ = generate_latents(encoded[1:2], tmp_path / "one")
    result = load_file(tmp_path / "1.safetensors")["latents"]
    assert (result - single["1.safetensors"]["latents"]).abs().max() <= 1e-4 * result.abs().max()


@pytest.fixture(scope="module")
def overflowing(repositories, tmp_path_factory):
    """The 256 model with a convolution whose output is too large for float16."""
    folder = tmp_path_factory.mktemp("loud") / "256"
    shutil.copytree(repositories["256"], folder)
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["input_blocks.1.0.in_layers.2.weight"] *= 3e5
    save_file(weights, path)
    return folder


def test_predictions_that_overflow_are_repeated_in_float32_and_recorded(encoded, overflowing, tmp_path):
    half, events = generate_latents(encoded[:2], tmp_path / "half", dtype="float16", batch_size=2, model=str(overflowing))
    full, _ = generate_latents(encoded[:2], tmp_path / "full", model=str(overflowing))
    assert {event["item"] for event in events if event["event"] == "redone_in_float32"} == set(half)
    for name, result in half.items():
        recorded = artifacts.read(tmp_path / "half" / name, ("latents",)).fields["redone"]
        calls = [(step, call) for step in (1, 2) for call in ("prompt", "negative_prompt")]
        assert [(record["step"], record["call"]) for record in recorded] == calls
        assert recorded[0]["timestep"] == 501
        expected = full[name]["latents"]
        assert (result["latents"] - expected).abs().max() <= 0.02 * expected.abs().max()
        assert artifacts.read(tmp_path / "full" / name, ("latents",)).fields["redone"] == []


def test_half_precision_without_overflow_is_kept(encoded, tmp_path):
    full, _ = generate_latents(encoded[:1], tmp_path / "full")
    for dtype, tolerance in (("float16", 0.02), ("bfloat16", 0.1)):
        half, events = generate_latents(encoded[:1], tmp_path / dtype, dtype=dtype)
        assert not [event for event in events if event["event"] == "redone_in_float32"]
        result, expected = half["0.safetensors"]["latents"], full["0.safetensors"]["latents"]
        assert 0 < (result - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("batch_size, dtype", [(1, "float32"), (4, "bfloat16")])
def test_a_prediction_that_stays_nan_fails_its_item_alone(encoded, tmp_path, batch_size, dtype):
    bad = tmp_path / "1.safetensors"
    header = artifacts.read(encoded[1], ("encoded",))
    tensors = header.tensors()
    tensors["negative_prompt_embeds"][0, 3] = 3e38  # the first product is infinite
    artifacts.write_tensors(bad, "encoded", header.fields, tensors)
    encoded_paths = [encoded[0], bad, encoded[2]]
    rows = [{"encoded": str(path), "output": str(tmp_path / f"made-{path.name}")} for path in encoded_paths]
    options = {"num_inference_steps": 2, "dtype": dtype, "batch_size": batch_size}
    events = run("generate", rows, tmp_path, "--mark-failed", **options)
    statuses = [event["status"] for event in events if event["event"] == "item"]
    assert statuses == ["made", "failed", "made"]
    reason = artifacts.read(tmp_path / "made-1.safetensors", ("latents",)).failure.reason
    message = "prediction with the negative_prompt became NaN or infinite in float32, at step 1 of 2 (timestep 501)"
    assert message in reason
    alone, _ = generate_latents([encoded[0], encoded[2]], tmp_path / "alone", dtype=dtype)
    for name, result in alone.items():
        assert torch.equal(load_file(tmp_path / f"made-{name}")["latents"], result["latents"])


def test_decode_writes_no_frame_that_is_not_finite(encoded, repositories, tmp_path):
    generate_latents(encoded[:1], tmp_path / "made")
    header = artifacts.read(tmp_path / "made/0.safetensors", ("latents",))
    latents = header.tensors()["latents"]
    latents[:, :, 5, 2, 2] = 3e38
    artifacts.write_tensors(tmp_path / "bad.safetensors", "latents", header.fields, {"latents": latents})
    stderr = stage("decode", tmp_path / "bad.safetensors", "-o", tmp_path / "clip.json", fails=1)
    assert "frame 5 of the clip became NaN or infinite" in stderr and not (tmp_path / "clip.mp4").exists()


def test_decode_agrees_with_the_vae_of_diffusers(encoded, repositories, tmp_path):
    from diffusers import AutoencoderKL

    result, _ = generate_latents(encoded[:1], tmp_path)
    stage("decode", tmp_path / "0.safetensors", "--save-frames", "-o", tmp_path / "clip.json")
    vae = AutoencoderKL.from_pretrained(repositories["256"] / "vae")
    with torch.no_grad():
        frames = vae.decode(result["0.safetensors"]["latents"][0].transpose(0, 1) / 0.18215).sample
    expected = ((frames.clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 1).numpy()
    written = np.stack([np.array(Image.open(tmp_path / f"clip/{number:06d}.png")) for number in range(16)])
    assert np.abs(written - expected).max() <= 0.51
    fields = artifacts.read(tmp_path / "clip.json", ("clip",)).fields
    assert (fields["num_frames"], fields["fps"]) == (16, "8/1")


def test_memory_of_each_stage_is_known_before_loading(repositories):
    model = Model("tiny", "dynamicrafter", "256", path=str(repositories["256"]))
    sizes = {name: sum(w.numel() for w in network.parameters()) for name, network in tiny.models("256").items()}
    unet = sizes.pop("unet")
    resident = {
        stage: bytes_in_memory(model, implementation, {"dtype": "bfloat16"})
        for stage, implementation in FAMILY.stages.items()
    }
    text = sizes.pop("text_encoder")
    encode = 4 * max(text, sum(sizes.values()))
    assert resident == {"encode": encode, "generate": 2 * unet, "decode": 4 * sizes["vae"]}


def test_encode_refuses_a_model_of_another_variant_than_declared(repositories, images, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(
        f'models: {{wrong: {{family: dynamicrafter, variant: "512", path: {repositories["256"]}}}}}\n', encoding="utf-8"
    )
    arguments = (images[0], "--prompt", "p", "--model", "wrong", "--config", config, *SMALL)
    stderr = stage("encode", *arguments, "-o", tmp_path / "e.safetensors", fails=1)
    assert "is declared as variant 512 of family dynamicrafter and" in stderr and "holds 256" in stderr
