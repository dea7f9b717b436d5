"""A LoRA is the sum that its paper says: W + scale * B A."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.commands import stage

RANK, WEIGHTS = 2, "diffusion_pytorch_model.safetensors"
LAYERS = ("blocks.0.attn1.to_q", "blocks.1.attn2.to_v", "blocks.1.ffn.net.2")


def generate(encoded, output, *arguments, fails=0):
    arguments = ("--steps", 4, "--seed", 1, "--dtype", "float32", *arguments)
    said = stage("generate", encoded, "-o", output, *arguments, fails=fails)
    return said if fails else load_file(output)["latents"]


@pytest.fixture(scope="module")
def factors(tiny_wan):
    """{layer: (B [out, r], A [r, in])} for a few layers of the tiny transformer."""
    weights = load_file(tiny_wan["5b"] / "transformer" / WEIGHTS)
    random = torch.Generator().manual_seed(0)
    shapes = {layer: weights[f"{layer}.weight"].shape for layer in LAYERS}
    return {
        layer: (torch.randn(rows, RANK, generator=random) / 4, torch.randn(RANK, columns, generator=random) / 4)
        for layer, (rows, columns) in shapes.items()
    }


@pytest.fixture(scope="module")
def lora(factors, tmp_path_factory):
    path = tmp_path_factory.mktemp("lora") / "lora.safetensors"
    pairs = {f"transformer.{layer}.lora_A.weight": a for layer, (_, a) in factors.items()}
    pairs |= {f"transformer.{layer}.lora_B.weight": b for layer, (b, _) in factors.items()}
    save_file({name: tensor.contiguous() for name, tensor in pairs.items()}, path)
    return path


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_lora_is_added_to_the_weights(scale, lora, factors, tiny_wan, encoded, tmp_path):
    folder = shutil.copytree(tiny_wan["5b"], tmp_path / "summed")
    weights = load_file(folder / "transformer" / WEIGHTS)
    for layer, (b, a) in factors.items():
        weights[f"{layer}.weight"] += scale * (b @ a)
    save_file(weights, folder / "transformer" / WEIGHTS, {"format": "pt"})
    summed = generate(encoded["5b"], tmp_path / "a.safetensors", "-m", folder)
    fused = generate(encoded["5b"], tmp_path / "b.safetensors", "--lora", lora, "--lora-scale", scale)
    plain = generate(encoded["5b"], tmp_path / "c.safetensors")
    assert (fused - plain).abs().max() > 1e-2
    torch.testing.assert_close(fused, summed, atol=1e-4, rtol=0)


def test_scale_of_zero_changes_nothing(lora, encoded, tmp_path):
    plain = generate(encoded["5b"], tmp_path / "a.safetensors")
    assert torch.equal(generate(encoded["5b"], tmp_path / "b.safetensors", "--lora", lora, "--lora-scale", 0), plain)


def test_each_expert_has_its_own(lora, encoded, tmp_path):
    made = [generate(encoded["14b"], tmp_path / "plain.safetensors")]
    for name in ("--lora", "--lora-2"):
        made.append(generate(encoded["14b"], tmp_path / f"{name}.safetensors", name, lora))
    assert not any(torch.equal(made[i], made[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    only_high = ("--lora-2", lora, "--boundary-ratio", 0)  # then the second expert has no step
    assert torch.equal(
        generate(encoded["14b"], tmp_path / "x.safetensors", *only_high),
        generate(encoded["14b"], tmp_path / "y.safetensors", "--boundary-ratio", 0),
    )


def test_trainers_names_are_understood(factors, lora, encoded, tmp_path):
    """The names of the original repository, as most trainers write them, with alpha equal to the rank."""
    theirs = {"attn1.to_q": "self_attn.q", "attn2.to_v": "cross_attn.v", "ffn.net.2": "ffn.2"}
    tensors = {}
    for layer, (b, a) in factors.items():
        _, block, rest = layer.split(".", 2)
        name = f"diffusion_model.blocks.{block}.{theirs[rest]}"
        tensors |= {f"{name}.lora_down.weight": a, f"{name}.lora_up.weight": b, f"{name}.alpha": torch.tensor(2.0)}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "theirs.safetensors")
    torch.testing.assert_close(
        generate(encoded["5b"], tmp_path / "a.safetensors", "--lora", tmp_path / "theirs.safetensors"),
        generate(encoded["5b"], tmp_path / "b.safetensors", "--lora", lora),
    )


def test_lora_of_another_model_is_refused(encoded, tmp_path):
    names = ("transformer.double_blocks.0.to_q.lora_A.weight", "transformer.double_blocks.0.to_q.lora_B.weight")
    save_file({names[0]: torch.ones(2, 24), names[1]: torch.ones(24, 2)}, tmp_path / "other.safetensors")
    said = generate(encoded["5b"], tmp_path / "a.safetensors", "--lora", tmp_path / "other.safetensors", fails=1)
    assert "has no weights for this transformer" in said and "double_blocks" in said


def test_lora_of_another_width_is_refused(encoded, tmp_path):
    names = ("transformer.blocks.0.attn1.to_q.lora_A.weight", "transformer.blocks.0.attn1.to_q.lora_B.weight")
    save_file({names[0]: torch.ones(2, 640), names[1]: torch.ones(640, 2)}, tmp_path / "wide.safetensors")
    said = generate(encoded["5b"], tmp_path / "a.safetensors", "--lora", tmp_path / "wide.safetensors", fails=1)
    assert "wide.safetensors does not fit" in said


def test_file_that_is_no_lora_is_refused(encoded, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    said = generate(encoded["5b"], tmp_path / "a.safetensors", "--lora", tmp_path / "x.safetensors", fails=1)
    assert "is not a LoRA of Wan" in said
