"""Prompts of samples come from flags, files and captions; a faulty prompt file is refused with the line."""

import json

import pytest

from dsctl_core.data import UnifiedDataset
from dsctl_core.data.prompt_file import prompt_lines
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.family import FrameInputs
from dsctl_core.options import TrainOptions
from dsctl_core.training.callbacks.sample_prompts import captions_of, sample_prompts

DEFAULTS = {"height": 96, "width": 64, "num_inference_steps": 20, "cfg_scale": 3.0}


def prompts(captions=(), size=None, columns=(), **values):
    given = {"model": "m", "dataset_base_path": "d", "output_path": "o", "lora_rank": 4, "sample_every": 5}
    return sample_prompts(TrainOptions(**{**given, **values}).callbacks, DEFAULTS, size, list(captions), columns)


def test_every_prompt_has_its_own_seed_and_the_rest_is_the_model_s():
    first, second = prompts(sample_prompt=["a cat", "a dog"], sample_seed=7)
    assert (first.prompt, first.seed, second.prompt, second.seed) == ("a cat", 7, "a dog", 8)
    assert (first.height, first.width, first.num_inference_steps, first.cfg_scale) == (96, 64, 20, 3.0)


def test_the_size_is_that_given_else_that_of_training_else_the_model_s():
    sizes = [
        prompts(sample_prompt="a", size=(32, 48), sample_height=16, sample_width=16)[0],
        prompts(sample_prompt="a", size=(32, 48))[0],
        prompts(sample_prompt="a")[0],
    ]
    assert [(each.height, each.width) for each in sizes] == [(16, 16), (32, 48), (96, 64)]


def test_clips_have_frames_and_a_guidance_scale_for_each_denoiser():
    options = {"model": "m", "dataset_base_path": "d", "output_path": "o", "lora_rank": 4, "sample_every": 5}
    callbacks = TrainOptions(**options, sample_prompt="a", sample_negative_prompt="b").callbacks
    (clip,) = sample_prompts(callbacks, {**DEFAULTS, "cfg_scale": (4.0, 1.0)}, None, [], num_frames=9)
    assert (clip.inputs()["num_frames"], clip.inputs()["cfg_scale"]) == (9, (4.0, 1.0))
    (picture,) = sample_prompts(callbacks, DEFAULTS, None, [])
    assert "num_frames" not in picture.about()
    with pytest.raises(UsageError, match="negative prompt has no effect at a cfg_scale of 1"):
        sample_prompts(callbacks, {**DEFAULTS, "cfg_scale": (1.0, 1.0)}, None, [], num_frames=9)


def test_a_line_of_a_jsonl_beats_the_flags(tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "a", "seed": 3, "height": 32, "width": 16, "cfg_scale": 2}\n\n{"prompt": "b"}\n')
    first, second = prompts(sample_prompts_file=file, sample_steps=4)
    assert (first.seed, first.height, first.cfg_scale, first.num_inference_steps) == (3, 32, 2, 4)
    assert (second.prompt, second.seed, second.height) == ("b", 1, 96)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1 is not valid JSON"),
        ('{"seed": 1}', "line 1 has no prompt"),
        ('{"prompt": "a", "sead": 1}', "unknown key in .* 'sead'"),
        ('{"prompt": "a", "seed": "1"}', "seed is '1'"),
        ('{"prompt": "a", "seed": -1}', "seed is -1"),
        ('{"prompt": "a", "num_inference_steps": true}', "num_inference_steps is True"),
        ('{"prompt": "a", "height": 32}', "a height or a width alone"),
        ("", "has no prompt in it"),
    ],
)
def test_what_is_wrong_with_a_jsonl_is_said_with_its_line(tmp_path, line, message):
    (tmp_path / "p.jsonl").write_text(line)
    with pytest.raises(DsctlError, match=message) as caught:
        prompts(sample_prompts_file=tmp_path / "p.jsonl")
    assert caught.value.hint


def test_a_line_can_say_what_extensions_are_given_and_at_least_one_must(tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "a", "template_inputs": {"scale": 0.5}}\n{"prompt": "b", "template_inputs": null}\n')
    first, second = prompts(sample_prompts_file=file, columns=("template_inputs",))
    assert (first.columns, second.columns) == ({"template_inputs": {"scale": 0.5}}, {})
    assert "columns" not in first.inputs()
    assert first.about()["template_inputs"] == {"scale": 0.5}
    with pytest.raises(DsctlError, match="unknown key in .* 'template_inputs'"):
        prompts(sample_prompts_file=file)
    with pytest.raises(UsageError, match="no sample has template_inputs, so none would show what is trained") as caught:
        prompts(sample_prompt="a", columns=("template_inputs",))
    assert '{"prompt": "a cat", "template_inputs": {...}}' in caught.value.hint


def test_captions_come_with_what_their_row_has_for_extensions(tmp_path):
    from PIL import Image

    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    rows = [{"image": "a.png", "prompt": f"{n}", "template_inputs": {"scale": n} if n else None} for n in range(3)]
    (tmp_path / "metadata.json").write_text(json.dumps(rows))
    found = captions_of(UnifiedDataset(tmp_path), ("template_inputs",))
    given = [each.columns.get("template_inputs") for each in prompts(captions=found, columns=("template_inputs",))]
    assert given == [None, {"scale": 1}, {"scale": 2}]


@pytest.mark.parametrize("value", ["", 3, "nowhere.png", "text.png", "."])
@pytest.mark.parametrize("name", ["control_image", "edit_image", "input_image"])
def test_a_picture_that_cannot_be_used_is_named_with_file_and_line(tmp_path, monkeypatch, name, value):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "a"}) + "\n" + json.dumps({"prompt": "b", name: value}))
    given = {"model": "m", "dataset_base_path": "d", "output_path": "o", "lora_rank": 4, "sample_every": 5}
    callbacks = TrainOptions(**given, sample_prompts_file=tmp_path / "p.jsonl").callbacks
    with pytest.raises(DsctlError, match=rf"p\.jsonl line 2(, |: ){name}") as caught:
        columns, sized = ("control_image", "edit_image"), lambda images, pixels: (32, 32)
        frames = FrameInputs(optional=("input_image",))
        found = sample_prompts(callbacks, DEFAULTS, None, [], columns[:1], edited_size=sized, frames=frames)
        assert found[1].with_pictures(columns[:1], 16)
    assert "row" not in str(caught.value.hint)


@pytest.mark.parametrize("suffix", [".csv", ".TSV", ".json", ".parquet", ".yaml", ".xlsx"])
def test_a_table_is_no_file_of_prompts(tmp_path, suffix):
    file = tmp_path / f"p{suffix}"
    file.write_text("prompt,seed\na,1\n")
    with pytest.raises(UsageError, match="whose lines are no prompts") as caught:
        prompts(sample_prompts_file=file)
    assert ".txt" in caught.value.hint and ".jsonl" in caught.value.hint
    with pytest.raises(UsageError, match="whose lines are no prompts"):
        prompt_lines(file, "--prompts-file")


def test_a_missing_file_is_named_by_its_flag():
    with pytest.raises(DsctlError, match="--sample-prompts-file nowhere.txt cannot be read"):
        prompts(sample_prompts_file="nowhere.txt")


def test_a_negative_prompt_without_guidance_is_refused():
    with pytest.raises(UsageError, match="negative prompt has no effect at a cfg_scale of 1"):
        prompts(sample_prompt="a", sample_negative_prompt="b", sample_cfg_scale=1)


def test_captions_stand_in_for_prompts_and_without_any_it_is_an_error():
    assert [each.prompt for each in prompts(captions=[{"prompt": "a"}, {"prompt": "b"}])] == ["a", "b"]
    with pytest.raises(UsageError, match="the dataset has no captions"):
        prompts()


@pytest.mark.parametrize("count", [1, 4, 5, 23])
def test_at_most_four_different_captions_are_taken_from_all_over_the_dataset(tmp_path, count):
    from PIL import Image

    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    rows = [{"image": "a.png", "prompt": f"caption {number // 2}"} for number in range(2 * count)]
    (tmp_path / "metadata.json").write_text(json.dumps(rows))
    found = [row["prompt"] for row in captions_of(UnifiedDataset(tmp_path))]
    assert found == sorted(set(found), key=found.index)
    assert 1 <= len(found) <= 4
    assert found[0] == "caption 0"
    assert int(found[-1].split()[1]) >= (count - 1) // 2
