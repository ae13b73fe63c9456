"""The base of all option models, and the types that several of them share.

A field is an option: `lora_rank` is the flag `--lora-rank`, the key `lora_rank` in run.toml, and its description is
the flag's help. Values that do not fit are a `UsageError` naming the flag, the value and what it takes.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)
from typing_extensions import Self

from dsctl_core.errors import UsageError, unknown_name
from dsctl_core.options.effects import Idle
from dsctl_core.options.messages import (
    EMPTY_PATH,
    Positional,
    Takes,
    explain,
    is_empty_path,
    on_this_machine,
    spelled,
    takes_paths,
)
from dsctl_core.remote.address import is_remote, refuse_secrets, shown

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails

Alternative = tuple[str, str]


@dataclass(frozen=True)
class _Context:
    """How options are validated: `alone` leaves the checks of several options at once for later.

    `given` are the names that count as given; None: all that have a value.
    """

    alone: bool = False
    given: frozenset[str] | None = None


MODELS = ("model", "lora")  # options of text that may name a file of this machine


class Options(BaseModel):
    """Options of a command, or a group of them: frozen, and a name that is not a field is an error."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=(), defer_build=True
    )

    panel: ClassVar[str] = "Options"  # the heading of this class's own fields in --help
    exclusive: ClassVar[tuple[Alternative, ...]] = ()  # options of which the first or the second is given, not both
    remote: ClassVar[frozenset[str]] = frozenset()  # fields of paths that can be addresses, such as s3://bucket/folder
    idle: ClassVar[tuple[Idle, ...]] = ()  # options without effect, in runs that these options themselves tell

    @model_validator(mode="wrap")
    @classmethod
    def _validate(cls, values: Any, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo) -> Self:
        """Check each field, then what several of them say together; what does not fit is a UsageError."""
        if isinstance(values, cls):
            return handler(values)
        context = info.context or _Context()
        try:
            options = handler(values)
        except ValidationError as error:
            if context.alone:
                raise
            raise explain(cls.flat_fields(), error.errors(include_url=False)) from None
        if context.given is not None:
            own = {name: getattr(options, name) for name in cls.model_fields}
            options = cls.model_construct(_fields_set=options.model_fields_set & context.given, **own)
        if not context.alone:
            options.check_alternatives()
            options.check_effects()
            options.check()
        return options

    @field_validator("*", mode="before")
    @classmethod
    def _usable_path(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse "", which an unset variable of a shell leaves, for a path: it would be the working folder.

        Refuse an address where only a path of this machine is read or written, and one with a password everywhere.
        """
        if is_empty_path(cls.model_fields[info.field_name or ""], value):
            raise ValueError(EMPTY_PATH)
        name = info.field_name or ""
        for each in value if isinstance(value, list | tuple) else (value,):
            if isinstance(each, str | Path) and (takes_paths(cls.model_fields[name]) or name in MODELS):
                refuse_secrets(each)  # which would be written down
                if is_remote(each) and name not in cls.remote:
                    raise on_this_machine(spelled(name, cls.model_fields[name]), Path(each))
        return value

    @field_serializer("*", mode="wrap", when_used="json")
    def _with_both_slashes(self, value: Any, handler: SerializerFunctionWrapHandler) -> Any:
        return shown(value) if isinstance(value, Path) else handler(value)

    @classmethod
    def resolved(cls, values: Mapping[str, Any], given: Collection[str]) -> Self:
        """Return the options with `values`, of which only those that are named in `given` count as given.

        So an earlier run's options are set again, with all that was left to it as it was resolved then.
        """
        return cls.model_validate(dict(values), context=_Context(given=frozenset(given)))

    @classmethod
    def check_one(cls, name: str, value: Any) -> None:
        """Raise a UsageError where the option called `name` cannot have `value`, whatever the others are."""
        try:
            cls.model_validate({name: value}, context=_Context(alone=True))
        except ValidationError as error:
            own = [each for each in error.errors(include_url=False) if each["loc"][0] == name]
            if own:
                raise explain(cls.flat_fields(), own) from None

    def check(self) -> None:
        """Raise a UsageError for options that do not go together."""

    def check_effects(self) -> None:
        """Raise a UsageError for an option that is given and has no effect beside the others."""
        for kind in type(self).__mro__:
            for entry in vars(kind).get("idle", ()):
                entry.check(self)

    def check_alternatives(self) -> None:
        """Raise a UsageError where both options of an `exclusive` pair are given."""
        for first, second in self.alternatives():
            if self.given(first) and self.given(second):
                raise UsageError(f"{spelled(first)} and {spelled(second)} are both given", hint="give one of them")

    @classmethod
    def alternatives(cls) -> list[Alternative]:
        """Return the `exclusive` pairs of this class, of those it inherits from and of its groups."""
        return [pair for kind in cls.__mro__ for pair in vars(kind).get("exclusive", ())]

    @classmethod
    def idle_entries(cls) -> list[Idle]:
        """Return the `idle` entries of this class, of those it inherits from and of its groups."""
        return [entry for kind in cls.__mro__ for entry in vars(kind).get("idle", ())]

    @classmethod
    def flat_fields(cls) -> dict[str, FieldInfo]:
        """Return all options by name, in the order in which they are shown: those of groups, and this class's own."""
        return cls.model_fields

    @classmethod
    def panel_of(cls, name: str) -> str:
        """Return the heading in --help of the option called `name`: that of the class that declares it."""
        kinds = [kind for kind in cls.__mro__ if issubclass(kind, Options)]
        return next(kind.panel for kind in kinds if name in inspect.get_annotations(kind))

    def value_of(self, name: str) -> Any:
        """Return the value of the option called `name`."""
        return getattr(self, name)

    def flat_values(self, mode: Literal["json", "python"] = "python") -> dict[str, Any]:
        """Return the values of all options by name, in the order of `flat_fields`; with "json", as JSON takes them."""
        return self.model_dump(mode=mode)

    def given(self, name: str) -> bool:
        """Return whether the option called `name` was given, whatever its value; None is left out."""
        return name in self.model_fields_set and self.value_of(name) is not None

    def given_names(self) -> list[str]:
        """Return the names of the options that were given, in the order of `flat_fields`."""
        return [name for name in self.flat_fields() if self.given(name)]

    def asks_for(self, name: str) -> bool:
        """Return whether the option called `name` was given and asks for something: `--no-x` asks not to do x."""
        switched_off = self.value_of(name) is False and self.flat_fields()[name].default is False
        return self.given(name) and not switched_off

    def written(self, name: str) -> str:
        """Return the option called `name` as it is written with its value: "--x", or "--no-x"."""
        field = self.flat_fields()[name]
        flag = spelled(name, field)
        return f"--no-{flag.removeprefix('--')}" if self.value_of(name) is False else flag


class ComposedOptions(Options):
    """Options of a command that are composed of groups: a field whose type is `Options` is a group of options.

    Whoever sets options knows no groups: `TrainOptions(lora_rank=4)`, and in the same way flags, run.toml and
    run.json. Who reads them takes a group: `options.adapter.lora_rank`.
    """

    @model_validator(mode="wrap")
    @classmethod
    def _validate(cls, values: Any, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo) -> Self:
        if isinstance(values, cls):
            return handler(values)
        known, context = cls.flat_fields(), info.context or _Context()
        unknown = [name for name in values if name not in known]
        own = {name: value for name, value in values.items() if name in known}
        parts: dict[str, Options] = {}
        wrong: list[ErrorDetails] = []
        for name, group in cls.groups().items():
            given = {each: own.pop(each) for each in group.model_fields if each in own}
            try:
                parts[name] = group.model_validate(given, context=_Context(alone=True, given=context.given))
            except ValidationError as error:
                wrong += error.errors(include_url=False)
                parts[name] = group.model_construct()  # so that the other groups are looked at too
        try:
            options = handler({**parts, **own})
        except ValidationError as error:
            wrong += error.errors(include_url=False)
        if unknown and all(each["type"] == "missing" for each in wrong):
            raise unknown_name("option", unknown[0], list(known))
        if wrong:
            raise explain(known, wrong)
        if context.given is not None:
            names = {*parts, *(options.model_fields_set & context.given)}
            own = {name: getattr(options, name) for name in cls.model_fields}
            options = cls.model_construct(_fields_set=names, **own)
        options.check_alternatives()
        options.check_effects()
        for part in parts.values():
            part.check()
        options.check()
        return options

    def check_effects(self) -> None:
        """Raise a UsageError for an option that is given and has no effect beside the others."""
        super().check_effects()
        for name in self.groups():
            getattr(self, name).check_effects()

    @classmethod
    def check_one(cls, name: str, value: Any) -> None:
        """Raise a UsageError where the option called `name`, of one of the groups, cannot have `value`."""
        for group in cls.groups().values():
            if name in group.model_fields:
                group.check_one(name, value)

    @classmethod
    def groups(cls) -> dict[str, type[Options]]:
        """Return the groups by the name of their attribute."""
        kinds = {name: field.annotation for name, field in cls.model_fields.items()}
        return {name: kind for name, kind in kinds.items() if inspect.isclass(kind) and issubclass(kind, Options)}

    @classmethod
    def alternatives(cls) -> list[Alternative]:
        """Return the `exclusive` pairs of this class and of its groups."""
        return [*super().alternatives(), *(pair for kind in cls.groups().values() for pair in kind.alternatives())]

    @classmethod
    def idle_entries(cls) -> list[Idle]:
        """Return the `idle` entries of this class and of its groups."""
        return [*super().idle_entries(), *(each for kind in cls.groups().values() for each in kind.idle_entries())]

    @classmethod
    def flat_fields(cls) -> dict[str, FieldInfo]:
        """Return all options by name, in the order in which they are shown: those of groups, and this class's own."""
        groups = cls.groups()
        fields: dict[str, FieldInfo] = {}
        for name, field in cls.model_fields.items():
            fields |= groups[name].model_fields if name in groups else {name: field}
        return fields

    @classmethod
    def panel_of(cls, name: str) -> str:
        """Return the heading in --help of the option called `name`: that of the group that has it."""
        group = next((kind for kind in cls.groups().values() if name in kind.model_fields), None)
        return super().panel_of(name) if group is None else group.panel_of(name)

    def value_of(self, name: str) -> Any:
        """Return the value of the option called `name`, of whichever group it is."""
        return getattr(self._holder(name), name)

    def flat_values(self, mode: Literal["json", "python"] = "python") -> dict[str, Any]:
        """Return the values of all options by name, in the order of `flat_fields`; with "json", as JSON takes them."""
        groups, values = self.groups(), self.model_dump(mode=mode)
        flat: dict[str, Any] = {}
        for name, value in values.items():
            flat |= value if name in groups else {name: value}
        return flat

    def given(self, name: str) -> bool:
        """Return whether the option called `name` was given, whatever its value; None is left out."""
        holder = self._holder(name)
        return name in holder.model_fields_set and getattr(holder, name) is not None

    def _holder(self, name: str) -> Options:
        parts = (getattr(self, attribute) for attribute in self.groups())
        return next((part for part in parts if name in type(part).model_fields), self)


def _split_names(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    if not isinstance(value, str):
        return value
    return tuple(name.strip() for name in value.split(",")) if value.strip() else ()


def split_names(value: Any) -> Any:
    """Turn "a, b", and a list from run.toml, into ("a", "b"); a ValueError for an empty name."""
    names = _split_names(value)
    if isinstance(names, tuple) and any(name == "" for name in names):
        raise ValueError("it has an empty name between its commas")
    return names


def _texts_of_numbers(value: Any) -> Any:
    """Let run.toml write numbers as numbers: [512, 1024]."""
    if isinstance(value, list) and all(type(entry) is int for entry in value):
        return [str(entry) for entry in value]
    return value


Argument = Positional  # marks a field that is given by position instead of by a flag

MaxHours = Annotated[float, Field(gt=0, le=8760)]  # of a command, at most a year
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]  # what every generator that is seeded with it can take
Side = Annotated[int, Field(ge=1, le=16384)]  # a picture's height or width in pixels
Names = Annotated[tuple[str, ...], BeforeValidator(split_names)]  # written "a,b"
NumberNames = Annotated[Names, BeforeValidator(_texts_of_numbers)]  # written "512,1024", or as a list of numbers
Text = Annotated[str, Field(min_length=1)]
Solver = Literal["euler", "unipc"]  # how inference follows the velocity along the noise levels
Device = Annotated[str, Field(pattern=r"^(cpu|mps|cuda(:\d+)?)$"), Takes("cpu, cuda, cuda:N or mps")]
