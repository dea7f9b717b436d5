"""The log of a stage: one JSON object per line."""

import json
import sys
import time
from typing import Any

PROGRESS = ("load", "shard")  # the progress bar shows what these say


def log(event: str, **facts: Any) -> None:
    """Write a line to standard error; `time` is in seconds since 1970.

    A person at a terminal is shown only what the progress bar does not tell.
    """
    if sys.stderr.isatty() and (event in PROGRESS or facts.get("status") in ("made", "reused")):
        return
    line = {"event": event, **facts, "time": round(time.time(), 3)}
    print(json.dumps(line, ensure_ascii=False), file=sys.stderr, flush=True)
