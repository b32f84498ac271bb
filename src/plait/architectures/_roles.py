"""Tensor name → role: which part of a network a tensor is, and how deep it lies."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["KINDS", "Role", "layer_of", "roles_of", "with_layer"]

KINDS = ("embedding", "attention", "mlp", "router", "norm", "head", "other")


@dataclass(frozen=True)
class Role:
    """Place of a tensor in its model.

    Attributes:
        kind: one of `KINDS`.
        stack: name of the list of layers it lies in (`model.layers`), or empty.
        layer: index in that list, or None outside all lists.
        layers: length of that list (0 outside).
        expert: index of a Mixture-of-Experts expert, or None.
        depth: 0 at the input, 1 at the output; layers are spread evenly in between.
    """

    kind: str
    stack: str = ""
    layer: int | None = None
    layers: int = 0
    expert: int | None = None
    depth: float = 0.0


# In order: the first pattern found in the lower-cased name decides. `(?<![a-z])` and `(?![a-z])` keep words whole.
_PATTERNS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("norm", re.compile(r"norm|(?<![a-z])ln(_?\d+|_f|_pre|_post|_final)?(?![a-z])|(?<![a-z])bn\d*(?![a-z])")),
    ("router", re.compile(r"router|(?<![a-z])(mlp|moe|block_sparse_moe|feed_forward)\.gate(?!_)(?![a-z])")),
    ("mlp", re.compile(r"(?<![a-z])mlp(?![a-z])|ffn|(?<![a-z])ff(_context)?\.|feed_?forward|densereludense|experts")),
    (
        "attention",
        re.compile(
            r"attn|attention|(?<![a-z])(q|k|v|o|qkv|out|in|query|key|value)_proj(?![a-z])|in_proj_(weight|bias)"
            r"|(?<![a-z])(query|key|value|qkv|c_attn|query_key_value|wq|wk|wv|wo)(?![a-z])"
        ),
    ),
    (
        "mlp",
        re.compile(
            r"mlp|(?<![a-z])(fc\d*|c_fc|dense_h_to_4h|dense_4h_to_h|wi(_\d)?)"
            r"(?![a-z])|(?<![a-z])(gate|up|down|gate_up)_proj|intermediate\.dense|(?<![a-z])output\.dense|\.w[123](?![a-z])"
        ),
    ),
)
_EMBEDDING = re.compile(
    r"embed|(?<![a-z])(wte|wpe|shared|cls_token|class_token|mask_token|pos_emb|positional|tok_emb)(?![a-z])"
)
_HEAD = re.compile(
    r"(?<![a-z])(lm_head|classifier|score|head|heads|cls(?!_token)|qa_outputs|embed_out|output|logits|text_projection"
    r"|visual_projection|pooler)(?![a-z])|^(decoder|proj_out|conv_out|conv_norm_out)\.(weight|bias)$"
)
#: what stands in front of all layers without being called an embedding
_EARLY = re.compile(
    r"embed|(?<![a-z])(conv\d|conv_in|stem|patch\w*|feature_(extractor|projection)|pre_layrnorm)(?![a-z])"
)
_NUMBER = re.compile(r"(?:^|\.)([0-9]{1,6})(?=\.)")


def layer_of(name: str) -> tuple[str, int] | None:
    """Split a name into its list of layers and the index in it; None where the name has no index.

    The first index counts, unless it numbers the experts of a layer.
    """
    for found in _NUMBER.finditer(name):
        stack = name[: found.start()]
        if not stack.endswith("experts"):
            return stack, int(found.group(1))
    return None


def with_layer(name: str, index: int) -> str:
    """Return the name with another layer index."""
    for found in _NUMBER.finditer(name):
        if not name[: found.start()].endswith("experts"):
            return f"{name[: found.start(1)]}{index}{name[found.end(1) :]}"
    return name


def _kind(name: str, inside: bool) -> str:
    low = name.lower()
    if not inside:
        if _PATTERNS[0][1].search(low):
            return "norm"
        if _HEAD.search(low) and not low.startswith("embed"):
            return "head"
        if _EMBEDDING.search(low):
            return "embedding"
    for kind, pattern in _PATTERNS:
        if pattern.search(low):
            return kind
    return "other"


def roles_of(names: Iterable[str]) -> dict[str, Role]:
    """Infer the role of every tensor of a model from all their names together."""
    places = {name: layer_of(name) for name in names}
    lengths: dict[str, int] = {}
    for place in places.values():
        if place:
            lengths[place[0]] = max(lengths.get(place[0], 0), place[1] + 1)
    roles: dict[str, Role] = {}
    for name, place in places.items():
        kind = _kind(name, place is not None)
        expert = re.search(r"experts\.(\d+)\.", name)
        number = int(expert.group(1)) if expert else None
        if place is None:
            early = kind == "embedding" or _EARLY.search(name.lower()) is not None
            roles[name] = Role(kind, depth=0.0 if early else 1.0)
            continue
        stack, layer = place
        last = lengths[stack] - 1
        roles[name] = Role(kind, stack, layer, last + 1, number, layer / last if last else 0.0)
    return roles
