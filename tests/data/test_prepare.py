"""Downloads against a server on this machine that knows ranges, can break off, and serves what it is given."""

import functools
import gzip
import hashlib
import io
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.request import Request, urlopen

import pytest

from dml.data import cub200, download, prepare
from tests.data.test_cub200 import COUNTS, write_cub


class Files:
    """What the server has, how many bytes of it it sends before it breaks off, and the ranges it was asked for."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}
        self.break_after: int | None = None
        self.knows_ranges = True
        self.ranges: list[str | None] = []


@pytest.fixture
def server():
    files = Files()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = files.content.get(self.path)
            if body is None:
                self.send_error(404)
                return
            asked = self.headers.get("Range")
            files.ranges.append(asked)
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and files.knows_ranges else 0
            if start and start >= len(body):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body) - start))
            self.end_headers()
            self.wfile.write(body[start : None if files.break_after is None else start + files.break_after])

        def log_message(self, *_args):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    files.url = f"http://127.0.0.1:{httpd.server_port}"
    yield files
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def open_http(request: Request):
    return urlopen(request, timeout=10)


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def tgz(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def cub(server, tmp_path, monkeypatch):
    """BENCHMARKS["cub200"] from the server: a miniature copy with small counts."""
    write_cub(tmp_path / "made")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.add(tmp_path / "made" / "CUB_200_2011", "CUB_200_2011")
    content = buffer.getvalue()
    server.content["/CUB.tgz"] = content
    archive = prepare.Archive(f"{server.url}/CUB.tgz", md5(content), "CUB.tgz", "CUB_200_2011")
    benchmark = prepare.Benchmark(functools.partial(cub200.load, **COUNTS), (archive,))
    monkeypatch.setitem(prepare.BENCHMARKS, "cub200", benchmark)
    return tmp_path / "root"


def test_download_unpack_verify(cub, server, capsys):
    assert prepare.main(["cub200", f"root={cub}"], open_http) == 0
    assert "cub200 is ready" in capsys.readouterr().out
    assert sorted(path.name for path in cub.iterdir()) == ["CUB.tgz", "CUB_200_2011"]
    server.content.clear()  # the second time nothing is asked for
    assert prepare.main(["cub200", f"root={cub}"], open_http) == 0
    assert "6 training images, 6 test images; 2 training and 2 test classes" in capsys.readouterr().out


def test_broken_download_is_resumed(cub, server, capsys):
    size = len(server.content["/CUB.tgz"])
    server.break_after = 1000
    assert prepare.main(["cub200", f"root={cub}"], open_http) == 1
    assert f"broke off at 1,000 of {size:,} bytes" in capsys.readouterr().err
    assert [path.name for path in cub.iterdir()] == ["CUB.tgz.part"]
    server.break_after = None
    assert prepare.main(["cub200", f"root={cub}"], open_http) == 0
    assert server.ranges == [None, "bytes=1000-"]
    assert not (cub / "CUB.tgz.part").exists()


def test_server_without_ranges_starts_over(cub, server):
    server.break_after = 1000
    assert prepare.main(["cub200", f"root={cub}"], open_http) == 1
    server.break_after, server.knows_ranges = None, False
    assert prepare.main(["cub200", f"root={cub}"], open_http) == 0


def test_part_that_is_whole_already(cub, server):
    cub.mkdir()
    (cub / "CUB.tgz.part").write_bytes(server.content["/CUB.tgz"])
    assert prepare.main(["cub200", f"root={cub}"], open_http) == 0


def test_wrong_checksum_is_removed(cub, server, capsys):
    server.content["/CUB.tgz"] = b"another file"
    assert prepare.main(["cub200", f"root={cub}"], open_http) == 1
    assert "expected" in capsys.readouterr().err
    assert list(cub.iterdir()) == []


def test_file_put_there_by_hand(cub, server, capsys):
    cub.mkdir()
    (cub / "CUB.tgz").write_bytes(b"half")
    assert prepare.main(["cub200", f"root={cub}"], open_http) == 1
    assert "CUB.tgz has not the md5" in capsys.readouterr().err
    (cub / "CUB.tgz").write_bytes(server.content.pop("/CUB.tgz"))
    assert prepare.main(["cub200", f"root={cub}"], open_http) == 0


def test_not_on_the_server(cub, server, capsys):
    server.content.clear()
    assert prepare.main(["cub200", f"root={cub}"], open_http) == 1
    assert "404" in (error := capsys.readouterr().err) and "by hand into" in error


def test_wrong_copy_is_not_overwritten(cub, server, capsys):
    assert prepare.main(["cub200", f"root={cub}"], open_http) == 0
    (cub / "CUB_200_2011" / "images.txt").unlink()
    assert prepare.main(["cub200", f"root={cub}"], open_http) == 1
    assert "remove CUB_200_2011 in" in capsys.readouterr().err
    assert len(server.ranges) == 1


def test_only_https(tmp_path):
    with pytest.raises(ValueError, match=r"http://127.0.0.1/x is not downloaded: only https is"):
        download.fetch("http://127.0.0.1/x", "0" * 32, tmp_path / "x")
    redirects = download._HttpsRedirects()
    with pytest.raises(ValueError, match="only https"):
        redirects.redirect_request(Request("https://a.example/x"), None, 302, "", {}, "http://b.example/x")
    for benchmark in prepare.BENCHMARKS.values():
        assert all(archive.url.startswith("https://") and len(archive.md5) == 32 for archive in benchmark.archives)


@pytest.mark.parametrize("name", ["../evil.txt", "folder/../../evil.txt", "..\\evil.txt", "/evil.txt", "C:/evil.txt"])
def test_zip_that_leaves_its_folder(tmp_path, name):
    root = tmp_path / "root"
    root.mkdir()
    with zipfile.ZipFile(root / "a.zip", "w") as archive:
        archive.writestr("a/good.txt", "good")
        archive.writestr(name, "evil")
    with pytest.raises(ValueError, match="would land outside"):
        download.unpack(root / "a.zip", root / "a")
    assert [path.name for path in root.iterdir()] == ["a.zip"] and not (tmp_path / "evil.txt").exists()


def test_tar_that_leaves_its_folder(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (root / "a.tgz").write_bytes(tgz({"a/good.txt": b"good", "../../evil.txt": b"evil"}))
    with pytest.raises(ValueError, match=r"refused: .*outside"):
        download.unpack(root / "a.tgz", root / "a")
    assert [path.name for path in root.iterdir()] == ["a.tgz"] and not (tmp_path / "evil.txt").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_tar_with_a_link_or_a_device(tmp_path, kind):
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as archive:
        link = tarfile.TarInfo("a")
        link.type, link.linkname = kind, "/etc"
        archive.addfile(link)
    with pytest.raises(ValueError, match="is a link"):
        download.unpack(tmp_path / "a.tgz", tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_zip_and_gz(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a/b/good.txt", "good")
    download.unpack(tmp_path / "a.zip", tmp_path / "a")
    assert (tmp_path / "a" / "b" / "good.txt").read_text() == "good"
    (tmp_path / "c.gz").write_bytes(gzip.compress(b"good"))
    download.unpack(tmp_path / "c.gz", tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == b"good"


@pytest.mark.parametrize("name", ["a.tgz", "a.zip", "a.gz"])
def test_damaged_archive(tmp_path, name):
    whole = {"a.tgz": tgz({"a/x": b"x" * 5000}), "a.gz": gzip.compress(b"x" * 5000), "a.zip": b"PK and more"}[name]
    (tmp_path / name).write_bytes(whole[:-20])
    with pytest.raises(ValueError, match="cannot be unpacked"):
        download.unpack(tmp_path / name, tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_archive_of_something_else(tmp_path):
    (tmp_path / "a.tgz").write_bytes(tgz({"b/x": b"x"}))
    with pytest.raises(ValueError, match="holds no a"):
        download.unpack(tmp_path / "a.tgz", tmp_path / "a")


@pytest.mark.parametrize("name", ["cars196", "sop", "inshop"])
def test_by_hand(tmp_path, name, capsys):
    assert prepare.main([name, f"root={tmp_path}"]) == 1
    error = capsys.readouterr().err
    assert f"{name} is not ready" in error and "https://" in error and "data.root" in error


@pytest.mark.parametrize("name", ["mnist", "omniglot"])
def test_missing_and_unreachable(tmp_path, name, capsys):
    def unreachable(_request):
        raise OSError("no route to host")

    assert prepare.main([name, f"root={tmp_path}"], unreachable) == 1
    assert "could not be downloaded (no route to host)" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["cub200"], ["cifar", "root=x"], ["cub200", "x"], ["cub200", "root="]])
def test_usage(arguments, capsys):
    assert prepare.main(arguments) == 2
    assert "cub200|cars196|sop|inshop|mnist|omniglot root=DIR" in capsys.readouterr().err
