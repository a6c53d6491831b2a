"""The sbatch file, from submitit's own renderer: the text that is printed is the text that is submitted.

submitit makes a SlurmExecutor only where it finds srun; a dry run must not need it. That check and the type
of ``nodes`` are all that is adapted here.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from submitit.slurm.slurm import SlurmExecutor

from launch.ask.spec import JobSpec
from launch.job.code import by_name

UNLIMITED = 1_000_000
"""submitit's own count of time-outs, which also takes every short job for one: ours is in the ledger."""


FOLDER_PERCENT, COMMAND_PERCENT = "\1", "\2"
"""In the place of a % of the folder's and of the command's: characters that no name of a run has."""


class Sbatch(SlurmExecutor):
    """submitit's executor with our parameters; can be built without Slurm."""

    def __init__(self, spec: JobSpec, folder: Path, code: Path) -> None:
        python = spec.cluster.container.python if spec.cluster.container else spec.cluster.python
        super().__init__(folder, max_num_timeout=UNLIMITED, python=shlex.quote(python) if python else None)
        self._group, self._ranks, self._code = spec.group, spec.tasks_per_node, code
        self.update_parameters(**parameters(spec, folder, code))

    @property
    def _submitit_command_str(self) -> str:
        return f"{self.python} {command(self.folder, self._code, self._ranks, self._group)}"

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        # A task is a node, and names with a task's number are ranks': what a supervisor says before it has
        # its own log (start.py) goes where the batch shell's output goes.
        # Slurm makes patterns of the files' names, and submitit replaces before what looks like one (%t, a
        # sweep's %j): what is a % in the folder and in the command is away meanwhile.
        folder, self.folder = self.folder, Path(str(self.folder).replace("%", FOLDER_PERCENT))
        try:
            text = super()._make_submission_file_text(command.replace("%", COMMAND_PERCENT), uid)
        finally:
            self.folder = folder
        text = text.replace("_%t_log.out", "_0_log.out")
        lines = text.replace(FOLDER_PERCENT, "%%").replace(COMMAND_PERCENT, "%").split("\n")
        # sbatch takes a backslash for an escape inside quotes too.
        return "\n".join(s.replace("\\", "\\\\") if s.startswith("#SBATCH ") else s for s in lines)

    @classmethod
    def affinity(cls) -> int:
        """submitit's score of an executor: available, with or without srun."""
        return 2

    def text(self, array: int | None = None) -> str:
        """The whole sbatch file; ``array`` is the number of a sweep's jobs."""
        if array is not None:
            self.parameters["map_count"] = array
        try:
            return str(self._make_submission_file_text(self._submitit_command_str, ""))
        finally:
            self.parameters.pop("map_count", None)


def command(folder: Path, code: Path, ranks: int, group: bool) -> str:
    """What the interpreter is given in submitit's place: its entry behind a check of whose the folder is."""
    words = [*by_name("launch.supervise.start", code), str(folder), "--ranks", str(ranks)]
    return shlex.join(["-u", *words, *(["--group"] if group else [])])


def python_path(code: Path) -> list[str]:
    """``code`` for PYTHONPATH, if that can name it (``by_name``)."""
    return [] if ":" in str(code) else [str(code)]


def parameters(spec: JobSpec, folder: Path, code: Path) -> dict[str, Any]:
    """submitit's parameters for a job whose submission lies in ``folder`` and whose code in ``code``."""
    cluster = spec.cluster
    wanted: dict[str, Any] = {
        "job_name": spec.job,
        "nodes": spec.nodes,
        "ntasks_per_node": 1,  # a supervisor, which starts the node's ranks
        "cpus_per_task": spec.cpus_per_task * spec.tasks_per_node,
        "time": spec.minutes,
        "signal_delay_s": cluster.signal_seconds,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "exclude": ",".join(spec.exclude) or None,
        "exclusive": cluster.exclusive or None,
        "dependency": f"afterany:{spec.after}" if spec.after else None,
        "array_parallelism": spec.parallel,
        "stderr_to_stdout": True,
        "setup": setup(spec, folder.parents[1], code),
        "teardown": teardown(spec, folder) if spec.requeue else None,
        "srun_args": srun_arguments(spec, folder),
        "additional_parameters": {"requeue": True} | cluster.sbatch,
    }
    if cluster.mem_gb is not None:
        wanted["mem"] = f"{int(cluster.mem_gb * 1024)}M" if cluster.mem_gb else "0"
    if spec.gpus_per_node:
        count = ":".join(filter(None, [cluster.gpus.type, str(spec.gpus_per_node)]))
        if cluster.gpus.form == "gres":
            wanted["gres"] = f"gpu:{count}"
        elif cluster.gpus.form == "gpus-per-node":
            wanted["gpus_per_node"] = count
    # submitit's own wckey would be refused where wckeys are accounted.
    return {key: value for key, value in wanted.items() if value is not None} | {"wckey": None}


def setup(spec: JobSpec, run: Path, code: Path) -> list[str]:
    """Shell lines before srun: the site's own, then what every rank needs."""
    # Files are the owner's alone, submitit's pickles among them; the ranks run the snapshot.
    return [
        *spec.cluster.setup,
        *([] if spec.group else _check_owner(run)),
        "umask 077",
        "export PYTHONSAFEPATH=1",  # no module of the folder that it was submitted in
        *[f"export PYTHONPATH={shlex.quote(p)}${{PYTHONPATH:+:$PYTHONPATH}}" for p in python_path(code)],
    ]


def _check_owner(run: Path) -> list[str]:
    """Shell lines that end the job (2) where somebody else made the run folder while it was in the queue.

    Before the interpreter starts, which loads code from there.
    """
    place = shlex.quote(str(run))
    told = shlex.quote(f"{run} belongs to somebody else: allowed is a folder of your own")
    return [
        f"for owner in $(stat -c %u -- {place} {place}/. 2>/dev/null); do",  # a link's, and the folder's
        f"  case $owner in 0|$EUID) ;; *) echo {told} >&2; exit 2 ;; esac",
        "done",
    ]


def teardown(spec: JobSpec, folder: Path) -> list[str]:
    """Shell lines after srun: a requeue, where the ranks wanted one and could not ask for it themselves.

    Rank 0's supervisor may have been killed (75 and 85, of exits.py, are then the others'), or a container
    may have no scontrol. Another code is srun's, of a node that did not start its tasks or of a supervisor
    that was killed: tried again where the run's ledger was written in this life, because then it counts; else
    ``restarts`` times in a row. 126 and 127: there is no such interpreter. Not for a job that was cancelled,
    or that has begun again elsewhere.
    """
    ledger = shlex.quote(str(folder.parents[1] / "events.jsonl"))
    return [
        "code=$?",
        f"unstarted={shlex.quote(str(folder))}/unstarted${{SLURM_ARRAY_TASK_ID:-}}",
        'case "$code" in',
        "  0|1|2|126|127) again=no ;;",
        "  75|85) again=yes ;;",
        f'  *) again=$(find {ledger} -mmin "-$((SECONDS / 60 + 1))" 2>/dev/null) ;;',
        "esac",
        'if [ -n "$again" ]; then rm -f "$unstarted"; else echo "$code" >> "$unstarted"; fi',
        'if [ -z "$again" ] && [ "$(wc -l < "$unstarted" || echo 1000000)" -le ' + f"{spec.restarts} ]; then",
        "  again=yes",
        "fi",
        'if [ "${again:-no}" != no ]; then',
        '  scontrol show job -o "$SLURM_JOB_ID" \\',
        '    | grep -q "JobState=RUNNING .* Restarts=${SLURM_RESTART_COUNT:-0} " \\',
        '    && scontrol requeue "$SLURM_JOB_ID"',
        "fi",
        'exit "$code"',
        "",
    ]


def srun_arguments(spec: JobSpec, folder: Path) -> list[str]:
    """srun's arguments beside submitit's own: srun does not inherit everything, and must not kill a save."""
    arguments = [
        f"--nodes={spec.nodes}",
        f"--ntasks={spec.nodes}",
        "--ntasks-per-node=1",
        f"--cpus-per-task={spec.cpus_per_task * spec.tasks_per_node}",
        # The supervisors end the job as a whole, and wait while a checkpoint is written.
        "--kill-on-bad-exit=0",
        "--wait=0",
        *spec.cluster.srun,
    ]
    if spec.gpus_per_node and any("gpu-bind" in word for word in [*spec.cluster.srun, *spec.cluster.sbatch]):
        # One a task is meant as one a rank (LOCAL_RANK says which); the task here is the whole node's.
        arguments.append("--gpu-bind=none")
    if container := spec.cluster.container:
        run = folder.parents[1]
        mounts = ",".join([*container.mounts, f"{run}:{run}"])
        arguments += [f"--container-image={container.image}", f"--container-mounts={mounts}"]
    return arguments
