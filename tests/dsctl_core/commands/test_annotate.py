"""`dsctl dataset annotate`: a dataset becomes one with control pictures, what is there stays, a second run goes on."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from dsctl_core.commands.annotate import annotate
from dsctl_core.data import UnifiedDataset
from dsctl_core.errors import DsctlError
from dsctl_core.files.lock import locked
from dsctl_core.options import DatasetAnnotateOptions
from tests.tiny_models import randomize


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three pictures, of which two differ in the suffix alone, with captions."""
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    lines = ["image,prompt,seed"]
    for number, name in enumerate(("a.png", "a.jpg", "sub/b.png")):
        picture = Image.new("RGB", (48, 32), "navy")
        picture.paste("orange", (8 * number, 8, 8 * number + 16, 24))
        picture.save(folder / name)
        lines.append(f'{name},"a square, number {number}",{number}')
    (folder / "metadata.csv").write_text("\n".join(lines), encoding="utf-8")
    return folder


def run(folder: Path, kind: str = "canny", **settings: Any) -> Any:
    return annotate(DatasetAnnotateOptions(path=folder, kind=kind, **settings))


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_new_table_is_a_dataset_with_control_pictures(data: Path) -> None:
    before = contents(data)
    made = run(data)
    assert (made.written, made.kept) == (3, 0)
    after = contents(data)
    assert {path: after[path] for path in before} == before
    names = {"a.png.png", "a.jpg.png", "sub/b.png"}
    assert {path.relative_to(data).as_posix() for path in after.keys() - before.keys()} == {
        "metadata_canny.csv",
        *(f"control_canny/{name}" for name in names),
    }
    rows = UnifiedDataset(data, data / "metadata_canny.csv", data_file_keys=("image", "control_image"))
    assert [row["prompt"] for row in rows] == [f"a square, number {number}" for number in range(3)]
    for number, row in enumerate(rows):
        edges = np.array(row["control_image"].convert("L"))
        assert edges.shape == (32, 48)
        assert edges[16, 8 * number + 15 : 8 * number + 17].max() == 255
    assert len(UnifiedDataset(data)) == 3, "the dataset itself is as it was"


def test_a_second_run_draws_what_is_missing_and_a_changed_picture_is_refused(data: Path) -> None:
    run(data)
    before = contents(data)
    gone = data / "control_canny" / "sub" / "b.png"
    gone.unlink()
    (data / "metadata_canny.csv").unlink()
    made = run(data)
    assert (made.written, made.kept) == (1, 2)
    assert contents(data) == before
    Image.new("RGB", (48, 32), "red").save(data / "a.png")
    with pytest.raises(DsctlError, match=r"a\.png\.png is there already, and was made of another picture"):
        run(data)


def test_what_a_killed_run_left_is_removed_by_the_next_and_nothing_else(data: Path) -> None:
    run(data)
    before = contents(data)
    for name in ("control_canny/sub/.b.png", ".metadata_canny.csv"):
        (data / f"{name}.0123abcd.tmp").write_bytes(b"half")
    mine = data / "control_canny" / ".mine.png.0123abcd.tmp"
    mine.write_bytes(b"mine")
    with locked(data / "control_canny" / ".lock"), pytest.raises(DsctlError, match="another command is writing"):
        run(data)
    run(data)
    assert contents(data) == {**before, mine: b"mine"}


@pytest.mark.parametrize("link", ["control_tile", "control_tile/sub", "metadata_tile.csv"])
def test_nothing_is_written_through_a_link(data: Path, tmp_path: Path, link: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (data / link).parent.mkdir(exist_ok=True)
    (data / link).symlink_to(outside / "table.csv" if link.endswith(".csv") else outside)
    before = contents(tmp_path)
    with pytest.raises(DsctlError, match=f"{link} is a link"):
        run(data, "tile")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["a.tar", "train.parquet"])
def test_archives_are_refused_by_name(data: Path, tmp_path: Path, name: str) -> None:
    archive = tmp_path / "shards" / name
    archive.parent.mkdir()
    if name == "a.tar":
        with tarfile.open(archive, "w") as tar:
            tar.add(data / "a.png", "0.png")
    else:
        cell = {"bytes": (data / "a.png").read_bytes(), "path": "a.png"}
        pd.DataFrame({"image": [cell], "prompt": ["a"]}).to_parquet(archive)
    with pytest.raises(DsctlError, match=f"{name} holds its pictures inside"):
        run(archive.parent, "tile")
    assert [path.name for path in archive.parent.iterdir()] == [name]
    (data / "photos.tar").mkdir()
    (data / "a.png").rename(data / "photos.tar" / "a.png")
    (data / "metadata.csv").write_text("image,prompt\nphotos.tar/a.png,a\n")
    assert run(data, "tile").written == 1, "a folder of such a name is one"


def test_other_files_are_not_touched(data: Path) -> None:
    foreign = data / "control_tile" / "sub" / "b.png"
    foreign.parent.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(foreign)
    (data / "metadata_blur.csv").write_text("image\nmine.png\n", encoding="utf-8")
    before = contents(data)
    with pytest.raises(DsctlError, match="is there already and is not a control picture"):
        run(data, "tile")
    with pytest.raises(DsctlError, match=r"metadata_blur\.csv is there already, with other rows"):
        run(data, "blur")
    assert contents(data) == before
    run(data)
    with pytest.raises(DsctlError, match="has the column control_image already"):
        run(data, "gray", metadata=data / "metadata_canny.csv")


def test_control_pictures_are_no_pictures_of_a_folder_with_captions(data: Path) -> None:
    (data / "metadata.csv").unlink()
    (data / "a.jpg").unlink()
    for name in ("a", "sub/b"):
        (data / f"{name}.txt").write_text(f"a square in {name}", encoding="utf-8")
    made = run(data)
    (data / "control_canny" / "a.png").unlink()
    again = run(data)
    assert (made.written, again.written, again.kept) == (2, 1, 1)
    gray = run(data, "gray")
    rows = gray.table.read_text().splitlines()
    assert rows[1:] == ["a.png,a square in a,control_gray/a.png", "sub/b.png,a square in sub/b,control_gray/sub/b.png"]
    dataset = UnifiedDataset(data)
    assert [dataset.metadata.rows[number]["image"] for number in range(len(dataset))] == ["a.png", "sub/b.png"]
    assert dataset.notes()[1] == "6 files were left out: 4 control pictures, 2 .csv"
    Image.new("RGB", (8, 8)).save(data / "control_canny" / "mine.png")  # which was not drawn
    assert len(UnifiedDataset(data)) == 3
    (data / "control_canny" / "mine.png").unlink()
    before = contents(data)
    Image.new("RGB", (8, 8)).save(data / "new.png")
    with pytest.raises(DsctlError, match=r"new\.txt does not exist"):
        run(data, "tile")
    assert contents(data).keys() - before.keys() == {data / "new.png"}


def test_lists_in_a_table_stay_lists(data: Path) -> None:
    rows = [{"image": "a.png", "prompt": ["one", "two"]}]
    (data / "metadata.json").write_text(json.dumps(rows), encoding="utf-8")
    made = run(data, "gray", metadata=data / "metadata.json")
    assert made.table == data / "metadata_gray.jsonl"
    assert json.loads(made.table.read_text()) == {**rows[0], "control_image": "control_gray/a.png"}


def test_depth_is_what_the_model_of_the_user_estimates(data: Path, tmp_path: Path) -> None:
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config
    from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil

    backbone = Dinov2Config(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        out_features=["stage1", "stage2", "stage3", "stage4"],
        reshape_hidden_states=False,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=16,
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        head_hidden_size=8,
        patch_size=14,
    )
    model = randomize(DepthAnythingForDepthEstimation(config), torch.Generator().manual_seed(0)).eval()
    model.save_pretrained(tmp_path / "model")
    processor = DPTImageProcessorPil(size={"height": 28, "width": 28}, do_pad=False)
    processor.save_pretrained(tmp_path / "model")
    made = run(data, "depth", annotator=str(tmp_path / "model"))
    assert made.written == 3
    with Image.open(data / "a.png") as picture, Image.open(data / "control_depth" / "a.png.png") as drawn:
        with torch.no_grad():
            raw = model(**processor(images=picture, return_tensors="pt")).predicted_depth
        values = torch.nn.functional.interpolate(raw[None], (32, 48), mode="bicubic", align_corners=False)[0, 0]
        expected = (values - values.min()) / (values.max() - values.min()) * 255
        assert np.abs(np.array(drawn)[..., 0] - expected.numpy()).max() <= 1
    with pytest.raises(DsctlError, match="was made of another picture, or by another model"):
        run(data, "depth", annotator="another/model")
