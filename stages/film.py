"""Make films with one command: a config with one run, handed to Snakemake. Each recipe is a command of its own."""

from __future__ import annotations

import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import yaml

from stages.families import FAMILIES
from stages.plan.clips import derived_id
from stages.plan.families import ROLES
from stages.plan.names import with_digest
from stages.plan.older import BASE_CONFIG, OLD_NAMES, translate, with_old_config
from stages.plan.recipes import RECIPES, options_of_recipe
from stages.runtime.ask import ask_model_and_prompts
from stages.runtime.calls import command_line, run_snakemake
from stages.runtime.cli import DEBUG, PathType, StageCommand, clean_errors, merged_parameters
from stages.runtime.errors import UsageError, shown
from stages.runtime.lease import visible_devices
from stages.runtime.model import declared_entries, find_model
from stages.runtime.options import Family

LISTS = (".jsonl", ".csv", ".txt")
INPUT_HELP = {  # by what a recipe's clips need
    "image": "INPUT: an image, a folder of images with a prompt in NAME.txt beside each, or a list of clips (.jsonl, .csv).",
    "prompt": "INPUT: a prompt, or a file of prompts (.txt, .csv, .jsonl). Without it, a terminal asks for prompts.",
    "video": "INPUT: a video, a folder of videos, or a list of clips (.jsonl, .csv).",
}
PROMPT_HELP = "Prompt of all clips that have none of their own."
SHEET_HELP = "Caption sheet with edited prompts, which take the place of captions."
PROMPTS_HELP = "Folder of prompts, NAME.txt for each file NAME of the folder INPUT."


def command(recipe: str) -> click.Command:
    """The command of a recipe, with its options, those of its families, and the names of the older program."""
    families, roles = options_of_recipe(recipe), list(RECIPES[recipe].FAMILIES)
    of_prompts, old_names = input_kind(recipe) == "prompt", OLD_NAMES.get(recipe, {})
    params: list[click.Parameter] = [
        click.Argument(["inputs"], nargs=-1, metavar="[INPUT]..."),
        *(click.Option([f"--{role}", *(["-m"] if role == "model" else [])], help=ROLES[role].help) for role in roles),
        click.Option(["--prompt"], multiple=of_prompts, help="A prompt; may be repeated." if of_prompts else PROMPT_HELP),
        click.Option(["--prompts"], multiple=of_prompts, hidden=of_prompts, help=PROMPTS_HELP),
        *([click.Option(["--captions"], type=PathType(exists=True), help=SHEET_HELP)] if "captioner" in roles else []),
        click.Option(["--private"], is_flag=True, default=None, help="Leave the prompts out of the metadata of the films."),
        click.Option(["--results"], help="Folder of the results. Default: results."),
        click.Option(["--run"], default=f"film-{recipe}", show_default=True, help="The films are in RESULTS/RUN."),
        click.Option(["--config"], type=PathType(exists=True), help="Declares models. Default: ./config.yaml."),
        click.Option(["--cores"], default="all", show_default=True, help="CPU cores that Snakemake may use."),
        click.Option(["--at-once"], type=click.IntRange(1), help="Number of jobs with a model at once. Default: the GPUs."),
        click.Option(["--dry-run", "-n"], is_flag=True, help="Show the jobs, and run none."),
        *merged_parameters(families.values()),
    ]
    taken = {param.name for param in params}
    old = [name for name in old_names if name not in taken]
    params += [click.Option([f"--{name}"], hidden=True) for name in old]

    @clean_errors
    def main(inputs: tuple[str, ...], run: str, cores: str, at_once: int | None, dry_run: bool, debug: bool, **given: Any):
        values = {name: list(v) if isinstance(v, tuple) else v for name, v in given.items() if v not in (None, ())}
        config = config_of(recipe, run, inputs, values, old)
        sys.exit(snakemake(config, run, cores, at_once, dry_run))

    return StageCommand(
        recipe,
        params=[*params, DEBUG],
        callback=main,
        help=help_text(recipe),
        no_args_is_help=not of_prompts,  # it asks for prompts at a terminal
        sections={
            f"Options of {'the recipe' if name == 'recipe' else f'family {name}'}": declared
            for name, declared in families.items()
            if declared
        },
    )


def help_text(recipe: str) -> str:
    does = (RECIPES[recipe].__doc__ or "").partition(": ")[2]
    return f"{does[:1].upper()}{does[1:]}\n\n{INPUT_HELP[input_kind(recipe)]}"


def input_kind(recipe: str) -> str:
    """What the clips of a recipe are made of: image, prompt or video."""
    return next((need for need in RECIPES[recipe].NEEDS if need in INPUT_HELP), "video")


def families_of(recipe: str) -> dict[str, Family]:
    """The families whose models can generate for a recipe."""
    return {name: FAMILIES[name] for name in RECIPES[recipe].FAMILIES["model"]}


def config_of(
    recipe: str, name: str, inputs: Sequence[str], values: dict[str, Any], old_names: Iterable[str]
) -> dict[str, Any]:
    """A config with one run, from the values of a command line. Raises UsageError."""
    run, results, remarks = translate(recipe, {key: values.pop(key) for key in old_names if key in values})
    results, declaring = values.pop("results", results), values.pop("config", None)
    prompt, prompts = values.pop("prompt", None), values.pop("prompts", None)
    run |= {key: values.pop(key) for key in (*ROLES, "private") if key in values}
    run |= {"captions": str(values.pop("captions"))} if "captions" in values else {}
    run["options"] |= values
    if input_kind(recipe) == "prompt":
        texts = [*(prompt or ()), *(prompts or ()), *(text for text in inputs if not is_list(text))]
        if not inputs and not texts and sys.stdin.isatty():
            run["model"], texts = ask_model_and_prompts(declaring, families_of(recipe), run.get("model", ""))
        clips: Any = with_distinct_ids("prompt", texts) or (inputs[0] if inputs else None)
    else:
        clips = clips_of(recipe, inputs, prompts)
        run["options"] |= {"prompt": prompt} if prompt else {}
    run |= {"clips": clips} if clips else {}
    if path := run.get(BASE_CONFIG):
        run, results_before, more = with_old_config(run, Path(path).expanduser(), recipe)
        results, remarks = results or results_before, [*remarks, *more]
    for remark in remarks:
        click.echo(f"note: {remark}", err=True)
    if "clips" not in run:
        raise UsageError("no input is given", command_line("film", recipe, "INPUT", "--model", "NAME"))
    if input_kind(recipe) != "prompt":
        check_inputs(recipe, run["clips"])
    models = {}
    for role in [role for role in ROLES if role in run]:
        run[role], entry = declared_model(run[role], declaring)
        models[run[role]] = entry
    return {**({"results": results} if results else {}), "models": models, "runs": {name: run}}


def is_list(path: str) -> bool:
    """Whether a path is that of a list of clips."""
    return path.lower().endswith(LISTS) and os.path.isfile(path)


def clips_of(recipe: str, inputs: Sequence[str], prompts: str | None) -> Any:
    """The `clips` of a run whose inputs are videos or images. Raises UsageError."""
    kind = input_kind(recipe)
    if len(inputs) == 1 and os.path.isdir(inputs[0]):
        return {f"{kind}s": inputs[0], **({"prompts": prompts} if prompts else {})}
    if prompts:
        raise UsageError(f"--prompts is {prompts} and the input is no folder", "give --prompt TEXT")
    if len(inputs) == 1 and is_list(inputs[0]):
        return inputs[0]
    return with_distinct_ids(kind, inputs)


def with_distinct_ids(kind: str, inputs: Sequence[str]) -> list[dict[str, str]]:
    """Clips of a kind of input: video, image or prompt. Where their names would give one id, ids end in a hash of the input.

    Raises UsageError for an input that is given twice.
    """
    if twice := [text for text, count in Counter(inputs).items() if count > 1]:
        raise UsageError(f"the {kind} {shown(twice[0])} is given twice", "give it once, and --takes 2 for two films")
    ids = [derived_id({kind: text}) for text in inputs]
    count = Counter(ids)
    return [
        {kind: text} if count[identity] == 1 else {"id": with_digest(identity, text), kind: text}
        for identity, text in zip(ids, inputs)
    ]


def check_inputs(recipe: str, clips: Any) -> None:
    """Raise UsageError for a video or an image of a command line that does not exist."""
    kind = input_kind(recipe)
    named = [clip[kind] for clip in clips if kind in clip] if isinstance(clips, list) else []
    if missing := [path for path in named if not os.path.exists(os.path.expanduser(path))]:
        expected = INPUT_HELP[kind].removeprefix("INPUT: ").removesuffix(".")
        hint = "; the model decides the resolution" if kind == "image" else ""
        raise UsageError(f"the input {missing[0]} does not exist", f"give {expected}{hint}")


def declared_model(name: str, config: Path | None) -> tuple[str, dict[str, Any]]:
    """The name and the declaration of a model: of a config, or for a folder or a Hub id. Raises UsageError."""
    if entry := declared_entries(config).get(name):
        return name, entry
    model = find_model(name, config, FAMILIES)
    place = {"path": os.path.abspath(model.path)} if model.path else {"hub": model.hub}
    return Path(name).name, {"family": model.family, **place}


def snakemake(config: Mapping[str, Any], run: str, cores: str, at_once: int | None, dry_run: bool) -> int:
    """Run Snakemake on a config in the working folder. Returns its exit code."""
    gpus = at_once or max(1, len(visible_devices()))
    with tempfile.TemporaryDirectory(prefix="kinemake-") as folder:
        path = Path(folder) / "film.yaml"
        path.write_text(yaml.safe_dump(dict(config), allow_unicode=True, sort_keys=False), encoding="utf-8")
        flags = ["--cores", cores, "--resources", f"gpu={gpus}", *(["--dry-run"] if dry_run else [])]
        code = run_snakemake(run, "--configfile", str(path), *flags)
    if not code and not dry_run:
        click.echo(f"the films are in {Path(config.get('results', 'results'), run)}", err=True)
    return code


class Recipes(click.Group):
    """A command per recipe. It is built when it is used, because it has the options of several families."""

    def list_commands(self, context: click.Context) -> list[str]:
        return sorted(RECIPES)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        return command(name) if name in RECIPES else None

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        without_options = [click.Command(recipe, help=help_text(recipe)) for recipe in RECIPES]
        click.Group(commands=without_options).format_commands(context, formatter)


main = Recipes(
    "film", help="Make films with one command. Each recipe is a command; config.yaml makes many films of many recipes."
)


if __name__ == "__main__":
    main()
