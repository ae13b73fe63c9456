"""Print the lowest versions that pyproject.toml allows of what dsctl and its extras `serve` and `video` need."""

import re
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib  # what pip reads it with: nothing is installed yet

project = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text(encoding="utf-8"))["project"]
extras = project["optional-dependencies"]
for requirement in [*project["dependencies"], *extras["serve"], *extras["video"]]:
    name, lowest, marker = re.fullmatch(r"([\w-]+)>=([\d.]+),<[\d.]+(;.*)?", requirement.replace(" ;", ";")).groups()
    print(f"{name}=={lowest}{marker or ''}")
