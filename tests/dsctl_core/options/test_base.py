"""Options are frozen and strict, and say in one line what does not fit."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import pytest
from pydantic import Field, ValidationError

from dsctl_core.errors import UsageError
from dsctl_core.options import (
    CacheOptions,
    DatasetValidateOptions,
    DoctorOptions,
    InferOptions,
    ModelsShowOptions,
    Options,
    TrainOptions,
)
from dsctl_core.options.base import Alternative, Argument, ComposedOptions, Count, Names, Text
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


class Sizes(Options):
    """A group with a rule of its own."""

    panel: ClassVar[str] = "Sizes"

    height: Count = Field(1, description="A height.")
    width: Count = Field(1, description="A width.")

    def check(self) -> None:
        """Refuse what is not square."""
        if self.height != self.width:
            raise UsageError("it is not square")


class Composed(ComposedOptions):
    """Two groups, an option of its own, and a pair of alternatives across them."""

    exclusive: ClassVar[tuple[Alternative, ...]] = (("height", "share"),)
    panel: ClassVar[str] = "Own"

    sizes: Sizes
    example: Example
    name: Text = Field(description="A name.")

    def check(self) -> None:
        """Refuse a name that is a word of the group."""
        if self.name == self.example.word:
            raise UsageError("the name is the word")


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
    assert options.flat_fields()
    for name, field in options.flat_fields().items():
        assert field.description, name
        assert field.description.endswith("."), name


@pytest.mark.parametrize("options", EVERY)
def test_every_number_has_a_lower_bound(options: type[Options]):
    fields = options.flat_fields()
    numbers = {name: f for name, f in fields.items() if bare_type(f.annotation) in (int, float)}
    assert numbers or options in WITHOUT_NUMBERS
    for name, field in numbers.items():
        assert {"ge", "gt"} & set(bounds(field)), name
        assert requirement(field).startswith(("a whole number", "a number")), name


@pytest.mark.parametrize("options", EVERY)
def test_every_default_is_itself_allowed(options: type[Options]):
    defaults = {name: field.default for name, field in options.flat_fields().items() if not field.is_required()}
    needed = {"model": "m", "prompt": "p", "lora_rank": 4, "dataset_base_path": "d", "output_path": "o", "name": "n"}
    values = {**defaults, **{name: value for name, value in needed.items() if name in options.flat_fields()}}
    given = set(needed) & set(values)
    built = options.resolved(values, given)
    assert built.flat_values() == {**built.flat_values(), **defaults, **{name: built.value_of(name) for name in given}}
    assert set(built.given_names()) == given


def test_groups_take_their_options_by_flat_names_and_know_which_were_given():
    options = Composed(name="n", height=2, width=2, word="green")
    assert (options.sizes.height, options.example.word, options.name) == (2, "green", "n")
    assert options == Composed.model_validate({"word": "green", "width": "2", "height": "2", "name": "n"})
    assert options.given_names() == ["height", "width", "word", "name"]
    assert options.sizes.given("height") and not options.example.given("text")


def test_flat_fields_and_values_stand_in_the_order_of_the_groups_under_their_panels():
    options = Composed(name="n")
    names = ["height", "width", *Example.model_fields, "name"]
    assert list(Composed.flat_fields()) == list(options.flat_values()) == names
    assert Composed.resolved(options.flat_values(), ["name"]) == options
    assert options.flat_values("json")["names"] == []
    panels = [Composed.panel_of(name) for name in ("height", "text", "name")]
    assert panels == ["Sizes", "Options", "Own"]


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        # a value that does not fit comes before one that is missing, and both before what several options say together
        ({"height": 2, "word": "blue"}, "--word is 'blue', which is unknown"),
        ({"height": 2}, "--name is missing"),
        ({"name": "n", "height": 2}, "it is not square"),
        ({"name": "red", "height": 2}, "it is not square"),
        ({"name": "red"}, "the name is the word"),
        ({"name": "n", "height": 2, "share": 0.5}, "--height and --share are both given"),
        ({"name": "n", "count": 2, "share": 0.5}, "--count and --share are both given"),
        ({"name": "n", "heigth": 2}, "unknown option 'heigth'"),
        ({"name": "n", "sizes": {"height": 2}}, "unknown option 'sizes'"),
        ({"heigth": 2}, "unknown option 'heigth'"),
    ],
)
def test_what_is_wrong_with_composed_options_is_told_as_if_they_were_flat(values: dict, problem: str):
    with pytest.raises(UsageError) as caught:
        Composed(**values)
    assert problem in caught.value.problem


@pytest.mark.parametrize("options", [TrainOptions, CacheOptions, InferOptions, DatasetValidateOptions])
def test_no_group_has_the_name_of_an_option_and_no_option_stands_in_two_groups(options: type[ComposedOptions]):
    names = [name for group in options.groups().values() for name in group.model_fields]
    names += [name for name in options.model_fields if name not in options.groups()]
    assert len(names) == len(set(names)) == len(options.flat_fields())
    assert options.groups() and not set(options.groups()) & set(names)


def test_groups_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Composed(name="n").sizes.height = 3  # type: ignore[misc]
