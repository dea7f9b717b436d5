"""`convert dynamicrafter` restores the repository of a published checkpoint, and refuses other files in one sentence."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, CLIPConfig, CLIPModel, CLIPTextModel, CLIPVisionModel

from stages.families.dynamicrafter import convert as dynamicrafter
from stages.families.dynamicrafter.names import vae_weights
from stages.families.dynamicrafter.options import detect, files_of_clip
from tests.commands import convert
from tests.tiny import dynamicrafter as tiny
from tests.tiny import dynamicrafter_original as original


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """The published classes with small widths."""
    tables = {"UNET": tiny.UNET, "RESAMPLER": tiny.RESAMPLER, "VAE": tiny.VAE, "VISION": tiny.VISION}
    for name, table in {**tables, "TEXT": {**tiny.TEXT, **tiny.tokens()}}.items():
        monkeypatch.setattr(dynamicrafter, name, table)


@pytest.fixture(scope="module")
def towers():
    torch.manual_seed(0)
    return original.Text().eval(), original.Vision().eval()


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A CLIP repository that pads with its end token. Its text model has one layer more than needed."""
    folder = tmp_path_factory.mktemp("clip")
    text = {**tiny.TEXT, **tiny.tokens(), "num_hidden_layers": tiny.TEXT["num_hidden_layers"] + 1}
    CLIPModel(CLIPConfig(text_config=text, vision_config=tiny.VISION, projection_dim=8)).save_pretrained(folder)
    tokenizer = tiny.tokenizer()
    tokenizer.pad_token = tiny.END
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def run(tmp_path, clip):
    """A function that saves a checkpoint with torch, or pruned as safetensors, and converts it."""

    def run(checkpoint, resolution="512", pruned=False, clip=clip, **options):
        path = tmp_path / ("pruned.safetensors" if pruned else "model.ckpt")
        save_file(checkpoint, path) if pruned else torch.save(checkpoint, path)
        output = tmp_path / "made/output"
        stderr = convert(
            "dynamicrafter", "--ckpt", path, "--resolution", resolution, "--clip", clip, "--output", output, **options
        )
        return stderr, output

    return run


def refusal(run, *arguments, **options):
    stderr, output = run(*arguments, **options, fails=2)
    (line,) = stderr.splitlines()
    assert line.startswith("error: ") and not output.exists()
    return line


@pytest.mark.parametrize("variant", ["256", "512", "1024", "512_interp"])
@torch.no_grad()
def test_convert_keeps_every_weight_of_a_checkpoint(run, towers, variant):
    checkpoint = original.state_dict(variant, *towers)
    _, output = run({"state_dict": checkpoint}, variant)
    assert detect(output) == variant
    models = tiny.models(variant, seed=1)
    for name in ("unet", "image_projector", "vae"):
        converted = load_file(output / name / "diffusion_pytorch_model.safetensors")
        expected = models[name].state_dict()
        assert converted.keys() == expected.keys() and all(torch.equal(converted[key], expected[key]) for key in converted)
    ids = torch.randint(0, tiny.tokens()["vocab_size"], (2, 77), generator=torch.Generator().manual_seed(1))
    text, vision = towers
    states = CLIPTextModel.from_pretrained(output / "text_encoder").eval()(ids).last_hidden_state
    assert (states - text(ids)).abs().max() <= 1e-5
    pixels = torch.randn(2, 3, tiny.SIDE, tiny.SIDE, generator=torch.Generator().manual_seed(2))
    states = CLIPVisionModel.from_pretrained(output / "image_encoder").eval()(pixels).last_hidden_state
    assert (states - vision(pixels)).abs().max() <= 1e-5
    tokens = AutoTokenizer.from_pretrained(output / "tokenizer")("a bear", padding="max_length").input_ids
    assert len(tokens) == 77 and tokens[-1] == 0


def test_converted_vae_names_are_those_of_diffusers():
    vae = AutoencoderKL(**tiny.VAE)
    theirs = original.vae_weights(vae)
    ours = vae_weights(theirs)
    published = {f"first_stage_model.{name}": w for name, w in theirs.items()}
    for converted in (ours, convert_ldm_vae_checkpoint(published, vae.config)):
        expected = vae.state_dict()
        assert converted.keys() == expected.keys() and all(
            torch.equal(converted[key].view_as(w), w) for key, w in expected.items()
        )


def test_convert_takes_deepspeed_checkpoints_and_the_old_frame_stride_name(run, towers):
    checkpoint = original.state_dict("256", *towers)
    old = {f"_forward_module.{name}".replace("fps_embedding", "framestride_embed"): w for name, w in checkpoint.items()}
    _, output = run({"module": old}, "256")
    converted = load_file(output / "unet/diffusion_pytorch_model.safetensors")
    assert torch.equal(converted["fps_embedding.0.weight"], checkpoint["model.diffusion_model.fps_embedding.0.weight"])


def test_convert_takes_the_encoders_of_a_pruned_file_from_clip(run, towers, clip):
    checkpoint = original.state_dict("512", *towers)
    prefixes = ("model.", "image_proj_model.", "first_stage_model.")
    _, output = run({name: w.half() for name, w in checkpoint.items() if name.startswith(prefixes)}, pruned=True)
    assert load_file(output / "unet/diffusion_pytorch_model.safetensors")["out.2.bias"].dtype == torch.float16
    model = CLIPModel.from_pretrained(clip)
    for converted, expected in (
        (CLIPTextModel.from_pretrained(output / "text_encoder"), model.text_model),
        (CLIPVisionModel.from_pretrained(output / "image_encoder"), model.vision_model),
    ):
        theirs = dict(expected.named_parameters())
        assert all(torch.equal(w, theirs[name]) for name, w in converted.named_parameters())
    assert len(CLIPTextModel.from_pretrained(output / "text_encoder").encoder.layers) == tiny.TEXT["num_hidden_layers"]


@pytest.mark.parametrize("pruned", [False, True])
def test_convert_needs_only_the_files_of_clip_that_fetch_downloads(pruned, run, towers, clip, tmp_path):
    weights = original.state_dict("512", *towers)
    if pruned:
        weights = {name: weight for name, weight in weights.items() if not name.startswith(("cond_stage", "embedder"))}
    patterns = files_of_clip({"ckpt": "a.safetensors" if pruned else "a.ckpt"})["clip"]
    names = {path.name for path in clip.iterdir() if any(path.match(pattern) for pattern in patterns)}
    assert ("model.safetensors" in names) == pruned
    downloaded = Path(shutil.copytree(clip, tmp_path / "downloaded", ignore=lambda _, found: set(found) - names))
    _, output = run(weights if pruned else {"state_dict": weights}, "512", pruned=pruned, clip=downloaded)
    assert detect(output) == "512"


@pytest.mark.parametrize("variant, resolution, remedy", [("256", "512", "--resolution 256"), ("512", "256", "512, 1024 or")])
def test_convert_refuses_a_256_model_for_another_resolution(run, towers, variant, resolution, remedy):
    assert remedy in refusal(run, {"state_dict": original.state_dict(variant, *towers)}, resolution)


def test_convert_counts_missing_unknown_and_misshapen_weights(run, towers):
    def convert_changed(change):
        weights = original.state_dict("512", *towers)
        change(weights)
        return refusal(run, {"state_dict": weights})

    assert "1 missing, the first: out.2.bias" in convert_changed(lambda w: w.pop("model.diffusion_model.out.2.bias"))
    assert "no part of DynamiCrafter" in convert_changed(lambda w: w.update({"lora.down.weight": torch.ones(1)}))
    assert "1 unexpected" in convert_changed(lambda w: w.update({"image_proj_model.more": torch.ones(1)}))
    assert "is [3] and not [4]" in convert_changed(lambda w: w.update({"model.diffusion_model.out.2.bias": torch.ones(3)}))
    assert "encoder.layers.1" in convert_changed(
        lambda w: [w.pop(name) for name in list(w) if name.startswith("embedder.model.visual.transformer.resblocks.1.")]
    )


def test_convert_refuses_a_file_that_holds_code(run):
    assert "holds code" in refusal(run, {"state_dict": {"model.x": print}})
