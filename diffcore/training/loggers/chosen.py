"""The trackers that a config chooses."""

from __future__ import annotations

import importlib.util

import yaml

from diffbase.cli import InputError
from diffbase.redaction import without_url_secrets
from diffcore.config.tree import Config
from diffcore.training.loggers.mlflow_run import MlflowRun
from diffcore.training.loggers.tracker import Tracker
from diffcore.training.loggers.wandb_run import WandbRun

PACKAGES = ("wandb", "mlflow")
"""Loggers that are a package of that name, and an extra of ours."""


def check(config: Config) -> None:
    """InputError where the package of a chosen one is not installed."""
    for name in filter(PACKAGES.__contains__, config.monitor.loggers):
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None:  # a folder of that name is none
            raise InputError(f"monitor.loggers: {name} is not installed: pip install 'diffcore[{name}]'")


def trackers(config: Config) -> list[Tracker]:
    """Those of a run, to be started; they get the config without URLs' secrets."""
    text, found = without_url_secrets(config.to_yaml()), list[Tracker]()
    if "wandb" in config.monitor.loggers:
        found.append(Tracker(WandbRun(config.run, config.monitor.project, yaml.safe_load(text))))
    if "mlflow" in config.monitor.loggers:
        found.append(Tracker(MlflowRun(config.run, config.monitor.project, text)))
    return found
