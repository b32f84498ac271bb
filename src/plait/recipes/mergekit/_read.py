"""The shape of a mergekit document: its keys, its models, its slices; what it says, not what it means."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from plait.errors import RecipeError
from plait.recipes._yaml import Document, Path

__all__ = ["Config", "Group", "Input", "ModelName", "Reader", "read_config", "typo"]

_TOP = (
    "merge_method",
    "base_model",
    "models",
    "slices",
    "modules",
    "parameters",
    "dtype",
    "out_dtype",
    "tokenizer",
    "tokenizer_source",
    "chat_template",
    "name",
)


def typo(word: str, known: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` for a word that differs from a known one by a slip; an empty text otherwise."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.8)
    return f" Did you mean {close[0]!r}?" if close else ""


@dataclass(frozen=True)
class ModelName:
    """What mergekit calls a model: a path or Hub id, its revision, and an adapter on top.

    Attributes:
        path: folder, file or Hub id.
        revision: of the Hub model.
        adapter: path or Hub id of a LoRA, with its revision behind an @.
    """

    path: str
    revision: str | None = None
    adapter: str | None = None

    @property
    def model(self) -> str:
        """The model without its adapter, as plait writes it."""
        return f"{self.path}@{self.revision}" if self.revision else self.path

    def __str__(self) -> str:
        return self.model + (f"+{self.adapter}" if self.adapter else "")


@dataclass(frozen=True)
class Input:
    """One model of a group with its own values and, in a slice, its range of layers."""

    model: ModelName
    parameters: Mapping[str, Any]
    at: Path
    layers: tuple[int, int] | None = None


@dataclass(frozen=True)
class Group:
    """Models that are merged with each other: all of them, or those of one slice."""

    inputs: tuple[Input, ...]
    base: ModelName | None
    parameters: Mapping[str, Any]
    at: Path

    @property
    def sliced(self) -> bool:
        """Whether only a range of layers is meant."""
        return self.inputs[0].layers is not None


@dataclass(frozen=True)
class Config:
    """One mergekit document."""

    method: str
    groups: tuple[Group, ...]
    base: ModelName | None
    parameters: Mapping[str, Any]
    module: Mapping[str, Any]
    dtype: str | None
    out_dtype: str | None
    tokenizer: Any
    chat_template: str | None
    name: str | None
    modules: Mapping[str, tuple[Group, ...]] = field(default_factory=dict)


class Reader:
    """Reads one document, names lines in its errors, and collects what it has to say."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.notes: list[str] = []

    def fail(self, path: Path, text: str) -> RecipeError:
        """An error at a place of the document."""
        return RecipeError(f"{self.document.where(path)}{text}")

    def note(self, text: str) -> None:
        """Remember a difference, once."""
        if text not in self.notes:
            self.notes.append(text)

    def mapping(self, value: Any, path: Path, what: str) -> Mapping[str, Any]:
        """A mapping, or nothing at all."""
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise self.fail(path, f"{what} must be a mapping, not {value!r}.")
        if "<<" in value:
            raise self.fail((*path, "<<"), "merge keys (<<) are not read; write the keys out.")
        return value

    def items(self, value: Any, path: Path, what: str) -> list[Any]:
        """A list that holds something."""
        if not isinstance(value, list) or not value:
            raise self.fail(path, f"{what} must be a list with at least one item.")
        return value

    def keys(self, data: Mapping[str, Any], known: tuple[str, ...], path: Path) -> None:
        """Refuse what is probably a typo; say of other unknown keys that mergekit ignores them."""
        for key in data:
            if key in known:
                continue
            hint = typo(key, known)
            if hint:
                raise self.fail((*path, key), f"unknown key {key!r}.{hint} mergekit would ignore it in silence.")
            place = f"{'.'.join(str(p) for p in path)}." if path else ""
            self.note(f"{place}{key} is no key of mergekit, which ignores it; it is left out.")

    def text(self, value: Any, path: Path, what: str) -> str | None:
        """A word, or nothing."""
        if value is None or isinstance(value, str):
            return value
        raise self.fail(path, f"{what} must be a word, not {value!r}.")

    def model(self, value: Any, path: Path) -> ModelName:
        """A model's name in either of the two spellings."""
        if isinstance(value, str):
            path_, plus, adapter = value.partition("+")
            if "+" in adapter or path_.count("@") > 1 or adapter.count("@") > 1 or not path_ or (plus and not adapter):
                raise self.fail(path, f"{value!r} cannot be read as MODEL[@REVISION][+ADAPTER[@REVISION]].")
            name, _, revision = path_.partition("@")
            return ModelName(name, revision or None, adapter or None)
        data = self.mapping(value, path, "a model")
        self.keys(data, ("model", "lora", "override_architecture"), path)
        if data.get("override_architecture") is not None:
            self.note("override_architecture is left out: plait needs no table of architectures.")
        if "model" not in data:
            raise self.fail(path, "a model without a path or Hub id.")
        model = self._part(data["model"], (*path, "model"))
        lora = None if data.get("lora") is None else self._part(data["lora"], (*path, "lora"))
        return ModelName(*model, None if lora is None else "@".join(p for p in lora if p))

    def _part(self, value: Any, path: Path) -> tuple[str, str | None]:
        if isinstance(value, str):
            name, _, revision = value.partition("@")
            return name, revision or None
        data = self.mapping(value, path, "a model")
        self.keys(data, ("path", "revision"), path)
        name = self.text(data.get("path"), path, "path")
        if not name:
            raise self.fail(path, "a model without a path or Hub id.")
        return name, self.text(data.get("revision"), path, "revision")


def read_config(reader: Reader) -> Config:
    """Read a document's keys.

    Raises:
        RecipeError: for a shape that mergekit does not have, with its line.
    """
    data = reader.mapping(reader.document.data, (), "a recipe")
    _refuse_others(reader, data)
    reader.keys(data, _TOP, ())
    given = [key for key in ("models", "slices", "modules") if data.get(key)]
    if len(given) != 1:
        found = " and ".join(given) or "none of them"
        raise reader.fail(
            (given[0],) if given else (), f"mergekit needs one of models, slices, modules; {found} is given."
        )
    base = None if data.get("base_model") is None else reader.model(data["base_model"], ("base_model",))
    module: Mapping[str, Any] = {}
    modules: dict[str, tuple[Group, ...]] = {}
    groups: tuple[Group, ...] = ()
    if given[0] == "modules":
        inner = reader.mapping(data["modules"], ("modules",), "modules")
        for name, content in inner.items():
            at: Path = ("modules", name)
            part = reader.mapping(content, at, f"the module {name!r}")
            reader.keys(part, ("models", "slices", "parameters"), at)
            modules[name] = _groups(reader, part, base, at)
        if len(inner) == 1:  # models of one module: whatever its name, it is the model
            ((name, content),) = inner.items()
            module = reader.mapping(content.get("parameters"), ("modules", name, "parameters"), "parameters")
            groups = modules.pop(name)
    else:
        groups = _groups(reader, data, base, ())
    tokenizer = data.get("tokenizer")
    if tokenizer is not None and data.get("tokenizer_source") is not None:
        raise reader.fail(("tokenizer",), "tokenizer and tokenizer_source are both given; keep one.")
    if data.get("tokenizer_source") is not None:
        tokenizer = {"source": data["tokenizer_source"]}
    return Config(
        str(data["merge_method"]),
        groups,
        base,
        reader.mapping(data.get("parameters"), ("parameters",), "parameters"),
        module,
        reader.text(data.get("dtype"), ("dtype",), "dtype"),
        reader.text(data.get("out_dtype"), ("out_dtype",), "out_dtype"),
        tokenizer,
        reader.text(data.get("chat_template"), ("chat_template",), "chat_template"),
        reader.text(data.get("name"), ("name",), "name"),
        modules,
    )


def _refuse_others(reader: Reader, data: Mapping[str, Any]) -> None:
    if "experts" in data and ("gate_mode" in data or "merge_method" not in data):
        raise reader.fail(
            ("experts",), "this is a recipe of mergekit-moe, which builds a Mixture of Experts; plait does not yet."
        )
    if "genome" in data:
        raise reader.fail(("genome",), "this is a recipe of mergekit-evolve, which searches; it is not one merge.")
    if not isinstance(data.get("merge_method"), str):
        raise reader.fail((), "a mergekit recipe names its merge_method.")


def _groups(reader: Reader, data: Mapping[str, Any], base: ModelName | None, at: Path) -> tuple[Group, ...]:
    if data.get("models"):
        path = (*at, "models")
        inputs = tuple(
            _input(reader, item, (*path, i), ()) for i, item in enumerate(reader.items(data["models"], path, "models"))
        )
        return (Group(inputs, base, {}, path),)
    path = (*at, "slices")
    found = []
    for i, item in enumerate(reader.items(data.get("slices"), path, "slices")):
        place = (*path, i)
        part = reader.mapping(item, place, "a slice")
        reader.keys(part, ("sources", "base_model", "parameters", "residual_weight"), place)
        if part.get("residual_weight") is not None:
            reader.note("residual_weight is left out: mergekit reads it and does nothing with it.")
        sources = reader.items(part.get("sources"), (*place, "sources"), "sources")
        inputs = tuple(
            _input(reader, source, (*place, "sources", j), ("layer_range",)) for j, source in enumerate(sources)
        )
        lengths = {i.layers[1] - i.layers[0] for i in inputs if i.layers}
        if len(lengths) > 1:
            listed = ", ".join(f"{i.layers} of {i.model}" for i in inputs)
            raise reader.fail(place, f"the sources of a slice must have equally many layers: {listed}.")
        own = base if part.get("base_model") is None else reader.model(part["base_model"], (*place, "base_model"))
        values = reader.mapping(part.get("parameters"), (*place, "parameters"), "parameters")
        found.append(Group(inputs, own, values, place))
    return tuple(found)


def _input(reader: Reader, item: Any, path: Path, more: tuple[str, ...]) -> Input:
    data = {"model": item} if isinstance(item, str) else reader.mapping(item, path, "a model")
    reader.keys(data, ("model", "parameters", *more), path)
    if "model" not in data:
        raise reader.fail(path, "an item without a model.")
    parameters = reader.mapping(data.get("parameters"), (*path, "parameters"), "parameters")
    layers = None
    if more:
        pair = data.get("layer_range")
        if not (isinstance(pair, list) and len(pair) == 2 and all(type(p) is int for p in pair)):
            raise reader.fail(path, f"layer_range must be [first, last), not {pair!r}.")
        layers = (pair[0], pair[1])
        if not 0 <= layers[0] < layers[1]:
            raise reader.fail((*path, "layer_range"), f"layer_range {pair} holds no layer.")
    return Input(reader.model(data["model"], (*path, "model")), parameters, path, layers)
