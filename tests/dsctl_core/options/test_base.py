"""Options are frozen and strict, and say in one line what does not fit."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import pytest
from pydantic import Field, ValidationError

from dsctl_core.errors import UsageError
from dsctl_core.options import DoctorOptions, InferOptions, ModelsShowOptions, Options, TrainOptions
from dsctl_core.options.base import Alternative, Argument, Count, Names, Text
from dsctl_core.options.messages import bare_type, bounds, requirement

EVERY = (TrainOptions, InferOptions, ModelsShowOptions, DoctorOptions)
WITHOUT_NUMBERS = (ModelsShowOptions, DoctorOptions)


class Example(Options):
    """One field of every kind."""

    exclusive: ClassVar[tuple[Alternative, ...]] = (("count", "share"),)

    count: Count = Field(1, description="A count.")
    share: Annotated[float, Field(gt=0, lt=1)] | None = Field(None, description="A share.")
    names: Names = Field((), description="Names.")
    word: Literal["red", "green"] = Field("red", description="A word.")
    text: Text = Field("x", description="A text.")
    on: bool = Field(False, description="A switch.")
    place: Annotated[Text, Argument()] = Field("here", description="A place.")


class Further(Example):
    """Inherits the alternatives and adds one."""

    exclusive: ClassVar[tuple[Alternative, ...]] = (("text", "word"),)


@pytest.mark.parametrize(
    ("values", "problem", "hint"),
    [
        ({"count": 0}, "--count is 0, which is too small", "--count takes a whole number from 1 to 2147483647"),
        ({"count": "-3"}, "--count is -3, which is too small", "--count takes a whole number from 1 to 2147483647"),
        ({"count": "a"}, "--count is 'a', which is not a whole number", "--count takes a whole number from"),
        ({"count": "1.5"}, "--count is 1.5, which is not a whole number", "--count takes a whole number from"),
        ({"count": 2**40}, "--count is 1099511627776, which is too large", "--count takes a whole number from"),
        ({"share": 1}, "--share is 1, which is too large", "--share takes a number above 0 and below 1"),
        ({"share": "nan"}, "--share is nan, which is not a number", "--share takes a number above 0 and below 1"),
        ({"share": "inf"}, "--share is inf, which is not a number", "--share takes a number above 0 and below 1"),
        ({"names": "a,,b"}, "--names is 'a,,b': it has an empty name", "--names takes names separated by commas"),
        ({"word": "gren"}, "--word is 'gren', which is unknown", "did you mean 'green'? --word takes one of"),
        ({"word": "zzz"}, "--word is 'zzz', which is unknown", "--word takes one of red, green"),
        ({"text": ""}, "--text is empty", "--text: A text."),
        ({"on": "perhaps"}, "--on is 'perhaps', which is not true or false", "--on takes true or false"),
        ({"place": ""}, "PLACE is empty", "PLACE: A place."),
        ({"coutn": 1}, "unknown option 'coutn'", "did you mean 'count'?"),
    ],
)
def test_what_does_not_fit_is_named_with_what_would(values: dict, problem: str, hint: str):
    with pytest.raises(UsageError) as caught:
        Example(**values)
    assert problem in caught.value.problem
    assert hint in (caught.value.hint or "")


def test_a_missing_option_is_named_after_those_that_are_wrong():
    with pytest.raises(UsageError, match="--batch-size is 0"):
        TrainOptions(model="m", lora_rank=4, batch_size=0)
    with pytest.raises(UsageError, match="--dataset-base-path is missing"):
        TrainOptions(model="m", lora_rank=4, output_path="o")


def test_options_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        Example().count = 2  # type: ignore[misc]


@pytest.mark.parametrize(("text", "names"), [("", ()), (" ", ()), ("a", ("a",)), ("a , b", ("a", "b"))])
def test_names_are_split_at_commas(text: str, names: tuple[str, ...]):
    assert Example(names=text).names == names


def test_options_that_exclude_each_other_are_refused_also_where_inherited():
    with pytest.raises(UsageError, match="--count and --share are both given"):
        Further(count=2, share=0.5)
    with pytest.raises(UsageError, match="--text and --word are both given"):
        Further(text="y", word="green")
    assert Further(count=2, text="y").share is None


def test_given_tells_what_was_set_from_what_was_left():
    example = Example(count=1)
    assert (example.given("count"), example.given("text")) == (True, False)


@pytest.mark.parametrize("options", EVERY)
def test_every_option_has_a_description_that_is_a_sentence(options: type[Options]):
    assert options.model_fields
    for name, field in options.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name


@pytest.mark.parametrize("options", EVERY)
def test_every_number_has_a_lower_bound(options: type[Options]):
    numbers = {name: f for name, f in options.model_fields.items() if bare_type(f.annotation) in (int, float)}
    assert numbers or options in WITHOUT_NUMBERS
    for name, field in numbers.items():
        assert {"ge", "gt"} & set(bounds(field)), name
        assert requirement(field).startswith(("a whole number", "a number")), name


@pytest.mark.parametrize("options", EVERY)
def test_every_default_is_itself_allowed(options: type[Options]):
    defaults = {name: field.default for name, field in options.model_fields.items() if not field.is_required()}
    needed = {"model": "m", "prompt": "p", "lora_rank": 4, "dataset_base_path": "d", "output_path": "o", "name": "n"}
    values = {**defaults, **{name: value for name, value in needed.items() if name in options.model_fields}}
    assert options(**values).model_dump().keys() == options.model_fields.keys()
