"""The Qwen-Image-Edit family: see README.md beside this file."""
