"""The base of all option models, and the types that several of them share.

A field is an option: `lora_rank` is the flag `--lora-rank`, the key `lora_rank` in run.toml, and its description is
the flag's help. Values that do not fit are a `UsageError` naming the flag, the value and what it takes.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from typing_extensions import Self

from dsctl_core.errors import UsageError, unknown_name
from dsctl_core.options.messages import Positional, Takes, explain, spelled

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails

Alternative = tuple[str, str]
_FIELDS_ALONE = object()  # the context of a validation that leaves the checks of several options at once for later


class Options(BaseModel):
    """Options of a command, or a group of them: frozen, and a name that is not a field is an error."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=(), defer_build=True
    )

    panel: ClassVar[str] = "Options"  # the heading of this class's own fields in --help
    exclusive: ClassVar[tuple[Alternative, ...]] = ()  # options of which the first or the second is set, not both

    @model_validator(mode="wrap")
    @classmethod
    def _validate(cls, values: Any, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo) -> Self:
        """Check each field, then what several of them say together; what does not fit is a UsageError."""
        if isinstance(values, cls):
            return handler(values)
        try:
            options = handler(values)
        except ValidationError as error:
            if info.context is _FIELDS_ALONE:
                raise
            raise explain(cls.flat_fields(), error.errors(include_url=False)) from None
        if info.context is not _FIELDS_ALONE:
            options.check_alternatives()
            options.check()
        return options

    def check(self) -> None:
        """Raise a UsageError for options that do not go together, or that have no effect."""

    def check_alternatives(self) -> None:
        """Raise a UsageError where both options of an `exclusive` pair are set."""
        for first, second in self.alternatives():
            if self.differs(first) and self.differs(second):
                raise UsageError(f"{spelled(first)} and {spelled(second)} are both given", hint="give one of them")

    @classmethod
    def alternatives(cls) -> list[Alternative]:
        """Return the `exclusive` pairs of this class, of those it inherits from and of its groups."""
        return [pair for kind in cls.__mro__ for pair in vars(kind).get("exclusive", ())]

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

    def differs(self, name: str) -> bool:
        """Return whether the option called `name` has another value than its default."""
        return self.value_of(name) != self.flat_fields()[name].default

    def given(self, name: str) -> bool:
        """Return whether the option called `name` was set, rather than left at its default."""
        return name in self.model_fields_set


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
        known = cls.flat_fields()
        unknown = [name for name in values if name not in known]
        own = {name: value for name, value in values.items() if name in known}
        parts: dict[str, Options] = {}
        wrong: list[ErrorDetails] = []
        for name, group in cls.groups().items():
            given = {each: own.pop(each) for each in group.model_fields if each in own}
            try:
                parts[name] = group.model_validate(given, context=_FIELDS_ALONE)
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
        options.check_alternatives()
        for part in parts.values():
            part.check()
        options.check()
        return options

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
        """Return whether the option called `name` was set, rather than left at its default."""
        return name in self._holder(name).model_fields_set

    def _holder(self, name: str) -> Options:
        parts = (getattr(self, attribute) for attribute in self.groups())
        return next((part for part in parts if name in type(part).model_fields), self)


def _split_names(value: Any) -> Any:
    """Turn "a, b", and a list from run.toml, into ("a", "b")."""
    if isinstance(value, list):
        return tuple(value)
    if not isinstance(value, str):
        return value
    return tuple(name.strip() for name in value.split(",")) if value.strip() else ()


def _no_empty_name(value: Any) -> Any:
    names = _split_names(value)
    if isinstance(names, tuple) and any(name == "" for name in names):
        raise ValueError("it has an empty name between its commas")
    return names


Argument = Positional  # marks a field that is given by position instead of by a flag

Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]  # what every generator that is seeded with it can take
Side = Annotated[int, Field(ge=1, le=16384)]  # a picture's height or width in pixels
Names = Annotated[tuple[str, ...], BeforeValidator(_no_empty_name)]  # written "a,b"
Text = Annotated[str, Field(min_length=1)]
Device = Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$"), Takes("cpu, cuda or cuda:N")]
