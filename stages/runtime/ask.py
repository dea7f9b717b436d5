"""Questions at a terminal for what a command line leaves out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click

from stages.runtime.errors import KinemakeError
from stages.runtime.model import declared_models, find_model
from stages.runtime.options import Family


def ask_model_and_prompts(config: Path | None, families: Mapping[str, Family], model: str = "") -> tuple[str, list[str]]:
    """The given model, else one that is asked for, and the prompts that are asked for."""
    return model or ask_model(config, families), ask_prompts()


def ask_model(config: Path | None, families: Mapping[str, Family]) -> str:
    """Ask for a model of one of the families until the answer is a folder, a Hub id or a name in the config."""

    def check(answer: str) -> str:
        try:
            find_model(answer, config, families)
        except KinemakeError as error:
            raise click.BadParameter(str(error)) from None
        return answer

    names = [name for name, model in declared_models(config).items() if model.family in families]
    return click.prompt(f"model ({', '.join(['folder', 'Hub id', *names])})", value_proc=check)


def ask_prompts() -> list[str]:
    """Ask for prompts until an empty line."""
    prompts: list[str] = []
    while answer := click.prompt(f"prompt {len(prompts)} (empty: that was all)", default="", show_default=False):
        prompts.append(answer)
    return prompts
