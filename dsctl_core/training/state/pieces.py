"""Write and read the sharded tensors of a state in pieces, each process its own, with torch.distributed.checkpoint.

The pieces are safetensors files, which hold in their headers where each piece belongs, so that any number of processes
can read them, and nothing in them can be executed.
"""

from __future__ import annotations

import errno
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from dsctl_core.errors import DsctlError
from dsctl_core.files.atomic import sync_folder, write_error
from dsctl_core.training.state.folder import StateFile, described
from dsctl_core.training.state.values import Piece

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

# torch.distributed.checkpoint puts a file together in memory before it writes it, so that each process makes several.
FILE_BYTES = 2**30


def taken(value: Any, pieces: dict[str, Tensor], place: str, *, keep: bool, copy: bool) -> Any:
    """Return `value`, nested dicts, lists and tuples, with a Piece in place of each sharded tensor.

    Copies of the shards on the CPU are added to `pieces`, under names that begin with `place` and that are the same in
    every process. Full tensors are copied to the CPU with `copy`, and replaced by None unless `keep`, for processes
    that do not write them.
    """
    if isinstance(value, DTensor):
        name = f"{place.partition('.')[0]}/{len(pieces):06d}.{place.partition('.')[2]}"
        own = value.detach()
        pieces[name] = own.clone() if own.device.type == "cpu" else own.cpu()
        return Piece(name)
    if isinstance(value, Tensor):
        if not keep:
            return None
        return value.detach().to("cpu", copy=True) if copy else value
    if isinstance(value, dict):
        return {key: taken(each, pieces, f"{place}.{key}", keep=keep, copy=copy) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(
            taken(each, pieces, f"{place}.{number}", keep=keep, copy=copy) for number, each in enumerate(value)
        )
    return value


def write_pieces(folder: Path, pieces: Mapping[str, Tensor], group: ProcessGroup) -> dict[str, StateFile]:
    """Write the shards that this process has of `pieces` into `folder`; return the manifest's entries of all files.

    Called by all processes of `group` at once, with the same names. Raises a DsctlError in all of them if one of them
    cannot write.
    """
    import torch.distributed as dist
    from torch.distributed import checkpoint

    writer = checkpoint.HuggingFaceStorageWriter(
        str(folder), fqn_to_index_mapping=_files_of(pieces, group.size()), save_distributed=True
    )
    with _in_one_line(folder):
        checkpoint.save(dict(pieces), storage_writer=writer, process_group=group)
    own = described(sorted(folder.glob(f"shard-{group.rank() + 1:05d}-*.safetensors")))
    sync_folder(folder)
    shared: list[dict[str, StateFile]] = [{} for _ in range(group.size())]
    dist.all_gather_object(shared, own, group=group)
    return {name: file for files in shared for name, file in files.items()}


def _files_of(pieces: Mapping[str, Tensor], processes: int) -> dict[str, int]:
    """Return the number of the file of each of `pieces`, from 1 on."""
    found, number, used = {}, 1, 0
    for name, tensor in pieces.items():
        size = tensor.numel() * tensor.element_size() // processes
        if used and used + size > FILE_BYTES:
            number, used = number + 1, 0
        found[name], used = number, used + size
    return found


def read_pieces(folder: Path, file: str, mesh: DeviceMesh | None) -> dict[str, Tensor]:
    """Return the tensors in `folder` whose names begin with `file`, on the CPU, sharded over `mesh` (None: whole).

    Each process reads its own shards alone, however many processes have written them.
    """
    from torch.distributed import checkpoint

    if not folder.is_dir():
        return {}
    with _in_one_line(folder):
        known = checkpoint.HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
        made = {
            name: _empty(about.size, about.properties.dtype, mesh)  # type: ignore[union-attr]
            for name, about in known.items()
            if name.startswith(f"{file}/")
        }
        with warnings.catch_warnings():  # it warns of what is asked for: that no process waits for another
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            checkpoint.load(made, storage_reader=checkpoint.HuggingFaceStorageReader(str(folder)), no_dist=True)
    return made


def _empty(shape: torch.Size, dtype: torch.dtype, mesh: DeviceMesh | None) -> Tensor:
    if mesh is None:
        return torch.empty(shape, dtype=dtype)
    from torch.distributed.tensor import Shard, empty

    # FSDP2 divides every weight by its rows. DTensors are made on the device of their mesh.
    return empty(shape, dtype=dtype, device_mesh=mesh, placements=[Shard(0)]).cpu()


@contextmanager
def _in_one_line(folder: Path) -> Iterator[None]:
    """Turn the failures that torch.distributed.checkpoint has gathered from all processes into one DsctlError."""
    from torch.distributed.checkpoint import CheckpointException

    try:
        yield
    except CheckpointException as failed:
        rank, (error, _) = min(failed.failures.items())
        if isinstance(error, OSError):
            raise write_error(folder, OSError(error.errno or errno.EIO, str(error.strerror or error))) from failed
        raise DsctlError(
            f"{folder}: process {rank} failed with {type(error).__name__}: {' '.join(str(error).split())}",
            hint="resume from the newest whole state",
        ) from failed
