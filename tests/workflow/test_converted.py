"""A run fetches and converts a model that is declared by its conversion, before any job that loads it."""

import pytest

from examples.shipped import declared_models
from tests import zoo
from tests.hub import REVISION, serve
from tests.tiny import published
from tests.workflow.conftest import ONE_WORKER, Project

RUN = {
    "recipe": "longlive",
    "clips": [{"id": "a", "prompt": "a red square moving up slowly on a white background"}],
    "name": "{clip}_{model_type}.mp4",
    "options": {"num_output_frames": 3, "size": "64*64", "max_sequence_length": 24, "fps": 8, "seed": 3},
}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with serve(published.longlive(tmp_path / "published")) as hub:
        for name, value in hub.environment(tmp_path / "hf").items():
            monkeypatch.setenv(name, value)
        yield hub


@pytest.fixture
def project(tmp_path):
    models = declared_models()
    models["published"] = {
        "family": "longlive",
        "convert": published.CONVERT,
        "sizes": ["64*64"],
        "dtype": "float32",
        "options": {"lora_alpha": 2},
    }
    return Project(tmp_path / "project", models)


def test_a_run_plans_fetches_converts_and_loads_a_published_model_with_its_lora(hub, project):
    project.configure(one={**RUN, "model": "published"}, two={**RUN, "model": "shapes-longlive"})
    planned = project.output("-n", *ONE_WORKER)
    assert "weights.published" in planned and "one.generate.000" in planned and hub.requests == []
    project.run(*ONE_WORKER)
    films = [project.path(f"results/{name}.mp4") for name in ("one/a_lora", "two/a_regular")]
    converted, shipped = (zoo.rgb_by_ffmpeg(film, (64, 64)) for film in films)
    assert len(converted) == 9 and (converted == shipped).all()
    (generated,) = [one for one in project.read("one/a_lora.json")["provenance"] if one["stage"] == "generate"]
    (lora,) = generated["options"]["lora"]
    assert lora.endswith("/lora.safetensors")
    record = project.read("weights/published.json")
    assert record["conversion"]["revisions"] == dict.fromkeys(published.CONVERT.values(), REVISION)
    assert "transformer/diffusion_pytorch_model.safetensors" in record["files"]
    hub.requests.clear()
    assert "Nothing to be done" in project.run(*ONE_WORKER)
    assert hub.requests == []
