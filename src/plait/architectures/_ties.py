"""Tensors that are one and the same in memory, although a checkpoint may name them twice."""

from __future__ import annotations

from collections.abc import Collection

__all__ = ["tied_to"]

# Output projection → the embeddings it may be tied to. Prefixes (`model.`, `language_model.`…) are matched by suffix.
_TIES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "lm_head.weight",
        ("embed_tokens.weight", "wte.weight", "shared.weight", "word_embeddings.weight", "embed_in.weight"),
    ),
    ("embed_out.weight", ("embed_in.weight",)),
    ("cls.predictions.decoder.weight", ("embeddings.word_embeddings.weight",)),
    ("cls.predictions.decoder.bias", ("cls.predictions.bias",)),
    ("lm_head.decoder.weight", ("embeddings.word_embeddings.weight",)),
    ("lm_head.decoder.bias", ("lm_head.bias",)),
    ("encoder.embed_tokens.weight", ("shared.weight",)),
    ("decoder.embed_tokens.weight", ("shared.weight",)),
)

_ALIASES = tuple(alias for alias, _ in _TIES)


def tied_to(name: str, names: Collection[str]) -> str | None:
    """Return the tensor that `name` is a copy of in a model with tied embeddings, or None."""
    if not name.endswith(_ALIASES):
        return None
    for alias, sources in _TIES:
        if name != alias and not name.endswith(f".{alias}"):
            continue
        for source in sources:
            owners = [n for n in names if (n == source or n.endswith(f".{source}")) and n != name]
            if owners:
                return min(owners, key=lambda n: (n.count("."), n))
    return None
