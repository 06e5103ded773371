"""The nginx and Caddy configurations of docs/security.md, run with the real programs in front of the real server."""

import re
import shutil
import ssl
import subprocess
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from time import sleep

import httpx
import pytest
from test_web import PASSWORD, fill
from watched_run import short_run

from benchmarks.postgres import free_port
from towpath.store import people
from towpath.store.store import Store
from towpath.web.server import NetworkOptions, create_server, open_socket

NAME = "rate.example.org"
PAGE = (Path(__file__).parent.parent / "docs" / "security.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    return re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)[1]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
            "-subj",
            f"/CN={NAME}",
            "-addext",
            f"subjectAltName=DNS:{NAME}",
            "-keyout",
            folder / "key.pem",
            "-out",
            folder / "cert.pem",
        ],
        check=True,
        capture_output=True,
    )
    return folder


@contextmanager
def nginx(folder: Path, certificate: Path, port: int, behind: int):
    server = (
        block("nginx")
        .replace("listen 443", f"listen 127.0.0.1:{port}")
        .replace("127.0.0.1:8000", f"127.0.0.1:{behind}")
    )
    server = re.sub(r"(ssl_certificate\s+)\S+;", rf"\g<1>{certificate}/cert.pem;", server)
    server = re.sub(r"(ssl_certificate_key\s+)\S+;", rf"\g<1>{certificate}/key.pem;", server)
    temporary = " ".join(
        f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    text = (
        f"daemon off; pid {folder}/pid; error_log {folder}/error.log;\nevents {{}}\nhttp {{ access_log off; "
        f"{temporary}\n{server}}}\n"
    )
    (folder / "nginx.conf").write_text(text)
    with program("nginx", "-p", str(folder), "-c", str(folder / "nginx.conf"), port=port):
        yield


@contextmanager
def caddy(folder: Path, certificate: Path, port: int, behind: int):
    site = block("caddyfile").replace(
        f"{NAME} {{",
        f"https://{NAME}:{port} {{\n    bind 127.0.0.1\n    tls {certificate}/cert.pem {certificate}/key.pem",
    )
    (folder / "Caddyfile").write_text(
        "{\n    admin off\n    auto_https off\n}\n" + site.replace("127.0.0.1:8000", f"127.0.0.1:{behind}")
    )
    with program("caddy", "run", "--adapter", "caddyfile", "--config", str(folder / "Caddyfile"), port=port):
        yield


@contextmanager
def program(*command: str, port: int):
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    log = Path(command[-1]).parent / "proxy.log"
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        while process.poll() is None:
            try:
                httpx.get(f"http://127.0.0.1:{port}")
                break
            except httpx.ConnectError:
                sleep(0.05)
            except httpx.HTTPError:
                break
        assert process.poll() is None, log.read_text()
        yield
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(params=[nginx, caddy])
def site(request, tmp_path, certificate):
    """The address of a team's server behind a proxy, and a TLS context that trusts its certificate."""
    with Store.open(tmp_path / "towpath.db") as store:
        fill(store)
        run = short_run(tmp_path / "run")
        server, auth = create_server(
            store, True, network=NetworkOptions(names=(NAME,), proxies=("127.0.0.1",)), run=run
        )
        for name, role in (("olga", "owner"), ("ann", "rater")):
            store.submit_write(people.add_account, name, role, auth.hash_password(PASSWORD)).result()
        with open_socket("127.0.0.1", 0) as listener:
            thread = Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
            thread.start()
            port = free_port()
            (tmp_path / "proxy").mkdir()
            with request.param(tmp_path / "proxy", certificate, port, listener.getsockname()[1]):
                yield port, ssl.create_default_context(cafile=certificate / "cert.pem")
            server.should_exit = True
            thread.join()


def visitor(site, **headers: str) -> httpx.Client:
    """An HTTP client that connects to this machine under the site's host name."""
    port, context = site

    class Local(httpx.HTTPTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            url = request.url.copy_with(host="127.0.0.1", port=port)
            extensions = request.extensions | {"sni_hostname": NAME}
            return super().handle_request(
                httpx.Request(
                    request.method, url, headers=request.headers, stream=request.stream, extensions=extensions
                )
            )

    here = f"https://{NAME}:{port}"
    return httpx.Client(
        base_url=here,
        transport=Local(verify=context),
        headers={"origin": here, "accept": "application/json", **headers},
        timeout=30,
    )


def sign_in(browser: httpx.Client, name: str, password: str = PASSWORD) -> httpx.Response:
    return browser.post("/sign-in", data={"name": name, "password": password})


def test_sign_in_and_rating_over_tls_proxies(site):
    with visitor(site) as ann:
        done = sign_in(ann, "ann")
        assert done.status_code == 303
        assert "__Host-" in done.headers["set-cookie"]
        assert "secure" in done.headers["set-cookie"].lower()
        assert done.headers["strict-transport-security"].startswith("max-age=")
        seat = ann.get("/rate/next").json()
        body = {"key": "key-one-1", "comparison": seat["comparison"], "side": "left"}
        assert ann.post("/rate/judge", json=body).json()["judgements"] == 1
        assert ann.post("/rate/judge", json=body, headers={"origin": "https://evil.example"}).status_code == 403
        assert (
            ann.post("/rate/write", content=b"x" * 1_100_000, headers={"content-type": "application/json"}).status_code
            == 413
        )


def test_claimed_address_is_not_trusted(site):
    with visitor(site) as attacker:
        statuses = [
            attacker.post(
                "/sign-in", data={"name": "ann", "password": "wrong"}, headers={"x-forwarded-for": f"198.51.100.{n}"}
            ).status_code
            for n in range(8)
        ]
        assert 429 in statuses
        assert statuses.count(401) <= 5


def test_proxies_do_not_buffer_live_pages(site):
    with visitor(site) as olga:
        sign_in(olga, "olga")
        with olga.stream("GET", "/monitor/events", params={"stage": "policy"}, timeout=15) as stream:
            for line in stream.iter_lines():
                if line.startswith("event:"):
                    break
            assert stream.headers["content-type"].startswith("text/event-stream")
