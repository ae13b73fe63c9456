"""Follow the Dockerfile step by step without Docker, and try the dsctl that comes out of it.

    .ci/image.py                      as `docker build .`
    .ci/image.py --build-arg TORCH=   as `docker build --build-arg TORCH= .`

The steps are read from the Dockerfile. They run as root in a new root folder that holds what the image's base does:
Debian of the same release, fetched by debootstrap, and this machine's Python of the same version under /usr/local, with
pip alone. Nothing else of this machine is visible to them but its network, and the folder is removed afterwards. What
this does not prove: that the base image can be fetched, that its layers are written, and that a GPU is seen.

Needs root, and a Debian of that release or an older one with `apt-get` and `unshare`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
# What python:*-slim has of Debian beyond its smallest system: the libraries that Python is linked to, and certificates.
PACKAGES = "ca-certificates,netbase,tzdata,libbz2-1.0,libexpat1,libffi8,libgdbm6,liblzma5,libncursesw6,libreadline8"
PACKAGES += ",libsqlite3-0,libssl3,libuuid1,zlib1g"
PATH = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
# How this machine reaches its networks; everything else of its environment stays outside.
NETWORK = ("http_proxy", "https_proxy", "no_proxy", "PIP_CERT", "PIP_INDEX_URL", "PIP_DEFAULT_TIMEOUT")
# Mounts live in the namespace of the command alone, so that removing the folder cannot reach what is mounted in it.
INSIDE = 'mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && exec chroot "$@"'


def instructions(text: str) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile and what stands behind each, continued lines joined."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    return [(line.split(None, 1)[0].upper(), line.split(None, 1)[1]) for line in joined.splitlines()]


def filled(text: str, values: Mapping[str, str]) -> str:
    """Return `text` with ${NAME} replaced, as Docker does outside of RUN."""
    return re.sub(r"\$\{(\w+)\}", lambda found: values[found[1]], text)


class Image:
    """A root folder in which instructions run."""

    def __init__(self, root: Path, python: str, suite: str) -> None:
        self.root, self.workdir, self.user, self.args = root, "/", "0", dict[str, str]()
        with tempfile.TemporaryDirectory() as fetched:
            subprocess.run(["apt-get", "download", "--quiet", "debootstrap"], cwd=fetched, check=True)
            subprocess.run(["dpkg", "-x", *Path(fetched).glob("*.deb"), fetched], check=True)
            tool = [f"{fetched}/usr/sbin/debootstrap", "--variant=minbase", f"--include={PACKAGES}", suite, str(root)]
            env = {**os.environ, "DEBOOTSTRAP_DIR": f"{fetched}/usr/share/debootstrap"}
            subprocess.run(tool, env=env, check=True, stdout=subprocess.DEVNULL)
        self._install_python(python)
        shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
        if certificates := os.environ.get("PIP_CERT"):
            shutil.copy(certificates, root / certificates.lstrip("/"))

    def _install_python(self, version: str) -> None:
        """Copy the interpreter that runs this script to /usr/local, with its standard library and pip alone."""
        if f"{sys.version_info.major}.{sys.version_info.minor}" != version:
            raise SystemExit(f"error: the image has Python {version}\nhint: run python{version} .ci/image.py")
        library = Path(sysconfig.get_path("stdlib"))
        skipped = shutil.ignore_patterns("site-packages", "__pycache__", "test", "config-*")
        shutil.copytree(library, self.root / "usr/local/lib" / library.name, ignore=skipped, symlinks=True)
        shutil.copy(Path(sys.executable).resolve(), self.root / f"usr/local/bin/python{version}")
        (self.root / "usr/local/bin/python3").symlink_to(f"python{version}")
        (self.root / "usr/local/bin/python").symlink_to("python3")
        for shared in Path(sysconfig.get_config_var("LIBDIR")).glob(f"libpython{version}.so*"):
            shutil.copy(shared, self.root / "usr/local/lib" / shared.name, follow_symlinks=False)
        self.run(["ldconfig"])
        self.run(["python", "-m", "ensurepip", "--default-pip"])

    def run(self, command: Sequence[str], more: Mapping[str, str] | None = None) -> None:
        """Run a command as the user of the image, in its working directory; leave the script if it fails."""
        home = "/root" if self.user == "0" else self._home()
        kept = {name: os.environ[name] for name in NETWORK if name in os.environ}
        env = {"PATH": PATH, "HOME": home, "LANG": "C.UTF-8", **kept, **self.args, **(more or {})}
        within = ["sh", "-c", 'cd "$0" && exec "$@"', self.workdir, *command]
        outside = ["unshare", "--mount", "sh", "-c", INSIDE, str(self.root), f"--userspec={self.user}:{self.user}"]
        words = [f"{name}={value}" for name, value in env.items()]
        print("+", f"[{self.user}]", " ".join(command), flush=True)
        done = subprocess.run([*outside, str(self.root), "env", "-i", *words, *within], check=False)
        if done.returncode:
            raise SystemExit(f"error: this step of the image left with {done.returncode}")

    def _home(self) -> str:
        users = [line.split(":") for line in (self.root / "etc/passwd").read_text().splitlines()]
        return next(user[5] for user in users if user[2] == self.user)

    def copy(self, words: Sequence[str]) -> None:
        """Copy files, or what folders hold, of the repository into the image."""
        *sources, target = words
        to = self.root / self.workdir.lstrip("/") / target
        for source in sources:
            here = REPOSITORY / source
            if here.is_dir():
                shutil.copytree(here, to, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(here, to)


def main() -> None:
    parser = argparse.ArgumentParser(description="Follow the Dockerfile without Docker.")
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    given = dict(each.split("=", 1) for each in parser.parse_args().build_arg)
    steps = instructions((REPOSITORY / "Dockerfile").read_text(encoding="utf-8"))
    before = [name for name, _ in steps].index("FROM")
    outer = {name: given.get(name, default) for _, each in steps[:before] for name, default in [each.split("=", 1)]}
    base = re.fullmatch(r"python:(\d\.\d+)-slim-(\w+)", filled(steps[before][1], outer))
    if base is None:
        raise SystemExit(f"error: unknown base image {steps[before][1]}")
    end: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        image = Image(Path(folder) / "root", *base.groups())
        for name, text in steps[before + 1 :]:
            if name == "ARG":
                argument, _, default = text.partition("=")
                image.args[argument] = given.get(argument, default)
            elif name == "WORKDIR":
                image.workdir = text
                (image.root / text.lstrip("/")).mkdir(parents=True, exist_ok=True)
            elif name == "USER":
                image.user = text
            elif name == "COPY":
                image.copy(text.split())
            elif name == "RUN":
                image.run(["/bin/sh", "-c", text])
            elif name in ("ENTRYPOINT", "CMD"):
                end[name] = json.loads(text)
            else:
                raise SystemExit(f"error: no step of the image is known as {name}")
        image.args = {}
        try_out(image, end["ENTRYPOINT"], end["CMD"])
    print("the steps of the Dockerfile run, and dsctl works as the image's user")


def try_out(image: Image, entrypoint: list[str], default: list[str]) -> None:
    """Show the help, look at the machine, and train two steps and draw, as the user whom a container has."""
    offline = {"DSCTL_SKIP_DOWNLOAD": "1"}
    image.run([*entrypoint, *default], offline)
    image.run([*entrypoint, "doctor"], offline)
    where = "import dsctl_core; print(dsctl_core.__path__[0] + '/assets/datasets/robot')"
    train = f'{entrypoint[0]} train sft --model tiny --dataset-base-path "$(python -c "{where}")" --lora-rank 2 \
        --max-steps 2 --device cpu --output-path runs/a --quiet'
    image.run(["/bin/sh", "-c", train], offline)
    drawn = ["infer", "--model", "tiny", "--lora", "runs/a/step-2.safetensors", "--prompt", "a robot"]
    image.run([*entrypoint, *drawn, "--num-inference-steps", "2", "--device", "cpu", "--output", "a.png"], offline)
    left = list((image.root / "src").iterdir())
    if left or image.user == "0":
        raise SystemExit(f"error: the image runs as root, or keeps {left}")


if __name__ == "__main__":
    main()
