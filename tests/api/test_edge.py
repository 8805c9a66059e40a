"""What every request passes: the token, and the counters; and the figures of a process."""

import pytest
from structlog.testing import capture_logs

from app.api import edge
from app.api.pools import routes as pools
from app.config import Role
from tests.support.service import Refused, check, figures, serve, until

TOKEN = {"Authorization": "Bearer a-secret"}


async def test_with_a_token_only_those_who_send_it_come_in(database_url, dev_cluster, tmp_path):
    async with serve(database_url, dev_cluster, tmp_path, api_token="a-secret") as server:
        for headers in (
            {},
            {"Authorization": "a-secret"},
            {"Authorization": "Bearer another"},
            {"Authorization": "Bearer "},
        ):
            for method, path in (("GET", "/v1/pools"), ("POST", "/v1/claim"), ("GET", "/nothing")):
                answer = await server.client.request(method, path, headers=headers)
                check(answer, Refused(401, "unauthenticated", says="Authorization: Bearer"))
                assert answer.headers["www-authenticate"] == "Bearer"
        assert (await server.client.get("/v1/pools", headers=TOKEN)).json() == {"items": [], "next": None}
        check(await server.claim("none", headers=TOKEN), Refused(404, "pool-not-found"))
        for path in (
            "/healthz",
            "/readyz",
            "/metrics",
            "/docs",
            "/openapi.json",
            "/static-offline-docs/swagger-ui.css",
        ):
            assert (await server.client.get(path)).status_code == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/docs"])
async def test_a_worker_serves_its_health_and_nothing_else(database_url, dev_cluster, tmp_path, path):
    async with serve(database_url, dev_cluster, tmp_path, role=Role.WORKER) as server:
        assert (await server.client.get(path)).status_code == 200
        check(await server.client.get("/v1/pools"), Refused(404, "not-found"))
        check(await server.claim("any"), Refused(404, "not-found"))


async def test_metrics_count_claims_requests_boots_and_calls(database_url, dev_cluster, tmp_path):
    async with serve(database_url, dev_cluster, tmp_path) as server:
        before = await figures(server)
        await server.fill("counted", size=1)
        await server.claim_one("counted")
        await server.claim("nowhere")
        await server.client.get("/v1/nothing")
        after = {}

        def grown(name):
            return after.get(name, 0) - before.get(name, 0)

        async def is_counted():
            after.update(await figures(server))
            return grown("emberpool_boot_seconds_count") >= 1

        await until(is_counted)  # a worker counts a boot once it is written, when the claim may have had the VM already

    assert grown('emberpool_claim_seconds_count{outcome="warm"}') == 1
    assert grown('emberpool_claim_seconds_count{outcome="pool-not-found"}') == 1
    assert grown('emberpool_http_requests_total{operation="claim",status="201"}') == 1
    assert grown('emberpool_http_requests_total{operation="claim",status="404"}') == 1
    assert grown('emberpool_http_requests_total{operation="put_pool",status="201"}') == 1
    assert grown('emberpool_http_requests_total{operation="none",status="404"}') == 1
    assert any(name.startswith("emberpool_cluster_calls_total{") and grown(name) for name in after)
    assert not [name for name in after if "nowhere" in name or "counted" in name]  # labels are bounded


async def test_a_bug_is_told_as_one_and_nothing_more(database_url, dev_cluster, tmp_path, monkeypatch):
    async with serve(database_url, dev_cluster, tmp_path) as server:

        async def broken(*_, **__):
            raise RuntimeError("something private")

        monkeypatch.setattr(server.services.claim_service, "claim", broken)
        monkeypatch.setattr(pools.pool_rows, "page", broken)
        with capture_logs() as logged:
            answers = (await server.claim("any"), await server.client.get("/v1/pools"))
    for answer in answers:
        check(answer, Refused(500, "internal-error", says="the service failed unexpectedly"))
        assert "private" not in answer.text
    crashes = [(each["path"], str(each["exc_info"])) for each in logged if each["event"] == "request.crashed"]
    assert crashes == [("/v1/claim", "something private"), ("/v1/pools", "something private")]


def test_the_open_paths_hold_nothing_of_the_api():
    assert not any(path.startswith("/v1") for path in edge._OPEN_PATHS)
