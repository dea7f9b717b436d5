"""A run waits for the training that makes its model, and is planned with the settings that the training will write."""

import json
from pathlib import Path

import pytest
import yaml

from stages import plan
from stages.families import FAMILIES

FIRST = {"training": "text2video", "data": "shapes", "sample_steps": 7, "sample_guidance": 1.5, "mixed_precision": "bf16"}
SECOND = {**FIRST, "start_from": "results/training/first/model", "sample_steps": 9}


@pytest.fixture
def trained(config):
    """Two trainings and a run by the model of the second: a function gives the plan for a path of that model."""
    for name, options in (("first", FIRST), ("second", SECOND)):
        Path(f"{name}.yaml").write_text(yaml.safe_dump(options))
    config["trainings"] = {"first": "first.yaml", "second": "second.yaml"}
    run = {"recipe": "text2video", "clips": [{"prompt": "a kite"}], "model": "mine", "options": {"seed": 1}}

    def planned(path, **more):
        config["models"]["mine"] = {"family": "text2video", "path": str(path), **more}
        return plan.load({**config, "runs": {"films": run}}, 1)

    return planned


def waits_for(planned):
    (weights,) = planned.weights
    return weights.inputs


def generating(planned):
    (part,) = [part for part in planned.parts if part.stage.name == "generate"]
    return part.items[0].options


def end(name, **options):
    """Leave the report of a training, as if it had ended with these options."""
    folder = Path(f"results/training/{name}")
    (folder / "model").mkdir(parents=True, exist_ok=True)
    resolved = FAMILIES["text2video"].trainings["text2video"].options.resolved({**SECOND, **options}).values()
    (folder / "training.json").write_text(json.dumps({"options": resolved}))


@pytest.mark.parametrize("way", ["relative", "dots", "absolute", "home", "link"])
def test_model_of_a_training_waits_for_it_however_its_path_is_written(way, trained, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("link").symlink_to("results/training")
    place = "results/training/second/model"
    ways = {"dots": f"./x/../{place}", "absolute": tmp_path / place, "home": f"~/{place}", "link": "link/second/model"}
    assert waits_for(trained(ways.get(way, place))) == ("results/training/second/training.json",)


@pytest.mark.parametrize("path", ["elsewhere/model", "results/training/second-best/model", "results/training"])
def test_another_model_waits_for_no_training(path, trained):
    assert waits_for(trained(path)) == ()


def test_training_waits_for_the_one_that_it_starts_from_however_its_path_is_written(trained, tmp_path):
    for start in (
        "results/training/first/model",
        str(tmp_path / "results/training/first/model"),
        "./results/training/first",
    ):
        Path("second.yaml").write_text(yaml.safe_dump({**SECOND, "start_from": start}))
        (second,) = [one for one in trained("results/training/second/model").trainings if one.name == "second"]
        assert second.inputs == ("second.yaml", "results/training/first/training.json")


def test_run_is_planned_with_the_settings_that_the_training_will_write(trained):
    options = generating(trained("results/training/second/model"))
    found = {name: options[name] for name in ("num_inference_steps", "guidance_scale", "sampler", "dtype")}
    assert found == {"num_inference_steps": 9, "guidance_scale": 1.5, "sampler": "ddim", "dtype": "bfloat16"}
    options = generating(trained("results/training/second/model", options={"steps": 60}))
    assert (options["num_inference_steps"], options["sampler"]) == (60, "ddpm")


def test_ended_training_is_not_waited_for_until_its_options_change(trained):
    end("second")
    Path("second.yaml").touch()  # its date is later than that of the report
    assert waits_for(trained("results/training/second/model")) == ()
    Path("second.yaml").write_text(yaml.safe_dump({**SECOND, "max_steps": 5}))
    assert waits_for(trained("results/training/second/model")) == ("results/training/second/training.json",)
    end("second", max_steps=5)
    assert waits_for(trained("results/training/second/model")) == ()
    report = json.loads(Path("results/training/second/training.json").read_text())
    del report["options"]["dataset"]  # of a version without that option
    Path("results/training/second/training.json").write_text(json.dumps(report))
    assert waits_for(trained("results/training/second/model")) == ()
    Path("results/training/second/training.json").write_text("{")
    assert waits_for(trained("results/training/second/model")) != ()


def test_model_of_another_family_than_its_training_is_told(trained, config):
    Path("second.yaml").write_text(yaml.safe_dump({"training": "captioner", "data": "shapes"}))
    (broken,) = trained("results/training/second/model").broken
    assert broken.reason == "model mine is declared as family text2video: its training says vlm"
