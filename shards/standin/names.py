"""What the stand-in's variants are called. Google's own set has numbers only."""

from __future__ import annotations

from shards.standin.artwork.hair_styles import HAIR_STYLES, HairStyle


def _hair(style: HairStyle) -> str:
    parts = (style.top, style.line, style.back)
    return "_".join(part for part in parts if part != "none")


NAMES: dict[str, tuple[str, ...]] = {
    "eye_angle": ("round", "almond", "narrow"),
    "eye_lashes": ("none", "long"),
    "eye_lid": ("open", "heavy"),
    "chin_length": ("short", "medium", "long"),
    "eyebrow_weight": ("soft", "solid"),
    "eyebrow_shape": (
        *("arc", "straight", "rising", "falling", "round_arch", "late_peak", "early_peak"),
        *("stern", "leaf", "block", "flared", "sagging", "hooked", "bushy"),
    ),
    "eyebrow_thickness": ("thin", "medium", "thick", "very_thick"),
    "face_shape": ("oval", "pointed", "square", "round", "narrow", "heart", "pear"),
    "facial_hair": (
        *("stubble", "full", "long", "boxed", "goatee", "soul_patch", "moustache", "handlebar"),
        *("pencil", "van_dyke", "side_burns", "chin_curtain", "walrus", "circle", "none"),
    ),
    "hair": tuple(map(_hair, HAIR_STYLES)),
    "eye_color": ("brown", "amber", "green", "blue", "grey"),
    "face_color": (
        *("porcelain", "pale", "sand", "rose", "tan", "copper", "bronze", "brown"),
        *("chestnut", "dark_brown", "ebony"),
    ),
    "hair_color": (
        *("black", "dark_brown", "brown", "auburn", "ginger", "dark_blond", "blond", "grey"),
        *("white", "pink"),
    ),
    "glasses": (
        *("round", "square", "slim", "cat_eye", "heart", "aviator", "browline", "oval", "hexagon"),
        *("sunglasses_square", "sunglasses_round", "none"),
    ),
    "glasses_color": ("black", "ivory", "red", "blue", "gold", "green", "pink"),
    "eye_slant": ("up", "level", "down"),
    "eyebrow_width": ("short", "medium", "long"),
    "eye_eyebrow_distance": ("close", "medium", "far"),
}
"""By attribute of the schema, in the order of its variants (docs/avatars.md says how each is drawn)."""
