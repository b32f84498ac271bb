"""Which tensors have one row per token: embeddings, heads and their biases."""

from __future__ import annotations

import re
from collections.abc import Mapping

from plait.architectures._roles import roles_of

__all__ = ["token_tables"]

_WORDS = re.compile(r"(embed_tokens|word_embeddings|wte|shared|embed_in|tok_embeddings|token_embedding)(\.weight)?$")
_PLACES = re.compile(r"position|pos_emb|wpe|token_type|segment")


def token_tables(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return the tensors of a model whose first dimension is its vocabulary.

    The table of word embeddings is known by its name; whatever else is an embedding or a head and has as many rows is
    another: an output projection, its bias. Models without such a name have none.
    """
    roles = roles_of(shapes)
    outside = [name for name in shapes if roles[name].kind in ("embedding", "head") and not _PLACES.search(name)]
    rows = {shapes[name][0] for name in outside if _WORDS.search(name) and len(shapes[name]) == 2}
    return [name for name in outside if shapes[name] and shapes[name][0] in rows and len(shapes[name]) <= 2]
