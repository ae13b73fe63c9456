"""Trains both denoisers of a Dawn, in as many processes as there are: `MODEL DATA OUT`."""

import sys
from pathlib import Path

from dsctl_core.commands.train import train
from dsctl_core.options import TrainOptions
from tests.families_fixture.tiny import added_families

with added_families():
    model, data, out = map(Path, sys.argv[1:])
    train(
        TrainOptions(
            model=str(model),
            dataset_base_path=data,
            data_file_keys=("video",),
            num_frames=5,
            dataset_repeat=4,
            lora_base_model="dit,dit_2",
            lora_rank=2,
            learning_rate=1e-2,
            max_steps=6,
            seed=3,
            device="cpu",
            output_path=out,
        )
    )
