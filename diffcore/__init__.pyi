# What editors and type checkers see of __init__.py, which loads these names when they are used.

from diffbase.cli import InputError as InputError
from diffbase.page.pictures import save_grid as save_grid
from diffcore.api import load_config as load_config
from diffcore.api import open_shards as open_shards
from diffcore.api import pack as pack
from diffcore.api import plan_memory as plan_memory
from diffcore.config.tree import Config as Config
from diffcore.memory.planning.plan import Plan as MemoryPlan
from diffcore.runs.model import TrainedModel as TrainedModel
from diffcore.runs.model import load_model as load_model
from shards.packing.packer import Summary as PackSummary
from shards.read import Batch as Batch
from shards.read import ShardReader as ShardReader

__all__ = [
    "Batch",
    "Config",
    "InputError",
    "MemoryPlan",
    "PackSummary",
    "ShardReader",
    "TrainedModel",
    "load_config",
    "load_model",
    "open_shards",
    "pack",
    "plan_memory",
    "save_grid",
]

__version__: str
