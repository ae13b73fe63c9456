"""Train, load, convert and merge LoRAs: layers on a model, and LoRA files."""

from dsctl_core.lora.files import read_lora
from dsctl_core.lora.formats import FORMATS, LoraFile, LoraLayer
from dsctl_core.lora.layers import add_lora, export_lora, fuse_lora, load_lora, trained_layers
from dsctl_core.lora.save import save_lora

__all__ = [
    "FORMATS",
    "LoraFile",
    "LoraLayer",
    "add_lora",
    "export_lora",
    "fuse_lora",
    "load_lora",
    "read_lora",
    "save_lora",
    "trained_layers",
]
