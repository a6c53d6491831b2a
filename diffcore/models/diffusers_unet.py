"""Hugging Face diffusers' UNet2DConditionModel behind a Tau of 256 tokens.

Tau is one linear projection of the encoded labels to the tokens that every cross-attention of the UNet
reads. diffusers' ``attention_head_dim`` is passed on under its own name; in this class it is the number of
heads, not their width (huggingface/diffusers#2011).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from diffusers import UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from diffcore.config.models import DiffusersModel
from diffcore.models.tau import LabelEncoder
from shards.schema import Attribute


class DiffusersUNet(nn.Module):
    """[B, 3, H, W], timesteps [B], labels [B, A], keep [B] -> [B, 3, H, W]."""

    blocks = (ResnetBlock2D, Transformer2DModel)  # of activation checkpointing
    edges = ("conv_in", "conv_out", "tau")

    def __init__(self, config: DiffusersModel, schema: Sequence[Attribute]) -> None:
        super().__init__()
        levels = len(config.block_out_channels)
        self.width = config.cross_attention_dim
        self.encoder = LabelEncoder(schema, config.attributes)
        self.tau = nn.Linear(self.encoder.width, config.tau_tokens * config.cross_attention_dim)
        unet = UNet2DConditionModel(
            in_channels=3,
            out_channels=3,
            down_block_types=("CrossAttnDownBlock2D",) * levels,
            up_block_types=("CrossAttnUpBlock2D",) * levels,
            block_out_channels=config.block_out_channels,
            layers_per_block=config.layers_per_block,
            cross_attention_dim=config.cross_attention_dim,
            attention_head_dim=config.attention_head_dim,
            only_cross_attention=config.only_cross_attention,
        )
        self.unet = cast(nn.Module, unet)  # its package shows type checkers a placeholder class

    def forward(self, x_BCHW: Tensor, t_B: Tensor, labels_BA: Tensor, keep_B: Tensor) -> Tensor:
        """The prediction at x_t: [B, 3, H, W]. Where ``keep`` is False the labels are not seen."""
        encoded_BV = self.encoder(labels_BA, keep_B, x_BCHW.dtype)
        tokens_BNC = self.tau(encoded_BV).unflatten(1, (-1, self.width))
        output: Tensor = self.unet(x_BCHW, t_B, encoder_hidden_states=tokens_BNC).sample
        return output
