"""Every command of the toolkit, by what it is for: what ``diffcore --help`` lists and ``diffcore NAME`` runs.

Modules are named, not imported: a command loads when it is called. Those of ``launch`` stand on top of this
package, so this table is the one place where its name may be known here.
"""

from __future__ import annotations

from typing import NamedTuple


class Command(NamedTuple):
    """A module with ``parser(prog)`` and a function that takes ``(argv, prog)``."""

    module: str
    line: str
    """What it does, in a line of the help."""
    function: str = "main"


GROUPS: dict[str, dict[str, Command]] = {
    "Data": {
        "render": Command("shards.render", "draw a stand-in for Cartoon Set: avatars with 18 attributes"),
        "pack": Command("shards.pack", "pack labelled images into WebDataset tar shards with an index"),
        "merge": Command("shards.merge", "make one packed folder of parts (pack --part I/N)"),
        "index": Command("shards.index", "index the WebDataset tars of others, which stay where they are"),
        "verify": Command("shards.verify", "check packed shards against their index, sample by sample"),
    },
    "Training": {
        "train": Command(
            "diffcore.train", "train a config (deepspeed diffcore/train.py: on all GPUs)", "script"
        ),
        "submit": Command("launch.submit", "put a run on a Slurm cluster, or start it on this machine"),
        "jobs": Command("launch.jobs", "list, status, logs, cancel, goodput: what became of jobs"),
    },
    "Drawing": {
        "sample": Command("diffcore.sample", "draw images with the attributes that are asked for"),
    },
    "Quality": {
        "judge": Command("diffcore.evaluation.train_judge", "train the judge of packed shards: a classifier"),
        "evaluate": Command("diffcore.evaluate", "measure whether a run draws what was asked, and how well"),
        "sweep": Command("diffcore.evaluation.sweep", "find a run's best guidance scale, sampler and steps"),
        "points": Command("diffcore.evaluation.points", "measure every kept checkpoint of a run"),
        "colors": Command("diffcore.evaluation.colors", "check drawn avatars' colours, without a judge"),
        "seeable": Command("diffcore.evaluation.seeable", "what of the avatars can be seen at their size"),
        "collapse": Command("diffcore.evaluation.collapse", "compare fast samplers with DDPM under guidance"),
        "findings": Command("diffcore.evaluation.findings", "repeat eight published findings as experiments"),
    },
    "Memory": {
        "plan": Command("diffcore.memory.commands.plan", "what a run will take of each GPU, before it runs"),
        "fit": Command("diffcore.memory.commands.fit", "what fits a card, fastest first; and turned round"),
        "measure": Command("diffcore.memory.commands.measure", "the same figures of a few real steps, here"),
        "compare": Command("diffcore.memory.commands.compare", "what differs between two memory reports"),
    },
    "Runs": {
        "summary": Command("diffcore.summary", "a run in a few figures, and where its pictures are"),
        "checkpoints": Command("diffcore.checkpoints", "list, check and mark a run's checkpoints"),
        "export": Command("diffcore.export", "weights of a run for other programs, as safetensors"),
        "show": Command("diffcore.diffusion.show", "look at a noise schedule: a picture at twelve levels"),
    },
    "This machine": {
        "doctor": Command("launch.doctor.__main__", "check versions, GPUs, disks, Slurm and shards"),
        "box": Command("launch.box.__main__", "a real Slurm on this one machine, to try and to test with"),
    },
}
COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}
