"""From names and values in a recipe to the method instances of each tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from plait.architectures import Role
from plait.errors import RecipeError, suggest
from plait.methods import (
    Combiner,
    Method,
    Parameter,
    Sparsifier,
    check_value,
    find,
    find_composition,
    find_presets,
    internal,
)
from plait.recipes._load import Source
from plait.recipes._values import MISSING, ByExpert, Constant, Value, parse_value

__all__ = ["Chain", "Step", "resolve_chain"]


@dataclass(frozen=True)
class Step:
    """One method of a chain with the values the recipe gives it."""

    cls: type[Method]
    values: Mapping[str, Value]
    made: dict[Any, Method] = field(default_factory=dict, compare=False)

    def at(self, name: str, role: Role, experts: Sequence[str]) -> Method:
        """Return the method as it applies to one tensor."""
        arguments: dict[str, Any] = {}
        for key, value in self.values.items():
            parameter = self.cls.parameters()[key]
            if isinstance(value, ByExpert):
                each = [value.of(expert, name, role) for expert in experts]
                arguments[key] = tuple(parameter.default if v is MISSING else _typed(parameter, v) for v in each)
            elif (found := value.at(name, role)) is not MISSING:
                arguments[key] = _typed(parameter, found)
        frozen = tuple(sorted(arguments.items()))
        if frozen not in self.made:
            self.made[frozen] = self.cls(**arguments)
        return self.made[frozen]


def _typed(parameter: Parameter, value: Any) -> Any:
    return round(value) if parameter.kind == "int" and value is not None else value


@dataclass(frozen=True)
class Chain:
    """Sparsifiers, one combiner, modifiers; and the weights of the experts."""

    steps: tuple[Step, ...]
    weights: ByExpert
    experts: tuple[str, ...]

    @property
    def combiner(self) -> Step:
        """The step that merges."""
        return next(step for step in self.steps if issubclass(step.cls, Combiner))

    @property
    def needs_base(self) -> bool:
        """Whether any step uses the base model."""
        return any(step.cls.needs_base or step.cls.optional_base for step in self.steps)

    def weights_at(self, name: str, role: Role) -> tuple[float, ...]:
        """The experts' weights for one tensor."""
        found = (self.weights.of(expert, name, role) for expert in self.experts)
        return tuple(1.0 if w is MISSING else float(w) for w in found)

    def unused_rules(self) -> list[str]:
        """Rules that picked no tensor."""
        members = [self.weights, *(v for step in self.steps for v in step.values.values())]
        return [text for member in members for text in member.unused()]


def resolve_chain(source: Source) -> Chain:
    """Find the methods a recipe names and check every parameter it gives.

    Raises:
        UnknownMethodError, RecipeError: with the line and what was probably meant.
    """
    recipe, where = source.recipe, source.document.where
    experts = tuple(recipe.experts)
    written = _steps(source)
    classes = [find(name) for name, _, _, _ in written]
    presets = [
        {internal(key, c.parameters()): value for key, value in w[1].items()}
        for c, w in zip(classes, written, strict=True)
    ]
    _check_order(classes, where(("method",)))
    given: list[dict[str, tuple[Any, tuple[Any, ...]]]] = [
        {key: (value, (*path, key)) for key, value in inline.items()} for _, _, inline, path in written
    ]
    weight: Any = MISSING
    for key, value in recipe.parameters.items():
        if key == "weight":
            weight = value
            continue
        index, name = _owner(key, classes, presets, where(("parameters", key)))
        if name in given[index]:
            raise RecipeError(f"{where(('parameters', key))}{key!r} is given twice for {classes[index].name!r}.")
        given[index][name] = (value, ("parameters", key))
    steps = []
    for index, cls in enumerate(classes):
        values: dict[str, Value] = {key: Constant(value) for key, value in presets[index].items()}
        for key, (raw, path) in given[index].items():
            values[internal(key, cls.parameters())] = _value(cls, key, raw, experts, where(path))
        for expert, entry in recipe.experts.items():
            for key, raw in entry.parameters.items():
                at, name = _owner(key, classes, presets, where(("experts", expert, key)))
                if at == index:
                    _add_own(cls, values, name, expert, raw, where(("experts", expert, key)))
        steps.append(Step(cls, values))
    return Chain(tuple(steps), _weights(source, weight, classes), experts)


def _steps(source: Source) -> list[tuple[str, Mapping[str, Any], dict[str, Any], tuple[Any, ...]]]:
    """Each step's name, the values its composition presets, those written beside it, and where it is written."""
    method = source.recipe.method
    if isinstance(method, str):
        return [(name, preset, {}, ("method",)) for name, preset in _parts(method)]
    found: list[tuple[str, Mapping[str, Any], dict[str, Any], tuple[Any, ...]]] = []
    for index, item in enumerate(method):
        path = ("method", index)
        if isinstance(item, str):
            found += [(name, preset, {}, path) for name, preset in _parts(item)]
            continue
        if len(item) != 1:
            raise RecipeError(f"{source.document.where(path)}a step is one method: write each as an item of its own.")
        ((name, parameters),) = item.items()
        found.append((name, {}, dict(parameters or {}), (*path, name)))
    if not found:
        raise RecipeError(f"{source.document.where(('method',))}the list of methods is empty.")
    return found


def _parts(name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    return zip(find_composition(name), find_presets(name), strict=True)


def _check_order(classes: Sequence[type[Method]], where: str) -> None:
    ranks = [0 if issubclass(c, Sparsifier) else 1 if issubclass(c, Combiner) else 2 for c in classes]
    names = " → ".join(c.name for c in classes)
    if ranks.count(1) == 0:
        lone = classes[0]
        before = issubclass(lone, Sparsifier)
        advice = "in front of one" if before else "behind one"
        example = f"[{lone.name}, task_arithmetic]" if before else f"[task_arithmetic, {lone.name}]"
        raise RecipeError(
            f"{where}{names} holds no method that combines models: {lone.name!r} is a {lone.kind}; put it {advice}, "
            f"as in method: {example}."
        )
    if ranks.count(1) > 1:
        raise RecipeError(f"{where}{names} holds two combiners; nest one recipe in the other instead.")
    if ranks != sorted(ranks):
        raise RecipeError(f"{where}{names} is out of order: sparsifiers come first, then one combiner, then modifiers.")


def _owner(
    key: str, classes: Sequence[type[Method]], presets: Sequence[Mapping[str, Any]], where: str
) -> tuple[int, str]:
    """Find the step that a parameter belongs to; `step.parameter` names it outright.

    Of several steps that have it, those for which a composition presets it stand back.
    """
    if "." in key:
        step, _, name = key.partition(".")
        owners = [i for i, c in enumerate(classes) if c.name == step]
        if not owners:
            raise RecipeError(f"{where}{step!r} in {key!r} is no step of this recipe.")
        return owners[0], name
    owners = [i for i, c in enumerate(classes) if internal(key, c.parameters()) in c.parameters()]
    free = [i for i in owners if internal(key, classes[i].parameters()) not in presets[i]]
    if len(owners) == 1 or len(free) == 1:
        return (free or owners)[0], key
    if owners:
        options = " or ".join(f"{classes[i].name}.{key}" for i in owners)
        raise RecipeError(f"{where}{key!r} belongs to several steps; say {options}.")
    known = [p.label for c in classes for p in c.parameters().values()] + ["weight"]
    names = " and ".join(repr(c.name) for c in classes)
    listed = f"It has: {', '.join(known)}." if known else "It has none."
    raise RecipeError(f"{where}unknown parameter {key!r} of {names}.{suggest(key, known)} {listed}")


def _value(cls: type[Method], key: str, raw: Any, experts: Sequence[str], where: str) -> Value:
    parameters = cls.parameters()
    name = internal(key, parameters)
    if name not in parameters:
        known = [p.label for p in parameters.values()]
        raise RecipeError(
            f"{where}unknown parameter {key!r} of {cls.name!r}.{suggest(key, known)} It has: {', '.join(known)}."
        )
    parameter = parameters[name]
    label = f"parameter {parameter.label!r} of {cls.name!r}"
    try:
        if parameter.kind == "any":
            return Constant(tuple(raw) if isinstance(raw, list) else raw)
        value = parse_value(raw, label, experts=experts, per_expert=parameter.per_expert)
        if parameter.fixed and value.varies:
            raise RecipeError(f"{label} is one value for the whole model; it cannot vary by depth, name or role.")
        for leaf in value.leaves():
            check_value(cls.name, parameter, leaf)
    except RecipeError as error:
        raise RecipeError(f"{where}{error}") from None
    return value


def _add_own(cls: type[Method], values: dict[str, Value], key: str, expert: str, raw: Any, where: str) -> None:
    name = internal(key, cls.parameters())
    if name in cls.parameters() and not cls.parameters()[name].per_expert:
        raise RecipeError(
            f"{where}parameter {key!r} of {cls.name!r} is the same for all experts; set it under parameters."
        )
    own = _value(cls, key, raw, (), where)
    before = values.get(name)
    if isinstance(before, ByExpert):
        values[name] = ByExpert({**before.values, expert: own}, before.common)
    else:
        values[name] = ByExpert({expert: own}, before)


def _weights(source: Source, common: Any, classes: Sequence[type[Method]]) -> ByExpert:
    recipe, where = source.recipe, source.document.where
    combiner = next(c for c in classes if issubclass(c, Combiner))
    experts = tuple(recipe.experts)
    own = {name: entry.weight for name, entry in recipe.experts.items() if entry.weight is not None}
    if (own or common is not MISSING) and not combiner.weighted:
        path = ("parameters", "weight") if common is not MISSING else ("experts", next(iter(own)), "weight")
        raise RecipeError(f"{where(path)}{combiner.name!r} takes no weights; see `plait methods {combiner.name}`.")
    values: dict[str, Value] = {}
    shared: Value | None = None
    if common is not MISSING:
        parsed = parse_value(common, "parameter 'weight'", experts=experts, per_expert=True)
        if isinstance(parsed, ByExpert):
            values |= parsed.values
        else:
            shared = parsed
    for name, raw in own.items():
        if name in values:
            raise RecipeError(f"{where(('experts', name, 'weight'))}the weight of {name!r} is given twice.")
        values[name] = parse_value(raw, f"the weight of {name!r}")
    result = ByExpert(values, shared)
    for leaf in result.leaves():
        if isinstance(leaf, bool) or not isinstance(leaf, int | float) or not abs(leaf) < 1e30:
            raise RecipeError(f"{where(('experts',))}a weight is {leaf!r}; it must be a number, and not beyond 1e30.")
    return result
