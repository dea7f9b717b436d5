"""Check that a result is what its provenance says: its files, all that it was made of, and its entries in the store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from stages.runtime import artifacts
from stages.runtime.artifacts import Artifact, file_digest, index_path, member_path
from stages.runtime.errors import ItemError, JobError
from stages.runtime.inputs import open_input
from stages.runtime.key import digest_options, digest_work
from stages.runtime.model import Model
from stages.runtime.options import Family
from stages.runtime.result_record import read_record
from stages.runtime.stages import STAGES
from stages.runtime.store import STEM, Store, damage

Record = Mapping[str, Any]  # a record of a provenance, see docs/artifacts.md
FindModel = Callable[[Record], Model]  # the model of a record on this machine; raises JobError or UsageError


@dataclass
class Verification:
    """What was found about a result.

    Attributes:
        faults: sentences about what is not as the provenance says.
        absent: what could not be compared, because it is not there any more.
        checked: number of files, models and store entries that were compared.
    """

    faults: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    checked: int = 0

    def compare(self, name: str, read: Callable[[], str], expected: str, role: str) -> None:
        """Compare the digest of something with the `expected` one. `role` follows "is not"."""
        try:
            found = read()
        except FileNotFoundError:
            self.absent.append(name)
        except OSError as error:
            self.faults.append(f"{name} cannot be read ({error.strerror})")
        except (ItemError, JobError) as error:
            self.faults.append(f"{error.reason}, so it is not {role}")
        else:
            self.checked += 1
            if found != expected:
                self.faults.append(f"{name} is not {role}: its SHA-256 is {found[:12]}, and it was {expected[:12]}")


def verify(output: Path, families: Mapping[str, Family], store: Store | None, find: FindModel) -> Verification:
    """Compare a result with its provenance. Relative paths in it start at the working directory.

    Raises ItemError for a file that is no result.
    """
    description, found = artifacts.read_description(output), Verification()
    if description.failure:
        raise ItemError(f"{output} says why an item failed ({description.failure.reason})", "give a film, or another result")
    if not description.provenance:
        raise ItemError(f"{output} has no provenance", "give a film, or another result, of a stage")
    for path, digest in own_files(output, description).items():
        found.compare(str(path), partial(file_digest, path), digest, f"the file of the result {output}")
    for record in description.provenance:
        verify_record(record, families, find, found)
    if store:
        verify_entries(description, store, found)
    return found


def own_files(output: Path, description: Artifact) -> dict[Path, str]:
    """The files of a result with their digests, by its record and its description."""
    index = index_path(output)
    files = {member_path(index, suffix): facts["sha256"] for suffix, facts in description.members.items()}
    if record := read_record(output):
        files |= {output.parent / name: digest for name, (_, _, digest) in record.files.items()}
    return files


# --------------------------------------------------------------------------------------------------------------- inputs


def verify_record(record: Record, families: Mapping[str, Family], find: FindModel, found: Verification) -> None:
    """Compare the inputs, the files of options and the weights of an item with its record, and the key with all of it."""
    role = f"what {record['stage']} read"
    for path, (digest, kinds) in inputs_of(record).items():
        found.compare(path, partial(input_digest, path, kinds), digest, role)
    family = families.get(record.get("family", ""))
    if family is None or record["stage"] not in family.stages:
        return found.absent.append(f"the family {record.get('family') or 'of ' + record['stage']}")
    implementation = family.stages[record["stage"]]
    for name, paths in implementation.files_in(record["options"]).items():
        for path, digest in zip(paths, record["option_files"].get(name, ())):
            found.compare(path, partial(file_digest, Path(path)), digest, f"the {name} that {record['stage']} read")
    if record["weights"]:
        verify_weights(record, family, find, found)
    verify_key(record, family, found)


def inputs_of(record: Record) -> dict[str, tuple[str, tuple[str, ...]]]:
    """The digest and the possible kinds of each input of a record, by its path."""
    kinds = {spec.name: spec.kinds for spec in STAGES[record["stage"]].inputs}
    digests = chain(*([(digest, kinds.get(name, ())) for digest in many] for name, many in record["inputs"].items()))
    return dict(zip(record["files"], digests))


def input_digest(path: str, kinds: tuple[str, ...]) -> str:
    """The digest of an artifact's content, or SHA-256 of a user's file. Raises OSError, ItemError."""
    Path(path).stat()
    opened = open_input(path, kinds)
    assert not isinstance(opened, list)
    return opened.digest if isinstance(opened, Artifact) else file_digest(opened)


def verify_weights(record: Record, family: Family, find: FindModel, found: Verification) -> None:
    model = find(record)
    name = f"model {model.name}"
    if model.here() is None:
        return found.absent.append(name)
    patterns = family.stages[record["stage"]].weights
    role = f"what {record['stage']} loaded"
    found.compare(name, lambda: model.digest(patterns, verify=True), record["weights"], role)


def verify_key(record: Record, family: Family, found: Verification) -> None:
    """Compare the key with what it is the digest of. Other versions of the code have other keys."""
    stage = STAGES[record["stage"]]
    if (stage.version, family.version) != (record["stage_version"], record["family_version"]):
        versions = f"version {record['stage_version']} of {stage.name}, {record['family_version']} of {family.name}"
        return found.absent.append(versions)
    declared = family.stages[stage.name].options.declared
    if unknown := {option.name for option in declared} ^ record["options"].keys():
        return found.absent.append(f"option {min(unknown)} of {stage.name}")
    options = digest_options(declared, record["options"])
    key = digest_work(stage, family, options, record["option_files"], record["inputs"], record["weights"])
    found.checked += 1
    if key != record["key"]:
        found.faults.append(f"the record of {stage.name} was edited: its options, inputs and weights do not give its key")


# ---------------------------------------------------------------------------------------------------------------- store


def verify_entries(description: Artifact, store: Store, found: Verification) -> None:
    """Compare the store's entries of the items with what later items read, and the last with the result."""
    known: dict[str, set[str]] = {description.provenance[-1]["key"]: {description.digest}}
    for record in description.provenance:
        for key, digest in zip(record.get("input_keys", ()), chain(*record["inputs"].values())):
            known.setdefault(key, set()).add(digest)
    for record in description.provenance:
        entry, name = store.entry(record["key"]), f"the store entry of {record['stage']}, {record['key'][:12]}"
        if not entry.exists():
            found.absent.append(name)
            continue
        found.checked += 1
        try:
            problem = damage(entry, record["key"])
        except OSError as error:
            problem = f"it cannot be read: {error.strerror}"
        if problem:
            found.faults.append(f"{name} is damaged ({problem})")
        elif (expected := known.get(record["key"])) and expected.isdisjoint(entry_digests(entry)):
            found.faults.append(f"{name} holds another result than the one that was read")


def entry_digests(entry: Path) -> Iterator[str]:
    """The digest of the artifact in an entry, as later stages compute it."""
    for path in entry.glob(f"{STEM}.*"):
        with suppress(ItemError):
            yield artifacts.read_description(path).digest
