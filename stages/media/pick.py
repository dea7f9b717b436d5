"""The worker of `pick`: one of several takes becomes the clip that the chain goes on from."""

from __future__ import annotations

from collections.abc import Sequence

from stages.media.options import PickOptions
from stages.media.scores.figures import HIGHER, parse_pick
from stages.runtime.artifacts import KINDS, Artifact, member_path, write_index
from stages.runtime.errors import ItemError
from stages.runtime.inputs import PassedOn
from stages.runtime.log import log
from stages.runtime.store import LINKED, place
from stages.runtime.worker import Work, Worker


class Pick(Worker[PickOptions]):
    """Writes `clip`: the chosen take, with what it was chosen by. Of takes with latents it writes those: `latents`.

    It chooses among the takes that did not fail. If none is left, or if the one that is asked for failed, the failure is
    passed on.
    """

    def check(self, work: Work[PickOptions]) -> None:
        takes, scores, options = work.artifacts("clips"), scores_of(work), work.options
        if options.take > len(takes):
            raise ItemError(f"take {options.take} is asked for, and there are {len(takes)}", "name one of them")
        asked = takes[options.take - 1 : options.take] if options.take else takes
        if len(failures := [take.failure for take in asked if take.failure]) == len(asked):
            raise PassedOn(failures[0])
        kind = "latents" if "latents" in work.inputs else "clip"
        if not work.item.output.endswith(KINDS[kind].suffix):
            raise ItemError(f"output {work.item.output} is to hold {kind}", f"give it the ending {KINDS[kind].suffix}")
        if kind == "latents" and (count := len(work.artifacts("latents"))) != len(takes):
            raise ItemError(
                f"there are {len(takes)} takes and {count} latents", "give the latents of each take, in the same order"
            )
        if not options.take and options.by and len(scores) != len(takes):
            raise ItemError(
                f"there are {len(takes)} takes and {len(scores)} scores", "give the scores of each take, in the same order"
            )

    def run(self, work: Work[PickOptions]) -> None:
        takes, options = work.artifacts("clips"), work.options
        figure, better = parse_pick(options.by)
        failed = [number for number, take in enumerate(takes, 1) if take.failure]
        values = [] if options.take or not figure else [figure_of(*pair, figure) for pair in zip(takes, scores_of(work))]
        take = options.take or best(values, better)
        if not take:
            take = next(number for number in range(1, len(takes) + 1) if number not in failed)
            if figure:
                reason = f"no take has the figure {figure}"
                log("warning", item=work.item.id, reason=reason, remedy="the first is picked: pick by another figure")
        if "latents" in work.inputs:
            latents = work.artifacts("latents")[take - 1]
            if latents.failure:
                raise PassedOn(latents.failure)
            return place(latents.path, work.output, linked=False)
        chosen = takes[take - 1]
        for suffix in chosen.members:
            target = member_path(work.output, suffix)
            target.parent.mkdir(exist_ok=True)
            place(chosen.member(suffix), target, linked=target.suffix in LINKED)
        found = {"take": take, "of": len(takes), "by": options.by if values else "", "values": values}
        found |= {"failed": failed} if failed else {}
        write_index(work.output, "clip", {**chosen.fields, "pick": found}, chosen.members)


def scores_of(work: Work[PickOptions]) -> Sequence[Artifact]:
    return work.artifacts("scores") if "scores" in work.inputs else []


def figure_of(take: Artifact, scores: Artifact, figure: str) -> float | None:
    """A figure of a take; None if the take does not have it or failed. Raises ItemError if it was not measured."""
    if take.failure or scores.failure:
        return None
    figures = scores.fields["figures"]
    if figure not in figures:
        known = ", ".join(sorted(figures)) or "none"
        raise ItemError(f"{scores.path} has no figure {figure}", f"pick by one that was measured: {known}")
    return figures[figure]


def best(values: Sequence[float | None], better: str) -> int:
    """The number of the take with the best value, from 1: the first of equal ones; 0 if none has a value."""
    known = [(value if better == HIGHER else -value, -take) for take, value in enumerate(values, 1) if value is not None]
    return -max(known)[1] if known else 0
