"""The block `model`: what stands between features and predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pipeline.config.encoder import Encoder, Frozen
from pipeline.config.fits import GIVEN, Fit
from pipeline.config.fuse import Concat, Fuse
from pipeline.config.head import Head, MlpHead
from pipeline.config.kinds import kind_of
from pipeline.config.outputs import Each, Outputs
from pipeline.config.section import LATER, Section


class Model(Section):
    """What stands between features and predictions."""

    fits = (
        Fit("data.columns.species", GIVEN, "learns from names", "species_embedding"),
        Fit("train.sample", ("groups",), "learns from sets of images", "pool", ("attention",)),
        Fit(
            "loss.learns_variance",
            (True,),
            "needs a variance of each image, which loss.kind {loss.kind} does not learn",
            "pool",
            ("precision",),
        ),
        Fit("data.truth", ("numbers",), "scales numbers: {data.truth_in_words} have no scale", "standardize_targets"),
        Fit("model.encoder.learns", (False,), "scales what does not learn", "standardize_features"),
        Fit("model.head.descends", (True,), "is for heads that do not scale it themselves", "standardize_features"),
    )
    encoder: Annotated[Encoder, *kind_of(Encoder)] = Frozen()
    fuse: Annotated[Fuse, LATER, *kind_of(Fuse)] = Concat()
    """Of several views of an image (backbone.views): how their embeddings become one."""
    normalize: bool = True
    """L2-normalise the (fused) embedding before the head."""
    standardize_features: bool = False
    """Scale each dimension of the (normalised) frozen embedding by the training images' mean and sd."""
    domain_embedding: bool = False
    """Add a learned embedding of the domain to the (normalised) image embedding."""
    species_embedding: bool = False
    """Add a learned embedding of the scientific name and one of its genus, by which names never seen are known."""
    text: Annotated[Encoder, LATER, *kind_of(Encoder)] = Frozen()
    """Of a head that reads texts: what turns the features of a text into an embedding."""
    head: Annotated[Head, *kind_of(Head)] = MlpHead()
    outputs: Annotated[Outputs, LATER, *kind_of(Outputs)] = Each()
    """What the head's numbers say of the targets: of each its own, of the parts of sums, of shares."""
    pool: Literal["mean", "precision", "attention"] = "mean"
    """A group's forecast from its images': their mean, weighted by 1 / variance (which a probabilistic loss learns), or by
    an attention that learns from groups (`train.sample: groups`)."""
    standardize_targets: bool = False
    """Learn targets scaled by the training groups' mean and sd; predictions come back in the targets' own units."""

    def rate_scales(self, names: Sequence[str]) -> dict[str, float]:
        """The learning rates of the model's parameters of these names, in its order, as multiples of `optim.lr`."""
        found = dict.fromkeys(names, self.head.rate_scale())
        for part, encoder in (("encoder.", self.encoder), ("text_encoder.", self.text)):
            found |= encoder.rate_scales([name for name in names if name.startswith(part)])
        return found

    @property
    def keeps_sums(self) -> bool:
        """Whether what it says of targets that add up (data.sums) does."""
        return self.head.keeps_sums or self.outputs.keeps_sums

    @property
    def tunes_towers(self) -> bool:
        """Whether anything of a tower learns, of images or of texts."""
        return self.encoder.learns or self.text.learns

    @property
    def has_hidden_layer(self) -> bool:
        """Whether anything is learnt below the head's last layer."""
        learns = self.encoder.learns or self.fuse.learns or self.domain_embedding or self.species_embedding
        return learns or not self.head.descends or bool(self.head.widths())
