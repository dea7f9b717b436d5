"""`convert wan` restores the diffusers repository of a folder in Wan's own layout, weight by weight."""

import json
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan, WanImageToVideoPipeline, WanPipeline, WanTransformer3DModel
from safetensors.torch import load_file, save_file
from transformers import UMT5Config, UMT5EncoderModel

from stages.families.longlive import options as longlive
from stages.families.wan import convert as wan
from stages.families.wan.options import FAMILY, detect
from stages.runtime.options import Published
from tests.commands import convert
from tests.tiny import wan_original

TEXT = {"vocab_size": 300, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
CHANNELS = {"5b": (48, 48), "14b": (36, 16), "14b-t2v": (16, 16), "": (16, 16)}
TWO = ["transformer", "transformer_2"]
EXPERTS = {"5b": ["transformer"], "14b": TWO, "14b-t2v": TWO, "": ["transformer"]}
BOUNDARY = {"14b": 0.9, "14b-t2v": 0.875}


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


@pytest.mark.parametrize("variant", EXPERTS)
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
    assert pipeline.config.boundary_ratio == BOUNDARY.get(variant)
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


# ---------------------------------------------------------------------------------------------------------- single files

DISTILLED = {"5b": ["transformer"], "14b": ["transformer", "transformer_2"]}


def other_transformers(variant):
    """Transformers of the same architecture with other random weights, as a distilled release has them."""
    torch.manual_seed(1)
    return {name: randomised(models(variant)[name]) for name in DISTILLED[variant]}


def randomised(model):
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


def in_wans_names(model):
    return wan_original.originals(model, wan_original.transformer_names(2))


def single_files(folder, transformers, prefix="", dtype=torch.bfloat16):
    """A safetensors file per transformer in Wan's own names. Returns the arguments of `convert` that name them."""
    arguments = []
    for name, model in transformers.items():
        weights = {f"{prefix}{key}": tensor.to(dtype) for key, tensor in in_wans_names(model).items()}
        save_file(weights, folder / f"{name}.safetensors")
        arguments += [f"--{name.replace('_', '-')}", folder / f"{name}.safetensors"]
    return arguments


def stored(folder, name):
    return load_file(folder / name / "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize("variant", ["5b", "14b"])
@pytest.mark.parametrize("layout", ["Wan's own", "diffusers'"])
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_single_file_in_wans_names_converts_to_the_same_weights(variant, layout, prefix, tmp_path, tiny_wan):
    networks, folder = original(tmp_path, variant, tiny_wan)
    if layout == "diffusers'":
        convert("wan", "--ckpt-dir", folder, "--output", tmp_path / "repository")
        folder = tmp_path / "repository"
    distilled = other_transformers(variant)
    files = single_files(tmp_path, distilled, prefix)
    convert("wan", "--ckpt-dir", folder, *files, "--output", tmp_path / "output")
    for name, model in distilled.items():
        weights, expected = stored(tmp_path / "output", name), model.bfloat16().state_dict()
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[key], expected[key]) and weights[key].dtype == torch.bfloat16 for key in expected)
    pipeline = (WanImageToVideoPipeline if variant == "14b" else WanPipeline).from_pretrained(tmp_path / "output")
    for name in ("text_encoder", "vae"):
        expected = networks[name].state_dict()
        assert all(
            torch.equal(w.to(expected[k].dtype), expected[k]) for k, w in getattr(pipeline, name).state_dict().items()
        )
    assert detect(tmp_path / "output") == variant


def test_one_expert_may_come_from_a_single_file(tmp_path, tiny_wan):
    networks, folder = original(tmp_path, "14b", tiny_wan)
    distilled = {"transformer_2": other_transformers("14b")["transformer_2"]}
    convert("wan", "--ckpt-dir", folder, *single_files(tmp_path, distilled), "--output", tmp_path / "output")
    for name, expected in (
        ("transformer", networks["transformer"]),
        ("transformer_2", distilled["transformer_2"].bfloat16()),
    ):
        weights = stored(tmp_path / "output", name)
        assert all(torch.equal(weights[key], tensor) for key, tensor in expected.state_dict().items())


@pytest.mark.parametrize(("stored_as", "ending"), [("float8_e4m3fn", "scale_weight"), ("int8", "weight_scale")])
def test_a_single_file_in_8_bits_is_multiplied_by_its_scales(stored_as, ending, tmp_path, tiny_wan):
    """ComfyUI's files have a number per weight, LightX2V's a number per row."""
    _, folder = original(tmp_path, "5b", tiny_wan)
    weights, expected = {}, {}
    for key, tensor in in_wans_names(other_transformers("5b")["transformer"]).items():
        weights[key] = expected[key] = tensor
        if key.startswith("blocks.") and tensor.ndim == 2:
            largest = tensor.abs().amax(1, keepdim=True) if stored_as == "int8" else tensor.abs().max()
            scale = largest / 100
            weights[key] = (tensor / scale).round().to(getattr(torch, stored_as))
            weights[key.replace(".weight", f".{ending}")] = scale
            expected[key] = weights[key].double() * scale.double()
    if ending == "scale_weight":
        weights["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    save_file(weights, tmp_path / "8.safetensors")
    arguments = ("--transformer", tmp_path / "8.safetensors", "--dtype", "float32", "--output", tmp_path / "output")
    convert("wan", "--ckpt-dir", folder, *arguments)
    converted, names = stored(tmp_path / "output", "transformer"), wan_original.transformer_names(2)
    for ours, tensor in converted.items():
        torch.testing.assert_close(tensor.double(), expected[names[ours]].double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gguf_file_converts_to_its_dequantisation(dtype, tmp_path, tiny_wan):
    """The weights are those of the reference of the package gguf, for each kind of its blocks; the embedding has 4 axes."""
    gguf = pytest.importorskip("gguf", reason="needs the optional package gguf")
    kinds = [gguf.GGMLQuantizationType[name] for name in ("Q8_0", "Q4_0", "Q5_1", "BF16", "F16", "F32")]
    _, folder = original(tmp_path, "5b", tiny_wan)
    writer, expected = gguf.GGUFWriter(tmp_path / "t.gguf", "wan"), {}
    number = 0
    for key, tensor in in_wans_names(other_transformers("5b")["transformer"]).items():
        values, shape = tensor.numpy(), tensor.shape
        values = values.reshape(-1, *shape[2:]) if values.ndim == 5 else values
        fits = values.ndim == 2 and shape[-1] % 32 == 0
        number += fits
        kind = kinds[number % len(kinds)] if fits else kinds[-1]
        data = gguf.quants.quantize(values, kind)
        writer.add_tensor(key, data, raw_dtype=kind)
        wanted = torch.from_numpy(gguf.quants.dequantize(data, kind)).reshape(shape)
        kept = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
        expected[key] = wanted.to(kept.get(kind.name, getattr(torch, dtype)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    arguments = ("--transformer", tmp_path / "t.gguf", "--dtype", dtype, "--output", tmp_path / "output")
    convert("wan", "--ckpt-dir", folder, *arguments)
    converted, names = stored(tmp_path / "output", "transformer"), wan_original.transformer_names(2)
    assert {expected[names[ours]].dtype for ours in converted} >= {torch.float32, torch.float16, torch.bfloat16}
    for ours, tensor in converted.items():
        assert tensor.dtype == expected[names[ours]].dtype and torch.equal(tensor, expected[names[ours]]), ours


def test_convert_names_a_damaged_or_absent_gguf(tmp_path, tiny_wan, monkeypatch):
    _, folder = original(tmp_path, "5b", tiny_wan)
    path = tmp_path / "t.gguf"
    path.write_bytes(b"GGUF" + bytes(40))
    arguments = ("wan", "--ckpt-dir", folder, "--transformer", path, "--output", tmp_path / "output")
    monkeypatch.setitem(sys.modules, "gguf", None)
    (line,) = convert(*arguments, fails=1).splitlines()
    assert line == f"error: {path} needs gguf, which is not installed here: install it: pip install 'kinemake[gguf]'"
    monkeypatch.undo()
    pytest.importorskip("gguf", reason="needs the optional package gguf")
    (line,) = convert(*arguments, fails=2).splitlines()
    assert line.startswith(f"error: {path} cannot be read as GGUF")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("head.head.bias"), "1 missing, the first: proj_out.bias"),
        (lambda weights: weights.update(x=torch.ones(2)), "1 unexpected, the first: x"),
        (lambda weights: weights.update({"head.head.bias": torch.ones(7)}), "proj_out.bias is [7]"),
        (
            lambda weights: weights.update({"model.diffusion_model.head.head.bias": torch.ones(192)}),
            "has the weight proj_out.bias twice",
        ),
        (lambda weights: weights.update({"head.head.bias": torch.ones(192, dtype=torch.int8)}), "of int8 without its scale"),
        (
            lambda weights: weights.update(
                {"head.head.bias": torch.ones(192, dtype=torch.int8), "head.head.bias.weight_scale": torch.ones(5)}
            ),
            "head.head.bias",
        ),
        (
            lambda weights: weights.update({"head.head.bias": torch.ones(96, dtype=torch.uint8)}),
            "other than weights by name",
        ),
    ],
)
def test_a_single_file_of_another_architecture_is_refused(change, message, tmp_path, tiny_wan):
    _, folder = original(tmp_path, "5b", tiny_wan)
    weights = in_wans_names(models("5b")["transformer"])
    change(weights)
    path, output = tmp_path / "t.safetensors", tmp_path / "output"
    save_file(weights, path)
    (line,) = convert("wan", "--ckpt-dir", folder, "--transformer", path, "--output", output, fails=2).splitlines()
    assert line.startswith("error: ") and str(path) in line and message in line and not output.exists()


def test_files_for_transformers_that_a_model_does_not_have_are_refused(tmp_path, tiny_wan):
    _, folder = original(tmp_path, "5b", tiny_wan)
    (path := tmp_path / "t.safetensors").write_bytes(b"")
    for place in (folder, tiny_wan["5b"]):
        arguments = ("wan", "--ckpt-dir", place, "--transformer-2", path, "--output", tmp_path / "output")
        assert f"has no transformer_2, and {path} is given for it" in convert(*arguments, fails=2)


def test_fetch_downloads_only_what_a_conversion_with_single_files_reads():
    reads = FAMILY.conversion.reads

    def read(name, **values):
        return any(fnmatch(name, pattern) for pattern in reads(values)["ckpt_dir"])

    both = {"transformer": "a.safetensors", "transformer_2": "b.safetensors"}
    for weights in ("high_noise_model/x.safetensors", "transformer/x.safetensors"):
        assert not read(weights, **both) and not read(weights, transformer="a.safetensors")
        assert read(weights.replace("high", "low").replace("transformer/", "transformer_2/"), transformer="a.safetensors")
    assert read("vae/x.safetensors", **both) and read("high_noise_model/config.json", **both) and read("m.pth", **both)
