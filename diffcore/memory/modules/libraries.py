"""Networks of diffusers and transformers from a config.json, and the inputs that they usually take.

A folder with config.json is all that is read: nothing is downloaded, no weights, no code from the folder.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import nn

from diffbase.cli import InputError
from diffbase.formats import json_file

WORDS = 1024
"""Tokens of a text, where ``length`` does not say and the network takes so many."""
PROMPT = 77
"""Tokens of a prompt of a text encoder like CLIP's."""
T5_PROMPT = 512
"""Of one like T5's, as Flux takes it."""
SD3_PROMPT = PROMPT + 256
"""CLIP's and T5's one after the other (Esser et al. 2024, section 4)."""
SIZES = ("length", "side")
Size = Callable[[str, Any], int]
"""(a size's name, what it is unless another is asked for) -> what it is."""
Usual = Callable[[Any, Size], dict[str, Any]]
"""(a config, sizes) -> inputs as text."""


@dataclass(frozen=True)
class Known:
    """A network of a library."""

    name: str
    factory: Callable[[], nn.Module]
    batch: Callable[[Mapping[str, int]], dict[str, Any]]
    """Its usual inputs, as text, with other sizes (``SIZES``) where they are given."""


def factory_of(target: Any) -> Callable[[], nn.Module]:
    """``package.module:function`` or the function itself. InputError for what makes no network."""
    if isinstance(target, nn.Module):
        return lambda: target  # planned as a fake copy; it stays as it is
    if not isinstance(target, str):
        if not callable(target):
            raise InputError(f"module: {type(target).__name__!r:.60} is no function that makes a network")
        return cast("Callable[[], nn.Module]", target)
    return cast("Callable[[], nn.Module]", named(target, "module"))


def named(target: str, field: str) -> Any:
    """What ``package.module:name`` is; the working directory's modules are found too. InputError if not."""
    module, colon, name = target.partition(":")
    if not colon or not module or not name:
        raise InputError(
            f"{field} {target!r:.80}: expected package.module:name, or a folder with config.json"
        )
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and (module == error.name or module.startswith(error.name + ".")):
            raise InputError(f"{field} {target!r:.80}: no module {error.name}") from error
        raise InputError(
            f"{field} {target!r:.80}: {module} needs {error.name}, which is not there"
        ) from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise InputError(f"{field} {target!r:.80}: {module} has no {name!r:.60}")
        found = getattr(found, part)
    return found


def find(target: str | Path) -> Known | None:
    """The network whose config.json ``target`` is, or whose folder. None for a name of a function."""
    path = Path(target)
    if not path.exists() and isinstance(target, str) and ":" in target:
        return None
    file = path / "config.json" if path.is_dir() else path
    tree = json_file.read(file, "no such file, nor a package.module:function")
    if not isinstance(tree, dict):
        raise InputError(f"{file}: expected an object")
    if "_class_name" in tree:
        return _of_diffusers(tree, file)
    if "architectures" in tree or "model_type" in tree:
        return _of_transformers(tree, file)
    raise InputError(
        f"{file}: neither of diffusers (_class_name) nor of transformers (architectures, model_type)"
    )


@contextmanager
def as_trained() -> Iterator[None]:
    """transformers takes fake tensors for a trace, in which it masks several sequences in a row, whether
    there are or not; trained as usual there is one."""
    masks = sys.modules.get("transformers.masking_utils")
    own = getattr(masks, "find_packed_sequence_indices", None)
    if own is None:
        yield
        return
    setattr(masks, "find_packed_sequence_indices", lambda *_, **__: None)  # noqa: B010
    try:
        yield
    finally:
        setattr(masks, "find_packed_sequence_indices", own)  # noqa: B010


def _library(name: str, file: Path) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"{file}: is of {name}, which is not there: pip install {name}") from error


def _of_diffusers(tree: dict[str, Any], file: Path) -> Known:
    diffusers, name = _library("diffusers", file), str(tree["_class_name"])
    kind: Any = getattr(diffusers, name, None)
    if nn.Module not in getattr(kind, "__mro__", ()):
        raise InputError(f"{file}: diffusers {diffusers.__version__} has no network {name!r:.80}")

    def batch(sizes: Mapping[str, int]) -> dict[str, Any]:
        if name not in USUAL:
            raise InputError(
                f"{name}: no usual inputs are known; give them (those of {', '.join(USUAL)} are)"
            )
        return _sized(USUAL[name], _defaults(kind) | tree, sizes)

    return Known(name, lambda: kind.from_config(tree), batch)


def _defaults(kind: type) -> dict[str, Any]:
    """What the class's arguments are where the config does not say."""
    given = inspect.signature(kind).parameters.values()
    return {p.name: p.default for p in given if p.default is not p.empty}


def _of_transformers(tree: dict[str, Any], file: Path) -> Known:
    transformers = _library("transformers", file)
    kind = str(tree.get("model_type", ""))
    try:
        config = transformers.AutoConfig.for_model(**({"model_type": kind} | tree))
    except (ValueError, TypeError, KeyError) as error:
        text = " ".join(str(error).split())
        raise InputError(f"{file}: transformers {transformers.__version__}: {text:.200}") from error
    wanted = tree.get("architectures") or []
    cls = getattr(transformers, str(wanted[0]), None) if wanted else None
    if wanted and cls is None:
        raise InputError(f"{file}: transformers {transformers.__version__} has no {wanted[0]!r:.80}")
    if cls is None:
        try:
            cls = transformers.MODEL_MAPPING[type(config)]
        except KeyError as error:
            raise InputError(
                f"{file}: says no architectures, and {kind!r:.60} has none of its own"
            ) from error
    return Known(cls.__name__, lambda: cls(config), lambda sizes: _sized(_texts_of(cls), config, sizes))


def _sized(usual: Usual, config: Any, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Usual inputs with those sizes. InputError for a size that these do not have."""
    asked: list[str] = []

    def size(name: str, otherwise: Any) -> int:
        asked.append(name)
        value = sizes.get(name, otherwise)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name} {value!r:.40}: expected a number of at least 1")
        return value

    result = usual(config, size)
    if unknown := sorted(set(sizes) - set(asked)):
        raise InputError(
            f"{unknown[0]}: these inputs have no such size; they have {', '.join(asked) or 'none'}"
        )
    return result


def _texts_of(cls: type) -> Usual:
    """The main input of a network of transformers, and labels where it computes a loss of them."""
    name, main = cls.__name__, getattr(cls, "main_input_name", "input_ids")

    def usual(config: Any, size: Size) -> dict[str, Any]:
        text = getattr(config, "text_config", config)
        result: dict[str, Any] = {}
        length = 0
        if main == "input_ids":
            limit = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)
            length = size("length", min(limit or WORDS, WORDS))
            result["input_ids"] = f"int64[B,{length}]"
        elif main == "pixel_values":
            given = getattr(config, "image_size", 224)
            high, wide = given if isinstance(given, list | tuple) else (given, given)
            if high == wide:
                high = wide = size("side", high)
            result["pixel_values"] = f"float32[B,{getattr(config, 'num_channels', 3)},{high},{wide}]"
        elif main == "input_features":
            frames = 2 * getattr(config, "max_source_positions", 1500)
            result["input_features"] = f"float32[B,{getattr(config, 'num_mel_bins', 80)},{frames}]"
            length = size("length", getattr(config, "max_target_positions", 448))
        elif main == "input_values":
            result["input_values"] = f"float32[B,{size('length', 16_000 * 10)}]"
        else:
            raise InputError(f"{name}: no usual inputs are known for {main}; give them")
        if name.endswith(
            (
                "ForCausalLM",
                "LMHeadModel",
                "ForConditionalGeneration",
                "ForMaskedLM",
                "ForTokenClassification",
            )
        ):
            if length:
                result["labels"] = f"int64[B,{length}]"
        elif name.endswith(("ForSequenceClassification", "ForImageClassification", "ForAudioClassification")):
            result["labels"] = "int64[B]"
        elif getattr(config, "is_encoder_decoder", False) and length:
            result["decoder_input_ids"] = f"int64[B,{length}]"
        return result

    return usual


# --- diffusers: c is the config, size(name, default) a size that may be asked for otherwise


def _latents(c: Any, size: Size, otherwise: int = 64) -> str:
    side = c.get("sample_size") or otherwise
    side = size("side", side[0] if isinstance(side, list | tuple) else side)
    return f"float32[B,{c.get('in_channels') or 4},{side},{side}]"


def _unet_conditional(c: Any, size: Size) -> dict[str, Any]:
    wide = c.get("cross_attention_dim") or 1280
    wide = max(wide) if isinstance(wide, list | tuple) else wide
    wide = c.get("encoder_hid_dim") or wide
    result: dict[str, Any] = {
        "sample": _latents(c, size),
        "timestep": "int64[B]",
        "encoder_hidden_states": f"float32[B,{size('length', PROMPT)},{wide}]",
    }
    if c.get("addition_embed_type") == "text_time":  # SDXL
        text = c["projection_class_embeddings_input_dim"] - 6 * c["addition_time_embed_dim"]
        result["added_cond_kwargs"] = {"text_embeds": f"float32[B,{text}]", "time_ids": "float32[B,6]"}
    if c.get("class_embed_type") or c.get("num_class_embeds"):
        result["class_labels"] = "int64[B]"
    return result


def _unet(c: Any, size: Size) -> dict[str, Any]:
    result: dict[str, Any] = {"sample": _latents(c, size), "timestep": "int64[B]"}
    return result | ({"class_labels": "int64[B]"} if c.get("num_class_embeds") else {})


def _controlnet(c: Any, size: Size) -> dict[str, Any]:
    result = _unet_conditional(c, size)
    side = size("side", c.get("sample_size") or 64)
    channels = c.get("conditioning_channels") or 3
    return result | {"controlnet_cond": f"float32[B,{channels},{8 * side},{8 * side}]"}


def _dit(c: Any, size: Size) -> dict[str, Any]:
    return {"hidden_states": _latents(c, size, 32), "timestep": "int64[B]", "class_labels": "int64[B]"}


def _sd3(c: Any, size: Size) -> dict[str, Any]:
    return {
        "hidden_states": _latents(c, size, 128),
        "encoder_hidden_states": f"float32[B,{size('length', SD3_PROMPT)},{c['joint_attention_dim']}]",
        "pooled_projections": f"float32[B,{c['pooled_projection_dim']}]",
        "timestep": "int64[B]",
    }


def _flux(c: Any, size: Size) -> dict[str, Any]:
    side, length = size("side", 64), size("length", T5_PROMPT)
    result = {
        "hidden_states": f"float32[B,{side * side},{c['in_channels']}]",
        "encoder_hidden_states": f"float32[B,{length},{c['joint_attention_dim']}]",
        "pooled_projections": f"float32[B,{c['pooled_projection_dim']}]",
        "timestep": "float32[B]",
        "img_ids": f"float32[{side * side},3]",
        "txt_ids": f"float32[{length},3]",
    }
    return result | ({"guidance": "float32[B]"} if c.get("guidance_embeds") else {})


def _pixart(c: Any, size: Size) -> dict[str, Any]:
    wide = c.get("caption_channels") or c["cross_attention_dim"]
    extra = {"resolution": "float32[B,2]", "aspect_ratio": "float32[B,1]"}
    more = c.get("use_additional_conditions")
    if more is None:
        more = c.get("sample_size") == 128
    return {
        "hidden_states": _latents(c, size, 128),
        "encoder_hidden_states": f"float32[B,{size('length', 120)},{wide}]",
        "timestep": "int64[B]",
        "added_cond_kwargs": extra if more else {"resolution": None, "aspect_ratio": None},
    }


def _autoencoder(c: Any, size: Size) -> dict[str, Any]:
    return {"sample": _latents(c | {"in_channels": c.get("in_channels") or 3}, size, 256)}


USUAL: dict[str, Usual] = {
    "AutoencoderKL": _autoencoder,
    "ControlNetModel": _controlnet,
    "DiTTransformer2DModel": _dit,
    "FluxTransformer2DModel": _flux,
    "PixArtTransformer2DModel": _pixart,
    "SD3Transformer2DModel": _sd3,
    "UNet2DConditionModel": _unet_conditional,
    "UNet2DModel": _unet,
    "VQModel": _autoencoder,
}
"""Usual inputs of diffusers' networks."""
