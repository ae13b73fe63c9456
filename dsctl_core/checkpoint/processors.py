"""Load vision models of transformers with their processors, for pictures alone."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from dsctl_core.checkpoint.build import refused_by_library
from dsctl_core.errors import DsctlError
from dsctl_core.files.json import read_json
from dsctl_core.readable import counted


def for_pictures(kind: Any) -> Any:
    """Return the class of processors `kind` without its part for videos, which needs torchvision.

    Frames of a clip are shown to a model as pictures, so that this part would not be used.
    """
    names = [name for name in kind.get_attributes() if "video" not in name]
    if names == kind.get_attributes():
        return kind
    return type(kind.__name__, (kind,), {"get_attributes": classmethod(lambda _: list(names))})


def load_vision_language_model(folder: Path, dtype: Any) -> tuple[Any, Any]:
    """Return the model in `folder`, frozen, and its processor.

    Only safetensors are read, and no code that lies in the folder is run. Raises DsctlError for a folder of anything
    but a vision-language model that transformers has the classes of.
    """
    from transformers import PROCESSOR_MAPPING, AutoConfig, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as KNOWN

    _refuse_others(folder, KNOWN, "vision-language model", "image-text-to-text")
    own: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    with refused_by_library(folder, AutoModelForImageTextToText):
        config = AutoConfig.from_pretrained(str(folder), **own)
        processor = for_pictures(PROCESSOR_MAPPING[type(config)]).from_pretrained(str(folder), **own)
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            str(folder), use_safetensors=True, dtype=dtype, output_loading_info=True, **own
        )
    return _whole(folder, loaded), processor


def load_vision_model(folder: Path, cls: Any, known: Collection[str], called: str, task: str) -> tuple[Any, Any]:
    """Return the model in `folder`, frozen, and its image processor.

    Only safetensors are read, and no code that lies in the folder is run. Raises DsctlError for a folder of anything
    else.

    Args:
        folder: Folder of a model of transformers.
        cls: Its class, or the Auto class of its task.
        known: The types of models of that task.
        called: What such a model is called, such as "depth estimation model".
        task: The task under which transformers lists its types.
    """
    from transformers import AutoImageProcessor

    _refuse_others(folder, known, called, task)
    own: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    with refused_by_library(folder, cls):
        processor = AutoImageProcessor.from_pretrained(str(folder), **own)
        loaded = cls.from_pretrained(str(folder), use_safetensors=True, output_loading_info=True, **own)
    return _whole(folder, loaded), processor


def _refuse_others(folder: Path, known: Collection[str], called: str, task: str) -> None:
    file = folder / "config.json"
    if not file.is_file():
        raise DsctlError(f"{folder} has no config.json", hint="give the folder of a model of transformers")
    kind = read_json(file).get("model_type")
    if kind not in known:
        raise DsctlError(
            f"{folder} is a model of the type {kind!r}, which is no {called} of transformers",
            hint=f"choose one whose type transformers lists under {task}; code of a model is never run",
        )


def _whole(folder: Path, loaded: tuple[Any, dict[str, Any]]) -> Any:
    """Return the model that was loaded, frozen; raise DsctlError where its folder lacks weights."""
    model, info = loaded
    lacking = [*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])]
    if lacking:
        raise DsctlError(
            f"{folder} lacks {counted(len(lacking), 'weight')} of a {type(model).__name__}, {sorted(lacking)[0]} first",
            hint="its config.json and its weights should come from one place",
        )
    return model.eval().requires_grad_(False)
