"""Watching a run: sample pictures, validation losses, trackers, and pages about them."""
