"""A model by name: where its weights are, and the digest of the files that a stage reads."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from stages.runtime.artifacts import canonical, file_digest
from stages.runtime.components import read_object
from stages.runtime.errors import JobError, UsageError, in_quotes, is_scalar, shown
from stages.runtime.files import read_plain, replacing
from stages.runtime.options import DTYPES, Family
from stages.runtime.places import dangling
from stages.runtime.size import size_text
from stages.runtime.text import read_yaml

DEFAULT_CONFIG = Path("config.yaml")
SETTINGS = "kinemake.json"  # in a model's folder: what a config would declare of it
LONGEST_NOTE = 2**16  # bytes: a path and some numbers
HUB_ID = r"^[A-Za-z0-9][\w.-]*/[\w.-]+$"


@dataclass(frozen=True)
class Model:
    """Named weights of a family: in a folder (`path`), or a repository of the model hub (`hub`, at `revision`)."""

    name: str
    family: str
    variant: str = ""
    path: str = ""
    hub: str = ""
    revision: str = "main"
    dtype: str = ""
    sizes: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def all_options(self) -> dict[str, Any]:
        """The options that the declaration sets, its dtype among them."""
        return {**({"dtype": self.dtype} if self.dtype else {}), **self.options}

    @property
    def identity(self) -> dict[str, str]:
        """Which weights these are; what the declaration sets beside that is in the items' options."""
        return {name: getattr(self, name) for name in ("name", "family", "variant", "path", "hub", "revision")}

    def folder(self) -> Path:
        """The folder of the weights, without any network. Raises JobError when they are not there."""
        if self.path:
            if not os.path.isdir(self.path):
                raise JobError(f"the weights of model {self.name} are not at {self.path}", "put them there or mend the path")
            return Path(self.path)
        from huggingface_hub import snapshot_download

        try:
            # no pattern: the files that nothing reads need not be there, and the others are looked at by `weights.check`
            return Path(snapshot_download(self.hub, revision=self.revision, local_files_only=True, allow_patterns=[]))
        except Exception as error:  # the library raises several classes for a repository that is not in its cache
            raise JobError(
                f"the weights of model {self.name} ({self.hub}, revision {self.revision}) are not on this machine",
                f"fetch them once: {self.fetching}",
            ) from error

    def here(self) -> Path | None:
        """The folder of the weights; None where they are not on this machine."""
        try:
            return self.folder()
        except JobError:
            return None

    def files(self, patterns: Iterable[str]) -> list[Path]:
        """The files that match the patterns, without the model's settings: what those say is among the items' options."""
        found = {path for pattern in patterns for path in self.folder().glob(pattern) if os.path.isfile(path)}
        return sorted(path for path in found if path.name != SETTINGS)

    @property
    def fetching(self) -> str:
        """The command that brings the weights of a Hub id here."""
        return f"hf download {self.hub} --revision {self.revision}" if self.name == self.hub else f"fetch {self.name}"

    def digest(self, patterns: Iterable[str]) -> str:
        """SHA-256 over the files that match the patterns, by relative name and content. Raises JobError if none does."""
        folder, files = self.folder(), self.files(patterns)
        if not files:
            raise JobError(f"{folder} has no {' or '.join(patterns)}", f"it does not hold a model of family {self.family}")
        listing = [[path.relative_to(folder).as_posix(), cached_file_digest(path)] for path in files]
        return hashlib.sha256(canonical(listing)).hexdigest()


def cache_folder() -> Path:
    base = os.environ.get("KINEMAKE_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kinemake"
    return Path(base)


def cached_file_digest(path: Path) -> str:
    """SHA-256 of a file, remembered by path, size and times: 60 GB of weights are read once, not once per job.

    The ctime is among them: a program may set the other time back, after it has written.
    """
    path = path.resolve()
    stat = path.stat()
    identity = [str(path), stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    note = cache_folder() / "digests" / hashlib.sha256(str(path).encode()).hexdigest()
    try:
        *known, digest = json.loads(read_plain(note, LONGEST_NOTE))
        if known == identity:
            return digest
    except (OSError, ValueError, TypeError, RecursionError):
        pass
    digest = file_digest(path)
    try:
        with replacing(note) as temporary:
            temporary.write_text(json.dumps([*identity, digest]))
    except OSError:
        pass  # a cache that cannot be written costs time, not the work
    return digest


def declared_model(name: str, entry: Mapping[str, Any]) -> Model:
    """A model as the config declares it. Raises UsageError for a key that there is not, or a value of a wrong type."""
    if not isinstance(entry, Mapping):
        raise UsageError(f"model {name} is {shown(entry)}", "it must be a table with family and path")
    types = {"sizes": list, "options": dict}
    known = [field.name for field in fields(Model) if field.name != "name"]
    for key, value in entry.items():
        if key not in known:
            raise UsageError(f"model {name} has the unknown key {shown(key)}", f"known are {', '.join(known)}")
        if not isinstance(value, types.get(key, str)):
            remedy = in_quotes(value) if key not in types and is_scalar(value) else "compare it with docs/config.md"
            raise UsageError(f"{key} of model {name} is {shown(value)}", remedy)
    if "family" not in entry:
        raise UsageError(f"model {name} has no family", "add family: which code runs the model")
    given = {
        "sizes": tuple(map(size_text, entry.get("sizes", ()))),
        "options": entry.get("options", {}),
        "path": os.path.expanduser(entry.get("path", "")),
    }
    return Model(name=name, **{**entry, **given})


def find_model(name: str, config: Path | None, families: Mapping[str, Family]) -> Model:
    """The model that is called `name`: declared in the config, a folder, or a Hub id that is on this machine.

    Raises UsageError when it is none of these, or its family cannot be told.
    """
    declared = declared_models(config)
    if name in declared:
        return completed(declared[name], families)
    if os.path.isdir(name):
        model = Model(name=name, family="", path=name)
    elif re.match(HUB_ID, name):
        model = Model(name=name, family="", hub=name)
    else:
        raise UsageError(
            f"model {name} is no folder, no Hub id, and not declared in {config or DEFAULT_CONFIG}",
            f"declared are {', '.join(declared) or 'none'}",
        )
    return completed(replace(model, family=told_family(model, families)), families)


def told_family(model: Model, families: Mapping[str, Family]) -> str:
    """The family that a model's folder says it is of, or looks like. Raises UsageError."""
    if (path := settings_in(model.folder())) and (name := read_settings(path, None).get("family")):
        return name
    for family in families.values():
        if family.detect(model.folder()) is not None:
            return family.name
    raise UsageError(
        f"{model.name} does not hold a model of family {' or '.join(families)}",
        "its layout must be that of diffusers or transformers, as in the Hub's repositories ...-Diffusers and ...-HF",
    )


def completed(model: Model, families: Mapping[str, Family]) -> Model:
    """A declared model with what its folder says of it, where that is on this machine. Raises UsageError."""
    return with_variant(with_settings(model, families), families)


def with_settings(model: Model, families: Mapping[str, Family]) -> Model:
    """The model with the settings that lie in its folder, below those of its declaration. Raises UsageError."""
    if not (folder := model.here()) or not (path := settings_in(folder)):
        return model
    settings = read_settings(path, families.get(model.family))
    if (family := settings.get("family", model.family)) != model.family:
        raise UsageError(f"model {model.name} is declared as family {model.family}", f"{path} says {family}")
    own = {**settings.get("recipe", {}), **settings.get("options", {})}
    own |= {"dtype": settings["dtype"]} if "dtype" in settings else {}
    return replace(
        model,
        variant=model.variant or settings.get("variant", ""),
        dtype="",
        sizes=model.sizes or tuple(settings.get("sizes", ())),
        options={**own, **model.all_options},
    )


def settings_in(folder: Path) -> Path | None:
    """The settings in a model's folder; None where there are none. Raises UsageError where no file stands in their place."""
    path = folder / SETTINGS
    if not os.path.lexists(path):
        return None
    if not os.path.isfile(path):
        raise UsageError(
            f"{path} {dangling(path) or 'is no file'}", "put the file there, or remove what stands in its place"
        )
    return path


def read_settings(path: Path, family: Family | None) -> dict[str, Any]:
    """What a model's folder says of it: family, variant, dtype, sizes, `options` of its stages, and those of recipes.

    Nobody vouches for the file, so it is held to the declarations of the family's options, and names files only in its own
    folder. Raises UsageError.
    """
    try:
        settings = read_object(path)
    except JobError as error:
        raise UsageError(error.reason, error.remedy) from None
    kinds = {"family": str, "variant": str, "dtype": str, "sizes": list, "options": dict, "recipe": dict}
    for name, value in settings.items():
        if name not in kinds:
            raise UsageError(f"{path} has the unknown key {name!r}", f"known are {', '.join(kinds)}")
        if not isinstance(value, kinds[name]):
            raise UsageError(f"{path} has {shown(value)} for {name}", "compare it with docs/config.md")
    try:
        sizes = [size_text(size) for size in settings.get("sizes", ())]
    except UsageError as error:
        raise UsageError(f"{path}: {error.reason}", error.remedy) from None
    if settings.get("dtype", DTYPES[0]) not in DTYPES:
        raise UsageError(f"{path} has {settings['dtype']!r} for dtype", f"it must be one of {', '.join(DTYPES)}")
    options = settings.get("options", {})
    if family:
        options = {name: setting_of(family, name, value, path) for name, value in options.items()}
    return {**settings, **({"sizes": sizes} if sizes else {}), "options": options}


def write_settings(folder: Path, settings: Mapping[str, Any], before: Path | None = None) -> None:
    """Write what a model says of itself, over what the model `before`, of which it was made, says of itself."""
    old: dict[str, Any] = {}
    if before and (path := settings_in(before)):
        said = read_settings(path, None)
        old = said if said.get("family") == settings["family"] else {}
    options = {**old.get("options", {}), **settings.get("options", {})}
    text = json.dumps({**old, **settings, "options": options}, indent=2, ensure_ascii=False)
    (folder / SETTINGS).write_text(text + "\n", encoding="utf-8")


def setting_of(family: Family, name: str, value: Any, path: Path) -> Any:
    """The value of an option in a model's settings; a file is one of the model's folder. Raises UsageError."""
    option = next((option for option in family.options if option.name == name and not option.by_recipe), None)
    if option is None:
        raise UsageError(f"{path} sets {name!r}, which is no option of family {family.name}", "leave it out")
    try:
        value = option.parse(value)
    except UsageError as error:
        raise UsageError(f"{path}: {error.reason}", error.remedy) from None
    if option.is_file and value:
        if Path(value).is_absolute() or ".." in Path(value).parts:
            raise UsageError(f"{path} names {value!r} for {name}", "name a file of the model's folder")
        return str(path.parent / value)
    return value


def declared_models(config: Path | None) -> dict[str, Model]:
    """What a config declares under models; the one of this folder, which may be missing, where none is named.

    Raises UsageError where it cannot be read.
    """
    path = config or DEFAULT_CONFIG
    if config and not os.path.isfile(config):
        raise UsageError(f"the config {config} does not exist", "mend the path")
    if not os.path.lexists(path):
        return {}
    return {name: declared_model(name, entry) for name, entry in table_of(path, "models").items()}


def table_of(path: Path, key: str) -> dict[str, Any]:
    """The table under a key of a config, empty where there is none. Raises UsageError."""
    config = read_yaml(path)
    if config is None:
        config = {}
    table = config.get(key) if isinstance(config, dict) else config
    if table is None:
        table = {}
    if not isinstance(table, dict):
        raise UsageError(f"{key} of {path} is {shown(table)}", "it must be a table of names: compare it with docs/config.md")
    return {str(name): entry for name, entry in table.items()}


def pick_declared(name: str, declared: Mapping[str, Model]) -> Model:
    """The declared model of that name. Raises UsageError where there is none."""
    if name not in declared:
        raise UsageError(f"model {name} is not declared in the config", f"declared are {', '.join(declared) or 'none'}")
    return declared[name]


def with_variant(model: Model, families: Mapping[str, Family]) -> Model:
    """The model with its variant told from its folder, where the declaration leaves it out. Raises UsageError."""
    family = families.get(model.family)
    if family is None:
        return model
    if family.variants and not model.variant and (folder := model.folder() if model.path else model.here()):
        model = replace(model, variant=family.detect(folder) or "")
    check_variant(model, family)
    return model


def check_variant(model: Model, family: Family) -> None:
    """Raise UsageError for a variant that the family does not have."""
    if model.variant not in (family.variants or ("",)):
        raise UsageError(
            f"model {model.name} of family {family.name} has the variant {model.variant!r}",
            f"set variant to one of {', '.join(family.variants)}" if family.variants else "leave variant out",
        )
