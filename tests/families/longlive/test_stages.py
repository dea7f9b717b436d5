"""The stages of LongLive by hand with the shipped model: lengths, prompts, seeds, resuming, streaming."""

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

from stages.families.longlive import causal, generate
from stages.families.longlive.options import GenerateOptions, check_compile, lengths
from stages.families.shared.film import Progress
from stages.families.shared.wan.vae import denormalise
from stages.media.marks import COMPOSITE, MADE, read_marks
from stages.media.read import frames
from stages.runtime import artifacts, memory, weights
from stages.runtime.artifacts import KINDS
from stages.runtime.errors import ItemError, JobError, UsageError
from stages.runtime.model import Model
from tests.commands import stage, wait_for

ROOT = Path(__file__).parents[3]
MODEL = ROOT / "models/shapes-longlive"
VIDEO = ROOT / "examples/shapes/videos/0000.mp4"
FIRST, SECOND = (
    "an orange ring moving up quickly on a gray background",
    "an orange ring moving left quickly on a gray background",
)
SHORT = ("--size", "64*64", "--num-output-frames", 9, "--max-sequence-length", 24)
FULL = ("--dtype", "float32")


def encode(output, *arguments, fails=0):
    return stage("encode", *arguments, "-o", output, "-m", MODEL, *SHORT, *FULL, fails=fails)


@pytest.fixture(scope="module")
def source_frames(tmp_path_factory):
    """The first 17 frames of a clip."""
    path = tmp_path_factory.mktemp("frames") / "frames.json"
    stage("extract_frames", VIDEO, "--select", "first", "--count", 17, "--size", "64*64", "-o", path)
    return path


@pytest.fixture(scope="module")
def encoded(source_frames, tmp_path_factory):
    path = tmp_path_factory.mktemp("encoded") / "encoded.safetensors"
    encode(path, source_frames, "--prompt1", FIRST, "--prompt", SECOND)
    return path


@pytest.fixture(scope="module")
def latents(encoded, tmp_path_factory):
    path = tmp_path_factory.mktemp("latents") / "latents.safetensors"
    stage("generate", encoded, "-o", path, "-m", MODEL, "--seed", 5, *FULL)
    return path


def test_lengths_are_those_of_whole_blocks_of_a_source():
    """40 frames are 10 latent frames. 9 of these make whole blocks of 3, which are 33 frames."""
    assert lengths(40, 3) == (33, 9)
    assert [lengths(frames, 3).latent_frames for frames in (0, 8, 9, 20, 21, 33, 36, 37)] == [0, 0, 3, 3, 6, 9, 9, 9]
    assert lengths(157, 1) == (157, 40)


def test_encode_writes_lengths_and_prompt_switches(encoded):
    fields = artifacts.read(encoded, KINDS).fields
    assert fields["prompts"] == [FIRST, SECOND]
    assert (fields["source_frames"], fields["switches"], fields["latent_frames"], fields["num_frames"]) == (9, [3], 9, 33)
    tensors = load_file(encoded)
    assert tensors["prompt_embeds"].shape[:2] == (2, 24) and tensors["image_latents"].shape == (1, 16, 3, 8, 8)


def test_encoded_condition_latents_are_those_of_the_vae(encoded):
    vae = AutoencoderKLWan.from_pretrained(MODEL, subfolder="vae")
    video = np.stack([frame.rgb for frame in frames(VIDEO)])[:9].reshape(9, 64, 2, 64, 2, 3).mean((2, 4))
    with torch.no_grad():
        expected = vae.encode(torch.from_numpy(video / 127.5 - 1).float().permute(3, 0, 1, 2)[None]).latent_dist.mode()
    ours = denormalise(vae, load_file(encoded)["image_latents"])
    assert (ours - expected).abs().max() < 0.05 * expected.std()  # the frames were scaled by another filter


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--prompt1", FIRST, "--prompt", SECOND, "--num-conditioning-frames", 8), "has 8 frames to use: give at least 9"),
        (("--prompt", SECOND), "has no prompt for its source: add --prompt1"),
        (("--prompt1", FIRST), "has no prompt for the new frames: add --prompt"),
        (("--prompt1", FIRST, "--prompt", SECOND, "--num-output-frames", 10), "a block has 3: take 9 or 12"),
        (("--prompt1", FIRST, "--prompt", SECOND, "--num-output-frames", 3), "fills 3 latent frames and the film has 3"),
        (("--prompt1", FIRST, "--prompt", SECOND, "--next-prompts", FIRST), "has 0 switch_frame_indices for 3 prompts"),
    ],
)
def test_impossible_longlive_inputs_are_refused_before_loading(source_frames, tmp_path, arguments, message, monkeypatch):
    monkeypatch.setattr("stages.families.longlive.encode.Encode.load", lambda *_: pytest.fail("weights were loaded"))
    command = (source_frames, "-o", tmp_path / "e.safetensors", "-m", MODEL, *SHORT, *arguments)
    fails = 2 if "take 9 or 12" in message else 1
    assert message in stage("encode", *command, fails=fails)
    assert not list(tmp_path.iterdir())


def test_generated_latents_begin_with_the_source(encoded, latents):
    generated, condition = load_file(latents)["latents"], load_file(encoded)["image_latents"]
    assert generated.shape == (1, 16, 9, 8, 8) and torch.equal(generated[:, :, :3], condition)


def test_a_longer_film_begins_like_a_shorter_one(source_frames, latents, tmp_path):
    stage(
        *("encode", source_frames, "--prompt1", FIRST, "--prompt", SECOND),
        *("-o", tmp_path / "e.safetensors", "-m", MODEL, *FULL),
        *("--size", "64*64", "--num-output-frames", 12, "--max-sequence-length", 24),
    )
    stage("generate", tmp_path / "e.safetensors", "-o", tmp_path / "l.safetensors", "-m", MODEL, "--seed", 5, *FULL)
    longer = load_file(tmp_path / "l.safetensors")["latents"]
    assert longer.shape[2] == 12 and torch.equal(longer[:, :, :9], load_file(latents)["latents"])


def test_another_seed_gives_another_film(encoded, latents, tmp_path):
    stage("generate", encoded, "-o", tmp_path / "l.safetensors", "-m", MODEL, "--seed", 6, *FULL)
    assert not torch.equal(load_file(tmp_path / "l.safetensors")["latents"], load_file(latents)["latents"])


@pytest.mark.parametrize("recache", [False, True])
def test_an_interrupted_film_resumes_at_a_block_to_identical_latents(source_frames, tmp_path, monkeypatch, recache):
    """A film of prompts alone, with a switch within the blocks that are generated after the interruption."""
    prompts = ("--prompt", FIRST, "--next-prompts", SECOND, "--switch-frame-indices", 4)
    encode(tmp_path / "e.safetensors", *prompts)
    flags = ("-m", MODEL, "--seed", 5, "--checkpoint-every", 1, *(["--recache-on-switch"] if recache else []), *FULL)
    command = (tmp_path / "e.safetensors", *flags, "--store", tmp_path / "store")
    blocks, whole = [], generate.denoise

    def dies_in_the_third_block(*arguments):
        blocks.append(len(blocks))
        if len(blocks) == 3:
            raise KeyboardInterrupt
        return whole(*arguments)

    monkeypatch.setattr(generate, "denoise", dies_in_the_third_block)
    stage("generate", *command, "-o", tmp_path / "l.safetensors", fails=1)
    assert not (tmp_path / "l.safetensors").exists()
    stage("generate", *command, "-o", tmp_path / "l.safetensors")
    assert len(blocks) == 4  # two blocks, the lost one, and the lost one again
    monkeypatch.undo()
    stage("generate", tmp_path / "e.safetensors", *flags, "-o", tmp_path / "once.safetensors")
    ours, once = (load_file(tmp_path / name)["latents"] for name in ("l.safetensors", "once.safetensors"))
    assert torch.equal(ours, once)


def test_an_interrupted_film_does_not_resume_from_the_blocks_of_another(tmp_path, monkeypatch):
    encode(tmp_path / "e.safetensors", "--prompt", FIRST)
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
    shutil.copytree(left[6], left[5], dirs_exist_ok=True)
    stage("generate", *command(5))
    stage("generate", tmp_path / "e.safetensors", "-m", MODEL, "--seed", 5, *FULL, "-o", tmp_path / "once.safetensors")
    ours, once = (load_file(tmp_path / name)["latents"] for name in ("5.safetensors", "once.safetensors"))
    assert torch.equal(ours, once)


@pytest.mark.parametrize("damage", ["a torn file", "a file of an earlier version", "an empty folder"])
def test_a_film_with_a_damaged_state_starts_again(tmp_path, damage, capfd):
    encode(tmp_path / "e.safetensors", "--prompt", FIRST)
    command = (tmp_path / "e.safetensors", "-m", MODEL, "--seed", 5, "--checkpoint-every", 1, *FULL)
    kept = keep_partial(tmp_path, *command)
    if damage == "a torn file":
        part = kept / "000003.safetensors"
        part.write_bytes(part.read_bytes()[:-1])
    else:
        shutil.rmtree(kept)
        kept.write_bytes(b"latents") if "version" in damage else kept.mkdir()
    stage("generate", *command, "--store", tmp_path / "store", "-o", tmp_path / "again.safetensors")
    assert not kept.exists()
    stage("generate", *command, "-o", tmp_path / "once.safetensors")
    ours, once = (load_file(tmp_path / f"{name}.safetensors")["latents"] for name in ("again", "once"))
    assert torch.equal(ours, once)


def keep_partial(folder, *command):
    """The state of a film in folder/store whose process died before its last block."""
    whole = generate.check_finite

    def dies_at_the_last_block(block, name):
        if name.startswith("block 2"):
            raise KeyboardInterrupt
        whole(block, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate, "check_finite", dies_at_the_last_block)
        stage("generate", *command, "--store", folder / "store", "-o", folder / "l.safetensors", fails=1)
    (kept,) = (folder / "store" / "partial").iterdir()
    return kept


def test_the_state_of_a_film_grows_by_its_new_blocks_alone(tmp_path):
    encode(tmp_path / "e.safetensors", "--prompt", FIRST)
    kept = keep_partial(tmp_path, tmp_path / "e.safetensors", "-m", MODEL, "--checkpoint-every", 1, *FULL)
    parts = {path.name: load_file(path)["latents"].shape[2] for path in sorted(kept.iterdir())}
    assert parts == {"000000.safetensors": 3, "000003.safetensors": 3}


@pytest.mark.parametrize(("positions", "tables"), [((), 8), (("--relative-positions",), 8 + 7)])
def test_a_block_makes_its_rotary_tables_once_and_the_last_block_is_not_cached(tmp_path, monkeypatch, positions, tables):
    """8 blocks of 4 steps, with a clean pass after all but the last. Relative positions of keys differ from the queries'
    from the second block on."""
    made, passes, make, run = [], [], causal.make_rotary_emb, causal.CausalWan.__call__
    monkeypatch.setattr(causal, "make_rotary_emb", lambda *arguments: made.append(1) or make(*arguments))
    monkeypatch.setattr(causal.CausalWan, "__call__", lambda *arguments: passes.append(1) or run(*arguments))
    sizes = ("--size", "64*64", "--num-output-frames", 24, "--max-sequence-length", 24)
    stage("encode", "-o", tmp_path / "e.safetensors", "-m", MODEL, *sizes, *FULL, "--prompt", FIRST)
    stage("generate", tmp_path / "e.safetensors", "-o", tmp_path / "l.safetensors", "-m", MODEL, *positions, *FULL)
    assert (len(made), len(passes)) == (tables, 8 * 4 + 7)


def test_recaching_the_window_at_a_switch_gives_another_film(tmp_path):
    encode(tmp_path / "e.safetensors", "--prompt", FIRST, "--next-prompts", SECOND, "--switch-frame-indices", 6)
    films = []
    for flag in ("--recache-on-switch", "--no-recache-on-switch"):
        output = tmp_path / f"{flag}.safetensors"
        stage("generate", tmp_path / "e.safetensors", flag, "-o", output, "-m", MODEL, "--seed", 5, *FULL)
        films.append(load_file(output)["latents"])
    same = [torch.equal(*(film[:, :, frame] for film in films)) for frame in range(9)]
    assert same == [True] * 6 + [False] * 3


def test_decode_writes_the_whole_film_or_only_its_new_frames(latents, tmp_path):
    command = ("decode", latents, "-m", MODEL, "--lossless")
    stage(*command, "-o", tmp_path / "all.json")
    stage(*command, "--new-only", "-o", tmp_path / "new.json")
    whole, new = (np.stack([f.rgb for f in frames(tmp_path / f"{name}.mkv")]) for name in ("all", "new"))
    assert whole.shape == (33, 64, 64, 3) and (whole[9:] == new).all()
    # the IPTC's terms for a video with frames of a source, and for one without
    assert [read_marks(tmp_path / f"{name}.mp4").source for name in ("all", "new")] == [COMPOSITE, MADE]
    vae = AutoencoderKLWan.from_pretrained(MODEL, subfolder="vae")
    with torch.no_grad():
        at_once = vae.decode(denormalise(vae, load_file(latents)["latents"]), return_dict=False)[0][0]
    at_once = ((at_once / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(1, 2, 3, 0).numpy()
    assert (whole == at_once).all()


def read_growing(film):
    """Frames of a video that is still being written."""
    try:
        return [frame.rgb for frame in frames(film)]
    except ItemError:
        return []  # it has no frame yet


def test_decode_follow_shows_a_film_while_it_is_generated(latents, tmp_path):
    """The film has first the blocks that generate has finished, then all. The encoder delays the last of 21 frames."""
    latents_path, film = tmp_path / "l.safetensors", tmp_path / "film.mp4"
    command = [
        sys.executable,
        "-m",
        "stages.decode",
        latents_path,
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
        work = SimpleNamespace(partial=tmp_path / "store.safetensors", item=SimpleNamespace(output=str(latents_path)))
        whole = artifacts.read(latents, ("latents",))
        Progress(work, whole.fields).save(0, whole.tensors()["latents"][:, :, :3])
        Progress(work, whole.fields).save(3, whole.tensors()["latents"][:, :, 3:6])
        wait_for(lambda: len(read_growing(film)) >= 20 or decoding.poll() is not None, "no frames are shown", 600)
        assert decoding.poll() is None, decoding.stderr.read()
        Progress(work, whole.fields).finish()
        shutil.copy(latents, latents_path)
        _, stderr = decoding.communicate(timeout=600)
    finally:
        decoding.kill()
    assert decoding.returncode == 0, stderr
    stage("decode", latents, "-m", MODEL, "--crf", "0", "-o", tmp_path / "once.json")
    once = np.stack([frame.rgb for frame in frames(tmp_path / "once.mp4")]).astype(int)
    assert np.abs(np.stack(read_growing(film)) - once).max() <= 2


@pytest.fixture
def follow(latents, tmp_path):
    """A function that runs decode --follow on complete latents."""
    shutil.copy(latents, tmp_path / "l.safetensors")

    def run(*arguments, output="film.mp4", fails=0):
        command = ("decode", tmp_path / "l.safetensors", "-m", MODEL, "--follow", "-o", tmp_path / output)
        return stage(*command, *arguments, fails=fails)

    return run


def test_decode_follow_can_leave_out_the_source(follow, tmp_path):
    follow("--new-only")
    assert len(read_growing(tmp_path / "film.mp4")) == 24
    assert read_marks(tmp_path / "film.mp4").source == MADE
    follow(output="whole.mp4")
    assert read_marks(tmp_path / "whole.mp4").source == COMPOSITE


def test_decode_follow_reports_impossible_requests(follow, tmp_path):
    assert "film.json does not end with .mp4" in follow(output="film.json", fails=2)
    assert "vae_tiling decodes a film in one piece" in follow("--vae-tiling", fails=1)
    failure = artifacts.Failure("generate", "a", "block 3 of a became NaN", "try --dtype float32")
    artifacts.write_failure(tmp_path / "l.safetensors", failure)
    assert "block 3 of a became NaN" in follow(fails=1)


def test_generate_refuses_a_window_without_room_for_a_block(encoded, tmp_path):
    stderr = stage(*("generate", encoded, "-o", tmp_path / "l.safetensors", "-m", MODEL, "--local-attn-size", 5), fails=2)
    assert "local_attn_size is 5, with 3 sinks and blocks of 3: take 6 or more" in stderr


def test_generate_refuses_a_lora_of_another_model(encoded, tmp_path):
    save_file({"blocks.0.attn1.to_q.lora_A.weight": torch.zeros(2, 7)}, tmp_path / "lora.safetensors")
    command = ("generate", encoded, "-o", tmp_path / "l.safetensors", "-m", MODEL, "--lora", tmp_path / "lora.safetensors")
    assert "blocks.0.attn1.to_q" in stage(*command, fails=1)


def test_a_wan21_repository_is_detected_as_longlive(tmp_path):
    from stages.families import FAMILIES

    shutil.copy(MODEL / "model_index.json", tmp_path)
    variants = {name: family.detect(tmp_path) for name, family in FAMILIES.items()}
    assert variants["longlive"] == "" and variants["wan"] is None
    assert json.loads((MODEL / "model_index.json").read_text())["_class_name"] == "WanPipeline"


PUBLISHED = {"num_layers": 30, "num_attention_heads": 12, "attention_head_dim": 128, "in_channels": 16, "text_dim": 4096}


@pytest.mark.parametrize(
    ("options", "size", "gibibytes", "saved"),
    [
        ({}, (832, 480), 24, False),
        ({}, (832, 480), 8, False),
        ({}, (832, 480), 7, True),
        ({}, (1280, 720), 8, True),  # a larger KV cache
        ({"local_attn_size": 48}, (832, 480), 16, True),
        ({"dtype": "float32"}, (832, 480), 12, True),
        ({"low_memory": True}, (832, 480), 80, True),
        ({"low_memory": False}, (832, 480), 2, False),
    ],
)
def test_low_memory_is_taken_where_the_gpu_has_no_room(options, size, gibibytes, saved, tmp_path, monkeypatch):
    """LongLive-1.3B on a GPU whose free memory is simulated. The project measured 6.2 GiB at 832*480 on a real one."""
    for part, config in {"transformer": {**PUBLISHED, "ffn_dim": 8960}, "vae": {"scale_factor_spatial": 8}}.items():
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(weights, "count_parameters", lambda folder: 1_418_996_800)
    monkeypatch.setattr(memory, "gpu_memory", lambda device: gibibytes * 2**30)
    worker = generate.Generate(Model("published", "longlive", path=str(tmp_path)), "cuda:0")
    sizes = [{"width": 64, "height": 64}, {"width": size[0], "height": size[1]}]
    worker.prepare([SimpleNamespace(artifact=lambda name, one=one: SimpleNamespace(fields=one)) for one in sizes])
    assert worker._offloads(GenerateOptions.resolved(options)) == saved


def test_compile_is_refused_where_the_transformer_is_not_whole_on_the_gpu(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="compile is blocks and low_memory is true: leave one of them out"):
        check_compile(GenerateOptions.resolved({"compile": "blocks", "low_memory": True}).values())
    worker = generate.Generate(Model("shapes", "longlive", path=str(MODEL)), "cuda:0")
    monkeypatch.setattr(worker, "_offloads", lambda options: True)
    with pytest.raises(JobError, match="compile is blocks and the GPU has no room for shapes as a whole: set"):
        worker.load(GenerateOptions.resolved({"compile": "blocks"}))
