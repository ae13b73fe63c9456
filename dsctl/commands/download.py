"""`dsctl download`."""

from __future__ import annotations

from dsctl import out
from dsctl.flags import takes
from dsctl_core.options.hub import DownloadOptions
from dsctl_core.readable import counted, readable_bytes


@takes(DownloadOptions)
def download(options: DownloadOptions) -> None:
    """Get models and datasets from a hub: resumed, checked, and only what is missing."""
    from dsctl_core.commands.download import download

    found = download(options, progress=out.transfers())
    lines = []
    for each in found:
        if options.list:
            rows = [(name, readable_bytes(size)) for name, size in each.files.items()]
            lines += out.columns(
                [*rows, (f"{each.what}: {counted(len(rows), 'file')}", readable_bytes(sum(each.files.values())))]
            )
        else:
            lines.append(str(each.folder))
    things = [
        {
            "what": each.what,
            "folder": str(each.folder),
            "files": each.files,
            "new_files": each.new_files,
            "new_bytes": each.new_bytes,
        }
        for each in found
    ]
    out.show({"downloaded": not options.list, "things": things, "folder": things[0]["folder"]}, lines)
