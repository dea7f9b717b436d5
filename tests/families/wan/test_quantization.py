"""Weights in 8 bits by torchao: a scale per row, LoRA files merged before, one sentence where the package is absent."""

import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file

from stages.families.shared.transformer import prepare_transformer
from stages.runtime.resident import Resident
from tests.commands import stage

KINDS = ["int8_weight_only", "float8_weight_only"]
WEIGHTS = "diffusion_pytorch_model.safetensors"
CPU = torch.device("cpu")


@pytest.fixture
def torchao():
    return pytest.importorskip("torchao", reason="needs the optional package torchao")


def generate(encoded, output, *arguments, fails=0):
    arguments = ("--steps", 2, "--seed", 1, "--dtype", "float32", *arguments)
    stderr = stage("generate", encoded, "-o", output, *arguments, fails=fails)
    return stderr if fails else load_file(output)["latents"]


def prepared(folder, kind):
    options = SimpleNamespace(
        attention_backend="native",
        layerwise_casting="none",
        quantization=kind,
        gpus=1,
        offload="none",
        offload_blocks=1,
        offload_stream=None,
    )
    transformer = WanTransformer3DModel.from_pretrained(folder, subfolder="transformer")
    return prepare_transformer(transformer, options, torch.float32, CPU)


@pytest.mark.parametrize("kind", KINDS)
def test_the_linear_layers_of_the_blocks_are_rounded_to_8_bits_with_a_scale_per_row(kind, tiny_wan, torchao):
    before = WanTransformer3DModel.from_pretrained(tiny_wan["5b"], subfolder="transformer").state_dict()
    linear = 0
    for name, weight in prepared(tiny_wan["5b"], kind).state_dict().items():
        if not name.startswith("blocks.") or before[name].ndim != 2:
            assert torch.equal(weight, before[name]), name
            continue
        linear += 1
        exact, error = before[name].double(), (weight.dequantize().double() - before[name].double()).abs()
        largest = exact.abs().amax(1, keepdim=True)
        if kind == "int8_weight_only":  # half a step of 255
            assert (error <= largest / 127 * 0.51).all()
        else:  # three bits of mantissa; 448 is the largest number, 2^-9 the smallest
            assert (error <= torch.maximum(exact.abs() / 16, largest / 448 / 2**9) * 1.01).all()
        assert (error > 0).any()
    assert linear == 20  # ten in each of two blocks


@pytest.mark.parametrize("kind", KINDS)
def test_a_lora_is_merged_before_weights_are_quantised(kind, tiny_wan, encoded, tmp_path, torchao):
    layer, random = "blocks.0.attn1.to_q", torch.Generator().manual_seed(0)
    b, a = torch.randn(24, 3, generator=random) / 4, torch.randn(3, 24, generator=random) / 4
    lora = tmp_path / "lora.safetensors"
    save_file({f"transformer.{layer}.lora_A.weight": a, f"transformer.{layer}.lora_B.weight": b}, lora)
    folder = shutil.copytree(tiny_wan["5b"], tmp_path / "summed")
    weights = load_file(folder / "transformer" / WEIGHTS)
    weights[f"{layer}.weight"] += b @ a
    save_file(weights, folder / "transformer" / WEIGHTS, {"format": "pt"})
    kept = ("--quantization", kind)
    summed = generate(encoded["5b"], tmp_path / "a.safetensors", "-m", folder, *kept)
    merged = generate(encoded["5b"], tmp_path / "b.safetensors", "--lora", lora, *kept)
    plain = generate(encoded["5b"], tmp_path / "c.safetensors", "--lora", lora)
    assert torch.equal(merged, summed) and 0 < (merged - plain).abs().max() < 0.5


def test_a_fused_job_does_not_move_quantised_weights(tiny_wan, torchao):
    """The parts of such a tensor stay where they are when its data is replaced, so it is dropped instead."""
    assert Resident.of(prepared(tiny_wan["5b"], "int8_weight_only")).device is None
    assert Resident.of(prepared(tiny_wan["5b"], "none")).device == CPU


@pytest.mark.parametrize("kind", KINDS)
def test_quantisation_without_torchao_is_refused_in_one_sentence(kind, encoded, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    message = generate(encoded["5b"], tmp_path / "a.safetensors", "--quantization", kind, fails=1)
    assert f"error: quantization {kind} needs torchao, which cannot be used here" in message
    assert "pip install 'kinemake[torchao]'" in message and "Traceback" not in message


@pytest.mark.parametrize(("option", "value", "fitting"), [("layerwise-casting", "float8_e4m3fn", "none"), ("gpus", 2, 1)])
def test_quantisation_beside_what_excludes_it_is_refused(option, value, fitting, encoded, tmp_path):
    made = ("--quantization", "int8_weight_only", f"--{option}", value)
    message = generate(encoded["5b"], tmp_path / "a.safetensors", *made, fails=2)
    name = option.replace("-", "_")
    assert f"quantization is int8_weight_only and {name} is {value}, which do not go together" in message
