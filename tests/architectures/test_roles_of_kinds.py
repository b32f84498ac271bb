"""Roles of many kinds of model, from names alone."""

from __future__ import annotations

import pytest

from plait.architectures import roles_of

ROLES = {
    "encoder": {
        "bert.embeddings.word_embeddings.weight": "embedding",
        "bert.embeddings.LayerNorm.gamma": "norm",
        "bert.encoder.layer.0.attention.self.query.weight": "attention",
        "bert.encoder.layer.0.intermediate.dense.weight": "mlp",
        "bert.encoder.layer.0.output.dense.weight": "mlp",
        "bert.pooler.dense.weight": "head",
        "cls.predictions.decoder.weight": "head",
    },
    "encoder with a decoder head": {
        "model.embeddings.tok_embeddings.weight": "embedding",
        "model.layers.0.attn.Wqkv.weight": "attention",
        "model.layers.0.mlp.Wi.weight": "mlp",
        "decoder.weight": "head",
    },
    "encoder–decoder": {
        "shared.weight": "embedding",
        "encoder.block.0.layer.0.SelfAttention.q.weight": "attention",
        "encoder.block.0.layer.1.DenseReluDense.wi_0.weight": "mlp",
        "decoder.block.0.layer.1.EncDecAttention.k.weight": "attention",
        "decoder.final_layer_norm.weight": "norm",
        "lm_head.weight": "head",
    },
    "vision": {
        "vit.embeddings.cls_token": "embedding",
        "vit.embeddings.patch_embeddings.projection.weight": "embedding",
        "vit.encoder.layer.0.attention.attention.key.weight": "attention",
        "vit.encoder.layer.0.intermediate.dense.weight": "mlp",
        "vit.layernorm.weight": "norm",
        "classifier.weight": "head",
    },
    "two towers": {
        "text_model.encoder.layers.0.self_attn.q_proj.weight": "attention",
        "vision_model.encoder.layers.0.mlp.fc1.weight": "mlp",
        "vision_model.embeddings.class_embedding": "embedding",
        "visual_projection.weight": "head",
        "logit_scale": "other",
    },
    "speech": {
        "wav2vec2.feature_extractor.conv_layers.0.conv.weight": "other",
        "wav2vec2.encoder.layers.0.attention.k_proj.weight": "attention",
        "wav2vec2.encoder.layers.0.feed_forward.intermediate_dense.weight": "mlp",
        "wav2vec2.masked_spec_embed": "embedding",
        "model.decoder.layers.0.encoder_attn.q_proj.weight": "attention",
        "model.encoder.conv1.weight": "other",
        "proj_out.weight": "head",
    },
    "experts": {
        "model.layers.0.block_sparse_moe.gate.weight": "router",
        "model.layers.0.block_sparse_moe.experts.3.w1.weight": "mlp",
        "model.layers.0.mlp.gate.weight": "router",
        "model.layers.0.mlp.experts.gate_up_proj": "mlp",
        "model.layers.0.mlp.shared_expert.up_proj.weight": "mlp",
    },
    "diffusion": {
        "conv_in.weight": "other",
        "time_embedding.linear_1.weight": "embedding",
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight": "attention",
        "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj.weight": "mlp",
        "down_blocks.0.resnets.0.norm1.weight": "norm",
        "transformer_blocks.0.ff_context.net.2.weight": "mlp",
        "double_blocks.0.img_mlp.0.weight": "mlp",
        "conv_out.weight": "head",
    },
    "nobody has heard of it": {
        "zorb.token_embed.weight": "embedding",
        "zorb.stage.0.attn.mix.weight": "attention",
        "zorb.stage.0.ffn.a.weight": "mlp",
        "zorb.stage.0.pre_norm.scale": "norm",
        "zorb.stage.0.spice": "other",
        "zorb.head.weight": "head",
    },
}


@pytest.mark.parametrize("kind", ROLES)
def test_roles_come_from_names(kind: str) -> None:
    """No config, no code of the model."""
    found = roles_of(ROLES[kind])
    assert {name: role.kind for name, role in found.items()} == ROLES[kind]


def test_what_stands_before_the_layers_is_at_depth_zero() -> None:
    """Convolutions of the input as well as embeddings; heads at depth one; each list of layers has its own scale."""
    names = ["model.encoder.conv1.weight", "conv_in.weight", "proj_out.weight", "vision_model.pre_layrnorm.weight"]
    names += [f"down_blocks.{i}.w" for i in range(3)] + [f"up_blocks.{i}.w" for i in range(2)]
    depth = {name: role.depth for name, role in roles_of(names).items()}
    assert [depth[n] for n in names] == [0.0, 0.0, 1.0, 0.0, 0.0, 0.5, 1.0, 0.0, 1.0]


def test_experts_and_stacks_are_numbered() -> None:
    """A layer's index is never taken for an expert's."""
    role = roles_of([f"model.layers.{i}.mlp.experts.{e}.w1.weight" for i in range(2) for e in range(4)])
    found = role["model.layers.1.mlp.experts.3.w1.weight"]
    assert (found.stack, found.layer, found.layers, found.expert) == ("model.layers", 1, 2, 3)
