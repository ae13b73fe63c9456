"""Examine this machine for `dsctl doctor`. Nothing is downloaded, and no hub is contacted unless asked for."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from dsctl_core.hub.settings import model_base_path
from dsctl_core.options import DoctorOptions
from dsctl_core.readable import readable_bytes
from dsctl_core.version import __version__

PACKAGES: tuple[str, ...] = (
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "accelerate",
    "safetensors",
    "huggingface_hub",
    "modelscope",
)
PACKAGES += ("Pillow", "pyarrow", "pydantic", "typer", "rich")
OPTIONAL = (
    "av",
    "starlette",
    "uvicorn",
    "pillow-heif",
    "pillow-jxl-plugin",
    "flash-attn",
    "xformers",
    "bitsandbytes",
    "torchao",
    "deepspeed",
)
HUB_TIMEOUT = 5  # seconds


@dataclass(frozen=True)
class Report:
    """The findings as text by section. `problems` are those that keep dsctl from working."""

    versions: dict[str, str]
    devices: dict[str, str]
    attention: dict[str, str]
    memory: dict[str, str]
    disk: dict[str, str]
    hubs: dict[str, str]
    problems: list[str]


def examine(options: DoctorOptions) -> Report:
    """Examine this machine."""
    installed, problems = versions()
    hubs = reachable_hubs() if options.hub else {}
    problems += [f"{hub} cannot be reached: {answer}" for hub, answer in hubs.items() if answer != "reachable"]
    fault = torch_fault()
    problems += [fault] if fault else []
    return Report(
        versions=installed,
        devices=devices() if fault is None else {},
        attention=attention_backends() if fault is None else {},
        memory=memory(fault is None),
        disk=disk(),
        hubs=hubs,
        problems=problems,
    )


def versions() -> tuple[dict[str, str], list[str]]:
    """Return the versions of dsctl, Python and the packages, and a problem for each package that is missing."""
    found = {"dsctl": __version__, "python": platform.python_version(), "system": platform.platform()}
    problems = []
    for package in (*PACKAGES, *OPTIONAL):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            if package in PACKAGES:
                problems.append(f"{package} is not installed")
    return found, problems


def torch_fault() -> str | None:
    """Return why torch cannot be imported, or None when it can."""
    try:
        import torch  # noqa: F401
    except (ImportError, OSError) as error:  # OSError: one of its shared libraries is missing
        return f"torch cannot be imported: {error}"
    return None


def devices() -> dict[str, str]:
    """Return the devices that torch can compute on."""
    import torch

    from dsctl_core.memory.mps import has_mps

    found = {"cpu": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"}
    found["cpu"] += f", {torch.get_num_threads()} threads used"
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        bf16 = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bf16"
        found[f"cuda:{index}"] = f"{gpu.name}, {readable_bytes(gpu.total_memory)}, sm_{gpu.major}{gpu.minor}, {bf16}"
    if has_mps():
        found["mps"] = "Apple GPU, used with --device mps alone, in float32"
    return found


def attention_backends() -> dict[str, str]:
    """Return what each attention backend can do here, the kernels of torch's own, and what libraries are installed."""
    import torch

    from dsctl_core.memory.attention import abilities

    cuda = torch.backends.cuda
    switches = {
        "flash": cuda.flash_sdp_enabled(),
        "memory efficient": cuda.mem_efficient_sdp_enabled(),
        "cudnn": cuda.cudnn_sdp_enabled(),
        "math": cuda.math_sdp_enabled(),
    }
    where = "" if torch.cuda.is_available() else ", were there a GPU; the CPU has its own"
    libraries = [name for name in ("flash_attn", "xformers") if importlib.util.find_spec(name)]
    return {
        "torch sdpa": ", ".join(name for name, on in switches.items() if on) + where,
        "libraries": ", ".join(libraries) or "none",
        **(abilities(torch.device("cuda" if torch.cuda.is_available() else "cpu")) if _has_diffusers() else {}),
    }


def _has_diffusers() -> bool:
    return importlib.util.find_spec("diffusers") is not None


def memory(has_torch: bool) -> dict[str, str]:
    """Return the free memory of this machine and of its GPUs."""
    found = {}
    if importlib.util.find_spec("psutil"):  # it comes with accelerate
        import psutil

        state = psutil.virtual_memory()
        found["main"] = f"{readable_bytes(state.available)} free of {readable_bytes(state.total)}"
    if has_torch:
        import torch

        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            found[f"cuda:{index}"] = f"{readable_bytes(free)} free of {readable_bytes(total)}"
    return found


def disk() -> dict[str, str]:
    """Return the free space where dsctl writes: here, at the models, and for temporary files."""
    places = {"here": Path.cwd(), "models": model_base_path().absolute(), "temporary": Path(tempfile.gettempdir())}
    found = {}
    for name, place in places.items():
        existing = next(path for path in (place, *place.parents) if path.exists())
        found[name] = f"{readable_bytes(shutil.disk_usage(existing).free)} free, {place}"
    return found


def reachable_hubs() -> dict[str, str]:
    """Ask each model hub for its front page, and return "reachable" or what went wrong."""
    import urllib.error
    import urllib.request

    answers = {}
    for name, address in hub_addresses().items():
        try:
            with urllib.request.urlopen(address, timeout=HUB_TIMEOUT):
                answers[name] = "reachable"
        except urllib.error.HTTPError as error:
            answers[name] = f"{address} answered {error.code}"
        except OSError as error:
            answers[name] = f"{address}: {getattr(error, 'reason', None) or error}"
    return answers


def hub_addresses() -> dict[str, str]:
    """Return the addresses that the hubs' own clients use."""
    from huggingface_hub.constants import ENDPOINT
    from modelscope.hub.utils.utils import get_endpoint

    return {"huggingface": ENDPOINT, "modelscope": get_endpoint()}
