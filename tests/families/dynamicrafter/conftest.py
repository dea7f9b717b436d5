import pytest

from tests.tiny import dynamicrafter as tiny


@pytest.fixture(scope="session")
def repositories(tmp_path_factory):
    """Folders of tiny models with random weights, by variant."""
    folder = tmp_path_factory.mktemp("dynamicrafter")
    return {variant: tiny.make(folder / variant, variant) for variant in ("256", "512", "512_interp")}
