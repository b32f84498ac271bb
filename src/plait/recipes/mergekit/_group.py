"""One group of models that are merged with each other: its method, its models, their values."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from plait.architectures import depth_keys
from plait.errors import suggest
from plait.recipes._yaml import Path as Place
from plait.recipes.mergekit._methods import NAMES, TRANSLATIONS, Given
from plait.recipes.mergekit._read import Config, Group, Input, ModelName, Reader, typo
from plait.recipes.mergekit._settings import Entry, constant, entries_of, plain

__all__ = ["Builder"]

Reference: TypeAlias = str | dict[str, Any]


class Builder:
    """Writes recipes for the groups of one document.

    Args:
        reader: for errors and notes.
        config: the document.
        reference: what stands for a model, without its adapter, in a recipe.
        rebase: changes the paths of adapters as it does those of models.

    Attributes:
        called: what the recipe of a group calls its models.
    """

    def __init__(
        self,
        reader: Reader,
        config: Config,
        reference: Callable[[ModelName], Reference],
        rebase: Callable[[str], str] = str,
    ) -> None:
        self.reader = reader
        self.config = config
        self.reference = reference
        self.rebase = rebase
        self.called: dict[ModelName, str] = {}
        if config.method not in TRANSLATIONS:
            hint = suggest(config.method, TRANSLATIONS)
            raise reader.fail(
                ("merge_method",),
                f"{config.method!r} is no method of mergekit.{hint} It has: {', '.join(TRANSLATIONS)}.",
            )
        self.translation = TRANSLATIONS[config.method]

    # --- models ----------------------------------------------------------------------------------------------------

    def untouched(self, group: Group) -> Reference | None:
        """The only model of a slice that is taken as it is, or None."""
        if len(group.inputs) != 1 or self.config.method != "passthrough":
            return None
        given = self._scopes(group, group.inputs[0], "scale")
        entries = entries_of(self.reader, given, float, 1.0, "scale")
        plain_copy = all(value == 1.0 for _, value in entries)
        self._look_over(group)
        return self._model(group.inputs[0], whole=True) if plain_copy else None

    def recipe(self, group: Group) -> tuple[dict[str, Any], ModelName]:
        """The recipe of a group, and the model that config and tokenizer come from."""
        translation, reader = self.translation, self.reader
        self._look_over(group)
        inputs, base = self._sides(group)
        if translation.note and any(i.model != base for i in inputs):
            reader.note(translation.note)
        if translation.base == "required" and len(inputs) == 1 and inputs[0].model == base:
            if self.config.method in ("slerp", "model_stock", "arcee_fusion", "nearswap"):
                raise reader.fail(group.at, f"{self.config.method} needs a model beside the base.")
            reader.note("no model is given beside the base: the result is the base.")
            return self._passthrough(inputs[0])
        experts = [i for i in inputs if translation.base == "ignored" or i.model != base]
        if self.config.method == "slerp":
            if len(inputs) != 2:
                raise reader.fail(
                    group.at, f"slerp merges two models, of which one is base_model; {len(inputs)} given."
                )
            experts = sorted(inputs, key=lambda item: item.model != base)
            base = None
        if self.config.method == "passthrough" and len(experts) != 1:
            raise reader.fail(group.at, f"passthrough takes one model; {len(experts)} given, base_model counted.")
        if self.config.method == "multislerp" and len(experts) == 1:
            return self._passthrough(experts[0])
        self._check_filters(group)
        names = _names([item.model for item in experts])
        content: dict[str, Any] = {"method": translation.method}
        if base is not None and translation.base != "ignored":
            (owner,) = [item for item in inputs if item.model == base]
            content["base"] = self._model(owner)
        entries: dict[str, dict[str, Any]] = {
            name: self._expert(item) for name, item in zip(names, experts, strict=True)
        }
        self.called = {item.model: name for name, item in zip(names, experts, strict=True)}
        if "base" in content and base is not None:
            self.called[base] = "base"
        parameters = self._values(group, experts, names, entries)
        content["experts"] = {
            name: entry["model"] if set(entry) == {"model"} else entry for name, entry in entries.items()
        }
        if parameters:
            content["parameters"] = parameters
        donor = base if base is not None else experts[0].model
        if self.config.base is not None and translation.base == "ignored":
            owners = [name for name, item in zip(names, experts, strict=True) if item.model == self.config.base]
            donor = self.config.base if owners else experts[0].model
            if owners and owners[0] != names[0]:
                content["files_from"] = owners[0]
        return content, donor

    def _sides(self, group: Group) -> tuple[list[Input], ModelName | None]:
        """All models that take part, and the base among them."""
        reader, need, base = self.reader, self.translation.base, group.base
        inputs = list(group.inputs)
        models = [item.model for item in inputs]
        for item in inputs:
            if models.count(item.model) > 1:
                raise reader.fail(item.at, f"{item.model} stands twice among the models; mergekit refuses that.")
        if base is None and need == "required":
            raise reader.fail(group.at, f"{self.config.method} needs base_model.")
        if base is not None and base not in models:
            if not group.sliced:
                inputs.append(Input(base, {}, ("base_model",)))
            elif need != "ignored":
                raise reader.fail(group.at, f"base_model {base} must be among the sources of every slice.")
        return inputs, base

    def _expert(self, item: Input) -> dict[str, Any]:
        """An expert's entry; an adapter stands beside its model, so that methods on changes see the change itself."""
        if item.model.adapter is None or item.layers is not None:
            return {"model": self._model(item)}
        self._rounding(item.model)
        return {"model": self.reference(item.model), "adapter": self._adapter(item.model)}

    def _model(self, item: Input, whole: bool = False) -> Reference:
        """What stands for an input: the model, or the range of its layers as a stack of its own."""
        name = item.model
        reference = self.reference(name)
        if name.adapter is not None:
            self._rounding(name)
            (short,) = _names([name])
            entry = {"model": reference, "adapter": self._adapter(name)}
            reference = {"method": "passthrough", "experts": {short: entry}}
        if item.layers is None or whole or item.layers == (0, _depth(name)):
            return reference
        return {"method": "passthrough", "slices": [{"model": reference, "layers": list(item.layers)}]}

    def _adapter(self, name: ModelName) -> str:
        path, _, revision = (name.adapter or "").partition("@")
        return f"{self.rebase(path)}@{revision}" if revision else self.rebase(path)

    def _rounding(self, name: ModelName) -> None:
        self.reader.note(f"mergekit rounds {name} to the model's dtype before it merges it; plait does not.")

    def _passthrough(self, item: Input) -> tuple[dict[str, Any], ModelName]:
        (name,) = _names([item.model])
        self.called = {item.model: name}
        return {"method": "passthrough", "experts": {name: self._model(item)}}, item.model

    # --- values ----------------------------------------------------------------------------------------------------

    def _scopes(self, group: Group, item: Input | None, key: str) -> list[tuple[Any, Place]]:
        """Settings of a parameter, the closest scope first."""
        own = [(item.parameters, (*item.at, "parameters", key))] if item is not None else []
        scopes: list[tuple[Mapping[str, Any], Place]] = [
            *own,
            (group.parameters, (*group.at, "parameters", key)),
            (self.config.module, ("modules",)),
            (self.config.parameters, ("parameters", key)),
        ]
        return [(scope[key], path) for scope, path in scopes if key in scope]

    def _values(
        self, group: Group, experts: Sequence[Input], names: Sequence[str], entries: dict[str, dict[str, Any]]
    ) -> dict[str, Any]:
        """The recipe's parameters; what differs between models goes into their entries."""
        layers = group.inputs[0].layers
        depth = layers[1] - layers[0] if layers else None
        found: dict[str, Any] = {}
        for key, given in self.translation.parameters.items():
            if not given.to and not given.choose:
                continue
            if given.choose:
                entry = self._entries(group, None, key, given)
                found |= given.choose[constant(self.reader, entry, ("parameters", key), f"parameter {key!r}")]
            elif not given.own:
                entry = self._entries(group, None, key, given)
                found[given.to] = plain(entry, depth, given.change)
            else:
                each = [plain(self._entries(group, item, key, given), depth, given.change) for item in experts]
                if given.to == "scale":
                    if each[0] not in (None, 1.0, []):
                        found["scale"] = each[0]
                elif given.to != "weight" and all(value == each[0] for value in each):
                    found[given.to] = each[0]
                else:
                    for name, value in zip(names, each, strict=True):
                        entries[name][given.to] = value
        if self.config.method == "nuslerp":
            found["scope"] = self._nuslerp_scope(group)
        return {**found, **self.translation.values}

    def _entries(self, group: Group, item: Input | None, key: str, given: Given) -> list[Entry]:
        default = 1.0 if given.optional else given.default
        scopes = self._scopes(group, item, key)
        of = f" of {item.model}" if item is not None else ""
        entries = entries_of(self.reader, scopes, given.kind, default, f"parameter {key!r}{of}")
        if not entries:
            place = item.at if item is not None else group.at
            raise self.reader.fail(place, f"{self.config.method} needs {key!r}{of}; mergekit has no default for it.")
        if entries[-1][0] is not None:
            self.reader.note(
                f"{key}{of} is given for some tensors only: mergekit refuses a model with others, plait takes "
                "its own default there."
            )
        return entries

    def _nuslerp_scope(self, group: Group) -> str:
        flags = []
        for key in ("nuslerp_flatten", "nuslerp_row_wise"):
            entry = self._entries(group, None, key, self.translation.parameters[key])
            flags.append(constant(self.reader, entry, ("parameters", key), f"parameter {key!r}"))
        return "tensor" if flags[0] else "column" if flags[1] else "row"

    # --- what mergekit passes over in silence ----------------------------------------------------------------------

    def _look_over(self, group: Group) -> None:
        """Tell, or refuse, what has no effect."""
        shared = [(group.parameters, (*group.at, "parameters")), (self.config.parameters, ("parameters",))]
        shared.append((self.config.module, ("modules",)))
        for parameters, path in shared:
            self._known(parameters, path)
        for item in group.inputs:
            self._known(item.parameters, (*item.at, "parameters"))
            for key in item.parameters:
                given = self.translation.parameters.get(key)
                if given is None or not (given.to or given.choose or given.kind is bool):
                    continue
                if not given.own:
                    self.reader.note(f"{key} of {item.model} has no effect: it is one value for all models.")
                elif self.translation.base != "ignored" and item.model == group.base:
                    self.reader.note(f"{key} of {item.model} has no effect: it is the base.")

    def _known(self, parameters: Mapping[str, Any], path: Place) -> None:
        method, known = self.config.method, self.translation.parameters
        for key, value in parameters.items():
            given = known.get(key)
            if given is not None:
                if given.to or given.choose or key.startswith("nuslerp_"):
                    continue
                if key == "eps" and value == 1e-8:
                    continue
                self.reader.note(f"{key} is left out: " + _EFFECTLESS.get(key, f"{method} does nothing with it."))
            elif key in NAMES:
                self.reader.note(f"{key} is left out: {method} has no such parameter, and mergekit ignores it.")
            else:
                hint = typo(key, known) or typo(key, NAMES)
                if hint:
                    raise self.reader.fail(
                        (*path, key),
                        f"unknown parameter {key!r} of {method}.{hint} mergekit would ignore it in silence.",
                    )
                self.reader.note(f"{key} is no parameter of mergekit, which ignores it; it is left out.")

    def _check_filters(self, group: Group) -> None:
        """A filter with a layer's number means the numbers of the models, which a stack does not have."""
        if not group.sliced or (
            len(self.config.groups) == 1 and all((i.layers or (0, 0))[0] == 0 for i in group.inputs)
        ):
            return
        for parameters in (*(i.parameters for i in group.inputs), group.parameters, self.config.parameters):
            for setting in parameters.values():
                for item in setting if isinstance(setting, list) else [setting]:
                    text = item.get("filter") if isinstance(item, Mapping) else None
                    if isinstance(text, str) and re.search(r"(?:^|\.)\d", text):
                        raise self.reader.fail(
                            group.at,
                            f"the filter {text!r} names a layer by its number, which slices change; write a "
                            "gradient, or a slice of its own.",
                        )


_EFFECTLESS = {
    "int8_mask": "it does not change mergekit's results.",
    "eps": "plait's own bound of 1e-8 is used.",
}


def _depth(name: ModelName) -> int | None:
    """How many layers a model on this machine says it has."""
    try:
        config = json.loads((Path(name.path).expanduser() / "config.json").read_text(encoding="utf-8"))
        return next((config[key] for key in depth_keys(config)), None)
    except (OSError, ValueError, RuntimeError, AttributeError, TypeError):
        return None  # not here, or not readable: whoever opens the model says so


def _names(models: Sequence[ModelName]) -> list[str]:
    """Short names for models: the last part of each path, made different."""
    names: list[str] = []
    for model in models:
        path = model.adapter or model.path
        short = re.sub(r"[^\w.-]+", "-", path.partition("@")[0].rstrip("/").rpartition("/")[2]) or "model"
        short = "base-model" if short == "base" else short
        name, number = short, 2
        while name in names:
            name, number = f"{short}-{number}", number + 1
        names.append(name)
    return names
