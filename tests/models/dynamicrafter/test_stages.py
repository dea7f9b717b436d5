"""The three stages on tiny random weights: what each writes, batches, and numbers that go bad."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from stages.models.dynamicrafter.options import FAMILY
from stages.runtime import artifacts
from stages.runtime.model import Model
from stages.runtime.weights import resident_bytes
from tests import zoo
from tests.commands import stage
from tests.tiny import dynamicrafter as tiny

SMALL = ("--size", "64*64")
FAST = ("--num-inference-steps", 2, "--dtype", "float32")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Five pictures of different sizes, none like another."""
    folder, paths = tmp_path_factory.mktemp("pictures"), []
    for number, size in enumerate([(64, 64), (120, 80), (80, 120), (65, 64), (200, 200)]):
        colours = np.random.default_rng(number).integers(0, 255, (4, 4, 3), np.uint8)
        paths.append(folder / f"{number}.png")
        Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC).save(paths[-1])
    return paths


@pytest.fixture(scope="module")
def encoded(repositories, pictures, tmp_path_factory):
    """What encode writes of each picture for the 256 model."""
    folder = tmp_path_factory.mktemp("encoded")
    rows = [
        {"image": str(path), "prompt": f"picture {path.stem}", "output": str(folder / f"{path.stem}.safetensors")}
        for path in pictures
    ]
    run("encode", rows, folder, model=str(repositories["256"]), size="64*64", negative_prompt="blurry")
    return [folder / f"{path.stem}.safetensors" for path in pictures]


def run(name, rows, folder, *arguments, **options):
    """Run rows as a manifest and return the log's events."""
    manifest = folder / f"{name}.jsonl"
    manifest.write_text("".join(json.dumps({**row, **options}) + "\n" for row in rows))
    said = stage(name, "--manifest", manifest, *arguments)
    return [json.loads(line) for line in said.splitlines() if line.startswith("{")]


def generated(encoded, folder, **options):
    """The latents of encoded files by name, and the log's events."""
    folder.mkdir(exist_ok=True)
    rows = [{"encoded": str(path), "output": str(folder / path.name)} for path in encoded]
    told = {"num_inference_steps": 2, "dtype": "float32", **options}
    events = run("generate", rows, folder, **told)
    return {path.name: load_file(folder / path.name) for path in encoded}, events


def test_encode_writes_what_the_unet_is_told(encoded, repositories):
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


def test_latents_are_the_scaled_mode_of_the_vae(encoded, repositories, pictures):
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(repositories["256"] / "vae")
    pixels = torch.from_numpy(np.array(Image.open(pictures[0]))).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        expected = vae.encode(pixels).latent_dist.mean * 0.18215
    assert torch.allclose(load_file(encoded[0])["image_latents"][:, :, 0], expected, atol=1e-6)


def test_the_interpolating_model_knows_both_ends(repositories, pictures, tmp_path):
    ends = "--last-image", pictures[4]
    for name, options in (("two", ends), ("round", ("--loop",))):
        arguments = ("--prompt", "p", "--model", repositories["512_interp"], *SMALL, *options)
        stage("encode", pictures[0], *arguments, "-o", tmp_path / f"{name}.safetensors")
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
        ("256", ("--size", "100*64"), "both sides must be multiples of 64"),
        ("512", ("--loop",), "it takes one of variant 512_interp"),
        ("512_interp", (), "neither last_image nor loop are set"),
    ],
)
def test_what_cannot_be_encoded_is_said(repositories, pictures, tmp_path, variant, arguments, message):
    given = (pictures[0], "--prompt", "p", "--model", repositories[variant], *SMALL, *arguments)
    fails = 1 if variant == "256" else 2
    assert message in stage("encode", *given, "-o", tmp_path / "e.safetensors", fails=fails)


def test_other_lengths_are_made_with_a_warning(repositories, pictures, tmp_path):
    given = (pictures[0], "--prompt", "p", "--model", repositories["512"], *SMALL, "--video-length", 5)
    assert "trained on 16 and moves badly" in stage("encode", *given, "-o", tmp_path / "e.safetensors")
    stage("generate", tmp_path / "e.safetensors", *FAST, "-o", tmp_path / "l.safetensors")
    assert load_file(tmp_path / "l.safetensors")["latents"].shape == (1, 4, 5, 8, 8)


def test_a_seed_is_the_same_clip_in_any_order_shard_and_batch(encoded, tmp_path):
    whole, _ = generated(encoded, tmp_path / "whole")
    backwards, _ = generated(encoded[2::-1], tmp_path / "backwards")
    alone, _ = generated(encoded[2:3], tmp_path / "alone")
    batches, _ = generated(encoded, tmp_path / "batches", batch_size=4)
    assert all(torch.equal(whole[name]["latents"], made["latents"]) for name, made in {**backwards, **alone}.items())
    for name, made in batches.items():
        one = whole[name]["latents"]
        assert (made["latents"] - one).abs().max() <= 1e-4 * one.abs().max()
    firsts = [made["latents"] for made in whole.values()]
    assert not torch.allclose(firsts[0], firsts[1], atol=1e-2)


@pytest.mark.parametrize("options", [{"seed": 7}, {"eta": 0.0}, {"frame_stride": 6}, {"guidance_scale": 1.0}])
def test_the_options_count(encoded, tmp_path, options):
    plain, _ = generated(encoded[:1], tmp_path / "plain")
    other, _ = generated(encoded[:1], tmp_path / "other", **options)
    assert not torch.allclose(plain["0.safetensors"]["latents"], other["0.safetensors"]["latents"], atol=1e-3)


def test_clips_of_other_options_are_not_made_together(encoded, tmp_path):
    rows = [
        {"encoded": str(path), "output": str(tmp_path / path.name), "num_inference_steps": 1 + number % 2}
        for number, path in enumerate(encoded)
    ]
    run("generate", rows, tmp_path, dtype="float32", batch_size=4)
    one, _ = generated(encoded[1:2], tmp_path / "one")
    made = load_file(tmp_path / "1.safetensors")["latents"]
    assert (made - one["1.safetensors"]["latents"]).abs().max() <= 1e-4 * made.abs().max()


@pytest.fixture(scope="module")
def loud(repositories, tmp_path_factory):
    """The 256 model, with a convolution whose output is too large for float16."""
    folder = tmp_path_factory.mktemp("loud") / "256"
    shutil.copytree(repositories["256"], folder)
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["input_blocks.1.0.in_layers.2.weight"] *= 3e5
    save_file(weights, path)
    return folder


def test_what_overflows_is_made_again_in_float32_and_recorded(encoded, loud, tmp_path):
    half, events = generated(encoded[:2], tmp_path / "half", dtype="float16", batch_size=2, model=str(loud))
    full, _ = generated(encoded[:2], tmp_path / "full", model=str(loud))
    assert {event["item"] for event in events if event["event"] == "redone_in_float32"} == set(half)
    for name, made in half.items():
        redone = artifacts.read(tmp_path / "half" / name, ("latents",)).fields["redone"]
        calls = [(step, call) for step in (1, 2) for call in ("prompt", "negative_prompt")]
        assert [(one["step"], one["call"]) for one in redone] == calls
        assert redone[0]["timestep"] == 501
        expected = full[name]["latents"]
        assert (made["latents"] - expected).abs().max() <= 0.02 * expected.abs().max()
        assert artifacts.read(tmp_path / "full" / name, ("latents",)).fields["redone"] == []


def test_half_precision_that_holds_is_left_alone(encoded, tmp_path):
    full, _ = generated(encoded[:1], tmp_path / "full")
    for dtype, tolerance in (("float16", 0.02), ("bfloat16", 0.1)):
        half, events = generated(encoded[:1], tmp_path / dtype, dtype=dtype)
        assert not [event for event in events if event["event"] == "redone_in_float32"]
        made, expected = half["0.safetensors"]["latents"], full["0.safetensors"]["latents"]
        assert 0 < (made - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("batch_size, dtype", [(1, "float32"), (4, "bfloat16")])
def test_what_stays_nan_fails_alone_and_is_named(encoded, tmp_path, batch_size, dtype):
    bad = tmp_path / "1.safetensors"
    header = artifacts.read(encoded[1], ("encoded",))
    tensors = header.tensors()
    tensors["negative_prompt_embeds"][0, 3] = 3e38  # the first product is infinite
    artifacts.write_tensors(bad, "encoded", header.fields, tensors)
    given = [encoded[0], bad, encoded[2]]
    rows = [{"encoded": str(path), "output": str(tmp_path / f"made-{path.name}")} for path in given]
    told = {"num_inference_steps": 2, "dtype": dtype, "batch_size": batch_size}
    events = run("generate", rows, tmp_path, "--mark-failed", **told)
    statuses = [event["status"] for event in events if event["event"] == "item"]
    assert statuses == ["made", "failed", "made"]
    reason = artifacts.read(tmp_path / "made-1.safetensors", ("latents",)).failure.reason
    named = "prediction with the negative_prompt became NaN or infinite in float32, at step 1 of 2 (timestep 501)"
    assert named in reason
    alone, _ = generated([encoded[0], encoded[2]], tmp_path / "alone", dtype=dtype)
    for name, made in alone.items():
        assert torch.equal(load_file(tmp_path / f"made-{name}")["latents"], made["latents"])


def test_a_frame_that_is_not_finite_is_not_written(encoded, repositories, tmp_path):
    generated(encoded[:1], tmp_path / "made")
    header = artifacts.read(tmp_path / "made/0.safetensors", ("latents",))
    latents = header.tensors()["latents"]
    latents[:, :, 5, 2, 2] = 3e38
    artifacts.write_tensors(tmp_path / "bad.safetensors", "latents", header.fields, {"latents": latents})
    said = stage("decode", tmp_path / "bad.safetensors", "-o", tmp_path / "clip.json", fails=1)
    assert "frame 5 of the clip became NaN or infinite" in said and not (tmp_path / "clip.mp4").exists()


def test_decode_shows_what_the_vae_shows(encoded, repositories, tmp_path):
    from diffusers import AutoencoderKL

    made, _ = generated(encoded[:1], tmp_path)
    stage("decode", tmp_path / "0.safetensors", "--save-frames", "-o", tmp_path / "clip.json")
    vae = AutoencoderKL.from_pretrained(repositories["256"] / "vae")
    with torch.no_grad():
        frames = vae.decode(made["0.safetensors"]["latents"][0].transpose(0, 1) / 0.18215).sample
    expected = ((frames.clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 1).numpy()
    written = np.stack([np.array(Image.open(tmp_path / f"clip/{number:06d}.png")) for number in range(16)])
    assert np.abs(written - expected).max() <= 0.51
    fields = artifacts.read(tmp_path / "clip.json", ("clip",)).fields
    assert (fields["num_frames"], fields["fps"]) == (16, "8/1")


def test_the_memory_of_each_stage_is_known_before_it_loads(repositories):
    model = Model("tiny", "dynamicrafter", "256", path=str(repositories["256"]))
    sizes = {name: sum(w.numel() for w in network.parameters()) for name, network in tiny.models("256").items()}
    unet = sizes.pop("unet")
    resident = {stage: resident_bytes(model, FAMILY.resident[stage], "bfloat16") for stage in FAMILY.resident}
    assert resident == {"encode": 4 * sum(sizes.values()), "generate": 2 * unet, "decode": 4 * sizes["vae"]}


def test_a_model_of_another_variant_than_declared(repositories, pictures, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(
        f'models: {{wrong: {{family: dynamicrafter, variant: "512", path: {repositories["256"]}}}}}\n', encoding="utf-8"
    )
    given = (pictures[0], "--prompt", "p", "--model", "wrong", "--config", config, *SMALL)
    said = stage("encode", *given, "-o", tmp_path / "e.safetensors", fails=1)
    assert "is declared as variant 512 of family dynamicrafter and" in said and "holds 256" in said
