"""A classifier of scikit-learn as a head: what it says of a batch, its file, and what stands of it in a submission.

The file is skops': no pickle, and of types that its kind's recipe lists and of no others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self
from zipfile import ZipFile

import numpy as np
import sklearn
import skops.io
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config.trial import Config
from pipeline.disk.layout import TrialDir
from pipeline.disk.reading import reading
from pipeline.disk.writing import atomic_path
from pipeline.errors import WorkError
from pipeline.models.base import Facts, Model, Predicted
from pipeline.models.estimators import OfSome, Recipe
from pipeline.models.metadata import Metadata

RECORD = "carabid.json"
"""In the file, beside what skops writes: the version of scikit-learn, and the places of the classes that it was fitted on, where
these are not all. What another version has to say is not even looked at."""


class Classifier(Model):
    """A head without parameters that learn; `estimator` is a fitted one that its recipe has made."""

    has_gradients = False
    estimator: OfSome

    def __init__(self, head: Any, classes: Sequence[str], normalize: bool) -> None:
        super().__init__()
        self.head, self.classes, self.normalize = head, tuple(classes), normalize
        self.recipe: Recipe = head.recipe()

    @classmethod
    def make(cls, config: Config, facts: Facts, encoder: nn.Module) -> Self:
        return cls(config.model.head, facts.targets, config.model.normalize)

    def predict(self, features: Float[Tensor, "images width"], metadata: Metadata | None = None) -> Predicted:
        """Probabilities of the classes as means, in double precision: single would make one score of several near 0, 1, or, with
        a strong penalty, near a half. Variances of one tell nothing."""
        embedded = F.normalize(features.float(), dim=-1) if self.normalize else features.float()
        said = self.estimator.predict_proba(embedded.cpu().numpy().astype("float64"))
        mean = torch.from_numpy(said).to(features.device)
        return Predicted(mean, torch.ones_like(mean), torch.zeros_like(mean))

    def save_more(self, trial: TrialDir) -> None:
        """Write the fitted estimator to `classifier.skops`, as a whole or not at all."""
        known = {} if self.estimator.has_all else {"present": self.estimator.present}
        with atomic_path(trial.classifier) as temporary:
            skops.io.dump(self.recipe.packed(self.estimator.fitted), temporary)
            with ZipFile(temporary, "a") as file:
                file.writestr(RECORD, json.dumps({"scikit-learn": sklearn.__version__, **known}))

    def load_more(self, trial: TrialDir) -> None:
        """Take over the fitted estimator that `classifier.skops` holds.

        Raises WorkError if that is not there, is damaged, was written with another scikit-learn, or holds what its recipe does
        not trust.
        """
        if not (path := trial.classifier).is_file():
            raise WorkError(f"{trial.path}: there is no {path.name}: `carabid train` makes it (again)")
        with reading(path, "`carabid train` with this trial's configuration makes it again"):
            loaded, present = _load(path, self.recipe.trusted)
            n = len(self.classes)
            self.estimator = OfSome(self.recipe.unpacked(loaded), tuple(range(n)) if present is None else tuple(present), n)

    def spec(self) -> dict[str, Any]:
        return {"kind": "plain", "classifier": self.head.kind, "normalize": self.normalize}

    def plain_state(self) -> Mapping[str, Tensor]:
        arrays, of = self.recipe.arrays(self.estimator.fitted), self.estimator
        if not of.has_all:
            arrays |= {"present": np.array(of.present), "n_in_all": np.array(of.n)}
        return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


def _load(path: Path, trusted: Sequence[str]) -> tuple[Any, list[int] | None]:
    """What skops reads, and the places of the classes that it knows; None: all."""
    with ZipFile(path) as file:
        record = json.loads(file.read(RECORD))
    written = str(record["scikit-learn"])
    if written != sklearn.__version__:  # it may say other things than it said when the model was evaluated
        raise WorkError(
            f"{path} was written with scikit-learn {written}, and here is {sklearn.__version__}: install "
            f"scikit-learn=={written}, or run `carabid train` with this trial's configuration again"
        )
    if unknown := sorted(set(skops.io.get_untrusted_types(file=path)) - set(trusted)):
        raise WorkError(
            f"{path} holds what no classifier of this project is made of ({', '.join(unknown)}), and is not loaded: "
            "`carabid train` with this trial's configuration makes it again"
        )
    return skops.io.load(path, trusted=list(trusted)), record.get("present")
