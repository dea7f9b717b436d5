"""A dataset class of one's own, and a further condition from the training to the clip."""

import json

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from stages.families.text2video.unet import UNet3D
from stages.runtime import artifacts
from tests.commands import stage, train
from tests.conftest import TINY_TEXT2VIDEO
from tests.families.shared.training.test_data import COLORS, write_clip

CONDITIONS = {"a": [1.0, 0.0, -2.5], "b": [0.0, 3.0, 1.0]}
QUICK = ("--steps", 1, "--dtype", "float32", "--seed", 5, "--guidance-scale", 3)
OWN = """
import torch
from stages.families.shared.training.data import TextVideoDataset

class Own(TextVideoDataset):
    def augment_text(self, text):
        return "never " + text

    def augment_video(self, frames):
        return frames[::-1]

class Number(Own):
    def __getitem__(self, key):
        return {**super().__getitem__(key), "condition": [0.5]}

class Other:
    pass
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with data, own classes and options for the example's class."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/conditions").mkdir(parents=True)
    for name, numbers in CONDITIONS.items():
        write_clip(tmp_path / "data", name, COLORS, f"a {name} clip")
        (tmp_path / f"data/conditions/{name}.json").write_text(json.dumps(numbers))
    (tmp_path / "own_clips.py").write_text(OWN)
    return tmp_path


def write_config(folder, dataset="examples.conditioned:ConditionedDataset", condition_dim=3, **given):
    unet = {**TINY_TEXT2VIDEO["architecture"]["unet"], "condition_dim": condition_dim}
    architecture = {**TINY_TEXT2VIDEO["architecture"], "unet": unet}
    options = {**TINY_TEXT2VIDEO, "data": "data", "dataset": dataset, "architecture": architecture, **given}
    (folder / "config.yaml").write_text(yaml.safe_dump(options))
    return "--config", folder / "config.yaml", "--output", folder / "t"


@pytest.fixture
def model(folder):
    train("text2video", *write_config(folder))
    (folder / "config.yaml").unlink()
    return folder / "t/model"


def encode(model, condition, *arguments, fails=0):
    said = ("--condition", condition) if condition else ()
    prompt = ("--prompt", "a clip", "--dtype", "float32")
    return stage("encode", "-m", model, *prompt, *said, "-o", "e.safetensors", *arguments, fails=fails)


def test_condition_reaches_the_network_from_the_training_to_the_clip(model):
    """One step is the network's own clip for the condition, with guidance by the text alone."""
    numbers = [0.25, -1.5, 2.0]
    (model.parents[1] / "three.json").write_text(json.dumps(numbers))
    encode(model, "three.json")
    tensors = artifacts.read(model.parents[1] / "e.safetensors", ("encoded",)).tensors()
    assert torch.equal(tensors["condition"], torch.tensor([numbers]))
    stage("generate", "e.safetensors", "-o", "l.safetensors", *QUICK)
    unet = UNet3D.from_pretrained(model / "unet").eval()
    assert unet.condition_embedding.weight.shape[1] == 3
    noise = torch.randn(1, 3, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        text, negative = (
            unet(noise, torch.tensor([49]), tensors[f"{name}prompt_embeds"], tensors["condition"])
            for name in ("", "negative_")
        )
    expected = (negative + 3.0 * (text - negative)).clamp(-1, 1)
    torch.testing.assert_close(load_file("l.safetensors")["latents"], expected, rtol=0, atol=1e-5)
    stage("decode", "l.safetensors", "-o", "c.json")


def test_training_learns_from_the_condition(model):
    """Its embedding of the condition has moved, so the loss has depended on it."""
    state = load_file(model.parent / "last.safetensors")
    moments = state["exp_avg.unet.condition_embedding.weight"]
    assert moments.shape[1] == 3 and moments.any(dim=0).all()


def test_condition_may_be_of_any_of_three_files_and_its_content_counts(model, folder):
    numbers = [0.25, -1.5, 2.0]
    (folder / "c.json").write_text(json.dumps(numbers))
    np.save(folder / "c.npy", np.array(numbers, np.float64))
    save_file({"anything": torch.tensor(numbers)}, folder / "c.safetensors")
    keys = set()
    for name in ("c.json", "c.npy", "c.safetensors"):
        encode(model, name, "--store", "store")
        artifact = artifacts.read(folder / "e.safetensors", ("encoded",))
        assert torch.equal(artifact.tensors()["condition"], torch.tensor([numbers]))
        keys.add(artifact.provenance[-1]["key"])
    (folder / "c.json").write_text("[1, 2, 3]")
    assert '"status": "made"' in encode(model, "c.json", "--store", "store")
    keys.add(artifacts.read(folder / "e.safetensors", ("encoded",)).provenance[-1]["key"])
    assert len(keys) == 4


@pytest.mark.parametrize(
    "content, sentence",
    [
        ("[1, 2]", "error: the condition c.json has 2 numbers: model "),
        (
            "[[1, 2, 3]]",
            "error: the condition c.json cannot be read (it is no JSON list of numbers): give a JSON list of num",
        ),
        ('[1, 2, "3"]', "error: the condition c.json cannot be read (it is no JSON list of numbers)"),
        ("[1, 2, NaN]", "error: the condition c.json holds a number that is not finite"),
        ("[1, 2", "error: the condition c.json cannot be read ("),
        (None, "error: c.json does not exist"),
    ],
)
def test_condition_that_does_not_fit_is_one_sentence(content, sentence, model, folder):
    if content:
        (folder / "c.json").write_text(content)
    assert sentence in (said := encode(model, "c.json", fails=1)) and '"load"' not in said


def test_condition_is_needed_where_the_model_takes_one_and_refused_elsewhere(model, folder, tiny_text2video):
    said = encode(model, "", fails=1)
    assert f"no condition is given (model {model}): add option condition: a file with 3 numbers" in said
    (folder / "c.json").write_text("[1, 2, 3]")
    said = encode(tiny_text2video / "model", "c.json", fails=1)
    assert "leave it out: the model takes no further condition" in said
    encode(tiny_text2video / "model", "")
    said = stage("generate", "e.safetensors", "-m", model, "-o", "l.safetensors", *QUICK, fails=1)
    assert f"has 0 numbers: model {model} takes 3: make it again with encode" in said


@pytest.mark.parametrize(
    "dataset, condition_dim, sentence",
    [
        ("own_clips", 3, "error: dataset own_clips cannot be imported ("),
        ("no_module:Own", 3, "error: dataset no_module:Own cannot be imported (ModuleNotFoundError: No module named"),
        ("own_clips:Own2", 3, "error: dataset own_clips:Own2 cannot be imported (AttributeError: "),
        ("own_clips:Other", 3, "error: dataset own_clips:Other is no subclass of TextVideoDataset: derive it from stages."),
        (
            "own_clips:Own",
            3,
            "error: condition_dim is 3 and the clips hold no condition: give --dataset, a class whose item",
        ),
        ("", 3, "error: condition_dim is 3 and the clips hold no condition: give --dataset, a class whose items hold one"),
        ("own_clips:Number", None, "error: the clips hold a condition and the U-Net takes none: write condition_dim under"),
        ("own_clips:Number", 3, "error: the conditions of the clips have the shape (1,): condition_dim is 3: make them equ"),
    ],
)
def test_dataset_that_does_not_fit_is_one_sentence_at_the_start(dataset, condition_dim, sentence, folder):
    said = train("text2video", *write_config(folder, dataset, condition_dim), fails=2)
    assert sentence in said and not (folder / "t").exists()


def test_file_of_the_example_without_a_condition_is_named(folder):
    (folder / "data/conditions/b.json").unlink()
    said = train("text2video", *write_config(folder), fails=2)
    assert (
        "error: the condition data/conditions/b.json cannot be read (data/conditions/b.json does not exist): give a J"
        in said
    )


def test_own_class_augments_what_is_trained_on(folder, monkeypatch):
    """Seen by the network: the clip in the reverse order, with its own text."""
    seen = []
    monkeypatch.setattr(
        "stages.families.text2video.train.embed",
        lambda tokenizer, encoder, texts: seen.append(texts) or torch.zeros(len(texts), 16, 16),
    )
    train("text2video", *write_config(folder, "own_clips:Own", None, text_dropout=0.0, max_steps=1, validate_every=9))
    assert all(text.startswith("never a ") for text in seen[0])


def test_training_does_not_go_on_with_another_dataset_class(folder):
    command = write_config(folder, "own_clips:Own", None)
    train("text2video", *command)
    said = train("text2video", *command, "--dataset", "", "--max-steps", 6, fails=2)
    assert "dataset is '' and the training in " in said
