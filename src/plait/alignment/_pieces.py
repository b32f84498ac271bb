"""What one tokenizer makes of the tokens of another one, with the library that both were made with."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from plait.alignment._tokenizer import Tokenizer
from plait.errors import MissingExtraError, RecipeError

__all__ = ["pieces_of"]


def pieces_of(own: Tokenizer, theirs: Tokenizer) -> Callable[[int], list[int]]:
    """Return a function from a number of `theirs` to the numbers that `own` gives the token's text.

    Raises:
        MissingExtraError: without the package tokenizers.
        RecipeError: if one of the two has no tokenizer.json.
    """
    try:
        from tokenizers import Tokenizer as Fast
    except ImportError:
        raise MissingExtraError("by: subword reads text with the package tokenizers: pip install tokenizers.") from None
    for tokenizer in (own, theirs):
        if tokenizer.whole is None:
            raise RecipeError(
                f"tokenizer: {tokenizer.owner} has no tokenizer.json, which `by: subword` needs; save it in the fast "
                "format, or use `by: omp`."
            )
    reader: Any = Fast.from_str(json.dumps(own.whole))
    writer: Any = Fast.from_str(json.dumps(theirs.whole))

    def pieces(number: int) -> list[int]:
        text = writer.decode([number], skip_special_tokens=False)
        return list(reader.encode(text, add_special_tokens=False).ids)

    return pieces
