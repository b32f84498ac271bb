"""From mergekit documents to one recipe of plait's, as plain data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from plait.errors import RecipeError, suggest
from plait.recipes._yaml import Document
from plait.recipes.mergekit._group import Builder
from plait.recipes.mergekit._read import Config, Group, ModelName, Reader, read_config
from plait.recipes.mergekit._tokens import chat_template, vocabulary

__all__ = ["Imported", "import_documents", "is_mergekit"]

_DTYPES = ("bfloat16", "float16", "float32", "float64")


@dataclass(frozen=True)
class Imported:
    """A recipe of plait's that computes what a mergekit recipe asks for.

    Attributes:
        recipe: as plain data, ready for `plait.merge` or YAML.
        notes: what is not the same, or was left out, one sentence each.
    """

    recipe: dict[str, Any]
    notes: tuple[str, ...] = ()


def is_mergekit(documents: Sequence[Document]) -> bool:
    """Tell whether documents are mergekit's."""
    first = documents[0].data
    if not isinstance(first, Mapping) or "method" in first:
        return False
    return "merge_method" in first or ("gate_mode" in first and "experts" in first) or "genome" in first


def import_documents(
    documents: Sequence[Document], stage: str | None = None, rebase: Callable[[str], str] | None = None
) -> Imported:
    """Translate a mergekit recipe; of several documents the last stage, with the others nested in it.

    Args:
        documents: what the file holds.
        stage: name of the document that is wanted; by default the one without a name, or the one that no other uses.
        rebase: changes the models' paths, for a recipe that will stand in another folder.

    Raises:
        RecipeError: for what mergekit would refuse, for probable typos, and for what plait cannot reproduce.
    """
    readers = [Reader(document) for document in documents]
    stages = Stages([(reader, read_config(reader)) for reader in readers], rebase or str)
    recipe = stages.build(stages.pick(stage))
    notes = dict.fromkeys(note for reader in readers for note in reader.notes)
    return Imported(recipe, tuple(notes))


@dataclass
class Stages:
    """The documents of one file; each may name others as its models."""

    parts: list[tuple[Reader, Config]]
    rebase: Callable[[str], str] = str
    _open: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.named: dict[str, tuple[Reader, Config]] = {}
        unnamed = 0
        for reader, config in self.parts:
            unnamed += config.name is None
            if config.name in self.named or unnamed > 1:
                what = f"two documents are called {config.name!r}" if config.name else "two documents have no name"
                raise reader.fail((), f"{what}; give each its own.")
            if config.name is not None:
                self.named[config.name] = (reader, config)

    def pick(self, stage: str | None) -> tuple[Reader, Config]:
        """The document whose result is wanted."""
        if stage is not None:
            if stage not in self.named:
                known = ", ".join(self.named) or "none"
                hint = suggest(stage, self.named)
                raise RecipeError(f"no document is called {stage!r}.{hint} Named documents: {known}.")
            return self.named[stage]
        unnamed = [part for part in self.parts if part[1].name is None]
        if unnamed:
            return unnamed[0]
        used = {name.path for _, config in self.parts for name in _models(config)}
        last = [name for name in self.named if name not in used]
        if len(last) != 1:
            reader = self.parts[0][0]
            raise reader.fail(
                (),
                f"which of {', '.join(last) or ', '.join(self.named)} is the result? Leave out its `name`, or say it.",
            )
        return self.named[last[0]]

    def build(self, part: tuple[Reader, Config]) -> dict[str, Any]:
        """The recipe of one document."""
        reader, config = part
        return _Document(reader, config, self).build()

    def reference(self, reader: Reader, name: ModelName) -> str | dict[str, Any]:
        """What stands for a model without its adapter: its path, or the recipe of the stage it names."""
        if name.path not in self.named:
            return f"{self.rebase(name.path)}@{name.revision}" if name.revision else self.rebase(name.path)
        if name.path in self._open:
            circle = " → ".join([*self._open[self._open.index(name.path) :], name.path])
            raise reader.fail((), f"the documents need each other in a circle: {circle}.")
        if name.revision is not None or name.adapter is not None:
            raise reader.fail(
                (), f"{name} names the document {name.path!r}, which has no revision and takes no adapter."
            )
        self._open.append(name.path)
        try:
            return self.build(self.named[name.path])
        finally:
            self._open.pop()


def _models(config: Config) -> list[ModelName]:
    groups: list[Group] = [*config.groups, *(g for groups in config.modules.values() for g in groups)]
    named = [item.model for group in groups for item in group.inputs]
    return [*named, *(g.base for g in groups if g.base), *([config.base] if config.base else [])]


class _Document:
    """One document on its way to a recipe."""

    def __init__(self, reader: Reader, config: Config, stages: Stages) -> None:
        self.reader = reader
        self.config = config
        self.builder = Builder(reader, config, lambda name: stages.reference(reader, name), stages.rebase)

    def build(self) -> dict[str, Any]:
        config, reader = self.config, self.reader
        if config.modules:
            raise reader.fail(
                ("modules",),
                f"merging the modules {', '.join(config.modules)} in ways of their own is not imported. Write one "
                "recipe per module, and take the others' tensors with `copy`.",
            )
        recipe, donor = self._stack(config.groups)
        if config.base is not None and donor != config.base:
            reader.note(
                f"config and tokenizer come from {donor}, the first model; mergekit takes those of {config.base}."
            )
        dtype = self._dtype()
        if dtype is not None:
            recipe["dtype"] = dtype
        if config.tokenizer is not None:
            if len(config.groups) > 1:
                raise reader.fail(
                    ("tokenizer",),
                    "the vocabularies of several slices are not aligned; give the stack its models' own.",
                )
            recipe["tokenizer"] = vocabulary(reader, config.tokenizer, self.builder.called, config.base)
        if config.chat_template is not None:
            recipe["chat_template"] = chat_template(reader, config.chat_template)
        return recipe

    def _stack(self, groups: Sequence[Group]) -> tuple[dict[str, Any], ModelName]:
        if len(groups) == 1:
            return self.builder.recipe(groups[0])
        slices: list[dict[str, Any]] = []
        first: ModelName | None = None
        for group in groups:
            layers = group.inputs[0].layers
            assert layers is not None
            whole = self.builder.untouched(group)
            if whole is not None:
                slices.append({"model": whole, "layers": list(layers)})
                donor = group.inputs[0].model
            else:
                recipe, donor = self.builder.recipe(group)
                slices.append({"model": recipe, "layers": [0, layers[1] - layers[0]]})
            first = first or donor
        if len({len(g.inputs) for g in (groups[0], groups[-1])}) > 1:
            self.reader.note(
                "the first and the last slice have different numbers of sources: head and final norm are merged "
                "from all sources of the last slice, of which mergekit loses some."
            )
        assert first is not None
        return {"method": "passthrough", "slices": slices}, first

    def _dtype(self) -> str | None:
        reader, config = self.reader, self.config
        found = {}
        for key, value in (("dtype", config.dtype), ("out_dtype", config.out_dtype)):
            name = value.removeprefix("torch.") if value else None
            if name is not None and name not in _DTYPES:
                hint = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}.get(name)
                advice = f" Did you mean {hint!r}?" if hint else suggest(name, _DTYPES)
                raise reader.fail((key,), f"{key} is {value!r}; it must be one of {', '.join(_DTYPES)}.{advice}")
            found[key] = name
        if found["dtype"] in ("bfloat16", "float16"):
            reader.note(
                f"mergekit rounds every step to {found['dtype']}; plait computes in float32 and rounds the result once."
            )
        elif found["dtype"] == "float64":
            reader.note("mergekit computes in float64; plait does so for models that are stored in it.")
        return found["out_dtype"] or found["dtype"]
