"""Images fetched from files, from a server that breaks off, and from a registry."""

import gzip
import hashlib
import lzma
import os
import platform
import resource

import pytest

from app.devcluster.guests.images import zstd
from app.devcluster.guests.images.downloads import Limits
from app.devcluster.guests.images.errors import FetchFailed
from app.devcluster.guests.images.sources import fetch
from tests.support.disk_images import needs_qemu_img, qemu_img
from tests.support.image_servers import FileServer, Registry, layer, pull_secret, serving

pytestmark = needs_qemu_img

MIB = 1024 * 1024
QUICK = Limits(bytes=64 * MIB, pause_seconds=0.0)
CONTENT = bytes(range(256)) * (4 * MIB // 256)
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64", "arm64": "arm64"}[platform.machine()]


@pytest.fixture(name="cache")
def _cache(tmp_path):
    return tmp_path / "cache"


def left_in(cache):
    return [path for path in (cache / "images").rglob("*") if path.is_file()]


class TestUrls:
    async def test_a_file_is_fetched_whole_and_its_progress_told(self, cache):
        told = []
        async with serving(FileServer(CONTENT).application()) as host:
            fetched = await fetch(f"http://{host}/disk.img", cache=cache, on_progress=lambda *now: told.append(now))

        assert fetched.path.read_bytes() == CONTENT
        assert (fetched.format, fetched.virtual_size) == ("raw", len(CONTENT))
        assert told[0] == (0, len(CONTENT))
        assert told[-1] == (len(CONTENT), len(CONTENT))

    async def test_a_file_that_did_not_change_is_not_sent_again(self, cache):
        server = FileServer(CONTENT)
        async with serving(server.application()) as host:
            first = await fetch(f"http://{host}/disk.img", cache=cache)
            second = await fetch(f"http://{host}/disk.img", cache=cache)
            server.content, server.etag = CONTENT[:MIB], '"two"'
            third = await fetch(f"http://{host}/disk.img", cache=cache)

        assert second == first
        assert third.virtual_size == MIB
        assert first.path.read_bytes() == CONTENT

    async def test_a_file_without_a_version_is_fetched_each_time(self, cache):
        server = FileServer(CONTENT, etag="", length=False)
        async with serving(server.application()) as host:
            await fetch(f"http://{host}/disk.img", cache=cache)
            server.content = CONTENT[:MIB]
            fetched = await fetch(f"http://{host}/disk.img", cache=cache)

        assert fetched.virtual_size == MIB

    async def test_a_connection_that_breaks_is_gone_on_with_where_it_broke(self, cache):
        server = FileServer(CONTENT, cuts=[MIB, 2 * MIB])
        async with serving(server.application()) as host:
            fetched = await fetch(f"http://{host}/disk.img", cache=cache, limits=QUICK)

        assert fetched.path.read_bytes() == CONTENT
        assert len(server.asked) == 3
        assert int(server.asked[2]["Range"].removeprefix("bytes=").removesuffix("-")) > MIB

    async def test_a_server_that_cannot_go_on_is_asked_from_the_start(self, cache):
        async with serving(FileServer(CONTENT, cuts=[MIB], ranges=False).application()) as host:
            fetched = await fetch(f"http://{host}/disk.img", cache=cache, limits=QUICK)

        assert fetched.path.read_bytes() == CONTENT

    async def test_a_connection_that_always_breaks_is_given_up_and_leaves_nothing(self, cache):
        async with serving(FileServer(CONTENT, cuts=[MIB] + [0] * 20).application()) as host:
            with pytest.raises(FetchFailed, match=r"Unable to transfer source data to target file: .* broke after"):
                await fetch(f"http://{host}/disk.img", cache=cache, limits=QUICK)

        assert left_in(cache) == []

    async def test_a_missing_file_is_told_in_cdis_words(self, cache):
        async with serving(FileServer(CONTENT).application()) as host:
            with pytest.raises(FetchFailed) as failed:
                await fetch(f"http://{host}/missing.img", cache=cache)

        told = "Unable to connect to http data source: expected status code 200, got 404. Status: 404 Not Found"
        assert str(failed.value) == f"{told}. URL: http://{host}/missing.img"
        assert left_in(cache) == []

    async def test_a_redirect_to_a_page_is_no_image(self, cache):
        async with serving(FileServer(CONTENT).application()) as host:
            with pytest.raises(FetchFailed, match=r"Unexpected content type 'text/html.*\(after a redirect\)"):
                await fetch(f"http://{host}/moved?to=/page", cache=cache)

    async def test_redirects_are_followed_but_not_in_a_circle(self, cache):
        async with serving(FileServer(CONTENT).application()) as host:
            fetched = await fetch(f"http://{host}/moved?to=/disk.img", cache=cache)
            with pytest.raises(FetchFailed, match="HTTP request errored: Exceeded maximum allowed redirects"):
                await fetch(f"http://{host}/circle", cache=cache, limits=QUICK)

        assert fetched.path.read_bytes() == CONTENT

    async def test_a_server_that_is_not_there_is_told(self, cache):
        with pytest.raises(FetchFailed, match="Unable to connect to http data source: HTTP request errored"):
            await fetch("http://127.0.0.1:1/disk.img", cache=cache)

    @pytest.mark.parametrize("length", [True, False])
    async def test_a_file_that_is_too_large_is_refused_and_leaves_nothing(self, cache, length):
        async with serving(FileServer(CONTENT, length=length).application()) as host:
            with pytest.raises(FetchFailed, match="larger than the 1048576 bytes") as failed:
                await fetch(f"http://{host}/disk.img", cache=cache, limits=Limits(bytes=MIB))

        assert failed.value.no_space
        assert left_in(cache) == []

    async def test_a_disk_that_fills_up_in_the_middle_leaves_nothing(self, cache):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        async with serving(FileServer(CONTENT).application()) as host:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2 * MIB, limits[1]))
            try:
                with pytest.raises(FetchFailed, match="no space left on device") as failed:
                    await fetch(f"http://{host}/disk.img", cache=cache)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)

        assert failed.value.no_space
        assert left_in(cache) == []

    async def test_the_checksum_of_what_came_is_checked(self, cache):
        right = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
        async with serving(FileServer(CONTENT).application()) as host:
            await fetch(f"http://{host}/disk.img", cache=cache, checksum=right)
            with pytest.raises(FetchFailed, match="checksum validation failed: checksum mismatch"):
                await fetch(f"http://{host}/disk.img", cache=cache, checksum=f"sha256:{'0' * 64}")
            with pytest.raises(FetchFailed, match="invalid checksum 'crc:1'"):
                await fetch(f"http://{host}/disk.img", cache=cache, checksum="crc:1")

    @pytest.mark.parametrize("compress", [gzip.compress, lzma.compress, zstd.compress], ids=["gzip", "xz", "zstd"])
    async def test_a_compressed_image_is_decompressed_within_bounds(self, cache, compress):
        async with serving(FileServer(compress(bytes(8 * MIB))).application()) as host:
            fetched = await fetch(f"http://{host}/disk.img", cache=cache)
            with pytest.raises(FetchFailed, match="larger than 4194304 bytes once it is decompressed"):
                await fetch(f"http://{host}/disk.img", cache=cache.with_name("other"), limits=Limits(bytes=4 * MIB))

        assert fetched.virtual_size == 8 * MIB

    @pytest.mark.parametrize("compress", [gzip.compress, lzma.compress, zstd.compress], ids=["gzip", "xz", "zstd"])
    async def test_a_compressed_image_that_is_cut_is_refused(self, cache, compress):
        async with serving(FileServer(compress(os.urandom(MIB))[: MIB // 2]).application()) as host:
            with pytest.raises(FetchFailed, match="compressed image is broken or cut"):
                await fetch(f"http://{host}/disk.img", cache=cache)

        assert left_in(cache) == []


class TestFiles:
    async def test_a_qcow2_file_is_used_where_it_is(self, tmp_path, cache):
        path = tmp_path / "disk.qcow2"
        qemu_img("create", "-f", "qcow2", path, "3M")

        fetched = await fetch(str(path), cache=cache)

        assert (fetched.path, fetched.format, fetched.virtual_size) == (path, "qcow2", 3 * MIB)

    async def test_a_qcow2_file_that_names_another_file_is_refused(self, tmp_path, cache):
        secret = tmp_path / "secret"
        secret.write_bytes(bytes(MIB))
        backed, split = tmp_path / "backed.qcow2", tmp_path / "split.qcow2"
        qemu_img("create", "-f", "qcow2", "-b", secret, "-F", "raw", backed)
        qemu_img("create", "-f", "qcow2", "-o", f"data_file={tmp_path}/data", split, "1M")

        with pytest.raises(FetchFailed, match=f"has invalid backing file {secret}: a disk must be one file"):
            await fetch(str(backed), cache=cache)
        with pytest.raises(FetchFailed, match="its data is in another file"):
            await fetch(str(split), cache=cache)

    @pytest.mark.parametrize("kind", ["vmdk", "vhdx", "vpc"])
    async def test_other_formats_are_refused_with_what_to_do(self, tmp_path, cache, kind):
        path = tmp_path / "disk"
        qemu_img("create", "-f", kind, path, "4M")

        with pytest.raises(FetchFailed, match=f"Invalid format {kind} for image .*qemu-img convert"):
            await fetch(str(path), cache=cache)

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"", "is empty"),
            (b"QFI\xfb\0\0\0\3" + b"\xff" * 200, "invalid backing file"),
            (b"QFI\xfb\0\0\0\3" + bytes(200), "Invalid format qcow2"),
            (b"QFI\xfb\0\0\0\3", "ends in its header"),
            (b"\x1f\x8b\x08", "is compressed"),
        ],
        ids=["empty", "backed", "broken", "cut", "compressed"],
    )
    async def test_a_file_that_is_no_image_is_refused(self, tmp_path, cache, content, reason):
        path = tmp_path / "disk"
        path.write_bytes(content)

        with pytest.raises(FetchFailed, match=reason):
            await fetch(str(path), cache=cache)

    async def test_a_missing_file_is_told(self, cache):
        with pytest.raises(FetchFailed, match=r"There is no image file /nowhere/disk.img"):
            await fetch("/nowhere/disk.img", cache=cache)


class TestRegistries:
    @pytest.mark.parametrize("compress", [bytes, gzip.compress, zstd.compress], ids=["plain", "gzip", "zstd"])
    async def test_the_disk_is_taken_out_of_its_layer(self, cache, compress):
        registry = Registry()
        registry.push("v1", layer({"etc/passwd": b"x"}), layer({"disk": None, "disk/web.img": CONTENT}, compress))
        async with serving(registry.application()) as host:
            fetched = await fetch(f"docker://{host}/disks/web:v1", cache=cache)

        assert fetched.path.read_bytes() == CONTENT

    async def test_the_same_content_is_pulled_once_whatever_its_tag(self, cache):
        registry = Registry()
        digest = registry.push("v1", layer({"disk/web.img": CONTENT}))
        registry.manifests["v2"] = registry.manifests["v1"]
        async with serving(registry.application()) as host:
            names = [f"{host}/disks/web:v1", f"{host}/disks/web:v2", f"{host}/disks/web:v1@{digest}"]
            fetched = {(await fetch(name, cache=cache)).path for name in names}
            registry.push("v1", layer({"disk/web.img": CONTENT[:MIB]}))
            newer = await fetch(names[0], cache=cache)

        assert len(fetched) == 1
        assert newer.virtual_size == MIB
        assert len(registry.asked) == 2

    async def test_an_index_gives_the_image_of_this_architecture(self, cache):
        registry = Registry()
        other = registry.push("other", layer({"disk/web.img": CONTENT[:MIB]}))
        ours = registry.push("ours", layer({"disk/web.img": CONTENT}))
        registry.push_index("v1", s390x=other, **{ARCHITECTURE: ours})
        registry.push_index("v2", s390x=other)
        async with serving(registry.application()) as host:
            fetched = await fetch(f"{host}/disks/web:v1", cache=cache)
            with pytest.raises(FetchFailed, match=f"no image for linux/{ARCHITECTURE}, only for s390x"):
                await fetch(f"{host}/disks/web:v2", cache=cache)

        assert fetched.virtual_size == len(CONTENT)

    async def test_a_pull_secret_opens_a_private_registry(self, cache):
        registry = Registry(password="open")
        registry.push("v1", layer({"disk/web.img": CONTENT}))
        async with serving(registry.application()) as host:
            name = f"{host}/disks/web:v1"
            for secret in (None, pull_secret(host, "wrong")):
                with pytest.raises(FetchFailed, match=r"failed to pull image: .*check the pull secret") as failed:
                    await fetch(name, cache=cache, pull_secret=secret)
                assert failed.value.pull
            with pytest.raises(FetchFailed, match=r"no readable .dockerconfigjson"):
                await fetch(name, cache=cache, pull_secret=b"{}")
            fetched = await fetch(name, cache=cache, pull_secret=pull_secret(host, "open"))

        assert fetched.path.read_bytes() == CONTENT

    async def test_an_upper_layer_hides_what_is_below(self, cache):
        registry = Registry(needs_token=False)
        lower = layer({"disk/old.img": CONTENT})
        registry.push("replaced", lower, layer({"disk/.wh.old.img": b"", "disk/new.img": CONTENT[:MIB]}))
        registry.push("removed", lower, layer({"disk/.wh.old.img": b""}))
        registry.push("opaque", lower, layer({"disk/.wh..wh..opq": b""}))
        registry.push("gone", lower, layer({".wh.disk": b""}))
        async with serving(registry.application()) as host:
            replaced = await fetch(f"{host}/disks/web:replaced", cache=cache)
            for tag in ("removed", "opaque", "gone"):
                with pytest.raises(FetchFailed, match="Failed to find VM disk image file in the container image"):
                    await fetch(f"{host}/disks/web:{tag}", cache=cache)

        assert replaced.virtual_size == MIB

    async def test_an_image_with_two_disks_is_refused(self, cache):
        registry = Registry()
        registry.push("v1", layer({"disk/a.img": CONTENT, "disk/b.img": CONTENT}))
        async with serving(registry.application()) as host:
            with pytest.raises(FetchFailed, match="more than one file"):
                await fetch(f"{host}/disks/web:v1", cache=cache)

        assert left_in(cache) == []

    async def test_a_missing_tag_is_told(self, cache):
        async with serving(Registry().application()) as host:
            with pytest.raises(FetchFailed, match=f"failed to pull image: {host}/disks/web:v1: manifest unknown"):
                await fetch(f"{host}/disks/web:v1", cache=cache)

    async def test_content_that_is_not_what_its_digest_says_is_refused(self, cache):
        registry = Registry()
        data = layer({"disk/web.img": CONTENT})
        digest = registry.push("v1", data)
        registry.blobs = {name: bytes(len(data)) for name in registry.blobs}
        async with serving(registry.application()) as host:
            with pytest.raises(FetchFailed, match="gave other content than sha256:"):
                await fetch(f"{host}/disks/web:v1", cache=cache)
            registry.manifests[digest] = (b'{"layers": []}', "application/json")
            with pytest.raises(FetchFailed, match="gave other content than sha256:"):
                await fetch(f"{host}/disks/web@{digest}", cache=cache)

        assert left_in(cache) == []

    async def test_a_layer_that_grows_beyond_bounds_is_refused(self, cache):
        registry = Registry()
        registry.push("v1", layer({"disk/web.img": bytes(8 * MIB)}, gzip.compress))
        async with serving(registry.application()) as host:
            with pytest.raises(FetchFailed, match="has 8388608 bytes; an image may have 4194304") as failed:
                await fetch(f"{host}/disks/web:v1", cache=cache, limits=Limits(bytes=4 * MIB))

        assert failed.value.no_space
        assert left_in(cache) == []

    @pytest.mark.parametrize("name", ["", "UPPER/case", "host/a b", "docker://", "x@sha256:12"])
    async def test_a_text_that_is_no_image_name_is_refused(self, cache, name):
        with pytest.raises(FetchFailed, match="Could not parse image"):
            await fetch(name, cache=cache)
