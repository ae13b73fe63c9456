"""Reads the commands that a markdown file shows, so that tests can run them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

_BLOCK = re.compile(
    r"(?:<!-- not run by the tests: (?P<reason>[^>]+) -->\n)?^```sh\n(?P<body>.*?)^```$", re.DOTALL | re.MULTILINE
)


@dataclass(frozen=True)
class Block:
    """A fenced block of shell commands; `reason` says why tests cannot run it, or is None."""

    commands: tuple[str, ...]
    reason: str | None


def shell_blocks(text: str) -> list[Block]:
    """Return the ```sh blocks of `text`, each with its commands: continued lines joined, comments and prompts off."""
    return [Block(tuple(_commands(found["body"])), found["reason"]) for found in _BLOCK.finditer(text)]


def _commands(body: str) -> list[str]:
    lines = body.replace("\\\n", " ").splitlines()
    return [line for line in lines if shlex.split(line, comments=True)]


def words(command: str) -> list[str]:
    """Return the words of a command, without what it redirects and without a comment."""
    return shlex.split(command.split(" > ")[0], comments=True)


def shortened(command: str) -> str:
    """Return a training or drawing command with 2 steps in place of however many it takes, files named accordingly."""
    command = re.sub(r"(step-)\d+(\.safetensors)", r"\g<1>2\2", command)
    if command.startswith("dsctl train"):
        command = re.sub(r"--lr-warmup-steps [\d.]+", "", command)  # a share of 2 steps is none
        command, redirect, rest = re.sub(r"--(max-steps|num-epochs|save-steps|batch-size) \d+", "", command).partition(
            " > "
        )
        return f"{command} --max-steps 2 --batch-size 1{redirect}{rest}"
    if command.startswith("dsctl infer"):
        return re.sub(r"--num-inference-steps \d+", "", command) + " --num-inference-steps 2"
    return command
