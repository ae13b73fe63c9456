"""The training script of the guide runs as it is written, through accelerate's launcher."""

import json
import os
import subprocess


def test_the_simple_script_trains_through_accelerate_launch(python, repository, tmp_path):
    script = repository / "examples" / "simple_training" / "train.py"
    launch = [python, "-m", "accelerate.commands.launch", "--num_processes", "1", "--cpu", str(script)]
    environment = {**os.environ, "PYTHONPATH": str(repository), "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run([*launch, str(tmp_path / "out")], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    rows = (repository / "dsctl_core/assets/datasets/robot/metadata.csv").read_text().strip().splitlines()[1:]
    assert len(lines) == len(rows) > 10
    assert (tmp_path / "out" / f"step-{len(rows)}.safetensors").is_file()
