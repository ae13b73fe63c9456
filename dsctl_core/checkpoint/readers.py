"""Load tokenizers and processors, which are found next to the components of a model, on first use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsctl_core.checkpoint.build import one_line
from dsctl_core.errors import DsctlError
from dsctl_core.family import Family, Reader

# The class of transformers that loads each kind, and the name of its folder next to files of components.
AUTO_CLASS = {"tokenizer": "AutoTokenizer", "processor": "AutoProcessor", "image_processor": "AutoImageProcessor"}
NAMED_BY = {
    "tokenizer": "--tokenizer-path, or tokenizer_config in Python",
    "processor": "processor_config in Python, or a model folder that has {folder}/",
}


class Readers:
    """The readers of one model by name, each loaded on first use.

    `folders` are the folders of those that it has, and `loaded` those that have none.
    """

    def __init__(
        self, family: Family, folders: Mapping[str, Path] | None = None, loaded: Mapping[str, Any] | None = None
    ) -> None:
        self.family, self.folders = family, dict(folders or {})
        self._loaded: dict[str, Any] = dict(loaded or {})

    def __contains__(self, name: str) -> bool:
        return name in self.folders or name in self._loaded

    def get(self, name: str) -> Any:
        """Return the reader `name`; raise DsctlError, with a hint on how to specify one, if the model has none."""
        reader = self.family.reader(name)
        if name not in self:
            how = NAMED_BY.get(name, "reader_configs in Python, or a model folder that has {folder}/")
            raise DsctlError(
                f"this needs the {name} of {self.family.title}, but there is no {name}",
                hint=f"name its folder too: {how.format(folder=reader.folder)}",
            )
        if name not in self._loaded:
            self._loaded[name] = load_reader(reader, self.folders[name])
        return self._loaded[name]

    def with_others(self, others: Readers) -> Readers:
        """Return these readers, and those of `others` with other names; readers that are loaded stay loaded."""
        folders = {**others.folders, **self.folders}
        return Readers(self.family, folders, {**others._loaded, **self._loaded})


def load_reader(reader: Reader, folder: Path) -> Any:
    """Load the reader in `folder`; raise DsctlError if it is missing or damaged."""
    import transformers

    kind: Any = getattr(transformers, AUTO_CLASS[reader.kind])
    # With torchvision installed, images would be resized by another algorithm than without it.
    backend = {"backend": "pil"} if reader.kind == "image_processor" else {}
    try:
        return kind.from_pretrained(str(folder), local_files_only=True, **backend)
    except MemoryError:
        raise
    except Exception as error:  # the libraries raise whatever a value in a damaged file runs into
        what = reader.kind.replace("_", " ")
        raise DsctlError(
            f"{folder} holds no {what}: {one_line(error)}",
            hint=f"download the {what} again",
        ) from error
