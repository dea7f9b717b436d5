"""The log of a stage: one JSON object per line."""

import json
import sys
from typing import Any


def log(event: str, **facts: Any) -> None:
    """Write a line to standard error, unless a person is watching the progress bar there."""
    if not sys.stderr.isatty():
        print(json.dumps({"event": event, **facts}, ensure_ascii=False), file=sys.stderr, flush=True)
