"""Making models comparable before they are merged: vocabularies aligned token by token."""

from plait.alignment._templates import TEMPLATES, pick_template
from plait.alignment._tokenizer import Tokenizer, read_tokenizer
from plait.alignment._transplant import WAYS, transplant
from plait.alignment._vocabulary import (
    TokenRow,
    Vocabulary,
    align_vocabularies,
    plan_vocabulary,
    renumber_files,
)

__all__ = [
    "TEMPLATES",
    "WAYS",
    "TokenRow",
    "Tokenizer",
    "Vocabulary",
    "align_vocabularies",
    "pick_template",
    "plan_vocabulary",
    "read_tokenizer",
    "renumber_files",
    "transplant",
]
