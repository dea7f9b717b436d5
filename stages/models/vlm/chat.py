"""A model's chat template at work. It is a program that came with the model's folder, so it gets a process of its own, with
little time and memory: a loop that never ends, or a text of gigabytes, is an error and no more than that."""

from __future__ import annotations

import multiprocessing
import os
import resource
from collections.abc import Mapping, Sequence
from functools import lru_cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from stages.runtime.errors import JobError, one_line

SECONDS = 20
MEMORY = 2**30  # bytes, beside what this process has
LONGEST = 100_000  # characters


@lru_cache(maxsize=16)
def chat(tokenizer, instruction: str) -> str:
    """The chat in which an instruction is given about a video, up to where the answer begins. Raises JobError for a template
    that fails, does not end, or has no place for the video."""
    content = [{"type": "video"}, {"type": "text", "text": instruction}]
    text = render(tokenizer, [{"role": "user", "content": content}])
    if tokenizer.video_token not in text:
        raise broken(tokenizer, "has no place for a video")
    return text


def render(tokenizer, messages: Sequence[Mapping[str, Any]]) -> str:
    context = multiprocessing.get_context("fork")  # the tokenizer is there already, and nothing is imported anew
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=send_rendered, args=(tokenizer, messages, sender), daemon=True)
    process.start()
    sender.close()
    try:
        if not receiver.poll(SECONDS):
            raise broken(tokenizer, f"did not end within {SECONDS} seconds")
        text, fault = receiver.recv()
    except EOFError:
        raise broken(tokenizer, "ended its process") from None
    finally:
        process.kill()
        process.join()
        receiver.close()
    if fault:
        raise broken(tokenizer, f"fails ({fault})")
    return text


def send_rendered(tokenizer, messages: Sequence[Mapping[str, Any]], sender: Connection) -> None:
    """In the process of its own: send the text, or what went wrong."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    try:
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        sender.send((text, "") if len(text) <= LONGEST else ("", f"its text has {len(text)} characters"))
    except Exception as error:  # a template raises what it likes
        sender.send(("", one_line(error)))


def broken(tokenizer, fault: str) -> JobError:
    return JobError(f"the chat template of {tokenizer.name_or_path} {fault}", "use the template that was published")
