"""Ctrl-C ends a command at once, and without a traceback."""

import os
import signal
import socket
import subprocess
import sys

import pytest


@pytest.fixture(autouse=True)
def sigint_not_ignored():
    """A shell starts a background job with SIGINT ignored, and its child processes inherit that; a handler is reset instead."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["get", "pools"], 130, b""),
        (["get", "pools", "--watch"], 0, b""),
        (["claim", "web", "--wait", "50"], 130, b"Interrupted: the claim is released.\n"),
        (["apply", "-f", "-"], 130, b""),
    ],
    ids=str,
)
def test_a_command_that_waits_can_be_ended(arguments, code, told, tmp_path):
    document = tmp_path / "pool.yaml"
    document.write_text("kind: VirtualMachinePool\n", encoding="utf-8")
    with document.open("rb") as given, socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(100)
        server = f"http://127.0.0.1:{silent.getsockname()[1]}"
        process = subprocess.Popen(
            [sys.executable, "-m", "app", *arguments, "--server", server],
            stdin=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "COLUMNS": "200"},
        )
        try:
            connection, _ = silent.accept()
            with connection:
                connection.settimeout(100)
                assert connection.recv(1)  # it has asked, and waits for an answer that never comes
                process.send_signal(signal.SIGINT)
                out, err = process.communicate(timeout=100)
        finally:
            process.kill()
            process.wait()
    assert (process.returncode, out, err) == (code, b"", told)
