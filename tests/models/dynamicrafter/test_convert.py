"""DynamiCrafter's own files become the repository that they were written from; what is none is refused in one sentence."""

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, CLIPConfig, CLIPModel, CLIPTextModel, CLIPVisionModel

from stages.models.dynamicrafter import convert as dynamicrafter
from stages.models.dynamicrafter.names import vae_weights
from stages.models.dynamicrafter.options import detect
from tests.commands import convert
from tests.tiny import dynamicrafter as tiny
from tests.tiny import dynamicrafter_original as original


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """The published classes, narrow."""
    tables = {"UNET": tiny.UNET, "RESAMPLER": tiny.RESAMPLER, "VAE": tiny.VAE, "VISION": tiny.VISION}
    for name, table in {**tables, "TEXT": {**tiny.TEXT, **tiny.tokens()}}.items():
        monkeypatch.setattr(dynamicrafter, name, table)


@pytest.fixture(scope="module")
def towers():
    torch.manual_seed(0)
    return original.Text().eval(), original.Vision().eval()


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A CLIP repository, its text model a layer deeper than the one that is wanted; it pads with its end token."""
    folder = tmp_path_factory.mktemp("clip")
    text = {**tiny.TEXT, **tiny.tokens(), "num_hidden_layers": tiny.TEXT["num_hidden_layers"] + 1}
    CLIPModel(CLIPConfig(text_config=text, vision_config=tiny.VISION, projection_dim=8)).save_pretrained(folder)
    tokenizer = tiny.tokenizer()
    tokenizer.pad_token = tiny.END
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def run(tmp_path, clip):
    """Convert a checkpoint that is given as what torch saves, or as tensors for safetensors."""

    def run(given, resolution="512", pruned=False, **options):
        path = tmp_path / ("pruned.safetensors" if pruned else "model.ckpt")
        save_file(given, path) if pruned else torch.save(given, path)
        output = tmp_path / "made/output"
        said = convert(
            "dynamicrafter", "--ckpt", path, "--resolution", resolution, "--clip", clip, "--output", output, **options
        )
        return said, output

    return run


def refused(run, *arguments, **options):
    said, output = run(*arguments, **options, fails=2)
    (line,) = said.splitlines()
    assert line.startswith("error: ") and not output.exists()
    return line


@pytest.mark.parametrize("variant", ["256", "512", "1024", "512_interp"])
@torch.no_grad()
def test_a_checkpoint_becomes_the_networks_that_it_was_written_from(run, towers, variant):
    given = original.state_dict(variant, *towers)
    _, output = run({"state_dict": given}, variant)
    assert detect(output) == variant
    models = tiny.models(variant, seed=1)
    for name in ("unet", "image_projector", "vae"):
        made = load_file(output / name / "diffusion_pytorch_model.safetensors")
        expected = models[name].state_dict()
        assert made.keys() == expected.keys() and all(torch.equal(made[key], expected[key]) for key in made)
    ids = torch.randint(0, tiny.tokens()["vocab_size"], (2, 77), generator=torch.Generator().manual_seed(1))
    text, vision = towers
    states = CLIPTextModel.from_pretrained(output / "text_encoder").eval()(ids).last_hidden_state
    assert (states - text(ids)).abs().max() <= 1e-5
    pixels = torch.randn(2, 3, tiny.SIDE, tiny.SIDE, generator=torch.Generator().manual_seed(2))
    states = CLIPVisionModel.from_pretrained(output / "image_encoder").eval()(pixels).last_hidden_state
    assert (states - vision(pixels)).abs().max() <= 1e-5
    tokens = AutoTokenizer.from_pretrained(output / "tokenizer")("a bear", padding="max_length").input_ids
    assert len(tokens) == 77 and tokens[-1] == 0


def test_the_names_of_the_vae_are_those_of_diffusers():
    vae = AutoencoderKL(**tiny.VAE)
    theirs = original.vae_weights(vae)
    ours = vae_weights(theirs)
    published = {f"first_stage_model.{name}": w for name, w in theirs.items()}
    for made in (ours, convert_ldm_vae_checkpoint(published, vae.config)):
        expected = vae.state_dict()
        assert made.keys() == expected.keys() and all(torch.equal(made[key].view_as(w), w) for key, w in expected.items())


def test_what_deepspeed_saved_and_the_old_name_of_the_frame_stride(run, towers):
    given = original.state_dict("256", *towers)
    old = {f"_forward_module.{name}".replace("fps_embedding", "framestride_embed"): w for name, w in given.items()}
    _, output = run({"module": old}, "256")
    made = load_file(output / "unet/diffusion_pytorch_model.safetensors")
    assert torch.equal(made["fps_embedding.0.weight"], given["model.diffusion_model.fps_embedding.0.weight"])


def test_a_pruned_file_takes_its_encoders_from_clip(run, towers, clip):
    given = original.state_dict("512", *towers)
    kept = ("model.", "image_proj_model.", "first_stage_model.")
    _, output = run({name: w.half() for name, w in given.items() if name.startswith(kept)}, pruned=True)
    assert load_file(output / "unet/diffusion_pytorch_model.safetensors")["out.2.bias"].dtype == torch.float16
    whole = CLIPModel.from_pretrained(clip)
    for made, expected in (
        (CLIPTextModel.from_pretrained(output / "text_encoder"), whole.text_model),
        (CLIPVisionModel.from_pretrained(output / "image_encoder"), whole.vision_model),
    ):
        theirs = dict(expected.named_parameters())
        assert all(torch.equal(w, theirs[name]) for name, w in made.named_parameters())
    assert len(CLIPTextModel.from_pretrained(output / "text_encoder").encoder.layers) == tiny.TEXT["num_hidden_layers"]


@pytest.mark.parametrize("variant, asked, remedy", [("256", "512", "--resolution 256"), ("512", "256", "512, 1024 or")])
def test_the_256_model_is_told_from_the_others(run, towers, variant, asked, remedy):
    assert remedy in refused(run, {"state_dict": original.state_dict(variant, *towers)}, asked)


def test_weights_that_are_missing_unknown_or_misshapen(run, towers):
    def changed(change):
        weights = original.state_dict("512", *towers)
        change(weights)
        return refused(run, {"state_dict": weights})

    assert "1 missing, the first: out.2.bias" in changed(lambda w: w.pop("model.diffusion_model.out.2.bias"))
    assert "no part of DynamiCrafter" in changed(lambda w: w.update({"lora.down.weight": torch.ones(1)}))
    assert "1 unexpected" in changed(lambda w: w.update({"image_proj_model.more": torch.ones(1)}))
    assert "is [3] and not [4]" in changed(lambda w: w.update({"model.diffusion_model.out.2.bias": torch.ones(3)}))
    assert "encoder.layers.1" in changed(
        lambda w: [w.pop(name) for name in list(w) if name.startswith("embedder.model.visual.transformer.resblocks.1.")]
    )


def test_a_file_with_code_in_it_is_not_opened(run):
    assert "holds code" in refused(run, {"state_dict": {"model.x": print}})
