"""The Hugging Face hub: the model card, and the documented push."""

import base64
import json
import re
import shlex
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import yaml
from conftest import BUNDLE, FIDELITY, METADATA, run_process
from documents import find_blocks, read_commands

from tools.card import NAME, make_card


def test_card():
    """The card repeats what was measured and what the metadata say."""
    _, front, page = str(make_card(BUNDLE)).split("---\n", maxsplit=2)
    data = yaml.safe_load(front)
    assert (data["license"], data["library_name"]) == ("apache-2.0", "monai")
    assert data["pipeline_tag"] == "unconditional-image-generation" and "monai" in data["tags"]
    (index,) = data["model-index"]
    volumes, reconstruction = (
        {metric["type"]: metric["value"] for metric in result["metrics"]} for result in index["results"]
    )
    assert index["name"] == METADATA["name"]
    assert volumes == {name: line["value"] for name, line in FIDELITY["volumes"].items()}
    assert reconstruction == FIDELITY["reconstruction"]

    assert METADATA["description"] in page and METADATA["intended_use"] in page
    assert all(reference in page for reference in METADATA["references"])
    assert (
        len(re.findall(r"\*\*fails\*\*", page)) == len(re.findall("Beyond its limit", page)) == len(FIDELITY["failed"])
    )
    for name in FIDELITY["failed"]:
        assert re.search(rf"Beyond its limit.* {FIDELITY['volumes'][name]['value']:.4f}", page)
    for link in re.findall(r"\]\((?!http)([^)]+)\)", page):
        assert (BUNDLE / link).is_file(), link


def test_card_python_runs(installed, monkeypatch):
    monkeypatch.chdir(installed)
    (program,) = find_blocks((installed / NAME / "README.md").read_text(), "python")
    names = {}
    exec(program, names)
    assert names["volumes"].shape == (2, 1, 64, 64, 64)


class Hub(BaseHTTPRequestHandler):
    """The part of the Hugging Face hub that takes an upload: files as they come, and tags of what is there."""

    files: dict[str, bytes]
    tags: dict[str, set[str]]
    private: list[bool]

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        answer = {}
        if self.path.startswith("/api/repos/create"):
            asked = json.loads(body)  # the hub's client of 1.0 has a flag of its own
            self.private.append(asked.get("visibility") == "private" or asked.get("private") is True)
            answer = {"url": f"http://{self.headers['Host']}/me/spheres"}
        elif "/preupload/" in self.path:
            files = [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            answer = {"files": files}
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            answer = {"commitUrl": f"http://{self.headers['Host']}/me/spheres/commit/{'0' * 40}", "commitOid": "0" * 40}
        elif "/tag/" in self.path:
            self.tags[json.loads(body)["tag"]] = set(self.files)
        self.answer(answer)

    def do_GET(self):
        self.answer({})

    def answer(self, content):
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


def test_documented_push(archive, tmp_path):
    """The documented commands bring the hub every file, the card and the version."""
    commands = read_commands("bundle/docs/integrations.md", "hf upload", "python -m fire")
    assert len(commands) == 2
    hub = type("EmptyHub", (Hub,), {"files": {}, "tags": {}, "private": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), hub)
    Thread(target=server.serve_forever, daemon=True).start()
    (tmp_path / "dist").mkdir()
    zipfile.ZipFile(archive).extractall(tmp_path / "dist")
    environment = {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_TOKEN": "hf_none",
        "HF_HOME": str(tmp_path / "home"),
    }
    try:
        for command in commands:
            run_process(*shlex.split(command), folder=tmp_path, environment=environment)
    finally:
        server.shutdown()
        server.server_close()
    sent = zipfile.ZipFile(archive)
    assert hub.files == {name.removeprefix(f"{NAME}/"): sent.read(name) for name in sent.namelist()}
    assert {"LICENSE", "README.md", "configs/metadata.json", "configs/inference.json", "models/model.pt"} <= set(
        hub.files
    )
    assert hub.files["README.md"].decode() == str(make_card(BUNDLE))
    assert hub.tags == {METADATA["version"]: set(hub.files)}
    assert all(hub.private)
    assert not any(Path(name).is_absolute() for name in hub.files)
