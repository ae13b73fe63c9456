"""The words of a command line: underscores in flags, near misses, and what is never touched."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsctl.argv import checked_argv
from dsctl_core.errors import UsageError


@dataclass
class Param:
    """What `checked_argv` looks at in a parameter of typer."""

    opts: list[str]
    secondary_opts: list[str] = field(default_factory=list)
    nargs: int = 1
    is_flag: bool = False
    param_type_name: str = "option"
    help: str = "What it is."
    multiple: bool = False

    @property
    def name(self) -> str:
        return self.opts[0]


PARAMS = [
    Param(["--lora-rank"]),
    Param(["--model-id-with-origin-paths"]),
    Param(["--prompt", "--say"]),
    Param(["--lora"], multiple=True),
    Param(["--use-tiles"], ["--no-use-tiles"], is_flag=True),
    Param(["task"], param_type_name="argument"),
]


def check(*words: str) -> list[str]:
    return checked_argv(words, PARAMS, "dsctl train")


@pytest.mark.parametrize(
    ("given_words", "expected"),
    [
        (["--lora_rank", "4"], ["--lora-rank", "4"]),
        (["--lora_rank=16"], ["--lora-rank=16"]),
        (["--model_id-with_origin-paths", "a_b/c_d:*"], ["--model-id-with-origin-paths", "a_b/c_d:*"]),
        (["--prompt", "a_b"], ["--prompt", "a_b"]),
        (["--prompt=--lora_rank"], ["--prompt=--lora_rank"]),
        (["--prompt=a_b=c_d"], ["--prompt=a_b=c_d"]),
        (["--prompt", "--not_ours"], ["--prompt", "--not_ours"]),
        (["sft:data_process"], ["sft:data_process"]),
        (["--no_use_tiles"], ["--no-use-tiles"]),
        (["--lora", "a", "--lora=b"], ["--lora", "a", "--lora=b"]),
        (["--lora-rank", "-1"], ["--lora-rank", "-1"]),
        (["--prompt", ""], ["--prompt", ""]),
        (["--", "--lora_rank"], ["--", "--lora_rank"]),
    ],
)
def test_underscores_become_dashes_in_flags_and_nowhere_else(given_words: list[str], expected: list[str]):
    assert check(*given_words) == expected


@given(st.text().filter(lambda text: not text.startswith("--")))
def test_a_value_is_never_changed(value: str):
    assert check("--prompt", value) == ["--prompt", value]
    assert check(f"--prompt={value}") == [f"--prompt={value}"]


@pytest.mark.parametrize(
    ("words", "problem", "hint"),
    [
        (["--lora-rnak", "4"], "unknown flag --lora-rnak", "did you mean --lora-rank?"),
        (["--lora_rnak=4"], "unknown flag --lora_rnak", "did you mean --lora-rank?"),
        (["--zzz"], "unknown flag --zzz", "see `dsctl train --help`"),
        (["--prompt"], "--prompt has no value", "--prompt: What it is."),
        (["--prompt", "--lora_rank", "4"], "the next argument is the flag --lora_rank", "--prompt=--lora_rank"),
        (["--use-tiles=yes"], "--use-tiles takes no value, but it has the value 'yes'", "write --use-tiles alone"),
        (["sft", "a red", "--lora-rank", "4"], "unexpected argument 'a red'", "quotes"),
        (["sft", "--", "more"], "unexpected argument 'more'", "quotes"),
        (["--lora-rank", "1", "--lora_rank=2"], "--lora-rank is given twice", "give it once"),
        (["--lora-rank=1", "--prompt", "a", "--lora-rank=1"], "--lora-rank is given twice", "give it once"),
        (["--use-tiles", "--use-tiles"], "--use-tiles is given twice", "give it once"),
        (["--use-tiles", "--no-use-tiles"], "--use-tiles and --no-use-tiles are both given", "give one of them"),
        (["--prompt", "a", "--say", "b"], "--prompt and --say are both given", "give one of them"),
    ],
)
def test_what_is_wrong_with_the_words_is_named(words: list[str], problem: str, hint: str):
    with pytest.raises(UsageError) as caught:
        check(*words)
    assert problem in caught.value.problem
    assert hint in (caught.value.hint or "")


def test_a_groups_words_end_at_the_commands_name():
    words = ["train", "--lora_rank", "4", "--zzz"]
    assert checked_argv(words, [Param(["--version"], is_flag=True)], "dsctl", is_group=True) == words
