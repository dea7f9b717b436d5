"""The stages of Helios: lengths, prompts by chunk, seeds, resuming, streaming, and the noise of a pyramid."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import HeliosTransformer3DModel, WanTransformer3DModel
from safetensors.torch import load_file

from stages.families.helios import generate
from stages.families.helios.history import Past, latest, predict
from stages.families.helios.noise import generator
from stages.families.helios.options import FAMILY, check_generation, chunks, clip_frames
from stages.families.helios.pyramid import square_noise
from stages.families.helios.train import of_wan
from stages.media.marks import read_marks
from stages.media.read import frames
from stages.runtime import artifacts
from stages.runtime.artifacts import KINDS
from stages.runtime.errors import UsageError
from stages.runtime.options import resolve
from tests.commands import stage
from tests.families.helios.conftest import BLOCK, HISTORY, MADE, PROMPT, SHOWN, SIZE, encode
from tests.tiny import helios

SIZES = [flag for number in HISTORY for flag in ("--history-sizes", number)]
FAST = ("--num-inference-steps", 2, "--guidance-scale", 1, "--dtype", "float32", "--seed", 5, *SIZES)
OTHER = "a snowy mountain"


def generated(encoded, output, *arguments, fails=0):
    stage("generate", encoded, "-o", output, *FAST, *arguments, fails=fails)
    return None if fails else load_file(output)["latents"]


@pytest.fixture(scope="module")
def encoded(tiny_helios, tmp_path_factory):
    path = tmp_path_factory.mktemp("encoded") / "encoded.safetensors"
    encode(path, tiny_helios["base"], 64, "--prompt", PROMPT)
    return path


@pytest.fixture(scope="module")
def latents(encoded, tmp_path_factory):
    return generated(encoded, tmp_path_factory.mktemp("latents") / "latents.safetensors")


@pytest.mark.parametrize(
    ("asked", "made", "whole"), [(1, 33, 33), (33, 33, 33), (34, 65, 66), (99, 97, 99), (100, 129, 132), (133, 165, 165)]
)
def test_a_clip_has_whole_chunks_without_the_frames_that_the_pipeline_cuts(asked, made, whole):
    assert clip_frames(chunks(asked, 9), 9, whole=False) == made
    assert clip_frames(chunks(asked, 9), 9, whole=True) == whole


def test_decode_writes_the_frames_that_encode_declares(latents, encoded, tmp_path):
    assert artifacts.read(encoded, KINDS).fields["num_frames"] == SHOWN and latents.shape[2] == 3 * BLOCK
    generated(encoded, tmp_path / "l.safetensors")
    stage("decode", tmp_path / "l.safetensors", "-o", tmp_path / "clip.json", "--lossless")
    assert len(list(frames(tmp_path / "clip.mkv"))) == SHOWN
    assert artifacts.read(tmp_path / "clip.json", KINDS).fields["repeated_frames"] == 0


STEPS = {
    "base": ("--num-inference-steps", 2),
    "mid": ("--pyramid-num-inference-steps-list", 2) * 3,
    "distilled": ("--pyramid-num-inference-steps-list", 1) * 3,
}


@pytest.fixture
def chunks_made(monkeypatch):
    """The numbers of the chunks that are denoised, in order. A chunk that `dies_at` holds is interrupted, once."""
    made, dies_at, whole = [], set(), generate.Generate._chunk

    def chunk(self, model, shape, number, *arguments):
        made.append(number)
        if number in dies_at:
            dies_at.remove(number)
            raise KeyboardInterrupt
        return whole(self, model, shape, number, *arguments)

    monkeypatch.setattr(generate.Generate, "_chunk", chunk)
    return made, dies_at


@pytest.mark.parametrize("mode", ["text", "image", "video"])
@pytest.mark.parametrize("variant", STEPS)
def test_a_film_interrupted_at_each_chunk_goes_on_there_to_identical_latents(
    variant, mode, tiny_helios, source, tmp_path, chunks_made
):
    side = SIZE[variant]
    inputs = {"text": [], "image": [source(side), "--num-conditioning-frames", 1], "video": [source(side)]}[mode]
    encode(tmp_path / "e.safetensors", tiny_helios[variant], side, *inputs, "--prompt", PROMPT)
    command = (tmp_path / "e.safetensors", "--guidance-scale", 1, "--dtype", "float32", "--seed", 5, *SIZES, *STEPS[variant])
    stage("generate", *command, "-o", tmp_path / "once.safetensors")
    made, dies_at = chunks_made
    made.clear()
    dies_at |= {0, 1, 2}
    for fails in (1, 1, 1, 0):
        stage("generate", *command, "--store", tmp_path / "store", "-o", tmp_path / "l.safetensors", fails=fails)
    assert made == [0, 0, 1, 1, 2, 2]
    ours, once = (load_file(tmp_path / name)["latents"] for name in ("l.safetensors", "once.safetensors"))
    assert torch.equal(ours, once)


def test_another_prompt_from_a_chunk_on_leaves_the_chunks_before_it(latents, tiny_helios, tmp_path):
    """Latent frame 2 is within the first chunk, so that the prompt takes over at the second one."""
    switched = ("--prompt", PROMPT, "--next-prompts", OTHER, "--switch-frame-indices", 2)
    encode(tmp_path / "e.safetensors", tiny_helios["base"], 64, *switched)
    ours = generated(tmp_path / "e.safetensors", tmp_path / "l.safetensors")
    assert [torch.equal(*pair) for pair in zip(ours.split(BLOCK, 2), latents.split(BLOCK, 2))] == [True, False, False]
    assert artifacts.read(tmp_path / "l.safetensors", KINDS).fields["part_frames"] == [9, SHOWN - 9]


def test_a_film_takes_the_chunks_before_a_change_from_the_film_in_its_place(tiny_helios, tmp_path, chunks_made):
    encoded, film, made = tmp_path / "e.safetensors", tmp_path / "l.safetensors", chunks_made[0]

    def again(*arguments, frames=MADE, size=64, options=()):
        """The numbers of the chunks that are made for a film, which is the same as one made from nothing."""
        made.clear()
        encode(encoded, tiny_helios["base"], size, *arguments, frames=frames)
        ours, new = generated(encoded, film, *options), list(made)
        store = tmp_path / f"store{len(list(tmp_path.iterdir()))}"
        assert torch.equal(ours, generated(encoded, store.with_suffix(".safetensors"), *options, "--store", store))
        return new

    one, other = ("--prompt", PROMPT), ("--next-prompts", OTHER, "--switch-frame-indices")
    assert again(*one) == [0, 1, 2]
    assert again(*one, *other, 2 * BLOCK) == [2]
    assert again(*one, *other, BLOCK) == [1, 2]
    assert again(*one, *other, BLOCK, frames=MADE + BLOCK) == [3]
    assert again(*one, *other, BLOCK, frames=MADE - BLOCK) == []
    assert again(*one, options=("--seed", 6)) == again(*one, options=("--num-inference-steps", 3)) == [0, 1, 2]
    assert again(*one, size=128) == again("--prompt", OTHER, *other, BLOCK) == [0, 1, 2]


def test_chunks_of_a_film_that_was_changed_by_hand_are_made_again(tiny_helios, encoded, latents, tmp_path, chunks_made):
    """A file that says it was made so, with another value in the second chunk."""
    film = tmp_path / "l.safetensors"
    generated(encoded, film)
    artifact, tensors = artifacts.read(film, KINDS), load_file(film)
    tensors["latents"][0, 0, BLOCK, 0, 0] += 1
    artifacts.write_tensors(film, "latents", artifact.fields, tensors)
    chunks_made[0].clear()
    assert torch.equal(generated(encoded, film), latents) and chunks_made[0] == [1, 2]


def test_a_longer_film_begins_like_a_shorter_one(latents, tiny_helios, tmp_path):
    encode(tmp_path / "e.safetensors", tiny_helios["base"], 64, "--prompt", PROMPT, frames=36)
    longer = generated(tmp_path / "e.safetensors", tmp_path / "l.safetensors")
    assert longer.shape[2] == 4 * BLOCK and torch.equal(longer[:, :, : 3 * BLOCK], latents)


def test_another_seed_gives_another_film_and_each_chunk_its_own_noise(encoded, latents, tmp_path):
    assert not torch.equal(generated(encoded, tmp_path / "l.safetensors", "--seed", 6), latents)
    draws = [torch.randn(4, generator=generator(seed, number)) for seed in (0, 1) for number in (0, 1, 2)]
    assert len({tuple(draw.tolist()) for draw in draws}) == 6


def test_a_source_shorter_than_a_chunk_is_read_by_its_last_frame(tiny_helios, source, tmp_path):
    few = ("--num-conditioning-frames", 8)
    message = encode(tmp_path / "few.safetensors", tiny_helios["base"], 64, source(64), *few, "--prompt", PROMPT)
    assert "its source has 8 frames, fewer than the 9 of a chunk" in message
    fields = artifacts.read(tmp_path / "few.safetensors", KINDS)
    assert fields.fields["source_frames"] == 1 and fields.shapes["video_moments"][2] == BLOCK


def test_the_past_of_a_later_chunk_is_all_that_generation_needs(tiny_helios, source, tmp_path):
    """The clip of a link is the past of the next one, by its lossless frames, as many as the option says."""
    encode(tmp_path / "e.safetensors", tiny_helios["base"], 64, "--prompt", PROMPT)
    generated(tmp_path / "e.safetensors", tmp_path / "l.safetensors")
    stage("decode", tmp_path / "l.safetensors", "-o", tmp_path / "clip.json", "--lossless")
    more = ("--prompt", OTHER, "--num-conditioning-frames", 18)
    encode(tmp_path / "next.safetensors", tiny_helios["base"], 64, tmp_path / "clip.json", *more)
    following = artifacts.read(tmp_path / "next.safetensors", KINDS)
    assert following.fields["source_frames"] == 18 and following.shapes["video_moments"][2] == 2 * BLOCK


def test_decode_follows_a_film_that_is_made(tiny_helios, encoded, latents, tmp_path):
    output = tmp_path / "l.safetensors"
    command = [sys.executable, "-m", "stages.decode", output, "-o", tmp_path / "film.mp4", "--follow", "--device", "cpu"]
    with subprocess.Popen(list(map(str, command))) as process:
        generated(encoded, output)
        assert process.wait(120) == 0
    assert len(list(frames(tmp_path / "film.mp4"))) == SHOWN
    assert read_marks(tmp_path / "film.mp4") is not None


@pytest.mark.parametrize(
    ("variant", "given", "message"),
    [
        ("mid", {"pyramid_num_inference_steps_list": [4]}, "the mid has 3 stages: give 3 numbers"),
        ("mid", {"num_inference_steps": 4}, "give pyramid_num_inference_steps_list instead"),
        ("base", {"pyramid_num_inference_steps_list": [4]}, "the base has no stages: give num_inference_steps instead"),
        ("distilled", {"guidance_scale": 3.0}, "trained without guidance: leave guidance_scale out"),
        ("base", {"history_sizes": [4, 2]}, "give three numbers, such as"),
        ("base", {"image_noise_sigma": [0.2, 0.1]}, "the lower one first"),
        ("base", {"gpus": 2, "parallel": "ulysses"}, "set parallel to layers"),
    ],
)
def test_options_that_do_not_go_together_are_refused(variant, given, message):
    with pytest.raises(UsageError, match=message):
        check_generation(variant, resolve(FAMILY.options, {"seed": 1, **given}, variant))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "has no prompt"),
        (("--prompt", PROMPT, "--next-prompts", OTHER), "has 0 switch_frame_indices for 1 next_prompts"),
        (("--prompt", PROMPT, "--next-prompts", OTHER, "--switch-frame-indices", 7), "the last one before the last chunk"),
    ],
)
def test_impossible_inputs_are_refused_before_loading(arguments, message, tiny_helios, tmp_path, monkeypatch):
    monkeypatch.setattr("stages.families.helios.encode.Encode.load", lambda *_: pytest.fail("weights were loaded"))
    assert message in encode(tmp_path / "e.safetensors", tiny_helios["base"], 64, *arguments, fails=1)


@pytest.mark.parametrize("variant", ["mid", "distilled"])
def test_a_pyramid_needs_whole_squares_at_its_smallest_size(variant, tiny_helios, tmp_path):
    message = encode(tmp_path / "e.safetensors", tiny_helios[variant], 96, "--prompt", PROMPT, fails=1)
    assert "both sides have to be multiples of 64" in message


@pytest.mark.parametrize("gamma", [1 / 3, 0.333])
def test_noise_of_a_square_has_its_covariance_also_where_that_is_singular(gamma):
    noise = square_noise((1, 16, 9, 64, 64), gamma, torch.Generator().manual_seed(0))
    squares = noise.unfold(3, 2, 2).unfold(4, 2, 2).reshape(-1, 4)
    expected = (1 + gamma) * torch.eye(4) - gamma
    assert torch.allclose(squares.T @ squares / len(squares), expected, atol=0.02)


@pytest.mark.parametrize("variant", ["mid", "distilled"])
def test_the_published_gamma_and_the_smallest_size_run_on_a_cpu(variant, tmp_path):
    """Both stop the pipelines of diffusers 0.42.1: a singular factor, and a view of what is not contiguous."""
    model = helios.make(tmp_path / "model", variant, gamma=1 / 3)
    encode(tmp_path / "e.safetensors", model, 64, "--prompt", PROMPT, frames=9)
    steps = [flag for number in (3, 1, 1) for flag in ("--pyramid-num-inference-steps-list", number)]
    stage("generate", tmp_path / "e.safetensors", "-o", tmp_path / "l.safetensors", *steps, *SIZES, "--dtype", "float32")
    assert load_file(tmp_path / "l.safetensors")["latents"].isfinite().all()


def test_wans_weights_make_a_helios_that_equals_it_where_there_is_no_past():
    torch.manual_seed(0)
    wan = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=24, text_dim=16, freq_dim=32, ffn_dim=64, num_layers=2
    ).eval()
    ours = of_wan(wan).eval()
    x, text, time = torch.randn(1, 16, 3, 8, 8), torch.randn(1, 5, 16), torch.tensor([500.0])
    with torch.no_grad():
        theirs = wan(x, time, text, return_dict=False)[0]
        alone = ours(x, time, text, return_dict=False)[0]
    assert torch.allclose(alone, theirs, atol=1e-5 * theirs.abs().max())


def test_the_history_changes_the_prediction_and_each_part_has_a_part_in_it():
    torch.manual_seed(0)
    model = HeliosTransformer3DModel(
        num_attention_heads=2, attention_head_dim=24, text_dim=16, freq_dim=32, ffn_dim=64, num_layers=2, rope_dim=(8, 8, 8)
    ).eval()
    x, text, time = torch.randn(1, 16, 3, 8, 8), torch.randn(1, 5, 16), torch.tensor([500.0])
    past = Past(torch.randn(1, 16, 1, 8, 8), torch.randn(1, 16, 7, 8, 8))
    with torch.no_grad():
        plain = predict(model, x, time, text, past, HISTORY)
        for place in (0, 4, 6):  # long, mid, short
            history = past.history.clone()
            history[:, :, place] += 1
            assert not torch.allclose(predict(model, x, time, text, Past(past.prefix, history), HISTORY), plain, atol=1e-4)
        assert not torch.allclose(predict(model, x, time, text, Past(past.prefix + 1, past.history), HISTORY), plain)


def test_a_short_past_is_padded_in_front_and_a_long_one_cut():
    parts = [torch.full((1, 1, 2, 1, 1), float(number)) for number in (1, 2)]
    assert latest(parts, 3).flatten().tolist() == [1, 2, 2]
    assert np.allclose(latest(parts, 6).flatten(), [0, 0, 1, 1, 2, 2])
