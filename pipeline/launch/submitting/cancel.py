"""`carabid cancel`: take an experiment's jobs, or those of some of its trials, out of Slurm's queue. Loads no torch."""

from collections.abc import Collection

from pipeline.disk.layout import ExperimentDir
from pipeline.errors import UserError
from pipeline.launch.manifest.job_names import Part, Parts
from pipeline.launch.scheduler.queue import cancel, my_job_tasks


def cancel_trials(experiment: ExperimentDir, names: Collection[str] = ()) -> list[str]:
    """Cancel what is queued or running of these trials, or everything of the experiment; the ids of jobs and job tasks.

    A training that runs writes a checkpoint. Raises UserError for a job task that other trials share.
    """
    parts = Parts(experiment)
    mine = [(job_task, part) for job_task in my_job_tasks() if (part := parts.of(job_task.name, job_task.array, job_task.index))]
    whole = dict.fromkeys(job_task.array for job_task, _ in mine)
    ids = [job_task.id for job_task, part in mine if _is_of(part, set(names))] if names else list(whole)
    cancel(ids)
    return ids


def _is_of(part: Part, names: Collection[str]) -> bool:
    """Whether a job task does nothing but these trials. What all trials share (extraction, collection) goes on."""
    its = {entry.name for entry in part.entries()}
    if part.stage not in ("train", "evaluate") or not its & set(names):
        return False
    if others := its - set(names):
        raise UserError(
            f"the same job task does {', '.join(sorted(others)[:3])} too: name all of its trials, or cancel the experiment"
        )
    return True
