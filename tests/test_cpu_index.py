"""Where `make setup` gets PyTorch from."""

import functools
import http.server
import socket
import threading
import time

import pytest

from tools import cpu_index


@pytest.fixture
def index(tmp_path):
    """An index of packages on this machine that has PyTorch, and where it answers."""
    (tmp_path / "torch").mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def without_driver(monkeypatch):
    monkeypatch.setattr(cpu_index, "has_driver", lambda: False)
    monkeypatch.setattr("sys.platform", "linux")


def test_index_for_cpu(index, without_driver, capsys):
    assert cpu_index.main(index) == f"--extra-index-url {index}"
    # the server logs there as well
    message = [line for line in capsys.readouterr().err.splitlines() if "NVIDIA" in line]
    assert len(message) == 1 and index in message[0]


def test_driver_or_other_system(index, monkeypatch, capsys):
    """With a driver, or off Linux, the default index has the right build."""
    monkeypatch.setattr(cpu_index, "has_driver", lambda: True)
    assert cpu_index.main(index) == ""
    monkeypatch.setattr(cpu_index, "has_driver", lambda: False)
    monkeypatch.setattr("sys.platform", "darwin")
    assert cpu_index.main(index) == ""
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kind", ["refuses", "has no PyTorch", "never answers"])
def test_index_out_of_reach(kind, index, without_driver, monkeypatch, capsys):
    """Set-up goes on without the index, within seconds."""
    monkeypatch.setattr(cpu_index, "SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        if kind == "refuses":
            silent.close()
        started = time.monotonic()
        assert cpu_index.main(f"{index}/other" if kind == "has no PyTorch" else f"http://127.0.0.1:{port}") == ""
        assert time.monotonic() - started < 3
    assert "no answer" in capsys.readouterr().err
