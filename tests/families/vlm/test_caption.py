import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, InternVLProcessor

from stages.families.vlm.caption import Answer, Caption
from stages.families.vlm.options import CaptionOptions
from stages.families.vlm.prompt import clean
from stages.media.read import Frame
from stages.runtime import artifacts
from stages.runtime.model import Model
from tests.commands import stage, stage_manifest


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """81 frames, 96x64."""
    path = tmp_path_factory.mktemp("video") / "in.mp4"
    source = ["-f", "lavfi", "-i", "testsrc=size=96x64:rate=16", "-frames:v", "81", "-pix_fmt", "yuv420p"]
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", *source, path], check=True)
    return path


@pytest.fixture
def worker(tiny_vlm):
    worker = Caption(Model("tiny", "vlm", path=str(tiny_vlm)), "cpu")
    worker.load(CaptionOptions.resolved({"dtype": "float32"}))
    return worker


def shown(images):
    """Frames of these images, two a second."""
    return [Frame(number, number / 2, image) for number, image in enumerate(images)]


def caption(video, output, *arguments, fails=0):
    stderr = stage("caption_vlm", video, "-o", output, *arguments, fails=fails)
    return stderr if fails else artifacts.read(output, ("caption",)).fields


def test_caption_records_frames_and_raw_text(video, tiny_vlm, tmp_path):
    fields = caption(video, tmp_path / "a.json", "-m", tiny_vlm, "--prefix", "continue video", "--max-new-tokens", 9)
    assert fields["frames"] == [5, 15, 25, 35, 45, 55, 65, 75]
    assert fields["prompt"] == f"continue video {clean(fields['raw'])}"
    assert fields["tokens"]["out"] == 9
    assert fields == caption(video, tmp_path / "b.json", "-m", tiny_vlm, "--prefix", "continue video", "--max-new-tokens", 9)


def test_caption_includes_the_last_frame_on_request(video, tiny_vlm, tmp_path):
    fields = caption(video, tmp_path / "a.json", "-m", tiny_vlm, "--include-last", "--max-new-tokens", 4)
    assert fields["frames"] == [5, 15, 25, 35, 45, 55, 65, 75, 80]


def test_caption_token_ids_are_those_of_the_video_processor(worker, tiny_vlm):
    frames = shown([np.zeros((64, 96, 3), np.uint8)] * 8)
    ids = worker.inputs(frames, "Describe <video>.")["input_ids"]
    tokenizer, length = AutoTokenizer.from_pretrained(tiny_vlm), worker.vlm.config.image_seq_length
    assert (ids == worker.vlm.config.image_token_id).sum() == 8 * length
    names = {"start_image_token": "<img>", "end_image_token": "</img>", "image_token": "<IMG_CONTEXT>"}
    processor = SimpleNamespace(**names, image_seq_length=length)
    video = InternVLProcessor.replace_video_token(processor, {"pixel_values_videos": [torch.zeros(8, 3, 4, 4)]}, 0)
    text = f"<|im_start|>user\n{video}\nDescribe <video>.<|im_end|>\n<|im_start|>assistant\n"
    assert ids[0].tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    "name, config, mean, std",
    [
        ("video_preprocessor_config.json", {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}, 0.1, 0.4),
        ("processor_config.json", {"video_processor": {"image_mean": [0.2] * 3, "image_std": [0.5] * 3}}, 0.2, 0.5),
        ("video_preprocessor_config.json", {"do_normalize": True}, 0.48145466, 0.26862954),
        ("video_preprocessor_config.json", None, 0.485, 0.229),
    ],
)
def test_caption_normalises_colours_like_the_video_processor(name, config, mean, std, tiny_vlm, tmp_path):
    folder = shutil.copytree(tiny_vlm, tmp_path / "model")
    (folder / "video_preprocessor_config.json").unlink()
    if config is not None:
        (folder / name).write_text(json.dumps(config))
    worker = Caption(Model("tiny", "vlm", path=str(folder)), "cpu")
    worker.load(CaptionOptions.resolved({"dtype": "float32"}))
    pixels = worker.inputs(shown([np.full((64, 96, 3), 51, np.uint8)]), "x")["pixel_values"]
    assert pixels.shape == (1, 3, 56, 56)
    assert pixels[0, 0].numpy() == pytest.approx((51 / 255 - mean) / std, abs=1e-5)


def test_a_given_prompt_needs_no_model_and_no_torch(video, tmp_path):
    arguments = [str(video), "-o", str(tmp_path / "a.json"), "--prompt", " a *bird*: 鸟 ", "--prefix", "continue"]
    code = f"""
import sys
from stages.caption_vlm import main
main({arguments!r}, standalone_mode=False)
assert "torch" not in sys.modules and "transformers" not in sys.modules
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert '"model_loads": 0' in process.stderr
    fields = artifacts.read(tmp_path / "a.json", ("caption",)).fields
    assert (fields["prompt"], fields["raw"], fields["frames"]) == ("a *bird*: 鸟", "", [])


@pytest.mark.parametrize("change", [{"model_type": "internvl_chat"}, {"auto_map": {"AutoModel": "modeling.X"}}])
def test_captioner_with_remote_code_is_refused_with_the_name_to_use(change, video, tiny_vlm, tmp_path):
    folder = shutil.copytree(tiny_vlm, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    assert "OpenGVLab/InternVL3_5-8B-HF" in caption(video, tmp_path / "a.json", "-m", folder, fails=1)


def test_missing_captioner_weights_are_named(video, tiny_vlm, tmp_path):
    folder = shutil.copytree(tiny_vlm, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    stderr = caption(video, tmp_path / "a.json", "-m", folder, fails=1)
    assert str(folder) in stderr and "copy it again" in stderr


def test_an_empty_caption_fails_the_item(video, tiny_vlm, tmp_path, monkeypatch):
    monkeypatch.setattr(Caption, "_generate", lambda self, each, options: [Answer(" \n**\n", (1, 1))])
    assert "is empty after cleaning" in caption(video, tmp_path / "a.json", "-m", tiny_vlm, fails=1)


# ------------------------------------------------------------------------------------------------------------- batches


@pytest.fixture
def batches(monkeypatch):
    """The numbers of clips that the model has described together."""
    counted, generate = [], Caption._generate

    def counting(self, each, options):
        counted.append(len(each))
        return generate(self, each, options)

    monkeypatch.setattr(Caption, "_generate", counting)
    return counted


def captions(videos, folder, model, batch_size):
    """The captions of videos, None for a failed one."""
    folder.mkdir()
    rows = [{"video": str(video), "output": str(folder / f"{number}.json")} for number, video in enumerate(videos)]
    options = {"model": str(model), "dtype": "float32", "max_new_tokens": 24, "caption_batch_size": batch_size}
    stage_manifest("caption_vlm", folder, [{**row, **options} for row in rows], "--mark-failed")
    made = [artifacts.read(folder / f"{number}.json", ("caption",)) for number in range(len(videos))]
    return [None if one.failure else one.fields for one in made]


@pytest.mark.parametrize("shipped", [False, True], ids=["random weights", "shapes-internvl"])
def test_a_batch_gives_the_captions_of_clips_one_by_one(shipped, clips, tiny_vlm, tmp_path, batches):
    model = Path("models/shapes-internvl").resolve() if shipped else tiny_vlm
    alone = captions(clips, tmp_path / "alone", model, 1)
    assert batches == [1] * 8
    batches.clear()
    assert captions(clips, tmp_path / "together", model, 8) == alone
    assert sorted(batches) == [1, 7]  # the image has other tokens, and nothing is padded
    if shipped:
        assert len({one["tokens"]["out"] for one in alone}) > 1  # texts of a batch end at different times


def test_a_damaged_clip_fails_alone_in_a_batch(clips, tiny_vlm, tmp_path, batches):
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(clips[1].read_bytes()[:600])
    found = captions([clips[0], damaged, clips[2]], tmp_path / "made", tiny_vlm, 8)
    assert found[1] is None and batches == [1, 1]
    assert [found[0], found[2]] == captions([clips[0], clips[2]], tmp_path / "alone", tiny_vlm, 1)
