"""Bad values of options of training and of templates: (value, exit code, in the error, in the hint, other options)."""

from __future__ import annotations

Bad = tuple[str, int, str, str] | tuple[str, int, str, str, dict[str, str | None]]
WITH_TEMPLATE: dict[str, str | None] = {"template": "data"}

BAD_TEMPLATE: dict[str, list[Bad]] = {
    "template": [
        ("nowhere", 1, "the template nowhere does not exist", "OWNER/NAME:"),
        ("data", 1, "data is not a template: it has no model.py", "TEMPLATE_MODEL"),
        ("", 2, "--template is ''", "--template takes DIR"),
    ],
}
BAD_CONTROLNET: dict[str, list[Bad]] = {
    "controlnet": [
        ("", 2, "--controlnet is ''", "NAME, FILE or FOLDER"),
        ("cany", 2, "unknown control network 'cany'", "qwen-image-blockwise-canny"),
        ("nowhere.safetensors", 1, "--controlnet nowhere.safetensors does not exist", "path"),
        ("cut.safetensors", 1, "cut.safetensors", "again"),
        ("file.txt", 1, "file.txt", ""),
    ]
}
BAD_CONTROL_PICTURES: dict[str, list[Bad]] = {
    name: [("nowhere.png", 2, f"{flag} has no effect without --controlnet", "--controlnet NAME")]
    for name, flag in (("control_image", "--control-image"), ("control_mask", "--control-mask"))
}
BAD_TEMPLATE_INPUTS: dict[str, list[Bad]] = {
    name: [
        ("{}", 2, f"{flag} has no effect without --template", "--template DIR"),
        ("x", 2, f"{flag} is 'x': this is not JSON", '{"scale": 0.8}', WITH_TEMPLATE),
        ("[]", 2, f"{flag} is '[]': this is no JSON object", '{"scale": 0.8}', WITH_TEMPLATE),
    ]
    for name, flag in (
        ("template_inputs", "--template-inputs"),
        ("negative_template_inputs", "--negative-template-inputs"),
    )
}
BAD_QUANTIZE: list[Bad] = [
    ("dit", 2, "--quantize is given 'dit'", "NAME=FORMAT"),
    ("dit=nf5", 2, "unknown format 'nf5'", "did you mean 'nf4'?"),
    ("dit.proj_out=int8", 2, "--quantize names 'dit.proj_out', a part of a component", "name all of it: dit"),
    ("text_encoder=int8,text_encoder=nf4", 2, "--quantize names the text_encoder twice", "name each component once"),
    ("vaee=int8", 2, "unknown component of qwen-image 'vaee'", "did you mean 'vae'?"),
]
BAD_OBJECTIVE: dict[str, list[Bad]] = {
    "optimizer": [
        ("adamww", 2, "unknown optimizer 'adamww'", "did you mean 'adamw'?"),
        ("nowhere.Adam", 2, "--optimizer nowhere.Adam is given without --learning-rate", "--learning-rate"),
    ],
    "optimizer_args": [
        ("beta", 2, "'beta' does not have the form KEY=VALUE", "KEY=VALUE"),
        ("bets=1", 2, "unknown argument of AdamW 'bets'", "did you mean 'betas'?"),
    ],
    "lr_scheduler": [("cosin", 2, "--lr-scheduler is 'cosin', which is unknown", "did you mean 'cosine'?")],
    "loss_weighting": [("bel", 2, "--loss-weighting is 'bel', which is unknown", "did you mean 'bell'?")],
    "timestep_sampling": [("unifrm", 2, "--timestep-sampling is 'unifrm'", "did you mean 'uniform'?")],
    "attention_backend": [
        ("nativ", 2, "unknown attention backend 'nativ'", "did you mean 'native'?"),
        ("sage", 2, "the attention backend sage has no backward pass", "for inference"),
    ],
}
BAD_GUIDANCE: list[Bad] = [
    ("-1", 2, "is '-1': the scale -1 is not from 0 to 100", "a number from 0 to 100, or one for each"),
    ("101", 2, "is '101': the scale 101 is not from 0 to 100", "such as dit=4,dit_2=3"),
    ("nan", 2, "is 'nan': the scale nan is not from 0 to 100", "a number"),
    ("abc", 2, "is 'abc': 'abc' is no number", "a number"),
    ("", 2, "is ''", "a number"),
    ("dit=", 2, "is 'dit=': '' is no number", "a number"),
    ("dit=4,3", 2, "is 'dit=4,3': 'dit=4,3' names no denoiser somewhere", "dit=4"),
    ("dit=4,dit=3", 2, "is 'dit=4,dit=3': 'dit=4,dit=3' names one of them twice", "dit=4"),
]
BAD_RUN: dict[str, list[Bad]] = {
    "accelerate_config": [
        ("nowhere.yaml", 1, "--accelerate-config nowhere.yaml does not exist", "examples/accelerate/"),
        ("file.txt", 1, "--accelerate-config file.txt", "accelerate"),
    ],
    "resume": [
        ("latest", 1, "out does not exist: there is no run to resume", "leave --resume out"),
        ("nowhere", 1, "nowhere is no folder of a training state", "OUT/state/step-N"),
    ],
    "mirror": [
        ("nowhere", 2, "--mirror is 'nowhere', which is no address", "s3://bucket/folder"),
        ("https://host/run", 1, "https://host/run cannot be written to", "--mirror s3://"),
        ("s3://me:sesame@bucket/x", 2, "the address s3://***@bucket/x has a user or a password", "environment"),
    ],
    "allow_changed": [("seed", 2, "--allow-changed has no effect without --resume", "--resume latest")],
    "sample_prompt": [("a", 2, "--sample-prompt has no effect without --sample-every", "--sample-every")],
    "sample_cfg_scale": [
        *BAD_GUIDANCE,
        ("3", 2, "--sample-cfg-scale has no effect without --sample-every", "--sample-every"),
        ("dit_3=2", 2, "unknown denoiser 'dit_3'", "dit", {"sample_every": "1"}),
    ],
    "sample_negative_prompt": [("a", 2, "--sample-negative-prompt has no effect", "--sample-every")],
    "sample_prompts_file": [
        ("nowhere.txt", 2, "--sample-prompts-file has no effect without --sample-every", "--sample-every"),
        (
            "nowhere.txt",
            1,
            "--sample-prompts-file nowhere.txt cannot be read",
            "one prompt per line",
            {"sample_every": "1"},
        ),
    ],
    "track": [("tensorbord", 2, "unknown tracker 'tensorbord'", "did you mean 'tensorboard'?")],
    "track_project": [
        ("", 2, "--track-project is empty", "Project that a tracker files the run under"),
        ("x", 2, "--track-project has no effect without a tracker", "--track"),
    ],
}
