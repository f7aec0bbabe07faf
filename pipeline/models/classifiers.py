"""Classifiers of scikit-learn as heads: what a head is built of, what it says of a batch, its file, and its plain arrays.

Labels are row numbers of the classes; with two the first is the positive one. The file is skops': no pickle, and of types that
are listed here and of no others.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config.head import (
    ClassifierHead,
    GaussianProcessHead,
    HistGradientBoostingHead,
    KnnHead,
    LdaHead,
    LogisticHead,
    OneClassHead,
    SgdHead,
    SvcHead,
)
from pipeline.disk.layout import TrialDir
from pipeline.disk.writing import atomic_path
from pipeline.errors import WorkError
from pipeline.models import plain
from pipeline.models.learner import Predicted
from pipeline.models.metadata import Metadata

Array = NDArray[np.float64]
Arrays = dict[str, NDArray[Any]]
Folds = Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]]
"""Row numbers that are fitted on, and those that are left out, of each fold."""
TRUSTED = (
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.gaussian_process._gpc._BinaryGaussianProcessClassifierLaplace",
    "sklearn.gaussian_process.kernels.ConstantKernel",
    "sklearn.gaussian_process.kernels.Product",
    "sklearn.gaussian_process.kernels.RBF",
)
"""Types that a file may hold beside those that skops trusts itself: private parts of the estimators that are made here."""
RECORD = "carabid.json"
"""In the file, beside what skops writes: the version of scikit-learn. What another version has to say is not even looked at."""


@dataclass(frozen=True)
class OneClass:
    """A classifier that scikit-learn has not: plain arrays (`models/plain.py`), behind the method of one that it has."""

    kind: str
    arrays: Arrays

    def predict_proba(self, x: Array) -> Array:
        """Features [B, E] → probabilities [B, 2]."""
        return plain.probabilities(self.kind, self.arrays, x)


class Classifier(nn.Module):
    """A head without parameters that learn; `estimator` is a fitted one of scikit-learn, or a OneClass."""

    estimator: Any = None

    def __init__(self, head: ClassifierHead, classes: Sequence[str], normalize: bool) -> None:
        super().__init__()
        self.head, self.classes, self.normalize = head, tuple(classes), normalize

    def predict(self, features: Tensor, metadata: Metadata | None = None) -> Predicted:
        """Features [B, E] → probabilities of the classes [B, C] as means, in double precision: single would make one score of
        several near 0, 1, or, with a strong penalty, near a half. Variances of one tell nothing."""
        embedded = F.normalize(features.float(), dim=-1) if self.normalize else features.float()
        said = self.estimator.predict_proba(embedded.cpu().numpy().astype("float64"))
        mean = torch.from_numpy(said).to(features.device)
        return Predicted(mean, torch.ones_like(mean), torch.zeros_like(mean))


# ---------------------------------------------------------------- scikit-learn's
def make_estimator(head: ClassifierHead, seed: int, folds: Folds = (), width: int = 1) -> Any:
    """An estimator of scikit-learn that is not fitted yet, for features of this width; not of a OneClassHead.

    `folds` are those that probabilities of SVC and SGD are calibrated on. Logistic regression begins with its first penalty.
    """
    from sklearn.pipeline import make_pipeline  # scikit-learn takes a second to import
    from sklearn.preprocessing import StandardScaler

    random = seed % 2**32
    if isinstance(head, HistGradientBoostingHead):
        return _trees(head, random)
    if isinstance(head, SvcHead | SgdHead):
        from sklearn.calibration import CalibratedClassifierCV

        inner = make_pipeline(StandardScaler(), _margin(head, random))
        return CalibratedClassifierCV(inner, method="sigmoid", cv=list(folds), ensemble=False)
    return make_pipeline(StandardScaler(), _standardised(head, random, width))


def _trees(head: HistGradientBoostingHead, random: int) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(
        learning_rate=head.lr,
        max_iter=head.rounds,
        max_leaf_nodes=head.leaves,
        min_samples_leaf=head.min_leaf,
        l2_regularization=head.l2,
        early_stopping=False,  # it would hold images out that are not grouped by group
        class_weight=_weights(head),
        random_state=random,
    )


def _margin(head: SvcHead | SgdHead, random: int) -> Any:
    from sklearn.linear_model import SGDClassifier
    from sklearn.svm import SVC

    if isinstance(head, SvcHead):
        return SVC(C=head.C, kernel=head.kernel, gamma=head.gamma, class_weight=_weights(head))
    return SGDClassifier(
        loss="log_loss",
        alpha=head.alpha,
        learning_rate="adaptive",
        eta0=head.eta0,
        max_iter=head.max_iter,
        n_iter_no_change=head.n_iter_no_change,
        class_weight=_weights(head),
        random_state=random,
    )


def _standardised(
    head: KnnHead | GaussianProcessHead | LogisticHead | LdaHead | OneClassHead, random: int, width: int
) -> Any:
    if isinstance(head, LogisticHead):
        from sklearn.linear_model import LogisticRegression

        return LogisticRegression(
            C=head.Cs[0], class_weight=_weights(head), warm_start=True, max_iter=1000, random_state=random
        )
    if isinstance(head, LdaHead):
        from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

        return LinearDiscriminantAnalysis(solver="lsqr", shrinkage=head.shrinkage)
    if isinstance(head, KnnHead):
        from sklearn.neighbors import KNeighborsClassifier

        return KNeighborsClassifier(head.k, weights=head.weights, algorithm="brute")
    assert isinstance(head, GaussianProcessHead)
    from sklearn.gaussian_process import GaussianProcessClassifier
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel

    length = float(np.sqrt(width / 2)) if head.length_scale == "scale" else head.length_scale
    return GaussianProcessClassifier(ConstantKernel(1.0) * RBF(length), random_state=random)


def _weights(head: SvcHead | SgdHead | LogisticHead | HistGradientBoostingHead) -> str | None:
    return "balanced" if head.balanced else None


# ---------------------------------------------------------------- on disk
def save_classifier(model: Classifier, trial: TrialDir) -> None:
    """Write the fitted estimator to `classifier.skops`, as a whole or not at all."""
    import sklearn
    import skops.io

    fitted = model.estimator
    with atomic_path(trial.classifier) as temporary:
        skops.io.dump(fitted.arrays if isinstance(fitted, OneClass) else fitted, temporary)
        with ZipFile(temporary, "a") as file:
            file.writestr(RECORD, json.dumps({"scikit-learn": sklearn.__version__}))


def load_classifier(model: Classifier, trial: TrialDir) -> None:
    """Give `model` the fitted estimator that `classifier.skops` holds.

    Raises WorkError if that is not there, is damaged, was written with another scikit-learn, or holds what is not in TRUSTED.
    """
    path = trial.classifier
    if not path.is_file():
        raise WorkError(f"{trial.path}: there is no {path.name}: `carabid train` makes it (again)")
    try:
        loaded = _load(path)
    except (BadZipFile, KeyError, ValueError, TypeError, AttributeError, EOFError, NotImplementedError) as error:
        raise WorkError(
            f"{path} is damaged ({error}): `carabid train` with this trial's configuration makes it again"
        ) from error
    model.estimator = OneClass(model.head.kind, loaded) if isinstance(model.head, OneClassHead) else loaded


def _load(path: Path) -> Any:
    import skops.io

    _check_version(path)
    if unknown := sorted(set(skops.io.get_untrusted_types(file=path)) - set(TRUSTED)):
        raise WorkError(
            f"{path} holds what no classifier of this project is made of ({', '.join(unknown)}), and is not loaded: "
            "`carabid train` with this trial's configuration makes it again"
        )
    return skops.io.load(path, trusted=list(TRUSTED))


def _check_version(path: Path) -> None:
    """WorkError for a file of another scikit-learn, which may say other things than it said when it was evaluated."""
    import sklearn

    with ZipFile(path) as file:
        written = str(json.loads(file.read(RECORD))["scikit-learn"])
    if written != sklearn.__version__:
        raise WorkError(
            f"{path} was written with scikit-learn {written}, and here is {sklearn.__version__}: install "
            f"scikit-learn=={written}, or run `carabid train` with this trial's configuration again"
        )


# ---------------------------------------------------------------- plain arrays
def plain_arrays(estimator: Any, head: ClassifierHead) -> Arrays:
    """A fitted estimator as the arrays that `models/plain.py` scores."""
    if isinstance(estimator, OneClass):
        return dict(estimator.arrays)
    if isinstance(head, HistGradientBoostingHead):
        return {"mean": np.zeros(1), "scale": np.ones(1), **_tree_arrays(estimator)}
    if isinstance(head, SvcHead | SgdHead):
        (calibrated,) = estimator.calibrated_classifiers_
        lines = np.array([(-line.a_, -line.b_) for line in calibrated.calibrators]).T
        own = _scaled(calibrated.estimator, _support_arrays if isinstance(head, SvcHead) else _linear_arrays)
        return {**own, "slope": lines[0], "intercept": lines[1]}
    if isinstance(head, KnnHead):
        return _scaled(estimator, _neighbour_arrays)
    return _scaled(estimator, _process_arrays if isinstance(head, GaussianProcessHead) else _linear_arrays)


def _scaled(pipeline: Any, arrays: Any) -> Arrays:
    """Of a pipeline: what standardises, and `arrays` of what comes after."""
    scaler, fitted = (step for _, step in pipeline.steps)
    return {"mean": scaler.mean_, "scale": scaler.scale_, **arrays(fitted)}


def _linear_arrays(fitted: Any) -> Arrays:
    return {"weights": fitted.coef_.T, "bias": fitted.intercept_}


def _support_arrays(fitted: Any) -> Arrays:
    """LIBSVM keeps of each support vector its coefficients against the other classes; here a column is of a pair of classes."""
    bounds = np.concatenate([[0], np.cumsum(fitted.n_support_)])
    dual, n = fitted.dual_coef_, len(fitted.n_support_)
    pairs = list(combinations(range(n), 2))
    coefficients = np.zeros((dual.shape[1], len(pairs)))
    for column, (i, j) in enumerate(pairs):
        for own, row in ((i, j - 1), (j, i)):
            rows = slice(bounds[own], bounds[own + 1])
            coefficients[rows, column] = dual[row, rows]
    arrays = {"support": fitted.support_vectors_, "coefficients": coefficients, "bias": fitted.intercept_}
    return arrays | ({"gamma": np.float64(fitted._gamma).reshape(())} if fitted.kernel == "rbf" else {})


def _neighbour_arrays(fitted: Any) -> Arrays:
    return {
        "points": fitted._fit_X,
        "labels": fitted._y,
        "k": np.array(fitted.n_neighbors),
        "by_distance": np.array(fitted.weights == "distance"),
        "n_classes": np.array(len(fitted.classes_)),
    }


def _process_arrays(fitted: Any) -> Arrays:
    """Of each latent function its kernel, y − π [N], and L⁻¹·W^½ [N, N] (the variance is the prior's less its square)."""
    from scipy.linalg import solve_triangular

    whole = fitted.base_estimator_
    parts = [whole] if hasattr(whole, "X_train_") else whole.estimators_
    return {
        "points": parts[0].X_train_,
        "amplitude": np.array([part.kernel_.k1.constant_value for part in parts]),
        "length": np.array([part.kernel_.k2.length_scale for part in parts]),
        "residual": np.stack([part.y_train_ - part.pi_ for part in parts]),
        "root": np.stack([solve_triangular(part.L_, np.diag(part.W_sr_), lower=True) for part in parts]),
    }


def _tree_arrays(fitted: Any) -> Arrays:
    """Nodes of the trees [rounds, K, nodes], padded with leaves; a leaf's children are itself."""
    trees = [[tree.nodes for tree in round_] for round_ in fitted._predictors]
    shape = (len(trees), len(trees[0]), max(len(nodes) for round_ in trees for nodes in round_))
    own = np.broadcast_to(np.arange(shape[2]), shape)
    arrays: Arrays = {"left": own.copy(), "right": own.copy(), "feature": np.zeros(shape, "int64")}
    arrays |= {"threshold": np.full(shape, np.inf), "value": np.zeros(shape)}
    columns = {"left": "left", "right": "right", "feature": "feature_idx", "threshold": "num_threshold"}
    for at in np.ndindex(*shape[:2]):
        nodes = trees[at[0]][at[1]]
        inner = np.flatnonzero(nodes["is_leaf"] == 0)
        arrays["value"][at][: len(nodes)] = nodes["value"]
        for name, column in columns.items():
            arrays[name][at][inner] = nodes[column][inner]
    return {**arrays, "baseline": fitted._baseline_prediction.ravel()}
