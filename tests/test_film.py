"""`film`: one command line for a video, an image or a prompt, with today's option names and those of the older programs."""

import json
import shlex
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from stages import convert, film, plan, train
from stages.plan.clips import read_clips

ROOT = Path(__file__).parents[1]
MODELS = {"Wan2.2-I2V-A14B": "shapes-wan-14b", "Wan2.2-TI2V-5B": "shapes-wan-5b", "realistic": "shapes-fresco"}
OLD_LINES = {  # the command lines of the older programs' documents, without the name of the program
    "v2v": [
        "--task v2v-14B --video input.mp4 --ckpt_dir ./Wan2.2-I2V-A14B",
        "--task v2v-5B --video input.mp4 --ckpt_dir ./Wan2.2-TI2V-5B --size '704*1280'",
        "--task v2v-5B --video input.mp4 --ckpt_dir ./Wan2.2-TI2V-5B --vlm_device cuda:1",
        "--task v2v-5B --video input.mp4 --ckpt_dir ./Wan2.2-TI2V-5B --prompt 'A cat playing'",
    ],
    "chain": [
        "--video input.mp4 --ckpt_dir ./Wan2.2-I2V-A14B",
        "--video input.mp4 --ckpt_dir ./Wan2.2-I2V-A14B --num_videos 6",
        "--video input.mp4 --ckpt_dir ./Wan2.2-I2V-A14B --output_dir ./my_continuous_videos --vlm_device cuda:1",
        "--video input.mp4 --ckpt_dir ./Wan2.2-I2V-A14B --num_videos 12 --output_dir ./continuous_outputs --frame_num 81 "
        "--sample_steps 40 --sample_guide_scale 5.0 --base_seed 42 --custom_prompt 'continue video slowly'",
    ],
    "longlive": ["--config_path configs/longlive_video_conditional_inference.yaml"],
    "fresco": [
        "--video_folder videos --prompt_folder prompts --base_config config/config_carturn.yaml "
        "--output_folder ./output/sim2real_results --control_type hed",
    ],
    "dynamicrafter": [
        "--seed 123 --num_inference_steps 30 --guidance_scale 7.5 --eta 1.0 --video_length 16 --prompt_dir prompts/256/",
        "--image_path bear.png --prompt_text 'a person walking in a beautiful garden' --output_dir results/single_test",
        "--prompt_dir prompts/256/ --output_dir results/my_videos --device cuda:1",
        "--prompt_dir prompts/256/ --num_inference_steps 10 --guidance_scale 5.0",
    ],
    "text2video": [
        "--checkpoint ./mine --prompts 'A red car driving on a highway' --output_dir ./generated --save_gif --visualize",
        "--checkpoint ./mine --prompts 'A cat' 'A person in a park' 'Ocean waves' --save_frames --save_gif --visualize",
    ],
}
ADDED = {  # settings that the older programs had in their code: the captioner, and models that are converted once
    **{"v2v": "--captioner eye", "chain": "--captioner eye", "longlive": "-m long --captioner eye"},
    **{"fresco": "-m realistic", "dynamicrafter": "-m crafter", "text2video": ""},
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with the files that the lines name. Models are folders with the index of a real one."""
    monkeypatch.chdir(tmp_path)
    for name in ("videos", "prompts/256", "config", "configs", *MODELS, "mine"):
        Path(name).mkdir(parents=True, exist_ok=True)
    for name, shipped in {**MODELS, "mine": "shapes-text2video"}.items():
        index = (ROOT / "models" / shipped / "model_index.json").read_text()
        Path(name, "model_index.json").write_text(index)
    Path("realistic/controlnet_hed").mkdir()
    Path("realistic/hed").mkdir()
    for name in ("input.mp4", "videos/car.mp4", "bear.png", "prompts/256/bear.png"):
        Path(name).touch()
    for name in ("prompts/car.txt", "prompts/256/bear.txt"):
        Path(name).write_text("a car turns")
    Path("config/config_carturn.yaml").write_text("{batch_size: 4, mininterv: 5, maxinterv: 5, prompt: p, sd_path: x}")
    Path("clips.jsonl").write_text(json.dumps({"video_path": "input.mp4", "prompt1": "a", "prompt2": "b"}))
    old = {"data_path": "clips.jsonl", "output_folder": "videos/video_conditional", "num_output_frames": 120}
    Path("configs/longlive_video_conditional_inference.yaml").write_text(yaml.safe_dump(old))
    models = {"eye": {"family": "vlm", "path": "eye"}, "long": {"family": "longlive", "path": "long"}}
    models["crafter"] = {"family": "dynamicrafter", "variant": "256", "path": "crafter"}
    Path("config.yaml").write_text(yaml.safe_dump({"models": models}))
    return tmp_path


@pytest.fixture
def started_configs(monkeypatch):
    """The configs that `film` passes to Snakemake."""
    configs = []
    monkeypatch.setattr(film, "snakemake", lambda config, *others: configs.append(config) or 0)
    return configs


def run(*arguments):
    return CliRunner().invoke(film.main, arguments)


@pytest.mark.parametrize(("recipe", "line"), [(recipe, line) for recipe, lines in OLD_LINES.items() for line in lines])
def test_film_takes_the_command_lines_of_the_older_programs(folder, started_configs, recipe, line):
    result = run(recipe, *shlex.split(line), *shlex.split(ADDED[recipe]))
    assert result.exit_code == 0, result.output
    (config,) = started_configs
    planned = plan.load(config, 1)
    assert planned.films and not planned.broken
    if "--output" in line:
        assert config["results"] in line


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("dynamicrafter 256 123 cuda:1", "the input 256 does not exist: give an image, a folder of images"),
        ("v2v --model eye", "no input is given: film v2v INPUT --model NAME"),
        ("v2v gone.mp4 --model eye", "the input gone.mp4 does not exist: give a video, a folder of videos"),
        ("v2v --video gone.mp4 --model eye", "the input gone.mp4 does not exist: give a video, a folder of videos"),
        (
            "fresco --base_config config/config_carturn.yaml -m realistic",
            "no input is given: film fresco INPUT",
        ),
        ("v2v input.mp4 --model nowhere", "model nowhere is no folder, no Hub id, and not declared in config.yaml"),
        ("v2v input.mp4 --prompts prompts --model eye", "--prompts is prompts and the input is no folder"),
    ],
)
def test_film_reports_a_wrong_command_line_in_one_sentence(folder, started_configs, line, sentence):
    result = run(*shlex.split(line))
    assert result.exit_code == 2 and sentence in result.output and "Traceback" not in result.output
    assert not started_configs


def test_film_notes_options_that_are_no_longer_needed(folder, started_configs):
    result = run("v2v", *shlex.split(OLD_LINES["v2v"][2]))
    assert "note: vlm_device: not needed: each stage leases a free GPU" in result.output


@pytest.mark.parametrize(
    ("line", "clips"),
    [
        ("v2v input.mp4", [{"video": "input.mp4"}]),
        ("v2v videos --prompts prompts", {"videos": "videos", "prompts": "prompts"}),
        ("v2v clips.jsonl", "clips.jsonl"),
        ("dynamicrafter bear.png prompts/256", [{"image": "bear.png"}, {"image": "prompts/256"}]),
        ("dynamicrafter prompts/256", {"images": "prompts/256"}),
        ("text2video 'a cat' 'a dog'", [{"prompt": "a cat"}, {"prompt": "a dog"}]),
        ("text2video prompts/car.txt", "prompts/car.txt"),
    ],
)
def test_film_takes_a_file_several_files_a_folder_or_a_list(folder, started_configs, line, clips):
    assert run(*shlex.split(line)).exit_code == 0
    assert next(iter(started_configs[0]["runs"].values()))["clips"] == clips


def test_film_takes_inputs_whose_names_or_beginnings_are_equal(folder, started_configs):
    long = "A cinematic wide shot of a lonely lighthouse on a cliff at dusk"
    assert run("text2video", f"{long}, by Turner", f"{long}, by Hokusai", "a cat").exit_code == 0
    assert run("dynamicrafter", "bear.png", "prompts/256/bear.png").exit_code == 0
    found = [read_clips(next(iter(config["runs"].values()))["clips"], "the run")[0] for config in started_configs]
    assert [len({row["id"] for row in rows}) for rows in found] == [3, 2]
    assert found[0][2]["id"] == "a-cat" and found[1][0]["id"].startswith("bear-")
    result = run("text2video", "a cat", "a cat")
    assert result.exit_code == 2 and "the prompt 'a cat' is given twice: give it once, and --takes 2" in result.output


@pytest.mark.parametrize(("given", "results"), [("", "videos/video_conditional"), ("--results mine", "mine")])
def test_film_takes_the_folder_of_results_of_an_old_config(folder, started_configs, given, results):
    result = run("longlive", *shlex.split(f"{OLD_LINES['longlive'][0]} {ADDED['longlive']} {given}"))
    assert started_configs[0]["results"] == results and "set results" not in result.output
    assert not plan.load(started_configs[0], 1).warnings


def test_film_notes_what_an_old_config_has_and_is_not_used(folder, started_configs):
    result = run("fresco", *shlex.split(f"{OLD_LINES['fresco'][0]} {ADDED['fresco']}"))
    assert "note: config/config_carturn.yaml: sd_path: not needed: it is a part of the model" in result.output
    assert result.output.count("note: ") == 1


@pytest.mark.parametrize(("flags", "code", "told"), [([], 0, True), (["-n"], 0, False), ([], 1, False)])
def test_film_says_where_the_films_are_when_they_are_made(folder, monkeypatch, flags, code, told):
    monkeypatch.setattr(film, "run_snakemake", lambda *given: code)
    line = "v2v input.mp4 --model Wan2.2-TI2V-5B --prompt a --results mine --run first"
    result = run(*shlex.split(line), *flags)
    assert result.exit_code == code
    assert ("the films are in mine/first\n" in result.output) == told


def test_film_without_a_config_takes_the_models_of_the_checkout(folder, started_configs):
    Path("config.yaml").unlink()
    assert run("v2v", "input.mp4", "--model", "shapes-wan-5b").exit_code == 0
    assert started_configs[0]["models"]["shapes-wan-5b"]["path"] == str(ROOT / "models/shapes-wan-5b")


def test_a_path_in_a_config_of_models_is_relative_to_the_working_folder(folder, started_configs):
    models = {"models": {"mine": {"family": "wan", "path": "Wan2.2-TI2V-5B"}}}
    Path("config/models.yaml").write_text(yaml.safe_dump(models))
    line = "v2v input.mp4 --model mine --prompt a --config config/models.yaml"
    assert run(*shlex.split(line)).exit_code == 0
    assert not plan.load(started_configs[0], 1).broken


def test_convert_config_converts_an_old_config(folder):
    given = ["--recipe", "fresco", "-o", "new.yaml"]
    result = CliRunner().invoke(convert.main, ["config", "config/config_carturn.yaml", *given])
    assert result.exit_code == 0 and "note: sd_path: not needed: it is a part of the model" in result.output
    config = yaml.safe_load(Path("new.yaml").read_text())
    options = {"keyframe_batch_size": 4, "min_interval": 5, "max_interval": 5, "prompt": "p"}
    assert config == {"runs": {"fresco": {"recipe": "fresco", "options": options}}}
    assert CliRunner().invoke(convert.main, ["config", "new.yaml", *given]).exit_code == 2


@pytest.mark.parametrize(
    "line",
    [
        "--data_dir ./data --batch_size 2 --num_epochs 1000",
        "--data_dir ./data --batch_size 1 --num_epochs 100 --max_samples 5 --no_wandb",
        "--data_dir ./data --batch_size 4 --learning_rate 1e-4 --num_epochs 2000 --num_frames 16 --frame_size 64 "
        "--model_channels 128",
    ],
)
def test_train_takes_the_command_lines_of_the_older_program(folder, line):
    """The training fails at its data, which are missing."""
    result = CliRunner().invoke(train.main, ["text2video", *shlex.split(line), "--output", "out", "--device", "cpu"])
    assert "No such option" not in result.output and "data" in result.output and result.exit_code in (1, 2)


@pytest.mark.parametrize("recipe", OLD_LINES)
def test_the_help_of_each_recipe_names_its_inputs_and_model(recipe):
    result = run(recipe, "--help")
    assert result.exit_code == 0 and "INPUT: " in result.output and "--model" in result.output
    assert "Options of family " in result.output and "recipe:" not in result.output.replace("Options of the recipe:", "")


def test_a_terminal_asks_for_the_model_and_the_prompts(folder, started_configs, monkeypatch):
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda self: True)
    result = CliRunner().invoke(film.main, ["text2video"], input="./mine\na red ring\na blue square\n\n")
    assert result.exit_code == 0, result.output
    (entry,) = started_configs[0]["runs"].values()
    assert entry["model"] == "mine" and entry["clips"] == [{"prompt": "a red ring"}, {"prompt": "a blue square"}]
    assert "model (folder, Hub id):" in result.output  # no model of the config makes clips of a prompt alone


def test_a_recipe_that_replaces_no_older_program_has_a_command(monkeypatch):
    monkeypatch.delitem(film.OLD_NAMES, "dynamicrafter")
    result = CliRunner().invoke(film.command("dynamicrafter"), ["--help"])
    assert result.exit_code == 0 and "INPUT: an image" in result.output


def test_film_takes_a_caption_sheet_back(folder, started_configs):
    Path("sheet.csv").write_text("clip,prompt\ninput,a red bird lands\n")
    result = run("v2v", "input.mp4", "--model", "crafter", "--captions", "sheet.csv")
    assert result.exit_code == 0, result.output
    (config,) = started_configs
    (caption,) = [part for part in plan.load(config, 1).parts if part.stage.name == "caption_vlm"]
    assert caption.items[0].options["prompt"] == "a red bird lands"
