"""A trained model through the stages, as a person types them."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoTokenizer, CLIPTextModel

from stages.encode import main
from stages.media.read import frames
from stages.models.text2video.unet import UNet3D
from stages.runtime import artifacts
from tests.commands import stage

PROMPT = "A red ring moving left slowly on a black background"
QUICK = ("--steps", 3, "--dtype", "float32")


@pytest.fixture(scope="module")
def model(tiny_text2video):
    return tiny_text2video / "model"


def encode(output, model, *arguments, prompt=PROMPT, fails=0):
    output.parent.mkdir(exist_ok=True)
    prompt = ("--prompt", prompt) if prompt else ()
    return stage("encode", "-o", output, "-m", model, "--dtype", "float32", *prompt, *arguments, fails=fails)


@pytest.fixture(scope="module")
def encoded(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("encoded") / "e.safetensors"
    encode(path, model, "--negative-prompt", "a blue square")
    return path


@pytest.fixture(scope="module")
def latents(encoded, tmp_path_factory):
    path = tmp_path_factory.mktemp("latents") / "l.safetensors"
    stage("generate", encoded, "-o", path, *QUICK, "--seed", 5)
    return path


# -------------------------------------------------------------------------------------------------------------- encode


def test_encoded_prompts_are_the_text_models_states(model, encoded):
    artifact = artifacts.read(encoded, ("encoded",))
    fields = artifact.fields
    assert (fields["width"], fields["height"], fields["num_frames"]) == (16, 16, 4)  # as it was trained
    assert (fields["family"], fields["prompt"], fields["negative_prompt"]) == ("text2video", PROMPT, "a blue square")
    tokenizer = AutoTokenizer.from_pretrained(model / "tokenizer")
    text = CLIPTextModel.from_pretrained(model / "text_encoder").eval()
    for name, prompt in (("prompt_embeds", PROMPT), ("negative_prompt_embeds", "a blue square")):
        tokens = [0, *tokenizer(prompt, add_special_tokens=False).input_ids, 1]
        tokens += [1] * (16 - len(tokens))  # CLIP fills up with its end
        with torch.no_grad():
            assert torch.equal(artifact.tensors()[name], text(torch.tensor([tokens])).last_hidden_state)


def test_many_prompts_are_an_item_each_and_load_the_model_once(model, tmp_path):
    arguments = ("--prompt", "a red ring", "--prompt", "a blue square", "-o", tmp_path / "{idx}.safetensors", "-m", model)
    said = stage("encode", *arguments)
    assert said.count('"event": "load"') == 1
    prompts = [artifacts.read(tmp_path / f"{i}.safetensors", ("encoded",)).fields["prompt"] for i in (0, 1)]
    assert prompts == ["a red ring", "a blue square"]


def test_many_prompts_for_one_output_are_refused(model, tmp_path):
    arguments = ("--prompt", "a", "--prompt", "b", "-o", tmp_path / "e.safetensors", "-m", model)
    assert "for 2 prompts: put {idx} into its name" in stage("encode", *arguments, fails=2)


def test_at_a_terminal_it_asks_for_prompts_until_an_empty_line(model, tmp_path, monkeypatch):
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda self: True)
    arguments = ["-o", str(tmp_path / "{idx}.safetensors"), "-m", str(model), "--device", "cpu", "--threads", "1"]
    result = CliRunner().invoke(main, arguments, input="a red ring\na blue square\n\nnot asked any more\n")
    assert result.exit_code == 0, result.stderr
    assert "prompt 2 (empty: that was all)" in result.stdout
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == ["0.safetensors", "1.safetensors"]


def test_words_that_it_does_not_know_are_named(model, tmp_path):
    said = encode(tmp_path / "e.safetensors", model, prompt="A red Zebra, moving left on café")
    (warning,) = [json.loads(line) for line in said.splitlines() if '"warning"' in line]
    assert warning["reason"] == "the model does not know: Zebra, café"
    assert '"warning"' not in encode(tmp_path / "e.safetensors", model)


def test_prompt_that_is_cut_is_logged(model, tmp_path):
    said = encode(tmp_path / "e.safetensors", model, prompt="red " * 20)
    (line,) = [json.loads(line) for line in said.splitlines() if "prompt_cut" in line]
    assert (line["tokens"], line["kept"], line["cut"]) == (22, 16, 6)


@pytest.mark.parametrize(
    "arguments, prompt, sentence",
    [
        (("--num-frames", 5), PROMPT, r"error: num_frames is 5 \(model .*\): it has to be a multiple of 2"),
        (("--frame-size", 18), PROMPT, r"error: frame_size is 18 \(model .*\): it has to be a multiple of 4"),
        ((), "", "error: item e.safetensors has no prompt: add --prompt TEXT"),
    ],
)
def test_what_cannot_be_made_is_one_sentence(arguments, prompt, sentence, model, tmp_path):
    said = encode(tmp_path / "e.safetensors", model, *arguments, prompt=prompt, fails=1)
    assert_sentence(said, sentence)
    assert '"load"' not in said


def test_first_frame_is_refused_and_not_passed_over(model, tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    said = encode(tmp_path / "e.safetensors", model, tmp_path / "a.png", fails=1)
    assert_sentence(said, "error: item e.safetensors has a first frame: model .* takes a prompt alone")


def assert_sentence(said, pattern):
    lines = [line for line in said.splitlines() if not line.startswith("{")]
    assert len(lines) == 1 and re.match(pattern, lines[0]), said


# ------------------------------------------------------------------------------------------------------------ generate


def test_one_step_is_what_the_network_predicts(model, encoded, tmp_path):
    """One step is the network's clip at the last timestep, with guidance, cut to -1..1."""
    one_step = ("--steps", 1, "--dtype", "float32", "--seed", 5, "--guidance-scale", 3)
    stage("generate", encoded, "-o", tmp_path / "l.safetensors", *one_step)
    made = load_file(tmp_path / "l.safetensors")["latents"]
    assert made.shape == (1, 3, 4, 16, 16) and made.dtype == torch.float32
    unet, tensors = UNet3D.from_pretrained(model / "unet").eval(), load_file(encoded)
    noise = torch.randn(1, 3, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        text, negative = (unet(noise, torch.tensor([49]), tensors[f"{n}prompt_embeds"]) for n in ("", "negative_"))
    expected = (negative + 3.0 * (text - negative)).clamp(-1, 1)
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-5)


def test_seed_is_all_that_is_random(encoded, latents, tmp_path):
    made = {}
    for name, seed in {"same": 5, "other": 6}.items():
        stage("generate", encoded, "-o", tmp_path / f"{name}.safetensors", *QUICK, "--seed", seed)
        made[name] = load_file(tmp_path / f"{name}.safetensors")["latents"]
    before = load_file(latents)["latents"]
    assert torch.equal(made["same"], before) and not torch.equal(made["other"], before)
    assert artifacts.read(latents, ("latents",)).fields["seed"] == 5


def test_longer_and_larger_clips_than_it_was_trained_on(model, tmp_path):
    encode(tmp_path / "e.safetensors", model, "--num-frames", 6, "--frame-size", 24)
    stage("generate", tmp_path / "e.safetensors", "-o", tmp_path / "l.safetensors", *QUICK, "--sampler", "ddim")
    assert load_file(tmp_path / "l.safetensors")["latents"].shape == (1, 3, 6, 24, 24)


def test_more_steps_than_it_was_trained_on_are_one_sentence(encoded, tmp_path):
    said = stage("generate", encoded, "-o", tmp_path / "l.safetensors", "--steps", 51, fails=1)
    assert_sentence(said, "error: steps is 51 and model .* was trained on 50: ask for at most as many")


def test_a_schedule_that_does_not_tell_its_length_has_the_library_s(model, encoded, tmp_path):
    copy = shutil.copytree(model, tmp_path / "model")
    path = copy / "scheduler/scheduler_config.json"
    config = json.loads(path.read_text())
    del config["num_train_timesteps"]
    path.write_text(json.dumps(config))
    stage("generate", encoded, "-o", tmp_path / "l.safetensors", "-m", copy, *QUICK)
    said = stage("generate", encoded, "-o", tmp_path / "m.safetensors", "-m", copy, "--steps", 1001, fails=1)
    assert_sentence(said, "error: steps is 1001 and model .* was trained on 1000: ask for at most as many")


def test_artifact_of_another_family_is_one_sentence(tiny_wan, encoded, latents, tmp_path):
    wan = tiny_wan["5b"]
    said = stage("generate", encoded, "-o", tmp_path / "l.safetensors", "-m", wan, fails=1)
    assert_sentence(said, "error: .*e.safetensors was made for text2video and model .* is wan 5b: use the same model")
    said = stage("decode", latents, "-o", tmp_path / "c.json", "-m", wan, fails=1)
    assert_sentence(said, "error: .*l.safetensors was made for text2video and model .* is wan 5b: use the same model")


@pytest.mark.parametrize("part", ["unet/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json"])
def test_model_that_is_not_whole_is_one_sentence(part, model, encoded, tmp_path):
    folder = shutil.copytree(model, tmp_path / "model")
    (folder / part).unlink()
    said = stage("generate", encoded, "-o", tmp_path / "l.safetensors", "-m", folder, *QUICK, fails=1)
    assert_sentence(said, f"error: model {folder} cannot be loaded: {folder}/{part.replace('/', ' lacks ')}: copy it again")


# -------------------------------------------------------------------------------------------------------------- decode


def test_clip_gif_frames_and_sheet(latents, tmp_path):
    arguments = ("--save-gif", "--save-frames", "--visualize", "--lossless")
    stage("decode", latents, "-o", tmp_path / "clip.json", *arguments)
    clip = artifacts.read(tmp_path / "clip.json", ("clip",))
    pictures = [f"/{i:06d}.png" for i in range(4)]
    assert set(clip.members) == {".mp4", ".mkv", ".last.png", ".gif", ".sheet.png", *pictures}
    assert (clip.fields["num_frames"], clip.fields["fps"], clip.fields["prompt"]) == (4, "8/1", PROMPT)
    numbers = load_file(latents)["latents"][0].permute(1, 2, 3, 0).double().numpy()
    pixels = np.rint((numbers.clip(-1, 1) + 1) * 127.5).astype(np.uint8)  # [T, H, W, 3]
    shown = np.stack([np.array(Image.open(clip.member(suffix))) for suffix in pictures])
    assert np.abs(shown.astype(int) - pixels).max() <= 1  # float32 may fall to the other side of a half
    assert (shown != pixels).mean() < 1e-3
    assert np.array_equal(np.stack([frame.rgb for frame in frames(clip.member(".mkv"))]), shown)
    assert np.array_equal(np.array(Image.open(clip.member(".last.png"))), shown[-1])
    gif = Image.open(clip.member(".gif"))
    assert gif.n_frames == 4 and gif.info["loop"] == 0
    durations = []
    for i in range(4):
        gif.seek(i)
        durations.append(gif.info["duration"])
        assert np.abs(np.array(gif.convert("RGB")).astype(int) - shown[i]).mean() < 12  # 256 colours
    assert sum(durations) == 500  # milliseconds of 4 frames at 8 per second
    assert Image.open(clip.member(".sheet.png")).size == (4 * (128 + 2), 16 + 128 + 2)


def test_without_asking_there_is_a_video_and_its_last_frame(latents, tmp_path):
    stage("decode", latents, "-o", tmp_path / "clip.json")
    assert set(artifacts.read(tmp_path / "clip.json", ("clip",)).members) == {".mp4", ".last.png"}
