"""Weights on disk: safe files, which component a file is, and loading."""
