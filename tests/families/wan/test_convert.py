"""`convert wan` restores the diffusers repository of a folder in Wan's own layout, weight by weight."""

import json
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan, WanImageToVideoPipeline, WanPipeline, WanTransformer3DModel
from transformers import UMT5Config, UMT5EncoderModel

from stages.families.longlive import options as longlive
from stages.families.wan import convert as wan
from stages.families.wan.options import FAMILY, detect
from stages.runtime.options import Published
from tests.commands import convert
from tests.tiny import wan_original

TEXT = {"vocab_size": 300, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
CHANNELS = {"5b": (48, 48), "14b": (36, 16), "": (16, 16)}
EXPERTS = {"5b": ["transformer"], "14b": ["transformer", "transformer_2"], "": ["transformer"]}


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """The published architecture with small widths."""
    for name, value in TEXT.items():
        monkeypatch.setitem(wan.TEXT_ENCODER, name, value)
    monkeypatch.setitem(wan.WAN_2_1_VAE, "base_dim", 4)
    monkeypatch.setitem(wan.WAN_2_2_VAE, "base_dim", 4)
    monkeypatch.setitem(wan.WAN_2_2_VAE, "decoder_base_dim", 8)


def models(variant):
    """Models with random weights, all different."""
    torch.manual_seed(0)
    channels_in, channels_out = CHANNELS[variant]
    networks = {
        name: WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=channels_in,
            out_channels=channels_out,
            text_dim=TEXT["d_model"],
            freq_dim=32,
            ffn_dim=64,
            num_layers=2,
            eps=1e-5,
        )
        for name in EXPERTS[variant]
    }
    networks["text_encoder"] = UMT5EncoderModel(UMT5Config(**wan.TEXT_ENCODER)).bfloat16()
    networks["vae"] = AutoencoderKLWan(**(wan.WAN_2_2_VAE if variant == "5b" else wan.WAN_2_1_VAE))
    for model in networks.values():
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter)
    return networks


def original(folder, variant, tiny_wan):
    networks = models(variant)
    return networks, wan_original.write(folder / "original", variant, networks, tiny_wan["5b"] / "tokenizer")


@pytest.mark.parametrize("variant", ["5b", "14b", ""])
def test_convert_wan_keeps_every_weight(tmp_path, tiny_wan, variant):
    networks, folder = original(tmp_path, variant, tiny_wan)
    convert("wan", "--ckpt-dir", folder, "--output", tmp_path / "output")
    pipeline = (WanImageToVideoPipeline if variant == "14b" else WanPipeline).from_pretrained(tmp_path / "output")
    for name, model in networks.items():
        weights, expected = getattr(pipeline, name).state_dict(), model.state_dict()
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[key].to(expected[key].dtype), expected[key]) for key in expected), name
        config = json.loads((tmp_path / "output" / name / "config.json").read_text())
        assert config.get("dtype") == ("bfloat16" if name == "text_encoder" else None)
    assert pipeline.transformer.config.eps == 1e-5
    assert pipeline.scheduler.config.flow_shift == (5.0 if variant == "5b" else 3.0)
    assert pipeline.config.boundary_ratio == (0.9 if variant == "14b" else None)
    assert pipeline.tokenizer("A cat plays.").input_ids[-1] == pipeline.tokenizer.eos_token_id
    assert (detect(tmp_path / "output"), longlive.detect(tmp_path / "output")) == (variant or None, None if variant else "")


@pytest.mark.parametrize("variant", ["5b", "14b"])
def test_the_suggested_command_converts_a_folder_with_the_files_that_fetch_downloads(variant, tmp_path, tiny_wan):
    _, folder = original(tmp_path, variant, tiny_wan)
    (folder / "assets").mkdir()
    (folder / "assets/comp_effic.png").write_text("not read")
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    patterns = FAMILY.conversion.reads({})["ckpt_dir"]
    for name in names:
        if not any(fnmatch(name, pattern) for pattern in patterns):
            (folder / name).unlink()
    assert not (folder / "assets/comp_effic.png").exists()
    remedy = FAMILY.recognise(Published(str(folder), names))
    command, output = remedy.removeprefix("run ").removesuffix(", and use that output as the model").split(" --output ")
    convert(*command.split()[1:], "--output", output)
    assert detect(Path(output)) == variant


def test_convert_wan_takes_a_tokenizer_config_with_the_slow_class(tmp_path, tiny_wan):
    """google/umt5-xxl names the slow tokenizer class. Its tokenizer.json is used."""
    _, folder = original(tmp_path, "5b", tiny_wan)
    path = folder / "google/umt5-xxl/tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tokenizer_class": "T5Tokenizer"}))
    convert("wan", "--ckpt-dir", folder, "--output", tmp_path / "output")
    before, after = (WanPipeline.from_pretrained(path).tokenizer for path in (tiny_wan["5b"], tmp_path / "output"))
    assert before("A cat, 3 dogs.").input_ids == after("A cat, 3 dogs.").input_ids


def refusal(tmp_path, folder, *parts):
    output = tmp_path / "output"
    (line,) = convert("wan", "--ckpt-dir", folder, "--output", output, fails=2).splitlines()
    assert line.startswith("error: ") and all(part in line for part in parts), line
    assert not output.exists() and not list(tmp_path.glob(".output*"))


def test_convert_wan_names_missing_files(tmp_path, tiny_wan):
    _, folder = original(tmp_path, "14b", tiny_wan)
    for name in ("Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth", "google/umt5-xxl", "high_noise_model"):
        hidden = (folder / name).rename(tmp_path / "hidden")
        refusal(tmp_path, folder, f"has no {name}" if name != "high_noise_model" else "one transformer of type 'i2v'")
        hidden.rename(folder / name)
    (folder / "low_noise_model/diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    refusal(tmp_path, folder, "low_noise_model", "missing, the first: ")


def test_convert_wan_names_damaged_files(tmp_path, tiny_wan):
    _, folder = original(tmp_path, "5b", tiny_wan)
    for name in ("Wan2.2_VAE.pth", "diffusion_pytorch_model-00001-of-00002.safetensors"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])
        refusal(tmp_path, folder, f"{folder / name} cannot be read")
        (folder / name).write_bytes(content)
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_heads": 0}))
    refusal(tmp_path, folder, str(config))


def test_convert_wan_checks_the_text_encoder_and_the_vae(tmp_path, tiny_wan):
    _, folder = original(tmp_path, "5b", tiny_wan)
    for name, key in (
        ("models_t5_umt5-xxl-enc-bf16.pth", "blocks.1.ffn.gate.0.weight"),
        ("Wan2.2_VAE.pth", "decoder.upsamples.2.upsamples.0.shortcut.weight"),
    ):
        weights = torch.load(folder / name, weights_only=True)
        torch.save({other: tensor for other, tensor in weights.items() if other != key}, folder / name)
        refusal(tmp_path, folder, name, "1 missing, the first: ")
        torch.save(weights, folder / name)


def test_convert_wan_refuses_folders_of_other_models(tmp_path, tiny_wan):
    refusal(tmp_path, tiny_wan["5b"], "has no config.json", "Wan2.2-TI2V-5B")
    _, folder = original(tmp_path, "5b", tiny_wan)
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_type": "vace"}))
    refusal(tmp_path, folder, "'vace'")
