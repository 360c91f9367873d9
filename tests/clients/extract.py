"""Extracts the fenced blocks of a Markdown file.

usage: extract.py MARKDOWN DIRECTORY CLIENT

Writes the bash blocks to DIRECTORY/all.sh, in order, the one that calls protoc also to DIRECTORY/stubs.sh, and the one
python block, if there is one, to CLIENT.
"""
import pathlib
import re
import sys

markdown, directory, client = map(pathlib.Path, sys.argv[1:])
blocks = re.findall(r"^```(\w+)\n(.*?)^```$", markdown.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
bash = [text for language, text in blocks if language == "bash"]
programs = [text for language, text in blocks if language == "python"]
stubs = [text for text in bash if "grpc_tools.protoc" in text]
if (len(programs), len(stubs)) not in [(0, 0), (1, 1)]:
    sys.exit(f"{markdown} must have one python block and one bash block that generates the stubs, or none of both; "
             f"it has {len(programs)}, {len(stubs)}")
(directory / "all.sh").write_text("\n".join(bash), encoding="utf-8")
(directory / "stubs.sh").write_text("".join(stubs), encoding="utf-8")
if programs:
    client.write_text(programs[0], encoding="utf-8")
