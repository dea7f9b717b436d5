"""A captioner trained from scratch: training and caption_vlm use the same prompt and pixels, and caption_vlm loads it."""

import numpy as np
import pytest
import torch
import yaml

from stages.families.shared.training.data import ShapesDataset
from stages.families.vlm.caption import Caption
from stages.families.vlm.options import TRAINING, CaptionOptions
from stages.families.vlm.train import CaptionTask
from stages.media.read import Frame
from stages.media.shapes.world import render
from stages.media.write import VideoWriter
from stages.runtime import artifacts
from stages.runtime.model import Model
from tests.commands import stage, train

CONFIG = {
    "data": "shapes",
    "num_frames": 5,
    "frame_size": 32,
    "num_segments": 3,
    "include_last": True,
    "batch_size": 2,
    "warmup_steps": 0,
    "learning_rate": 1e-2,  # so that captions are soon not empty
    "max_steps": 20,
    "validation_samples": 2,
    "pixel_noise": 0.0,
}
ARCHITECTURE = {
    "vision": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "image_size": [32, 32],
        "patch_size": [8, 8],
    },
    "text": {
        "model_type": "qwen3",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
    },
}
SHOWN = ("--num-segments", 3, "--include-last", "--dtype", "float32")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("captioner")
    (folder / "config.yaml").write_text(yaml.safe_dump({**CONFIG, "architecture": ARCHITECTURE}))
    train("captioner", "--config", folder / "config.yaml", "--output", folder / "training")
    return folder / "training" / "model"


@pytest.fixture(scope="module")
def worker(model):
    worker = Caption(Model("captioner", "vlm", path=str(model)), "cpu")
    worker.load(CaptionOptions.resolved({"dtype": "float32"}))
    return worker


@pytest.fixture(scope="module")
def task(model):
    torch.manual_seed(0)
    return CaptionTask(TRAINING.options.resolved({**CONFIG, "start_from": str(model)}), {}).eval()


def test_captioner_training_has_the_tokens_of_caption_vlm(worker, task):
    frames = [Frame(0, 0.0, np.zeros((32, 32, 3), np.uint8))] * 4
    expected_ids = worker.inputs(frames, task.options.instruction)["input_ids"][0].tolist()
    assert task.question == expected_ids
    assert task.tokenizer.unk_token_id not in expected_ids


def test_captioner_training_has_the_frames_and_pixels_of_caption_vlm(worker, task):
    """The frames are the middles of 3 segments of 5 frames, and the last frame."""
    assert task.frame_indices == [0, 1, 3, 4]
    item = ShapesDataset(3, 5, 32)[1]
    frames = [Frame(0, 0.0, image) for image in render(item["scene"], 5, 32, 32)[task.frame_indices]]
    expected_pixels = worker.inputs(frames, "x")["pixel_values"]
    torch.testing.assert_close(task._pixels(item["video"][None]), expected_pixels, rtol=0, atol=1e-5)


def test_captioner_loss_is_the_cross_entropy_of_the_caption_alone(task):
    """The question and the padding after a shorter caption do not count."""
    clips = ShapesDataset(2, 5, 32)
    batch = {"video": torch.stack([clip["video"] for clip in clips]), "text": ["a red ring", "a red ring moving left"]}
    with torch.no_grad():
        loss = task(batch, 0, torch.Generator())
        losses = []
        for video, text in zip(batch["video"], batch["text"]):
            answer = task.tokenizer(f"{text}<|im_end|>", add_special_tokens=False).input_ids
            tokens = torch.tensor([task.question + answer])
            logits = task.vlm(pixel_values=task._pixels(video[None]), input_ids=tokens).logits[0]
            before = len(task.question) - 1
            log_probabilities = logits[before : before + len(answer)].log_softmax(-1)
            losses += [-log_probabilities[i, token] for i, token in enumerate(answer)]
    assert float(loss) == pytest.approx(float(torch.stack(losses).mean()), rel=1e-4)


def test_caption_vlm_loads_a_trained_captioner(model, tmp_path):
    scene = ShapesDataset(1, 5, 32)[0]["scene"]
    with VideoWriter(tmp_path / "a.mp4", 32, 32, 8) as video:
        for frame in render(scene, 5, 32, 32):
            video.write(frame)
    stderr = stage("caption_vlm", tmp_path / "a.mp4", "-o", tmp_path / "c.json", "-m", model, *SHOWN, "--max-new-tokens", 6)
    fields = artifacts.read(tmp_path / "c.json", ("caption",)).fields
    assert len(fields["frames"]) == 4 and fields["frames"][-1] == 4
    assert fields["tokens"]["in"] > 4 * 4 and "error" not in stderr


@pytest.mark.parametrize(
    "config, sentence",
    [
        ({}, "error: the architecture makes no model ("),
        ({"start_from": "nowhere"}, "error: the training cannot start from nowhere ("),
    ],
)
def test_an_impossible_captioner_training_is_one_sentence(config, sentence, tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**CONFIG, **config}))
    stderr = train("captioner", "--config", tmp_path / "config.yaml", "--output", tmp_path / "t", fails=2)
    lines = [line for line in stderr.splitlines() if not line.startswith("{")]
    assert len(lines) == 1 and lines[0].startswith(sentence), stderr
