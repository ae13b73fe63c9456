"""The page about runs: everything is in it, nothing in it is taken for HTML, and unfinished runs have one too."""

import base64
import json
import math
import os
import re
import time
from io import BytesIO

import pandas as pd
import pytest
from PIL import Image

from dsctl_core.commands.report import report
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.files.png import write_png
from dsctl_core.options import ReportOptions
from dsctl_core.report.live.runs import Watched
from dsctl_core.report.runs import read_metrics
from tests.dsctl_core.report.html_page import NASTY, Page

NASTY_LOSS = f"loss.{NASTY}"


def line(step, **values):
    given = {"loss": 1 / step, "lr": 1e-4, "grad_norm": 0.5, "seconds": 60.0, "samples_per_second": 2.0}
    return {"step": step, **given, "peak_memory_bytes": 2_000_000_000, **values}


def write_run(folder, steps=20, prompts=("a cat",), **options):
    (folder / "samples").mkdir(parents=True)
    lines = [line(step) for step in range(1, steps + 1)] + [
        {"step": s, "validation_loss": 0.5 - s / 100} for s in (0, 10)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    about = {
        "options": {"model": "tiny", "task": "sft", "max_steps": 20, "lora_rank": 8, **options},
        "versions": {"dsctl": "0.1.0"},
        "hardware": {"device": "Some GPU", "processes": 2},
        "parameters": {"trained": 1234567},
        "preset": "tiny",
        "started": "2026-01-01T00:00:00+0000",
    }
    (folder / "run.json").write_text(json.dumps(about))
    for number, prompt in enumerate(prompts, 1):
        for step in (0, 10, 20):
            told = {"prompt": prompt, "seed": number, "width": 600, "height": 300}
            told["cfg_scale"] = 4.0 if number == 1 else [4.0, 3.0]  # of one denoiser, or one of each of two
            picture = Image.new("RGB", (600, 300), (step * 10, 0, 0))
            write_png(folder / "samples" / f"step-{step}-{number}.png", picture, told)
    (folder / "step-20.safetensors").touch()
    return folder


def write_report(folders, output=None):
    return report(ReportOptions(runs=tuple(folders), output=output)).report


def page(*folders, output=None):
    return Page(write_report(list(folders), output).read_text())


def test_a_page_has_curves_samples_options_hardware_and_versions(tmp_path):
    found = page(write_run(tmp_path / "run", prompts=("a cat", "a dog")))
    for said in ("Loss", "Validation loss", "Learning rate", "Gradient norm", "Samples a second", "Peak memory, GB"):
        assert said in found.text
    for said in (
        "--lora-rank",
        "Some GPU",
        "1,234,567",
        "0.1.0",
        "a dog",
        "seed 2",
        "20:00",
        "step 10",
        "2 GB",
        "cfg 4, 3",
    ):
        assert said in found.text
    assert "cfg 4, 3" in found.text
    assert found.tags.count("svg") == 6
    assert found.tags.count("img") == 6
    assert found.open == []


def test_a_page_needs_nothing_beside_it_and_runs_no_script(tmp_path):
    found = page(write_run(tmp_path / "run"))
    assert all(source.startswith("data:image/jpeg;base64,") for source in found.sources)
    assert "script" not in found.tags
    picture = Image.open(BytesIO(base64.b64decode(found.sources[0].partition(",")[2])))
    assert picture.size == (224, 112)


def test_nothing_of_a_run_is_taken_for_html(tmp_path):
    folder = write_run(tmp_path / "a<u>b", prompts=(NASTY,), sample_prompt=[NASTY], model=NASTY)
    found = page(folder, write_run(tmp_path / "other"))
    assert not {"script", "u"} & set(found.tags)
    assert found.text.count(NASTY) >= 3
    assert "a<u>b" in found.words
    assert found.open == []


@pytest.mark.parametrize("left", ["run.json", "metrics.jsonl", "samples"])
def test_a_run_that_has_only_begun_or_failed_has_a_page(tmp_path, left):
    import shutil

    folder = write_run(tmp_path / "run")
    for path in list(folder.iterdir()):
        if path.name != left:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    found = page(folder)
    assert ("There is no run.json" in found.text) == (left != "run.json")
    assert ("No step is recorded yet" in found.text) == (left != "metrics.jsonl")
    assert ("img" in found.tags) == (left == "samples")


def test_a_line_that_is_cut_off_and_a_loss_that_is_no_number_are_passed_over(tmp_path):
    folder = write_run(tmp_path / "run")
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 21, "loss": NaN}\n{"step": 22, "lo')
    (folder / "samples" / "step-30-1.png").write_bytes(b"cut")
    found = page(folder)
    assert "21" in found.words
    assert "nan" not in found.text.lower().split()


def test_of_two_lines_of_one_step_the_later_counts(tmp_path):
    folder = write_run(tmp_path / "run", steps=1)
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps(line(1, loss=0.123)) + "\n")
    assert "0.123" in page(folder).words


def test_several_runs_are_compared_curve_by_curve_and_option_by_option(tmp_path):
    folders = [write_run(tmp_path / name, learning_rate=rate, seed=0) for name, rate in (("a", 1e-3), ("b", 1e-4))]
    html = write_report(folders, tmp_path / "both.html").read_text()
    differ = html.partition("Options that differ")[2].partition("<h2>")[0]
    assert "--learning-rate" in differ and "0.001" in differ and "0.0001" in differ
    assert "--seed" not in differ and "--lora-rank" not in differ
    assert len(re.findall('<polyline class="main" stroke="var\\(--c1\\)"', html)) == 6
    assert Page(html).open == []


def test_runs_of_the_same_name_are_told_apart_by_their_folders(tmp_path):
    found = page(write_run(tmp_path / "x" / "run"), write_run(tmp_path / "y" / "run"))
    assert str(tmp_path / "y" / "run") in found.words


def test_many_samples_are_thinned_to_the_first_the_last_and_some_between(tmp_path):
    folder = write_run(tmp_path / "run", prompts=())
    for step in range(0, 1000, 20):
        write_png(folder / "samples" / f"step-{step}-1.png", Image.new("RGB", (8, 8)), {"prompt": "x"})
    found = page(folder)
    assert found.tags.count("img") == 10
    assert {"step 0", "step 980"} <= set(found.words)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.write_text("x"), "is a file"),
        (lambda path: path.mkdir(), "holds no run"),
    ],
)
def test_a_folder_without_a_run_is_refused(tmp_path, make, message):
    make(tmp_path / "out")
    with pytest.raises(DsctlError, match=message) as caught:
        write_report([tmp_path / "out"])
    assert caught.value.hint


def test_a_run_that_is_named_twice_and_an_output_that_is_a_folder_are_refused(tmp_path):
    folder = write_run(tmp_path / "run")
    with pytest.raises(DsctlError, match="is given twice"):
        write_report([folder, folder / ".." / "run"])
    with pytest.raises(DsctlError, match="is a folder"):
        write_report([folder], tmp_path)


@pytest.mark.parametrize("name", ["step-20.safetensors", "run.json", "metrics.csv", "page"])
def test_a_page_replaces_nothing_that_is_no_page(tmp_path, name):
    folder = write_run(tmp_path / "run")
    (folder / name).write_text("precious")
    with pytest.raises(UsageError, match="does not end in .html"):
        write_report([folder], folder / name)
    assert (folder / name).read_text() == "precious"


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("step-20.safetensors", UsageError, "does not end in .csv or .parquet"),
        ("run.json", UsageError, "does not end in .csv or .parquet"),
        ("metrics.csv", DsctlError, "which alone is replaced"),  # what --track csv writes
        ("other.parquet", DsctlError, "which alone is replaced"),
    ],
)
def test_a_table_replaces_nothing_but_a_table_that_report_wrote(tmp_path, name, error, message):
    folder = write_run(tmp_path / "run")
    precious = "step,loss\n1,0.5\n"
    (folder / name).write_text(precious)
    with pytest.raises(error, match=message) as caught:
        report(ReportOptions(runs=(folder,), csv=folder / name))
    assert caught.value.hint
    assert (folder / name).read_text() == precious


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_the_table_has_a_row_for_each_run_and_step_with_every_measurement(tmp_path, suffix):
    folders = (write_run(tmp_path / "a", steps=3), write_run(tmp_path / "b", steps=2))
    with (folders[1] / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 3, "loss": null, "lr": 0.5}\n')
    options = ReportOptions(runs=folders, csv=tmp_path / "deep" / f"all{suffix}")
    report(options)
    written = report(options)  # in place of the first
    assert written.report is None and not (folders[0] / "report.html").exists()
    table = (pd.read_csv if suffix == ".csv" else pd.read_parquet)(written.table)
    assert list(table.columns[:2]) == ["run", "step"]
    assert table.peak_memory_bytes.dropna().eq(2_000_000_000).all()
    if suffix == ".csv":
        assert "2000000000.0" not in written.table.read_text()
    assert {"loss", "lr", "grad_norm", "seconds", "samples_per_second", "peak_memory_bytes", "validation_loss"} <= {
        *table.columns
    }
    # Validation is at steps 0 and 10 of each run.
    assert list(zip(table.run, table.step, strict=True)) == [
        *(("a", step) for step in (0, 1, 2, 3, 10)),
        *(("b", step) for step in (0, 1, 2, 3, 10)),
    ]
    rows = table.set_index(["run", "step"])
    assert rows.loc[("a", 2), "loss"] == 0.5 and rows.loc[("a", 10), "validation_loss"] == 0.4
    assert pd.isna(rows.loc[("b", 3), "loss"]) and rows.loc[("b", 3), "lr"] == 0.5


def test_a_page_and_a_table_are_written_together(tmp_path):
    folder = write_run(tmp_path / "run")
    written = report(ReportOptions(runs=(folder,), output=tmp_path / "page.html", csv=tmp_path / "table.csv"))
    assert written.report.is_file() and written.table.is_file()


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (['{"step": 1, "loss": 0.5}', '{"step": 1, "loss": null}'], {1: None}),
        (['{"step": 1, "loss": null}', '{"step": 1, "loss": 0.5}'], {1: 0.5}),
        (
            ['{"step": 2, "loss": 2}', '{"step": 1, "loss": Infinity}', '{"step": 0, "loss": NaN}'],
            {0: None, 1: None, 2: 2},
        ),
        (
            ['{"step": 1, "loss": [1]}', '{"step": 2, "loss": "3"}', '{"step": 3, "loss": true}'],
            dict.fromkeys((1, 2, 3)),
        ),
        ([f'{{"step": 1, "loss": 1{"0" * 400}}}', '{"step": 2, "loss": {}}'], dict.fromkeys((1, 2))),
        (
            [f'{{"step": 1{"0" * 30}, "loss": 1}}', '{"step": -1, "loss": 1}', '{"step": true, "loss": 1}', "[1]", "1"],
            {},
        ),
        (['{"loss": 1}', '{"step": "1", "loss": 1}', '{"step": 4, "loss": 1}'], {4: 1}),
    ],
)
def test_only_finite_numbers_of_whole_steps_are_measurements_and_the_later_counts(tmp_path, lines, expected):
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    metrics, _ = read_metrics(tmp_path / "metrics.jsonl")
    assert metrics.index.tolist() == list(expected)
    assert [None if math.isnan(value) else value for value in metrics.get("loss", [])] == list(expected.values())


def test_a_run_without_metrics_is_in_no_row_of_the_table(tmp_path):
    folders = (write_run(tmp_path / "a", steps=2), write_run(tmp_path / "b"))
    (folders[1] / "metrics.jsonl").unlink()
    table = pd.read_csv(report(ReportOptions(runs=folders, csv=tmp_path / "t.csv")).table)
    assert set(table.run) == {"a"}
    table = pd.read_csv(report(ReportOptions(runs=folders[1:], csv=tmp_path / "t.csv")).table)
    assert (list(table.columns), len(table)) == (["run", "step"], 0)


def test_long_runs_are_read_and_shown_in_seconds(tmp_path):
    folders = tuple(write_run(tmp_path / name, steps=40_000) for name in "ab")
    began = time.perf_counter()
    written = report(ReportOptions(runs=folders, output=tmp_path / "page.html", csv=tmp_path / "table.csv"))
    assert time.perf_counter() - began < 15
    assert len(pd.read_csv(written.table)) == 2 * 40_001
    assert written.report.stat().st_size < 2_000_000


def test_the_losses_of_several_datasets_have_a_chart_each_and_columns_of_the_table(tmp_path):
    folder = write_run(tmp_path / "run")
    lines = [line(step, **{"loss.photos": 1 / step} | ({NASTY_LOSS: 2.0} if step % 2 else {})) for step in range(1, 9)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    text = write_report([folder]).read_text()
    assert "Loss of the dataset photos" in text
    assert "Loss of the dataset &lt;script&gt;" in text
    assert NASTY not in text
    table, _ = read_metrics(folder / "metrics.jsonl")
    assert table["loss.photos"].tolist() == [1 / step for step in range(1, 9)]
    assert table[NASTY_LOSS].isna().sum() == 4


@pytest.mark.parametrize("name", ["metrics.jsonl", "skipped.jsonl", "run.json", "samples/step-30-1.png"])
@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "device"])
def test_what_is_no_regular_file_is_refused_or_left_out_without_waiting(tmp_path, name, kind):
    folder = write_run(tmp_path / "run")
    path = folder / name
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    else:
        os.mkfifo(tmp_path / "pipe")
        path.symlink_to(tmp_path / "pipe" if kind == "link to a pipe" else "/dev/zero")
    live = Watched([folder])
    if name.startswith("samples"):
        assert write_report([folder]).exists()
        assert live.runs()[0].record is not None
        return
    with pytest.raises(DsctlError, match=f"{name} cannot be read: it is a (pipe|device), not a file"):
        write_report([folder])
    assert all("not a file" in run.fault for run in live.runs())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\x80\x02\xff\n\x00\xfe\n", "2 lines are no measurements and were left out"),
        (b'{"step": 1, "loss": 2.0}\n{"loss": 1.0}\n', "1 line is no measurement and was left out"),
        (b'{"step": 1, "loss": 2.0}\n{"step": 2, "lo', None),  # which is being written
    ],
)
def test_lines_that_are_no_measurements_are_told(tmp_path, caplog, content, said):
    folder = write_run(tmp_path / "run")
    (folder / "metrics.jsonl").write_bytes(content)
    write_report([folder])
    told = [record.getMessage() for record in caplog.records]
    assert told == ([] if said is None else [f"{folder / 'metrics.jsonl'}: {said}"])
    assert [list(run.faults) for run in Watched([folder]).runs()] == [told]
