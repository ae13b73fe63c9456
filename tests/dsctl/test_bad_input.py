"""Bad input for every option and file: one line of error, one of hint, an exit code, and nothing half-written."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from dsctl_core.options import InferOptions, Options, TrainOptions
from dsctl_core.options.messages import bare_type, bounds
from tests.dsctl.running import Dsctl, Run
from tests.tiny_models import write_tiny_model

OPTIONS: dict[str, type[Options]] = {"train": TrainOptions, "infer": InferOptions}
BASE: dict[str, dict[str, str]] = {
    "train": {"dataset_base_path": "data", "lora_rank": "2", "max_steps": "1", "output_path": "out", "device": "cpu"},
    "infer": {"prompt": "a cat", "height": "32", "width": "32", "num_inference_steps": "1", "output": "out/a.png"},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model("qwen-image", tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(autouse=True)
def _files() -> None:
    """A dataset of one picture, and what is no picture, no folder and no LoRA."""
    Path("data").mkdir()
    Image.new("RGB", (32, 32), "red").save("data/a.png")
    Path("data/metadata.csv").write_text("image,prompt\na.png,a red square\n", encoding="utf-8")
    Path("file.txt").write_text("not what you think", encoding="utf-8")
    Path("cut.safetensors").write_bytes(b"\x40\x00\x00\x00\x00\x00\x00\x00{")
    Path("cut.png").write_bytes(Path("data/a.png").read_bytes()[:60])
    Image.new("L", (16, 16), "white").save("small.png")


def written() -> dict[Path, bytes | None]:
    """Return everything in the working folder, with its content."""
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(Path().rglob("*"))}


def words(command: str, folder: Path, /, **changes: str | None) -> list[str]:
    """Return a command line that would work, with `changes`; None takes an option away."""
    values = {"model": str(folder), **BASE[command], **changes}
    task = [values.pop("task") or ""] if "task" in values else []
    given = {name: value for name, value in values.items() if value is not None}
    return [command, *task, *(f"--{name.replace('_', '-')}={value}" for name, value in given.items())]


def refused(run: Callable[[], Run], code: int) -> tuple[str, str]:
    """Run something that must fail, and return its error and hint; it must leave everything as it was."""
    before = written()
    fault = run().fault(code)
    assert written() == before
    return fault


# option -> its bad values: (value, exit code, in the error, in the hint), with further changes to the command line
Bad = tuple[str, int, str, str] | tuple[str, int, str, str, dict[str, str | None]]
NO_MODEL: dict[str, str | None] = {"model": None}
FROM_PICTURE: dict[str, str | None] = {"input_image": "data/a.png", "denoising_strength": "0.5"}

BAD_MODEL: dict[str, list[Bad]] = {
    "model": [
        ("qwen-imag", 2, "unknown model 'qwen-imag'", "did you mean 'qwen-image'?"),
        ("zzz", 2, "unknown model 'zzz'", "known models: "),
        ("", 2, "--model is empty", "--model takes text"),
        ("./nowhere", 1, "nowhere does not exist", "model_index.json"),
        ("data", 1, "data has no model_index.json", "folder"),
        ("./file.txt", 1, "file.txt is not a folder", "model_index.json"),
    ],
    "model_paths": [
        ("dit.safetensors", 2, "--model-paths is 'dit.safetensors': this is not JSON", "--model-paths takes", NO_MODEL),
        ('["nowhere.safetensors"]', 1, "nowhere.safetensors does not exist", "path", NO_MODEL),
    ],
    "model_id_with_origin_paths": [
        ("Qwen/Qwen-Image", 2, "'Qwen/Qwen-Image' does not have the form", "takes text", NO_MODEL),
        ("Owner/Name:dit/*", 1, "Owner/Name is not in", "DSCTL_MODEL_BASE_PATH", NO_MODEL),
    ],
    "tokenizer_path": [
        ("nowhere", 2, "'nowhere' is neither a path that exists", "write it as"),
        ("data", 1, "data", "tokenizer"),
    ],
}
BAD: dict[str, dict[str, list[Bad]]] = {
    "train": {
        **BAD_MODEL,
        "task": [("stf", 2, "unknown task 'stf'", "did you mean 'sft'?")],
        "dataset_base_path": [
            ("nowhere", 1, "nowhere", ""),
            ("file.txt", 1, "file.txt", ""),
            ("out", 1, "out", ""),
        ],
        "dataset_metadata_path": [
            ("nowhere.csv", 1, "nowhere.csv", ""),
            ("data", 1, "data", ""),
            ("file.txt", 1, "file.txt", ""),
        ],
        "data_file_keys": [
            ("image,,mask", 2, "--data-file-keys is 'image,,mask'", "names separated by commas"),
            ("imgae", 1, "imgae", "image"),
        ],
        "extra_inputs": [
            (",", 2, "--extra-inputs is ','", "names separated by commas"),
            ("no_such_input", 2, "unknown extra input 'no_such_input'", "extra inputs"),
        ],
        "trainable_models": [
            ("dti", 2, "unknown component of qwen-image 'dti'", "did you mean 'dit'?", {"lora_rank": None}),
            ("dit,", 2, "--trainable-models is 'dit,'", "names separated by commas"),
        ],
        "mixed_precision": [
            ("bf32", 2, "--mixed-precision is 'bf32', which is unknown", "no, bf16, fp16"),
            ("fp16", 2, "--mixed-precision fp16 needs a GPU", "bf16"),
        ],
        "fp8_models": [("vaee", 2, "unknown component of qwen-image 'vaee'", "did you mean 'vae'?")],
        "device": [("gpu", 2, "--device is 'gpu', which is unknown", "cpu, cuda")],
        "lora_base_model": [("dti", 2, "unknown component of qwen-image 'dti'", "did you mean 'dit'?")],
        "lora_target_modules": [
            ("to_q,to_kk", 1, "LoRA target 'to_kk' matches no linear layer", "did you mean 'to_k'?"),
            ("to_q,,to_k", 2, "--lora-target-modules is 'to_q,,to_k'", "names separated by commas"),
        ],
        "lora_checkpoint": [
            ("nowhere.safetensors", 1, "nowhere.safetensors cannot be read", "path"),
            ("cut.safetensors", 1, "cut.safetensors", "again"),
            ("data", 1, "data", ""),
        ],
        "preset_lora_path": [
            ("nowhere.safetensors", 1, "nowhere.safetensors cannot be read", "path"),
            ("cut.safetensors", 1, "cut.safetensors", "again"),
        ],
        "preset_lora_model": [
            ("dti", 2, "unknown component of qwen-image 'dti'", "did you mean", {"preset_lora_path": "cut.safetensors"})
        ],
        "output_path": [
            ("file.txt", 1, "file.txt is a file, not a folder", "--output-path"),
            ("file.txt/out", 1, "file.txt/out could not be written", "can write to"),
            ("/proc/nowhere/out", 1, "/proc/nowhere/out could not be written", "can write to"),
        ],
        "remove_prefix_in_ckpt": [("pipe.dti.", 2, "pipe.dti.", "pipe.dit.")],
    },
    "infer": {
        **BAD_MODEL,
        "prompt": [
            ("", 2, "--prompt is empty", "--prompt takes text"),
            (" ", 2, "--prompt is ' ', which says nothing", "say what"),
        ],
        "prompts_file": [
            ("nowhere.txt", 1, "--prompts-file nowhere.txt cannot be read", "a prompt a line", {"prompt": None}),
            ("data/a.png", 1, "--prompts-file data/a.png is not UTF-8 text", "UTF-8", {"prompt": None}),
            ("data", 1, "--prompts-file data cannot be read", "a prompt a line", {"prompt": None}),
        ],
        "negative_prompt": [],  # any text will do
        "lora": [
            ("nowhere.safetensors", 1, "nowhere.safetensors cannot be read", "path"),
            ("file.txt:abc", 2, "the scale 'abc' is not a number", "FILE:SCALE"),
            ("cut.safetensors:0.5", 1, "cut.safetensors", "again"),
            ("data", 1, "data cannot be read", "path"),
        ],
        "input_image": [
            ("nowhere.png", 1, "--input-image: nowhere.png", "another picture", {"denoising_strength": "0.5"}),
            ("file.txt", 1, "--input-image: file.txt is not a picture", "another", {"denoising_strength": "0.5"}),
            ("cut.png", 1, "--input-image: cut.png", "another picture", {"denoising_strength": "0.5"}),
            ("data/a.png", 2, "--input-image has no effect", "--denoising-strength"),
        ],
        "inpaint_mask": [
            ("nowhere.png", 1, "--inpaint-mask: nowhere.png", "another picture", FROM_PICTURE),
            ("small.png", 1, "--inpaint-mask is 16x16, but --input-image is 32x32", "as large as", FROM_PICTURE),
            ("small.png", 2, "--inpaint-mask is given without a picture", "--input-image"),
        ],
        "output": [
            ("a.jpg", 2, "--output is 'a.jpg', which is no PNG", ".png"),
            ("file.txt/a.png", 1, "file.txt could not be written", "can write to"),
            ("/proc/nowhere/a.png", 1, "/proc/nowhere could not be written", "can write to"),
        ],
        "dtype": [("float8", 2, "--dtype is 'float8', which is unknown", "float32, bfloat16, float16")],
        "device": [
            ("gpu", 2, "--device is 'gpu', which is unknown", "cpu, cuda"),
            ("cuda:99", 2, "--device cuda:99 is asked for", "doctor"),
        ],
    },
}


def numbers(options: type[Options]) -> list[str]:
    return [name for name, field in options.model_fields.items() if bare_type(field.annotation) in (int, float)]


def switches(options: type[Options]) -> list[str]:
    return [name for name, field in options.model_fields.items() if bare_type(field.annotation) is bool]


def bad_numbers() -> Iterator[tuple[str, str, str]]:
    """Give (command, option, value) for values beyond each bound of each number, and values that are no number."""
    for command, options in OPTIONS.items():
        for name in numbers(options):
            field = options.model_fields[name]
            limits = bounds(field)
            whole = bare_type(field.annotation) is int
            values = {"ge": "{:.0f}" if whole else "{}"}
            values = [limits["ge"] - 1] if "ge" in limits else [limits["gt"], limits["gt"] - 1]
            values += [limits["le"] + 1] if "le" in limits else []
            texts = [f"{value:.0f}" if float(value).is_integer() else str(value) for value in values]
            for text in [*texts, "-1", "abc", "", "nan", "inf", *(["1.5"] if whole else [])]:
                yield command, name, text


def test_every_option_of_every_command_has_a_bad_value():
    assert set(OPTIONS) == set(BAD) == set(BASE)
    for command, options in OPTIONS.items():
        others = set(options.model_fields) - set(numbers(options)) - set(switches(options))
        assert set(BAD[command]) == others
        assert len(numbers(options)) >= 7


@pytest.mark.parametrize(("command", "name", "value"), list(bad_numbers()))
def test_a_number_out_of_bounds_is_refused(dsctl: Dsctl, model: Path, command: str, name: str, value: str):
    error, hint = refused(lambda: dsctl(*words(command, model, **{name: value})), 2)
    flag = f"--{name.replace('_', '-')}"
    assert error.startswith(f"{flag} is ")
    assert value in error
    assert hint.startswith(f"{flag} takes a")
    assert "number" in hint


@pytest.mark.parametrize(
    ("command", "name"), [(command, name) for command, options in OPTIONS.items() for name in switches(options)]
)
def test_a_switch_takes_no_value(dsctl: Dsctl, model: Path, command: str, name: str):
    error, hint = refused(lambda: dsctl(*words(command, model, **{name: "maybe"})), 2)
    flag = f"--{name.replace('_', '-')}"
    assert error == f"{flag} takes no value, but 'maybe' is given"
    assert hint == f"write {flag} alone"


@pytest.mark.parametrize(
    ("command", "name", "bad"),
    [
        pytest.param(command, name, bad, id=f"{command}-{name}-{bad[0]}")
        for command, table in BAD.items()
        for name, cases in table.items()
        for bad in cases
    ],
)
def test_a_bad_value_is_refused_by_name(dsctl: Dsctl, model: Path, command: str, name: str, bad: Bad):
    value, code, problem, remedy, *further = bad
    changes = further[0] if further else {}
    error, hint = refused(lambda: dsctl(*words(command, model, **{**changes, name: value})), code)
    assert problem in error
    assert remedy in hint


@pytest.mark.parametrize("command", OPTIONS)
@pytest.mark.parametrize(("height", "nearest"), [("100", ("96", "112")), ("8", ("16",))])
def test_a_size_that_does_not_divide_is_refused_with_the_nearest(
    dsctl: Dsctl, model: Path, command: str, height: str, nearest: tuple[str, ...]
):
    error, hint = refused(lambda: dsctl(*words(command, model, height=height, width="32")), 2)
    assert f"height {height}" in error
    assert all(size in hint for size in nearest)


def no_weights(folder: Path) -> str:
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    return "transformer"


def another_family(folder: Path) -> str:
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "_class_name": "FluxTransformer2DModel"}))
    return "FluxTransformer2DModel"


def another_pipeline(folder: Path) -> str:
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    return "FluxPipeline"


def cut_off(folder: Path) -> str:
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    return "diffusion_pytorch_model.safetensors"


def cut_header(folder: Path) -> str:
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:50])
    return "diffusion_pytorch_model.safetensors"


def cut_config(folder: Path) -> str:
    (folder / "vae" / "config.json").write_text('{"_class_name": "Auto')
    return "vae/config.json"


def other_sizes(folder: Path) -> str:
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_layers": 3}))
    return "transformer"


def no_tokenizer(folder: Path) -> str:
    shutil.rmtree(folder / "tokenizer")
    return "tokenizer"


def no_text_encoder(folder: Path) -> str:
    shutil.rmtree(folder / "text_encoder")
    return "text_encoder"


BREAKS = [no_weights, another_family, another_pipeline, cut_off, cut_header, cut_config, other_sizes]
BREAKS += [no_tokenizer, no_text_encoder]


@pytest.mark.parametrize("command", OPTIONS)
@pytest.mark.parametrize("damage", BREAKS, ids=lambda damage: damage.__name__)
def test_a_broken_model_folder_is_refused_by_what_is_broken(
    dsctl: Dsctl, model: Path, command: str, damage: Callable[[Path], str]
):
    shutil.copytree(model, "broken")
    named = damage(Path("broken"))
    error, _ = refused(lambda: dsctl(*words(command, Path("./broken").absolute())), 1)
    assert named in error


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("metadata.csv", "image,prompt\n", "metadata.csv"),
        ("metadata.csv", "", "metadata.csv"),
        ("metadata.csv", "image,text\na.png,x\n", "prompt"),
        ("metadata.csv", "file,prompt\na.png,x\n", "image"),
        ("metadata.csv", "image,prompt\nb.png,x\n", "b.png"),
        ("metadata.csv", "image,prompt\na.png,\n", "prompt"),
        ("metadata.csv", "image,prompt\n../cut.png,x\n", "cut.png"),
        ("a.png", "no picture at all", "a.png"),
        ("a.png", "", "a.png"),
    ],
)
def test_a_dataset_that_cannot_be_used_is_refused(dsctl: Dsctl, model: Path, name: str, content: str, named: str):
    (Path("data") / name).write_text(content, encoding="utf-8")
    error, _ = refused(lambda: dsctl(*words("train", model)), 1)
    assert named in error


def test_a_folder_of_pictures_without_a_table_is_refused(dsctl: Dsctl, model: Path):
    Path("data/metadata.csv").unlink()
    error, hint = refused(lambda: dsctl(*words("train", model)), 1)
    assert "data" in error
    assert "metadata" in error + hint


def test_an_output_folder_that_holds_a_run_is_refused(dsctl: Dsctl, model: Path):
    Path("out").mkdir()
    Path("out/run.json").write_text("{}", encoding="utf-8")
    error, hint = refused(lambda: dsctl(*words("train", model)), 1)
    assert "out already holds a run (run.json)" in error
    assert "--output-path" in hint


def test_a_picture_cannot_replace_a_folder(dsctl: Dsctl, model: Path):
    Path("out/a.png").mkdir(parents=True)
    error, _ = refused(lambda: dsctl(*words("infer", model)), 1)
    assert "out/a.png is a folder" in error


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Let no file grow beyond `size` bytes, as if the disk were full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_is_full_leaves_no_picture_and_no_folder(dsctl: Dsctl, model: Path):
    def run() -> Run:
        with room_for(100):
            return dsctl(*words("infer", model))

    error, hint = refused(run, 1)
    assert "out/a.png could not be written: no space left" in error
    assert "free some disk space" in hint


def test_a_disk_that_is_full_leaves_no_half_of_a_lora(dsctl: Dsctl, model: Path):
    with room_for(4000):
        error, hint = dsctl(*words("train", model)).fault(1)
    assert "could not be written: no space left" in error
    assert "free some disk space" in hint
    left = {path.name for path in Path("out").rglob("*")} if Path("out").exists() else set()
    assert left <= {"run.json", "metrics.jsonl"}
