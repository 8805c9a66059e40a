"""The command line: what goes wrong ends in a sentence, never in a traceback."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import asyncpg
import httpx
import pytest
from structlog.testing import capture_logs

from app.cli import program as cli
from app.store.migrations import head
from tests.support.newer_program import NEWER, upgrade_command, write_newer
from tests.support.patience import PATIENCE

PROGRAM = [sys.executable, "-m", "app"]


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command in this process; gives its exit code, and what it wrote to both outputs."""
    # The logs of this process stay as they are: a test's stderr is closed when the next one writes.
    monkeypatch.setattr("app.cli.settings.configure_logs", lambda **_: None)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["emberpool", *arguments])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        return code or 0, out, " ".join(err.replace("│", " ").split())

    return run


def kubeconfig(folder: Path, url: str = "http://127.0.0.1:1") -> str:
    path = folder / "kubeconfig"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "here"}}],
        "clusters": [{"name": "here", "cluster": {"server": url}}],
        "users": [{"name": "here", "user": {}}],
    }
    path.write_text(json.dumps(config), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["up", "--prot", "1"], 2, "No such option: --prot"),
        (["up", "--cold-boot-seconds", "0"], 2, "Invalid value for '--cold-boot-seconds'"),
        (["up", "--port", "70000"], 2, "port: must be 65535 or less"),
        (["migrate", "--database-url", "mysql://h/d"], 2, "database_url: a libpq URL begins with postgresql://"),
        (
            ["migrate", "--database-url", "postgresql://me@127.0.0.1:1/d"],
            1,
            "The database cannot be used. Connecting to postgresql://127.0.0.1:1/d failed: ",
        ),
        (
            ["migrate", "--database-url", "postgresql://me:secret@127.0.0.1:1/d"],
            2,
            "database_url: everybody on this machine can read a password in a command line; set EMBERPOOL_DATABASE_URL",
        ),
        (
            ["serve", "--database-url", "postgresql://h/d?user=me&password=secret"],
            2,
            "can read a password in a command line",
        ),
        (["serve", "--kubeconfig", "/none"], 2, "kubeconfig: /none is not a file"),
        (["up", "--guests", "xen"], 2, "Invalid value for '--guests'"),
        (["up", "--guest-memory", "1Gi"], 2, "--guest-memory is for real guests: add --guests qemu, or auto"),
        (["up", "--guest-image", "a=/b"], 2, "--guest-image is for real guests"),
        (["up", "--guests", "qemu", "--guest-memory", "much"], 2, "--guest-memory: 'much' is no size"),
        (["up", "--guests", "qemu", "--guest-image", "fedora"], 2, "--guest-image: 'fedora' is not NAME=IMAGE"),
        (["up", "--guests", "auto", "--guest-image", "a=/none"], 2, "--guest-image: /none is not a file"),
        (["guests", "--data-dir", "/none"], 1, "/none is no data folder of a dev cluster"),
        (["demo", "--pool", "/none"], 1, "The demo cannot go on. /none cannot be read: No such file or directory."),
    ],
)
def test_what_is_wrong_is_told(run, arguments, code, sentence):
    found, out, err = run(*arguments)
    assert (found, out) == (code, "")
    assert sentence in err
    assert "secret" not in err


def test_a_wrong_variable_is_told_as_a_flag_is(run, monkeypatch):
    monkeypatch.setenv("EMBERPOOL_LOG_LEVEL", "loud")
    code, _, err = run("migrate")
    assert code == 2
    assert "log_level: must be 'debug', 'info'" in err
    assert "EMBERPOOL_LOG_LEVEL" in err


def test_a_variable_that_is_no_setting_is_told_with_the_one_that_is_meant(run, monkeypatch):
    monkeypatch.setenv("EMBERPOOL_API_TOKN", "a-secret")
    monkeypatch.setenv("EMBERPOOL_SERVER", "http://127.0.0.1:1")
    monkeypatch.setenv("EMBERPOOL_PORT_80_TCP", "tcp://10.0.0.1:80")
    monkeypatch.setenv("EMBERPOOL_DATABASE_URL", "postgresql://me@127.0.0.1:1/d")
    with capture_logs() as lines:
        run("migrate")
    told = {line["variable"]: line["hint"] for line in lines if line["event"] == "setting.unknown"}
    assert told["EMBERPOOL_API_TOKN"] == "did you mean EMBERPOOL_API_TOKEN?"
    assert not told.keys() & {"EMBERPOOL_SERVER", "EMBERPOOL_DATABASE_URL", "EMBERPOOL_PORT_80_TCP"}


def test_migrating_twice_changes_nothing(run, postgres):
    postgres.ensure_database("cli_migrate")
    for _ in range(2):
        assert run("migrate", "--database-url", postgres.url("cli_migrate")) == (
            0,
            f"The database is at migration {head()}.\n",
            "",
        )


def test_a_database_that_was_never_migrated_is_not_served(run, postgres, tmp_path):
    postgres.ensure_database("cli_empty")
    code, out, err = run(
        "serve", "--port", "0", "--database-url", postgres.url("cli_empty"), "--kubeconfig", kubeconfig(tmp_path)
    )
    assert (code, out) == (1, "")
    assert f"It has no schema yet, and this program needs {head()}; run `emberpool migrate` first." in err


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_a_database_in_another_encoding_is_refused_before_anything_is_done(run, postgres, tmp_path, encoding):
    name = f"cli_{encoding.lower()}"
    postgres._query(f"CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0")
    serve = ("serve", "--port", "0", "--kubeconfig", kubeconfig(tmp_path))
    for command in (("migrate",), serve):
        code, out, err = run(*command, "--database-url", postgres.url(name))
        assert (code, out) == (1, "")
        assert f"The database cannot be used. Its encoding is {encoding}, and the service needs UTF8." in err
        assert "createdb --encoding UTF8 --template template0" in err
    assert asyncio.run(_relations(postgres.url(name))) == 0


async def _relations(url):
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval("SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace")
    finally:
        await connection.close()


def test_a_database_that_lets_us_not_in_is_told(run, postgres, monkeypatch):
    monkeypatch.setenv("EMBERPOOL_DATABASE_URL", postgres.url("postgres").replace("postgres@", "nobody:secret@"))
    for command in ("migrate", "serve"):
        code, _, err = run(command)
        assert code == 1
        assert 'role "nobody" does not exist' in err
        assert "Correct the user or the password" in err
        assert "secret" not in err


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("postgresql://me:s3cr3t@127.0.0.1:1/d", 1),
        ("postgresql://me:s3cr3t%40%2F%3F@127.0.0.1:1/d", 1),
        ("postgresql://127.0.0.1:1/d?user=me&password=s3cr3t", 1),
        ("postgresql://me@/d?host=/nowhere&password=s3cr3t", 1),
        ("postgresql://me:s3cr3t@[::1]:1/d", 1),
        ("postgresql://me:s3cr3t@127.0.0.1:1,127.0.0.1:2/d", 1),
        ("postgresql://me:s3cr3t@127.0.0.1:1/d?sslmode=maybe", 1),
        ("postgresql://me:s3cr3t@127.0.0.1:1/d?target_session_attrs=any-s", 1),
        ("postgresql://me:s3cr3t@127.0.0.1:99999/d", 1),
        *(
            (url, 2)
            for url in (
                "postgresql://me:x@s3cr3t@127.0.0.1:1/d",
                "postgresql://me:x/s3cr3t@127.0.0.1:1/d",
                "postgresql://me:x?s3cr3t@127.0.0.1:1/d",
                "postgresql://me:x#s3cr3t@127.0.0.1:1/d",
                "postgresql://me:x#s3cr3t",
                "postgresql://me:[s3cr3t@127.0.0.1:1/d",
                "postgresql://me:s3cr3t\u2100@127.0.0.1:1/d",
                "postgresql://me:s3cr3t x@127.0.0.1:1/d",
                "postgresql://me:s3cr3t/d",
                "postgresql://me:s3cr3t@127.0.0.1:s3cr3t/d",
                "postgresql://me:s3cr3t@[127/d",
                "postgresql://127.0.0.1:1/d?user=me&s3cr3t",
                "mysql://me:s3cr3t@127.0.0.1:1/d",
                "me:s3cr3t@127.0.0.1:1/d",
            )
        ),
    ],
)
def test_no_part_of_a_password_is_in_any_message(run, monkeypatch, url, code):
    monkeypatch.setenv("EMBERPOOL_DATABASE_URL", url)
    found, out, err = run("migrate")
    assert (found, out) == (code, "")
    assert "atabase" in err
    assert "s3cr3t" not in err


def test_a_newer_database_that_serves_this_program_is_left_alone_and_served(run, postgres, tmp_path):
    name = "cli_newer"
    postgres.ensure_database(name)
    subprocess.run(upgrade_command(postgres.url(name), write_newer(tmp_path)), check=True)
    assert run("migrate", "--database-url", postgres.url(name)) == (
        0,
        f"The database is at migration {NEWER}, ahead of this program's {head()}, which it serves; nothing was changed.\n",
        "",
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        config = kubeconfig(tmp_path)
        _, _, err = run("serve", "--port", port, "--database-url", postgres.url(name), "--kubeconfig", config)
    assert "is in use by another process" in err  # so it came that far


def test_a_newer_database_that_serves_this_program_no_more_is_refused(run, postgres, tmp_path):
    name = "cli_contracted"
    postgres.ensure_database(name)
    subprocess.run(upgrade_command(postgres.url(name), write_newer(tmp_path, serves_from=NEWER)), check=True)
    for command in (["migrate"], ["serve", "--port", "0", "--kubeconfig", kubeconfig(tmp_path)]):
        code, out, err = run(*command, "--database-url", postgres.url(name))
        assert (code, out) == (1, "")
        assert (
            f"It is at migration {NEWER}, which serves programs that have {NEWER}, and this program has {head()}" in err
        )


def test_a_port_that_is_taken_is_told(run, postgres, template_database, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = run(
            *("serve", "--port", str(port), "--kubeconfig", kubeconfig(tmp_path)),
            *("--database-url", postgres.url(template_database)),
        )
    assert code == 1
    assert f"The service cannot listen. 127.0.0.1 port {port} is in use by another process" in err


@pytest.mark.parametrize("text", ["", "- 1", "clusters: ["])
def test_a_kubeconfig_that_is_none_is_told(run, postgres, template_database, tmp_path, text):
    path = tmp_path / "wrong"
    path.write_text(text, encoding="utf-8")
    code, _, err = run(
        "serve", "--port", "0", "--database-url", postgres.url(template_database), "--kubeconfig", str(path)
    )
    assert code == 1
    assert f"{path} cannot be used to reach the cluster" in err


def test_outside_of_a_cluster_a_kubeconfig_is_asked_for(run, postgres, template_database):
    code, _, err = run("serve", "--port", "0", "--database-url", postgres.url(template_database))
    assert code == 1
    assert "set EMBERPOOL_KUBECONFIG" in err


async def _started(*arguments: str) -> tuple[asyncio.subprocess.Process, str]:
    """The program as a process of its own, and the address that it says it serves at."""
    process = await asyncio.create_subprocess_exec(
        *PROGRAM, *arguments, stderr=asyncio.subprocess.PIPE, env={**os.environ, "COLUMNS": "80"}
    )
    async with asyncio.timeout(PATIENCE):
        while line := (await process.stderr.readline()).decode():
            if "Emberpool serves at " in line:
                return process, line.split("serves at ")[1].split(";")[0]
    raise AssertionError("it ended before it served")


async def _stopped(process: asyncio.subprocess.Process, by: signal.Signals) -> int:
    process.send_signal(by)
    async with asyncio.timeout(PATIENCE):
        await process.communicate()
    return process.returncode


async def test_up_serves_until_it_is_stopped():
    # Not pytest's tmp_path: where the tests run as root, the folders above a database are opened to everyone.
    with tempfile.TemporaryDirectory(prefix="emberpool-cli-") as parent:
        folder = Path(parent) / "up"
        process, address = await _started("up", "--port", "0", "--data-dir", str(folder), "--cold-boot-seconds", "0.2")
        async with httpx.AsyncClient(base_url=address) as client:
            assert (await client.get("/readyz")).status_code == 200
        assert await _stopped(process, signal.SIGINT) == 0
        assert {each.name for each in folder.iterdir()} == {"cluster", "handover-key", "lock", "postgres"}
