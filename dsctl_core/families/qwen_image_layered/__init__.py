"""The Qwen-Image-Layered family: see README.md beside this file."""
