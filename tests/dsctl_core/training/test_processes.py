"""Several processes train together and speak with one voice."""

import json
import os
import subprocess


def test_two_processes_train_one_lora_and_report_once(python, tiny_folder, dataset_folder, repository, tmp_path):
    launch = [python, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    flags = ["--model", str(tiny_folder), "--dataset-base-path", str(dataset_folder), "--lora-rank", "2"]
    flags += ["--max-steps", "3", "--device", "cpu", "--output-path", str(tmp_path / "out"), "--json"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(repository)}
    command = [*launch, "-m", "dsctl", "train", "sft", *flags]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 3
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert json.loads((tmp_path / "out" / "run.json").read_text())["hardware"]["processes"] == 2
    assert (tmp_path / "out" / "step-3.safetensors").is_file()


def test_two_processes_share_a_cache_and_report_once(python, tiny_folder, dataset_folder, repository, tmp_path):
    alone = [python, "-m"]
    launch = [*alone, "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(repository)}
    told = []
    for number, start in enumerate((launch, alone)):
        flags = ["--model", str(tiny_folder), "--dataset-base-path", str(dataset_folder), "--device", "cpu", "--json"]
        command = [*start, "dsctl", "cache", *flags, "--output-path", str(tmp_path / f"{number}")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
        assert done.returncode == 0, done.stderr
        told.append(json.loads(done.stdout))
    assert [each["encoded"] for each in told] == [8, 8]
    first, second = ({p.name: p.read_bytes() for p in (tmp_path / n).rglob("*") if p.is_file()} for n in "01")
    assert first == second
