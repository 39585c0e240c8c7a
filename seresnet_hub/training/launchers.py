"""What launchers (torchrun, accelerate, MPI, srun) say of the processes that they started."""

from __future__ import annotations

from collections.abc import Mapping

from seresnet_hub.errors import InputError


def require_launcher(environment: Mapping[str, str]) -> None:
    """Raise `InputError` where `srun` started several processes that know nothing of each other.

    Each would train the whole run, all in one folder. A launcher sets WORLD_SIZE; the script of a batch job is no step.
    """
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "")
    if tasks.isdecimal() and int(tasks) > 1 and not {"WORLD_SIZE", "RANK"} & environment.keys():
        raise InputError(
            f"srun started {tasks} processes that are not joined: let it start one launcher on each node (srun "
            "--ntasks-per-node=1 torchrun … -m seresnet_hub train …, as the repository's scripts/cluster/slurm.sh "
            "does); where each task is a run of its own, with an --output of its own, set WORLD_SIZE=1"
        )


def processes_started(environment: Mapping[str, str]) -> int:
    """Return how many processes a launcher or MPI says it started, 0 where none says anything."""
    for name in ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):
        if environment.get(name, "").isdecimal():
            return int(environment[name])
    return 0
