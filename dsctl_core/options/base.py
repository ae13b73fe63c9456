"""The base of all option models, and the types that several of them share.

A field is an option: `lora_rank` is the flag `--lora-rank`, the key `lora_rank` in run.toml, and its description is
the flag's help. Values that do not fit are a `UsageError` naming the flag, the value and what it takes.
"""

from typing import Annotated, Any, ClassVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from typing_extensions import Self

from dsctl_core.errors import UsageError
from dsctl_core.options.messages import Positional, Takes, explain, spelled

Alternative = tuple[str, str]


class Options(BaseModel):
    """Options of a command: frozen, and a name that is not a field is an error."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=(), defer_build=True
    )

    panel: ClassVar[str] = "Options"  # the heading of this class's own fields in --help
    exclusive: ClassVar[tuple[Alternative, ...]] = ()  # options of which the first or the second is set, not both

    @model_validator(mode="wrap")
    @classmethod
    def _explain_what_does_not_fit(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(values)
        except ValidationError as error:
            raise explain(cls.model_fields, error) from None

    @model_validator(mode="after")
    def _one_of_each_alternative(self) -> Self:
        for first, second in self.alternatives():
            if self._differs(first) and self._differs(second):
                raise UsageError(f"{spelled(first)} and {spelled(second)} are both given", hint="give one of them")
        return self

    @classmethod
    def alternatives(cls) -> list[Alternative]:
        """Return the `exclusive` pairs of this class and of those it inherits from."""
        return [pair for kind in cls.__mro__ for pair in vars(kind).get("exclusive", ())]

    def _differs(self, name: str) -> bool:
        return getattr(self, name) != type(self).model_fields[name].default

    def given(self, name: str) -> bool:
        """Return whether the option called `name` was set, rather than left at its default."""
        return name in self.model_fields_set


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
