"""Untrusted model folders: none of their code runs, no question is asked, and each is refused in one sentence."""

import json
import os
import pickle
import shutil
import sys
from itertools import cycle
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file, save_file

from stages import caption_vlm, encode
from stages.families.vlm import chat

CODE = "from pathlib import Path\nPath({marker!r}).touch()\nclass Evil:\n    pass\n"


class Touch:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (Path(self.marker),)


@pytest.fixture
def wan(tiny_wan, tmp_path):
    return Path(shutil.copytree(tiny_wan["5b"], tmp_path / "model"))


@pytest.fixture
def vlm(tiny_vlm, tmp_path):
    return Path(shutil.copytree(tiny_vlm, tmp_path / "model"))


@pytest.fixture
def refusal(tmp_path):
    """A function that runs a stage on a folder with code wherever a library might look for it, with "y" on standard input,
    and returns its error."""
    image, marker = tmp_path / "p.png", tmp_path / "marker"
    Image.new("RGB", (64, 32)).save(image)

    def run(folder, *arguments):
        for place in (folder, *(path for path in folder.iterdir() if path.is_dir())):
            (place / "evil.py").write_text(CODE.format(marker=str(marker)))
        is_vlm = not (folder / "model_index.json").is_file()
        command = caption_vlm.main if is_vlm else encode.main
        output = tmp_path / ("o.json" if is_vlm else "o.safetensors")
        prompt = () if is_vlm else ("--prompt", "x")
        command_line = [image, "-o", output, "-m", folder, "--device", "cpu", "--threads", 1, *prompt, *arguments]
        result = CliRunner().invoke(command, [str(argument) for argument in command_line], input="y\n" * 9)
        lines = [line for line in result.output.splitlines() if line and not line.startswith("{")]
        assert result.exit_code in (1, 2) and isinstance(result.exception, SystemExit), result.output
        assert len(lines) == 1 and lines[0].startswith("error: "), result.output
        assert "bug of Kinemake" not in lines[0] and len(lines[0]) < 1000
        assert not marker.exists() and not output.exists()
        assert "evil" not in sys.modules
        return lines[0]

    return run


def change(path, **values):
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.is_file() else {}), **values}))


# ---------------------------------------------------------------------------------------------------------------- code


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("config.json", {"AutoConfig": "evil.Evil", "AutoModelForImageTextToText": "evil.Evil"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}),
        ("preprocessor_config.json", {"AutoImageProcessor": "evil.Evil"}),
        ("processor_config.json", {"AutoProcessor": "evil.Evil"}),
        ("video_preprocessor_config.json", {"AutoVideoProcessor": "evil.Evil"}),
        ("generation_config.json", {"AutoConfig": "evil.Evil"}),
        ("other_config.json", {"AutoConfig": "evil.Evil"}),
    ],
)
def test_a_captioner_folder_with_code_is_refused_by_name(name, classes, vlm, refusal):
    change(vlm / name, auto_map=classes)
    assert f"{vlm / name} asks for code of its own (auto_map), which Kinemake does not run" in refusal(vlm)


def test_code_in_a_nested_config_is_refused(vlm, refusal):
    text = json.loads((vlm / "config.json").read_text())["text_config"]
    change(vlm / "config.json", text_config={**text, "auto_map": {"AutoConfig": "evil.Evil"}})
    assert "asks for code of its own (auto_map)" in refusal(vlm)


def test_attention_from_another_repository_is_refused(vlm, refusal):
    change(vlm / "config.json", attn_implementation="evil/attention")
    assert "asks for code of its own (attn_implementation)" in refusal(vlm)


@pytest.mark.parametrize(
    ("part", "values", "setting"),
    [
        ("text_encoder/config.json", {"auto_map": {"AutoModel": "evil.Evil"}}, "auto_map"),
        ("tokenizer/tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}}, "auto_map"),
        ("vae/config.json", {"_class_name": ["evil", "Evil"]}, "_class_name"),
        ("transformer/config.json", {"_class_name": ["evil", "Evil"]}, "_class_name"),
        ("scheduler/scheduler_config.json", {"_class_name": ["evil", "Evil"]}, "_class_name"),
        ("model_index.json", {"_class_name": ["evil", "WanPipeline"]}, "_class_name"),
        ("model_index.json", {"custom_pipeline": "evil"}, "custom_pipeline"),
        ("model_index.json", {"vae": ["evil", "Evil"]}, "vae: evil"),
        ("model_index.json", {"text_encoder": ["evil", "Evil"]}, "text_encoder: evil"),
        ("model_index.json", {"tokenizer": ["os", "system"]}, "tokenizer: os"),
        ("model_index.json", {"safety_checker": ["evil", "Evil"]}, "safety_checker: evil"),
    ],
)
def test_a_generator_folder_with_code_is_refused_by_name(part, values, setting, wan, refusal):
    change(wan / part, **values)
    message = refusal(wan)
    assert str(wan / part) in message and f"asks for code of its own ({setting})" in message


@pytest.mark.parametrize("entry", [[], 7, "evil", {}, [["evil"], "Evil"], ["diffusers"], ["diffusers", 7, 8]])
def test_invalid_entries_of_a_model_index_are_one_sentence(entry, wan, refusal):
    change(wan / "model_index.json", transformer=entry, expand_timesteps=False)
    refusal(wan)


def test_a_pickle_in_a_model_folder_is_never_opened(wan, refusal, tmp_path):
    for part in ("text_encoder", "vae"):
        for path in (wan / part).glob("*.safetensors"):
            path.unlink()
        for name in ("pytorch_model.bin", "diffusion_pytorch_model.bin"):
            (wan / part / name).write_bytes(pickle.dumps(Touch(str(tmp_path / "marker"))))
    assert "in diffusion_pytorch_model.bin alone, a pickle, which Kinemake never opens: fetch a revision" in refusal(wan)


def test_an_adapter_config_does_not_load_another_model(vlm, refusal):
    change(vlm / "adapter_config.json", base_model_name_or_path="evil/model", peft_type="LORA")
    assert "holds an adapter and no whole network (adapter_config.json)" in refusal(vlm)


# --------------------------------------------------------------------------------------------------------------- data

DEEP = "[" * 1000 + "]" * 1000
CONTENTS = {
    "a list": "[1, 2]",
    "text": '"config"',
    "null": "null",
    "a number": "7",
    "nothing": "",
    "half": '{"a": ',
    "no text": b"\xff\xfe\x00\x01",
    "not UTF-8": b'{"a": "\xe9"}',
    "deep": f'{{"a": {DEEP}}}',
    "very deep": f'{{"a": {"[" * 100_000}{"]" * 100_000}}}',
    "NaN": '{"hidden_size": NaN}',
    "infinite": '{"hidden_size": Infinity}',
    "a number of a million digits": f'{{"hidden_size": {"9" * 1_000_000}}}',
    "a pointer": "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
}


WAN_CONFIGS = ("model_index.json", "text_encoder/config.json", "tokenizer/tokenizer_config.json")
VLM_CONFIGS = ("config.json", "preprocessor_config.json", "tokenizer.json")


@pytest.mark.parametrize(("content", "name"), list(zip(CONTENTS.values(), cycle(WAN_CONFIGS))), ids=CONTENTS)
def test_damaged_configs_of_a_generator_are_named(name, content, wan, refusal):
    (wan / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert str(wan / name) in refusal(wan)


@pytest.mark.parametrize(("content", "name"), list(zip(CONTENTS.values(), cycle(VLM_CONFIGS))), ids=CONTENTS)
def test_damaged_configs_of_a_captioner_are_named(name, content, vlm, refusal):
    (vlm / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert str(vlm / name) in refusal(vlm)


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        *(
            (part, name, value)
            for part, name in (
                ("transformer/config.json", "num_layers"),
                ("transformer/config.json", "attention_head_dim"),
                ("transformer/config.json", "rope_max_seq_len"),
                ("text_encoder/config.json", "d_model"),
                ("text_encoder/config.json", "num_layers"),
                ("text_encoder/config.json", "vocab_size"),
                ("vae/config.json", "z_dim"),
                ("vae/config.json", "base_dim"),
                ("scheduler/scheduler_config.json", "num_train_timesteps"),
            )
            for value in (10**12, -1, 1e300, "many")
        ),
        ("transformer/config.json", "num_layers", 40),  # the weights have 2
        ("transformer/config.json", "ffn_dim", 65),
        ("transformer/config.json", "num_layers", [2]),
        ("transformer/config.json", "attention_head_dim", None),
        ("text_encoder/config.json", "num_layers", 10**6),
        ("transformer/config.json", "patch_size", [1, 0, 0]),
        ("vae/config.json", "scale_factor_temporal", 8),
        ("vae/config.json", "latents_mean", [0.0]),
    ],
)
def test_absurd_numbers_in_a_config_are_one_sentence(part, name, value, wan, refusal):
    config = json.loads((wan / part).read_text())
    (wan / part).write_text(json.dumps({**config, name: value}))
    refusal(wan)


def test_a_config_number_that_contradicts_the_weights_is_reported_with_both(wan, refusal):
    change(wan / "transformer/config.json", num_layers=40)
    message = refusal(wan)
    assert f"{wan}/transformer/config.json says that num_layers is 40 and the weights beside it have 2" in message


def test_a_missing_weight_is_reported_and_not_drawn_at_random(wan, refusal):
    path = wan / "text_encoder/model.safetensors"
    weights = load_file(path)
    del weights["encoder.block.1.layer.1.layer_norm.weight"]
    save_file(weights, path, {"format": "pt"})
    assert "lack encoder.block.1.layer.1.layer_norm.weight" in refusal(wan)


@pytest.mark.parametrize(
    "content",
    [
        "{}",
        '{"model": []}',
        '{"model": {"type": "BPE"}}',
        '{"model": {"type": "WordLevel", "vocab": 3}}',
    ],
)
def test_damaged_tokenizers_are_one_sentence(content, wan, refusal):
    (wan / "tokenizer/tokenizer.json").write_text(content)
    refusal(wan)


@pytest.mark.parametrize("value", [[], "x"])
def test_a_model_max_length_that_is_no_number_is_one_sentence(value, vlm, refusal):
    change(vlm / "tokenizer_config.json", model_max_length=value)
    assert f"in {vlm} are not whole ('>' not supported" in refusal(vlm)


# -------------------------------------------------------------------------------------------------------- chat template


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        ("{{ raise_exception('no') }}", "fails (no)"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "did not end within 1 seconds"),
        ("{{ 9 ** (9 ** 9) }}", "did not end within 1 seconds"),
        ("{% set a = 'x' * 10 ** 11 %}{{ a }}", "fails (MemoryError)"),
        ("{{ 'x' * 10 ** 7 }}", "fails (its text has 10000000 characters)"),
        ("{% for", "fails ("),
        ("{{ messages[0].missing.deeper }}", "fails ("),
        ("{{ messages[0]['content'][1]['text'] }}", "has no placeholder for a video"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "fails ("),
    ],
)
def test_chat_templates_are_limited_in_time_and_memory(template, fault, vlm, refusal, monkeypatch):
    monkeypatch.setattr(chat, "SECONDS", 1 if "within" in fault else 20)  # a busy machine is slow to start a process
    (vlm / "chat_template.jinja").write_text(template)
    message = refusal(vlm)
    assert f"the chat template of {vlm} {fault}" in message
    assert message.endswith("use the template that was published")


@pytest.mark.parametrize("value", [7, [], {"a": 1}])
def test_invalid_chat_templates_are_one_sentence(value, vlm, refusal):
    (vlm / "chat_template.jinja").unlink()
    change(vlm / "tokenizer_config.json", chat_template=value)
    refusal(vlm)


@pytest.mark.parametrize(
    ("part", "key"), [("text_encoder", "model_type"), ("vae", "_class_name"), ("transformer", "_class_name")]
)
def test_a_config_without_a_class_name_is_one_sentence(part, key, wan, refusal):
    (wan / part / "config.json").write_text("{}")
    assert f"{wan / part / 'config.json'} does not name its {key}" in refusal(wan)


def test_a_tokenizer_with_too_many_normalizers_is_refused(wan, refusal):
    path = wan / "tokenizer/tokenizer.json"
    doubling = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    change(path, normalizer={"type": "Sequence", "normalizers": [doubling] * 45})
    assert f"{path} has more than 24 normalizers" in refusal(wan)


@pytest.mark.parametrize("stood", ["fifo", "device", "link to nothing"])
@pytest.mark.parametrize(
    "name",
    [
        "model_index.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ],
)
def test_a_fifo_or_device_in_a_model_folder_is_one_sentence_and_does_not_block(name, stood, wan, tmp_path):
    path = wan / name
    path.unlink()
    if stood == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if stood == "device" else "/nowhere")
    Image.new("RGB", (64, 32)).save(tmp_path / "p.png")
    command_line = [tmp_path / "p.png", "-o", tmp_path / "o.safetensors", "-m", wan, "--prompt", "x"]
    declared = tmp_path / "config.yaml"
    declared.write_text(json.dumps({"models": {"m": {"family": "wan", "variant": "5b", "path": str(wan)}}}))
    for model in (wan, "m"):
        command_line[4] = model
        result = CliRunner().invoke(
            encode.main, [*map(str, command_line), "--config", str(declared), "--device", "cpu", "--threads", "1"]
        )
        lines = [line for line in result.output.splitlines() if line and not line.startswith("{")]
        assert len(lines) == 1 and lines[0].startswith("error: ") and "bug of Kinemake" not in lines[0], result.output
