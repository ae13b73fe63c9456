"""The commands are functions of the library: they need neither `dsctl` nor what it parses and shows with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from dsctl_core.assets import assets_path

PROGRAM = """
import json, sys
for name in ("dsctl", "typer", "rich"):
    sys.modules[name] = None  # importing it fails
from dataclasses import asdict

from dsctl_core.commands import dataset, doctor, infer, lora, merge_lora, models, template
from dsctl_core.options import *
from dsctl_core.options.lora_tools import *
from dsctl_core.options.template_tools import *

data, here, lora_file = sys.argv[1:]
tried = TemplateCheckOptions(template=f"{here}/t", trust_template=True, template_inputs='{"scale": 0.5}')
into_base = MergeLoraOptions(model="tiny", lora=(lora_file,), output=f"{here}/merged")
print(json.dumps({
    "models": [preset["name"] for preset in models.list_models()["presets"]],
    "model": models.show_model(ModelsShowOptions(name="tiny"))["family"],
    "graph": models.show_graph(ModelsShowOptions(name="tiny"))["second_components"],
    "dataset": asdict(dataset.validate(DatasetValidateOptions(path=data)))["clean"],
    "doctor": sorted(asdict(doctor.examine(DoctorOptions()))),
    "template": template.init(TemplateInitOptions(name=f"{here}/t"))["files"],
    "checked": template.check(tried)["inputs"],
    "lora": lora.info(LoraInfoOptions(file=lora_file))["ranks"],
    "resized": lora.resize(LoraResizeOptions(file=lora_file, output=f"{here}/r.safetensors", rank=2)).facts["ranks"],
    "merged": merge_lora.merge(into_base).facts["layers"],
    "pictures": [file.name for file in infer.infer(
        InferOptions(model="tiny", prompt="x", height=32, width=32, num_inference_steps=1, output=f"{here}/a.png")
    ).files],
}))
"""


def test_the_commands_work_where_there_is_no_command_line(tmp_path: Path):
    import torch

    from dsctl_core.lora import LoraLayer, save_lora

    layer = LoraLayer(torch.ones(3, 176), torch.ones(176, 3), 1.0)
    file = save_lora(
        tmp_path / "l.safetensors", {"dit": {"transformer_blocks.0.attn.to_q": layer}}, {"family": "qwen-image"}
    )
    data = assets_path("datasets/robot")
    done = subprocess.run([sys.executable, "-c", PROGRAM, data, tmp_path, file], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert "tiny" in told.pop("models")
    assert {"versions", "problems"} <= set(told.pop("doctor"))
    assert told == {
        "model": "qwen-image",
        "graph": ["dit"],
        "dataset": True,
        "template": ["model.py"],
        "checked": {"scale": "required"},
        "lora": [3],
        "resized": [2],
        "merged": {"dit": 1},
        "pictures": ["a.png"],
    }
