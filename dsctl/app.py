"""The table of commands, and `main()`. A command's module is imported when that command is run, not before."""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from dsctl import errors, launch, out
from dsctl.argv import checked_argv, unknown_command
from dsctl.interrupts import Interrupts
from dsctl_core.gc_pause import freeze_imports

# name -> (its function, what it does), or (its own table, what it does)
COMMANDS: dict[str, tuple[Any, str]] = {
    "init": ("dsctl.commands.init:init", "Write a run.toml that trains on a folder."),
    "download": ("dsctl.commands.download:download", "Get models and datasets from a hub."),
    "upload": ("dsctl.commands.upload:upload", "Put a trained file or folder on a hub."),
    "train": ("dsctl.commands.train:train", "Train a model, or a LoRA on it."),
    "cache": ("dsctl.commands.cache:cache", "Encode a dataset once, to train from it without the encoders."),
    "report": ("dsctl.commands.report:report", "Write or serve a page about a run, or compare several."),
    "infer": ("dsctl.commands.infer:infer", "Make pictures."),
    "import": (
        "dsctl.commands.import_config:import_config",
        "Turn another tool's config into a run.toml.",
    ),
    "dataset": (
        {
            "validate": ("dsctl.commands.dataset:validate", "Check every row and file of a dataset."),
            "caption": ("dsctl.commands.dataset:caption", "Write a caption for each picture or clip without one."),
            "annotate": ("dsctl.commands.dataset:annotate", "Make control pictures of the pictures of a dataset."),
        },
        "Check a dataset, write captions, or make control pictures.",
    ),
    "merge-lora": ("dsctl.commands.merge_lora:merge_lora", "Merge LoRAs into a model, or into one LoRA."),
    "lora": (
        {
            "info": ("dsctl.commands.lora:info", "Show what a LoRA is: format, layers, ranks, metadata."),
            "convert": ("dsctl.commands.lora:convert", "Write a LoRA in another format."),
            "resize": ("dsctl.commands.lora:resize", "Bring a LoRA to another rank."),
            "extract": ("dsctl.commands.lora:extract", "Make a LoRA of the difference between two checkpoints."),
        },
        "Look at LoRA files, or change them.",
    ),
    "template": (
        {
            "init": ("dsctl.commands.template:init", "Write a template that works, to start your own from."),
            "check": ("dsctl.commands.template:check", "Run a template once, and say what it takes and returns."),
            "pack": ("dsctl.commands.template:pack", "Put a template and its trained weights into one folder."),
            "upload": ("dsctl.commands.template:upload", "Check a packed template, and put it on a hub."),
        },
        "Write, check, pack and share template models.",
    ),
    "models": (
        {
            "list": ("dsctl.commands.models:list_models", "List the families and presets."),
            "show": ("dsctl.commands.models:show_model", "Show one preset, family or model folder."),
        },
        "List the models, or show one.",
    ),
    "doctor": ("dsctl.commands.doctor:doctor", "Check this machine: versions, devices, memory, disk."),
}
EVERY_COMMAND = "Every command"  # the heading of the flags that every command has
DEFAULTS = {"models": "list"}  # what a table of commands does when none of them is named


class LazyCommand(TyperCommand):
    """A name and a summary that become the real command when that is needed."""

    def __init__(self, name: str, target: str, summary: str) -> None:
        super().__init__(name, help=summary, rich_markup_mode=None)
        self.target, self.summary = target, summary

    def get_short_help_str(self, limit: int = 45) -> str:
        """Return the summary, which is short already."""
        return self.summary

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Import the command and let it parse `args`."""
        import importlib

        module, _, function = self.target.partition(":")
        command = getattr(importlib.import_module(module), function)
        # \b keeps the lines of a paragraph as they are.
        text = f"{self.help}\n\n\b\n{command.example}" if command.example else self.help
        return _parser(command, self.name, text).make_context(info_name, args, parent=parent, **extra)


@cache
def _parser(command: Callable[..., None], name: str | None, text: str | None) -> Any:
    """Return what parses the words of `command`: of two hundred flags it takes longer to make than to use."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(name, cls=Command, help=text)(command)
    return typer.main.get_command(app)


class Command(TyperCommand):
    """A command whose words are checked, and `--lora_rank` rewritten, before they are parsed."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words after the command's name."""
        if not ctx.resilient_parsing:
            args = checked_argv(args, self.get_params(ctx), ctx.command_path)
        return super().parse_args(ctx, args)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the flags under the headings of the option models that declare them."""
        sections: dict[str, list[Any]] = {}
        param: Any
        for param in self.get_params(ctx):
            if param.param_type_name == "argument":
                sections.setdefault("Arguments", []).append((str(param.metavar), str(param.help)))
            else:
                heading = getattr(param, "rich_help_panel", None) or EVERY_COMMAND
                sections.setdefault(heading, []).append(param.get_help_record(ctx))
        for heading, rows in sections.items():
            with formatter.section(heading):
                formatter.write_dl(rows)


class LazyGroup(TyperGroup):
    """A table of commands."""

    table: Mapping[str, tuple[Any, str]] = {}

    def __init__(self, *, table: Mapping[str, tuple[Any, str]] | None = None, **settings: Any) -> None:
        table = self.table if table is None else table
        commands = {name: _entry(name, target, summary) for name, (target, summary) in table.items()}
        super().__init__(**{**settings, "commands": commands, "rich_markup_mode": None})

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words up to the command's name."""
        if not ctx.resilient_parsing:  # which is completion's way of parsing
            default = DEFAULTS.get(self.name or "")
            if default and "--help" not in args and (not args or args[0].startswith("-")):
                args = [default, *args]
            args = checked_argv(args or ["--help"], self.get_params(ctx), ctx.command_path, is_group=True)
            # What follows a command's name is for that command, and reading a flag that is not there takes its time.
            self.add_help_option = args[0].startswith("-")
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Find the command that the first word names."""
        if args[0] not in self.commands and not ctx.resilient_parsing:
            raise unknown_command(args[0], list(self.commands), ctx.command_path)
        return super().resolve_command(ctx, args)


class Root(LazyGroup):
    """`dsctl` itself."""

    table = COMMANDS


def _entry(name: str, target: Any, summary: str) -> Any:
    if isinstance(target, str):
        return LazyCommand(name, target, summary)
    return LazyGroup(name=name, table=target, help=summary)


def _show_version(wanted: bool) -> None:
    if wanted:
        from dsctl_core.version import __version__

        out.show({"version": __version__}, [f"dsctl {__version__}"])
        raise typer.Exit


def _root(
    version: bool = typer.Option(False, "--version", is_eager=True, callback=_show_version, help="Show the version."),
) -> None:
    """Options that stand before the command."""


def build_app(words: Sequence[str]) -> typer.Typer:
    """Return the table of commands, to be called with `words`.

    The flags that set up the shell's completion are there only where no command is named: to read that they are not
    given, typer would import all that it reads values with.
    """
    names_a_command = bool(words) and not words[0].startswith("-")
    app = typer.Typer(
        name="dsctl",
        cls=Root,
        rich_markup_mode=None,
        add_completion=not names_a_command,
        help="Train and run diffusion transformers from the command line.",
    )
    app.callback()(_root)
    return app


def main(words: Sequence[str] | None = None) -> int:
    """Run `dsctl` with `words` (those of the process when None) and return the exit code."""
    given = list(sys.argv[1:] if words is None else words)
    if words is None:
        # The process ends with this command: the last walk through all the objects of the libraries, a second after
        # diffusers was imported, would find nothing that the system does not take back anyway.
        atexit.register(gc.freeze)
        freeze_imports()
    with out.session(given), launch.given(given), errors.Outcome() as outcome, Interrupts():
        # Of `--help` and Ctrl-C typer returns an exit code; a command itself returns nothing.
        outcome.code = build_app(given)(given, prog_name="dsctl", standalone_mode=False) or 0
    return outcome.code
