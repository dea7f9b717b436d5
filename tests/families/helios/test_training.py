"""`train helios`: what a window sees of its past, and a model that the pipeline of diffusers loads."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import HeliosPipeline

from stages.families.helios.options import HeliosTrainingOptions, detect
from stages.families.helios.train import WINDOWS, HeliosTask, TurningFilms
from stages.media.shapes.oracle import read
from tests.commands import train_model

ROOT = Path(__file__).parents[3]
CONFIG = {
    **{"start_from": str(ROOT / "models/shapes-longlive"), "freeze_text_encoder": True, "data": "shapes"},
    **{"num_frames": 9, "frame_size": 64, "history_sizes": [4, 2, 1], "max_samples": 4, "validation_samples": 2},
    **{"batch_size": 2, "max_steps": 2, "max_sequence_length": 24, "sample_steps": 2, "mixed_precision": "no"},
}


@pytest.fixture(scope="module")
def task():
    return HeliosTask(HeliosTrainingOptions.resolved(CONFIG), {})


def test_a_trained_model_has_its_settings_and_is_loaded_by_diffusers(tmp_path):
    model = train_model("helios", tmp_path / "made", CONFIG)
    settings = json.loads((model / "kinemake.json").read_text())
    assert (settings["family"], settings["variant"], detect(model)) == ("helios", "base", "base")
    chosen = {"num_latent_frames_per_chunk": 3, "history_sizes": [4, 2, 1], "num_conditioning_frames": 27}
    assert chosen.items() <= settings["options"].items()
    pipe = HeliosPipeline.from_pretrained(model)
    assert pipe.transformer.config.rope_dim == [12, 10, 10] and pipe.scheduler.config.stages == 1
    assert (tmp_path / "made/training/samples").is_dir()


def test_the_past_of_a_window_is_nothing_a_still_frame_or_the_windows_before_it(task):
    latents, still = torch.rand(WINDOWS, 16, 3, 8, 8) + 1, torch.rand(WINDOWS, 16, 3, 8, 8) + 3
    nothing = task.past(latents, still, 0, from_frame=True, whole=True)
    assert not nothing.prefix.any() and not nothing.history.any() and nothing.history.shape == (16, 7, 8, 8)
    frame = task.past(latents, still, 2, from_frame=True, whole=True)
    assert torch.equal(frame.prefix, still[1, :, :1]) and torch.equal(frame.history[:, -1], still[1, :, -1])
    assert not frame.history[:, :-1].any()
    one = task.past(latents, still, 2, from_frame=False, whole=False)
    assert torch.equal(one.prefix, latents[1, :, :1]) and torch.equal(one.history[:, -3:], latents[1])
    assert not one.history[:, :-3].any()
    both = task.past(latents, still, 2, from_frame=False, whole=True)
    assert torch.equal(both.prefix, latents[0, :, :1])
    assert torch.equal(both.history[:, 1:], torch.cat([latents[0], latents[1]], dim=1)) and not both.history[:, 0].any()


def test_noise_leaves_what_is_empty_and_the_pasts_that_it_is_not_for(task):
    latents, still = torch.rand(WINDOWS, 16, 3, 8, 8) + 1, torch.rand(WINDOWS, 16, 3, 8, 8)
    past = task.past(latents, still, 1, from_frame=False, whole=True)
    batch = type(past)(*(torch.stack([part, part]) for part in past))
    noisy = task.with_noise(batch, torch.tensor([True, False]), torch.Generator().manual_seed(0))
    assert torch.equal(noisy.history[1], past.history) and torch.equal(noisy.prefix[1], past.prefix)
    assert not noisy.history[0, :, :4].any() and not torch.equal(noisy.history[0, :, 4:], past.history[:, 4:])


def test_films_turn_at_the_window_that_they_name_and_their_captions_say_so():
    films = TurningFilms(count=12, num_frames=27, frame_size=64, window=9)
    turned = []
    for index in range(12):
        item = films.clip(index, np.random.default_rng(index))
        frames, start = item["frames"], 9 * item["switch"]
        parts = [(frames[:start], item["text"]), (frames[start - 1 :], item["text2"])][: 1 + (start < 27)]
        assert len(frames) == 27 and all(read(part).direction in caption.split() for part, caption in parts)
        turned.append(item["switch"] < WINDOWS)
    assert 0 < sum(turned) < 12
