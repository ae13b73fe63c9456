"""Units and their runner: what is read, what is written, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from dsctl_core.errors import DsctlError
from dsctl_core.units import PipelineUnit, UnitRunner

PIPE: Any = object()
run = UnitRunner()


class Double(PipelineUnit):
    output_params = ("y",)

    def process(self, pipe: Any, x: int, times: int = 2) -> dict[str, int]:
        return {"y": x * times}


class Shout(PipelineUnit):
    output_params = ("embeds",)
    separate_cfg = True

    def process(self, pipe: Any, prompt: str, loud: bool = True) -> dict[str, str]:
        return {"embeds": prompt.upper() if loud else prompt}


class Swap(PipelineUnit):
    take_over = True
    reads = ("x",)
    output_params = ("n", "p")

    def process(self, pipe: Any, shared: dict, posi: dict, nega: dict) -> tuple[dict, dict, dict]:
        return shared, nega, posi


def test_inputs_are_taken_from_the_signature() -> None:
    unit = Double()
    assert unit.required == ("x",)
    assert unit.optional == {"times": 2}
    assert unit.input_params == ("x", "times")


def test_outputs_are_added_and_nothing_is_lost() -> None:
    assert run(Double(), PIPE, {"x": 3, "kept": 1}, {}, {}) == ({"x": 3, "kept": 1, "y": 6}, {}, {})
    assert run(Double(), PIPE, {"x": 3, "times": 5}, {}, {})[0]["y"] == 15


def test_the_dicts_handed_in_are_not_changed() -> None:
    shared, posi = {"cfg_scale": 2}, {"prompt": "a"}
    run(Shout(), PIPE, shared, posi, {"negative_prompt": "b"})
    assert (shared, posi) == ({"cfg_scale": 2}, {"prompt": "a"})


def test_a_separate_unit_runs_once_for_each_prompt() -> None:
    shared, posi, nega = run(Shout(), PIPE, {"cfg_scale": 4}, {"prompt": "a"}, {"negative_prompt": "b"})
    assert "embeds" not in shared
    assert (posi["embeds"], nega["embeds"]) == ("A", "B")


@pytest.mark.parametrize("shared", [{"cfg_scale": 1}, {"cfg_scale": 1.0}, {}])
def test_the_negative_prompt_is_left_out_without_guidance(shared: dict[str, float]) -> None:
    assert run(Shout(), PIPE, shared, {"prompt": "a"}, {"negative_prompt": "b"})[2] == {"negative_prompt": "b"}


def test_a_separate_unit_reads_shared_inputs_too() -> None:
    assert run(Shout(), PIPE, {"loud": False}, {"prompt": "a"}, {})[1]["embeds"] == "a"


def test_a_unit_that_takes_over_is_handed_everything() -> None:
    assert run(Swap(), PIPE, {"x": 1}, {"p": 1}, {"n": 1}) == ({"x": 1}, {"n": 1}, {"p": 1})
    assert Swap().input_params == ("x",)


def test_a_missing_input_is_named() -> None:
    with pytest.raises(DsctlError, match="Double needs the input 'x'") as caught:
        run(Double(), PIPE, {"times": 3}, {}, {})
    assert caught.value.hint == "given: times"


def test_writing_an_undeclared_name_is_an_error() -> None:
    class Leaky(Double):
        output_params = ()

    with pytest.raises(TypeError, match="Leaky wrote 'y'"):
        run(Leaky(), PIPE, {"x": 1}, {}, {})


@pytest.mark.parametrize("declared", [(), ("n",), ("p",)])
def test_a_unit_that_takes_over_may_change_only_what_it_declares(declared: tuple[str, ...]) -> None:
    class Sly(Swap):
        output_params = declared

    with pytest.raises(TypeError, match="Sly wrote"):
        run(Sly(), PIPE, {"x": 1}, {"p": 1}, {"n": 1})


def test_a_unit_that_takes_anything_is_refused() -> None:
    class Greedy(PipelineUnit):
        def process(self, pipe: Any, **inputs: Any) -> dict:
            return inputs

    with pytest.raises(TypeError, match="one by one"):
        Greedy()


def test_a_unit_without_process_is_refused_when_it_runs() -> None:
    with pytest.raises(NotImplementedError, match="PipelineUnit has no process"):
        run(PipelineUnit(), PIPE, {}, {}, {})


def declared(inputs: Any = ("x", "times"), outputs: Any = ("y",), models: Any = ("vae",)) -> PipelineUnit:
    """Return a unit whose constructor makes these declarations."""

    class Declared(PipelineUnit):
        def __init__(self) -> None:
            super().__init__(input_params=inputs, output_params=outputs, onload_model_names=models)

        def process(self, pipe: Any, x: int | None, times: int = 2) -> dict[str, Any]:
            return {"y": (x, times)}

    return Declared()


def test_declarations_in_the_constructor_are_those_of_the_class() -> None:
    unit = declared()
    assert (unit.input_params, unit.output_params, unit.onload_model_names) == (("x", "times"), ("y",), ("vae",))
    assert run(unit, PIPE, {"x": 3}, {}, {})[0]["y"] == (3, 2)
    assert declared(["x"], ["y"], []).onload_model_names == ()
    assert Double().output_params == ("y",), "the declarations are of one unit, not of the class"


def test_an_input_that_the_constructor_declares_and_nothing_provides_is_none() -> None:
    assert run(declared(), PIPE, {"times": 5}, {}, {})[0]["y"] == (None, 5)
    with pytest.raises(DsctlError, match="needs the input 'x'"):
        run(Double(), PIPE, {}, {}, {})


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"inputs": ("x", "tims")}, "declares the input 'tims', which process\\(\\) does not take"),
        ({"inputs": ("times",)}, "takes 'x', which is not in its input_params"),
        ({"inputs": "x"}, "input_params of Declared should be names"),
        ({"outputs": "y"}, "output_params of Declared should be names"),
        ({"models": ("vae", 3)}, "onload_model_names of Declared should be names"),
    ],
)
def test_a_wrong_declaration_in_the_constructor_is_named(given: dict[str, Any], says: str) -> None:
    with pytest.raises(TypeError, match=says):
        declared(**given)


def test_an_unknown_declaration_is_refused() -> None:
    class Unknown(PipelineUnit):
        def __init__(self) -> None:
            super().__init__(inputs=("x",))  # type: ignore[call-arg]

    with pytest.raises(TypeError, match="inputs"):
        Unknown()


def test_a_unit_that_takes_over_lists_its_inputs_in_reads() -> None:
    class Over(Swap):
        def __init__(self) -> None:
            super().__init__(input_params=("x",))

    with pytest.raises(TypeError, match="`reads`"):
        Over()
