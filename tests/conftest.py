"""What tests of several rooms share. Nothing here imports torch before a test asks for a model."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Digests of weights are remembered in a folder of this session, not in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KINEMAKE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tiny_wan(tmp_path_factory):
    """Folders of tiny Wan2.2 repositories with random weights, by variant."""
    from tests.tiny.wan import make

    folder = tmp_path_factory.mktemp("wan")
    return {variant: make(folder / variant, variant) for variant in ("14b", "5b")}


@pytest.fixture(scope="session")
def tiny_vlm(tmp_path_factory):
    """Folder of a tiny InternVL with random weights."""
    from tests.tiny.vlm import make

    return make(tmp_path_factory.mktemp("vlm") / "internvl")
