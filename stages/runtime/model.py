"""Find a model by name: the folder of its weights, its settings, and the digest of the files that a stage reads."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from stages.runtime.artifacts import file_digest
from stages.runtime.calls import command_line
from stages.runtime.canonical import canonical_json
from stages.runtime.checkout import CHECKOUT
from stages.runtime.components import read_object
from stages.runtime.errors import JobError, UsageError, choice_remedy, in_quotes, is_scalar, shown
from stages.runtime.files import read_plain, replacing
from stages.runtime.hub import is_source, parse_source
from stages.runtime.options import DTYPES, REQUIRED, Family, Published, rename_aliases, resolve
from stages.runtime.places import dangling
from stages.runtime.presets import check_preset_variant, with_preset
from stages.runtime.sizes import size_text
from stages.runtime.text import read_yaml

DEFAULT_CONFIG = Path("config.yaml")
SETTINGS = "kinemake.json"  # file in a model's folder with the same keys as its declaration in a config
PLACES = ("path", "hub", "convert")  # keys of a declaration, one of which says where the weights are
OTHER_LAYOUT = "is not in a layout that Kinemake loads"
MOST_NAMES = 10_000  # files of a folder that are looked at
LONGEST_NOTE = 2**16  # bytes of a cached digest: a path and some numbers
CLOCK_TICK = 20_000_000  # ns: longer than the kernel's clock takes, by which files get their times
HASHERS = 8  # threads: more than a disk serves at once
HUB_ID = r"^[A-Za-z0-9][\w.-]*/[\w.-]+$"


@dataclass(frozen=True)
class Model:
    """Named weights of a family: a folder (`path`), a Hub repository (`hub` at `revision`), or what a conversion makes.

    `convert` has the values of the conversion's options, whose files are on the Hub. `converted`, which `complete_model`
    sets, is the folder of its result. `preset` names a published release whose option values the model has. `fetched`, which
    `complete_model` sets too, has the address on the Hub of each file that its options name there, by its path.
    """

    name: str
    family: str
    variant: str = ""
    path: str = ""
    hub: str = ""
    revision: str = "main"
    dtype: str = ""
    sizes: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    convert: Mapping[str, Any] = field(default_factory=dict)
    preset: str = ""
    converted: str = ""
    fetched: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_published(self) -> bool:
        """Whether `fetch` brings the weights from the Hub."""
        return bool(self.hub or self.convert)

    @property
    def source(self) -> str:
        """Where the weights come from: a folder, or repositories of the Hub."""
        return self.path or self.hub or ", ".join(value for value in self.convert.values() if is_source(value))

    @property
    def all_options(self) -> dict[str, Any]:
        """The options of the declaration, its dtype included."""
        return {**({"dtype": self.dtype} if self.dtype else {}), **self.options}

    @property
    def identity(self) -> dict[str, str]:
        """The fields that identify the weights. Options are left out, because the items contain them."""
        names = ("name", "family", "variant", "path", "hub", "revision")
        conversion = {"converted": os.path.basename(self.converted)} if self.convert else {}
        files = {"files": ", ".join(sorted(self.fetched.values()))} if self.fetched else {}
        return {**{name: getattr(self, name) for name in names}, **conversion, **files}

    def folder(self) -> Path:
        """The folder of the weights; the network is not used. Raises JobError if it does not exist."""
        if self.path:
            if not os.path.isdir(self.path):
                raise JobError(f"the weights of model {self.name} are not at {self.path}", "put them there or mend the path")
            if not os.access(self.path, os.R_OK | os.X_OK):
                raise JobError(f"{self.path} of model {self.name} may not be read by this user", "make it readable")
            return Path(self.path)
        if self.convert:
            if not os.path.isdir(self.converted):
                raise self._absent(f"converted from {self.source}")
            return Path(self.converted)
        from huggingface_hub import snapshot_download

        try:
            # no pattern: unread files may be absent, and `weights.check` validates the others
            return Path(snapshot_download(self.hub, revision=self.revision, local_files_only=True, allow_patterns=[]))
        except Exception as error:  # the library raises several classes for a repository that is not in its cache
            raise self._absent(f"{self.hub}, revision {self.revision}") from error

    def _absent(self, source: str) -> JobError:
        reason = f"the weights of model {self.name} ({source}) are not on this machine"
        return JobError(reason, f"fetch them once: {self.fetching}")

    def here(self) -> Path | None:
        """The folder of the weights, or None if they are not on this machine."""
        try:
            return self.folder()
        except JobError:
            return None

    def files(self, patterns: Iterable[str]) -> list[Path]:
        """The files that match the patterns. The settings file is left out, because the items contain its options."""
        found = {path for pattern in patterns for path in self.folder().glob(pattern) if os.path.isfile(path)}
        return sorted(path for path in found if path.name != SETTINGS)

    @property
    def fetching(self) -> str:
        """The command that downloads the weights."""
        if self.name == self.hub:
            return f"hf download {self.hub} --revision {self.revision}"
        return command_line("fetch", self.name)

    def digest(self, patterns: Iterable[str], verify: bool = False) -> str:
        """SHA-256 over relative paths and contents of the files that match. Raises JobError if none does.

        With `verify` every file is read, see `weights_digests`.
        """
        folder, files = self.folder(), self.files(patterns)
        if not files:
            raise JobError(f"{folder} has no {' or '.join(patterns)}", f"it does not hold a model of family {self.family}")
        names = [path.relative_to(folder).as_posix() for path in files]
        listing = [[name, digest] for name, digest in zip(names, weights_digests(files, verify))]
        return hashlib.sha256(canonical_json(listing)).hexdigest()


def cache_folder() -> Path:
    """Folder of cached digests. Raises JobError."""
    return Path(os.environ.get("KINEMAKE_CACHE") or user_cache() / "kinemake")


def conversions_folder() -> Path:
    """Folder of converted models, beside the hub's cache, with which they share files. Raises JobError."""
    return Path(os.environ.get("HF_HOME") or user_cache() / "huggingface").expanduser() / "kinemake"


def user_cache() -> Path:
    """The cache folder of this user. Raises JobError if neither HOME nor XDG_CACHE_HOME gives one."""
    if chosen := os.environ.get("XDG_CACHE_HOME"):
        return Path(chosen)
    try:
        return Path.home() / ".cache"
    except RuntimeError:
        remedy = "set HOME or XDG_CACHE_HOME to a folder that can be written"
        raise JobError("this user has no home folder", remedy) from None


def weights_digests(paths: Iterable[Path], verify: bool = False) -> list[str]:
    """SHA-256 of each of these files of a model, by several threads.

    A file of the hub's cache that is named by its digest is not read, unless `verify` is set. Raises JobError for a file
    that is unreadable or, with `verify`, damaged.
    """
    with ThreadPoolExecutor(min(HASHERS, len(os.sched_getaffinity(0)))) as pool:
        return [*pool.map(partial(weights_digest, verify=verify), paths)]


def weights_digest(path: Path, verify: bool = False) -> str:
    """SHA-256 of a file of a model, see `weights_digests`."""
    blob = path.resolve()
    named = blob.name if blob.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", blob.name) else ""
    try:
        digest = file_digest(blob) if verify else named or cached_file_digest(path)
    except OSError as error:
        raise JobError(f"{path} cannot be read ({error.strerror})", "make it readable") from None
    if named and digest != named:
        raise JobError(f"{path} has not the content that it was published with", f"remove {blob} and fetch the model again")
    return digest


def cached_file_digest(path: Path) -> str:
    """SHA-256 of a file, cached by path, size and times, so that 60 GB of weights are read once and not once per job.

    The ctime is part of the cache key, because a program may reset the mtime after it writes. A file that was written a
    moment ago is read a moment later, so that each later write gives it another ctime. Raises OSError.
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
    time.sleep(seconds_until_settled(stat.st_ctime_ns, time.time_ns()))
    digest = file_digest(path)
    try:
        with replacing(note) as temporary:
            temporary.write_text(json.dumps([*identity, digest]))
    except OSError:
        pass  # without a writable cache, the work is slower but correct
    return digest


def seconds_until_settled(ctime: int, now: int) -> float:
    """Seconds until a write of a file is certain to change its ctime. Both times are in nanoseconds.

    Two writes within a tick of the file system's clock, which may be a whole second, give one time.
    """
    tick = CLOCK_TICK + (10**9 if ctime % 10**9 == 0 else 0)
    return max(0, min(tick, ctime + tick - now)) / 1e9


def declared_model(name: str, entry: Mapping[str, Any]) -> Model:
    """A model as the config declares it. Raises UsageError for an unknown key or a value of the wrong type."""
    if not isinstance(entry, Mapping):
        raise UsageError(f"model {name} is {shown(entry)}", "it must be a table with family and path")
    types = {"sizes": list, "options": dict, "convert": dict}
    known = [field.name for field in fields(Model) if field.name not in ("name", "converted", "fetched")]
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
    """The model called `name`: declared in the config, a folder, or a Hub id in the local cache.

    Raises UsageError if it is none of these, or if its family cannot be detected.
    """
    declared = declared_models(config)
    if name in declared:
        return complete_model(declared[name], families)
    if os.path.exists(name):
        model = Model(name=name, family="", path=name)
    elif re.match(HUB_ID, name):
        model = Model(name=name, family="", hub=name)
    else:
        raise UsageError(
            f"model {name} is no folder, no Hub id, and not declared in {config or DEFAULT_CONFIG}",
            f"declared are {', '.join(declared) or 'none'}",
        )
    return complete_model(replace(model, family=family_of_folder(model, families)), families)


def family_of_folder(model: Model, families: Mapping[str, Family]) -> str:
    """The family that the settings of a model's folder name, or that its layout matches.

    Raises UsageError if there is none, JobError if a family recognises a layout that it cannot load.
    """
    if not os.path.isfile(model.path):
        if (path := settings_in(model.folder())) and (name := read_settings(path, None).get("family")):
            return name
        for family in families.values():
            if family.detect(model.folder()) is not None:
                return family.name
    for family in families.values():
        refuse_layout(model, family)
    raise UsageError(
        f"{model.name} does not hold a model of family {' or '.join(families)}",
        "its layout must be that of diffusers or transformers, as in the Hub's repositories ...-Diffusers and ...-HF",
    )


def complete_model(model: Model, families: Mapping[str, Family], to_come: Mapping[str, Any] | None = None) -> Model:
    """A declared model, completed with the settings in its folder if that is on this machine.

    `to_come` are the settings of a model that is still to be trained. Those of a model that is not converted yet are what
    its conversion will write. Raises UsageError for a wrong declaration or wrong settings, JobError for a folder in another
    layout than its family loads.
    """
    if family := families.get(model.family):
        model = prepared(model, family)
        refuse_layout(model, family)
        if model.convert:
            model = with_conversion(model, family)
    if to_come is not None:
        model = with_settings(model, to_come, "its training")
    elif found := settings_of(model, family):
        model = with_settings(model, *found)
    model = with_variant(model, families)
    if family:
        check_preset_variant(model, family)
    return model


def refuse_layout(model: Model, family: Family) -> None:
    """Raise JobError if the folder or file of a model is in a layout that the family recognises and cannot load."""
    if not model.path or not os.path.exists(model.path):
        return
    place = Path(os.path.abspath(model.path))
    folder, first = (place, []) if place.is_dir() else (place.parent, [place.name])
    found = (path for pattern in ("*", "*/*") for path in folder.glob(pattern))
    names = [path.relative_to(folder).as_posix() for path in islice(found, MOST_NAMES)]
    if remedy := family.recognise(Published(str(folder), [*first, *sorted(names)], model.variant)):
        raise JobError(f"{place} {OTHER_LAYOUT}", remedy)


def prepared(model: Model, family: Family) -> Model:
    """A declared model with the options' own names, with those of its preset, and with paths of files on the Hub.

    Raises UsageError for an unknown preset or a wrong address.
    """
    model = with_preset(replace(model, options=rename_aliases(family.options, model.options)), family)
    names = {one.name for one in family.options if one.is_file}
    fetched = dict(model.fetched)

    def local(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [local(one) for one in value]
        if not is_source(value):
            return value
        hub, revision, path = parse_source(value)
        if not path:
            raise UsageError(f"options of model {model.name} name {value}, a repository", "name a file of it: add its path")
        place = str(conversions_folder() / "files" / hub / revision / path)
        fetched[place] = value
        return place

    options = {name: local(value) if name in names else value for name, value in model.options.items()}
    return replace(model, options=options, fetched=fetched)


def with_conversion(model: Model, family: Family) -> Model:
    """A model to convert, with all option values of the conversion and the folder of its result. Raises UsageError."""
    if family.conversion is None:
        raise UsageError(f"model {model.name} has convert", f"family {family.name} has no conversion: declare path or hub")
    declared = {one.name: one for one in family.conversion.options.declared}
    if unknown := [name for name in model.convert if name not in declared]:
        raise UsageError(f"convert of model {model.name} sets {shown(unknown[0])}", f"known are {', '.join(declared)}")
    try:
        values = resolve(declared.values(), model.convert)
        if missing := [name for name, value in values.items() if value is REQUIRED]:
            raise UsageError(f"{missing[0]} is not set", f"set it: {declared[missing[0]].help}")
        for name, value in values.items():
            if declared[name].exists and value:
                parse_source(value)
    except UsageError as error:
        raise UsageError(f"convert of model {model.name}: {error.reason}", error.remedy) from None
    given = {name: value for name, value in values.items() if value != declared[name].default}  # a new option keeps the key
    work = [family.name, family.conversion.version, given]
    key = hashlib.sha256(canonical_json(work)).hexdigest()[:16]
    return replace(model, convert=values, converted=str(conversions_folder() / f"{family.name}-{key}"))


def settings_of(model: Model, family: Family | None) -> tuple[dict[str, Any], str] | None:
    """The settings in a model's folder, or those that its conversion will write, and their path. Raises UsageError."""
    if (folder := model.here()) and (path := settings_in(folder)):
        return read_settings(path, family), str(path)
    if model.converted and not folder and family and family.conversion:
        path = Path(model.converted, SETTINGS)
        return checked_settings(family.conversion.settings(model.convert), path, family), str(path)
    return None


def with_settings(model: Model, settings: Mapping[str, Any], source: str) -> Model:
    """The model with settings from `source`; its declaration has precedence. Raises UsageError for another family."""
    if (family := settings.get("family", model.family)) != model.family:
        raise UsageError(f"model {model.name} is declared as family {model.family}", f"{source} says {family}")
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
    """Path of the settings in a model's folder, or None. Raises UsageError if the path is not a file."""
    path = folder / SETTINGS
    if not os.path.lexists(path):
        return None
    if not os.path.isfile(path):
        raise UsageError(
            f"{path} {dangling(path) or 'is no file'}", "put the file there, or remove what stands in its place"
        )
    return path


def read_settings(path: Path, family: Family | None) -> dict[str, Any]:
    """Read a model's settings: family, variant, dtype, sizes, `options` of stages, and those of recipes.

    The file is untrusted, so it is validated against the option declarations of `family`, and may name files only within its
    own folder. Raises UsageError.
    """
    try:
        settings = read_object(path)
    except JobError as error:
        raise UsageError(error.reason, error.remedy) from None
    return checked_settings(settings, path, family)


def checked_settings(settings: Mapping[str, Any], path: Path, family: Family | None) -> dict[str, Any]:
    """The settings in the file `path`, validated and parsed: see `read_settings`."""
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
        raise UsageError(f"{path} has {settings['dtype']!r} for dtype", choice_remedy(DTYPES))
    options = settings.get("options", {})
    if family:
        options = rename_aliases(family.options, options)
        options = {name: setting_of(family, name, value, path) for name, value in options.items()}
    return {**settings, **({"sizes": sizes} if sizes else {}), "options": options}


def write_settings(folder: Path, settings: Mapping[str, Any], before: Path | None = None) -> None:
    """Write the settings of a model, merged over those of the model `before` that it derives from."""
    path = settings_in(before) if before else None
    merged = merged_settings(settings, read_settings(path, None) if path else {})
    (folder / SETTINGS).write_text(json.dumps(merged, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def merged_settings(settings: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a model, merged over those of the model that it derives from, if that is of the same family."""
    old = before if before.get("family") == settings["family"] else {}
    return {**old, **settings, "options": {**old.get("options", {}), **settings.get("options", {})}}


def setting_of(family: Family, name: str, value: Any, path: Path) -> Any:
    """Parse the value of an option in a model's settings. A file must lie in the model's folder. Raises UsageError."""
    option = next((option for option in family.options if option.name == name and not option.set_by_recipe), None)
    if option is None:
        raise UsageError(f"{path} sets {name!r}, which is no option of family {family.name}", "leave it out")
    try:
        value = option.parse(value)
    except UsageError as error:
        raise UsageError(f"{path}: {error.reason}", error.remedy) from None
    if option.is_file and option.many:
        return [file_in_folder(one, name, path) for one in value]
    return file_in_folder(value, name, path) if option.is_file and value else value


def file_in_folder(value: str, name: str, path: Path) -> str:
    """The path of a file that the settings in `path` name for an option. Raises UsageError for a file of another folder."""
    if Path(value).is_absolute() or ".." in Path(value).parts:
        raise UsageError(f"{path} names {value!r} for {name}", "name a file of the model's folder")
    return str(path.parent / value)


def declared_models(config: Path | None) -> dict[str, Model]:
    """The models that a config declares, see `declared_entries`. Raises UsageError if the file is unreadable."""
    return {name: declared_model(name, entry) for name, entry in declared_entries(config).items()}


def declared_entries(config: Path | None) -> dict[str, Any]:
    """The entries of `models` in `config`; without it in the config of the working folder, or of the checkout if that one
    declares none.

    Raises UsageError if the file is unreadable.
    """
    if config and not os.path.isfile(config):
        raise UsageError(f"the config {config} does not exist", "mend the path")
    if config:
        return table_of(config, "models")
    return (table_of(DEFAULT_CONFIG, "models") if os.path.lexists(DEFAULT_CONFIG) else {}) or own_entries()


def own_entries() -> dict[str, Any]:
    """The entries of `models` in the config of the checkout, with absolute paths: the shipped and the public models.

    An image of a stage has no such config.
    """
    if not os.path.isfile(CHECKOUT / DEFAULT_CONFIG):
        return {}
    entries = table_of(CHECKOUT / DEFAULT_CONFIG, "models")
    return {
        name: {**entry, "path": os.path.join(CHECKOUT, entry["path"])} if "path" in entry else entry
        for name, entry in entries.items()
    }


def table_of(path: Path, key: str) -> dict[str, Any]:
    """The table under a key of a config; empty if the key is missing. Raises UsageError."""
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
    """The declared model with that name. Raises UsageError if there is none."""
    if name not in declared:
        raise UsageError(f"model {name} is not declared in the config", f"declared are {', '.join(declared) or 'none'}")
    return declared[name]


def with_variant(model: Model, families: Mapping[str, Family]) -> Model:
    """The model with its variant, detected from its folder if the declaration has none. Raises UsageError."""
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
