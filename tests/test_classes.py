"""Classes as targets: their columns, what a table of classes is refused for, and the loss that learns them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from torch.nn import functional as F

from pipeline.config.data import Columns, Data
from pipeline.config.loss import CrossEntropy
from pipeline.config.split import FoldSplit
from pipeline.config.trial import Config
from pipeline.data.dataset import Dataset
from pipeline.data.table import load_classes
from pipeline.data.truth import class_name
from pipeline.errors import UserError
from pipeline.models.losses import Categorical
from pipeline.tasks import load_task
from pipeline.training.samples import make_targets
from tests.small import named

COLUMNS = Columns(image="img")

HEADER = "img,kind,of,other,group,split"
ROWS = [
    "a.png,hybrid,,,1,train",
    "a.png,pure,b,,2,train",
    "a.png,hybrid,b,a,3,train",
    "a.png,pure,a,,4,validation",
    "a.png,hybrid,a,a,5,test",
]


def load(folder: Path, rows: list[str] = ROWS, header: str = HEADER, **more: Any) -> Dataset:
    (folder / "data.csv").write_text("\n".join([header, *rows]) + "\n")
    Image.new("L", (4, 4)).save(folder / "a.png")
    columns = Columns(**{"image": "img", "id": None, "group": "group", **more.pop("columns", {})})
    return load_classes(Data(**{"source": str(folder / "data.csv"), "columns": columns, "label": "kind", **more}))


# ---------------------------------------------------------------- the table
def test_a_label_is_the_place_of_its_class_and_learnt_as_a_1_among_0s(tmp_path: Path) -> None:
    data = load(tmp_path)
    assert data.targets == ("kind=hybrid", "kind=pure") and list(map(class_name, data.targets)) == ["hybrid", "pure"]
    assert data.truth.of(data.table).tolist() == [0, 1, 0, 1, 0]
    assert make_targets(data.table, data.truth).dense()[:, 0].tolist() == [1, 0, 1, 0, 1]
    assert (make_targets(data.table, data.truth).dense().sum(1) == 1).all() and data.truth.auxiliary == ()


def test_of_two_classes_the_positive_one_is_the_first(tmp_path: Path) -> None:
    assert load(tmp_path, positive="pure").targets == ("kind=pure", "kind=hybrid")


def test_auxiliary_labels_are_shared_by_the_names_that_a_row_has_and_a_row_without_has_none(tmp_path: Path) -> None:
    data = load(tmp_path, columns={"auxiliary": ("of", "other")})
    assert data.truth.auxiliary == ("of=a", "of=b")
    learnt = make_targets(data.table, data.truth)
    assert learnt.dense()[:, 2:].tolist() == [[0, 0], [0, 1], [0.5, 0.5], [1, 0], [1, 0]]
    assert learnt[torch.tensor([2, 4])].tolist() == learnt.dense()[[2, 4]].tolist()


def test_numbers_written_as_decimals_are_the_same_classes(tmp_path: Path) -> None:
    rows = [row.replace("hybrid", "8.0").replace("pure", "9") for row in ROWS]
    assert load(tmp_path, rows).targets == ("kind=8", "kind=9")


def test_a_table_of_a_thousand_classes_is_as_wide_as_one_of_two(tmp_path: Path) -> None:
    """A column per class would be four million cells here, and made loading take minutes."""
    few = load(tmp_path)
    rows = [f"a.png,species {i % 1000:03d},,,{i},{'train' if i < 3000 else 'validation'}" for i in range(4000)]
    many = load(tmp_path, rows)
    assert len(many.targets) == 1000 and many.truth.columns == few.truth.columns == many.truth.learnt
    assert list(many.table.columns) == list(few.table.columns)
    assert many.truth.of(many.table).tolist() == [i % 1000 for i in range(4000)]


def test_permuted_classes_keep_their_numbers_and_move_with_their_auxiliary_labels(tmp_path: Path) -> None:
    rows = [f"a.png,{'hybrid' if i % 3 else 'pure'},{'ab'[i % 2]},,{i},train" for i in range(30)] + ROWS[3:]
    columns = {"auxiliary": ("of",)}
    before, after = (load(tmp_path, rows, columns=columns, permute_targets=on) for on in (False, True))
    learnt = list(before.truth.learnt)
    assert (before.table[learnt] != after.table[learnt]).to_numpy().any()
    train = after.table["split"] == "train"
    ordered = [np.sort(data.table.loc[train, learnt].to_numpy() @ [8, 1]) for data in (before, after)]
    assert (ordered[0] == ordered[1]).all()


# ---------------------------------------------------------------- what is refused
@pytest.mark.parametrize(
    ("rows", "more", "message"),
    [
        (["a.png,,,,9,train", *ROWS], {}, r"data\.csv, line 2: column kind \(data\.label\) is empty"),
        ([row.replace("hybrid", "pure") for row in ROWS], {}, r"\(data\.label\) holds 'pure' alone"),
        (ROWS, {"positive": "hybird"}, r"no class 'hybird' \(data\.positive\); did you mean hybrid\?"),
        ([*ROWS, "a.png,third,,,9,train"], {"positive": "pure"}, "tells two classes apart, and column kind has 3"),
        (["a.png,pure,,,1,train", *ROWS], {}, "line 3: group 1 is hybrid here, but pure at .*line 2"),
        (ROWS[1:2] + ROWS[3:], {}, "all training images are of the class pure"),
        (ROWS, {"label": "knd"}, r"no column 'knd' \(data\.label\); did you mean kind\?"),
        (ROWS, {"columns": {"auxiliary": ("off",)}}, r"no column 'off' \(data\.columns\.auxiliary\)"),
    ],
)
def test_a_table_that_cannot_be_right_is_refused_with_its_place(
    tmp_path: Path, rows: list[str], more: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load(tmp_path, rows, **more)


def test_rows_of_one_image_are_one_group_whose_class_they_share(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"group a\.png is pure here, but hybrid"):
        load(tmp_path, columns={"group": None})


def test_numbers_are_not_taken_for_classes(tmp_path: Path) -> None:
    rows = [f"a.png,{i / 7},,,{i},{('train', 'validation')[i % 2]}" for i in range(50)]
    with pytest.raises(UserError, match=r"50 classes in 50 rows: if these are numbers, .*data\.targets=\[kind\]"):
        load(tmp_path, rows)


@pytest.mark.parametrize(
    ("task", "data", "message"),
    [
        ("classify", Data(source="x", targets=("y",), columns=COLUMNS), "predicts classes: name their column as data.label"),
        ("butterflies", Data(source="x", targets=("y",), columns=COLUMNS), "predicts classes"),
        ("regress", Data(source="x", label="kind", columns=COLUMNS), "predicts numbers, and data.label kind names classes"),
        ("beetles", Data(source="x", label="kind", columns=COLUMNS), "predicts numbers"),
    ],
)
def test_a_task_is_of_classes_or_of_numbers(task: str, data: Data, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_task(task).load(data)


def test_a_class_that_nothing_is_trained_on_is_told(tmp_path: Path) -> None:
    (warning,) = load(tmp_path, [*ROWS, "a.png,third,,,9,test"]).warnings
    assert "no training image is of third" in warning


def test_folds_keep_images_of_a_group_together(tmp_path: Path) -> None:
    rows = [f"a.png,{'hybrid' if i % 4 else 'pure'},,,{i // 2 if i % 4 else 100 + i},train" for i in range(40)]
    table = load(tmp_path, rows, split=FoldSplit(kind="folds", n=4)).table
    assert table.groupby("group")["split"].nunique().max() == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": {"kind": "mse"}}, "loss.kind mse does not fit classes .data.label.: set loss.kind cross_entropy"),
        (
            {"data": {"source": "x", "targets": ["y"]}},
            "loss.kind cross_entropy does not fit numbers .data.targets.: set loss.kind mse",
        ),
        ({"model": {"standardize_targets": True}}, "classes .data.label. have no scale"),
        ({"model": {"pool": "precision"}}, "loss.kind cross_entropy does not learn"),
        (
            {"loss": {"kind": "cross_entropy", "auxiliary": 1}},
            "loss.auxiliary 1.* of labels beside the class: set data.columns.auxiliary to the column",
        ),
        ({"data": {"label": "kind", "targets": ["y"]}}, "exclude one another"),
        ({"data": {"targets": ["y"], "positive": "a"}}, "positive a is of classes: set data.label to the column"),
        ({"data": {"label": "a=b"}}, "no = in it"),
        ({"data": {"label": "kind", "columns": {"auxiliary": ["of", "of"]}}}, "each column once"),
        ({"data": {"label": "kind", "columns": {"auxiliary": ["kind"]}}}, "and not the label's"),
        ({"calibrate": {"kind": "emos"}}, "calibrate.kind emos .* is not calibrated: set calibrate.kind scale"),
        ({"model": {"head": {"kind": "svc", "kernel": "linear", "gamma": 0.5}}}, "kernel is linear"),
        ({"data": None}, "valid dictionary"),
        ({"task": "regress", "data": {"targets": ["classes"]}, "loss": {"kind": "mse"}}, "a target cannot be called classes"),
    ],
)
def test_what_does_not_fit_classes_is_refused(change: dict[str, Any], message: str) -> None:
    base = {"experiment": "x", "task": "classify", "data": {"label": "kind"}, "loss": {"kind": "cross_entropy"}}
    with pytest.raises(ValidationError, match=message):
        Config.model_validate(named(base | change))


def test_a_figure_of_numbers_chooses_no_classes() -> None:
    with pytest.raises(UserError, match="models are not chosen by 'r2'; there are: roc_auc"):
        load_task("classify").metric("r2")


def test_classes_are_chosen_by_auc_unless_another_figure_is_named() -> None:
    base = {"experiment": "x", "data": {"label": "kind"}, "loss": {"kind": "cross_entropy"}}
    configs = [Config.model_validate(named({**base, "select": select})) for select in ({}, {"metric": "log_loss"})]
    assert [load_task("classify").metric(config.select.metric) for config in configs] == ["roc_auc", "log_loss"]


# ---------------------------------------------------------------- the loss
def categorical(n_classes: int = 3, **options: Any) -> Categorical:
    return Categorical(CrossEntropy(kind="cross_entropy", **options), n_classes)


def one_hot(n: int, n_classes: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.one_hot(torch.randint(n_classes, (n,), generator=generator), n_classes).float()


def test_cross_entropy_is_torchs() -> None:
    output, raw, targets = categorical(), 3 * torch.randn(20, 3), one_hot(20, 3)
    expected = F.cross_entropy(raw, targets, reduction="none")
    assert torch.allclose(output.losses(output.parameters(raw), targets), expected, atol=1e-5)


def test_focal_loss_is_the_papers() -> None:
    """Lin et al. 2017, equation 4: −(1 − p)^γ log p of the true class."""
    output, raw, targets = categorical(focal=2.0), torch.randn(20, 3), one_hot(20, 3)
    p = (raw.softmax(-1) * targets).sum(-1)
    assert torch.allclose(output.losses(output.parameters(raw), targets), -((1 - p) ** 2) * p.log(), atol=1e-6)


def test_balanced_weights_give_every_class_the_same_sum_and_are_those_of_sklearn() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    output, classes = categorical(balanced=True), np.repeat([0, 1, 2], [50, 8, 2])
    targets = F.one_hot(torch.from_numpy(classes), 3).float()
    output.balance(targets)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=classes)
    assert output.class_weights.numpy() == pytest.approx(expected, rel=1e-6)
    losses = output.losses(output.parameters(torch.zeros(60, 3)), targets)
    assert torch.allclose(targets.T @ losses, losses.sum().expand(3) / 3, rtol=1e-5)


@pytest.mark.parametrize(("tau", "focal"), [(1.0, 0.0), (0.5, 0.0), (1.5, 2.0)])
def test_logits_are_adjusted_by_the_log_prior_in_training_and_not_in_prediction(tau: float, focal: float) -> None:
    """Menon et al. 2021, equation 10, pair by pair."""
    counts, raw, of = [50, 8, 0], 3 * torch.randn(7, 3, generator=torch.Generator().manual_seed(1)), [0, 1, 2, 0, 1, 1, 0]
    output = categorical(logit_adjustment=tau, focal=focal)
    output.set_counts(torch.tensor(counts, dtype=torch.float32))
    found = output.losses(output.parameters(raw), F.one_hot(torch.tensor(of), 3).float())
    for row, label, loss in zip(raw.tolist(), of, found.tolist(), strict=True):
        logits = [x + tau * math.log(max(n, 1) / sum(counts)) for x, n in zip(row, counts, strict=True)]
        p = math.exp(logits[label]) / sum(map(math.exp, logits))
        assert loss == pytest.approx(-((1 - p) ** focal) * math.log(p), rel=1e-4)
    assert torch.equal(output.moments(output.parameters(raw))[0], raw.softmax(-1))


def test_counts_of_a_table_are_the_prior() -> None:
    first, second, targets = categorical(logit_adjustment=1.0), categorical(logit_adjustment=1.0), one_hot(20, 3)
    first.balance(targets)
    second.set_counts(targets.sum(0))
    assert torch.equal(first.log_prior, second.log_prior) and first.log_prior.exp().sum() == pytest.approx(1)


def test_auxiliary_labels_have_a_softmax_of_their_own_and_a_row_without_adds_nothing() -> None:
    output, raw = categorical(2, auxiliary=0.5), torch.randn(4, 5)
    targets = torch.tensor([[1, 0, 0, 0, 0], [0, 1, 1, 0, 0], [1, 0, 0.5, 0.5, 0], [0, 1, 0, 0, 1.0]])
    losses = output.losses(output.parameters(raw), targets)
    main = F.cross_entropy(raw[:, :2], targets[:, :2], reduction="none")
    other = -(targets[:, 2:] * raw[:, 2:].log_softmax(-1)).sum(-1)
    assert torch.allclose(losses, main + 0.5 * other, atol=1e-6) and losses[0] == pytest.approx(float(main[0]))


@given(st.floats(-300, 300), st.sampled_from([0.0, 0.5, 2.0]))
def test_the_loss_and_its_gradient_stay_finite_however_sure_the_model_is(logit: float, focal: float) -> None:
    output, raw = categorical(2, focal=focal), torch.tensor([[logit, 0.0]], requires_grad=True)
    loss = output.losses(output.parameters(raw), torch.tensor([[0.0, 1.0]])).sum()
    loss.backward()
    assert torch.isfinite(loss) and raw.grad is not None and torch.isfinite(raw.grad).all()
