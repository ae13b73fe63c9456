"""The Qwen-Image family: see README.md beside this file."""
