"""The networks' sections of the config, distinguished by ``kind``. Nothing here imports torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from diffcore.config.section import Section

LabelEncoding = Literal["one_hot", "integer"]
"""Names of ``models.tau.ENCODINGS``."""


Count = Annotated[int, Field(ge=1, le=64)]


def _one(given: Any) -> Any:
    # A flag that may have a list makes one of a single number; resumes ask whether the two are the same.
    return given[0] if isinstance(given, list | tuple) and len(given) == 1 else given


class AvatarModel(Section):
    """The UNet with Tau and cross-attention (models/avatar.py)."""

    kind: Literal["avatar"] = "avatar"
    channels: tuple[int, ...] = (128, 256, 512, 1024)
    """Width of each level; the resolution halves from one to the next."""
    patch: int = Field(default=1, ge=1)
    """Edge of the squares of pixels that become channels before the ladder; 1: none."""
    head: Literal["pixel_shuffle", "resize_conv", "refine"] = "pixel_shuffle"
    """From the ladder to pixels: patches side by side; or features at every pixel and a thin block that sees
    the noisy image: resize_conv, one feature for all of a patch; refine, one for each of its pixels."""
    head_channels: int = Field(default=16, ge=1, le=1024)
    """Width of that thin block at full resolution (8 to 32)."""
    blocks: Annotated[Count | tuple[Count, ...], BeforeValidator(_one)] = 1
    """Residual blocks per level on the way down (the way up has as many; the bottom has two). A list: of each
    level, the bottom's too."""
    attention_levels: tuple[int, ...] = (1, 2, 3)
    """Levels whose blocks are followed by cross-attention to the attributes; 0 is the full resolution."""
    self_attention_levels: tuple[int, ...] = ()
    """Levels whose blocks are followed by self-attention, before the cross-attention."""
    heads: int = Field(default=4, ge=1)
    """Attention heads."""
    attributes: Literal[LabelEncoding, "none"] = "one_hot"
    """How Tau reads the labels; none: no condition at all."""
    tau: Literal["mixed", "attribute"] = "mixed"
    """What a token of Tau is made of: all attributes, or one, so that attention can choose an attribute."""
    tau_tokens: int = Field(default=6, ge=1, le=4096)
    """Key/value tokens that one projection of Tau (with tau attribute: one attribute) gives an attention
    block."""
    tau_projections: int = Field(default=1, ge=1, le=64)
    """Linear projections of Tau for each attention block (1 or 2 in the experiments)."""

    label_gain: float = Field(default=1.0, gt=0, le=1000)
    """How many times as fast as the rest the tables of the labels learn (10 to 30), with steps like Adam's:
    they are kept that much smaller than what they stand for."""
    label_maps: int = Field(default=0, ge=0, le=256)
    """Channels of a learned map of 16 x 16 that each label adds to the image's features; 0: none."""

    @property
    def blocks_of_levels(self) -> tuple[int, ...]:
        """Residual blocks of each level on the way down, then of the bottom."""
        if isinstance(self.blocks, tuple):
            return self.blocks
        return (self.blocks,) * (len(self.channels) - 1) + (2,)

    @property
    def conditional(self) -> bool:
        """Whether the network reads labels."""
        return self.attributes != "none"

    @property
    def divisor(self) -> int:
        """What the image's size must be a multiple of."""
        return int(self.patch * 2 ** (len(self.channels) - 1))

    @model_validator(mode="after")
    def _check(self) -> Self:
        levels = range(len(self.channels))
        if len(self.channels) < 2 or any(c < 8 or c % 8 for c in self.channels):
            raise ValueError(f"channels must be two or more multiples of 8, got {list(self.channels)}")
        for name in ("attention_levels", "self_attention_levels"):
            for level in getattr(self, name):
                if level not in levels:
                    raise ValueError(f"{name}: {level} is not a level; allowed: 0 to {levels[-1]}")
                if self.channels[level] % self.heads:
                    raise ValueError(
                        f"heads: {self.heads} does not divide channels[{level}], {self.channels[level]}"
                    )
        if len(self.blocks_of_levels) != len(levels):
            raise ValueError(
                f"blocks: {len(self.blocks_of_levels)} levels, but channels has {len(levels)}; "
                f"allowed: one number for all, or one for each"
            )
        if self.tau == "attribute" and self.tau_projections > 1:
            raise ValueError("tau_projections belongs to tau mixed; with tau attribute: tau_tokens")
        return self


class DdpmModel(Section):
    """The class-conditional DDPM UNet (models/ddpm.py)."""

    kind: Literal["ddpm"]
    width: int = Field(default=64, ge=8, multiple_of=8)
    """Channels at full resolution; the ladder is 1, 2, 4, 4 times that, and 8 at the bottom."""
    heads: int = Field(default=4, ge=1)
    """Heads of the self-attention."""
    embedding: int = Field(default=256, ge=2, multiple_of=2)
    """Width of the time and label embedding."""
    labels: Literal["embedding", "none"] = "embedding"
    """embedding: every label has one, added to the time's; none: no condition."""

    @property
    def conditional(self) -> bool:
        """Whether the network reads labels."""
        return self.labels != "none"

    @property
    def divisor(self) -> int:
        """What the image's size must be a multiple of."""
        return 8

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"heads: {self.heads} does not divide width, {self.width}")
        return self


class DiffusersModel(Section):
    """diffusers' UNet2DConditionModel behind Tau (models/diffusers_unet.py)."""

    kind: Literal["diffusers"]
    block_out_channels: tuple[int, ...] = (128, 256, 512)
    """Width of each level; all have cross-attention."""
    layers_per_block: int = Field(default=2, ge=1, le=64)
    """Residual blocks per level on the way down."""
    cross_attention_dim: int = Field(default=1280, ge=8)
    """Width of Tau's tokens."""
    tau_tokens: int = Field(default=256, ge=1, le=4096)
    """Number of Tau's tokens."""
    attention_head_dim: int = Field(default=32, ge=1)
    """diffusers' name; in this class it is the number of attention heads."""
    only_cross_attention: bool = True
    """No self-attention before the cross-attention: both of a block's attentions read the tokens."""
    attributes: LabelEncoding = "one_hot"
    """How Tau reads the labels."""

    @property
    def conditional(self) -> bool:
        """Whether the network reads labels: always."""
        return True

    @property
    def divisor(self) -> int:
        """What the image's size must be a multiple of."""
        return int(2 ** (len(self.block_out_channels) - 1))

    @model_validator(mode="after")
    def _check(self) -> Self:
        for width in self.block_out_channels:
            if width % 32 or width % self.attention_head_dim:
                raise ValueError(
                    f"block_out_channels: {width} is not a multiple of 32 and of attention_head_dim "
                    f"{self.attention_head_dim}"
                )
        return self


Model = Annotated[AvatarModel | DdpmModel | DiffusersModel, Field(discriminator="kind")]
