"""A link that goes on from the latents of the one before: together they are one film of the pipeline of diffusers."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from stages.families.helios.encode import Encode
from stages.media.read import frames
from tests import zoo
from tests.commands import stage
from tests.families.helios.conftest import MADE, PROMPT, SHOWN, SIZE, encode, images
from tests.families.helios.test_identity import pipeline_frames, stages_frames

LINKS = (18, 9)  # frames of two chunks, of which the pipeline would cut one, and of one chunk


@pytest.mark.parametrize(
    ("mode", "dtype"), [("text", "float32"), ("text", "bfloat16"), ("image", "float32"), ("video", "float32")]
)
@pytest.mark.parametrize("variant", SIZE)
def test_two_links_by_latents_are_one_film_of_the_pipeline(
    variant, mode, dtype, tiny_helios, source, tmp_path, one_generator
):
    """Frame by frame across the seam, with the noise of one generator."""
    model, side = tiny_helios[variant], SIZE[variant]
    past = images(source(side))
    start = {"text": (), "image": (past[-1].filename,), "video": (source(side),)}[mode]
    clips = []
    for number, count in enumerate(LINKS):
        folder = tmp_path / str(number)
        folder.mkdir()
        encode(
            folder / "e.safetensors", model, side, *start, "--prompt", PROMPT, "--whole-chunks", dtype=dtype, frames=count
        )
        clips.append(stages_frames(folder / "e.safetensors", folder, variant, dtype))
        start = ("--past", folder / "l.safetensors")
    assert tuple(map(len, clips)) == LINKS
    given = {"text": {}, "image": {"image": past[-1]}, "video": {"video": past}}[mode]
    theirs = pipeline_frames(model, variant, getattr(torch, dtype), **given)
    assert theirs.std() > 20 and np.array_equal(np.concatenate(clips)[:SHOWN], theirs)


def test_the_film_of_two_links_has_every_frame_of_both(tiny_helios, tmp_path):
    start = ()
    for number, count in enumerate(LINKS):
        folder = tmp_path / str(number)
        folder.mkdir()
        encode(folder / "e.safetensors", tiny_helios["base"], 64, *start, "--prompt", PROMPT, "--whole-chunks", frames=count)
        stages_frames(folder / "e.safetensors", folder, "base", "float32")
        start = ("--past", folder / "l.safetensors")
    stage("concat", *(tmp_path / name / "clip.json" for name in "01"), "-o", tmp_path / "film.mp4", "--crf", 1)
    film = zoo.rgb_by_ffmpeg(tmp_path / "film.mp4", (64, 64))
    links = [frame.rgb for name in "01" for frame in frames(tmp_path / name / "clip.mkv")]
    assert len(film) == len(links) == MADE
    away = np.abs(film[:, None].astype(float) - np.stack(links)[None]).mean(axis=(2, 3, 4))
    assert [*away.argmin(axis=1)] == [*range(MADE)]  # each where it belongs


def test_a_past_knows_how_its_film_began_and_the_vae_is_not_loaded(tiny_helios, source, tmp_path, monkeypatch):
    model = tiny_helios["base"]
    encode(tmp_path / "e.safetensors", model, 64, source(64), "--prompt", PROMPT)
    stages_frames(tmp_path / "e.safetensors", tmp_path, "base", "float32")
    past = ("--past", tmp_path / "l.safetensors", "--prompt", PROMPT)
    message = encode(tmp_path / "next.safetensors", model, 64, source(64), *past, fails=1)
    assert "has a past and an image: leave one out: the past knows how its film began" in message
    monkeypatch.setattr(Encode, "load_image_encoder", lambda *_: pytest.fail("the VAE was loaded"))
    encode(tmp_path / "next.safetensors", model, 64, *past)
    before, following = (load_file(tmp_path / name) for name in ("l.safetensors", "next.safetensors"))
    assert torch.equal(following["history"], before["history"])
    assert torch.equal(before["history"], before["latents"][:, :, -before["history"].shape[2] :])
