"""LoRA: layers on a model, files on a disk."""

from dsctl_core.lora.formats import LoraFile, read_lora
from dsctl_core.lora.layers import add_lora, export_lora, fuse_lora, load_lora

__all__ = ["LoraFile", "add_lora", "export_lora", "fuse_lora", "load_lora", "read_lora"]
