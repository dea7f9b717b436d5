"""The documents are those of the code, and what they tell a reader to type works."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from docs import generate
from stages.media.read import frames
from stages.plan import schema
from tests.commands import stage

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("path", generate.files())
def test_generated_files_are_those_of_the_code(path):
    assert (ROOT / path).read_text(encoding="utf-8") == generate.files()[path], "run `make generated`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_options_of_the_migration_table_exist():
    """New names stand in the last column, in backticks."""
    known = {*schema.all_options(), *schema.config_schema()["properties"], *schema.clip_schema()["properties"]}
    known |= set(schema.config_schema()["properties"]["runs"]["additionalProperties"]["properties"]) | {"clips"}
    for line in (ROOT / "docs" / "migration.md").read_text().splitlines():
        if line.startswith("| `--"):
            for name in re.findall(r"`([a-z_0-9]+)`", line.split("|")[-2]):
                assert name in known, line


def test_the_run_of_the_readme_is_a_valid_config():
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    declared = yaml.safe_load((ROOT / "config.yaml").read_text())["models"]
    config = {**yaml.safe_load(text), "models": declared}
    schema.check(config, "config", "README")
    for run in config["runs"].values():
        assert {run["model"], run["captioner"]} <= set(declared)


def test_the_stages_of_the_readme_work_by_hand(tmp_path, own_cache):
    """The commands as they stand there, with the shipped models."""
    for name in ("config.yaml", "examples", "models"):
        (tmp_path / name).symlink_to(ROOT / name)
    section = (ROOT / "README.md").read_text().split("## One stage by hand")[1].split("## ")[0]
    commands = [line.strip() for line in section.splitlines() if line.startswith("    ")]
    made_of_a_video = ["extract_frames", "caption_vlm", "encode", "generate", "decode", "concat"]
    assert [command.split()[0] for command in commands] == [*made_of_a_video, "encode", "generate", "decode"]
    for command in commands:
        program = f"{sys.executable} -m stages.{command}"
        done = subprocess.run(program, shell=True, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    assert (tmp_path / "film.mp4").stat().st_size > 0 and (tmp_path / "made.gif").stat().st_size > 0


def test_the_commands_of_the_page_on_longlive_work(tmp_path, own_cache, monkeypatch):
    for name in ("config.yaml", "examples", "models"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "longlive.md").read_text().split("By hand:")[1]
    for line in filter(None, map(str.strip, page.splitlines())):
        name, *arguments = shlex.split(line)
        stage(name, *arguments)
    films = [json.loads((tmp_path / name).read_text())["fields"]["num_frames"] for name in ("film.json", "new.json")]
    assert films == [57, 57 - 9]
    assert len(list(frames(tmp_path / "growing.mp4"))) == 57


def test_the_example_of_longlive_does_what_the_old_command_did(tmp_path, monkeypatch):
    from stages import plan

    monkeypatch.chdir(ROOT)
    base = yaml.safe_load((ROOT / "config.yaml").read_text())
    example = yaml.safe_load((ROOT / "examples" / "longlive.yaml").read_text())
    models = {**base["models"], **example["models"]}
    planned = plan.load({**base, **example, "models": models, "results": str(tmp_path)}, 1)
    options = {job.stage.name: job.items[0].options for job in planned.jobs if job.run.name == "video_conditional"}
    assert (options["encode"]["num_output_frames"], options["encode"]["num_conditioning_frames"]) == (240, 40)
    assert options["encode"]["prompt"] == "The waves become larger and more turbulent"
    assert options["caption_vlm"]["prompt"] == "A serene beach scene with gentle waves"
    assert options["generate"]["denoising_step_list"] == [1000, 750, 500, 250] and options["generate"]["lora"]
    films = {path.removeprefix(f"{tmp_path}/") for path in planned.films}
    assert {"video_conditional/rank0-0-0_lora.mp4", "interactive/day.mp4", "interactive/sunrise.mp4"} <= films


def test_the_example_of_fresco_has_the_keys_of_its_old_configs(tmp_path, monkeypatch):
    from stages import plan

    monkeypatch.chdir(tmp_path)
    for name in ("rendered", "prompts"):
        (tmp_path / name).mkdir()
    (tmp_path / "rendered/car.mp4").touch()
    (tmp_path / "rendered/van.mp4").touch()
    (tmp_path / "prompts/car.txt").write_text("a car in the snow")
    planned = plan.load(yaml.safe_load((ROOT / "examples/fresco.yaml").read_text()), 1)
    options = {job.stage.name: job.items[0].options for job in planned.jobs}
    assert options["encode"]["prompt"] == "" and options["caption_vlm"]["prompt"] == "a car in the snow"
    generate = (
        "num_inference_steps",
        "num_warmup_steps",
        "end_opt_step",
        "cond_scale",
        "guidance_scale",
        "use_freeu",
        "seed",
    )
    assert [options["generate"][name] for name in generate] == [20, 5, 15, 0.7, 7.5, False, 0]
    assert (options["encode"]["batch_size"], options["encode"]["controlnet_type"]) == (8, "hed")
    assert options["extract_frames"]["size"] == "512*512" and list(planned.films) == ["results/sim2real/car.mp4"]


@pytest.mark.parametrize(
    "name, run, steps, guidance, eta", [("fast", "fast", 10, 5.0, 1.0), ("high-quality", "high_quality", 50, 9.0, 0.0)]
)
def test_the_examples_of_dynamicrafter_do_what_the_old_commands_did(name, run, steps, guidance, eta, tmp_path, monkeypatch):
    from stages import plan

    monkeypatch.chdir(ROOT)
    base = yaml.safe_load((ROOT / "config.yaml").read_text())
    example = yaml.safe_load((ROOT / "examples" / f"dynamicrafter-{name}.yaml").read_text())
    models = {**base["models"], **example["models"]}
    planned = plan.load({**base, **example, "models": models, "results": str(tmp_path)}, 1)
    (generate,) = [job for job in planned.jobs if job.run.name == run and job.stage.name == "generate"]
    told = generate.items[0].options
    assert (told["num_inference_steps"], told["guidance_scale"], told["eta"], told["seed"]) == (steps, guidance, eta, 123)
    resolution = generate.model.variant
    films = {path.removeprefix(f"{tmp_path}/{run}/") for path in planned.films if path.startswith(f"{tmp_path}/{run}/")}
    assert films == {f"dynamicrafter_pipeline_{resolution}_seed123/000{number}.mp4" for number in range(3)}


@pytest.mark.parametrize("name", ["v2v", "chain"])
def test_the_examples_do_what_the_old_commands_did(name, tmp_path, monkeypatch):
    from stages import plan

    monkeypatch.chdir(tmp_path)
    base = yaml.safe_load((ROOT / "config.yaml").read_text())
    example = yaml.safe_load((ROOT / "examples" / f"{name}.yaml").read_text())
    planned = plan.load({**base, **example}, 8)
    generated = [item.options for job in planned.jobs if job.stage.name == "generate" for item in job.items]
    assert {(options["steps"], options["guidance_scale"]) for options in generated} == {(40, 5.0)}
    encoded = [item.options["frame_num"] for job in planned.jobs if job.stage.name == "encode" for item in job.items]
    assert set(encoded) == {81}
    if name == "chain":
        slowly = [job for job in planned.jobs if job.run.name == "continuous-slowly" and job.stage.name == "generate"]
        assert [job.items[0].options["seed"] for job in slowly] == [42 + link for link in range(12)]
        prefixes = {job.items[0].options["prefix"] for job in planned.jobs if job.stage.name == "caption_vlm"}
        assert prefixes == {"continue video", "continue video slowly"}
    else:
        sizes = [job.items[0].options["size"] for job in planned.jobs if job.stage.name == "extract_frames"]
        assert sizes == ["1280*720", "704*1280", "1280*704"]
