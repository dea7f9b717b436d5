"""Renders a model's chat template safely.

A template is a program in the model's folder. So it runs in a process of its own with limited time and memory: an endless
loop or a text of gigabytes is only an error.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
from collections.abc import Mapping, Sequence
from functools import lru_cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from stages.families.vlm.traits import Traits
from stages.runtime.errors import JobError, one_line

SECONDS = 20
MEMORY = 2**30  # bytes, in addition to the memory of this process
MAX_CHARACTERS = 100_000  # characters


@lru_cache(maxsize=64)
def chat(traits: Traits, tokenizer: Any, times: tuple[float, ...], instruction: str) -> str:
    """The chat that asks an instruction about frames of these times, in seconds, up to the start of the answer.

    Raises JobError for a template that fails, does not end, or has no placeholder for the frames.
    """
    text = render(tokenizer, [{"role": "user", "content": traits.content(times, instruction)}])
    shown = 1 if traits.as_video else len(times)
    if text.count(traits.token(tokenizer, traits.placeholder)) < shown:
        raise template_error(tokenizer, f"has no placeholder for {'a video' if traits.as_video else 'each image'}")
    return text


def render(tokenizer: Any, messages: Sequence[Mapping[str, Any]]) -> str:
    """Render the chat template in a process of its own. Raises JobError."""
    context = multiprocessing.get_context("fork")  # shares the tokenizer, and imports nothing anew
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=send_rendered, args=(tokenizer, messages, sender), daemon=True)
    process.start()
    sender.close()
    try:
        if not receiver.poll(SECONDS):
            raise template_error(tokenizer, f"did not end within {SECONDS} seconds")
        text, fault = receiver.recv()
    except EOFError:
        raise template_error(tokenizer, "ended its process") from None
    finally:
        process.kill()
        process.join()
        receiver.close()
    if fault:
        raise template_error(tokenizer, f"fails ({fault})")
    return text


def send_rendered(tokenizer: Any, messages: Sequence[Mapping[str, Any]], sender: Connection) -> None:
    """Render in the child process, and send the text and the error; one of them is empty."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    try:
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        sender.send((text, "") if len(text) <= MAX_CHARACTERS else ("", f"its text has {len(text)} characters"))
    except Exception as error:  # a template can raise any exception
        sender.send(("", one_line(error)))


def template_error(tokenizer: Any, fault: str) -> JobError:
    return JobError(f"the chat template of {tokenizer.name_or_path} {fault}", "use the template that was published")
