"""`dsctl report`: a page about a real run, and what cannot be reported on."""

import json


def test_a_run_has_a_page_where_it_is_asked_for(dsctl, model, files, tmp_path):
    flags = ["--model", model, "--dataset-base-path", "data", "--lora-rank", "2", "--max-steps", "2", "--device", "cpu"]
    assert dsctl("train", *flags, "--output-path", "out", "--quiet").code == 0
    assert dsctl("report", "out", "--json").json == {"report": "out/report.html"}
    page = (tmp_path / "out" / "report.html").read_text()
    assert json.loads((tmp_path / "out" / "run.json").read_text())["hardware"]["system"] in page
    assert dsctl("report", "out", "--output", "deep/page.html").code == 0
    assert (tmp_path / "deep" / "page.html").is_file()


def test_a_folder_without_a_run_is_an_error(dsctl, files):
    assert dsctl("report", "data").fault(1)[0] == "data holds no run"
    assert "RUNS is missing" in dsctl("report").fault(2)[0]
