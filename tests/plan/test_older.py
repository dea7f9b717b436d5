"""Names and configs of the older programs: they are applied, or refused with their new names."""

from pathlib import Path

import pytest
import yaml

from stages import plan
from stages.runtime.errors import UsageError

CARTURN = {  # the keys of config/config_carturn.yaml in FRESCO's repository
    **{
        "file_path": "car.mp4",
        "save_path": "out/car",
        "prompt": "a red car turns in the winter",
        "mininterv": 5,
        "maxinterv": 5,
    },
    **{"seed": 3, "sd_path": "SG161222/Realistic_Vision_V2.0", "use_controlnet": True, "controlnet_type": "depth"},
    **{"cond_scale": 1.0, "use_freeu": False, "batch_size": 4, "num_inference_steps": 10, "num_warmup_steps": 2},
    **{"end_opt_step": 7, "run_ebsynth": False, "max_process": 4, "use_salinecy": True},
    **{"gmflow_path": "model/gmflow.pth", "sod_path": "model/sod.pth"},
}
VIDEO_CONDITIONAL = {  # the keys of LongLive's configs, and one that is in none
    "data_path": "clips.jsonl",
    "output_folder": "videos/video_conditional",
    "generator_ckpt": "longlive_base.pt",
    "lora_ckpt": "lora.pt",
    "adapter": {"type": "lora", "rank": 256, "alpha": 256},
    "num_conditioning_frames": 45,
    "num_output_frames": 120,
    "num_samples": 2,
    "model_kwargs": {"local_attn_size": 9, "sink_size": 6, "timestep_shift": 4.0},
    **{"model_name": "Wan2.1-T2V-1.3B", "inference_iter": -1, "save_with_index": True, "torch_compile": False},
}


@pytest.fixture
def fresco(config):
    """The config of a run of recipe fresco with the config of the older program as base_config."""
    Path("prompts").mkdir()
    Path("prompts/a.txt").write_text("a bus")
    Path("carturn.yaml").write_text(yaml.safe_dump(CARTURN))
    config["models"]["car"] = {"family": "fresco", "path": "weights/car"}
    clips = {"videos": ".", "prompts": "prompts", "missing_prompt": "skip"}
    config["runs"] = {"demo": {"recipe": "fresco", "base_config": "carturn.yaml", "clips": clips, "model": "car"}}
    return config


def options_of(planned, stage):
    (part,) = (part for part in planned.parts if part.stage.name == stage)
    return part.items[0].options


def test_base_config_of_fresco_is_applied(fresco):
    planned = plan.load(fresco, 1)
    encode, generate = (options_of(planned, stage) for stage in ("encode", "generate"))
    assert options_of(planned, "caption_vlm")["prompt"] == "a bus"  # the prompt of the video, as in the older program
    assert (encode["keyframe_batch_size"], encode["controlnet_type"]) == (4, "depth")
    names = ("num_inference_steps", "num_warmup_steps", "end_opt_step", "controlnet_conditioning_scale", "seed")
    assert [generate[name] for name in names] == [10, 2, 7, 1.0, 3]
    (keys,) = (item.options for job in planned.jobs for item in job.items if item.id.endswith("keyframes"))
    assert (keys["min_interval"], keys["max_interval"]) == (5, 5)
    warnings = "\n".join(planned.warnings)
    for name in ("sd_path", "use_controlnet", "run_ebsynth", "max_process", "use_salinecy", "gmflow_path", "sod_path"):
        assert f"carturn.yaml: {name}: " in warnings
    assert "is not known here" not in warnings
    assert "set results: out/car" in warnings


def test_the_folder_of_results_of_a_base_config_is_no_warning_where_it_is_that_of_the_config(fresco):
    assert "set results" not in "\n".join(plan.load({**fresco, "results": "out/car"}, 1).warnings)


@pytest.mark.parametrize("name", ["file_path", "video_path"])
def test_base_config_of_fresco_names_the_video(fresco, name):
    old = {key: value for key, value in CARTURN.items() if key != "file_path"}
    Path("carturn.yaml").write_text(yaml.safe_dump({**old, name: "car.mp4"}))
    del fresco["runs"]["demo"]["clips"]
    planned = plan.load(fresco, 1)
    assert list(planned.films) == ["results/demo/car.mp4"]
    assert options_of(planned, "caption_vlm")["prompt"] == "a red car turns in the winter"


def test_options_of_a_run_override_its_base_config(fresco):
    fresco["runs"]["demo"]["options"] = {"keyframe_batch_size": 6, "controlnet_conditioning_scale": 0.5}
    planned = plan.load(fresco, 1)
    assert options_of(planned, "encode")["keyframe_batch_size"] == 6
    assert options_of(planned, "generate")["controlnet_conditioning_scale"] == 0.5


def test_an_unreadable_base_config_breaks_only_its_run(fresco):
    fresco["runs"]["other"] = {**fresco["runs"]["demo"], "base_config": "missing.yaml"}
    planned = plan.load(fresco, 1)
    assert [broken.name for broken in planned.broken] == ["other"] and "missing.yaml" in planned.broken[0].reason
    assert planned.runs[0].run.name == "demo"


def test_base_config_of_longlive_is_applied(config):
    Path("clips.jsonl").write_text('{"video_path": "a.mp4", "prompt1": "waves", "prompt2": "larger waves"}\n')
    Path("old.yaml").write_text(yaml.safe_dump(VIDEO_CONDITIONAL))
    config["models"]["long"] = {"family": "longlive", "path": "weights/long"}
    config["runs"] = {"demo": {"recipe": "longlive", "base_config": "old.yaml", "model": "long"}}
    planned = plan.load(config, 1)
    assert len(planned.films) == 2
    encode, generate = (options_of(planned, stage) for stage in ("encode", "generate"))
    assert (encode["num_conditioning_frames"], encode["num_output_frames"]) == (45, 120)
    assert (generate["local_attn_size"], generate["sink_size"], generate["shift"]) == (9, 6, 4.0)
    warnings = "\n".join(planned.warnings)
    for name in ("generator_ckpt", "lora_ckpt", "adapter", "model_name", "inference_iter", "save_with_index"):
        assert f"old.yaml: {name}: " in warnings
    assert warnings.count("is not known here") == 1 and "old.yaml: torch_compile is not known here" in warnings


@pytest.mark.parametrize(
    ("recipe", "place", "key", "sentence"),
    [
        ("longlive", "", "data_path", "it is now clips, a .jsonl file"),
        ("v2v", "options", "vlm_device", "not needed: each stage leases a free GPU"),
        ("v2v", "", "ckpt_dir", "it is now model, a declared name or a folder"),
        ("chain", "", "output_dir", "it is now results, the folder of all runs"),
        ("fresco", "options", "sd_path", "not needed: it is a part of the model, see convert --help"),
        ("dynamicrafter", "", "prompt_dir", "it is now clips: {images: FOLDER}"),
        ("v2v", "options", "sampel_steps", "did you mean sample_steps?"),
        ("longlive", "options", "boundary_rati", "known are those of docs/options.md"),  # longlive has no experts
    ],
)
def test_an_old_key_is_refused_with_its_new_name(config, recipe, place, key, sentence):
    run = {"recipe": recipe, "clips": [{"video": "a.mp4"}], "model": "small", "options": {}}
    config["runs"] = {"demo": run}
    (run[place] if place else run)[key] = "x"
    with pytest.raises(UsageError) as error:
        plan.load(config, 1)
    assert f"has the unknown key '{key}'" in str(error.value) and str(error.value).endswith(sentence)


def test_all_unknown_keys_of_a_table_are_reported_at_once(config):
    config["runs"]["demo"]["options"] = {"vlm_device": "cuda:1", "sede": 3, "qqq": 1}
    with pytest.raises(UsageError) as error:
        plan.load(config, 1)
    sentence = "'vlm_device' (not needed: each stage leases a free GPU), 'sede' (did you mean seed?), 'qqq'"
    assert f"has the unknown keys {sentence}: " in str(error.value)
