"""What every backbone offers, whatever library it comes from: transform, embedding, patch tokens, a cut into a frozen
trunk and a trainable tail, and a trainable copy of the whole."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

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

    @abstractmethod
    def forward(self, tokens: Float[Tensor, "images tokens width"]) -> Float[Tensor, "images embed_dim"]:
        """Tokens after block `cut` → pooled embedding, equal to `Backbone.embed` of the same images."""

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
        return [module for name in wanted for module in self.projections[name]]


class Backbone(nn.Module, ABC):
    """A frozen image encoder: fp32 weights without gradients, always in eval mode."""

    width: int
    """Dimension of a token (D); of the embedding where the encoder has no tokens."""
    embed_dim: int
    """Dimension of the pooled embedding (E)."""
    n_blocks: int = 0
    """Transformer blocks; 0 where the encoder cannot be cut."""
    grid: tuple[int, int] = (0, 0)
    """Rows and columns of the patch tokens; (0, 0) where there are none."""
    image_size: int
    """Height in pixels of what `transform` gives."""
    label: str = "This backbone"
    """How messages call this backbone."""

    @abstractmethod
    def transform(self, image: Image.Image) -> Tensor:
        """A PIL image of any mode and size → network input, mostly [3, H, W], fp32, on the CPU. Safe to call from threads."""

    @abstractmethod
    def transform_id(self) -> str:
        """Text that is the same in every process and changes whenever the preprocessing does."""

    @abstractmethod
    def embed(self, images: Float[Tensor, "images ..."]) -> Float[Tensor, "images embed_dim"]:
        """What `transform` gives of some images → their pooled embeddings as the library gives them, not normalised."""

    def patches(self, images: Float[Tensor, "images 3 h w"]) -> Float[Tensor, "images patches width"]:
        """Patch tokens after the last block and the final layer norm, no class token. Raises UserError where there are none."""
        raise UserError(f"{self.label} has no patch tokens: use an encoder on its pooled embedding (model.encoder.kind: frozen).")

    def trunk(self, images: Float[Tensor, "images 3 h w"], cut: int) -> Float[Tensor, "images tokens width"]:
        """All tokens after the first `cut` blocks (0: what the first block reads). Raises UserError where that cannot be."""
        raise self._uncuttable()

    def make_tail(self, cut: int) -> Tail:
        """The blocks after `cut` as a trainable copy. Raises UserError where the encoder cannot be cut there."""
        raise self._uncuttable()

    def network(self) -> Network:
        """An independent trainable copy of the whole encoder. Raises UserError where there is nothing to train from images."""
        return Network(self)

    def cut_before(self, blocks: int) -> int:
        """The cut that leaves the last `blocks` blocks to the tail. Raises UserError if there are not so many."""
        if self.n_blocks == 0:
            raise self._uncuttable()
        if not 0 <= blocks <= self.n_blocks:
            raise UserError(
                f"{self.label} has {self.n_blocks} blocks: its tail cannot hold {blocks}; set model.encoder.blocks lower."
            )
        return self.n_blocks - blocks

    def weights_hash(self) -> str:
        """sha256 over name, dtype, shape and bytes of every tensor of the image encoder, independent of their order."""
        tensors = self.state_dict()
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashlib lets go of the GIL
            lines = sorted(pool.map(_tensor_line, tensors, tensors.values()))
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def native(self) -> dict[str, Tensor]:
        """Copies of its tensors under the names of its library, whose model is all that it is made of."""
        return {name.partition(".")[2]: tensor.clone() for name, tensor in self.state_dict().items()}

    def write_spec(self, block: Block, folder: Path, name: str) -> dict[str, Any]:
        """What a submission makes it again from, beside its tensors: the values of its block and more; what its library builds it
        from is written to `folder` under `name`. Raises UserError where a submission has no code for it."""
        raise UserError(f"{self.label} is of a kind that a submission has no code for: export another trial.")

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode: batch norm and dropout of a frozen encoder must not follow the model around it."""
        return super().train(False)

    def freeze(self) -> Self:
        """This backbone as the contract says: fp32, no gradients, eval mode."""
        return self.float().requires_grad_(False).eval()

    def _check_cut(self, cut: int) -> None:
        if not 0 <= cut <= self.n_blocks:
            raise UserError(f"{self.label} has {self.n_blocks} blocks: it cannot be cut after {cut}.")

    def _uncuttable(self) -> UserError:
        return UserError(
            f"{self.label} cannot be cut into trunk and tail: use its pooled embedding (model.encoder.kind: frozen)."
        )


class Network(nn.Module):
    """A trainable copy of a whole backbone: images → embeddings, as `Backbone.embed` gives them. Unlike a backbone it trains in
    earnest: batch norm takes its statistics from the batch, dropout drops."""

    def __init__(self, backbone: Backbone) -> None:
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
        for part in self.backbone.children():
            part.train(mode)
        return self

    def _unreached(self) -> list[nn.Parameter]:
        """Parameters that the embedding does not depend on (DINOv2's mask token): they cannot learn, and stay as they are."""
        parameters, image = list(self.parameters()), self.backbone.transform(Image.new("RGB", (64, 64)))
        self.eval()
        with torch.enable_grad():
            total = self.backbone.embed(image.unsqueeze(0)).sum()
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
