"""The block `model.outputs`: what a head's numbers say of the targets. A kind names the module of `models/outputs.py` that reads
them."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Literal

from pipeline.config.data import Data
from pipeline.config.fits import GIVEN, Fit
from pipeline.config.kinds import Kind
from pipeline.config.section import implementation

DESCENDS = Fit(
    "model.head.descends", (True,), "reads what a head says that learns by gradient descent", "asks_for_numbers", (True,)
)


class Outputs(Kind):
    """What a head's numbers say of the targets."""

    fits: ClassVar[tuple[Any, ...]] = (DESCENDS, Fit("data.truth", ("numbers",), "is of numbers", "asks_for_numbers", (True,)))
    module: ClassVar[str]
    """The class of `models/outputs.py`."""
    keeps_sums: ClassVar[bool] = False
    """Whether targets that add up (data.sums) do so in what is said."""

    @property
    def asks_for_numbers(self) -> bool:
        """Whether it is more than a number of each target as it comes."""
        return True

    @property
    def keeps_zero(self) -> bool:
        """Whether 0 stays 0 when targets are scaled (`model.standardize_targets`), all of them by one number then."""
        return True

    @property
    def learns_log(self) -> bool:
        """Whether log(1 + target) is learnt."""
        return False

    @abstractmethod
    def n(self, data: Data, n_targets: int) -> int:
        """How many outputs a head has for so many targets; each of them as many numbers as the loss asks for."""

    def build(self, targets: tuple[str, ...], data: Data) -> Any:
        """A module, parameters of the outputs [B, O, n] → of the targets [B, T, n]."""
        return implementation(self.module)(self, targets, data)


class Each(Outputs):
    """Of each target its own."""

    fits = (Fit("loss.locates", (True,), "keeps one number of each target from below 0", "positive"),)
    module = "pipeline.models.outputs.Each"
    kind: Literal["each"] = "each"
    positive: bool = False
    """Nothing below 0: log(1 + exp(x)) of each."""
    log: bool = False
    """Learn log(1 + target)."""

    @property
    def asks_for_numbers(self) -> bool:
        return self.positive or self.log

    @property
    def keeps_zero(self) -> bool:
        return self.positive

    @property
    def learns_log(self) -> bool:
        return self.log

    def n(self, data: Data, n_targets: int) -> int:
        return n_targets


class OfSums(Outputs):
    """One that knows which targets add up (data.sums)."""

    keeps_sums = True
    fits = (Fit("data.sums", GIVEN, "knows which targets add up", "kind"),)


class Parts(OfSums):
    """Of what is no sum its own, not below 0; of a sum that of its parts, with variances that add up."""

    module = "pipeline.models.outputs.Parts"
    fits = (Fit("loss.adds_up", (True,), "adds means and variances, and loss.kind {loss.kind} has neither"),)
    kind: Literal["parts"]

    def n(self, data: Data, n_targets: int) -> int:
        return n_targets - len(data.sums)


class Ratios(OfSums):
    """Of what is a part of nothing its own, not below 0; of each whole the shares of its parts (dead / total), which make 1."""

    module = "pipeline.models.outputs.Ratios"
    fits = (Fit("loss.learns_variance", (False,), "knows no variance of a share"),)
    kind: Literal["ratios"]

    def n(self, data: Data, n_targets: int) -> int:
        return n_targets
