"""A tiny Stable Diffusion pipeline, made by diffusers."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

__all__ = ["load_pipeline", "pipeline"]


def pipeline(folder: Path, seed: int) -> Any:
    """Make a pipeline with random weights and save it."""
    import diffusers
    import transformers

    torch.manual_seed(seed)
    text = transformers.CLIPTextConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, vocab_size=64
    )
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    vae = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, sample_size=8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = diffusers.StableDiffusionPipeline(
            vae=vae,
            text_encoder=transformers.CLIPTextModel(text),
            tokenizer=None,
            unet=unet,
            scheduler=diffusers.DDIMScheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        made.save_pretrained(folder)
    return made


def load_pipeline(folder: Path) -> Any:
    """Load a pipeline."""
    import diffusers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return diffusers.StableDiffusionPipeline.from_pretrained(
            folder,
            local_files_only=True,
            tokenizer=None,
            feature_extractor=None,
            safety_checker=None,
            image_encoder=None,
        )
