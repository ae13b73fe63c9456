"""The tiny random model and the pictures that trainings are tested with, for commands that look at what these leave."""

from tests.dsctl_core.training.conftest import dataset_folder, load_pipe, tiny_folder

__all__ = ["dataset_folder", "load_pipe", "tiny_folder"]
