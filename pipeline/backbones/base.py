"""What every tower offers, whatever library it comes from: transform, embedding, a cut into a frozen trunk and a trainable tail,
and a trainable copy of the whole; and what a backbone, a tower of images, offers beside that: patch tokens. Towers of texts are
in texts.py."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

from pipeline.backbones.halves import InHalves
from pipeline.backbones.one_token import token_at
from pipeline.config.backbone import LOCAL
from pipeline.config.backbone import Backbone as Block
from pipeline.errors import UserError


class Tail(nn.Module, ABC):
    """The blocks after a cut, with attention made of real linear layers: an independent trainable copy. `state_dict()` holds
    exactly the trainable tensors; what stays frozen in a tail (open_clip's projection) is a buffer."""

    blocks: nn.ModuleList
    """The last blocks, first to last: parameters of block i are named `blocks.i.…`."""
    ln_post: nn.Module
    """The final layer norm."""
    cut: int
    """Blocks of the backbone that come before this tail."""
    projections: Mapping[str, tuple[str, ...]]
    """Canonical name of a projection → its module names in this tail's blocks."""
    spelt_out: ClassVar[bool] = False
    """Whether `projections` holds paths within a block, and PEFT is given whole paths: where modules that are no projections end
    in the same names."""
    recomputes: bool = False
    """Whether a block's activations are computed again for the backward pass instead of kept."""

    @abstractmethod
    def forward(self, tokens: Float[Tensor, "inputs tokens width"]) -> Float[Tensor, "inputs embed_dim"]:
        """What the trunk gives at the cut → pooled embedding, equal to `Tower.embed` of the same inputs."""

    @abstractmethod
    def to_native(self) -> dict[str, Tensor]:
        """Copies of the tail's tensors on the CPU, under the names of the library's own state dict. Adapters must have been
        merged before: a wrapped projection has other names."""

    def module_names(self, targets: Iterable[str]) -> list[str]:
        """PEFT's `target_modules` for canonical projection names (q_proj, k_proj, v_proj, out_proj, c_fc, c_proj)."""
        wanted = list(targets)
        unknown = [name for name in wanted if name not in self.projections]
        if unknown:
            raise UserError(f"There is no projection {', '.join(unknown)}: choose from {', '.join(self.projections)}.")
        paths = [module for name in wanted for module in self.projections[name]]
        if not self.spelt_out:
            return paths
        return [f"blocks.{i}.{path}" for i in range(len(self.blocks)) for path in paths]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether activations within a block are computed again for the backward pass instead of kept: less memory, a third more
        time (Chen et al. 2016, arXiv 1604.06174)."""
        self.recomputes = enable

    def through_blocks(self, tokens: Tensor, *more: Any) -> Tensor:
        """Tokens after the last block; `more` is what each block is called with beside them."""
        for block in self.blocks:
            tokens = self._computed(block, tokens, *more)
        return tokens

    def token_after_blocks(self, tokens: Tensor, at: Int[Tensor, " inputs"], *more: Any) -> Float[Tensor, "inputs width"]:
        """Token `at` of each input after the last block: as `through_blocks` gives it, but that block computes nothing else."""
        if not self.blocks:
            return token_at(tokens, at).squeeze(1)
        *before, last = self.blocks
        for block in before:
            tokens = self._computed(block, tokens, *more)
        return self._computed(partial(self.one_token, last), tokens, at, *more).squeeze(1)

    def one_token(self, block: nn.Module, tokens: Tensor, at: Tensor, *more: Any) -> Float[Tensor, "inputs 1 width"]:
        """Token `at` of each input after a block. Blocks that can compute it alone do."""
        return token_at(block(tokens, *more), at)

    def _computed(self, block: Callable[..., Tensor], tokens: Tensor, *more: Any) -> Tensor:
        if self.recomputes and torch.is_grad_enabled():
            return checkpoint(block, tokens, *more, use_reentrant=False)
        return block(tokens, *more)


class Tower(nn.Module, ABC):
    """A frozen encoder of one kind of input: fp32 weights without gradients, always in eval mode."""

    width: int
    """Dimension of a token (D); of the embedding where the encoder has no tokens."""
    embed_dim: int
    """Dimension of the pooled embedding (E)."""
    n_blocks: int = 0
    """Transformer blocks; 0 where the encoder cannot be cut."""
    label: str = "This backbone"
    """How messages call this tower."""
    place: ClassVar[str] = "model.encoder"
    """The block of a configuration that says what is done with it."""

    @abstractmethod
    def transform_id(self) -> str:
        """Text that is the same in every process and changes whenever the preprocessing does."""

    @abstractmethod
    def example(self) -> Tensor:
        """Some input, as its `transform` makes it, in a batch of one."""

    @abstractmethod
    def embed(self, inputs: Any) -> Float[Tensor, "inputs embed_dim"]:
        """What `transform` gives of some inputs → their pooled embeddings as the library gives them, not normalised."""

    def given(self, inputs: Tensor) -> Tensor:
        """What `transform` gives of some inputs, as numbers that a store keeps exactly: what `network()` reads."""
        return inputs

    def trunk(self, inputs: Any, cut: int) -> Float[Tensor, "inputs tokens width"]:
        """All tokens after the first `cut` blocks (0: what the first block reads). Raises UserError where that cannot be."""
        raise self._uncuttable()

    def make_tail(self, cut: int) -> Tail:
        """The blocks after `cut` as a trainable copy. Raises UserError where the encoder cannot be cut there."""
        raise self._uncuttable()

    def network(self) -> Network:
        """An independent trainable copy of the whole encoder. Raises UserError where there is nothing to train."""
        return Network(self)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """As `Tail.set_grad_checkpointing`, of the whole tower, by its library's means. Raises UserError where it has none."""
        raise UserError(f"{self.label} cannot compute activations again: train it without gradient checkpointing.")

    def cut_before(self, blocks: int) -> int:
        """The cut that leaves the last `blocks` blocks to the tail. Raises UserError if there are not so many."""
        if self.n_blocks == 0:
            raise self._uncuttable()
        if not 0 <= blocks <= self.n_blocks:
            raise UserError(
                f"{self.label} has {self.n_blocks} blocks: its tail cannot hold {blocks}; set {self.place}.blocks lower."
            )
        return self.n_blocks - blocks

    def weights_hash(self) -> str:
        """sha256 over name, dtype, shape and bytes of every tensor of this tower alone, independent of their order."""
        tensors = self.state_dict()
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashlib lets go of the GIL
            lines = sorted(pool.map(_tensor_line, tensors, tensors.values()))
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def native(self) -> dict[str, Tensor]:
        """Copies of its tensors under the names of its library, whose model is all that it is made of."""
        return {name.partition(".")[2]: tensor.clone() for name, tensor in self.state_dict().items()}

    def to_native(self) -> dict[str, Tensor]:
        """Copies of its tensors on the CPU under the names that `Tail.to_native` uses: of a model of several towers, the whole
        model's."""
        return {name: tensor.cpu() for name, tensor in self.native().items()}

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode: batch norm and dropout of a frozen encoder must not follow the model around it."""
        return super().train(False)

    def freeze(self) -> Self:
        """This tower as the contract says: fp32, no gradients, eval mode."""
        return self.float().requires_grad_(False).eval()

    def projected(self, matrix: Float[Tensor, "embed_dim embed_dim"]) -> dict[str, Tensor]:
        """Tensors, named as by `to_native`, with which it gives its embedding times this matrix. Raises UserError where its last
        step is no matrix that this could be multiplied into."""
        raise UserError(f"{self.label} does not end in a matrix: another one behind it is no part of its library's model.")

    def _check_cut(self, cut: int) -> None:
        if not 0 <= cut <= self.n_blocks:
            raise UserError(f"{self.label} has {self.n_blocks} blocks: it cannot be cut after {cut}.")

    def _uncuttable(self) -> UserError:
        return UserError(f"{self.label} cannot be cut into trunk and tail: use its pooled embedding ({self.place}.kind: frozen).")


class Tapped(NamedTuple):
    """Tokens after a block."""

    prefix: Float[Tensor, "images prefix width"]
    """The class token, and registers behind it; of a network without these none."""
    patches: Float[Tensor, "images patches width"]


class Box(NamedTuple):
    """A part of an image, in fractions of its sides."""

    left: float
    top: float
    right: float
    bottom: float


class Backbone(InHalves, Tower):
    """A tower of images."""

    grid: tuple[int, int] = (0, 0)
    """Rows and columns of the patches that become tokens; (0, 0) where there are none."""
    image_size: int
    """Height in pixels of what `transform` gives."""

    @property
    def n_patches(self) -> int:
        """Patches that become tokens, of an image or a view of it."""
        return self.grid[0] * self.grid[1]

    @abstractmethod
    def transform(self, image: Image.Image) -> Tensor:
        """A PIL image of any mode and size → network input, mostly [3, H, W], fp32, on the CPU. Safe to call from threads."""

    @abstractmethod
    def embed(self, images: Float[Tensor, "images ..."]) -> Float[Tensor, "images embed_dim"]:
        """What `transform` gives of some images → their pooled embeddings as the library gives them, not normalised."""

    def example(self) -> Tensor:
        return self.transform(Image.new("RGB", (64, 64))).unsqueeze(0)

    def network(self, size: int | None = None) -> Network:
        """An independent trainable copy of the whole encoder, for images of `size` pixels if not of those that `transform` gives.
        Raises UserError where there is nothing to train."""
        network = Network(self)
        cast(Backbone, network.backbone).fix_size(size or self.image_size)
        return network

    def fix_size(self, size: int) -> None:
        """Bring positions to images of `size` pixels, which then are what is learnt: a library would do it in every step, by a
        bicubic resampling whose gradient is not deterministic on a GPU."""

    def grid_at(self, size: int) -> tuple[int, int]:
        """`grid` for images of another size than `image_size`. Raises UserError where it cannot read them."""
        if size != self.image_size:
            raise UserError(f"{self.label} reads images of {self.image_size} pixels alone: set backbone.views.sizes to [].")
        return self.grid

    def patches(self, images: Float[Tensor, "images 3 h w"]) -> Float[Tensor, "images patches width"]:
        """Patch tokens after the last block and the final layer norm, no class token. Raises UserError where there are none."""
        raise UserError(f"{self.label} has no patch tokens: use an encoder on its pooled embedding (model.encoder.kind: frozen).")

    def tapped(self, images: Float[Tensor, "images 3 h w"], taps: Sequence[int]) -> list[Tapped]:
        """Tokens after each of these blocks (from 0), behind the final layer norm. Raises UserError where there are none."""
        raise UserError(f"{self.label} has no tokens to be pooled: set backbone.taps and backbone.poolings to [].")

    def tap_of(self, place: int) -> int:
        """A block counted from 0, of one that may be counted from the end. Raises UserError for one that there is not."""
        n = self.n_taps
        if not -n <= place < n:
            raise UserError(f"{self.label} has {n} blocks: backbone.taps are from 0 to {n - 1}, or from -1 to -{n}, not {place}.")
        return place % n

    @property
    def n_taps(self) -> int:
        """How many blocks there are after which tokens can be pooled."""
        return self.n_blocks

    def seen(self, given: Float[Tensor, ...]) -> list[Float[Tensor, "channels h w"]]:
        """What `transform` has given of an image as the pictures that it is made of."""
        return [given]

    def shown(self, size: tuple[int, int]) -> list[Box]:
        """What each of these shows of an image so many pixels wide and high; beyond 0 and 1 where a border is added to it. Found
        by trying, on an image whose colours are its coordinates: libraries crop and squash in ways of their own."""
        black, white = (self.transform(Image.new("RGB", size, colour)) for colour in ("black", "white"))
        read = (self.transform(_coordinates(size)) - black) / (white - black)
        (left, right), (top, bottom) = _ends(read[0, read.shape[1] // 2]), _ends(read[1, :, read.shape[2] // 2])
        return [Box(left, top, right, bottom)]

    def write_spec(self, block: Block, folder: Path, name: str) -> dict[str, Any]:
        """What a submission makes it again from, beside its tensors: the values of its block and more; what its library builds it
        from is written to `folder` under `name`. Raises UserError where a submission has no code for it."""
        raise UserError(f"{self.label} is of a kind that a submission has no code for: export another trial.")


def _coordinates(size: tuple[int, int]) -> Image.Image:
    """An image whose red says how far to the right a pixel is, its green how far below."""
    x, y = ((np.arange(n) + 0.5) / n * 255 for n in size)
    across, down = np.broadcast_arrays(x[None, :], y[:, None])
    return Image.fromarray(np.stack([across, down, np.zeros_like(across)], 2).round().astype("uint8"))


def _ends(read: Float[Tensor, " pixels"]) -> tuple[float, float]:
    """Where a line of coordinates begins and ends, by its middle half: a border has none."""
    n = len(read)
    within = torch.arange(n // 4, n - n // 4)
    centres, values = within.double() + 0.5 - n / 2, read[within].double()
    half, middle = float((centres * values).sum() / centres.square().sum()) * n / 2, float(values.mean())
    return middle - half, middle + half


def _made_of(tower: Tower) -> Iterator[nn.Module]:
    """The modules of a tower, and of the towers within it (`backbone.poolings`)."""
    for part in tower.children():
        yield from _made_of(part) if isinstance(part, Tower) else (part,)


class Network(nn.Module):
    """A trainable copy of a whole tower: inputs → embeddings, as `Tower.embed` gives them. Unlike a tower it trains in earnest:
    batch norm takes its statistics from the batch, dropout drops."""

    backbone: Tower

    def __init__(self, backbone: Tower) -> None:
        super().__init__()
        self.backbone = deepcopy(backbone).cpu().requires_grad_(True)
        self.train()
        for parameter in self._unreached():
            parameter.requires_grad_(False)

    def forward(self, images: Float[Tensor, "images ..."]) -> Float[Tensor, "images embed_dim"]:
        """A batch of one image has no statistics of its own: batch norm then reads the running ones, as in evaluation."""
        alone = len(images) == 1
        norms = [module for module in self.modules() if alone and isinstance(module, _NormBase) and module.training]
        for norm in norms:
            norm.eval()
        # Convolutions are faster with the channels last (a resnet10t in bf16 on a CPU by a fifth); what is computed is the same.
        embedding = self.backbone.embed(images.contiguous(memory_format=torch.channels_last))
        for norm in norms:
            norm.train()
        return embedding

    def train(self, mode: bool = True) -> Self:
        """A backbone stays in eval mode whatever it is told; what it is made of does not."""
        super().train(mode)
        for part in _made_of(self.backbone):
            part.train(mode)
        return self

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """As `Tail.set_grad_checkpointing`. Raises UserError where the tower's library has no means for it."""
        self.backbone.set_grad_checkpointing(enable)

    def to_native(self) -> dict[str, Tensor]:
        """As `Tail.to_native`."""
        return self.backbone.to_native()

    def _unreached(self) -> list[nn.Parameter]:
        """Parameters that the embedding does not depend on (DINOv2's mask token): they cannot learn, and stay as they are."""
        parameters = list(self.parameters())
        self.eval()
        with torch.enable_grad():
            total = self.backbone.embed(self.backbone.example()).sum()
            gradients = torch.autograd.grad(total, parameters, allow_unused=True)
        self.train()
        return [one for one, gradient in zip(parameters, gradients, strict=True) if gradient is None]


def checked_folder(name: str, files: Iterable[str], library: str) -> Path:
    """The folder of a model that a library has saved. Raises UserError where it is not there, or one of its `files` is not."""
    folder = Path(name.removeprefix(LOCAL)).expanduser()
    if not folder.is_dir():
        raise UserError(f"The folder of backbone.name {name} does not exist.")
    for needed in files:
        if not (folder / needed).is_file():
            raise UserError(f"The folder of backbone.name {name} has no {needed}: it is not a model saved by {library}.")
    return folder


def recompute_in_transformers(model: Any, enable: bool) -> None:
    """Gradient checkpointing of a model of transformers, which renamed it."""
    does = "enable" if enable else "disable"
    switch = getattr(model, f"activation_checkpointing_{does}", None) or getattr(model, f"gradient_checkpointing_{does}")
    switch(*([{"use_reentrant": False}] * enable))


def refuse_code(name: str, error: Exception) -> None:
    """Raise UserError, in words that help, where a model was not loaded because that would run code which came with it."""
    if "trust_remote_code" in str(error):
        raise UserError(
            f"backbone.name {name}: it asks for code of its own (auto_map in a config), and Carabid runs no code that comes with "
            "a model. Name a model of a class that the libraries know, or make it a backbone of your own (docs/adding.md)."
        ) from error


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run a block with torch's CPU generator seeded, and put the generator back as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _tensor_line(name: str, tensor: Tensor) -> str:
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return f"{name} {tensor.dtype} {tuple(tensor.shape)} {hashlib.sha256(data.data).hexdigest()}"
