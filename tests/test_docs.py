"""The generated documents are up to date, and the commands in the documents work."""

import importlib.util
import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from docs import generate
from stages.media.options import SCORES
from stages.media.read import frames
from stages.media.scores.figures import FIGURES
from stages.plan import schema
from stages.plan.clips import read_clips
from stages.plan.families import ALL_FAMILIES
from stages.plan.older import OLD_NAMES
from stages.plan.shots import read_shots
from tests.commands import stage

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
READMES = ("README.md", "README.zh.md")


@pytest.mark.parametrize("path", generate.files())
def test_generated_docs_and_schemas_are_up_to_date(path):
    assert (ROOT / path).read_text(encoding="utf-8") == generate.files()[path], "run `make generated`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_the_docs_have_targets(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.M)
            assert anchor in [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings], target


def test_options_in_the_migration_table_exist():
    """New names are in the last column, in backticks."""
    known = {*schema.all_options(), *schema.config_schema()["properties"], *schema.clip_schema()["properties"]}
    known |= set(schema.config_schema()["properties"]["runs"]["additionalProperties"]["properties"]) | {"clips"}
    for line in (ROOT / "docs" / "migration.md").read_text().splitlines():
        if line.startswith("| `--"):
            for name in re.findall(r"`([a-z_0-9]+)`", line.split("|")[-2]):
                assert name in known, line


def test_old_option_names_in_the_changelog_are_aliases():
    rows = re.findall(r"^  \| `(\w+)`[^|]* \| (`.*`) \| (`.*`) \|$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    listed = {}
    for family, olds, news in rows:
        olds, news = (re.findall(r"`(\w+)`", cell) for cell in (olds, news))
        listed |= {(family, old): new for old, new in zip(olds, news if len(news) > 1 else news * len(olds), strict=True)}
    declared = {
        (name, alias): option.name
        for name, family in ALL_FAMILIES.items()
        for option in family.options
        for alias in option.aliases
    }
    assert listed == declared


def test_every_figure_is_defined_in_docs_scores():
    named = re.findall(rf"`((?:{'|'.join(SCORES)})\.\w+)`", (ROOT / "docs" / "scores.md").read_text())
    assert {*named} == {*FIGURES}


@pytest.mark.parametrize("name", ["README.zh.md"])
def test_translated_readme_has_the_same_commands_links_and_figures(name):
    def facts(text):
        commands = [re.split(r"\s{2,}#|\s{4,}", line)[0] for line in indented_lines(text) if line[0] != "`"]
        pages = {target for target in re.findall(r"\]\(([^)]+)\)", text) if not target.startswith("README")}
        return commands, pages, sorted(re.findall(r"\d+\.\d+", text)), re.findall(r"^#+ ", text, re.M)

    assert facts((ROOT / name).read_text()) == facts((ROOT / "README.md").read_text())


def test_figures_in_the_readme_are_marked_measured_or_estimated():
    """Figures measured on a GPU are also in the table of docs/cluster.md, which describes the measurement."""
    table = (ROOT / "README.md").read_text().split("## Which model on which GPU")[1].split("## ")[0]
    measured = re.findall(r"\| ([\d.]+) +\| ([\d.]+) +\|$", (ROOT / "docs" / "cluster.md").read_text(), re.M)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 5
    for _, device, seconds, memory, known in rows:
        assert known.startswith(("measured", "estimated")) or (seconds, memory) == ("not measured", "not measured")
        if known == "measured" and device == "H200":
            assert (seconds, memory) in measured


def test_commands_in_docs_usage_work(tmp_path, own_cache, preloaded_programs):
    """They make a film of a folder with a video, by the shipped models, and dry-run another seed."""
    for name in ("config.yaml", "examples", "models"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "my/videos").mkdir(parents=True)
    (tmp_path / "my/videos/0000.mp4").symlink_to(ROOT / "examples/shapes/videos/0000.mp4")
    page = (ROOT / "docs" / "usage.md").read_text()
    run, shots, takes = re.findall(r"```yaml\n(.*?)```", page, re.S)
    (tmp_path / "my.yaml").write_text(run)
    (tmp_path / "film.yaml").write_text(shots)
    assert [clip["links"] for _, clip in read_shots(str(tmp_path / "film.yaml"))] == [4]
    check_takes(yaml.safe_load(takes))
    commands = [line for line in indented_lines(page) if not line.endswith("⁺")]
    assert [command.split()[0] for command in commands] == ["doctor", "snakemake", "snakemake", "snakemake"]
    outputs = []
    for command in commands:
        program, _, arguments = command.partition(" ")
        if program == "snakemake":
            line = f"{preloaded_programs}/snakemake --snakefile {ROOT / 'Snakefile'} {arguments}"
        else:
            line = f"{preloaded_programs}/{program}"
        process = subprocess.run(line, shell=True, cwd=tmp_path, capture_output=True, text=True)
        assert process.returncode == 0, f"{command}\n{process.stderr}"
        outputs.append(process.stdout)
    assert (tmp_path / "results/mine/0000.mp4").stat().st_size > 0
    assert (tmp_path / "results/mine/steps/0000/clip.last.png").is_file()  # as docs/output.md says
    planned = set(re.findall(r"^(?:local)?rule mine\.(\w+)", outputs[-1], re.M)) - {"describe"}
    assert planned == {"generate", "decode", "concat"}
    check_csv(tmp_path, page)


@pytest.mark.parametrize("script", sorted((ROOT / "examples/python").glob("*.py")), ids=lambda path: path.stem)
def test_the_python_examples_run(script, tmp_path, own_cache, preloaded_programs):
    """With the shipped models. The shape of each clip moves: its first and last frame differ."""
    for name in ("config.yaml", "examples", "models"):
        (tmp_path / name).symlink_to(ROOT / name)
    command = [preloaded_programs / "python", f"examples/python/{script.name}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    written = re.findall(r'"(\w+\.mp4)"', script.read_text())
    assert written and written == [name for name in written if (tmp_path / name).is_file()]
    for name in written:
        first, *_, last = [frame.rgb for frame in frames(tmp_path / name)]
        assert first.shape == (64, 64, 3) and abs(first.astype(int) - last).mean() > 5, name
    if "wan" in script.stem:
        assert "description: An orange ring moving up quickly on a gray background" in done.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_the_docs_exist(page):
    """Targets of make, Python modules, and installed programs with their options."""
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
    projects = (tomllib.loads((ROOT / name).read_text()) for name in ("pyproject.toml", "commands/pyproject.toml"))
    programs = {name: place for project in projects for name, place in project["project"]["scripts"].items()}
    for line in indented_lines(page.read_text()):
        first, *rest = re.split(r"\s{2,}|⁺", line)[0].split()
        if first == "make":
            assert [word for word in rest if "=" not in word][0] in targets, line
        if (first, rest[:1]) == ("python", ["-m"]):
            assert importlib.util.find_spec(rest[1]), line
        if first in programs:
            module, _, name = programs[first].partition(":")
            command = getattr(importlib.import_module(module), name)
            result = CliRunner().invoke(command, [*subcommand(first, rest), "--help"])
            old = {f"--{name}" for name in OLD_NAMES.get(rest[0], ())} if first == "film" else set()
            known = {flag.replace("_", "-") for flag in (*old, *re.findall(r"--[\w-]+", result.output))}
            missing = {word.replace("_", "-") for word in re.findall(r"(?<= )--[a-z][\w-]*", line)} - known
            assert result.exit_code == 0 and not missing, (line, missing)


def subcommand(program: str, words: list[str]) -> list[str]:
    """The name of a training, a conversion, a recipe or a command of `store`, which has its own options."""
    return (
        words[:1]
        if program in ("train", "convert", "film", "store", "kinemake") and words[:1] and words[0][0] != "-"
        else []
    )


def indented_lines(page: str) -> list[str]:
    """The code lines of a page outside fenced blocks."""
    return [line.strip() for line in re.findall(r"^    .*", re.sub(r"```.*?```", "", page, flags=re.S), re.M)]


def check_takes(config: dict) -> None:
    """Each link of the example has three takes, whose smoothness of motion is measured and picks one."""
    from stages import plan

    models = yaml.safe_load((ROOT / "config.yaml").read_text())["models"]
    models = {name: {**model, "path": str(ROOT / model["path"])} for name, model in models.items() if "path" in model}
    jobs = plan.load({**config, "models": models, "results": "never"}, 1).jobs
    parts = {part.step: part.items for job in jobs for part in job.parts}
    assert len(parts["generate.link04"]) == len(parts["score.link04"]) == 3
    assert parts["pick.link04"][0].options["by"] == "motion.smoothness"


def check_csv(folder: Path, page: str) -> None:
    (text,) = re.findall(r"```csv\n(.*?)```", page, re.S)
    (folder / "my/clips.csv").write_text(text)
    rows, _ = read_clips(str(folder / "my/clips.csv"), "run mine")
    assert [(Path(row["video"]).name, bool(row.get("prompt")), row["seed"]) for row in rows] == [
        ("0000.mp4", True, "7"),
        ("0001.mp4", False, "8"),
    ]


@pytest.mark.parametrize("readme", READMES)
def test_the_run_in_the_readme_is_a_valid_config(readme):
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / readme).read_text(), re.S)
    declared = yaml.safe_load((ROOT / "config.yaml").read_text())["models"]
    config = {**yaml.safe_load(text), "models": declared}
    schema.check(config, "config", "README")
    for run in config["runs"].values():
        assert {run["model"], run["captioner"]} <= set(declared)


def test_stage_commands_in_the_readme_work(tmp_path, own_cache, preloaded_programs):
    """The commands run as they are written, with the shipped models."""
    for name in ("config.yaml", "examples", "models"):
        (tmp_path / name).symlink_to(ROOT / name)
    section = (ROOT / "README.md").read_text().split("## One stage by hand")[1].split("## ")[0]
    commands = [line.strip() for line in section.splitlines() if line.startswith("    ")]
    made_of_a_video = ["extract_frames", "caption_vlm", "encode", "generate", "decode", "concat"]
    assert [command.split()[0] for command in commands] == [*made_of_a_video, "encode", "generate", "decode"]
    for command in commands:
        program = f"{preloaded_programs}/{command}"
        process = subprocess.run(program, shell=True, cwd=tmp_path, capture_output=True, text=True)
        assert process.returncode == 0, f"{command}\n{process.stderr}"
    assert (tmp_path / "film.mp4").stat().st_size > 0 and (tmp_path / "made1.gif").stat().st_size > 0


def test_commands_in_docs_longlive_work(tmp_path, own_cache, monkeypatch):
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


def test_longlive_example_has_the_options_of_the_old_command(tmp_path, monkeypatch):
    from stages import plan

    monkeypatch.chdir(ROOT)
    base = yaml.safe_load((ROOT / "config.yaml").read_text())
    example = yaml.safe_load((ROOT / "examples" / "longlive.yaml").read_text())
    models = base["models"]
    planned = plan.load({**base, **example, "models": models, "results": str(tmp_path)}, 1)
    options = {part.stage.name: part.items[0].options for part in planned.parts if part.run.name == "video_conditional"}
    assert (options["encode"]["num_output_frames"], options["encode"]["num_conditioning_frames"]) == (240, 40)
    assert options["encode"]["prompt"] == "The waves become larger and more turbulent"
    assert options["caption_vlm"]["prompt"] == "A serene beach scene with gentle waves"
    assert options["generate"]["denoising_step_list"] == [1000, 750, 500, 250] and options["generate"]["lora"]
    films = {path.removeprefix(f"{tmp_path}/") for path in planned.films}
    assert {"video_conditional/rank0-0-0_lora.mp4", "interactive/day.mp4", "interactive/sunrise.mp4"} <= films


def test_fresco_example_has_the_options_of_the_old_configs(tmp_path, monkeypatch):
    from stages import plan

    monkeypatch.chdir(tmp_path)
    for name in ("rendered", "prompts"):
        (tmp_path / name).mkdir()
    (tmp_path / "rendered/car.mp4").touch()
    (tmp_path / "rendered/van.mp4").touch()
    (tmp_path / "prompts/car.txt").write_text("a car in the snow")
    base = yaml.safe_load((ROOT / "config.yaml").read_text())
    planned = plan.load({**base, **yaml.safe_load((ROOT / "examples/fresco.yaml").read_text())}, 1)
    options = {part.stage.name: part.items[0].options for part in planned.parts}
    assert options["encode"]["prompt"] == "" and options["caption_vlm"]["prompt"] == "a car in the snow"
    generate = (
        "num_inference_steps",
        "num_warmup_steps",
        "end_opt_step",
        "controlnet_conditioning_scale",
        "guidance_scale",
        "use_freeu",
        "seed",
    )
    assert [options["generate"][name] for name in generate] == [20, 5, 15, 0.7, 7.5, False, 0]
    assert (options["encode"]["keyframe_batch_size"], options["encode"]["controlnet_type"]) == (8, "hed")
    assert options["extract_frames"]["size"] == "512*512" and list(planned.films) == ["results/sim2real/car.mp4"]


@pytest.mark.parametrize(
    "name, run, steps, guidance, eta", [("fast", "fast", 10, 5.0, 1.0), ("high-quality", "high_quality", 50, 9.0, 0.0)]
)
def test_dynamicrafter_examples_have_the_options_of_the_old_commands(name, run, steps, guidance, eta, tmp_path, monkeypatch):
    from stages import plan

    monkeypatch.chdir(ROOT)
    base = yaml.safe_load((ROOT / "config.yaml").read_text())
    example = yaml.safe_load((ROOT / "examples" / f"dynamicrafter-{name}.yaml").read_text())
    models = base["models"]
    planned = plan.load({**base, **example, "models": models, "results": str(tmp_path)}, 1)
    (generate,) = [part for part in planned.parts if part.run.name == run and part.stage.name == "generate"]
    values = generate.items[0].options
    assert (values["num_inference_steps"], values["guidance_scale"], values["eta"], values["seed"]) == (
        steps,
        guidance,
        eta,
        123,
    )
    resolution = generate.model.variant
    films = {path.removeprefix(f"{tmp_path}/{run}/") for path in planned.films if path.startswith(f"{tmp_path}/{run}/")}
    assert films == {f"dynamicrafter_pipeline_{resolution}_seed123/000{number}.mp4" for number in range(3)}


@pytest.mark.parametrize("name", ["v2v", "chain"])
def test_v2v_and_chain_examples_have_the_options_of_the_old_commands(name, tmp_path, monkeypatch):
    from stages import plan

    monkeypatch.chdir(tmp_path)
    base = yaml.safe_load((ROOT / "config.yaml").read_text())
    example = yaml.safe_load((ROOT / "examples" / f"{name}.yaml").read_text())
    planned = plan.load({**base, **example}, 8)
    generated = [item.options for part in planned.parts if part.stage.name == "generate" for item in part.items]
    assert {(options["num_inference_steps"], options["guidance_scale"]) for options in generated} == {(40, 5.0)}
    encoded = [item.options["num_frames"] for part in planned.parts if part.stage.name == "encode" for item in part.items]
    assert set(encoded) == {81}
    if name == "chain":
        slowly = [part for part in planned.parts if part.run.name == "continuous-slowly" and part.stage.name == "generate"]
        assert [part.items[0].options["seed"] for part in slowly] == [42 + link for link in range(12)]
        prefixes = {part.items[0].options["prefix"] for part in planned.parts if part.stage.name == "caption_vlm"}
        assert prefixes == {"continue video", "continue video slowly"}
    else:
        sizes = [part.items[0].options["size"] for part in planned.parts if part.stage.name == "extract_frames"]
        assert sizes == ["1280*720", "704*1280", "1280*704"]
