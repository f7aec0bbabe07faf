"""What image–text pairs cost: check values, the libraries' own losses, naive loops; whole, in chunks, over processes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.loss import ClipLoss, SigLipLoss
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import sigmoid_focal_loss

from pipeline.config.head import Head
from pipeline.config.identity import config_hash
from pipeline.config.loss import Loss
from pipeline.config.trial import Config
from pipeline.errors import UserError
from pipeline.models.pairs import losses
from pipeline.models.pairs import weights as pair_weights
from pipeline.models.pairs.pair_loss import Batch, PairLoss
from pipeline.models.pairs.similarity import MOST_OF_A_SCALE, cosine, geodesic, geodesic_by_acos, logits
from pipeline.models.pairs.targets import ClassFacts
from tests.small import named

COUNTS = torch.tensor([50, 7, 1])
RANKS = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 1, 2]])
TREE = torch.tensor([[4.0, 3.0, 1.0], [3.0, 4.0, 1.0], [1.0, 1.0, 4.0]])
FACTS = ClassFacts(COUNTS, RANKS, TREE)
ZERO = torch.zeros(2)
RARE = {"classes": "inverse_frequency"}
ALL = {**RARE, "focal": 2, "balance": True}


def make(kind: str, facts: ClassFacts = FACTS, batch: int = 5, **values: Any) -> PairLoss:
    """The loss that a configuration describes, ready for a batch."""
    loss: PairLoss = Loss.parse({"kind": kind, **values}).make(3)
    loss.prepare(facts, batch)
    return loss


def draw(n: int, seed: int, width: int = 4, n_classes: int = 3) -> Batch:
    """Unit embeddings of n pairs and their classes, in float64, of which gradients are asked."""
    generator = torch.Generator().manual_seed(seed)
    image, text = (F.normalize(torch.randn(n, width, generator=generator, dtype=torch.float64)) for _ in "it")
    classes = torch.randint(n_classes, (n,), generator=generator)
    return Batch.whole(image.requires_grad_(), text.requires_grad_(), classes)


def scales(n: int = 2) -> tuple[Tensor, Tensor]:
    """Scales and biases of so many losses, unlike each other."""
    scale, bias = torch.tensor([1.2, 0.7], dtype=torch.float64), torch.tensor([-0.5, 0.3], dtype=torch.float64)
    return scale[:n].requires_grad_(), bias[:n].requires_grad_()


# ---------------------------------------------------------------- check values
STEPS = torch.arange(5)
GIVEN = 4 * torch.sin(1.0 + 3 * STEPS[:, None] + 5 * STEPS)
CLASSES = torch.tensor([0, 1, 0, 2, 1])
CHECKS: list[tuple[str, str, dict[str, Any], float]] = [
    ("infonce", "pairwise", {}, 2.918571472),
    ("infonce", "multipositive", {}, 4.235240936),
    ("infonce", "hierarchical", {}, 3.917442),
    ("pair_bce", "pairwise", {}, 6.250443935),
    ("pair_bce", "multipositive", {}, 7.850099087),
    ("pair_bce", "hierarchical", {}, 7.390152931),
    ("infonce", "multipositive", RARE, 3.913160801),
    ("infonce", "multipositive", {**RARE, "focal": 2}, 4.02407074),
    ("infonce", "multipositive", {"classes": "class_balanced"}, 3.66546154),
    ("pair_bce", "multipositive", RARE, 4.25688982),
    ("pair_bce", "multipositive", {**RARE, "pairs": "count"}, 4.25688982),
    ("pair_bce", "multipositive", {**RARE, "pairs": "count", "mean_over": "samples"}, 31.982336044),
    ("pair_bce", "multipositive", {**RARE, "pairs": "doubled"}, 3.433708906),
    ("pair_bce", "multipositive", {**RARE, "pairs": "probability"}, 5.500313759),
    ("pair_bce", "multipositive", {"classes": "class_balanced", "pairs": "probability"}, 4.850773335),
    ("pair_bce", "multipositive", {**RARE, "mean_over": "samples"}, 31.982336044),
    ("pair_bce", "pairwise", {"focal": 2}, 5.129780769),
    ("pair_bce", "hierarchical", {"focal": 2}, 4.109489441),
    ("pair_bce", "hierarchical", {"focal": 2, "focal_form": "distance"}, 3.818297863),
    ("pair_bce", "hierarchical", {"balance": True}, 7.12732935),
    ("pair_bce", "multipositive", ALL, 3.071771145),
    ("pair_bce", "multipositive", {**ALL, "join": "arithmetic"}, 6.333685875),
    ("pair_bce", "multipositive", {**ALL, "join": "geometric"}, 5.173789024),
    ("pair_bce", "multipositive", {**ALL, "join": "harmonic"}, 4.19180727),
]


@pytest.mark.parametrize("rows", [None, 2])
@pytest.mark.parametrize(("kind", "targets", "weights", "value"), CHECKS)
def test_check_values_of_the_program_that_this_follows(
    kind: str, targets: str, weights: dict[str, Any], value: float, rows: int | None
) -> None:
    """In fp32, to a millionth. (Texts are unit vectors, so images hold the logits.)"""
    loss = make(kind, targets=targets, weights=weights).loss(Batch.whole(GIVEN, torch.eye(5), CLASSES), ZERO, ZERO, rows)
    assert loss.dtype == torch.float32 and float(loss) == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("of", [geodesic, geodesic_by_acos])
def test_check_values_of_geodesic_similarity(of: Any) -> None:
    found = of(torch.tensor([[-0.3, 0.0, 0.5]]))
    torch.testing.assert_close(found, torch.tensor([[-0.193973303, 0.0, 0.333333313]]), rtol=1e-6, atol=1e-7)


# ---------------------------------------------------------------- libraries
@pytest.mark.parametrize("rows", [None, 3])
@given(st.integers(2, 9), st.integers(0, 99))
@settings(max_examples=15)
def test_at_identity_targets_the_losses_and_their_gradients_are_open_clips(rows: int | None, n: int, seed: int) -> None:
    for kind, reference in (("infonce", ClipLoss()), ("pair_bce", SigLipLoss())):
        found, expected = draw(n, seed), draw(n, seed)
        (scale, bias), (same_scale, same_bias) = scales(1), scales(1)
        loss = make(kind, batch=n).loss(found, scale, bias, rows)
        theirs = reference(expected.image, expected.text, same_scale[0].exp(), same_bias[0])
        torch.testing.assert_close(loss, theirs, rtol=1e-9, atol=1e-9)
        ours = torch.autograd.grad(loss, (found.image, found.text, scale, bias))
        torch.testing.assert_close(ours, torch.autograd.grad(theirs, (expected.image, expected.text, same_scale, same_bias)))


@given(st.integers(1, 6), st.integers(0, 99), st.sampled_from([1.0, 2.0, 3.5]))
def test_focal_bce_is_torchvisions_for_soft_targets_too(n: int, seed: int, gamma: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    found, targets = torch.randn(n, n, generator=generator) * 5, torch.rand(n, n, generator=generator)
    weights = pair_weights.focal(found, targets, gamma)
    ours = losses.pairwise(losses.bce, found, targets, weights)
    torch.testing.assert_close(ours, sigmoid_focal_loss(found, targets, alpha=-1, gamma=gamma, reduction="sum") / n)


@given(st.integers(2, 7), st.integers(0, 99))
def test_regressions_are_torchs_on_twice_the_targets_less_one(n: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    found, targets = torch.randn(n, n, generator=generator), torch.rand(n, n, generator=generator)
    goal = 2 * targets - 1
    torch.testing.assert_close(losses.pairwise(losses.squared, found, targets), F.mse_loss(found, goal) * n)
    torch.testing.assert_close(losses.pairwise(losses.huber, found, targets), F.huber_loss(found, goal, delta=0.1) * n / 0.1)


# ---------------------------------------------------------------- naive loops
def naive_info_nce(x: list[list[float]], t: list[list[float]], w: list[float]) -> float:
    """Row by row, pair by pair, of rows and then of columns."""
    total, n = 0.0, len(x)
    for logit, target in ((lambda i, j: x[i][j], lambda i, j: t[i][j]), (lambda i, j: x[j][i], lambda i, j: t[j][i])):
        above = 0.0
        for i in range(n):
            log_sum = math.log(sum(math.exp(logit(i, j)) for j in range(n)))
            share = sum(target(i, j) for j in range(n))
            above += w[i] * -sum(target(i, j) / share * (logit(i, j) - log_sum) for j in range(n))
        total += above / sum(w) / 2
    return total


@given(st.integers(1, 6), st.integers(0, 999))
def test_info_nce_is_its_formula_in_loops(n: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    found, targets = torch.randn(n, n, generator=generator).double() * 3, torch.rand(n, n, generator=generator).double()
    weights = torch.rand(n, generator=generator).double() + 0.1
    expected = naive_info_nce(found.tolist(), targets.tolist(), weights.tolist())
    assert float(losses.info_nce(found, targets, weights)) == pytest.approx(expected)


def naive_supervised(s: list[list[float]], classes: list[int], temperature: float, images: list[int] | None = None) -> float:
    """Khosla et al. 2020, equation 2, image by image; 0 if there is no positive. `images`: which rows are of one image."""
    found, images = [], images or list(range(len(s)))
    for i in range(len(s)):
        positives = [p for p in range(len(s)) if images[p] != images[i] and classes[p] == classes[i]]
        if positives:
            below = sum(math.exp(s[i][a] / temperature) for a in range(len(s)) if images[a] != images[i])
            found.append(-sum(math.log(math.exp(s[i][p] / temperature) / below) for p in positives) / len(positives))
    return sum(found) / len(found) if found else 0.0


@given(st.lists(st.integers(0, 3), min_size=1, max_size=7), st.integers(0, 99), st.sampled_from([0.07, 0.1, 1.0]))
def test_the_supervised_contrastive_loss_is_its_formula_in_loops(classes: list[int], seed: int, temperature: float) -> None:
    batch = draw(len(classes), seed)
    similarities, of = cosine(batch.image, batch.image), torch.tensor(classes)
    loss = losses.supervised_contrastive(similarities, (of[:, None] == of).double(), temperature)
    (gradient,) = torch.autograd.grad(loss, batch.image)
    expected = naive_supervised(similarities.tolist(), classes, temperature)
    assert float(loss.detach()) == pytest.approx(expected) and gradient.isfinite().all()


@given(st.lists(st.integers(0, 4), min_size=1, max_size=7), st.integers(0, 99))
def test_an_image_that_stands_in_a_batch_twice_is_no_positive_of_itself(images: list[int], seed: int) -> None:
    drawn, of, loss = draw(5, seed, n_classes=2), torch.tensor(images), make("infonce", images={"weight": 1.0})
    batch = Batch.whole(drawn.image[of], drawn.text[of], drawn.codes.classes[of], of)
    found = loss.each(loss.sums(batch, batch, *scales(1)), len(batch))[-1]
    similarities = cosine(batch.image, batch.image).tolist()
    assert float(found.detach()) == pytest.approx(naive_supervised(similarities, batch.codes.classes.tolist(), 0.1, images))


def test_the_loss_between_images_is_added_by_its_weight() -> None:
    batch, plain = draw(6, 0), make("infonce", batch=6)
    alike = (batch.codes.classes[:, None] == batch.codes.classes).double()
    between = losses.supervised_contrastive(cosine(batch.image, batch.image), alike, 0.2)
    loss = make("infonce", batch=6, images={"weight": 0.3, "temperature": 0.2}).loss(batch, *scales(1))
    torch.testing.assert_close(loss, plain.loss(batch, *scales(1)) + 0.3 * between)


@given(st.integers(2, 6), st.integers(0, 99), st.sampled_from([0.5, 1.0]))
def test_logit_adjustment_adds_the_log_prior_of_each_candidates_class(n: int, seed: int, tau: float) -> None:
    batch = draw(n, seed)
    scale, bias = scales(1)
    found = (cosine(batch.image, batch.text) * scale.exp() + bias).tolist()
    prior = [math.log(int(COUNTS[c]) / 58) for c in batch.codes.classes.tolist()]
    forth = [[found[i][j] + tau * prior[j] for j in range(n)] for i in range(n)]
    back = [[found[i][j] + tau * prior[i] for j in range(n)] for i in range(n)]
    halves = [F.cross_entropy(torch.tensor(x), torch.arange(n)) for x in (forth, [list(row) for row in zip(*back, strict=True)])]
    loss = make("infonce", batch=n, logit_adjustment=tau).loss(batch, scale, bias)
    assert float(loss.detach()) == pytest.approx(float(sum(halves)) / 2, rel=1e-5)


# ---------------------------------------------------------------- two losses
def second(**values: Any) -> dict[str, Any]:
    return {"kind": "pair_bce", "weight": 0.3, "targets": "phylogenetic", **values}


def test_a_blend_is_of_two_losses_that_each_have_their_own_scale_and_bias() -> None:
    batch, (scale, bias) = draw(6, 1), scales()
    loss = make("infonce", batch=6, second=second()).loss(batch, scale, bias)
    first = make("infonce", batch=6).loss(batch, scale[:1], bias[:1])
    other = make("pair_bce", batch=6, targets="phylogenetic").loss(batch, scale[1:], bias[1:])
    torch.testing.assert_close(loss, 0.7 * first + 0.3 * other)


def test_losses_divided_by_their_values_share_the_gradient_by_their_relative_slopes_and_report_their_own() -> None:
    batch, (scale, bias) = draw(6, 1), scales()
    both = make("infonce", batch=6, second=second(), normalize_by_value=True)
    sums = both.sums(batch, batch, scale, bias)
    values = both.each(sums, 6)
    plain = values.detach().tolist()
    slopes = [torch.autograd.grad(value, batch.image, retain_graph=True)[0] / value.detach() for value in values]
    (found,) = torch.autograd.grad(both.joined(sums, 6), batch.image)
    torch.testing.assert_close(found, 0.7 * slopes[0] + 0.3 * slopes[1])
    assert float(both.joined(sums, 6).detach()) == pytest.approx(1)
    assert float(both.joined(sums, 6, to_report=True).detach()) == pytest.approx(0.7 * plain[0] + 0.3 * plain[1])


# ---------------------------------------------------------------- chunks and processes
joins = st.sampled_from(["product", "arithmetic", "geometric", "harmonic"])
of_classes = st.sampled_from(["inverse_frequency", "class_balanced"])
targets = st.sampled_from(["pairwise", "multipositive", "hierarchical", "phylogenetic"])
of_rows = st.fixed_dictionaries({"classes": of_classes, "focal": st.sampled_from([1.0, 2.0]), "join": joins})
of_pairs = st.fixed_dictionaries(
    {
        "classes": of_classes, "focal": st.sampled_from([1.0, 2.0]), "join": joins, "balance": st.booleans(),
        "pairs": st.sampled_from(["product", "doubled", "probability"]),
        "focal_form": st.sampled_from(["likelihood", "distance"]),
    }
)  # fmt: skip
similarities = st.sampled_from(["cosine", "geodesic"])


@st.composite
def blocks(draw: Any) -> dict[str, Any]:
    """Configurations with most that may stand beside each other."""
    kind = draw(st.sampled_from(["infonce", "pair_bce"]))
    weights = draw(st.one_of(st.just({}), of_rows if kind == "infonce" else of_pairs))
    beside = st.sampled_from([{}, {"second": second()}, {"second": second(weights=ALL), "images": {"weight": 0.5}}])
    return {"kind": kind, "targets": draw(targets), "weights": weights, "similarity": draw(similarities), **draw(beside)}


def of_whole(block: dict[str, Any], n: int, seed: int) -> tuple[PairLoss, Batch, tuple[Tensor, Tensor], tuple[Tensor, ...]]:
    """A loss, a batch, scales, and what gradients are asked of."""
    loss, batch = make(**block, batch=n), draw(n, seed)
    own = scales(loss.n_scales)
    return loss, batch, own, (batch.image, batch.text, *own)


@given(blocks(), st.integers(2, 8), st.integers(1, 8), st.integers(0, 99))
@settings(max_examples=30)
def test_a_loss_in_chunks_and_its_gradients_are_those_of_the_whole(block: dict[str, Any], n: int, rows: int, seed: int) -> None:
    loss, batch, own, leaves = of_whole(block, n, seed)
    whole, chunked = loss.loss(batch, *own), loss.loss(batch, *own, rows)
    torch.testing.assert_close(chunked, whole, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(torch.autograd.grad(chunked, leaves), torch.autograd.grad(whole, leaves), rtol=1e-6, atol=1e-6)


@given(blocks(), st.integers(1, 4), st.integers(2, 3), st.integers(0, 99))
@settings(max_examples=20)
def test_sums_of_processes_with_rows_of_their_own_make_the_loss_of_the_whole(
    block: dict[str, Any], each: int, n: int, seed: int
) -> None:
    """Each process knows its own rows and where they stand, and what it has gathered of the others."""
    loss, batch, own, leaves = of_whole(block, n * each, seed)
    mine = [batch[each * rank : each * (rank + 1)] for rank in range(n)]
    image, text = torch.cat([part.image for part in mine]), torch.cat([part.text for part in mine])
    everyone = Batch(image, text, batch.codes)
    sums = torch.stack([loss.sums(part, everyone, *own) for part in mine]).sum(0)
    joined, whole = loss.joined(sums, n * each), loss.loss(batch, *own)
    torch.testing.assert_close(joined, whole, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(torch.autograd.grad(joined, leaves), torch.autograd.grad(whole, leaves), rtol=1e-6, atol=1e-6)


class Largest(TorchDispatchMode):
    """How large the largest tensor is that anything makes, forwards or backwards."""

    size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = out if isinstance(out, tuple | list) else (out,)
        self.size = max([self.size, *(each.numel() for each in made if isinstance(each, Tensor))])
        return out


@pytest.mark.parametrize("kind", ["infonce", "pair_bce"])
@pytest.mark.parametrize("targets", ["hierarchical", "phylogenetic"])
def test_in_chunks_no_matrix_of_the_whole_batch_is_made_nor_kept(kind: str, targets: str) -> None:
    n, rows = 60, 5
    weights: dict[str, Any] = {**RARE, "focal": 2, **({"balance": True, "pairs": "doubled"} if kind == "pair_bce" else {})}
    loss, batch = make(kind, batch=n, targets=targets, weights=weights, images={"weight": 1}), draw(n, 0)
    sizes = []
    for chunk in (rows, None):
        with Largest() as largest:
            loss.loss(batch, *scales(1), chunk).backward()  # type: ignore[no-untyped-call]
        sizes.append(largest.size)
    assert sizes[0] < n * n / 4 and sizes[1] >= n * n
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):  # type: ignore[func-returns-value]
        loss.loss(batch, *scales(1), rows)
    assert sum(kept) < n * n


# ---------------------------------------------------------------- finite
@given(blocks(), st.sampled_from([0.0, 3.0, 4.6, 6.0]), st.sampled_from([-20.0, 0.0, 20.0]))
@settings(max_examples=20)
def test_losses_and_gradients_are_finite_for_embeddings_that_are_equal_or_opposite(
    block: dict[str, Any], scale: float, bias: float
) -> None:
    loss = make(**block, batch=4)
    image = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.6, 0.8]], requires_grad=True)
    own = torch.full((2,), scale, requires_grad=True), torch.full((2,), bias, requires_grad=True)
    value = loss.loss(Batch.whole(image, image.detach() * torch.tensor([[1.0], [-1.0], [1.0], [1.0]]), CLASSES[:4]), *own)
    value.backward()  # type: ignore[no-untyped-call]
    assert value.isfinite() and all(each.grad is not None and each.grad.isfinite().all() for each in (image, *own))


@pytest.mark.parametrize("of", [geodesic, geodesic_by_acos])
def test_geodesic_similarity_has_finite_gradients_to_the_poles_and_beyond_rounding(of: Any) -> None:
    c = torch.tensor([[-1.0000001, -1.0, -0.9999999, 0.0, 0.9999999, 1.0, 1.0000001]], requires_grad=True)
    found = of(c)
    found.sum().backward()
    assert c.grad is not None and c.grad.isfinite().all() and (c.grad >= 0).all()
    assert found.detach().tolist()[0] == sorted(found.detach().tolist()[0]) and float(found.detach().abs().max()) <= 1
    assert float(found[0, 3].detach()) == pytest.approx(0, abs=1e-7) and float(found[0, 5].detach()) == pytest.approx(1, abs=1e-3)


def test_half_precision_is_left_before_the_logits() -> None:
    rows = F.normalize(torch.randn(8, 16, generator=torch.Generator().manual_seed(0)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (rows @ rows.T).dtype == torch.bfloat16
        assert cosine(rows, rows).dtype == cosine(rows.bfloat16(), rows.bfloat16()).dtype == torch.float32
        assert float((cosine(rows, rows).diagonal() - 1).abs().max()) < 1e-6


@pytest.mark.parametrize(("scale", "slope", "goes"), [(3.0, 1, True), (3.0, -1, True), (5.0, 1, True), (5.0, -1, False)])
def test_a_clamped_scale_can_come_back_and_goes_no_further(scale: float, slope: int, goes: bool) -> None:
    """(Descent raises it where the slope is negative.)"""
    own = torch.tensor(scale, requires_grad=True)
    found = logits(torch.ones(1, 1), own, torch.tensor(0.0), clamp=True)
    (slope * found.sum()).backward()  # type: ignore[no-untyped-call]
    assert float(found.detach()) == pytest.approx(math.exp(min(scale, MOST_OF_A_SCALE))) and bool(own.grad) == goes


# ---------------------------------------------------------------- configuration
@pytest.fixture
def towers() -> Iterator[str]:
    """A head kind that embeds pairs, while a test runs."""

    class Towers(Head):
        of = "classes"
        embeds_pairs = True
        descends = True
        kind: Literal["towers_of_a_test"]

    yield "towers_of_a_test"
    del Head.kinds["towers_of_a_test"]


def config(loss: dict[str, Any], head: str = "mlp", **values: Any) -> Config:
    tree = {"experiment": "x", "data": {"label": "kind"}, "loss": loss, "model": {"head": {"kind": head}}, **values}
    return Config.model_validate(named(tree))


def test_losses_of_pairs_are_of_heads_that_embed_them_and_these_take_no_others(towers: str) -> None:
    assert isinstance(config({"kind": "infonce"}, towers).loss.make(3), PairLoss)
    remedies = r"set model.head.kind contrastive or towers_of_a_test, or loss.kind cross_entropy \["
    with pytest.raises(ValueError, match=f"loss.kind infonce compares images with texts, and mlp predicts: {remedies}"):
        config({"kind": "infonce"})
    with pytest.raises(ValueError, match=r"cross_entropy scores predictions, and towers_of_a_test embeds images and texts: set"):
        config({"kind": "cross_entropy"}, towers)


def test_every_key_of_a_second_loss_is_kept_and_is_part_of_the_trials_identity(towers: str) -> None:
    trees: list[dict[str, Any]] = [
        second(),
        second(shuffle=1),
        second(weights={"focal": 1}),
        second(weight=0.4),
        second(clamp_scale=True),
    ]
    configs = [config({"kind": "infonce", "second": tree}, towers) for tree in trees]
    assert [Config.model_validate(each.model_dump(mode="json")) for each in configs] == configs
    assert len({config_hash(each) for each in configs}) == len(trees)


def test_losses_of_pairs_are_not_proposed_where_a_head_predicts() -> None:
    with pytest.raises(ValueError, match=r"mse does not fit classes \(data.label\): set loss.kind cross_entropy \["):
        config({"kind": "mse"})


def test_what_acts_on_single_images_does_not_go_with_losses_of_pairs(towers: str) -> None:
    with pytest.raises(ValueError, match=r"infonce compares classes, which augment.mixup_alpha mixes: set augment.mixup_alpha 0"):
        config({"kind": "infonce"}, towers, augment={"mixup_alpha": 0.2})
    with pytest.raises(ValueError, match=r"infonce is of a whole batch, and risk.kind coral weighs .*: set risk.kind mean"):
        config({"kind": "infonce"}, towers, risk={"kind": "coral"})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"shuffle": 1}, "shuffle is of targets phylogenetic, and targets is pairwise"),
        ({"normalize_by_value": True}, "normalize_by_value is of several losses"),
        ({"weights": {"gamma": 0.7}}, "gamma is of classes inverse_frequency"),
        ({"weights": {"classes": "inverse_frequency", "beta": 0.9}}, "beta is of classes class_balanced"),
        ({"weights": {"pairs": "doubled"}}, "pairs is of classes inverse_frequency or class_balanced"),
        ({"weights": {"focal": 2, "join": "harmonic"}}, "join is of several of classes, focal and balance"),
        ({"weights": {"focal_form": "distance"}}, "focal_form is of focal above 0"),
        ({"kind": "infonce", "weights": {"balance": True}}, "weights.balance is of losses of each pair"),
        ({"kind": "pair_huber", "weights": {"focal": 2}}, "weights.focal is of probabilities"),
        ({"second": second(shuffle=1, targets="pairwise")}, "shuffle is of targets phylogenetic"),
        ({"second": second(kind="infonce", weights={"balance": True})}, "weights.balance is of losses of each pair"),
        ({"second": second(images={"weight": 1})}, "second.images\n.*Extra inputs are not permitted"),
        ({"second": second(second=second())}, "second.second\n.*Extra inputs are not permitted"),
        ({"second": second(kind="cross_entropy")}, "'infonce', 'pair_bce', 'pair_mse', 'pair_huber'"),
    ],
)
def test_keys_without_a_use_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Loss.parse({"kind": "pair_bce", **values})


@pytest.mark.parametrize(("targets", "lacks"), [("hierarchical", "ranks"), ("phylogenetic", "a tree")])
def test_targets_of_what_the_data_do_not_have_are_refused(targets: str, lacks: str) -> None:
    with pytest.raises(UserError, match=f"targets {targets} reads .*{lacks}"):
        make("infonce", ClassFacts(COUNTS), targets=targets)


def test_each_kind_of_regression_has_its_own_loss() -> None:
    batch, (scale, bias) = draw(5, 3), scales(1)
    found = cosine(batch.image, batch.text) * scale.exp() + bias
    for kind, of, beside in (
        ("pair_mse", losses.squared, {}),
        ("pair_huber", lambda x, t: losses.huber(x, t, 0.3), {"beta": 0.3}),
    ):
        expected = losses.pairwise(of, found, torch.eye(5).double())
        torch.testing.assert_close(make(kind, **beside).loss(batch, scale, bias), expected)
