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


def test_a_run_goes_on_with_another_number_of_processes_and_its_numbers(
    python, tiny_folder, dataset_folder, repository, tmp_path
):
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(repository)}
    flags = ["--model", str(tiny_folder), "--dataset-base-path", str(dataset_folder), "--lora-rank", "2", "--no-cache"]
    flags += ["--device", "cpu", "--mixed-precision", "no", "--resume", "auto"]
    told = []
    for name, processes, steps in (
        ("straight", 1, 6),
        ("moving", 2, 2),
        ("moving", 1, 4),
        ("moving", 2, 6),
    ):
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"] if processes == 2 else []
        # The same command but for the processes: `straight` has the samples of a step from the beginning.
        own = ["--gradient-accumulation-steps", "2"] if name == "straight" else []
        output = ["--max-steps", str(steps), "--output-path", str(tmp_path / name)]
        command = [python, *launch, "-m", "dsctl", "train", "sft", *flags, *own, *output]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        told.append(done.stderr + done.stdout)
    again = "A step takes 2 batches of each in place of 1"
    assert [again in each for each in told] == [False, False, True, False]
    found = {
        name: [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("straight", "moving")
    }
    assert [line["step"] for line in found["moving"]] == [1, 2, 3, 4, 5, 6]
    for one, other in zip(found["straight"], found["moving"], strict=True):
        for field in ("loss", "grad_norm"):
            assert abs(one[field] - other[field]) <= 1e-5 * abs(one[field])
