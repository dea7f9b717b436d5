"""Configs, lists of clips and plan files with random damage by fixed seeds: each is read, or refused in one sentence."""

import copy
import json
import math
import random
from pathlib import Path

import pytest
import yaml

from stages import plan
from stages.runtime.errors import UsageError
from stages.runtime.text import read_yaml

ODD = [
    *(
        None,
        True,
        0,
        -1,
        1.5,
        math.nan,
        math.inf,
        10**30,
        "",
        " ",
        "~",
        "{x}",
        "<a>",
        "a\nb",
        "\0",
        "\ud83d",
        "x" * 300,
        "../a",
    ),
    *([], {}, [[]], {"a": 1}, {7: 7}, [None], ["a", 7], "{clip.__class__}.mp4", "64x64", "nan", "1e999", "9" * 5000),
]
LISTS = {
    "clips.jsonl": '{"id": "a", "video": "a.mp4", "prompt": "a cat", "steps": 3}\n{"video": "b.mp4", "frame_num": 5}\n',
    "clips.csv": 'id,video,prompt,steps\na,a.mp4,"a cat, asleep",3\n,b.mp4,"a ""big"" cat",\n',
    "clips.txt": "a cat\n\na dog\n",
}


def replace_randomly(value, rng: random.Random):
    """A deep copy of a value with one random part replaced by something odd."""
    if not isinstance(value, (dict, list)) or not value or rng.random() < 0.2:
        return copy.deepcopy(rng.choice(ODD))
    key = rng.choice([*value] if isinstance(value, dict) else range(len(value)))
    changed = copy.copy(value)
    changed[key] = replace_randomly(value[key], rng)
    if isinstance(changed, dict) and rng.random() < 0.1:
        changed[rng.choice([7, None, True, "odd", "x" * 300, "a.b"])] = changed.pop(key)
    return changed


def damage(data: bytes, rng: random.Random) -> bytes:
    """Bytes with random pieces changed, removed, doubled or inserted."""
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(data) + 1)
        piece = rng.choice(
            [
                b"\0",
                b"\xff",
                b'"',
                b"{",
                b"[" * 200,
                b"&a ",
                b"*a",
                b"\n",
                b"\r",
                b",",
                b":",
                b"\xe2\x80\xa8",
                b"\xef\xbb\xbf",
            ]
        )
        end = min(len(data), place + rng.randint(0, 8))
        data = data[:place] + rng.choice([piece, b"", data[place:end] * 2]) + data[end:]
    return data


def plan_config(config) -> None:
    """Plan a config as far as possible. A mistake in it must be a UsageError of one line."""
    try:
        planned = plan.load(config, 2)
        for rule in planned.rules():
            assert isinstance(rule, str)
        reasons = [broken.reason for broken in planned.broken]
        planned.begin()
        for job in planned.jobs:
            json.dumps(job.mark + job.command(1))
            "".join(item.line() for item in job.items).encode()
    except UsageError as error:
        reasons = [str(error)]
    assert all(reason and "\n" not in reason for reason in reasons)


@pytest.mark.parametrize("seed", range(4))
def test_a_randomly_damaged_config_is_planned_or_refused(config, seed):
    rng = random.Random(seed)
    config |= {"results": "results", "store": "store", "options": {"steps": 4}, "resources": {"generate": {"mem_mb": 9}}}
    config["runs"]["demo"] |= {"name": "{clip}.mp4"}
    for _ in range(60):
        plan_config(replace_randomly(config, rng))


@pytest.mark.parametrize("name", LISTS)
def test_a_randomly_damaged_list_of_clips_is_read_or_refused(config, name):
    rng = random.Random(name)
    recipe = {"recipe": "text2video", "model": "small"} if name == "clips.txt" else {}
    config["runs"]["demo"] |= {"clips": name, **recipe}
    for _ in range(100):
        Path(name).write_bytes(damage(LISTS[name].encode(), rng))
        plan_config(config)


def test_randomly_damaged_config_and_plan_files_are_read_or_refused(config):
    rng = random.Random(7)
    text = yaml.safe_dump(config).encode()
    fixed = json.dumps({"version": 1, "seed": 7, "shards": [["a"], ["b"]]}).encode()
    Path("results/demo").mkdir(parents=True)
    for _ in range(100):
        Path("results/demo/plan.json").write_bytes(damage(fixed, rng))
        plan_config(config)
        Path("results/demo/plan.json").unlink()
        Path("config.yaml").write_bytes(damage(text, rng))
        try:
            plan.check_files(["config.yaml"])
            loaded = read_yaml("config.yaml")
        except UsageError as error:
            assert "\n" not in str(error)
        else:
            plan_config(loaded or {})
