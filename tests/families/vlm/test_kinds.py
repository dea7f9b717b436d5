"""Captioners of each kind: ids and pixels of the library's own processor, batches, and what is refused."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoImageProcessor, AutoTokenizer
from transformers.models.smolvlm import processing_smolvlm

from stages.families.vlm.caption import Caption
from stages.families.vlm.options import CaptionOptions
from stages.families.vlm.traits import TRAITS
from stages.media.read import Frame
from stages.runtime.model import Model
from tests.families.vlm.test_caption import caption, captions
from tests.tiny import captioners

PROCESSORS = {
    "qwen3_vl": "Qwen3VLProcessor",
    "qwen2_5_vl": "Qwen2_5_VLProcessor",
    "smolvlm": "SmolVLMProcessor",
    "idefics3": "Idefics3Processor",
    "gemma3": "Gemma3Processor",
}
WITH_VIDEO = ("qwen3_vl", "qwen2_5_vl", "smolvlm")  # processors that have a video processor too
INSTRUCTION = "Describe this video in detail."


@pytest.fixture(scope="module", params=captioners.KINDS)
def folder(request, tmp_path_factory):
    return captioners.make(tmp_path_factory.mktemp("captioner") / request.param, request.param)


def kind_of(folder):
    return json.loads((folder / "config.json").read_text())["model_type"]


def loaded(folder, **options):
    worker = Caption(Model("tiny", "vlm", path=str(folder)), "cpu")
    worker.load(CaptionOptions.resolved({"dtype": "float32", **options}))
    return worker


def library_processor(folder, monkeypatch):
    """The library's processor. Without torchvision it has no video processor, whose place stays empty."""
    kind = kind_of(folder)
    base = getattr(transformers, PROCESSORS[kind])
    processor = type(base.__name__, (base,), {"check_argument_for_proper_class": lambda self, name, part: None})
    monkeypatch.setattr(processing_smolvlm, "num2words", str)  # has no part in images
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    parts = {name: settings[name] for name in ("image_seq_len", "image_seq_length") if name in settings}
    parts |= {"image_processor": AutoImageProcessor.from_pretrained(folder, backend="pil")}
    parts |= {"tokenizer": AutoTokenizer.from_pretrained(folder)}
    return processor(**parts, **({"video_processor": None} if kind in WITH_VIDEO else {}))


def frames_of(size, count=3):
    """Frames of noise, one every one and a half seconds."""
    rng = np.random.default_rng(7)
    return [Frame(number, 1.5 * number, rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for number in range(count)]


@pytest.mark.parametrize("size", [(64, 96), (96, 64), (50, 130)])
def test_inputs_of_a_captioner_are_those_of_the_library(folder, size, monkeypatch):
    frames, traits = frames_of(size), TRAITS[kind_of(folder)]
    labels = [traits.label(number, frame.time) for number, frame in enumerate(frames, 1)]
    content = [part for label in labels for part in ({"type": "text", "text": label}, {"type": "image"})]
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": INSTRUCTION}]}]
    text = AutoTokenizer.from_pretrained(folder).apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    processor, settings = library_processor(folder, monkeypatch), {}
    if "do_image_splitting" in traits.settings:  # a frame is one image
        settings = {"do_image_splitting": False}
    expected = processor(text=text, images=[frame.rgb for frame in frames], return_tensors="pt", **settings)
    found = loaded(folder).inputs(frames, INSTRUCTION)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name].to(value.dtype), rtol=0, atol=0, msg=name)


def test_the_network_takes_the_inputs_of_the_library(folder, monkeypatch):
    """The images count: other frames give other logits."""
    worker = loaded(folder)
    with torch.no_grad():
        one, other = (
            worker.vlm(**worker.inputs(frames, INSTRUCTION)).logits[0, -1]
            for frames in (
                frames_of((64, 96)),
                [Frame(number, 1.5 * number, np.zeros((64, 96, 3), np.uint8)) for number in range(3)],
            )
        )
    assert torch.isfinite(one).all() and not torch.allclose(one, other, atol=1e-3)


def test_eight_clips_together_have_the_captions_of_one_by_one(folder, clips, tmp_path):
    alone = captions(clips, tmp_path / "alone", folder, 1)
    assert captions(clips, tmp_path / "together", folder, 8) == alone
    assert len({one["raw"] for one in alone}) > 1


# ------------------------------------------------------------------------------------------------------- chat templates


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return captioners.make(tmp_path_factory.mktemp("captioner") / "qwen3_vl", "qwen3_vl")


def test_a_chat_template_of_the_processor_is_read(qwen, tmp_path):
    copy = shutil.copytree(qwen, tmp_path / "model")
    template = (copy / "chat_template.jinja").read_text()
    (copy / "chat_template.jinja").unlink()
    (copy / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    expected, found = (loaded(folder).inputs(frames_of((64, 96)), INSTRUCTION)["input_ids"] for folder in (qwen, copy))
    assert torch.equal(found, expected)


def test_a_chat_template_of_the_user_replaces_the_model_s(qwen, clips, tmp_path):
    path = tmp_path / "own.jinja"
    path.write_text((qwen / "chat_template.jinja").read_text().replace("assistant", "narrator"))
    worker = loaded(qwen, chat_template=str(path))
    text = worker.tokenizer.decode(worker.inputs(frames_of((64, 96)), INSTRUCTION)["input_ids"][0])
    assert text.endswith("narrator\n")
    assert caption(clips[0], tmp_path / "a.json", "-m", qwen, "--chat-template", path, "--max-new-tokens", 4)["prompt"]


# ------------------------------------------------------------------------------------------------------- what is refused


def test_a_captioner_of_another_kind_is_refused_with_the_kinds_on_offer(clips, tmp_path):
    folder = tmp_path / "llava"
    folder.mkdir()
    architectures = ["LlavaForConditionalGeneration"]
    config = {"model_type": "llava", "architectures": architectures, "vision_config": {}, "text_config": {}}
    (folder / "config.json").write_text(json.dumps(config))
    stderr = caption(clips[0], tmp_path / "a.json", "-m", folder, fails=1)
    assert stderr.startswith("error: ") and stderr.count("\n") == 1
    for kind, traits in TRAITS.items():
        assert f"{traits.title} ({kind})" in stderr


def test_an_instruction_with_a_visual_token_is_refused(qwen, clips, tmp_path):
    stderr = caption(clips[0], tmp_path / "a.json", "-m", qwen, "--instruction", "What is <|image_pad|>?", fails=1)
    assert "leave <|image_pad|> out of it" in stderr
