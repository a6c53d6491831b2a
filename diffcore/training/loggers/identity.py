"""Which run of a tracker's is a run folder's, and the newest step that it was given: ``RUN/NAME.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from diffbase.explain import validated
from diffbase.files import write_json
from diffbase.formats import json_file
from diffbase.system_error import is_there


class Identity(BaseModel):
    """What is kept of a tracker's run."""

    model_config = ConfigDict(strict=True, extra="ignore")

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,128}$")] | None = None
    """Its number there; None before there is one."""
    newest: Annotated[int, Field(ge=-1)] = -1
    """A step up to which it was given all, when the run last went back; -1: none."""


def kept(run: Path, name: str) -> Identity:
    """What is kept for tracker ``name``. InputError for a file that is none."""
    path = run / f"{name}.json"
    if not is_there(path):
        return Identity()
    return validated(Identity, json_file.read(path), f"{path}: not a tracker's run")


def keep(run: Path, name: str, **changes: Any) -> None:
    """Keep it, for the next start, with ``changes``."""
    now = kept(run, name).model_dump()
    if (then := now | changes) != now:
        write_json(run / f"{name}.json", then)
