"""Fixtures for all tests. Nothing here imports torch before a test uses a model."""

import signal

import pytest

from stages.runtime import own_run
from tests import preloaded

TINY_CLIP_TEXT = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "projection_dim": 16,
    "max_position_embeddings": 16,
}
TINY_TEXT2VIDEO = {
    "training": "text2video",
    "data": "shapes",
    "num_frames": 4,
    "frame_size": 16,
    "batch_size": 2,
    "warmup_steps": 0,
    "max_steps": 4,
    "num_timesteps": 50,
    "prediction_type": "sample",
    "validation_samples": 2,
    "validate_every": 2,
    "save_every": 2,
    "sample_steps": 2,
    "architecture": {
        "text_encoder": TINY_CLIP_TEXT,
        "unet": {
            "model_channels": 8,
            "channel_mult": [1, 2],
            "layers_per_block": 1,
            "attention": ["temporal", "joint"],
            "head_dim": 8,
            "patch_size": [2, 2, 2],
        },
    },
}

LONGEST = (
    "tests/test_shapes_models.py",
    "tests/workflow/",
    "tests/test_docs.py",
)  # run first, so that all processes end together


def pytest_configure():
    """A shell lets programs in its background ignore Ctrl-C, which tests send to themselves."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))


@pytest.fixture(autouse=True)
def no_run(monkeypatch):
    """A plan that a test writes in this process does not make this process a job of a run."""
    monkeypatch.setenv(own_run.NOTE, "")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Cached digests of weights are in a folder of this session, not in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KINEMAKE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def preloaded_programs(tmp_path_factory):
    """Folder of `python` and the other programs of this environment, which have the libraries imported when they start."""
    folder = tmp_path_factory.mktemp("programs")
    with preloaded.start(folder):
        yield folder


@pytest.fixture(scope="session")
def tiny_wan(tmp_path_factory):
    """Folders of tiny Wan2.2 repositories with random weights, by variant."""
    from tests.tiny.wan import make

    folder = tmp_path_factory.mktemp("wan")
    return {variant: make(folder / variant, variant) for variant in ("14b", "14b-t2v", "5b")}


@pytest.fixture(scope="session")
def tiny_vlm(tmp_path_factory):
    """Folder of a tiny InternVL with random weights."""
    from tests.tiny.vlm import make

    return make(tmp_path_factory.mktemp("vlm") / "internvl")


@pytest.fixture(scope="session")
def tiny_sd(tmp_path_factory):
    """Folder of a tiny Stable Diffusion with ControlNets and random weights."""
    from tests.tiny.sd import make

    return make(tmp_path_factory.mktemp("sd") / "tiny")


@pytest.fixture(scope="session")
def tiny_text2video(tmp_path_factory):
    """Folder of a training of a tiny 3D U-Net on shapes world, 4 steps long. Its model is in model/."""
    import yaml

    from tests.commands import train

    folder = tmp_path_factory.mktemp("text2video")
    (folder / "config.yaml").write_text(yaml.safe_dump(TINY_TEXT2VIDEO))
    train("text2video", "--config", folder / "config.yaml", "--output", folder / "training")
    return folder / "training"
