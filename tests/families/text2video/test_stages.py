"""A trained model in the stages, as a user runs them."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoTokenizer, CLIPTextModel

from stages.encode import main
from stages.families.text2video.unet import UNet3D
from stages.media.read import frames
from stages.runtime import artifacts
from tests.commands import events, stage

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


def test_encoded_prompts_are_the_states_of_the_text_model(model, encoded):
    artifact = artifacts.read(encoded, ("encoded",))
    fields = artifact.fields
    assert (fields["width"], fields["height"], fields["num_frames"]) == (16, 16, 4)  # the sizes of the training
    assert (fields["family"], fields["prompt"], fields["negative_prompt"]) == ("text2video", PROMPT, "a blue square")
    tokenizer = AutoTokenizer.from_pretrained(model / "tokenizer")
    text = CLIPTextModel.from_pretrained(model / "text_encoder").eval()
    for name, prompt in (("prompt_embeds", PROMPT), ("negative_prompt_embeds", "a blue square")):
        tokens = [0, *tokenizer(prompt, add_special_tokens=False).input_ids, 1]
        tokens += [1] * (16 - len(tokens))  # CLIP pads with its end token
        with torch.no_grad():
            assert torch.equal(artifact.tensors()[name], text(torch.tensor([tokens])).last_hidden_state)


def test_encode_makes_an_item_of_each_prompt_and_loads_once(model, tmp_path):
    arguments = ("--prompt", "a red ring", "--prompt", "a blue square", "-o", tmp_path / "{idx}.safetensors", "-m", model)
    stderr = stage("encode", *arguments)
    assert stderr.count('"event": "load"') == 1
    prompts = [artifacts.read(tmp_path / f"{i}.safetensors", ("encoded",)).fields["prompt"] for i in (0, 1)]
    assert prompts == ["a red ring", "a blue square"]


def test_encode_refuses_several_prompts_for_one_output(model, tmp_path):
    arguments = ("--prompt", "a", "--prompt", "b", "-o", tmp_path / "e.safetensors", "-m", model)
    assert "for 2 prompts: put {idx} into its name" in stage("encode", *arguments, fails=2)


def test_encode_on_a_terminal_reads_prompts_until_an_empty_line(model, tmp_path, monkeypatch):
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda self: True)
    arguments = ["-o", str(tmp_path / "{idx}.safetensors"), "-m", str(model), "--device", "cpu", "--threads", "1"]
    result = CliRunner().invoke(main, arguments, input="a red ring\na blue square\n\nnot asked any more\n")
    assert result.exit_code == 0, result.stderr
    assert "prompt 2 (empty: that was all)" in result.stdout
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == ["0.safetensors", "1.safetensors"]


def test_at_a_terminal_it_asks_for_the_model_until_there_is_one(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"models": {"mine": {"family": "text2video", "path": str(model)}}}))
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda self: True)
    arguments = ["-o", "{idx}.safetensors", "--device", "cpu", "--threads", "1"]
    result = CliRunner().invoke(main, arguments, input="yours\n\nmine\na red ring\n\n")
    assert result.exit_code == 0, result.stderr
    assert "model (folder, Hub id, mine): " in result.stdout
    assert "model yours is no folder, no Hub id, and not declared in config.yaml" in result.output
    fields = artifacts.read(tmp_path / "0.safetensors", ("encoded",)).fields
    assert (fields["model"], fields["prompt"]) == ("mine", "a red ring")


def test_encode_names_unknown_words_of_a_prompt(model, tmp_path):
    stderr = encode(tmp_path / "e.safetensors", model, prompt="A red Zebra, moving left on café")
    (warning,) = [event for event in events(stderr) if event["event"] == "warning"]
    assert warning["reason"] == "the model does not know: Zebra, café"
    assert '"warning"' not in encode(tmp_path / "e.safetensors", model)


def test_encode_logs_a_truncated_prompt(model, tmp_path):
    stderr = encode(tmp_path / "e.safetensors", model, prompt="red " * 20)
    (line,) = [event for event in events(stderr) if "are cut off" in event.get("reason", "")]
    assert (line["tokens"], line["kept"], line["cut"]) == (22, 16, 6)


@pytest.mark.parametrize(
    "arguments, prompt, sentence",
    [
        (("--num-frames", 5), PROMPT, r"error: num_frames is 5 \(model .*\): it has to be a multiple of 2"),
        (("--frame-size", 18), PROMPT, r"error: frame_size is 18 \(model .*\): it has to be a multiple of 4"),
        ((), "", "error: item e.safetensors has no prompt: add --prompt TEXT"),
    ],
)
def test_impossible_text2video_inputs_are_one_sentence(arguments, prompt, sentence, model, tmp_path):
    stderr = encode(tmp_path / "e.safetensors", model, *arguments, prompt=prompt, fails=1)
    assert_sentence(stderr, sentence)
    assert '"load"' not in stderr


def test_encode_refuses_a_first_frame(model, tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    stderr = encode(tmp_path / "e.safetensors", model, tmp_path / "a.png", fails=1)
    assert_sentence(stderr, "error: item e.safetensors has a first frame: leave it out: model .* takes only a prompt")


def assert_sentence(stderr, pattern):
    lines = [line for line in stderr.splitlines() if not line.startswith("{")]
    assert len(lines) == 1 and re.match(pattern, lines[0]), stderr


# ------------------------------------------------------------------------------------------------------------ generate


def test_one_sampling_step_is_the_prediction_of_the_network(model, encoded, tmp_path):
    """One step is the network's clip at the last timestep, with guidance, clipped to -1..1."""
    one_step = ("--steps", 1, "--dtype", "float32", "--seed", 5, "--guidance-scale", 3)
    stage("generate", encoded, "-o", tmp_path / "l.safetensors", *one_step)
    latents = load_file(tmp_path / "l.safetensors")["latents"]
    assert latents.shape == (1, 3, 4, 16, 16) and latents.dtype == torch.float32
    unet, tensors = UNet3D.from_pretrained(model / "unet").eval(), load_file(encoded)
    noise = torch.randn(1, 3, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        text, negative = (unet(noise, torch.tensor([49]), tensors[f"{n}prompt_embeds"]) for n in ("", "negative_"))
    expected = (negative + 3.0 * (text - negative)).clamp(-1, 1)
    torch.testing.assert_close(latents, expected, rtol=0, atol=1e-5)


def test_generated_latents_depend_on_the_seed_alone(encoded, latents, tmp_path):
    results = {}
    for name, seed in {"same": 5, "other": 6}.items():
        stage("generate", encoded, "-o", tmp_path / f"{name}.safetensors", *QUICK, "--seed", seed)
        results[name] = load_file(tmp_path / f"{name}.safetensors")["latents"]
    before = load_file(latents)["latents"]
    assert torch.equal(results["same"], before) and not torch.equal(results["other"], before)
    assert artifacts.read(latents, ("latents",)).fields["seed"] == 5


def test_many_files_are_an_item_each_named_after_them(model, tmp_path):
    prompts = ("--prompt", "a red ring", "--prompt", "a blue square")
    stage("encode", *prompts, "-o", tmp_path / "text{idx}.safetensors", "-m", model, "--dtype", "float32")
    texts = [tmp_path / f"text{idx}.safetensors" for idx in (0, 1)]
    said = stage("generate", *texts, "-o", tmp_path / "latents/{stem}.safetensors", *QUICK, "--seed", 5)
    assert said.count('"event": "load"') == 1
    stage("generate", texts[1], "-o", tmp_path / "alone.safetensors", *QUICK, "--seed", 5)
    assert torch.equal(
        load_file(tmp_path / "latents/text1.safetensors")["latents"], load_file(tmp_path / "alone.safetensors")["latents"]
    )
    stage("decode", *(tmp_path / "latents" / text.name for text in texts), "-o", tmp_path / "clip{idx}.json")
    fields = [artifacts.read(tmp_path / f"clip{idx}.json", ("clip",)).fields for idx in (0, 1)]
    assert [one["prompt"] for one in fields] == ["a red ring", "a blue square"]


def test_many_files_for_one_output_are_refused(encoded, tmp_path):
    said = stage("generate", encoded, encoded, "-o", tmp_path / "l.safetensors", *QUICK, fails=2)
    assert "l.safetensors is one for 2 inputs: put {idx} or {stem} into its name" in said
    said = stage("generate", encoded, encoded, "-o", tmp_path / "{stem}.safetensors", *QUICK, fails=2)
    assert "e.safetensors twice: every item needs an output of its own" in said
    assert "follow one at a time" in stage("decode", encoded, encoded, "-o", tmp_path / "{idx}.mp4", "--follow", fails=2)


def sampler_of(path):
    return artifacts.read(path, ("latents",)).provenance[-1]["options"]["sampler"]


@pytest.mark.parametrize("steps, sampler", [(None, "ddim"), (50, "ddim"), (51, "ddpm")])
def test_sampler_fits_the_number_of_steps_unless_it_is_given(steps, sampler, encoded, tmp_path):
    """Without a number of steps they are the model's own, 2 in its sample strips."""
    folder = Path(shutil.copytree(artifacts.read(encoded, ("encoded",)).fields["model"], tmp_path / "model"))
    scheduler = json.loads((folder / "scheduler/scheduler_config.json").read_text())
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps({**scheduler, "num_train_timesteps": 100}))
    given = ("--steps", steps) if steps else ()
    said = stage("generate", encoded, "-o", tmp_path / "l.safetensors", "-m", folder, *given)
    assert sampler_of(tmp_path / "l.safetensors") == sampler and '"warning"' not in said
    said = stage("generate", encoded, "-o", tmp_path / "d.safetensors", "-m", folder, *given, "--sampler", "ddim")
    assert sampler_of(tmp_path / "d.safetensors") == "ddim"
    assert ("sampler is ddim and steps is 51: the clip may become dark" in said) == (steps == 51)


def test_many_steps_alone_do_not_make_a_clip_dark(tmp_path):
    """By ddim the square of this clip is dark: below 60 of 255."""
    said = "a red square moving left quickly on a black background"
    stage("encode", "-o", tmp_path / "e.safetensors", "-m", "models/shapes-text2video", "--prompt", said)
    many = ("--steps", 100, "--guidance-scale", 3, "--seed", 1)
    stage("generate", tmp_path / "e.safetensors", "-o", tmp_path / "l.safetensors", *many)
    stage("decode", tmp_path / "l.safetensors", "-o", tmp_path / "c.json", "--lossless")
    for frame in frames(artifacts.read(tmp_path / "c.json", ("clip",)).member(".mkv")):
        red, *others = np.percentile(frame.rgb.reshape(-1, 3), 97, axis=0)
        assert red > 150 and max(others) < 80


def test_generate_makes_longer_and_larger_clips_than_trained_on(model, tmp_path):
    encode(tmp_path / "e.safetensors", model, "--num-frames", 6, "--frame-size", 24)
    stage("generate", tmp_path / "e.safetensors", "-o", tmp_path / "l.safetensors", *QUICK, "--sampler", "ddim")
    assert load_file(tmp_path / "l.safetensors")["latents"].shape == (1, 3, 6, 24, 24)


def test_more_steps_than_trained_on_are_refused_in_one_sentence(encoded, tmp_path):
    stderr = stage("generate", encoded, "-o", tmp_path / "l.safetensors", "--steps", 51, fails=1)
    assert_sentence(stderr, "error: steps is 51 and model .* was trained on 50: take 50 or fewer")


def test_a_scheduler_without_a_length_has_the_default_of_diffusers(model, encoded, tmp_path):
    copy = shutil.copytree(model, tmp_path / "model")
    path = copy / "scheduler/scheduler_config.json"
    config = json.loads(path.read_text())
    del config["num_train_timesteps"]
    path.write_text(json.dumps(config))
    stage("generate", encoded, "-o", tmp_path / "l.safetensors", "-m", copy, *QUICK)
    stderr = stage("generate", encoded, "-o", tmp_path / "m.safetensors", "-m", copy, "--steps", 1001, fails=1)
    assert_sentence(stderr, "error: steps is 1001 and model .* was trained on 1000: take 1000 or fewer")


def test_an_artifact_of_another_family_is_one_sentence(tiny_wan, encoded, latents, tmp_path):
    wan = tiny_wan["5b"]
    stderr = stage("generate", encoded, "-o", tmp_path / "l.safetensors", "-m", wan, fails=1)
    assert_sentence(stderr, "error: .*e.safetensors was made for text2video and model .* is wan 5b: use the same model")
    stderr = stage("decode", latents, "-o", tmp_path / "c.json", "-m", wan, fails=1)
    assert_sentence(stderr, "error: .*l.safetensors was made for text2video and model .* is wan 5b: use the same model")


@pytest.mark.parametrize("part", ["unet/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json"])
def test_an_incomplete_text2video_model_is_one_sentence(part, model, encoded, tmp_path):
    folder = shutil.copytree(model, tmp_path / "model")
    (folder / part).unlink()
    stderr = stage("generate", encoded, "-o", tmp_path / "l.safetensors", "-m", folder, *QUICK, fails=1)
    assert_sentence(
        stderr, f"error: model {folder} cannot be loaded: {folder}/{part.replace('/', ' lacks ')}: copy it again"
    )


# -------------------------------------------------------------------------------------------------------------- decode


def test_decode_writes_clip_gif_frames_and_sheet(latents, tmp_path):
    arguments = ("--save-gif", "--save-frames", "--visualize", "--lossless")
    stage("decode", latents, "-o", tmp_path / "clip.json", *arguments)
    clip = artifacts.read(tmp_path / "clip.json", ("clip",))
    suffixes = [f"/{i:06d}.png" for i in range(4)]
    assert set(clip.members) == {".mp4", ".mkv", ".last.png", ".gif", ".sheet.png", *suffixes}
    assert (clip.fields["num_frames"], clip.fields["fps"], clip.fields["prompt"]) == (4, "8/1", PROMPT)
    numbers = load_file(latents)["latents"][0].permute(1, 2, 3, 0).double().numpy()
    pixels = np.rint((numbers.clip(-1, 1) + 1) * 127.5).astype(np.uint8)  # [T, H, W, 3]
    images = np.stack([np.array(Image.open(clip.member(suffix))) for suffix in suffixes])
    assert np.abs(images.astype(int) - pixels).max() <= 1  # float32 may fall to the other side of a half
    assert (images != pixels).mean() < 1e-3
    assert np.array_equal(np.stack([frame.rgb for frame in frames(clip.member(".mkv"))]), images)
    assert np.array_equal(np.array(Image.open(clip.member(".last.png"))), images[-1])
    gif = Image.open(clip.member(".gif"))
    assert gif.n_frames == 4 and gif.info["loop"] == 0
    durations = []
    for i in range(4):
        gif.seek(i)
        durations.append(gif.info["duration"])
        assert np.abs(np.array(gif.convert("RGB")).astype(int) - images[i]).mean() < 12  # 256 colours
    assert sum(durations) == 500  # milliseconds of 4 frames at 8 per second
    assert Image.open(clip.member(".sheet.png")).size == (4 * (128 + 2), 16 + 128 + 2)


def test_decode_writes_only_a_video_and_its_last_frame_by_default(latents, tmp_path):
    stage("decode", latents, "-o", tmp_path / "clip.json")
    assert set(artifacts.read(tmp_path / "clip.json", ("clip",)).members) == {".mp4", ".last.png"}
