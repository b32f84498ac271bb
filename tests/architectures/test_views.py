"""One model in the names of another, from names and shapes."""

from __future__ import annotations

import pytest

from plait.architectures import view_of
from plait.architectures._views import Range
from plait.errors import IncompatibleModelsError

Shapes = dict[str, tuple[int, ...]]


def _layers(prefix: str, count: int = 2, width: int = 4) -> Shapes:
    found: Shapes = {}
    for i in range(count):
        for part in ("q", "k", "v"):
            found[f"{prefix}.{i}.self_attn.{part}_proj.weight"] = (width // (1 if part == "q" else 2), width)
        found[f"{prefix}.{i}.norm.weight"] = (width,)
    return found


def test_equal_models_are_seen_as_they_are() -> None:
    """Nothing is exchanged, nothing is left."""
    shapes = _layers("layers") | {"head.weight": (8, 4)}
    view = view_of(shapes, shapes)
    assert view.plain and not view.unseen and not view.rest and not view.facts


def test_a_prefix_is_exchanged_in_every_name() -> None:
    """An encoder by itself and inside its task; what only the task has stays unseen."""
    bare = _layers("encoder.layer") | {"embeddings.word.weight": (8, 4)}
    task = {f"bert.{n}": s for n, s in bare.items()} | {"cls.predictions.bias": (8,)}
    view = view_of(task, bare)
    assert view.tensors["embeddings.word.weight"] == (Range("bert.embeddings.word.weight", 0, 32),)
    assert view.unseen == ("cls.predictions.bias",) and view.facts == ("bert → nothing",)
    assert not view_of(bare, task).rest  # a head is no tower: it is missing, not kept in silence


def test_a_tower_leaves_the_other_towers() -> None:
    """Old and new layouts of vision-language models, head inside or outside of the prefix."""
    text = {f"model.{n}": s for n, s in _layers("layers").items()}
    text |= {"model.embed_tokens.weight": (8, 4), "lm_head.weight": (8, 4)}
    vision = {f"vision_tower.{n}": s for n, s in _layers("blocks", width=6).items()} | {"projector.weight": (4, 6)}
    old = {f"language_model.{n}": s for n, s in text.items()} | vision
    new = {n.replace("model.", "model.language_model.", 1): s for n, s in text.items()}
    new |= {f"model.{n}": s for n, s in vision.items()}
    for whole, head in ((old, "language_model.lm_head.weight"), (new, "lm_head.weight")):
        view = view_of(text, whole)
        assert not view.unseen and view.tensors[head][0].name == "lm_head.weight"
        assert view.rest == {n for n in whole if "vision" in n or "projector" in n}
    both = view_of(old, new)  # the two layouts of one model
    assert not both.unseen and not both.rest and set(both.tensors) == set(new)


def test_layers_of_another_shape_are_no_counterpart() -> None:
    """Names alone are not enough, and neither is another number of layers."""
    assert view_of(_layers("a.layers"), _layers("b.layers", width=8)).unseen
    assert view_of(_layers("a.layers"), _layers("b.layers", count=3)).unseen


def test_twins_are_ambiguous_unless_the_name_says_which() -> None:
    """A list of layers that ends like the model's own is the one; else the tower has to be named."""
    twins = _layers("text.model.layers") | _layers("image.layers")
    assert set(view_of(_layers("model.layers"), twins).tensors) == set(_layers("text.model.layers"))
    with pytest.raises(IncompatibleModelsError, match="tower: text"):
        view_of(_layers("h"), twins)
    assert set(view_of(_layers("h"), twins, "image").tensors) == set(_layers("image.layers"))


def test_fused_rows_are_cut_and_joined() -> None:
    """Queries, keys and values in one matrix, by rows."""
    single = _layers("layers")
    fused: Shapes = {n: s for n, s in single.items() if "norm" in n}
    fused |= {f"layers.{i}.self_attn.qkv_proj.weight": (8, 4) for i in range(2)}
    cut = view_of(fused, single)
    assert cut.tensors["layers.1.self_attn.v_proj.weight"] == (Range("layers.1.self_attn.qkv_proj.weight", 24, 8),)
    joined = view_of(single, fused)
    assert [r.name[-13:-7] for r in joined.tensors["layers.0.self_attn.qkv_proj.weight"]] == [
        "q_proj",
        "k_proj",
        "v_proj",
    ]
    assert not cut.unseen and not joined.unseen


def test_fused_experts_are_cut_and_joined_under_either_spelling() -> None:
    """Mixtral's w1, w3 and w2, and gate_up_proj with down_proj of three dimensions."""
    module = "model.layers.0."
    single: Shapes = {f"{module}block_sparse_moe.experts.{e}.w{w}.weight": (3, 4) for e in range(2) for w in (1, 3)}
    single |= {f"{module}block_sparse_moe.experts.{e}.w2.weight": (4, 3) for e in range(2)}
    single[f"{module}block_sparse_moe.gate.weight"] = (2, 4)
    fused: Shapes = {f"{module}mlp.experts.gate_up_proj": (2, 6, 4), f"{module}mlp.experts.down_proj": (2, 4, 3)}
    fused[f"{module}mlp.gate.weight"] = (2, 4)
    cut, joined = view_of(fused, single), view_of(single, fused)
    up = cut.tensors[f"{module}block_sparse_moe.experts.1.w3.weight"]
    assert up == (Range(f"{module}mlp.experts.gate_up_proj", 36, 12),)
    names = [r.name for r in joined.tensors[f"{module}mlp.experts.gate_up_proj"]]
    assert names == [f"{module}block_sparse_moe.experts.{e}.w{w}.weight" for e in range(2) for w in (1, 3)]
    assert not cut.unseen and not joined.unseen
    turned = {n: (s[0], s[2], s[1]) if len(s) == 3 else s for n, s in fused.items()}
    assert view_of(single, turned).unseen  # another order of rows and columns is never guessed


def test_old_spellings_are_known() -> None:
    """LayerNorm's gamma and beta, and the parametrised form of weight norm."""
    old = {"e.layer.0.LayerNorm.gamma": (4,), "e.layer.0.LayerNorm.beta": (4,), "conv.weight_g": (1,)}
    new = {"e.layer.0.LayerNorm.weight": (4,), "e.layer.0.LayerNorm.bias": (4,)}
    new["conv.parametrizations.weight.original0"] = (1,)
    assert not view_of(old, new).unseen and not view_of(new, old).unseen
