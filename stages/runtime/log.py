"""The log of a stage: one JSON object per line."""

import json
import sys
from typing import Any

PROGRESS = ("load", "shard")  # the progress bar shows what these say


def log(event: str, **facts: Any) -> None:
    """Write a line to standard error. A person at a terminal is shown only what the progress bar does not tell."""
    if sys.stderr.isatty() and (event in PROGRESS or facts.get("status") in ("made", "reused")):
        return
    print(json.dumps({"event": event, **facts}, ensure_ascii=False), file=sys.stderr, flush=True)
