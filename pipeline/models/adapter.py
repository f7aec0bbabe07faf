"""Low-rank adapters on a tail through PEFT, in PEFT's own format on disk.

The tail's attention is made of real projections (see backbones/base.py): on open_clip's `nn.MultiheadAttention` PEFT
would find `out_proj` only, and the fused call would bypass even that.
"""

import json
from pathlib import Path

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from pipeline.backbones.base import Tail
from pipeline.config import encoder as cfg
from pipeline.disk.writing import atomic_folder, write_json, writing
from pipeline.models.adapted import AdaptedLinear


def add_adapter(tail: Tail, lora: cfg.Lora) -> PeftModel:
    """Wrap a tail: adapters on the named projections of every block and the final layer norm learn, the rest is frozen."""
    sizes = {"r": lora.r, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout}
    kinds = {"use_rslora": lora.rslora, "use_dora": lora.dora, "bias": "none"}
    targets = tail.module_names(lora.targets)
    config = LoraConfig(**sizes, **kinds, target_modules=targets, modules_to_save=["ln_post"])
    model = get_peft_model(tail, _with_own_layers(config))
    assert isinstance(model, PeftModel)
    return model


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors; `folder` is replaced as a whole."""
    with atomic_folder(folder, replace=True) as temporary:
        with writing(folder):
            model.save_pretrained(temporary, save_embedding_layers=False)
        # PEFT writes target_modules in the order of a set, another one in each process: equal runs would give unequal files
        content = json.loads((temporary / "adapter_config.json").read_text())
        write_json(temporary / "adapter_config.json", content | {"target_modules": sorted(content["target_modules"])})


def load_adapter(tail: Tail, folder: Path) -> PeftModel:
    """Put a saved adapter, which can learn on, on an unadapted tail of the same cut."""
    config = _with_own_layers(LoraConfig.from_pretrained(folder))
    return PeftModel.from_pretrained(tail, folder, is_trainable=True, config=config)


def _with_own_layers(config: LoraConfig) -> LoraConfig:
    """PEFT's own hook for other layers than its own; no part of what it writes."""
    config._register_custom_module({nn.Linear: AdaptedLinear})
    return config
