"""Log samples to one tracker, in the form in which it takes pictures and clips."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from dsctl_core.media.clip import Clip
from dsctl_core.media.clip_file import ANIMATION_FPS, write_clip
from dsctl_core.media.image_file import as_picture

if TYPE_CHECKING:
    from PIL.Image import Image


def log_samples(tracker: Any, samples: Sequence[Image | Clip], files: Sequence[Path], step: int) -> None:
    """Log the samples of a step, which are in `files`, to `tracker` if it takes pictures or clips.

    TensorBoard and SwanLab show clips as animated GIFs; wandb, Trackio, Comet and ClearML their .mp4 files. Elsewhere,
    and where there is no such file, the frames of a clip stand in a row.
    """
    named = {f"sample {number}": made for number, made in enumerate(samples, 1)}
    paths = dict(zip(named, files, strict=True))
    clips = {name: made for name, made in named.items() if isinstance(made, Clip) and _takes(tracker, paths[name])}
    pictures = {name: as_picture(made) for name, made in named.items() if name not in clips}
    if clips and tracker.name in AS_GIF:
        AS_GIF[tracker.name](tracker, clips, step)
    elif clips:
        AS_FILE[tracker.name](tracker, {name: paths[name] for name in clips}, step)
    if pictures:
        _log_pictures(tracker, pictures, step)


def _takes(tracker: Any, file: Path) -> bool:
    return tracker.name in AS_GIF or (tracker.name in AS_FILE and file.suffix == ".mp4")


def _gifs_to_tensorboard(tracker: Any, clips: Mapping[str, Clip], step: int) -> None:
    """Write clips as the writer of TensorBoard does itself, which needs another package to encode them."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    values = []
    for name, clip in clips.items():
        width, height = clip.frames[0].size
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=_gif(clip))
        values.append(Summary.Value(tag=name, image=image))
    tracker.tracker.file_writer.add_summary(Summary(value=values), step)
    tracker.tracker.flush()


def _gif(clip: Clip) -> bytes:
    with TemporaryDirectory() as folder:
        return _gif_file(Path(folder) / "clip.gif", clip).read_bytes()


def _gif_file(file: Path, clip: Clip) -> Path:
    write_clip(file, Clip(clip.frames, min(clip.fps, ANIMATION_FPS)), {})
    return file


def _gifs_to_swanlab(tracker: Any, clips: Mapping[str, Clip], step: int) -> None:
    """Log GIFs, the only files that `swanlab.Video` takes in every version; it copies them."""
    import swanlab

    with TemporaryDirectory() as folder:
        files = {name: _gif_file(Path(folder) / f"{number}.gif", clips[name]) for number, name in enumerate(clips)}
        tracker.log({name: swanlab.Video(str(file)) for name, file in files.items()}, step=step)


def _videos_to_wandb(tracker: Any, files: Mapping[str, Path], step: int) -> None:
    import wandb

    tracker.log({name: wandb.Video(str(file), format="mp4") for name, file in files.items()}, step=step)


def _videos_to_trackio(tracker: Any, files: Mapping[str, Path], step: int) -> None:
    import trackio

    tracker.log({name: trackio.Video(str(file), format="mp4") for name, file in files.items()}, step=step)


def _videos_to_comet(tracker: Any, files: Mapping[str, Path], step: int) -> None:
    for name, file in files.items():
        tracker.tracker.log_video(file=str(file), name=name, format="mp4", step=step)


def _videos_to_clearml(tracker: Any, files: Mapping[str, Path], step: int) -> None:
    for name, file in files.items():
        tracker.tracker.get_logger().report_media(title=name, series=name, iteration=step, local_path=str(file))


Gifs = Callable[[Any, Mapping[str, Clip], int], None]
Files = Callable[[Any, Mapping[str, Path], int], None]
AS_GIF: dict[str, Gifs] = {"tensorboard": _gifs_to_tensorboard, "swanlab": _gifs_to_swanlab}
AS_FILE: dict[str, Files] = {
    "wandb": _videos_to_wandb,
    "trackio": _videos_to_trackio,
    "comet_ml": _videos_to_comet,
    "clearml": _videos_to_clearml,
}


def _log_pictures(tracker: Any, named: Mapping[str, Image], step: int) -> None:
    import numpy as np

    if tracker.name == "tensorboard":
        arrays = {name: np.asarray(picture)[None] for name, picture in named.items()}
        tracker.log_images(arrays, step=step, dataformats="NHWC")
        tracker.tracker.flush()
    elif tracker.name in ("wandb", "swanlab"):
        tracker.log_images({name: [picture] for name, picture in named.items()}, step=step)
    elif tracker.name == "trackio":
        import trackio

        tracker.log({name: trackio.Image(picture) for name, picture in named.items()}, step=step)
    elif tracker.name == "comet_ml":
        for name, picture in named.items():
            tracker.tracker.log_image(picture, name=name, step=step)
    elif tracker.name in ("aim", "clearml"):
        tracker.log_images(dict(named), step=step)
