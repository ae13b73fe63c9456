"""Check a template in a process of its own: code that ends its process, or crashes it, is then an error with a name."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import Any

from dsctl_core.errors import DsctlError
from dsctl_core.files.json import decode_json
from dsctl_core.options.template_tools import TemplateCheckOptions
from dsctl_core.template.check import describe, open_model
from dsctl_core.template.model import load_template
from dsctl_core.template.source import CODE, config_of, folder_of
from dsctl_core.template.trust import Trust

PROGRAM = "import sys; from dsctl_core.commands.template_apart import answer; answer(*sys.argv[1:])"


def check_apart(options: TemplateCheckOptions) -> dict[str, Any]:
    """Load a template and run it beside its model, in a new process; return what dsctl_core.template.check finds.

    Raises its `DsctlError`, and one that names the template's code if the process ends without an answer, as it does
    with `os._exit(0)`.
    """
    code = folder_of(config_of(options.template.source)) / CODE
    asked = {
        "template": str(options.template),
        "model": options.model,
        "template_inputs": json.dumps(options.template_inputs.values),
        "trust_template": options.trust_template,
    }
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with tempfile.TemporaryDirectory(prefix="dsctl-") as folder:
        file = Path(folder, "answer.json")
        command = [sys.executable, "-c", PROGRAM, json.dumps(asked), str(file)]
        with subprocess.Popen(command, env=environment) as process:
            try:
                code_of_end = process.wait()
            finally:
                process.kill()
        if not file.is_file():
            raise _silent_end(code, code_of_end)
        told = decode_json(file.read_bytes(), any_text=True)
    if "problem" in told:
        error = DsctlError(told["problem"], hint=told["hint"])
        error.exit_code = told["exit_code"]
        raise error
    if "bug" in told:
        raise RuntimeError(told["bug"])
    facts: dict[str, Any] = told["facts"]
    return facts


def answer(asked: str, file: str) -> None:
    """Check the template that the JSON text `asked` names, and write the result to `file`, whole or not at all."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the process that waits for this one answers Ctrl-C
    warnings.simplefilter("ignore")
    told = _outcome(TemplateCheckOptions(**decode_json(asked, any_text=True)))
    part = Path(f"{file}.part")
    part.write_text(json.dumps(told), encoding="utf-8")
    part.replace(file)


def _outcome(options: TemplateCheckOptions) -> dict[str, Any]:
    source = options.template
    try:
        template = load_template(config_of(source.source), Trust(options.trust_template), checkpoint=source.checkpoint)
        template.refuse_unread(options.template_inputs.values, "--template-inputs")
        facts = describe(template, open_model(options.model), options.template_inputs.values)
        return {"facts": {"template": str(source), "model": options.model, **facts}}
    except DsctlError as error:
        return {"problem": error.problem, "hint": error.hint, "exit_code": error.exit_code}
    except Exception as error:  # noqa: BLE001 - raised again by the process that waits
        return {"bug": f"{type(error).__name__}: {error}\n{traceback.format_exc()}"}


def _silent_end(code: Path, exit_code: int) -> DsctlError:
    how = f"by {signal.Signals(-exit_code).name}" if exit_code < 0 else f"with exit code {exit_code}"
    return DsctlError(
        f"{code}: it ended the process {how} before the check was done",
        hint="take os._exit and the like out of that file",
    )
