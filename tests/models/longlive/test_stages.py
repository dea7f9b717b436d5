"""The stages of LongLive by hand, with the shipped model: lengths, prompts, seeds, resuming, streaming."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import load_file, save_file

from stages.media.read import frames
from stages.models.longlive import generate
from stages.models.longlive.options import lengths
from stages.models.longlive.progress import Progress
from stages.models.shared.wan.vae import denormalised
from stages.runtime import artifacts
from stages.runtime.artifacts import KINDS
from stages.runtime.errors import ItemError
from tests.commands import stage, wait_for

ROOT = Path(__file__).parents[3]
MODEL = ROOT / "models/shapes-longlive"
VIDEO = ROOT / "examples/shapes/videos/0000.mp4"
ONE, OTHER = (
    "an orange ring moving up quickly on a gray background",
    "an orange ring moving left quickly on a gray background",
)
SHORT = ("--size", "64*64", "--num-output-frames", 9, "--max-sequence-length", 24)
FULL = ("--dtype", "float32")


def encode(output, *arguments, fails=0):
    return stage("encode", *arguments, "-o", output, "-m", MODEL, *SHORT, *FULL, fails=fails)


@pytest.fixture(scope="module")
def looked_at(tmp_path_factory):
    """The first 17 frames of a clip."""
    path = tmp_path_factory.mktemp("frames") / "frames.json"
    stage("extract_frames", VIDEO, "--select", "first", "--count", 17, "--size", "64*64", "-o", path)
    return path


@pytest.fixture(scope="module")
def encoded(looked_at, tmp_path_factory):
    path = tmp_path_factory.mktemp("encoded") / "encoded.safetensors"
    encode(path, looked_at, "--prompt1", ONE, "--prompt", OTHER)
    return path


@pytest.fixture(scope="module")
def latents(encoded, tmp_path_factory):
    path = tmp_path_factory.mktemp("latents") / "latents.safetensors"
    stage("generate", encoded, "-o", path, "-m", MODEL, "--seed", 5, *FULL)
    return path


def test_whole_blocks_of_a_source_are_used():
    """By the rule of `facts`: 40 pixel frames are 10 latent frames, of which 9 make blocks of 3, and 33 frames those."""
    assert lengths(40, 3) == (33, 9)
    assert [lengths(frames, 3).given for frames in (0, 8, 9, 20, 21, 33, 36, 37)] == [0, 0, 3, 3, 6, 9, 9, 9]
    assert lengths(157, 1) == (157, 40)


def test_the_encoded_file_tells_lengths_and_switches(encoded):
    fields = artifacts.read(encoded, KINDS).fields
    assert fields["prompts"] == [ONE, OTHER]
    assert (fields["source_frames"], fields["switches"], fields["latent_frames"], fields["num_frames"]) == (9, [3], 9, 33)
    tensors = load_file(encoded)
    assert tensors["prompt_embeds"].shape[:2] == (2, 24) and tensors["image_latents"].shape == (1, 16, 3, 8, 8)


def test_condition_latents_are_those_of_the_vae(encoded):
    vae = AutoencoderKLWan.from_pretrained(MODEL, subfolder="vae")
    video = np.stack([frame.rgb for frame in frames(VIDEO)])[:9].reshape(9, 64, 2, 64, 2, 3).mean((2, 4))
    with torch.no_grad():
        made = vae.encode(torch.from_numpy(video / 127.5 - 1).float().permute(3, 0, 1, 2)[None]).latent_dist.mode()
    ours = denormalised(vae, load_file(encoded)["image_latents"])
    assert (ours - made).abs().max() < 0.05 * made.std()  # but for how the picture was made smaller


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--prompt1", ONE, "--prompt", OTHER, "--num-conditioning-frames", 8), "has 8 frames to look at: 9 are enough"),
        (("--prompt", OTHER), "has no prompt for its source: add --prompt1"),
        (("--prompt1", ONE), "has no prompt for what is to be made: add --prompt"),
        (("--prompt1", ONE, "--prompt", OTHER, "--num-output-frames", 10), "a block has 3: take 9 or 12"),
        (("--prompt1", ONE, "--prompt", OTHER, "--num-output-frames", 3), "fills 3 latent frames and the film has 3"),
        (("--prompt1", ONE, "--prompt", OTHER, "--next-prompts", ONE), "has 0 switch_frame_indices for 3 prompts"),
    ],
)
def test_what_cannot_be_made_is_refused_before_weights_load(looked_at, tmp_path, arguments, said, monkeypatch):
    monkeypatch.setattr("stages.models.longlive.encode.Encode.load", lambda *_: pytest.fail("weights were loaded"))
    command = (looked_at, "-o", tmp_path / "e.safetensors", "-m", MODEL, *SHORT, *arguments)
    fails = 2 if "take 9 or 12" in said else 1
    assert said in stage("encode", *command, fails=fails)
    assert not list(tmp_path.iterdir())


def test_the_film_begins_with_the_source(encoded, latents):
    made, given = load_file(latents)["latents"], load_file(encoded)["image_latents"]
    assert made.shape == (1, 16, 9, 8, 8) and torch.equal(made[:, :, :3], given)


def test_a_longer_film_begins_as_a_shorter_one(looked_at, latents, tmp_path):
    stage(
        *("encode", looked_at, "--prompt1", ONE, "--prompt", OTHER, "-o", tmp_path / "e.safetensors", "-m", MODEL, *FULL),
        *("--size", "64*64", "--num-output-frames", 12, "--max-sequence-length", 24),
    )
    stage("generate", tmp_path / "e.safetensors", "-o", tmp_path / "l.safetensors", "-m", MODEL, "--seed", 5, *FULL)
    longer = load_file(tmp_path / "l.safetensors")["latents"]
    assert longer.shape[2] == 12 and torch.equal(longer[:, :, :9], load_file(latents)["latents"])


def test_another_seed_is_another_film(encoded, latents, tmp_path):
    stage("generate", encoded, "-o", tmp_path / "l.safetensors", "-m", MODEL, "--seed", 6, *FULL)
    assert not torch.equal(load_file(tmp_path / "l.safetensors")["latents"], load_file(latents)["latents"])


@pytest.mark.parametrize("recache", [False, True])
def test_an_interrupted_film_goes_on_at_a_block_and_ends_in_the_same_bits(looked_at, tmp_path, monkeypatch, recache):
    """Text with a switch within what is made again after the interruption."""
    prompts = ("--prompt", ONE, "--next-prompts", OTHER, "--switch-frame-indices", 4)
    encode(tmp_path / "e.safetensors", *prompts)
    flags = ("-m", MODEL, "--seed", 5, "--checkpoint-every", 1, *(["--recache-on-switch"] if recache else []), *FULL)
    command = (tmp_path / "e.safetensors", *flags, "--store", tmp_path / "store")
    made, whole = [], generate.denoise

    def dies_in_the_third_block(*arguments):
        made.append(len(made))
        if len(made) == 3:
            raise KeyboardInterrupt
        return whole(*arguments)

    monkeypatch.setattr(generate, "denoise", dies_in_the_third_block)
    stage("generate", *command, "-o", tmp_path / "l.safetensors", fails=1)
    assert not (tmp_path / "l.safetensors").exists()
    stage("generate", *command, "-o", tmp_path / "l.safetensors")
    assert len(made) == 4  # two, the one that was lost, and that one again
    monkeypatch.undo()
    stage("generate", tmp_path / "e.safetensors", *flags, "-o", tmp_path / "once.safetensors")
    ours, once = (load_file(tmp_path / name)["latents"] for name in ("l.safetensors", "once.safetensors"))
    assert torch.equal(ours, once)


def test_an_interrupted_film_does_not_go_on_from_the_blocks_of_another(tmp_path, monkeypatch):
    encode(tmp_path / "e.safetensors", "--prompt", ONE)
    left, denoised, whole = {}, [], generate.denoise

    def dies_in_the_third_block(*arguments):
        denoised.append(len(denoised))
        if len(denoised) == 3:
            raise KeyboardInterrupt
        return whole(*arguments)

    def command(seed):
        flags = ("-m", MODEL, "--seed", seed, "--checkpoint-every", 1, *FULL)
        return tmp_path / "e.safetensors", *flags, "--store", tmp_path / "store", "-o", tmp_path / f"{seed}.safetensors"

    for seed in (5, 6):
        denoised.clear()
        with monkeypatch.context() as patch:
            patch.setattr(generate, "denoise", dies_in_the_third_block)
            stage("generate", *command(seed), fails=1)
        (left[seed],) = {*(tmp_path / "store" / "partial").iterdir()} - {*left.values()}
    left[5].write_bytes(left[6].read_bytes())
    stage("generate", *command(5))
    stage("generate", tmp_path / "e.safetensors", "-m", MODEL, "--seed", 5, *FULL, "-o", tmp_path / "once.safetensors")
    ours, once = (load_file(tmp_path / name)["latents"] for name in ("5.safetensors", "once.safetensors"))
    assert torch.equal(ours, once)


def test_a_switch_that_goes_over_the_window_again_is_another_film(tmp_path):
    encode(tmp_path / "e.safetensors", "--prompt", ONE, "--next-prompts", OTHER, "--switch-frame-indices", 6)
    films = []
    for flag in ("--recache-on-switch", "--no-recache-on-switch"):
        output = tmp_path / f"{flag}.safetensors"
        stage("generate", tmp_path / "e.safetensors", flag, "-o", output, "-m", MODEL, "--seed", 5, *FULL)
        films.append(load_file(output)["latents"])
    same = [torch.equal(*(film[:, :, frame] for film in films)) for frame in range(9)]
    assert same == [True] * 6 + [False] * 3


def test_decode_writes_the_film_or_what_is_new_of_it(latents, tmp_path):
    command = ("decode", latents, "-m", MODEL, "--lossless")
    stage(*command, "-o", tmp_path / "all.json")
    stage(*command, "--new-only", "-o", tmp_path / "new.json")
    whole, new = (np.stack([f.rgb for f in frames(tmp_path / f"{name}.mkv")]) for name in ("all", "new"))
    assert whole.shape == (33, 64, 64, 3) and (whole[9:] == new).all()
    vae = AutoencoderKLWan.from_pretrained(MODEL, subfolder="vae")
    with torch.no_grad():
        at_once = vae.decode(denormalised(vae, load_file(latents)["latents"]), return_dict=False)[0][0]
    at_once = ((at_once / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(1, 2, 3, 0).numpy()
    assert (whole == at_once).all()


def watched(film):
    """Frames of a video that is still being written."""
    try:
        return [frame.rgb for frame in frames(film)]
    except ItemError:
        return []  # nothing is in it yet


def test_a_film_is_shown_while_it_is_made(latents, tmp_path):
    """As generate keeps it: without its last block first, then whole. The encoder holds the last of 21 frames back."""
    made, film = tmp_path / "l.safetensors", tmp_path / "film.mp4"
    command = [
        sys.executable,
        "-m",
        "stages.decode",
        made,
        "-m",
        MODEL,
        "--follow",
        "-o",
        film,
        "--device",
        "cpu",
        "--crf",
        "0",
    ]
    decoding = subprocess.Popen([*map(str, command)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        work = SimpleNamespace(partial=tmp_path / "store.safetensors", item=SimpleNamespace(output=str(made)))
        whole = artifacts.read(latents, ("latents",))
        Progress(work, whole.fields).keep(whole.tensors()["latents"][:, :, :6])
        wait_for(lambda: len(watched(film)) >= 20 or decoding.poll() is not None, "no frames are shown", 600)
        assert decoding.poll() is None, decoding.stderr.read()
        Progress(work, whole.fields).end()
        shutil.copy(latents, made)
        _, said = decoding.communicate(timeout=600)
    finally:
        decoding.kill()
    assert decoding.returncode == 0, said
    stage("decode", latents, "-m", MODEL, "--crf", "0", "-o", tmp_path / "once.json")
    once = np.stack([frame.rgb for frame in frames(tmp_path / "once.mp4")]).astype(int)
    assert np.abs(np.stack(watched(film)) - once).max() <= 2


@pytest.fixture
def following(latents, tmp_path):
    """Runs decode --follow on a film that is whole."""
    shutil.copy(latents, tmp_path / "l.safetensors")

    def run(*arguments, output="film.mp4", fails=0):
        command = ("decode", tmp_path / "l.safetensors", "-m", MODEL, "--follow", "-o", tmp_path / output)
        return stage(*command, *arguments, fails=fails)

    return run


def test_what_is_new_can_be_followed_alone(following, tmp_path):
    following("--new-only")
    assert len(watched(tmp_path / "film.mp4")) == 24


def test_what_cannot_be_followed_is_said(following, tmp_path):
    assert "film.json does not end with .mp4" in following(output="film.json", fails=2)
    assert "vae_tiling decodes a film as a whole" in following("--vae-tiling", fails=1)
    failure = artifacts.Failure("generate", "a", "block 3 of a became NaN", "try --dtype float32")
    artifacts.write_failure(tmp_path / "l.safetensors", failure)
    assert "block 3 of a became NaN" in following(fails=1)


def test_a_window_without_room_for_a_block_is_refused(encoded, tmp_path):
    said = stage(*("generate", encoded, "-o", tmp_path / "l.safetensors", "-m", MODEL, "--local-attn-size", 5), fails=2)
    assert "local_attn_size is 5, with 3 sinks and blocks of 3: take 6 or more" in said


def test_a_lora_that_is_not_this_models_is_refused(encoded, tmp_path):
    save_file({"blocks.0.attn1.to_q.lora_A.weight": torch.zeros(2, 7)}, tmp_path / "lora.safetensors")
    command = ("generate", encoded, "-o", tmp_path / "l.safetensors", "-m", MODEL, "--lora", tmp_path / "lora.safetensors")
    assert "blocks.0.attn1.to_q" in stage(*command, fails=1)


def test_a_repository_of_wan21_is_known_by_its_index(tmp_path):
    from stages.models import FAMILIES

    shutil.copy(MODEL / "model_index.json", tmp_path)
    found = {name: family.detect(tmp_path) for name, family in FAMILIES.items()}
    assert found["longlive"] == "" and found["wan"] is None
    assert json.loads((MODEL / "model_index.json").read_text())["_class_name"] == "WanPipeline"


@pytest.mark.parametrize(
    ("asked", "gigabytes", "saved"), [(None, 24, True), (None, 80, False), (True, 80, True), (False, 24, False)]
)
def test_a_small_gpu_keeps_the_weights_in_main_memory(monkeypatch, asked, gigabytes, saved):
    """No such card is at hand: what the driver would say is pretended."""
    size = SimpleNamespace(total_memory=gigabytes * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: size)
    assert generate.wants_little({"low_memory": asked}, torch.device("cuda:0")) == saved
