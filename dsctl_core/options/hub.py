"""Options of `dsctl download` and `dsctl upload`."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from dsctl_core.errors import UsageError
from dsctl_core.options.base import Argument, Names, Options, Text
from dsctl_core.options.effects import ONLY_LISTED, Idle
from dsctl_core.options.messages import Takes

Source = Literal["modelscope", "huggingface"]


class DownloadOptions(Options):
    """Options of `dsctl download`."""

    panel: ClassVar[str] = "Download"
    idle: ClassVar[tuple[Idle, ...]] = (ONLY_LISTED,)

    what: Annotated[Names, Argument(), Takes("names of presets, or OWNER/NAME[@REVISION][:PATTERN]")] = Field(
        min_length=1, description="Presets (`dsctl models` lists them), or OWNER/NAME[@REVISION][:PATTERN]."
    )
    dataset: bool = Field(False, description="It is a dataset, not a model.")
    source: Source | None = Field(None, description="Hub. Left out: DSCTL_DOWNLOAD_SOURCE, else modelscope.")
    include: Names = Field((), description="Only files that match one of these globs, separated by commas.")
    exclude: Names = Field((), description="No files that match one of these globs, separated by commas.")
    revision: Text | None = Field(None, description="Branch, tag or commit. Left out: the newest.")
    local_dir: Path | None = Field(
        None,
        description="Folder to put the files into. Left out: OWNER/NAME in the model base path; a dataset: in data.",
    )
    max_workers: Annotated[int, Field(ge=1, le=64)] = Field(4, description="Files that are downloaded at once.")
    token: Text | None = Field(None, description="Access token. Left out: the hub's own variables and login.")
    list: bool = Field(False, description="Show the files and their sizes, and download nothing.")

    def check(self) -> None:
        """Raise a UsageError for one folder that several things are to be put into."""
        if self.local_dir is not None and len(self.what) > 1:
            raise UsageError("--local-dir is given for several things at once", hint="download them one by one")


class UploadOptions(Options):
    """Options of `dsctl upload`."""

    panel: ClassVar[str] = "Upload"

    path: Annotated[Path, Argument()] = Field(description="The file or folder to upload.")
    repo: Text = Field(description="Repository OWNER/NAME; it is made if it does not exist.")
    target: Source | None = Field(None, description="Hub. Left out: DSCTL_DOWNLOAD_SOURCE, else modelscope.")
    private: bool = Field(False, description="Make the repository private, where it has to be made.")
    revision: Text | None = Field(None, description="Branch to upload to. Left out: the hub's own.")
    token: Text | None = Field(None, description="Access token. Left out: the hub's own variables and login.")
    dry_run: bool = Field(False, description="Check everything and show what would be uploaded, and upload nothing.")
