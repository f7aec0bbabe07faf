"""Carabid from Python: experiments, trials and features as they lie on disk.

    import carabid

    experiment = carabid.open_experiment("beetles-lora")
    experiment.results()                              # a pandas frame
    experiment.best().predict(["beetle.jpg"])         # another one
    experiment.charts()                               # those of the report, which a notebook shows

What trains and queues is the command `carabid`; its package is `pipeline`.
"""

from carabid.opened import Experiment, Store, Trial, experiments, open_experiment, open_store, open_trial
from pipeline import __version__
from pipeline.errors import UserError, WorkError

__all__ = [
    "Experiment",
    "Store",
    "Trial",
    "UserError",
    "WorkError",
    "__version__",
    "experiments",
    "open_experiment",
    "open_store",
    "open_trial",
]
