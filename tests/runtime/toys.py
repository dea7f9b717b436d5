"""A stage for the tests of the item loop: it copies text from its input, and fails or dies on certain words."""

import os
from pathlib import Path

from stages.runtime.artifacts import write_index
from stages.runtime.errors import ItemError, UsageError
from stages.runtime.loop import Loop, Settings
from stages.runtime.options import Family, Implementation, Options, option
from stages.runtime.stages import Input, Stage
from stages.runtime.store import Store
from stages.runtime.worker import Worker
from tests.records import fields

STAGE = Stage("toy", 1, (Input("video", ("file", "caption"), "a text file or a caption"),), ("caption",), "A toy.", "frames")


class ToyOptions(Options):
    factor: int = option(1, "Multiplies")
    label: str = option("", "Changes nothing", changes_result=False)
    saving: bool = option(False, "Needs less memory")
    offload: str = option("none", "Weights in main memory", offloads=("block_level",))


FINISHED: list[str] = []  # ids of the items that were run
DURING_RUN: list = []  # functions, called in order, each in the middle of one run of a toy


class Toy(Worker):
    """The text "bad" is a fault of the item, "refused" of its options, "bug" an unexpected error, "full" a full disk. "big"
    fits into memory only with the option `saving`, and "kill" kills the process."""

    def run(self, work):
        text = Path(work.inputs["video"]).read_text() if isinstance(work.inputs["video"], Path) else "0"
        if text == "bad":
            raise ItemError("the toy is bad", "mend it")
        if text == "refused":
            raise UsageError("the option is wrong", "mend it")
        if text == "bug":
            raise ValueError("a bug\nof two lines")
        if text == "big" and not work.options.saving:
            raise MemoryError("too big")
        if text == "full":
            raise OSError(28, "No space left on device")
        if text == "kill":
            os.kill(os.getpid(), 9)
        FINISHED.append(work.item.id)
        if DURING_RUN:
            DURING_RUN.pop(0)()
        write_index(work.output, "caption", fields("caption", prompt=text * work.options.factor))


def loop(store: Path, *, model=None, stage=STAGE, options=ToyOptions, family_version=1, mark_failed=True, **implementation):
    """An item loop over toys, which need no model."""
    family = Family("toys", family_version, {"toy": Implementation("tests.runtime.toys:Toy", options, **implementation)})
    return Loop(stage, family, model, Store(store), Settings(mark_failed=mark_failed))
