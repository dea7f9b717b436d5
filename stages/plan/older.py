"""The older programs that Kinemake replaces: what became of their options and of the keys of their configs.

A name that is an option of the recipe, or an alias of one, is not listed here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from stages.plan.recipes import RECIPES, option_names, options_of_recipe
from stages.runtime.errors import UsageError
from stages.runtime.text import read_yaml

BASE_CONFIG = "base_config"  # key of a run: a config file of an older program


class Fate(NamedTuple):
    """What became of a name.

    `place` is where its value belongs: "results", a key of a run, or "clips.KEY"; "" if the value is not used. `remark` is
    what a user of the name should know.
    """

    place: str
    remark: str


RESULTS = Fate("results", "results, the folder of all runs")
MODEL = Fate("model", "model, a declared name or a folder")
GPU_IS_LEASED = Fate("", "not needed: each stage leases a free GPU")
OF_THE_MODEL = Fate("", "not needed: it is a part of the model, see convert --help")
FILE_OF_OPTIONS = Fate(BASE_CONFIG, "base_config, a key of a run")

WAN = {
    "task": Fate("", "not needed: the recipe and the model decide"),
    "video": Fate("clips.video", "video of a clip"),
    "ckpt_dir": MODEL,
    "vlm_device": GPU_IS_LEASED,
    "save_file": Fate("name", "name, the template of the film's name"),
    "sample_solver": Fate("", "not needed: the solver is unipc"),
    "offload_model": Fate("", "offload: none, block_level or leaf_level"),
    "convert_model_dtype": Fate("", "dtype, which is bfloat16 by default"),
}
OLD_NAMES: dict[str, dict[str, Fate]] = {
    "v2v": WAN,
    "chain": {**WAN, "output_dir": RESULTS},
    "longlive": {
        "config_path": FILE_OF_OPTIONS,
        "data_path": Fate("clips", "clips, a .jsonl file"),
        "output_folder": RESULTS,
        "inference_iter": Fate("", "not needed: all clips of the list are made"),
        "save_with_index": Fate("", "name, the template of the film's name"),
        "model_name": OF_THE_MODEL,
        "generator_ckpt": OF_THE_MODEL,
        "lora_ckpt": OF_THE_MODEL,
        "adapter": OF_THE_MODEL,
        "use_ema": OF_THE_MODEL,
    },
    "fresco": {
        "base_config": FILE_OF_OPTIONS,
        "video_folder": Fate("clips.videos", "clips: {videos: FOLDER}"),
        "prompt_folder": Fate("clips.prompts", "clips: {prompts: FOLDER}"),
        "file_path": Fate("clips.video", "video of a clip"),
        "video_path": Fate("clips.video", "video of a clip"),
        "output_folder": RESULTS,
        "save_path": RESULTS,
        "sd_path": OF_THE_MODEL,
        "use_controlnet": OF_THE_MODEL,
        "run_ebsynth": Fate("", "not needed: the frames between keyframes are always propagated; engine says how"),
        "gmflow_path": Fate("", "flow: dis or raft"),
        "sod_path": Fate("", "estimate_masks, with the network that convert fresco --saliency adds"),
        "max_process": Fate("", "parts, the number of jobs per film that propagate"),
        "use_salinecy": Fate("", "estimate_masks, or masks, videos that show the foreground"),
    },
    "dynamicrafter": {
        "image_path": Fate("clips.image", "image of a clip"),
        "prompt_text": Fate("prompt", "prompt"),
        "prompt_dir": Fate("clips.images", "clips: {images: FOLDER}"),
        "output_dir": RESULTS,
        "resolution": Fate("", "not needed: the model decides, one of variant 256, 512 or 1024"),
        "device": GPU_IS_LEASED,
    },
    "text2video": {
        "checkpoint": MODEL,
        "prompts": Fate("clips.prompt", "clips, a list of prompts"),
        "output_dir": RESULTS,
    },
}


class OldConfig(NamedTuple):
    """A config of an older program in the form of a run, the folder of its results, and remarks on what is not used.

    Without the folder, `results` is "".
    """

    run: dict[str, Any]
    results: str
    remarks: list[str]


def fate_of(name: Any, recipe: str = "") -> Fate | None:
    """What became of a name of the program that `recipe` replaces; without a recipe, of any older program."""
    programs = [OLD_NAMES[recipe]] if recipe in OLD_NAMES else [] if recipe else list(OLD_NAMES.values())
    return next((names[name] for names in programs if name in names), None)


def translate(recipe: str, values: Mapping[str, Any]) -> OldConfig:
    """The values of an older program's config or command line, by their old names."""
    known, options, run = option_names(recipe), {}, dict[str, Any]()
    clip: dict[str, Any] = {}
    remarks = []
    for name, value in _flat(values):
        fate = fate_of(name, recipe)
        if name in known and fate is None:
            options[name] = value
        elif fate is None:
            remarks.append(f"{name} is not known here and is left out")
        elif fate.place.startswith("clips."):
            clip[fate.place.removeprefix("clips.")] = value
        elif fate.place:
            run[fate.place] = value
        else:
            remarks.append(f"{name}: {fate.remark}")
    results, prompt = run.pop("results", ""), run.pop("prompt", "")
    if clip:
        run["clips"] = _clips(clip)
    if prompt:
        options["prompt"] = prompt
    return OldConfig({"recipe": recipe, **run, "options": options}, results, remarks)


def _flat(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The entries, with those of tables such as model_kwargs in the place of the tables."""
    for name, value in values.items():
        if isinstance(value, Mapping) and name != "adapter":
            yield from _flat(value)
        else:
            yield name, value


def _clips(found: Mapping[str, Any]) -> Any:
    if "videos" in found or "images" in found:
        skipped = {"missing_prompt": "skip"} if "prompts" in found else {}  # as the older program did
        return {**{key: found[key] for key in ("videos", "images", "prompts") if key in found}, **skipped}
    prompts = found.get("prompt")
    if isinstance(prompts, list):
        return [{"prompt": prompt} for prompt in prompts]
    return [dict(found)]


def read_old_config(path: Path, recipe: str) -> OldConfig:
    """The config file of the program that `recipe` replaces. Raises UsageError."""
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise UsageError(f"{path} is no table of names and values", "give a config such as config_carturn.yaml")
    return translate(recipe, values)


def with_old_configs(
    config: Mapping[str, Any],
) -> tuple[Mapping[str, Any], dict[str, list[str]], dict[str, UsageError]]:
    """A config, not validated yet, whose runs have the content of their `base_config` in the place of that key.

    Also remarks by run, and the errors of runs with an unusable file, which are left out of the config.
    """
    runs = config.get("runs") if isinstance(config, Mapping) else None
    if not isinstance(runs, Mapping):
        return config, {}, {}
    replaced, remarks, faults = dict(runs), dict[str, list[str]](), dict[str, UsageError]()
    for name, run in runs.items():
        path, recipe = (run.get(key) if isinstance(run, Mapping) else None for key in (BASE_CONFIG, "recipe"))
        if isinstance(path, str) and isinstance(recipe, str) and recipe in RECIPES:
            try:
                replaced[name], results, remarks[name] = with_old_config(run, Path(path).expanduser(), recipe)
                if results not in ("", config.get("results")):
                    remarks[name].append(f"{path}: results belong to the whole config: set results: {results}")
            except UsageError as error:
                del replaced[name]
                faults[name] = error
    return {**config, "runs": replaced}, remarks, faults


def with_old_config(run: Mapping[str, Any], path: Path, recipe: str) -> OldConfig:
    """A run with the content of its `base_config`. Raises UsageError.

    The run's own keys and options have precedence. Its own clips replace the file's clip and prompt.
    """
    old, results, remarks = read_old_config(path, recipe)
    own = {key: value for key, value in run.items() if key != BASE_CONFIG}
    options, own_options = old["options"], own.get("options", {})
    if "clips" in own:
        options.pop("prompt", None)
    if isinstance(own_options, Mapping):
        own["options"] = {**without_others(options, own_options, recipe), **own_options}
    return OldConfig({**old, **own}, results, [f"{path}: {remark}" for remark in remarks])


def without_others(options: Mapping[str, Any], own: Mapping[str, Any], recipe: str) -> dict[str, Any]:
    """The options that have no name in common with `own`, aliases included."""
    groups = [{option.name, *option.aliases} for declared in options_of_recipe(recipe).values() for option in declared]
    taken = set(own).union(*(group for group in groups if group & set(own)))
    return {name: value for name, value in options.items() if name not in taken}
