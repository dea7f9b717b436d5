"""Validate the components of a model folder before anything is loaded.

The content of a model folder is untrusted. It is read here as data, within limits and without torch, because the plan,
`fetch` and `doctor` run the same checks as the stages. Every check raises Broken, with one sentence that names the file.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stages.runtime.errors import JobError, one_line, shown
from stages.runtime.files import open_plain, read_plain
from stages.runtime.places import dangling
from stages.runtime.safetensors_header import expected_size, read_header

LARGEST = 2**28  # bytes of a JSON file; the tokenizer of a large model has a tenth of that
DEEPEST = 32  # levels of a JSON file
MOST_NORMALIZERS = 24  # of a tokenizer: each may double the text; published tokenizers have about three
LARGEST_NUMBER = 2**24  # in a config: the longest contexts have ten million tokens
WEIGHTS = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}  # file name of the weights, by library
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
NO_CONFIGS = ("tokenizer.json", "vocab.json", "merges.json")  # large files in which no library looks for code
INDEX = ".safetensors.index."
ABSENT = object()
LFS_POINTER = b"version https://git-lfs"
OTHER_MODEL = "it is of another model: correct the folder"
LIBRARIES = ("diffusers", "transformers")
CODE_KEYS = ("auto_map", "custom_pipeline", "custom_pipelines")
ATTENTION_KEYS = ("attn_implementation", "_attn_implementation")
COUNTED = re.compile(r"^(num|n|d)_|_(layers|size|dim|channels|heads|blocks|len|embeddings|positions)$")


class Broken(JobError):
    """A model folder that cannot be used. The default remedy is to copy or fetch the model again."""

    def __init__(self, reason: str, own_remedy: str = ""):
        self.own_remedy = own_remedy
        super().__init__(reason, own_remedy or "copy or fetch the model again, with all its files")


@dataclass(frozen=True)
class Size:
    """A number that both config.json and the weights contain.

    `config` is its name in config.json (`a.b` is nested, `a*b` is a product). `tensor` is a pattern for tensor names. The
    number is the tensor's size along `axis`; without an axis, it is the count of different values of the pattern's group.
    """

    config: str
    tensor: str
    axis: int | None = None


@dataclass(frozen=True)
class Component:
    """A component of a model.

    Attributes:
        folder: below the model's folder; "" is that folder itself.
        reader: "diffusers" or "transformers" for a network (config.json and safetensors), "tensors" for a single safetensors
            file, "tokenizer", "scheduler" or "processor" for the libraries' small classes.
        classes: allowed class names (diffusers) or model types (transformers) in the config; empty: any.
        variants: variants of the family that have the component; empty: all.
        optional: the whole component may be missing.
        sizes: numbers that must agree between the config and the weights.
        fixed: required values of config entries. An entry may be absent.
        lengths: lists in the config, each with the name of the entry that holds its length.
        tokens: by the model type of the network in the folder, the names of special tokens that its tokenizer must have,
            beside a chat template.
        instead: remedy that names the repository to use if the class is wrong or the config asks for code.
    """

    folder: str
    reader: str
    classes: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    optional: bool = False
    sizes: tuple[Size, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)
    lengths: Mapping[str, str] = field(default_factory=dict)
    tokens: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    instead: str = ""

    @property
    def is_network(self) -> bool:
        return self.reader in WEIGHTS

    @property
    def may_name_code(self) -> bool:
        """Whether the library looks for code in the configs of this folder."""
        return self.is_network or self.reader in ("tokenizer", "processor")


# ----------------------------------------------------------------------------------------------------------------- data


def read_object(path: Path) -> dict[str, Any]:
    """Parse a JSON file that holds an object. Raises Broken for any other content and for deep nesting.

    Raises FileNotFoundError if there is no file.
    """
    try:
        value = json.loads(read_bytes(path).decode("utf-8-sig"), parse_constant=_refuse_constant)
    except FileNotFoundError:
        if fault := dangling(path):
            raise Broken(f"{path} {fault}") from None
        raise
    except PermissionError:
        raise Broken(f"{path} may not be read by this user", "make it readable") from None
    except (OSError, ValueError) as error:
        raise Broken(f"{path} is not readable as JSON ({one_line(error)})") from None
    except RecursionError:
        raise Broken(f"{path} is nested too deep") from None
    if not isinstance(value, dict):
        raise Broken(f"{path} holds a {type(value).__name__} and not a table of names and values")
    refuse_depth(value, path)
    return value


def read_bytes(path: Path) -> bytes:
    """The content of a file of at most LARGEST bytes. Raises OSError for a larger one, Broken for a Git LFS pointer."""
    content = read_plain(path, LARGEST)
    if content.startswith(LFS_POINTER):
        raise Broken(f"{path} is a pointer of Git LFS and not the file", "run git lfs pull, or fetch the model")
    return content


def _refuse_constant(name: str) -> None:
    raise ValueError(f"it has the number {name}")


def read_config(path: Path, instead: str = "") -> dict[str, Any]:
    """Read a config that asks for no code and has no absurd number. Raises Broken, FileNotFoundError."""
    config = read_object(path)
    refuse_code(config, path, instead)
    check_numbers(config, path)
    return config


def refuse_depth(config: Mapping[str, Any], path: Path) -> None:
    level: list[Any] = [config]
    for _ in range(DEEPEST):
        level = [
            inner
            for value in level
            for inner in (value.values() if isinstance(value, dict) else value)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return
    raise Broken(f"{path} is nested deeper than {DEEPEST} levels")


def tables(value: Any) -> Iterator[dict[str, Any]]:
    """Every object within a value of limited depth, the value itself included."""
    if isinstance(value, dict):
        yield value
    if isinstance(value, (dict, list)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from tables(inner)


def refuse_code(config: Mapping[str, Any], path: Path, instead: str = "") -> None:
    """Raise Broken for an entry that makes a library run code from the folder or from the hub."""
    for table in tables(config):
        named = [key for key in CODE_KEYS if table.get(key)]
        named += [key for key in ATTENTION_KEYS if "/" in str(table.get(key))]
        if not isinstance(table.get("_class_name", ""), (str, type(None))):
            named.append("_class_name")
        if named:
            raise Broken(
                f"{path} asks for code of its own ({named[0]}), which Kinemake does not run",
                instead or "use a repository in the layout of diffusers, or of transformers",
            )


def refuse_code_of(place: Path) -> None:
    """Raise Broken if any config of a folder asks for code, whichever of them the library reads."""
    for path in sorted(place.glob("*.json")):
        if path.name not in NO_CONFIGS and INDEX not in path.name:
            refuse_code(read_object(path), path)


# -------------------------------------------------------------------------------------------------------------- weights


@dataclass(frozen=True)
class WeightFiles:
    """The safetensors files that a library loads from a folder, and the `variant` to pass to it ("" for none)."""

    paths: tuple[Path, ...]
    variant: str = ""


def weight_files(folder: Path, reader: str) -> WeightFiles:
    """The files that the library loads in `folder`: a single file, or the shards of an index.

    Files of a variant are taken only if there are no others. Raises Broken if files are missing.
    """
    stem = WEIGHTS[reader]
    for variant in ("", *sorted(_variants(folder, stem))):
        dotted = f".{variant}" if variant else ""
        single = folder / f"{stem}{dotted}.safetensors"
        index = folder / f"{stem}.safetensors.index{dotted}.json"
        first, second = (index, single) if reader == "diffusers" else (single, index)
        for path in (first, second):
            if os.path.isfile(path):
                return WeightFiles((path,) if path == single else _shards(path), variant)
    raise _no_weights(folder, stem)


def _variants(folder: Path, stem: str) -> set[str]:
    names = "\n".join(path.name for path in folder.glob(f"{stem}.*"))
    single = re.findall(rf"^{stem}\.(\w+)\.safetensors$", names, re.MULTILINE)
    return {*single, *re.findall(rf"^{stem}\.safetensors\.index\.(\w+)\.json$", names, re.MULTILINE)}


def _shards(index: Path) -> tuple[Path, ...]:
    """The files that an index names. Raises Broken if a file, or a tensor of it, is missing."""
    places = read_object(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise Broken(f"{index} has no weight_map from tensors to files")
    for name in sorted(set(places.values())):
        path = index.parent / name
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise Broken(f"{index} names {shown(name)}, which is no safetensors file beside it")
        if not os.path.isfile(path):
            raise Broken(f"{index.parent} lacks {name}, which its index names")
        found = header(path)  # once, because a header of a thousand tensors takes a while to check
        if absent := [tensor for tensor, place in places.items() if place == name and tensor not in found]:
            raise Broken(f"{path} lacks the tensor {absent[0]}, which the index places there")
    return tuple(index.parent / name for name in sorted(set(places.values())))


def _no_weights(folder: Path, stem: str) -> Broken:
    if next(folder.glob(f"{stem}*-00001-of-*.safetensors"), None):
        return Broken(f"{folder} has shards of weights and lacks {stem}.safetensors.index.json")
    if other := next(iter(sorted(folder.glob("*.safetensors"))), None):
        return Broken(f"{folder} lacks {stem}.safetensors (it has {other.name})", f"name that file {stem}.safetensors")
    if pickle := next((path for pattern in PICKLES for path in sorted(folder.glob(pattern))), None):
        return Broken(
            f"{folder} has weights in {pickle.name} alone, a pickle, which Kinemake never opens",
            "fetch a revision that has them as .safetensors",
        )
    return Broken(f"{folder} lacks {stem}.safetensors")


def header(path: Path) -> dict[str, Any]:
    """The tensors of a safetensors file by name, without the metadata. Raises Broken for a damaged file."""
    try:
        with open_plain(path) as file:
            pointer = file.read(len(LFS_POINTER)) == LFS_POINTER
    except OSError as error:
        raise Broken(f"{path} cannot be read ({error.strerror})") from None
    if pointer:
        raise Broken(f"{path} is a pointer of Git LFS and not the file", "run git lfs pull, or fetch the model")
    try:
        found, start = read_header(path)
        tensors = {name: spec for name, spec in found.items() if name != "__metadata__"}
        whole = expected_size(found, start)
    except (Exception, RecursionError):  # a torn header fails in any way
        raise Broken(f"{path} is no safetensors file") from None
    if not tensors:
        raise Broken(f"{path} holds no tensor")
    if (size := path.stat().st_size) != whole:
        raise Broken(f"{path} has {size} bytes instead of {whole}")
    return tensors


def network_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files of a network, whichever library loads it. Empty if there is no folder."""
    for reader, stem in WEIGHTS.items():
        if any(folder.glob(f"{stem}*")):
            return weight_files(folder, reader).paths
    return tuple(sorted(folder.glob("*.safetensors")))


# ---------------------------------------------------------------------------------------------------------------- check


def check_component(folder: Path, part: Component) -> None:
    """Raise Broken if a component lacks something that its reader needs."""
    place = folder / part.folder
    if part.is_network:
        check_network(place, part)
    elif part.reader == "tensors":
        if len(paths := sorted(place.glob("*.safetensors"))) != 1:
            raise Broken(f"{place} has {len(paths)} safetensors files and should have one")
        header(paths[0])
    elif part.reader == "tokenizer":
        check_tokenizer(place)
        if part.tokens:
            check_chat(place, part)
    elif part.reader == "scheduler":
        check_class(one_config(place, "scheduler_config.json"), place / "scheduler_config.json", part)
    else:
        check_processor(place)


def one_config(place: Path, *names: str, instead: str = "") -> dict[str, Any]:
    """Read the first of these configs that exists. Raises Broken if none does."""
    for name in names:
        if os.path.isfile(place / name):
            return read_config(place / name, instead)
    raise Broken(f"{place} lacks {names[0]}")


def check_network(place: Path, part: Component) -> None:
    config, path = one_config(place, "config.json", instead=part.instead), place / "config.json"
    check_class(config, path, part)
    for name, value in part.fixed.items():
        if config.get(name, value) != value:
            raise Broken(f"{name} is {shown(config[name])} in {path} and has to be {value!r}", OTHER_MODEL)
    if os.path.isfile(place / "adapter_config.json"):
        raise Broken(f"{place} holds an adapter and no whole network (adapter_config.json)", "merge it into its model")
    for name, number in part.lengths.items():
        check_length(config, name, number, path)
    found: dict[str, Any] = {}
    for file in weight_files(place, part.reader).paths:
        found |= header(file)
    for size in part.sizes:
        check_size(config, found, size, path)


def check_class(config: Mapping[str, Any], path: Path, part: Component) -> None:
    key = "model_type" if part.reader == "transformers" else "_class_name"
    if part.classes and key not in config:
        raise Broken(f"{path} does not name its {key}")
    if part.classes and config[key] not in part.classes:
        raise Broken(
            f"{path} is of a {shown(config[key])} and not of a {' or a '.join(part.classes)}",
            part.instead or OTHER_MODEL,
        )


def check_numbers(config: Mapping[str, Any], path: Path) -> None:
    """Raise Broken for numbers that no architecture has: negative counts, or values above LARGEST_NUMBER."""
    for table in tables(config):
        for name, value in table.items():
            beyond = isinstance(value, (int, float)) and not 0 <= value <= LARGEST_NUMBER
            if COUNTED.search(name) and (beyond or isinstance(value, str)):
                raise Broken(f"{path} says that {name} is {shown(value)}")


def check_length(config: Mapping[str, Any], name: str, number: str, path: Path) -> None:
    """Raise Broken if a list in config.json does not have the length that the entry `number` declares.

    Both may be absent.
    """
    if name in config and number in config:
        values, count = config[name], config[number]
        if not isinstance(values, list) or len(values) != count:
            raise Broken(f"{path} says that {name} is {shown(values)}, and {number}, its length, is {shown(count)}")


def check_size(config: Mapping[str, Any], found: Mapping[str, Any], size: Size, path: Path) -> None:
    """Raise Broken if config.json and the weights contain different numbers.

    A number that is absent on either side passes.
    """
    factors = {name: _named(config, name) for name in size.config.split("*")}
    if ABSENT in factors.values():
        return
    if wrong := [name for name, value in factors.items() if not isinstance(value, int)]:
        raise Broken(f"{path} says that {wrong[0]} is {shown(factors[wrong[0]])}")
    matches = [(match, spec["shape"]) for name, spec in found.items() if (match := re.search(size.tensor, name))]
    if size.axis is None:
        seen = len({match[1] for match, _ in matches})
    else:
        seen = next((shape[size.axis] for _, shape in matches if len(shape) > size.axis), 0)
    if seen and seen != (number := math.prod(factors.values())):
        raise Broken(
            f"{path} says that {size.config} is {number} and the weights beside it have {seen}",
            "they are of different models: fetch both again",
        )


def _named(config: Mapping[str, Any], name: str) -> Any:
    value: Any = config
    for key in name.split("."):
        value = value.get(key, ABSENT) if isinstance(value, dict) else ABSENT
    return value


def check_tokenizer(place: Path) -> None:
    one_config(place, "tokenizer_config.json")
    for name in ("special_tokens_map.json", "added_tokens.json", "chat_template.json"):
        if os.path.isfile(place / name):
            read_config(place / name)
    if os.path.isfile(place / "tokenizer.json"):
        tokenizer = read_object(place / "tokenizer.json")
        if not isinstance(tokenizer.get("model"), dict):
            raise Broken(f"{place / 'tokenizer.json'} holds no tokenizer")
        if sum(1 for _ in tables(tokenizer.get("normalizer"))) > MOST_NORMALIZERS:
            raise Broken(f"{place / 'tokenizer.json'} has more than {MOST_NORMALIZERS} normalizers")
    elif os.path.isfile(place / "vocab.json") and os.path.isfile(place / "merges.txt"):
        read_object(place / "vocab.json")
    elif not os.path.isfile(place / "spiece.model"):
        raise Broken(f"{place} lacks tokenizer.json")
    elif not find_spec("sentencepiece"):
        raise Broken(
            f"{place} has spiece.model and lacks tokenizer.json",
            "fetch that file too, or pip install sentencepiece",
        )


def check_chat(place: Path, part: Component) -> None:
    """Raise Broken for a tokenizer without a chat template or without one of the special tokens of a chat."""
    config = read_config(place / "tokenizer_config.json")
    if not str(_chat_template(place, config) or "").strip():
        raise Broken(f"{place} has no chat template", f"fetch chat_template.jinja too, or {part.instead}")
    tables = [config, *(config.get(name) for name in ("extra_special_tokens", "model_specific_special_tokens"))]
    named = {name for table in tables if isinstance(table, dict) for name, token in table.items() if token}
    kind = one_config(place, "config.json", instead=part.instead).get("model_type")
    if missing := [name for name in part.tokens.get(str(kind), ()) if name not in named]:
        raise Broken(f"{place / 'tokenizer_config.json'} does not name its {missing[0]}", part.instead)


def _chat_template(place: Path, config: Mapping[str, Any]) -> Any:
    """The chat template of a folder: a file, else an entry of the tokenizer config, which may hold several by name, else the
    processor's file."""
    path = place / "chat_template.jinja"
    if os.path.isfile(path):
        try:
            return read_bytes(path).decode()
        except (OSError, ValueError) as error:
            raise Broken(f"{path} is not readable as text ({one_line(error)})") from None
    template = config.get("chat_template")
    if isinstance(template, list):
        template = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
    template = template.get("default") if isinstance(template, dict) else template
    return template or template_of_processor(place)


def template_of_processor(place: Path) -> Any:
    """The chat template in chat_template.json, which some repositories have instead of one of the tokenizer; else None."""
    path = place / "chat_template.json"
    return read_config(path).get("chat_template") if os.path.isfile(path) else None


def check_processor(place: Path) -> None:
    config = one_config(place, "preprocessor_config.json", "processor_config.json")
    if not os.path.isfile(place / "preprocessor_config.json") and "image_processor" not in config:
        raise Broken(f"{place} lacks preprocessor_config.json")


def check_index(folder: Path, components: tuple[Component, ...]) -> None:
    """Validate model_index.json, if there is one: it asks for no code and names the expected classes.

    The classes to load come from the code of the family, never from this file.
    """
    path = folder / "model_index.json"
    if not os.path.isfile(path):
        return
    parts = {part.folder: part for part in components}
    for name, entry in read_config(path).items():
        if name.startswith("_") or not isinstance(entry, list):
            continue
        if len(entry) != 2 or not all(isinstance(one, (str, type(None))) for one in entry):
            raise Broken(f"{path} has {shown(entry)} for {name} and not a library and a class")
        library, kind = entry
        ours = library is None or library in LIBRARIES or library.startswith("stages.")
        if not ours and (name in parts or _is_beside(folder, name, library)):
            raise Broken(
                f"{path} asks for code of its own ({name}: {library}), which Kinemake does not run",
                "use a repository in the layout of diffusers",
            )
        classes = parts[name].classes if name in parts and parts[name].reader == "diffusers" else ()
        if kind and classes and kind not in classes:
            raise Broken(f"{path} names {kind} for {name}, which has to be a {' or a '.join(classes)}", OTHER_MODEL)


def _is_beside(folder: Path, name: str, library: str) -> bool:
    """Whether the repository contains a module that model_index.json names as a library."""
    return any(os.path.isfile(place / f"{library}.py") for place in (folder, folder / name))
