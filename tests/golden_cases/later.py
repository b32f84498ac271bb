"""Goldens of families that plait does not have yet, each with the reason."""

from __future__ import annotations

_DATA = "needs calibration data or gradients, which plait does not collect yet"
_LEARNED = "coefficients learned or searched with data, which plait does not do yet"
_FAMILY = "one model per task, a router or a compressed form: not one dense model; such families do not exist yet"
_ALIGN = "permutation alignment or activation matching, which does not exist yet"

LEFT_OUT = {
    r"(fisher|regmean|regmeanpp|ota|rcp|sens_merging|aim)-.*": _DATA,
    r"(adamerging|adamergingpp|concrete_ta|fw_hard|fw_soft|evomerging|m2n2|map)-.*": _LEARNED,
    r"(bitstack|graftllm|twin|smile_moe_linear|wemoe_mlp|msmoe|singular_projection)-.*": _FAMILY,
    r"dop-.*": "continual merging that optimises a projection per step with multi-gradient descent: specified later",
    r"(activation_matching|weight_matching|align_in|zipit|pleas|repair|ot-fusion|merge_many)([_-].*)?": _ALIGN,
    r"tokensurgeon.*": "rows of a tokenizer transplant, no merge: tests/alignment/test_transplant.py reproduces them",
    r"fusellm-.*": "fusion of different architectures, which does not exist yet",
}
