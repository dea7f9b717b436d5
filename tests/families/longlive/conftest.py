"""A tiny transformer, and a tiny Wan2.1 repository into which LongLive's own checkpoint of tests/golden is converted."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel

ROOT = Path(__file__).parents[3]
SMALL = {"num_attention_heads": 2, "attention_head_dim": 24, "num_layers": 3, "ffn_dim": 64, "freq_dim": 32}


@pytest.fixture(scope="session")
def wan_repository(tmp_path_factory):
    """Folder with the architecture of the golden checkpoint, without weights of the transformer."""
    folder = tmp_path_factory.mktemp("wan2.1") / "repository"
    left_out = shutil.ignore_patterns("transformer", "README.md", "kinemake.json")
    shutil.copytree(ROOT / "models/shapes-longlive", folder, ignore=left_out)
    golden = json.loads((ROOT / "tests/golden/longlive/config.json").read_text())
    names = ("num_attention_heads", "attention_head_dim", "num_layers", "ffn_dim", "freq_dim", "text_dim")
    config = {name: golden[name] for name in (*names, "in_channels", "out_channels", "patch_size")}
    (folder / "transformer").mkdir()
    (folder / "transformer/config.json").write_text(json.dumps(config))
    return folder


def small_transformer():
    """A transformer with fixed random weights, none of them zero."""
    torch.manual_seed(0)
    model = WanTransformer3DModel(**SMALL, text_dim=16, in_channels=4, out_channels=4)
    for weights in model.parameters():
        torch.nn.init.normal_(weights, std=0.15)
    return model.eval()
