"""What a user may ask: the recipe's schema, checked by pydantic at the boundary."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from plait.architectures import KINDS

__all__ = [
    "AdapterOutput",
    "CopyRule",
    "Expert",
    "Recipe",
    "Selector",
    "Slice",
    "TokenRule",
    "ValueRule",
    "Vocabulary",
]

Patterns: TypeAlias = str | list[str]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)


class Selector(_Strict):
    """Which tensors a rule is about; every condition that is given must hold."""

    match: Patterns | None = Field(None, description="glob pattern(s) on the tensor's name, e.g. '*.mlp.down_proj.*'")
    role: str | list[str] | None = Field(None, description=f"kind(s) of tensor: {', '.join(KINDS)}")
    layers: tuple[int, int] | None = Field(None, description="first and last layer, both included")
    depth: tuple[float, float] | None = Field(None, description="range of relative depth, 0 (input) to 1 (output)")

    @model_validator(mode="before")
    @classmethod
    def _pairs(cls, data: Any) -> Any:
        """Let lists stand for pairs: YAML has no tuples."""
        if isinstance(data, dict):
            return {
                k: tuple(float(x) if k == "depth" and isinstance(x, int) else x for x in v)
                if k in ("layers", "depth") and isinstance(v, list)
                else v
                for k, v in data.items()
            }
        return data

    @model_validator(mode="after")
    def _known_roles(self) -> Selector:
        for role in [self.role] if isinstance(self.role, str) else self.role or []:
            if role not in KINDS:
                raise ValueError(f"unknown role {role!r}; roles are {', '.join(KINDS)}")
        return self

    @property
    def empty(self) -> bool:
        """No condition: every tensor is meant."""
        return self.match is None and self.role is None and self.layers is None and self.depth is None


class ValueRule(Selector):
    """A parameter's value for the tensors a selector picks."""

    value: float | int | bool | str | list[float | int] = Field(description="a number, or a list spread over depth")
    optional: bool = Field(False, description="the rule may pick no tensor at all")


class CopyRule(Selector):
    """Tensors that are taken from one model as they are."""

    from_: str = Field(alias="from", description="'base' or the name of an expert")


class Slice(_Strict):
    """A range of layers of one model."""

    model: str | Recipe = Field(description="path, URL, Hub id or nested recipe")
    layers: tuple[int, int] = Field(description="first layer, and the one after the last, counted from 0")

    @model_validator(mode="before")
    @classmethod
    def _pair(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("layers"), list):
            return {**data, "layers": tuple(data["layers"])}
        return data


class Expert(BaseModel):
    """One model to merge; further keys are parameters of the method that may differ per expert."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    model: str | Recipe | None = Field(
        None, description="path, URL, Hub id, nested recipe, an adapter, or MODEL+ADAPTER"
    )
    adapter: str | None = Field(None, description="an adapter on `model`, or on the recipe's base where none is named")
    weight: Any = Field(None, description="weight of this expert: a number, a list spread over depth, or rules")

    @model_validator(mode="after")
    def _named(self) -> Expert:
        if self.model is None and self.adapter is None:
            raise ValueError("an expert needs a model or an adapter")
        return self

    @property
    def parameters(self) -> dict[str, Any]:
        """The expert's own values of the method's parameters."""
        return dict(self.__pydantic_extra__ or {})


def _as_expert(value: Any) -> Any:
    if isinstance(value, str) or (isinstance(value, dict) and "method" in value):
        return {"model": value}
    return value


class AdapterOutput(_Strict):
    """An adapter as the result: the merged change by its factors, instead of a model."""

    kind: Literal["adapter"] = "adapter"
    rank: int | None = Field(None, ge=1, description="largest rank of a module; by default all that is not rounding")
    energy: float | None = Field(None, gt=0, le=1, description="share of each change's squared norm that is kept")
    for_: Literal["vllm"] | None = Field(None, alias="for", description="whose limits are kept: vllm")


class TokenRule(_Strict):
    """Where the row of a token comes from, in models that lack the token."""

    from_: str | None = Field(None, alias="from", description="'base' or the name of an expert whose row it is")
    token: str | None = Field(None, description="the row of this token of that model; by default of the token itself")
    id: int | None = Field(None, ge=0, description="the row with this number of that model")
    value: Literal["zero", "mean"] | None = Field(None, description="zeros, or the mean of the model's own tokens")
    scale: float = Field(1.0, description="factor on the row")
    force: bool = Field(False, description="also in models that have the token")

    @model_validator(mode="after")
    def _one_source(self) -> TokenRule:
        if (self.from_ is None) == (self.value is None):
            raise ValueError("a token's row is either `from` a model or a `value`")
        if self.value is not None and not (self.token is None and self.id is None):
            raise ValueError("`token` and `id` need `from`")
        if self.token is not None and self.id is not None:
            raise ValueError("give `token` or `id`, not both")
        return self


class Vocabulary(_Strict):
    """The tokenizer of the result; every model's embeddings and head are aligned with it token by token."""

    source: str = Field("union", description="`union`, `base`, or the name of the model whose tokenizer it is")
    tokens: dict[str, TokenRule] = Field(default_factory=dict, description="token → where its row comes from")
    fill_from: str | None = Field(None, description="whose row stands in for a token that a model lacks, if it has it")
    pad_to_multiple_of: int | None = Field(None, ge=1, description="round the number of rows up")
    transplant: str | None = Field(None, description="a model whose tokenizer every model gets, its rows made anew")
    by: Literal["omp", "nearest", "subword", "mean", "zero"] = Field(
        "omp", description="how a transplant makes rows of new tokens"
    )
    k: int = Field(64, ge=1, description="by how many known tokens a transplant writes a new one")

    @model_validator(mode="after")
    def _one_way(self) -> Vocabulary:
        given = self.model_fields_set
        if self.transplant is not None and (others := given & {"source", "tokens", "fill_from"}):
            raise ValueError(f"a transplant takes the donor's vocabulary; leave out {', '.join(sorted(others))}")
        if self.transplant is None and (alone := given & {"by", "k"}):
            raise ValueError(f"{', '.join(sorted(alone))} is for a transplant; name the donor: `transplant: MODEL`")
        return self


class Recipe(_Strict):
    """A merge: a method, the models, the parameters, what to write."""

    method: str | list[str | dict[str, dict[str, Any] | None]] = Field(
        description="a method's name, or steps: sparsifiers, one combiner, modifiers"
    )
    base: str | Recipe | None = Field(None, description="the model the experts were fine-tuned from")
    experts: dict[str, Expert] = Field(
        default_factory=dict, description="name → path, URL, Hub id, or {model, weight, …}"
    )
    slices: list[Slice] | None = Field(None, description="layers to stack, for passthrough")
    parameters: dict[str, Any] = Field(default_factory=dict, description="the method's parameters")
    dtype: str | None = Field(None, description="dtype of the output; by default the widest of the inputs")
    seed: int = Field(0, ge=0, description="seed of random methods")
    drop: list[Selector] = Field(default_factory=list, description="tensors left out of the output")
    copy_: list[CopyRule] = Field(default_factory=list, alias="copy", description="tensors taken from one model")
    components: str | list[str] | None = Field(None, description="components of a pipeline that are merged")
    tower: str | None = Field(
        None, description="prefix of the part of the larger model that the other models are merged into"
    )
    files_from: str | None = Field(None, description="whose config, tokenizer and templates: 'base' or an expert")
    tokenizer: Vocabulary | None = Field(None, description="`union`, `base`, a model's name, or a mapping")
    chat_template: str | None = Field(
        None, description="auto, a model's name, chatml, llama3, mistral, alpaca, or Jinja"
    )
    allow_nonfinite: bool = Field(False, description="accept NaN and infinity in inputs and output")
    shard_size: Annotated[str | int, Field(description="largest output file, e.g. 5GB")] = "5GB"
    license: str | None = Field(None, description="licence of the result, if it is not the parents' strictest")
    output: AdapterOutput | None = Field(None, description="`adapter`, or {kind: adapter, rank, energy, for}")
    adapters: Literal["changes", "factors"] = Field(
        "changes", description="what of adapters is merged: their changes B·A, or the tensors A and B each by itself"
    )
    plait: Literal[1] = Field(1, description="version of this schema")

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        data = dict(data)
        experts = data.get("experts")
        if isinstance(experts, list):
            data["experts"] = {f"expert{i}": _as_expert(v) for i, v in enumerate(experts)}
        elif isinstance(experts, dict):
            data["experts"] = {k: _as_expert(v) for k, v in experts.items()}
        if data.get("output") in ("adapter", "model"):
            data["output"] = {"kind": "adapter"} if data["output"] == "adapter" else None
        if isinstance(data.get("tokenizer"), str):
            data["tokenizer"] = {"source": data["tokenizer"]}
        drop = data.get("drop")
        if isinstance(drop, str):
            drop = [drop]
        if isinstance(drop, list):
            data["drop"] = [{"match": d} if isinstance(d, str) else d for d in drop]
        return data

    @model_validator(mode="after")
    def _names(self) -> Recipe:
        if "base" in self.experts:
            raise ValueError("an expert cannot be called 'base'; give it another name")
        plain = self.output is not None and self.output == AdapterOutput()
        if self.adapters == "factors" and not plain:
            raise ValueError(
                "adapters: factors makes an adapter of the parents' rank: add `output: adapter`, and no more"
            )
        return self
