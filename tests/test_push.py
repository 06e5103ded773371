"""The model card's metadata, and uploads to a hub: a server that speaks the part of its protocol that is used."""

import base64
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from command import SMALL, towpath
from huggingface_hub import ModelCard, constants

from towpath import recipe
from towpath.errors import TowpathError
from towpath.run import export


class Hub(BaseHTTPRequestHandler):
    """Repositories are created, and files arrive within one commit."""

    received: dict[str, Any]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0))).decode()
        if self.path == "/api/repos/create":
            request = json.loads(body)
            self.received["private"] = request.get("private", request.get("visibility") == "private")
            self.reply({"url": f"{constants.ENDPOINT}/team/{request['name']}"})
        elif self.path == "/api/validate-yaml":
            self.received["card"] = json.loads(body)["content"]
            self.reply({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            self.reply({"files": files})
        elif "/commit/" in self.path:
            rows = [json.loads(line) for line in body.splitlines()]
            files = {r["value"]["path"]: base64.b64decode(r["value"]["content"]) for r in rows if r["key"] == "file"}
            self.received["files"] = files
            self.reply({"commitUrl": f"{constants.ENDPOINT}/team/eggs/commit/1", "commitOid": "1" * 40})
        else:
            self.reply({"error": "no such page"}, 404)

    def do_GET(self) -> None:
        self.reply({"id": "team/eggs", "siblings": []})

    def reply(self, content: dict[str, Any], status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What a hub receives."""
    received: dict[str, Any] = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OneHub", (Hub,), {"received": received}))
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    yield received
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_card_has_results_for_the_hub_and_is_uploaded_with_the_model(
    finished: Path, tmp_path: Path, hub: dict[str, Any]
) -> None:
    folder = export.export(recipe.load(finished, SMALL), finished, tmp_path / "model", False, False)
    card = ModelCard.load(folder / "README.md")
    data = card.data.to_dict()
    assert data["library_name"] == "transformers" and data["pipeline_tag"] == "text-generation"
    assert "base_model" not in data, "the tiny model is not on the hub"
    results = {r["type"]: r for r in data["model-index"][0]["results"][0]["metrics"]}
    (manifest,) = finished.glob("stages/evaluate/*/manifest.json")
    win = json.loads(manifest.read_text())["result"]["win"]
    assert results["win_rate"]["value"] == pytest.approx(win["rate"], abs=1e-6)
    assert win["judge"] in results["win_rate"]["name"]
    assert card.content.count("# tiny: policy") == 1
    assert export.push(folder, "eggs") == f"{constants.ENDPOINT}/team/eggs"
    assert hub["private"] is True
    assert hub["files"].keys() == {p.name for p in folder.iterdir()}
    assert hub["files"]["model.safetensors"] == (folder / "model.safetensors").read_bytes()


def test_a_push_that_fails_says_how_to_sign_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(TowpathError, match=r"--push eggs[\s\S]*HF_TOKEN"):
        export.push(tmp_path, "eggs")


def test_the_command_names_its_options() -> None:
    text = towpath("export", "--help").stdout
    assert "--push" in text and "--public" in text
