"""Identify and load weights on disk: folders in diffusers layout, safetensors files, single files."""
