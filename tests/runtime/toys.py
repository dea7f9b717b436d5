"""A stage for the tests of the item loop: it copies a number from its caption, and fails or dies when told."""

import os
from pathlib import Path

from stages.runtime.artifacts import write_index
from stages.runtime.errors import ItemError, UsageError
from stages.runtime.loop import Loop, Plant, Running
from stages.runtime.options import Option
from stages.runtime.stages import Input, Stage
from stages.runtime.store import Store
from stages.runtime.worker import Worker
from tests.records import fields

STAGE = Stage("toy", 1, (Input("video", ("file", "caption"), "a text file or a caption"),), "caption", "A toy.", "frames")
OPTIONS = (
    Option("factor", int, 1, "Multiplies", ("toy",)),
    Option("label", str, "", "Changes nothing", ("toy",), changes_result=False),
    Option("saving", bool, False, "Needs less memory", ("toy",)),
    Option("offload", str, "none", "Weights in main memory", ("toy",), offloads=("block_level",)),
)
MADE: list[str] = []
MEANWHILE: list = []  # functions: each is called in the middle of one run of a toy, in order


class Toy(Worker):
    """A text "bad" is the item's own fault, "refused" that of its options, "bug" an unexpected error, "big" fits only with
    saving, "kill" ends us."""

    def run(self, work, phase):
        text = Path(work.inputs["video"]).read_text() if isinstance(work.inputs["video"], Path) else "0"
        if text == "bad":
            raise ItemError("the toy is bad", "mend it")
        if text == "refused":
            raise UsageError("the option is wrong", "mend it")
        if text == "bug":
            raise ValueError("a bug\nof two lines")
        if text == "big" and not work.options["saving"]:
            raise MemoryError("too big")
        if text == "full":
            raise OSError(28, "No space left on device")
        if text == "kill":
            os.kill(os.getpid(), 9)
        MADE.append(work.item.id)
        if MEANWHILE:
            MEANWHILE.pop(0)()
        write_index(work.output, "caption", fields("caption", prompt=text * work.options["factor"]))


def loop(store: Path, *, mark_failed=True, **plant):
    """A loop over toys that need no model."""
    plant = Plant(STAGE, "tests.runtime.toys:Toy", **{"options": OPTIONS, **plant})
    return Loop(plant, Store(store), Running(mark_failed=mark_failed))
