"""docker-compose.yml, read by the compose command itself; no engine is needed for that."""

import json
import subprocess

import pytest

from app.config import Settings
from tests.support.checkout import ROOT, TOOLS

SERVICE_VARIABLES = {f"EMBERPOOL_{name.upper()}" for name in Settings.model_fields}


def read(*arguments: str, **environment: str) -> dict:
    command = [str(TOOLS / "docker-compose"), *arguments, "config", "--format", "json"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, "the compose file is read with a warning"
    return json.loads(done.stdout)["services"]


@pytest.fixture(scope="module")
def services() -> dict:
    return read("--profile", "dev")


def test_the_dev_cluster_is_a_profile_and_all_else_is_not(services):
    assert set(read()) == {"postgres", "migrate", "api", "worker"}
    assert set(services) == {"postgres", "migrate", "api", "worker", "devcluster"}


def test_each_container_is_built_from_the_target_that_its_image_is_named_for(services):
    images = {
        name: (each["image"].partition(":")[0], each["build"]["target"])
        for name, each in services.items()
        if "build" in each
    }
    production = ("emberpool", "emberpool")
    assert images == {
        **dict.fromkeys(("migrate", "api", "worker"), production),
        "devcluster": ("emberpool-dev", "emberpool-dev"),
    }


def test_each_variable_is_a_setting(services):
    used = {name for service in services.values() for name in service.get("environment", {}) if "EMBERPOOL" in name}
    assert used
    assert used <= SERVICE_VARIABLES


def test_the_service_starts_after_the_migrations_and_they_after_the_database(services):
    assert services["migrate"]["depends_on"]["postgres"]["condition"] == "service_healthy"
    for name in ("api", "worker"):
        waits_for = services[name]["depends_on"]
        assert waits_for["migrate"]["condition"] == "service_completed_successfully"
        assert waits_for["devcluster"] == {"condition": "service_healthy", "required": False}


def test_the_dev_cluster_writes_its_kubeconfig_where_the_service_reads_it(services):
    written = next(part for part in services["devcluster"]["command"] if part.startswith("--kubeconfig-out="))
    (shared,) = services["devcluster"]["volumes"]
    for name in ("api", "worker"):
        (mount,) = services[name]["volumes"]
        assert mount["source"] == shared["source"]
        assert mount["read_only"]
        name_in_volume = written.removeprefix(f"--kubeconfig-out={shared['target']}/")
        assert services[name]["environment"]["EMBERPOOL_KUBECONFIG"] == f"{mount['target']}/{name_in_volume}"


def test_a_real_clusters_kubeconfig_can_be_mounted_instead():
    for name in ("api", "worker"):
        (mount,) = read(KUBE_FOLDER="/somewhere")[name]["volumes"]
        assert (mount["type"], mount["source"], mount["target"]) == ("bind", "/somewhere", "/kube")


def test_the_database_keeps_its_data_where_its_image_does(services):
    # From 18 on the image's volume is /var/lib/postgresql; one mounted at .../data would stay empty (docker-library/postgres).
    assert services["postgres"]["image"] == "postgres:18"
    assert [mount["target"] for mount in services["postgres"]["volumes"]] == ["/var/lib/postgresql"]


def test_the_password_is_one_for_all(services):
    for each in (services, read("--profile", "dev", POSTGRES_PASSWORD="another")):
        password = each["postgres"]["environment"]["POSTGRES_PASSWORD"]
        for name in ("migrate", "api", "worker"):
            assert (
                f"//emberpool:{password}@postgres:5432/emberpool" in each[name]["environment"]["EMBERPOOL_DATABASE_URL"]
            )


def test_ports_open_on_this_machine_alone(services):
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert [port["host_ip"] for port in published] == ["127.0.0.1"]


def test_a_stop_waits_longer_than_the_service_drains(services):
    grace = Settings.model_fields["shutdown_grace_seconds"].default
    for name in ("api", "worker"):
        assert int(services[name]["stop_grace_period"].removesuffix("s")) > grace


def test_our_containers_have_no_more_rights_than_they_need(services):
    for name in ("migrate", "api", "worker", "devcluster"):
        assert services[name]["read_only"], name
        assert services[name]["cap_drop"] == ["ALL"], name
        assert services[name]["security_opt"] == ["no-new-privileges:true"], name


def test_the_dev_clusters_kubeconfig_names_a_host_that_the_others_resolve(services):
    cluster = services["devcluster"]
    assert cluster["hostname"] == "devcluster"
    assert "--host=devcluster" in cluster["command"]
    assert "http://devcluster:8001/" in cluster["healthcheck"]["test"][-1]
    assert "--port=8001" in cluster["command"]
