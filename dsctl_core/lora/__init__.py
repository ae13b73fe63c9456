"""Train, load, convert and merge LoRAs, LoKrs and LoHas: layers on a model, and their files."""

from dsctl_core.lora.files import read_lora
from dsctl_core.lora.formats import FORMATS, LoraFile
from dsctl_core.lora.layer import LoraLayer
from dsctl_core.lora.layers import add_lora, export_lora, fuse_lora, load_lora, trained_layers
from dsctl_core.lora.lycoris import LohaLayer, LokrLayer
from dsctl_core.lora.save import save_lora

__all__ = [
    "FORMATS",
    "LoraFile",
    "LohaLayer",
    "LokrLayer",
    "LoraLayer",
    "add_lora",
    "export_lora",
    "fuse_lora",
    "load_lora",
    "read_lora",
    "save_lora",
    "trained_layers",
]
