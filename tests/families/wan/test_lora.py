"""A LoRA changes weights as in its paper: W + scale * B A."""

import json
import re
import shutil

import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.loaders import WanLoraLoaderMixin
from safetensors.torch import load_file, save_file

from stages.families.shared.wan.lora import Lora, merge
from stages.runtime.errors import ItemError
from tests.commands import stage
from tests.tiny.wan_original import transformer_names

RANK, WEIGHTS = 2, "diffusion_pytorch_model.safetensors"
LAYERS = ("blocks.0.attn1.to_q", "blocks.1.attn2.to_v", "blocks.1.ffn.net.2")


def generate(encoded, output, *arguments, fails=0):
    arguments = ("--steps", 4, "--seed", 1, "--dtype", "float32", *arguments)
    stderr = stage("generate", encoded, "-o", output, *arguments, fails=fails)
    return stderr if fails else load_file(output)["latents"]


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
def test_lora_is_added_to_the_transformer_weights(scale, lora, factors, tiny_wan, encoded, tmp_path):
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


def test_lora_scale_of_zero_changes_nothing(lora, encoded, tmp_path):
    plain = generate(encoded["5b"], tmp_path / "a.safetensors")
    assert torch.equal(generate(encoded["5b"], tmp_path / "b.safetensors", "--lora", lora, "--lora-scale", 0), plain)


def test_each_expert_has_its_own_lora(lora, encoded, tmp_path):
    results = [generate(encoded["14b"], tmp_path / "plain.safetensors")]
    for name in ("--lora", "--lora-2"):
        results.append(generate(encoded["14b"], tmp_path / f"{name}.safetensors", name, lora))
    assert not any(torch.equal(results[i], results[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    only_high = ("--lora-2", lora, "--boundary-ratio", 0)  # so that the second expert has no step
    assert torch.equal(
        generate(encoded["14b"], tmp_path / "x.safetensors", *only_high),
        generate(encoded["14b"], tmp_path / "y.safetensors", "--boundary-ratio", 0),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_merge_has_the_same_bits_on_any_number_of_threads(dtype, tmp_path):
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(1536, 1280, generator=random).to(dtype)
    b, a = torch.randn(1536, 64, generator=random), torch.randn(64, 1280, generator=random)
    save_file({"proj.lora_B.weight": b, "proj.lora_A.weight": a}, tmp_path / "lora.safetensors")
    merged = []
    for threads in (1, 2, 4):
        network = torch.nn.ModuleDict({"proj": torch.nn.Linear(1280, 1536, bias=False)})
        network["proj"].weight = torch.nn.Parameter(weight.clone())
        torch.set_num_threads(threads)
        try:
            merge(network, [Lora(tmp_path / "lora.safetensors", 0.7)])
        finally:
            torch.set_num_threads(1)
        merged.append(network["proj"].weight)
    assert torch.equal(merged[0], merged[1]) and torch.equal(merged[0], merged[2])
    torch.testing.assert_close(merged[0], (weight.double() + 0.7 * b.double() @ a.double()).to(dtype), atol=1e-4, rtol=1e-2)


def test_a_lora_is_merged_before_weights_are_cast_to_8_bits(lora, factors, tiny_wan, encoded, tmp_path):
    cast = ("--layerwise-casting", "float8_e4m3fn")
    folder = shutil.copytree(tiny_wan["5b"], tmp_path / "summed")
    weights = load_file(folder / "transformer" / WEIGHTS)
    for layer, (b, a) in factors.items():
        weights[f"{layer}.weight"] += b @ a
    save_file(weights, folder / "transformer" / WEIGHTS, {"format": "pt"})
    summed = generate(encoded["5b"], tmp_path / "a.safetensors", "-m", folder, *cast)
    assert torch.equal(generate(encoded["5b"], tmp_path / "b.safetensors", "--lora", lora, *cast), summed)


# ------------------------------------------------------------------------------------------------------ kinds of files

TRAINED = (*LAYERS, "blocks.0.attn2.to_out.0", "condition_embedder.time_proj", "condition_embedder.text_embedder.linear_1")
WAN = {
    ours.removesuffix(".weight"): theirs.removesuffix(".weight")
    for ours, theirs in transformer_names(2).items()
    if ours.endswith(".weight")
}


def flat(layer):
    return "lora_unet_" + WAN[layer].replace(".", "_")


FORMATS = {  # names of the two matrices of a layer
    "diffusers": lambda layer: (f"transformer.{layer}.lora_A.weight", f"transformer.{layer}.lora_B.weight"),
    "diffusers, bare": lambda layer: (f"{layer}.lora_A.weight", f"{layer}.lora_B.weight"),
    "old diffusers": lambda layer: (f"transformer.{layer}.lora.down.weight", f"transformer.{layer}.lora.up.weight"),
    "ComfyUI": lambda layer: (f"diffusion_model.{WAN[layer]}.lora_A.weight", f"diffusion_model.{WAN[layer]}.lora_B.weight"),
    "ComfyUI, down and up": lambda layer: (
        f"diffusion_model.{WAN[layer]}.lora_down.weight",
        f"diffusion_model.{WAN[layer]}.lora_up.weight",
    ),
    "Wan, bare": lambda layer: (f"{WAN[layer]}.lora_A.weight", f"{WAN[layer]}.lora_B.weight"),
    "PEFT": lambda layer: (f"base_model.model.{WAN[layer]}.lora_A.weight", f"base_model.model.{WAN[layer]}.lora_B.weight"),
    "PEFT on diffusers": lambda layer: (
        f"base_model.model.{layer}.lora_A.weight",
        f"base_model.model.{layer}.lora_B.weight",
    ),
    "DiffSynth": lambda layer: (f"{WAN[layer]}.lora_A.default.weight", f"{WAN[layer]}.lora_B.default.weight"),
    "DiffSynth, pipe.dit": lambda layer: (
        f"pipe.dit.{WAN[layer]}.lora_A.default.weight",
        f"pipe.dit.{WAN[layer]}.lora_B.default.weight",
    ),
    "musubi": lambda layer: (f"{flat(layer)}.lora_down.weight", f"{flat(layer)}.lora_up.weight"),
    "kohya on diffusers": lambda layer: (
        f"lora_unet_{layer.replace('.', '_')}.lora_down.weight",
        f"lora_unet_{layer.replace('.', '_')}.lora_up.weight",
    ),
    "kohya, lora_transformer": lambda layer: (
        f"lora_transformer_{layer.replace('.', '_')}.lora_down.weight",
        f"lora_transformer_{layer.replace('.', '_')}.lora_up.weight",
    ),
}


def parameters(folder):
    """A fresh transformer, and a copy of its parameters in float64."""
    transformer = WanTransformer3DModel.from_pretrained(folder, subfolder="transformer")
    return transformer, {name: parameter.double() for name, parameter in transformer.state_dict().items()}


@pytest.fixture
def matrices(tiny_wan):
    """{layer: (A [r, in], B [out, r])} of random numbers, with another rank for each layer."""
    _, weights = parameters(tiny_wan["14b"])
    random = torch.Generator().manual_seed(1)
    by_layer = {}
    for rank, layer in enumerate(TRAINED, start=2):
        rows, columns = weights[f"{layer}.weight"].shape
        by_layer[layer] = torch.randn(rank, columns, generator=random), torch.randn(rows, rank, generator=random)
    return by_layer


def write(path, tensors, **config):
    """Write a file. `config` goes into its header, where diffusers writes the config of PEFT."""
    packed = {f"transformer.{name}": value for name, value in config.items()}
    header = {"format": "pt", **({"lora_adapter_metadata": json.dumps(packed)} if config else {})}
    save_file(contiguous(tensors), path, header)
    return path


def contiguous(tensors):
    return {name: tensor.clone().contiguous() for name, tensor in tensors.items()}


def lora_tensors(matrices, form, alphas={}):
    """The tensors of a LoRA file in one of the formats, with alpha tensors for some layers."""
    tensors = {}
    for layer, pair in matrices.items():
        names = FORMATS[form](layer)
        tensors |= dict(zip(names, pair))
        if layer in alphas:
            stem = re.sub(r"\.lora.*", "", names[0])
            tensors[f"{stem}.alpha"] = torch.tensor(float(alphas[layer]))
    return tensors


def check_merged(folder, path, added, **options):
    """Check that merging a file adds `added` to the parameters, in float64, and changes nothing else."""
    transformer, before = parameters(folder)
    merge(transformer, [Lora(path, **options)])
    for name, parameter in transformer.state_dict().items():
        torch.testing.assert_close(parameter.double(), before[name] + added.get(name, 0), atol=1e-5, rtol=1e-6, msg=name)
    assert all((addition != 0).any() for addition in added.values())


def products(matrices, factors={}):
    """{parameter: factor * B A} in float64. The factor is 1 unless given."""
    return {f"{layer}.weight": factors.get(layer, 1.0) * (b.double() @ a.double()) for layer, (a, b) in matrices.items()}


@pytest.mark.parametrize("form", FORMATS)
def test_lora_names_of_common_trainers_are_understood(form, matrices, tiny_wan, tmp_path):
    path = write(tmp_path / "l.safetensors", lora_tensors(matrices, form))
    check_merged(tiny_wan["14b"], path, products(matrices))


@pytest.mark.parametrize("form", ["ComfyUI", "ComfyUI, down and up", "musubi", "PEFT", "DiffSynth"])
def test_lora_alpha_tensors_scale_the_matrices(form, matrices, tiny_wan, tmp_path):
    alphas = dict(zip(TRAINED, (1.0, 8.0, 2.5, 16.0)))  # for the first layers only: for the others alpha is the rank
    factors = {layer: alpha / len(matrices[layer][0]) for layer, alpha in alphas.items()}
    path = write(tmp_path / "l.safetensors", lora_tensors(matrices, form, alphas))
    scaled = {layer: 0.7 * factors.get(layer, 1.0) for layer in matrices}
    check_merged(tiny_wan["14b"], path, products(matrices, scaled), scale=0.7)


@pytest.mark.parametrize("form", ["ComfyUI", "musubi"])
def test_lora_reading_agrees_with_diffusers(form, tiny_wan, tmp_path):
    """diffusers takes files of these kinds if they have every layer of the blocks."""
    _, weights = parameters(tiny_wan["14b"])
    random = torch.Generator().manual_seed(2)
    linear = [name.removesuffix(".weight") for name, w in weights.items() if name.startswith("blocks") and w.ndim == 2]
    linear = [layer for layer in linear if layer in WAN]
    matrices = {
        layer: (
            torch.randn(4, weights[f"{layer}.weight"].shape[1], generator=random),
            torch.randn(weights[f"{layer}.weight"].shape[0], 4, generator=random),
        )
        for layer in linear
    }
    tensors = lora_tensors(matrices, form, dict.fromkeys(linear, 2.0))
    theirs = WanLoraLoaderMixin.lora_state_dict({name: t.clone() for name, t in tensors.items()})  # it changes them
    added = {}
    for layer in linear:
        a, b = (theirs[f"transformer.{layer}.lora_{side}.weight"].double() for side in "AB")
        added[f"{layer}.weight"] = b @ a
    check_merged(tiny_wan["14b"], write(tmp_path / "l.safetensors", tensors), added)


def test_lora_alpha_in_the_header_of_a_diffusers_file_is_applied(matrices, tiny_wan, tmp_path):
    """PEFT's config has one rank and one alpha, and others for layers whose name ends in a pattern."""
    ranks = {layer: len(a) for layer, (a, _) in matrices.items()}
    config = {
        "r": 2,
        "lora_alpha": 8,
        "rank_pattern": {layer: rank for layer, rank in ranks.items() if rank != 2},
        "alpha_pattern": {"to_v": 1, "^blocks.1.ffn.net.2": 3.0, r"condition_embedder\..*": 5},
    }
    alphas = {"blocks.1.attn2.to_v": 1, "blocks.1.ffn.net.2": 3}
    alphas |= {layer: 5 for layer in TRAINED if layer.startswith("condition_embedder")}
    factors = {layer: alphas.get(layer, 8) / rank for layer, rank in ranks.items()}
    path = write(tmp_path / "l.safetensors", lora_tensors(matrices, "diffusers"), **config)
    check_merged(tiny_wan["14b"], path, products(matrices, factors))
    rank_stabilised = {layer: alphas.get(layer, 8) / rank**0.5 for layer, rank in ranks.items()}  # arXiv:2312.03732
    path = write(tmp_path / "rs.safetensors", lora_tensors(matrices, "diffusers"), **config, use_rslora=True)
    check_merged(tiny_wan["14b"], path, products(matrices, rank_stabilised))


def test_lora_alpha_option_applies_where_the_file_states_none(matrices, tiny_wan, tmp_path):
    first = TRAINED[0]
    factors = {layer: 256 / len(a) for layer, (a, _) in matrices.items()} | {first: 1.5 / len(matrices[first][0])}
    path = write(tmp_path / "l.safetensors", lora_tensors(matrices, "PEFT", {first: 1.5}))
    check_merged(tiny_wan["14b"], path, products(matrices, factors), alpha=256)


@pytest.mark.parametrize(("form", "entry"), [("ComfyUI", "lora_alpha"), ("musubi", "ss_network_alpha")])
def test_lora_alpha_metadata_applies_to_layers_without_their_own(form, entry, matrices, tiny_wan, tmp_path):
    first, path = TRAINED[0], tmp_path / "l.safetensors"
    factors = {layer: 5 / len(a) for layer, (a, _) in matrices.items()} | {first: 1.5 / len(matrices[first][0])}
    save_file(contiguous(lora_tensors(matrices, form, {first: 1.5})), path, {"format": "pt", entry: "5.0"})
    check_merged(tiny_wan["14b"], path, products(matrices, factors), alpha=256)


def test_lora_alpha_of_kohya_is_not_applied_twice_to_a_converted_file(matrices, tiny_wan, tmp_path, capsys):
    """musubi-tuner's convert_lora.py multiplies alpha into the matrices, and keeps it in the header."""
    path = tmp_path / "l.safetensors"
    save_file(contiguous(lora_tensors(matrices, "ComfyUI")), path, {"ss_network_alpha": "16"})
    check_merged(tiny_wan["14b"], path, products(matrices))
    assert "ss_network_alpha '16' is not applied" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["ComfyUI", "Wan, bare"])
def test_lora_differences_are_added_unscaled(form, matrices, tiny_wan, tmp_path):
    """The distilled files of LightX2V have differences of biases, norms, the weight of the head and the modulation."""
    _, weights = parameters(tiny_wan["14b"])
    stem = "diffusion_model." if form == "ComfyUI" else ""
    names = {
        "blocks.0.attn1.to_q.bias": "blocks.0.self_attn.q.diff_b",
        "blocks.1.ffn.net.0.proj.bias": "blocks.1.ffn.0.diff_b",
        "blocks.0.attn1.norm_q.weight": "blocks.0.self_attn.norm_q.diff",
        "blocks.0.norm2.weight": "blocks.0.norm3.diff",
        "blocks.0.norm2.bias": "blocks.0.norm3.diff_b",
        "blocks.1.scale_shift_table": "blocks.1.diff_m",
        "patch_embedding.weight": "patch_embedding.diff",
        "proj_out.weight": "head.head.diff",
        "proj_out.bias": "head.head.diff_b",
        "condition_embedder.time_proj.bias": "time_projection.1.diff_b",
    }
    random = torch.Generator().manual_seed(3)
    differences = {name: torch.randn(weights[name].shape, generator=random) for name in names}
    tensors = lora_tensors(matrices, form) | {stem + names[name]: tensor for name, tensor in differences.items()}
    added = products(matrices) | {name: tensor.double() for name, tensor in differences.items()}
    added = {name: 0.5 * tensor for name, tensor in added.items()}
    check_merged(tiny_wan["14b"], write(tmp_path / "l.safetensors", tensors), added, scale=0.5)


def test_lora_bias_is_scaled_like_the_matrices(matrices, tiny_wan, tmp_path):
    """PEFT's lora_bias: alpha / r * (B (A x) + bias)."""
    layer = TRAINED[0]
    a, b = matrices[layer]
    bias = torch.randn(len(b), generator=torch.Generator().manual_seed(4))
    tensors = lora_tensors({layer: (a, b)}, "diffusers") | {f"transformer.{layer}.lora_B.bias": bias}
    path = write(tmp_path / "l.safetensors", tensors, r=len(a), lora_alpha=7)
    added = products({layer: (a, b)}, {layer: 7 / len(a)}) | {f"{layer}.bias": 7 / len(a) * bias.double()}
    check_merged(tiny_wan["14b"], path, added)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("alpha", ["none", "0-d", "one element"])
def test_every_convention_equals_a_dense_merge_in_float64(form, alpha, tiny_wan, tmp_path):
    """Every layer that has a weight matrix, with a rank and a precision of its own; weights of the size of real ones."""
    random = torch.Generator().manual_seed(5)
    transformer, before = parameters(tiny_wan["14b"])
    dtypes, tensors, added = (torch.float32, torch.bfloat16, torch.float16), {}, {}
    layers = [name for name in WAN if before[f"{name}.weight"].ndim == 2]
    for number, layer in enumerate(layers):
        rows, columns = before[f"{layer}.weight"].shape
        rank = 1 + 2 * (number % 4)
        a = (torch.randn(rank, columns, generator=random) / 8).to(dtypes[number % 3])
        b = (torch.randn(rows, rank, generator=random) / 8).to(dtypes[(number + 1) % 3])
        down, up = FORMATS[form](layer)
        tensors |= {down: a, up: b}
        factor = 1.0
        if alpha != "none":
            factor = (number + 0.5) / rank
            tensors[re.sub(r"\.lora.*", ".alpha", down)] = torch.full([1] * (alpha == "one element"), number + 0.5)
        added[f"{layer}.weight"] = 0.8 * factor * (b.double() @ a.double())
    merge(transformer, [Lora(write(tmp_path / "l.safetensors", tensors), 0.8)])
    for name, parameter in transformer.state_dict().items():
        wanted = before[name] + added.get(name, 0)
        assert ((parameter.double() - wanted).abs() <= 1e-6 * wanted.abs().clamp(min=1)).all(), name
    assert len(added) == len(layers) > 20


KINDS = {  # by the ending of the tensors: the parameter, and the tensors that change it, from its shape and a generator
    "a norm, .diff": ("blocks.0.norm2.weight", "blocks.0.norm3.diff"),
    "a norm's bias, .diff_b": ("blocks.0.norm2.bias", "blocks.0.norm3.diff_b"),
    "an RMS norm, .diff": ("blocks.1.attn1.norm_k.weight", "blocks.1.self_attn.norm_k.diff"),
    "a bias, .diff_b": ("blocks.0.ffn.net.2.bias", "blocks.0.ffn.2.diff_b"),
    "a matrix, .diff": ("condition_embedder.time_proj.weight", "time_projection.1.diff"),
    "the patch embedding, .diff": ("patch_embedding.weight", "patch_embedding.diff"),
    "the patch embedding's bias, .diff_b": ("patch_embedding.bias", "patch_embedding.diff_b"),
    "a modulation, .diff_m": ("blocks.1.scale_shift_table", "blocks.1.diff_m"),
    "the head's modulation, .diff_m": ("scale_shift_table", "head.diff_m"),
    "the head, .diff": ("proj_out.weight", "head.head.diff"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_kind_of_difference_alone_changes_its_parameter(kind, dtype, tiny_wan, tmp_path):
    parameter, key = KINDS[kind]
    _, weights = parameters(tiny_wan["14b"])
    difference = torch.randn(weights[parameter].shape, generator=torch.Generator().manual_seed(6)).to(dtype)
    path = write(tmp_path / "l.safetensors", {f"diffusion_model.{key}": difference})
    check_merged(tiny_wan["14b"], path, {parameter: -0.5 * difference.double()}, scale=-0.5)


@pytest.mark.parametrize("name", ["diffusion_model.patch_embedding", "lora_unet_patch_embedding"])
def test_a_lora_of_the_patch_embedding_is_a_convolution(name, tiny_wan, tmp_path):
    """The two convolutions one after the other are the one whose kernel is added."""
    _, weights = parameters(tiny_wan["14b"])
    rows, *kernel = weights["patch_embedding.weight"].shape
    random = torch.Generator().manual_seed(7)
    down, up = torch.randn(3, *kernel, generator=random), torch.randn(rows, 3, 1, 1, 1, generator=random)
    tensors = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(2.0)}
    added = 2 / 3 * torch.einsum("or,r...->o...", up.double().flatten(1), down.double())
    check_merged(tiny_wan["14b"], write(tmp_path / "l.safetensors", tensors), {"patch_embedding.weight": added})
    pixels = torch.randn(1, kernel[0], 2, 4, 4, generator=random, dtype=torch.float64)
    stride = tuple(kernel[1:])
    after = torch.conv3d(torch.conv3d(pixels, down.double(), stride=stride), up.double()) * 2 / 3
    torch.testing.assert_close(torch.conv3d(pixels, added, stride=stride), after)


# --------------------------------------------------------------------------------------------------------- several files


def stacked(matrices, folder):
    """Three files, of three conventions, that change some of the same layers, and their additions in float64."""
    random = torch.Generator().manual_seed(8)
    loras, sums = [], {}
    for number, (form, scale) in enumerate([("diffusers", 0.7), ("ComfyUI, down and up", -1.5), ("musubi", 2.0)]):
        own = {layer: (torch.randn(a.shape, generator=random), b) for layer, (a, b) in list(matrices.items())[number:]}
        loras.append(Lora(write(folder / f"{number}.safetensors", lora_tensors(own, form)), scale))
        for name, product in products(own).items():
            sums[name] = sums.get(name, 0) + scale * product
    return loras, sums


def test_several_loras_are_summed_with_their_strengths(matrices, tiny_wan, tmp_path):
    loras, sums = stacked(matrices, tmp_path)
    transformer, before = parameters(tiny_wan["14b"])
    merge(transformer, loras)
    for name, parameter in transformer.state_dict().items():
        torch.testing.assert_close(parameter.double(), before[name] + sums.get(name, 0), atol=1e-5, rtol=1e-6, msg=name)


def test_several_loras_are_rounded_once(matrices, tiny_wan, tmp_path):
    """In bfloat16, a sum that is rounded after each file differs from the right one in many weights."""
    loras, sums = stacked(matrices, tmp_path)
    transformer, _ = parameters(tiny_wan["14b"])
    before = {name: parameter.double() for name, parameter in transformer.bfloat16().state_dict().items()}
    merge(transformer, loras)
    merged = transformer.state_dict()
    for name, addition in sums.items():
        wrong = merged[name] != (before[name] + addition).bfloat16()
        assert wrong.double().mean() < 0.002, name  # a float32 sum beside the middle of two numbers of bfloat16


def test_two_loras_have_the_same_bits_in_either_order(matrices, tiny_wan, tmp_path):
    (first, second, _), _ = stacked(matrices, tmp_path)
    merged = []
    for loras in ([first, second], [second, first]):
        transformer, _ = parameters(tiny_wan["14b"])
        merge(transformer, loras)
        merged.append(transformer.state_dict())
    assert all(torch.equal(merged[0][name], merged[1][name]) for name in merged[0])


def test_a_faulty_second_lora_leaves_the_transformer_unchanged(matrices, tiny_wan, tmp_path):
    (good, *_), _ = stacked(matrices, tmp_path)
    bad = Lora(write(tmp_path / "bad.safetensors", {"blocks.7.self_attn.q.diff_b": torch.ones(24)}))
    transformer, before = parameters(tiny_wan["14b"])
    with pytest.raises(ItemError, match=r"bad\.safetensors changes 'blocks\.7"):
        merge(transformer, [good, bad])
    assert all(torch.equal(parameter.double(), before[name]) for name, parameter in transformer.state_dict().items())


def test_several_loras_on_the_command_line(lora, factors, tiny_wan, encoded, tmp_path):
    second = {f"diffusion_model.{WAN[layer]}.diff": b @ a for layer, (b, a) in list(factors.items())[1:]}
    save_file(second, tmp_path / "second.safetensors")
    folder = shutil.copytree(tiny_wan["5b"], tmp_path / "summed")
    weights = load_file(folder / "transformer" / WEIGHTS)
    for number, (layer, (b, a)) in enumerate(factors.items()):
        weights[f"{layer}.weight"] += (0.5 if number == 0 else 0.5 - 0.25) * (b @ a)
    save_file(weights, folder / "transformer" / WEIGHTS, {"format": "pt"})
    summed = generate(encoded["5b"], tmp_path / "a.safetensors", "-m", folder)
    both = ("--lora", lora, "--lora-scale", 0.5, "--lora", tmp_path / "second.safetensors")
    stack = generate(encoded["5b"], tmp_path / "b.safetensors", *both, "--lora-scale", -0.25)
    torch.testing.assert_close(stack, summed, atol=1e-4, rtol=0)
    message = generate(encoded["5b"], tmp_path / "c.safetensors", *both, "--lora-scale", 1, "--lora-scale", 1, fails=2)
    assert "lora_scale has 3 values and lora 2: give a strength for each file, or one for all" in message


def test_two_loras_are_merged_before_weights_are_cast_to_8_bits(lora, factors, tiny_wan, encoded, tmp_path):
    cast = ("--layerwise-casting", "float8_e4m3fn")
    folder = shutil.copytree(tiny_wan["5b"], tmp_path / "summed")
    weights = load_file(folder / "transformer" / WEIGHTS)
    for layer, (b, a) in factors.items():
        weights[f"{layer}.weight"] = (b @ a) + 0.25 * (b @ a) + weights[f"{layer}.weight"]
    save_file(weights, folder / "transformer" / WEIGHTS, {"format": "pt"})
    summed = generate(encoded["5b"], tmp_path / "a.safetensors", "-m", folder, *cast)
    shutil.copy(lora, tmp_path / "same.safetensors")
    loras = ("--lora", lora, "--lora", tmp_path / "same.safetensors", "--lora-scale", 1, "--lora-scale", 0.25)
    assert torch.equal(generate(encoded["5b"], tmp_path / "b.safetensors", *loras, *cast), summed)


def test_a_lora_of_the_14b_is_refused_by_the_5b(tiny_wan, encoded, tmp_path):
    weights = load_file(tiny_wan["14b"] / "transformer" / WEIGHTS)
    rows, *kernel = weights["patch_embedding.weight"].shape
    save_file({"diffusion_model.patch_embedding.diff": torch.ones(rows, *kernel)}, tmp_path / "14b.safetensors")
    message = generate(encoded["5b"], tmp_path / "a.safetensors", "--lora", tmp_path / "14b.safetensors", fails=1)
    assert "14b.safetensors does not fit this transformer ('diffusion_model.patch_embedding.diff' gives" in message


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    "key, shape, reason",
    [
        ("blocks.0.self_attn.q.dora_scale", (24, 1), "a weight of kind DoRA"),
        ("blocks.0.self_attn.q.lora_magnitude_vector", (24,), "a weight of kind DoRA"),
        ("blocks.0.self_attn.q.lokr_w1", (4, 4), "a weight of kind LoKr"),
        ("blocks.0.self_attn.q.hada_w1_a", (24, 2), "a weight of kind LoHa"),
        ("blocks.0.self_attn.q.lora_mid.weight", (2, 2), "of a kind of LoRA that is not known here"),
        ("blocks.0.cross_attn.k_img.diff_b", (24,), "which this transformer does not have"),
        ("blocks.9.self_attn.q.diff_b", (24,), "which this transformer does not have"),
        ("blocks.0.self_attn.q.diff_b", (), "[] for blocks.0.attn1.to_q.bias"),
        ("blocks.0.self_attn.q.diff_b", (25,), "[25] for blocks.0.attn1.to_q.bias, which is [24]"),
        ("patch_embedding.diff", (24, 99, 1, 2, 2), "[24, 99, 1, 2, 2] for patch_embedding.weight"),
        ("blocks.1.self_attn.q.lora_A.weight", (2, 24), "without its up matrix"),
        ("blocks.1.self_attn.q.alpha", (), "without its down matrix"),
        ("text_encoder.encoder.block.0.layer.0.SelfAttention.q.diff", (8, 8), "which this transformer does not have"),
    ],
)
@pytest.mark.parametrize("stem", ["diffusion_model.", ""])
def test_a_lora_delta_that_cannot_be_applied_is_refused_by_name(key, shape, reason, stem, matrices, tiny_wan, tmp_path):
    tensors = lora_tensors(matrices, "ComfyUI" if stem else "Wan, bare") | {stem + key: torch.ones(shape)}
    path = write(tmp_path / "l.safetensors", tensors)
    transformer, before = parameters(tiny_wan["14b"])
    with pytest.raises(ItemError) as error:
        merge(transformer, [Lora(path)])
    message = str(error.value)
    assert str(path) in message and stem + key in message and reason in message and len(message) < 400
    assert all(torch.equal(parameter.double(), before[name]) for name, parameter in transformer.state_dict().items())


@pytest.mark.parametrize(
    "config, reason",
    [
        ({"r": 9, "lora_alpha": 8}, "r is 9"),
        ({"r": 2, "lora_alpha": "much"}, "much"),
        ({"r": 2, "lora_alpha": float("inf")}, "alpha / rank is inf"),
        ({"r": 2, "lora_alpha": 2, "alpha_pattern": {"(": 1}}, "states no alpha"),
        ({"r": 2, "lora_alpha": 2, "alpha_pattern": [1]}, "states no alpha"),
        ({"r": 2, "lora_alpha": 2, "alpha_pattern": {"(.*)*(.*)*(.*)*(.*)*x": 3}}, "is no layer's name"),
        ({"r": 2, "lora_alpha": 10**400}, "states no alpha"),
        ({"r": 2, "lora_alpha": 2, "use_rslora": "false"}, "use_rslora is 'false'"),
    ],
)
def test_an_unusable_lora_alpha_is_refused(config, reason, matrices, tiny_wan, tmp_path):
    layer = TRAINED[0]  # of rank 2
    path = write(tmp_path / "l.safetensors", lora_tensors({layer: matrices[layer]}, "diffusers"), **config)
    with pytest.raises(ItemError, match=re.escape(reason)):
        merge(parameters(tiny_wan["14b"])[0], [Lora(path)])


@pytest.mark.parametrize("entry", ["lora_alpha", "ss_network_alpha"])
@pytest.mark.parametrize("value", ["many", "None", "", "nan"])
def test_lora_alpha_metadata_that_is_no_number_is_refused(entry, value, matrices, tiny_wan, tmp_path):
    layer, path = TRAINED[0], tmp_path / "l.safetensors"
    pair = {layer: matrices[layer]}
    save_file(contiguous(lora_tensors(pair, "musubi")), path, {entry: value})
    with pytest.raises(ItemError, match=re.escape(f"{path} states {entry} {value!r}, which is no number")):
        merge(parameters(tiny_wan["14b"])[0], [Lora(path)])
    save_file(contiguous(lora_tensors(pair, "musubi", {layer: 3.0})), path, {entry: value})
    check_merged(tiny_wan["14b"], path, products(pair, {layer: 3.0 / len(matrices[layer][0])}))


@pytest.mark.parametrize(
    "role, tensor, reason",
    [
        ("lora_A.weight", torch.ones(2, 24, dtype=torch.complex64), "of complex64, and a LoRA has floating point numbers"),
        ("lora_B.weight", torch.ones(24, 2, dtype=torch.int64), "of int64, and a LoRA has floating point numbers"),
        ("lora_B.weight", torch.ones(24, 2, dtype=torch.bool), "of bool, and a LoRA has floating point numbers"),
        ("diff_b", torch.ones(24, dtype=torch.int8), "of int8, and a LoRA has floating point numbers"),
        ("alpha", torch.tensor(2j), "of complex64, and a LoRA has floating point numbers"),
        ("alpha", torch.ones(2), "states no alpha of 'blocks.0.self_attn.q' that can be used"),
        ("lora_A.weight", torch.full((2, 24), float("nan")), "of float32, with numbers that are infinite or NaN"),
        ("diff_b", torch.full((24,), float("-inf"), dtype=torch.bfloat16), "of bfloat16, with numbers that are infinite"),
        ("lora_A.weight", torch.ones(0, 24), "of shape [0, 24], which is empty"),
        ("lora_A.weight", torch.ones(2, 0), "of shape [2, 0], which is empty"),
        ("lora_A.weight", torch.ones(2, 24, 1), "matrices that do not make a LoRA"),
        ("lora_B.weight", torch.ones(24), "matrices that do not make a LoRA"),
        ("diff_b", torch.ones(0), "of shape [0], which is empty"),
    ],
)
def test_a_tensor_that_belongs_to_no_lora_is_refused_by_name(role, tensor, reason, tiny_wan, tmp_path):
    stem, path = "blocks.0.self_attn.q", tmp_path / "l.safetensors"
    pair = {f"{stem}.lora_A.weight": torch.ones(2, 24), f"{stem}.lora_B.weight": torch.ones(24, 2)}
    save_file({**pair, f"{stem}.{role}": tensor}, path)
    transformer, before = parameters(tiny_wan["14b"])
    with pytest.raises(ItemError) as error:
        merge(transformer, [Lora(path)])
    message = str(error.value)
    assert (
        str(path) in message
        and reason in message
        and len(message) < 400
        and (role == "alpha" or f"{stem}.{role}" in message)
    )
    assert all(torch.equal(parameter.double(), before[name]) for name, parameter in transformer.state_dict().items())


def test_lora_dtypes_that_torch_does_not_convert_are_refused(tiny_wan, tmp_path):
    path, key = tmp_path / "l.safetensors", "blocks.0.self_attn.q.lora_A.weight"
    save_file({key: torch.zeros(2, 12, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)}, path)
    with pytest.raises(ItemError, match=f"{path} has '{key}' of float4_e2m1fn_x2, and a LoRA has"):
        merge(parameters(tiny_wan["14b"])[0], [Lora(path)])


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e30), (torch.float16, 300.0)])
def test_a_lora_sum_beyond_the_range_of_the_parameter_is_refused(dtype, size, tiny_wan, tmp_path):
    stem, path = "blocks.0.self_attn.q", tmp_path / "l.safetensors"
    pair = {f"{stem}.lora_A.weight": torch.full((2, 24), size), f"{stem}.lora_B.weight": torch.full((24, 2), size)}
    transformer, _ = parameters(tiny_wan["14b"])
    with pytest.raises(ItemError, match=f"{path} makes blocks.0.attn1.to_q.weight infinite or NaN .'{stem}.lora_B.weight'."):
        merge(transformer.to(dtype), [Lora(write(path, pair))])


@pytest.mark.parametrize("key", ["x" * 5000, "a\n\x1b[31mb.lora_A.weight", "x" * 5000 + ".lora_A.weight"])
def test_long_tensor_names_of_a_lora_are_shown_short_and_on_one_line(key, tiny_wan, tmp_path):
    with pytest.raises(ItemError) as error:
        merge(parameters(tiny_wan["14b"])[0], [Lora(write(tmp_path / "l.safetensors", {key: torch.ones(2, 24)}))])
    assert len(str(error.value)) < 400 and str(error.value).isprintable()


def test_lora_alpha_may_be_an_integer(matrices, tiny_wan, tmp_path):
    layer = TRAINED[0]
    tensors = lora_tensors({layer: matrices[layer]}, "musubi") | {f"{flat(layer)}.alpha": torch.tensor(3)}
    path = write(tmp_path / "l.safetensors", tensors)
    check_merged(tiny_wan["14b"], path, products({layer: matrices[layer]}, {layer: 3 / len(matrices[layer][0])}))


def test_a_layer_with_two_loras_is_refused(matrices, tiny_wan, tmp_path):
    layer = TRAINED[0]
    tensors = lora_tensors({layer: matrices[layer]}, "diffusers") | lora_tensors({layer: matrices[layer]}, "ComfyUI")
    with pytest.raises(ItemError, match="twice"):
        merge(parameters(tiny_wan["14b"])[0], [Lora(write(tmp_path / "l.safetensors", tensors))])


def test_lora_file_of_peft_without_its_alpha_is_warned_about(matrices, tiny_wan, tmp_path, capsys):
    path = write(tmp_path / "adapter_model.safetensors", lora_tensors(matrices, "PEFT"))
    merge(parameters(tiny_wan["14b"])[0], [Lora(path)])
    assert "adapter_config.json" not in capsys.readouterr().err
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 32}')
    merge(parameters(tiny_wan["14b"])[0], [Lora(path)])
    assert "adapter_config.json beside it is not read" in capsys.readouterr().err


def test_lora_of_another_model_is_refused(encoded, tmp_path):
    names = ("transformer.double_blocks.0.to_q.lora_A.weight", "transformer.double_blocks.0.to_q.lora_B.weight")
    save_file({names[0]: torch.ones(2, 24), names[1]: torch.ones(24, 2)}, tmp_path / "other.safetensors")
    message = generate(encoded["5b"], tmp_path / "a.safetensors", "--lora", tmp_path / "other.safetensors", fails=1)
    assert "changes 'double_blocks.0.to_q.weight', which this transformer does not have" in message


def test_lora_of_another_width_is_refused(encoded, tmp_path):
    names = ("transformer.blocks.0.attn1.to_q.lora_A.weight", "transformer.blocks.0.attn1.to_q.lora_B.weight")
    save_file({names[0]: torch.ones(2, 640), names[1]: torch.ones(640, 2)}, tmp_path / "wide.safetensors")
    message = generate(encoded["5b"], tmp_path / "a.safetensors", "--lora", tmp_path / "wide.safetensors", fails=1)
    assert "wide.safetensors does not fit" in message and "[640, 640]" in message


def test_a_file_that_is_no_lora_is_refused(encoded, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    message = generate(encoded["5b"], tmp_path / "a.safetensors", "--lora", tmp_path / "x.safetensors", fails=1)
    assert "is not a LoRA of Wan" in message
    save_file(
        {"blocks.0.attn1.to_q.lora_A.weight": torch.ones(2)}, tmp_path / "y.safetensors", {"lora_adapter_metadata": "["}
    )
    message = generate(encoded["5b"], tmp_path / "a.safetensors", "--lora", tmp_path / "y.safetensors", fails=1)
    assert "is not a LoRA of Wan" in message
