"""Find people and their key points by models of transformers, for `dsctl dataset annotate --kind pose`."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dsctl_core.checkpoint.processors import load_vision_model
from dsctl_core.commands.caption_model import hub_folder
from dsctl_core.data.control_pictures import opencv
from dsctl_core.data.skeleton import COCO, draw_people
from dsctl_core.errors import DsctlError
from dsctl_core.options.dataset import EXAMPLES, POSE, DatasetAnnotateOptions

if TYPE_CHECKING:
    from PIL.Image import Image

Array = np.ndarray[Any, Any]

FOUND = 0.5  # the confidence of a detector from which something is a person
AROUND = 1.25  # how much larger than its box the part of the picture is that ViTPose was trained to see
# Of the heatmaps before their peaks are refined, as ViTPose does: width and deviation of the filter, and the range.
SMOOTH, DEVIATION, RANGE = 11, 0.8, (0.001, 50.0)


def pose_drawing(options: DatasetAnnotateOptions) -> Callable[[Image], Image]:
    """Load the models, and return the function that draws the skeletons of the people in a picture."""
    opencv()  # which may be missing, before anything is downloaded
    assert options.annotator is not None
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pose = PoseModel(hub_folder(options.annotator, "--annotator"), device)
    people = Detector(hub_folder(options.detector, "--detector"), device) if options.detector else whole

    def draw(picture: Image) -> Image:
        picture = picture.convert("RGB")
        boxes = people(picture)
        return draw_people(pose(picture, boxes) if len(boxes) else np.zeros((0, len(COCO), 3)), picture.size)

    return draw


def whole(picture: Image) -> Array:
    """Return the box of the whole picture, as if one person filled it."""
    return np.array([(0, 0, picture.width, picture.height)], np.float32)


class Detector:
    """An object detection model of transformers that finds people.

    Raises DsctlError for a folder of anything else, and for a model that does not know what a person is.
    """

    def __init__(self, folder: Path, device: Any) -> None:
        from transformers import AutoModelForObjectDetection
        from transformers.models.auto.modeling_auto import MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES as KNOWN

        model, self.processor = load_vision_model(
            folder, AutoModelForObjectDetection, KNOWN, "object detection model", "object-detection"
        )
        self.model, self.device = model.to(device), device
        labels: dict[int, str] = model.config.id2label
        self.person = [number for number, label in labels.items() if label.strip().lower() == "person"]
        if not self.person:
            raise DsctlError(
                f'{folder} finds no people: none of its {len(labels)} labels is "person"',
                hint="choose a detector that was trained on COCO, such as --detector PekingU/rtdetr_r50vd_coco_o365",
            )

    def __call__(self, picture: Image) -> Array:
        """Return the boxes (N, 4) of the people in `picture`: left, top, width and height in pixels."""
        import torch

        with torch.no_grad():
            outputs = self.model(**self.processor(images=picture, return_tensors="pt").to(self.device))
        found = self.processor.post_process_object_detection(
            outputs, threshold=FOUND, target_sizes=[(picture.height, picture.width)]
        )[0]
        wanted = torch.isin(found["labels"], torch.tensor(self.person, device=found["labels"].device))
        boxes: Array = found["boxes"][wanted].float().cpu().numpy()
        boxes[:, 2:] -= boxes[:, :2]
        return boxes[(boxes[:, 2:] >= 1).all(axis=1)]


class PoseModel:
    """A ViTPose (Xu et al. 2022) that finds the 17 key points of COCO.

    What its image processor in transformers does before and after the model needs SciPy, which transformers and
    diffusers import at every start where it is installed; here OpenCV does the same, as in the original.

    Raises DsctlError for a folder of anything else.
    """

    def __init__(self, folder: Path, device: Any) -> None:
        from transformers import VitPoseForPoseEstimation

        model, self.processor = load_vision_model(folder, VitPoseForPoseEstimation, {"vitpose"}, "ViTPose", "vitpose")
        labels: dict[int, str] = model.config.id2label
        if len(labels) != len(COCO) or not all(map(_same_point, labels.values(), COCO)):
            raise DsctlError(
                f"the {len(labels)} key points of {folder} are not the {len(COCO)} of COCO",
                hint=f"choose a ViTPose for people, such as --annotator {EXAMPLES[POSE]}",
            )
        backbone = model.config.backbone_config
        self.height, self.width = backbone.image_size
        self.experts = getattr(backbone, "num_experts", 1)
        self.model, self.device = model.to(device), device

    def __call__(self, picture: Image, boxes: Array) -> Array:
        """Return the key points (N, 17, 3) of the people in `boxes` (N, 4): x, y in pixels of `picture`, confidence."""
        import torch

        frames = frames_around(boxes, self.width / self.height)
        seen = cut_out(picture, frames, (self.width, self.height))
        read = self.processor(images=seen, boxes=[[]] * len(seen), do_affine_transform=False, return_tensors="pt")
        # ViTPose+ has experts for several datasets, of which the first is COCO.
        which = {"dataset_index": torch.zeros(len(seen), dtype=torch.long)} if self.experts > 1 else {}
        with torch.no_grad():
            outputs = self.model(**{name: each.to(self.device) for name, each in {**read, **which}.items()})
        return key_points(outputs.heatmaps.float().cpu().numpy(), frames)


def _same_point(label: str, name: str) -> bool:
    """Return whether the label of a model, such as "L_Eye" or "left_eye", is COCO's `name`, or is no name at all."""
    said = re.sub("[^a-z0-9]", "", label.lower())
    short = name.replace("left ", "l").replace("right ", "r")
    return said in (name.replace(" ", ""), short) or re.fullmatch(r"label\d+", said) is not None


def frames_around(boxes: Array, aspect: float) -> Array:
    """Return what the model is shown for `boxes` (N, 4): larger frames (N, 4) about the same middles, of one `aspect`.

    Both are left, top, width and height in pixels of the picture; `aspect` is width by height.
    """
    corner, size = boxes[:, :2], boxes[:, 2:]
    width = np.maximum(size[:, 0], size[:, 1] * aspect) * AROUND
    sizes = np.stack([width, width / aspect], axis=1)
    return np.concatenate([corner + size / 2 - sizes / 2, sizes], axis=1)


def cut_out(picture: Image, frames: Array, size: tuple[int, int]) -> list[Array]:
    """Return `frames` (N, 4) of `picture`, scaled to `size` (width, height), black where they reach beyond it.

    The middles of the pixels in the corners are the corners of the frame (Huang et al. 2020, "The Devil is in the
    Details").
    """
    cv2, pixels = opencv(), np.array(picture)
    made = []
    for left, top, width, height in frames:
        across, down = (size[0] - 1) / width, (size[1] - 1) / height
        matrix = np.array([(across, 0, -left * across), (0, down, -top * down)])
        made.append(cv2.warpAffine(pixels, matrix, size, flags=cv2.INTER_LINEAR))
    return made


def key_points(heatmaps: Array, frames: Array) -> Array:
    """Return where `heatmaps` (N, K, H, W) of `frames` (N, 4) are highest: x, y in the picture, height (N, K, 3)."""
    rows, columns = heatmaps.shape[-2:]
    made = np.zeros((*heatmaps.shape[:2], 3))
    for person, (maps, (left, top, width, height)) in enumerate(zip(heatmaps, frames, strict=True)):
        for number, heat in enumerate(maps):
            x, y = peak(heat)
            made[person, number] = (left + x * width / (columns - 1), top + y * height / (rows - 1), heat.max())
    return made


def peak(heat: Array) -> tuple[float, float]:
    """Return where `heat` (H, W) is highest, x and y, between its cells.

    The logarithm of a Gaussian is a parabola, whose summit is a step of Newton's method away (Zhang et al. 2020,
    "Distribution-Aware Coordinate Representation"). Where it is none, the middle of the highest cell is taken.
    """
    cv2 = opencv()
    row, column = divmod(int(heat.argmax()), heat.shape[1])
    smooth = cv2.GaussianBlur(heat, (SMOOTH, SMOOTH), DEVIATION, borderType=cv2.BORDER_REFLECT)
    logs = np.pad(np.log(np.clip(smooth, *RANGE)).astype(np.float64), 1, mode="edge")
    near = logs[row : row + 3, column : column + 3]  # with the cell in the middle
    slope = np.array([near[1, 2] - near[1, 0], near[2, 1] - near[0, 1]]) / 2
    mixed = (near[2, 2] - near[1, 2] - near[2, 1] + 2 * near[1, 1] - near[1, 0] - near[0, 1] + near[0, 0]) / 2
    xx, yy = (near[1, 2] - 2 * near[1, 1] + near[1, 0], near[2, 1] - 2 * near[1, 1] + near[0, 1])
    determinant = xx * yy - mixed * mixed
    if xx >= 0 or determinant <= 0:
        return float(column), float(row)
    across, down = np.array([mixed * slope[1] - yy * slope[0], mixed * slope[0] - xx * slope[1]]) / determinant
    if max(abs(across), abs(down)) > 1:
        return float(column), float(row)
    return column + float(across), row + float(down)
