"""`dsctl dataset annotate --kind pose`: key points as transformers finds them, in the picture's own pixels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dsctl.app import main
from dsctl_core.commands.annotate import annotate
from dsctl_core.commands.annotate_pose import Detector, PoseModel, cut_out, frames_around, key_points, peak
from dsctl_core.data.skeleton import COCO, draw_people
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.files.png import about_picture
from dsctl_core.options import DatasetAnnotateOptions
from tests import plain_scipy
from tests.tiny_models import randomize

CPU = torch.device("cpu")
MAPS = (16, 12)  # rows and columns of a heatmap of the tiny model


def write_vitpose(folder: Path, names: tuple[str, ...] = COCO, experts: int = 1) -> Path:
    """Write a tiny random ViTPose for pictures of 48 x 64 pixels."""
    from transformers import (
        VitPoseBackboneConfig,
        VitPoseConfig,
        VitPoseForPoseEstimation,
        VitPoseImageProcessorPil,
    )

    sizes: dict[str, Any] = {"image_size": [64, 48], "patch_size": [16, 16], "hidden_size": 16, "part_features": 4}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 2, "out_indices": [2], "num_experts": experts}
    config = VitPoseConfig(backbone_config=VitPoseBackboneConfig(**sizes), id2label=dict(enumerate(names)))
    randomize(VitPoseForPoseEstimation(config), torch.Generator().manual_seed(0)).save_pretrained(folder)
    VitPoseImageProcessorPil(size={"height": 64, "width": 48}).save_pretrained(folder)
    return folder


def write_detector(folder: Path, names: tuple[str, ...] = ("cat", "Person"), nobody: float = 0.0) -> Path:
    """Write a tiny random YOLOS that is sure of what it sees; `nobody` is added to the logit of nothing."""
    from transformers import YolosConfig, YolosForObjectDetection, YolosImageProcessorPil

    sizes: dict[str, Any] = {"image_size": [32, 48], "patch_size": 16, "hidden_size": 16, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "intermediate_size": 16, "num_detection_tokens": 12}
    config = YolosConfig(**sizes, id2label=dict(enumerate(names)))
    model = randomize(YolosForObjectDetection(config), torch.Generator().manual_seed(1))
    with torch.no_grad():
        last = model.class_labels_classifier.layers[-1]
        last.weight *= 20
        last.bias[-1] += nobody
    model.save_pretrained(folder)
    YolosImageProcessorPil(size={"height": 32, "width": 48}).save_pretrained(folder)
    return folder


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture of soft spots."""
    spots = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    return Image.fromarray(spots).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def models(tmp_path: Path) -> tuple[Path, Path]:
    return write_vitpose(tmp_path / "pose"), write_detector(tmp_path / "detector")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two pictures with captions."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name, size in (("a", (96, 40)), ("b", (50, 90))):
        picture(*size).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(name, encoding="utf-8")
    return folder


def run(folder: Path, pose: Path, detector: Path | None = None) -> Any:
    named = None if detector is None else str(detector)
    return annotate(DatasetAnnotateOptions(path=folder, kind="pose", annotator=str(pose), detector=named))


def gaussian(x: float, y: float, rows: int, columns: int, deviation: float = 2.0) -> np.ndarray:
    down, across = np.mgrid[:rows, :columns]
    return np.exp(-((across - x) ** 2 + (down - y) ** 2) / (2 * deviation**2)).astype(np.float32)


def test_a_point_of_a_heatmap_is_scaled_to_the_box_of_a_picture_that_is_not_square() -> None:
    # 12 x 16 cells for a box of 120 x 160 at (40, 8), seen with a quarter more: 150 x 200 from (25, -12) on
    frames = frames_around(np.array([(40, 8, 120, 160), (40, 8, 20, 160), (40, 68, 120, 40)], np.float32), 12 / 16)
    assert frames.tolist() == [[25, -12, 150, 200], [-25, -12, 150, 200], [25, -12, 150, 200]]
    maps = np.stack([0.7 * gaussian(5.25, 8.5, *MAPS), 0.4 * gaussian(4.0, 11.3, *MAPS)])[None]
    made = key_points(maps, frames[:1])
    expected = [(25 + 5.25 * 150 / 11, -12 + 8.5 * 200 / 15), (25 + 4 * 150 / 11, -12 + 11.3 * 200 / 15)]
    assert np.abs(made[0, :, :2] - expected).max() < 0.02 * 200 / 15
    assert made[0, :, 2].tolist() == maps[0].max(axis=(1, 2)).tolist()


@pytest.mark.parametrize("size", [(220, 120), (120, 220)])
def test_what_is_cut_out_of_a_picture_is_found_where_it_was(size: tuple[int, int]) -> None:
    boxes = np.array([(20, 10, 60, 100), (5, 40, 100, 60), (0, 0, *size)], np.float32)
    frames = frames_around(boxes, 48 / 64)
    for x, y in ((50, 60), (30.5, 72), (70, 50)):
        spot = gaussian(x, y, size[1], size[0], 6.0)
        cut = cut_out(Image.fromarray((255 * spot).astype(np.uint8)), frames, (48, 64))
        assert {each.shape for each in cut} == {(64, 48)}
        found = key_points(np.stack(cut)[:, None].astype(np.float32), frames)
        assert np.abs(found[:, 0, :2] - (x, y)).max() < 0.6 * (frames[:, 2] / 47).max(), "half a pixel of the cut"


def test_a_heatmap_without_a_summit_keeps_the_highest_cell() -> None:
    ridge = np.zeros(MAPS, np.float32)
    ridge[7, 3] = 1e-5  # all of it is in the part that is cut off
    assert peak(ridge) == (3.0, 7.0)
    slope = np.add.outer(np.zeros(16), np.exp(np.arange(12.0))).astype(np.float32)
    assert peak(slope) == (11.0, 0.0)


def test_people_and_their_key_points_are_those_of_transformers(
    models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import (
        AutoImageProcessor,
        AutoModelForObjectDetection,
        VitPoseForPoseEstimation,
    )
    from transformers.models.vitpose import image_processing_pil_vitpose as processing

    for name in ("affine_transform", "gaussian_filter"):
        monkeypatch.setattr(processing, name, getattr(plain_scipy, name), raising=False)
    shown = picture(210, 130)
    pose, detector = (str(folder) for folder in models)
    own = AutoModelForObjectDetection.from_pretrained(detector)
    processor = AutoImageProcessor.from_pretrained(detector)
    with torch.no_grad():
        raw = own(**processor(images=shown, return_tensors="pt"))
    result = processor.post_process_object_detection(raw, threshold=0.5, target_sizes=[(130, 210)])[0]
    plain = [box.tolist() for box, label in zip(result["boxes"], result["labels"], strict=True) if label == 1]
    assert 0 < len(plain) < len(result["boxes"]), "cats and people"
    boxes = Detector(models[1], CPU)(shown)
    assert np.allclose(boxes, [(left, top, x - left, y - top) for left, top, x, y in plain], atol=1e-3)

    model = VitPoseForPoseEstimation.from_pretrained(pose)
    processor = AutoImageProcessor.from_pretrained(pose)
    boxes = np.array([(70, 40, 40, 48), (90, 30, 60, 70)], np.float32)  # so that nothing beyond the picture is seen
    seen = processor(images=shown, boxes=[boxes.tolist()], return_tensors="pt")
    with torch.no_grad():
        raw = model(**seen)
    people = processor.post_process_pose_estimation(raw, boxes=[boxes.tolist()])[0]
    expected = np.stack([each["keypoints"].numpy() for each in people])
    scores = np.stack([each["scores"].numpy() for each in people])
    own = PoseModel(models[0], CPU)
    cut = cut_out(shown, frames_around(boxes, 48 / 64), (48, 64))
    cut = own.processor(images=cut, boxes=[[], []], do_affine_transform=False, return_tensors="pt").pixel_values
    assert (cut - seen.pixel_values).abs().max() < 1.01 / 255 / min(processor.image_std), "rounded otherwise"
    made = own(shown, boxes)
    assert np.abs(made[..., 2] - scores).max() < 0.02 * np.abs(scores).max()
    # Where a heatmap of the random model has no summit, the refinement of transformers goes astray.
    frames = frames_around(boxes, 48 / 64)
    peaks = key_points(raw.heatmaps.numpy(), frames)[..., :2]
    summit = np.abs(expected - peaks).max(axis=-1) < 1e-2
    assert summit.mean() > 0.8
    cell = frames[:, None, 2:] / (MAPS[1] - 1, MAPS[0] - 1)
    off = (np.abs(made[..., :2] - expected) / cell).max(axis=-1)
    assert (off[summit] < 0.06).mean() > 0.9, "of a saddle, the last bit of a pixel tells"
    summits = np.random.default_rng(0).uniform([2, 2], [9, 13], (2, 17, 2))
    maps = np.array([[gaussian(*at, *MAPS) for at in points] for points in summits])
    raw.heatmaps = torch.from_numpy(maps)
    people = processor.post_process_pose_estimation(raw, boxes=[boxes.tolist()])[0]
    expected = np.stack([each["keypoints"].numpy() for each in people])
    assert np.abs(key_points(maps, frames)[..., :2] - expected).max() < 1e-3


def test_the_pictures_of_a_dataset_become_the_skeletons_of_their_people(data: Path, models: tuple[Path, Path]) -> None:
    made = run(data, *models)
    assert (made.written, made.kept, made.nobody) == (2, 0, 0)
    assert made.table == data / "metadata_pose.csv"
    pose, people = PoseModel(models[0], CPU), Detector(models[1], CPU)
    for name in ("a", "b"):
        with Image.open(data / f"{name}.png") as shown, Image.open(data / "control_pose" / f"{name}.png") as drawn:
            expected = draw_people(pose(shown, people(shown)), shown.size)
            assert drawn.size == shown.size
            assert drawn.tobytes() == expected.tobytes()
    (data / "control_pose" / "b.png").unlink()
    made = run(data, *models)
    assert (made.written, made.kept) == (1, 1)
    with pytest.raises(DsctlError, match="was made of another picture, or by another model"):
        run(data, models[0])


def test_without_a_detector_a_picture_is_the_box_of_one_person(data: Path, models: tuple[Path, Path]) -> None:
    run(data, models[0])
    with Image.open(data / "a.png") as shown, Image.open(data / "control_pose" / "a.png") as drawn:
        people = PoseModel(models[0], CPU)(shown, np.array([(0, 0, 96, 40)], np.float32))
        assert people.shape == (1, 17, 3)
        assert drawn.tobytes() == draw_people(people, (96, 40)).tobytes()
    with pytest.raises(DsctlError, match="by another model"):
        run(data, *models)


def test_pictures_without_anybody_are_black_and_counted(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pose, blind = write_vitpose(tmp_path / "pose"), write_detector(tmp_path / "blind", nobody=1e4)
    words = ["dataset", "annotate", str(data), "--kind", "pose", "--annotator", str(pose), "--detector", str(blind)]
    capsys.readouterr()
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines if "without anybody" in line] == [["without", "anybody", "2"]]
    with Image.open(data / "control_pose" / "b.png") as drawn:
        assert (drawn.size, drawn.getbbox()) == ((50, 90), None)
    assert about_picture(data / "control_pose" / "b.png")["detector"] == str(blind)
    assert main([*words, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["written"], again["kept"], again["nobody"]) == (0, 2, 2)


def test_a_model_with_experts_uses_those_of_coco(tmp_path: Path) -> None:
    from transformers import VitPoseForPoseEstimation

    folder = write_vitpose(tmp_path / "plus", experts=3)
    shown, boxes = picture(96, 64), np.array([(10, 10, 30, 40), (20, 5, 30, 40)], np.float32)
    made = PoseModel(folder, CPU)
    frames = frames_around(boxes, 48 / 64)
    cut = made.processor(images=cut_out(shown, frames, (48, 64)), boxes=[[], []], do_affine_transform=False)
    model, inputs = VitPoseForPoseEstimation.from_pretrained(folder).eval(), torch.tensor(np.array(cut["pixel_values"]))
    with torch.no_grad():
        first, second = (model(inputs, dataset_index=torch.full((2,), number)).heatmaps for number in (0, 1))
    assert not torch.equal(first, second)
    assert np.allclose(made(shown, boxes), key_points(first.numpy(), frames), atol=1e-3)


@pytest.mark.parametrize("style", ["{}", "short", "LABEL_"])
def test_coco_is_known_by_the_names_of_its_points(style: str, tmp_path: Path) -> None:
    names = {
        "{}": tuple(name.replace(" ", "_") for name in COCO),
        "short": tuple(name.title().replace("Left ", "L_").replace("Right ", "R_") for name in COCO),
        "LABEL_": tuple(f"LABEL_{number}" for number in range(17)),
    }[style]
    assert PoseModel(write_vitpose(tmp_path / "pose", names), CPU).experts == 1


def test_models_of_other_things_are_refused_in_one_line(data: Path, models: tuple[Path, Path], tmp_path: Path) -> None:
    pose, detector = models
    animals = (*COCO[:3], "neck", "tail", *COCO[5:])
    cases = [
        (write_vitpose(tmp_path / "few", COCO[:16]), detector, "the 16 key points of .* are not the 17 of COCO"),
        (write_vitpose(tmp_path / "animals", animals), detector, "the 17 key points of .* are not the 17 of COCO"),
        (detector, detector, "is a model of the type 'yolos', which is no ViTPose"),
        (pose, pose, "is a model of the type 'vitpose', which is no object detection model"),
        (pose, write_detector(tmp_path / "cats", ("cat", "dog")), 'finds no people: none of its 2 labels is "person"'),
        (data, detector, "has no config.json"),
    ]
    for wrong_pose, wrong_detector, said in cases:
        with pytest.raises(DsctlError, match=said) as caught:
            run(data, wrong_pose, wrong_detector)
        assert caught.value.hint
        assert "\n" not in f"{caught.value}{caught.value.hint}"
    assert not (data / "control_pose").exists()
    assert not (data / "metadata_pose.csv").exists()


def test_only_safetensors_are_read_and_all_weights_are_needed(data: Path, models: tuple[Path, Path]) -> None:
    from safetensors.torch import load_file, save_file

    pose, detector = models
    weights = load_file(detector / "model.safetensors")
    (detector / "model.safetensors").unlink()
    torch.save(weights, detector / "pytorch_model.bin")
    with pytest.raises(DsctlError, match="detector does not fit a AutoModelForObjectDetection"):
        run(data, pose, detector)
    weights = load_file(pose / "model.safetensors")
    del weights["head.conv.bias"]
    save_file(weights, pose / "model.safetensors", {"format": "pt"})
    with pytest.raises(DsctlError, match=r"lacks 1 weight of a VitPoseForPoseEstimation, head\.conv\.bias first"):
        run(data, pose)


def test_no_code_of_a_folder_is_run(data: Path, models: tuple[Path, Path]) -> None:
    pose, detector = models
    for folder in models:
        config = json.loads((folder / "config.json").read_text())
        config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.C", "AutoModelForObjectDetection": "mine.M"}}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "mine.py").write_text("raise SystemExit('run')")
    with pytest.raises(DsctlError, match="is a model of the type 'mine', which is no ViTPose"):
        run(data, pose)
    with pytest.raises(DsctlError, match="which is no object detection model"):
        Detector(detector, CPU)


def test_a_pose_needs_a_model(data: Path) -> None:
    with pytest.raises(UsageError, match="--kind pose is given without --annotator") as caught:
        DatasetAnnotateOptions(path=data, kind="pose")
    assert "vitpose" in str(caught.value.hint)
