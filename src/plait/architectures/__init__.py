"""What the parts of a model mean, inferred from names: role, depth, ties. Never an import of modelling code."""

from plait.architectures._config import depth_keys, resize_depth, tie_flag
from plait.architectures._fused import expert_modules, split_experts
from plait.architectures._modules import match_flat, match_modules
from plait.architectures._parts import head_size, parts_of
from plait.architectures._roles import KINDS, Role, layer_of, roles_of, with_layer
from plait.architectures._ties import tied_to
from plait.architectures._vocabulary import token_tables

__all__ = [
    "KINDS",
    "Role",
    "depth_keys",
    "expert_modules",
    "head_size",
    "layer_of",
    "match_flat",
    "match_modules",
    "parts_of",
    "resize_depth",
    "roles_of",
    "split_experts",
    "tie_flag",
    "tied_to",
    "token_tables",
    "with_layer",
]
