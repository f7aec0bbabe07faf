"""A job's work on features: shards that are done stay, and what fails is the failure of the trials that need them."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import NoReturn

from pipeline.config.trial import Config
from pipeline.disk.layout import features_root
from pipeline.disk.secrets import complain
from pipeline.disk.writing import write_json, write_text
from pipeline.errors import REQUEUE_STATUS, NotFetched, OutOfTime, UserError, WorkError
from pipeline.experiments.reading import Trial, dump_config
from pipeline.launch.jobs.trials import failure_record, trial_dir
from pipeline.launch.manifest.manifest import sharing_features
from pipeline.launch.manifest.sharding import array_rank
from pipeline.signals import at_walltime


def extract_features(trials: list[Trial], once: bool) -> None:
    """Make the features of these trials; `once`: one of several jobs makes all of them, else an array shares them.

    Features that cannot be made are the failure of the trials that need them. Raises WorkError if none could.
    """
    from pipeline.stages import extract as stage

    rank, n_ranks = array_rank()
    groups, failed = sharing_features(trials), 0
    for sharing in groups:
        config = sharing[0].config
        try:
            make_features(sharing, partial(stage.ensure, config) if once else partial(stage.run, config, rank, n_ranks))
        except (UserError, WorkError, OSError) as error:
            failed += 1
            complain(error)
    if failed == len(groups):
        raise WorkError(f"extract: the features of none of {len(trials)} trials could be made")


def make_features(sharing: Sequence[Trial], work: Callable[[], object]) -> None:
    """Make the features that these trials share; if that fails, it is the failure of each of them."""
    with at_walltime(_at_the_end(sharing[0].config)):
        try:
            work()
        except Exception as error:
            if isinstance(error, NotFetched):
                error.config = trial_dir(sharing[0]).config
            with suppress(OSError):  # a full disk may be what failed; the error itself says so
                for trial in sharing:
                    write_text(trial_dir(trial).config, dump_config(trial.config))
                    write_json(trial_dir(trial).failure, failure_record("extract", error))
            raise


def _at_the_end(config: Config) -> Callable[[], NoReturn]:
    """What to do when the walltime of an extraction is near: shards that are done stay, the next attempt makes the others.

    An attempt that came no further is the last: each one after it would be cut off at the same place.
    """
    before = _n_records(config)

    def end() -> NoReturn:
        if _n_records(config) == before:
            raise OutOfTime("not one shard fits into the walltime: give it more (resources.extract.time, sbatch --time)")
        print("carabid: the walltime is near: shards that are done stay, the next attempt makes the others", flush=True)
        raise SystemExit(REQUEUE_STATUS)  # no Exception: code that forgives a bad image must not forgive this

    return end


def _n_records(config: Config) -> int:
    """How many shards are done, and records of content hashes (in features/records/), without what is half written."""
    return sum(1 for path in features_root(config).glob("*/*.json") if not path.name.startswith("."))
