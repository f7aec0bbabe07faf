"""Small models of every family of open_clip's that has two towers, made from the real architectures' own configurations: all that
makes a family what it is stays (pooling, masks, norms, biases, activations), only widths, depths and sizes are small."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from safetensors.torch import save_file
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer, _create_vision_transformer
from timm.models.vitamin import GeGluMlp, VitCfg, VitConvCfg, _create_vitamin
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import BertConfig, PreTrainedTokenizerFast, XLMRobertaConfig

from pipeline.backbones.open_clip import text_tower
from pipeline.backbones.open_clip_image import OpenClipBackbone
from pipeline.backbones.open_clip_tokens import Tokens
from pipeline.backbones.texts import Towers
from pipeline.disk.writing import write_json
from tests.test_backbones import CUSTOM, randomised

FAMILIES = {
    "ViT-B-32": "ViT-B-32",
    "bioclip-2": "ViT-L-14",
    "SigLIP": "ViT-B-16-SigLIP",
    "SigLIP2": "ViT-B-16-SigLIP2",
    "ViTamin": "ViTamin-S",
}
"""The models of which image and text tails must be exact, and their architectures."""
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "photo", "of", "beetle", "carabus", "pterostichus", "melanarius", "niger")
LENGTH, VOCABULARY, SIDE = 12, 40, 32
VISION = {"image_size": SIDE, "layers": 3, "width": 32, "head_width": 8, "patch_size": 8}
TEXT = {"context_length": LENGTH, "vocab_size": VOCABULARY, "width": 16, "heads": 2, "layers": 3}


# ---------------------------------------------------------------- small architectures of timm
@register_model
def small_siglip(pretrained: bool = False, **options: Any) -> VisionTransformer:
    shape = {"img_size": SIDE, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
    kind = {"class_token": False, "global_pool": "map"}  # as timm's vit_base_patch16_siglip_224
    return _create_vision_transformer("small_siglip", pretrained, **{**shape, **kind, **options})


@register_model
def small_vitamin(pretrained: bool = False, **options: Any) -> VisionTransformer:
    stem = VitCfg((8, 16, 32), (1, 1, 1), 8, VitConvCfg(norm_layer="layernorm2d", norm_eps=1e-6), "1d")
    shape = {"img_size": 64, "embed_dim": 32, "depth": 3, "num_heads": 2, "mlp_layer": GeGluMlp, "mlp_ratio": 2.0}
    kind = {"class_token": False, "global_pool": "avg", "embed_cfg": stem}  # as timm's vitamin_small_224
    return _create_vitamin("small_vitamin", pretrained, **{**shape, **kind, **options})


def shrunk(architecture: str) -> dict[str, Any]:
    """The configuration of a real architecture, small."""
    config = open_clip.get_model_config(architecture)
    vision, text = config["vision_cfg"], config["text_cfg"]
    if "timm_model_name" in vision:
        small = "small_vitamin" if "vitamin" in vision["timm_model_name"] else "small_siglip"
        vision |= {"timm_model_name": small, "image_size": 64 if small == "small_vitamin" else SIDE}
    else:
        vision |= VISION
    if "multimodal_cfg" in config:
        config["multimodal_cfg"] |= TEXT
    return config | {"embed_dim": 32, "vision_cfg": vision, "text_cfg": text | TEXT}


def hugging_face(folder: Path, kind: str = "bert", **text: Any) -> dict[str, Any]:
    """A model with a text tower of Hugging Face that is described in `folder`."""
    shape: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    shape |= {"vocab_size": VOCABULARY, "max_position_embeddings": 20}
    described = BertConfig(**shape, pad_token_id=0) if kind == "bert" else XLMRobertaConfig(**shape, pad_token_id=1)
    described.save_pretrained(folder)
    name = {"hf_model_name": str(folder), "hf_tokenizer_name": str(folder), "context_length": LENGTH}
    options = {"hf_proj_type": "linear", "hf_pooler_type": "mean_pooler"}
    return {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": {**name, **options, **text}}


def small_kinds(folder: Path) -> dict[str, dict[str, Any]]:
    """Configurations of all kinds of towers that can be cut: the families, more of texts, more of images."""
    plain = shrunk("ViT-B-32")
    custom = {**plain, "text_cfg": plain["text_cfg"] | CUSTOM}
    eos = {**plain, "text_cfg": plain["text_cfg"] | {"pool_type": "eos", "eos_id": 7}}
    first = {**plain, "text_cfg": plain["text_cfg"] | {"pool_type": "first", "no_causal_mask": True}}
    kinds = {name: shrunk(architecture) for name, architecture in FAMILIES.items()}
    kinds |= {"custom blocks": custom, "eos": eos, "first": first, "QuickGELU": {**plain, "quick_gelu": True}}
    kinds |= {"CLIPA": shrunk("ViT-L-14-CLIPA"), "CoCa": shrunk("coca_ViT-B-32")}
    for name, network, head in (("attention", "test_vit3", "mlp"), ("average", "test_vit2", "linear")):
        vision = {"timm_model_name": network, "image_size": 160, "timm_pool": "", "timm_proj": head, "timm_proj_bias": True}
        kinds[f"timm with registers, {name}"] = {**plain, "vision_cfg": vision}
    kinds["BERT"] = hugging_face(folder / "bert")
    kinds["BERT with pooler"] = hugging_face(folder / "pooler", hf_pooler_type="cls_pooler", hf_proj_type="mlp")
    kinds["XLM-R"] = hugging_face(folder / "xlm", "xlm", hf_pooler_type="cls_last_hidden_state_pooler")
    return kinds


# ---------------------------------------------------------------- models and towers
def build(config: dict[str, Any]) -> Any:
    """open_clip's own model, in eval mode."""
    values = {name: value for name, value in config.items() if name != "custom_text"}
    kind = (
        open_clip.CoCa if "multimodal_cfg" in values else open_clip.CustomTextCLIP if "custom_text" in config else open_clip.CLIP
    )
    if "hf_model_name" in values["text_cfg"]:
        kind, values["text_cfg"] = open_clip.CustomTextCLIP, values["text_cfg"] | {"hf_model_pretrained": False}
    return kind(**values).eval()


def make_model(config: dict[str, Any]) -> Any:
    """The same with every tensor random."""
    return randomised(build(config))


class Words:
    """A tokenizer that is not needed: ids are fed as they are."""

    context_length = LENGTH

    def __call__(self, texts: list[str]) -> Tensor:
        return ids()[: len(texts)]


def make_towers(config: dict[str, Any]) -> tuple[Any, Towers]:
    """A model, and the towers of an equal one."""
    return make_model(config), towers_of(make_model(config))


def towers_of(model: Any) -> Towers:
    """A model's towers, for token ids."""
    preprocess = image_transform_v2(PreprocessCfg(size=model.visual.image_size), is_train=False)
    image = OpenClipBackbone(model.visual, preprocess, "the test tower").freeze()
    text = text_tower(model, Tokens(Words()), "the test's text tower", image.embed_dim).freeze()
    return Towers(image, text, 0.0, None)


def encoded(model: Any, inputs: Tensor) -> Tensor:
    """What plain open_clip makes of images or of token ids, not normalised."""
    encode = model.encode_image if inputs.ndim == 4 else model.encode_text
    return encode(inputs, normalize=False)


def ids(n: int = 5, seed: int = 0) -> Tensor:
    """Token ids of some texts: begin, words, the end (7, for towers that look for it; and the highest number), padding."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(8, VOCABULARY - 1, (n, LENGTH), generator=generator)
    ends = torch.randint(3, LENGTH - 1, (n,), generator=generator)
    at = torch.arange(LENGTH)
    words[:, 0] = 2
    words[at == ends[:, None] - 1] = VOCABULARY - 1
    words[at == ends[:, None]] = 7
    return words.masked_fill(at > ends[:, None], 0)


def images(model: nn.Module, n: int = 3) -> Tensor:
    size = model.visual.image_size  # type: ignore[union-attr]
    height, width = (size, size) if isinstance(size, int) else size
    return torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(1))


# ---------------------------------------------------------------- on disk
def write_tokenizer(folder: Path, words: tuple[str, ...] = WORDS) -> None:
    """A tokenizer of whole words in a folder, as Hugging Face writes one."""
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


def write_model(folder: Path, config: dict[str, Any]) -> str:
    """A random model with its tokenizer in a folder of the Hub's layout; returns its name for open_clip."""
    folder.mkdir(exist_ok=True)
    if "hf_tokenizer_name" in config["text_cfg"]:
        write_tokenizer(folder)
    state = make_model(config).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "open_clip_model.safetensors")
    write_json(folder / "open_clip_config.json", {"model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}})
    return f"local-dir:{folder}"
