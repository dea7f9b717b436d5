"""The conditions of clips that go on from latents, against a direct computation from the formulas."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from PIL import Image
from safetensors.torch import load_file, save_file

from stages.media.read import frames
from stages.runtime import artifacts
from tests import zoo
from tests.commands import events, stage
from tests.families.wan.conftest import NEGATIVE, PROMPT

SIZE, FRAMES = (96, 64), 17


def latents_by_diffusers(model, images):
    """Normalised latents [1, C, T, h, w] of images, uint8 [N, H, W, 3], that begin a clip."""
    vae = AutoencoderKLWan.from_pretrained(model, subfolder="vae")
    video = torch.from_numpy(np.stack(images)).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    mean, std = (torch.tensor(vae.config[name]).view(1, -1, 1, 1, 1) for name in ("latents_mean", "latents_std"))
    with torch.no_grad():
        return (vae.encode(video).latent_dist.mode() - mean) / std


def encode(model, source, output, *arguments, fails=0):
    texts = ("--prompt", PROMPT, "--negative-prompt", NEGATIVE, "--max-sequence-length", 64)
    given = ("--model", model, "--num-frames", FRAMES, "--size", "96*64", "--dtype", "float32")
    return stage("encode", source, "-o", output, *texts, *given, *arguments, fails=fails)


@pytest.fixture(scope="module")
def clips(tmp_path_factory, tiny_wan):
    """By variant, a clip with its latents, the frames of the clip, and the images of a source."""
    found = {}
    for variant in ("5b", "14b"):
        folder = tmp_path_factory.mktemp(variant)
        zoo.plain(folder, "source.mp4", frames=12, size=SIZE)
        stage("extract_frames", folder / "source.mp4", "--select", "tail", "--count", 9, "-o", folder / "frames.json")
        encode(tiny_wan[variant], folder / "frames.json", folder / "e.safetensors")
        stage("generate", folder / "e.safetensors", "-o", folder / "l.safetensors", "--steps", 2, "--dtype", "float32")
        stage("decode", folder / "l.safetensors", "-o", folder / "clip.json", "--lossless")
        images = [np.asarray(Image.open(path)) for path in sorted((folder / "frames").glob("*.png"))]
        shown = [frame.rgb for frame in frames(folder / "clip.mkv")]
        found[variant] = folder, images, shown, load_file(folder / "l.safetensors")["latents"]
    return found


@pytest.mark.parametrize("known", [2, 3])
def test_the_5b_knows_the_last_frames_of_a_source(clips, tiny_wan, tmp_path, known):
    folder, images, _, _ = clips["5b"]
    encode(tiny_wan["5b"], folder / "frames.json", tmp_path / "e.safetensors", "--known-latents", known)
    tensors = load_file(tmp_path / "e.safetensors")
    true = latents_by_diffusers(tiny_wan["5b"], images[-(4 * known - 3) :])
    assert tensors["image_latents"].shape[2] == known
    assert torch.allclose(tensors["image_latents"], true, atol=1e-5)
    assert [*tensors["mask"][0, 0, :, 0, 0]] == [1] * known + [0] * (5 - known)


def test_the_5b_goes_on_from_its_own_latents(clips, tiny_wan, tmp_path):
    folder, _, shown, latents = clips["5b"]
    arguments = ("--known-latents", 3, "--past", folder / "l.safetensors")
    encode(tiny_wan["5b"], folder / "clip.json", tmp_path / "e.safetensors", *arguments)
    known = load_file(tmp_path / "e.safetensors")["image_latents"]
    assert torch.allclose(known[:, :, :1], latents_by_diffusers(tiny_wan["5b"], shown[-9:-8]), atol=1e-5)
    assert torch.equal(known[:, :, 1:], latents[:, :, -2:])
    stage("generate", tmp_path / "e.safetensors", "-o", tmp_path / "l.safetensors", "--steps", 2, "--dtype", "float32")
    assert torch.equal(load_file(tmp_path / "l.safetensors")["latents"][:, :, :3], known)
    stage("decode", tmp_path / "l.safetensors", "-o", tmp_path / "clip.json", "--lossless")
    stage("concat", folder / "clip.json", tmp_path / "clip.json", "-o", tmp_path / "film.mp4")
    assert len(list(frames(tmp_path / "film.mp4"))) == FRAMES + FRAMES - 9


def test_of_several_takes_the_5b_goes_on_from_the_latents_of_the_picked_one(clips, tiny_wan, tmp_path):
    folder, _, _, latents = clips["5b"]
    stage("generate", folder / "e.safetensors", "-o", tmp_path / "l2.safetensors", "--seed", 9, "--dtype", "float32")
    stage("decode", tmp_path / "l2.safetensors", "-o", tmp_path / "take2.json", "--lossless")
    takes, picked, past = (
        (folder / "clip.json", tmp_path / "take2.json"),
        tmp_path / "picked.json",
        tmp_path / "p.safetensors",
    )
    of_each = ("--latents", folder / "l.safetensors", "--latents", tmp_path / "l2.safetensors")
    known = []
    for take in (1, 2):
        stage("pick", *takes, "-o", picked, "--take", take)
        stage("pick", *takes, *of_each, "-o", past, "--take", take)
        encode(tiny_wan["5b"], picked, tmp_path / "e.safetensors", "--known-latents", 3, "--past", past)
        known.append(load_file(tmp_path / "e.safetensors")["image_latents"][:, :, 1:])
    other = load_file(tmp_path / "l2.safetensors")["latents"]
    assert torch.equal(known[0], latents[:, :, -2:]) and torch.equal(known[1], other[:, :, -2:])
    second = artifacts.read(tmp_path / "l2.safetensors", ("latents",))
    assert artifacts.read(past, ("latents",)).digest == second.digest  # so that what follows is the same as without takes
    for wrong, output, sentence in (
        (of_each[:2], past, "there are 2 takes and 1 latents: give the latents of each take, in the same order"),
        (of_each, picked, f"output {picked} is to hold latents: give it the ending .safetensors"),
        ((), past, f"output {past} is to hold clip: give it the ending .json"),
    ):
        assert sentence in stage("pick", *takes, *wrong, "-o", output, "--take", 2, fails=1)


def test_a_source_that_is_too_short_gives_what_it_has_with_a_warning(clips, tiny_wan, tmp_path):
    folder, images, _, _ = clips["5b"]
    stage("extract_frames", folder / "source.mp4", "--select", "tail", "--count", 7, "-o", tmp_path / "frames.json")
    stderr = encode(tiny_wan["5b"], tmp_path / "frames.json", tmp_path / "e.safetensors", "--known-latents", 3)
    (warning,) = [event for event in events(stderr) if event["event"] == "warning"]
    assert warning["reason"] == "what it continues has 7 frames, so that 2 latent frames are known"
    assert torch.allclose(
        load_file(tmp_path / "e.safetensors")["image_latents"], latents_by_diffusers(tiny_wan["5b"], images[-5:]), atol=1e-5
    )


@pytest.mark.parametrize("with_past", [False, True])
def test_the_condition_of_svi_2_pro(clips, tiny_wan, tmp_path, with_past):
    """[anchor, last latent, zeros], of which only the anchor is marked as given, as the authors give it."""
    folder, images, _, latents = clips["14b"]
    past = ("--past", folder / "l.safetensors") if with_past else ()
    encode(tiny_wan["14b"], folder / "frames.json", tmp_path / "e.safetensors", "--padding", "zeros", *past)
    tensors = load_file(tmp_path / "e.safetensors")
    true = torch.zeros_like(tensors["image_latents"])
    true[:, :, :1] = latents_by_diffusers(tiny_wan["14b"], images[-1:])
    if with_past:
        true[:, :, 1] = latents[:, :, -1]
    assert torch.allclose(tensors["image_latents"], true, atol=1e-5) and true.shape[2] == 5
    assert tensors["mask"].shape[1] == 4 and tensors["mask"][:, :, 0].all() and not tensors["mask"][:, :, 1:].any()


def test_a_clip_for_svi_2_pro_needs_its_loras_and_repeats_five_frames(clips, tiny_wan, tmp_path):
    folder, *_ = clips["14b"]
    arguments = ("--padding", "zeros", "--past", folder / "l.safetensors")
    encode(tiny_wan["14b"], folder / "frames.json", tmp_path / "e.safetensors", *arguments)
    command = ("generate", tmp_path / "e.safetensors", "-o", tmp_path / "l.safetensors", "--steps", 2, "--dtype", "float32")
    assert "is made for the LoRAs of SVI 2 Pro: give them by --lora and --lora-2" in stage(*command, fails=1)
    name, rank = "transformer.blocks.0.attn1.to_q", 2
    weight = load_file(tiny_wan["14b"] / "transformer" / "diffusion_pytorch_model.safetensors")["blocks.0.attn1.to_q.weight"]
    pair = {
        f"{name}.lora_A.weight": torch.zeros(rank, weight.shape[1]),
        f"{name}.lora_B.weight": torch.zeros(weight.shape[0], rank),
    }
    save_file(pair, tmp_path / "lora.safetensors")
    stage(*command, "--lora", tmp_path / "lora.safetensors", "--lora-2", tmp_path / "lora.safetensors")
    stage("decode", tmp_path / "l.safetensors", "-o", tmp_path / "clip.json", "--lossless")
    stage("concat", folder / "clip.json", tmp_path / "clip.json", "-o", tmp_path / "film.mp4")
    assert len(list(frames(tmp_path / "film.mp4"))) == FRAMES + FRAMES - 5


def test_a_past_is_refused_where_a_model_starts_from_frames_alone(clips, tiny_wan, tmp_path):
    folder, *_ = clips["5b"]
    stderr = encode(
        tiny_wan["14b"], folder / "clip.json", tmp_path / "e.safetensors", "--past", folder / "l.safetensors", fails=1
    )
    assert "was made for wan 5b and model" in stderr
