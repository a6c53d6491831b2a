"""The diffusion core: models, equations, training, sampling and memory anatomy.

Imports ``shards``, never ``launch``. What programs and notebooks use of it is here (docs/api.md):

    import diffcore

    model = diffcore.load_model("runs/demo")
    diffcore.save_grid(model.sample(16, hair_color="auburn", seed=0), "grid.png")

Names are loaded when they are first used, so this imports neither torch nor numpy. Their types are in
``__init__.pyi``: imports here, even for types, would be circles, since every module loads this one first.
"""

from importlib import import_module as _import

_HOMES = {
    "Batch": "shards.read:Batch",
    "Config": "diffcore.config.tree:Config",
    "InputError": "diffbase.cli:InputError",
    "MemoryPlan": "diffcore.memory.planning.plan:Plan",
    "PackSummary": "shards.packing.packer:Summary",
    "ShardReader": "shards.read:ShardReader",
    "TrainedModel": "diffcore.runs.model:TrainedModel",
    "load_config": "diffcore.api:load_config",
    "load_model": "diffcore.runs.model:load_model",
    "open_shards": "diffcore.api:open_shards",
    "pack": "diffcore.api:pack",
    "plan_memory": "diffcore.api:plan_memory",
    "save_grid": "diffbase.page.pictures:save_grid",
}
"""Name -> the module that it is loaded from, and what it is called there."""
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    """A name of ``__all__`` or the version, loaded once."""
    if name == "__version__":
        value: object = _import("diffbase.version").VERSION
    elif name in _HOMES:
        home, _, there = _HOMES[name].partition(":")
        value = getattr(_import(home), there)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """What is loaded and what can be."""
    return sorted({*globals(), *__all__, "__version__"})
