"""Chat templates: the common formats by name, a model's own, or the one most models have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from plait.errors import RecipeError, suggest

__all__ = ["TEMPLATES", "pick_template"]

_CHATML = (
    "{%- for turn in messages -%}\n"
    "{{ '<|im_start|>' ~ turn.role ~ '\\n' ~ turn.content ~ '<|im_end|>\\n' }}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}\n"
    "{{ '<|im_start|>assistant\\n' }}\n"
    "{%- endif -%}\n"
)
_LLAMA3 = (
    "{{- bos_token -}}\n"
    "{%- for turn in messages -%}\n"
    "{{ '<|start_header_id|>' ~ turn.role ~ '<|end_header_id|>\\n\\n' ~ turn.content | trim ~ '<|eot_id|>' }}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}\n"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}\n"
    "{%- endif -%}\n"
)
_MISTRAL = (
    "{{- bos_token -}}\n"
    "{%- set waiting = namespace(system='') -%}\n"
    "{%- for turn in messages -%}\n"
    "{%- if turn.role == 'system' -%}\n"
    "{%- set waiting.system = turn.content ~ '\\n\\n' -%}\n"
    "{%- elif turn.role == 'user' -%}\n"
    "{{ ' [INST] ' ~ waiting.system ~ turn.content ~ ' [/INST]' }}\n"
    "{%- set waiting.system = '' -%}\n"
    "{%- else -%}\n"
    "{{ ' ' ~ turn.content ~ eos_token }}\n"
    "{%- endif -%}\n"
    "{%- endfor -%}\n"
)
_ALPACA = (
    "{%- for turn in messages -%}\n"
    "{%- if turn.role == 'system' -%}\n"
    "{{- turn.content | trim ~ '\\n\\n' }}\n"
    "{%- else -%}\n"
    "{{ '### Instruction:\\n' if turn.role == 'user' else '### Response:\\n' }}\n"
    "{{- turn.content | trim ~ '\\n\\n' }}\n"
    "{%- endif -%}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}\n"
    "{{ '### Response:\\n' }}\n"
    "{%- endif -%}\n"
)

#: formats that models and their users know by name
TEMPLATES: Mapping[str, str] = {"chatml": _CHATML, "llama3": _LLAMA3, "mistral": _MISTRAL, "alpaca": _ALPACA}


def pick_template(wanted: str, own: Mapping[str, str | None], donor: str) -> str | None:
    """Return the chat template that a recipe asks for; None if `auto` finds none.

    Args:
        wanted: `auto` (that of most models, the donor's where they are equally many), a model's name, the name of a
            format, or a template.
        own: the models' templates.
        donor: the model whose tokenizer the result has.

    Raises:
        RecipeError: for a word that is none of them.
    """
    if wanted == "auto":
        given = [t for name in (donor, *own) if (t := own.get(name))]
        counts = Counter(t for t in own.values() if t)
        return max(given, key=lambda t: counts[t]) if given else None
    if wanted in own:
        found = own[wanted]
        if found is None:
            raise RecipeError(f"chat_template: {wanted} has no chat template.")
        return found
    if wanted in TEMPLATES:
        return TEMPLATES[wanted]
    if "{" in wanted:
        return wanted
    known = ["auto", *own, *TEMPLATES]
    hint = suggest(wanted, known)
    raise RecipeError(f"chat_template: {wanted!r} is no template and no name of one.{hint} Names: {', '.join(known)}.")
