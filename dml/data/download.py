"""Resumable downloads with a checksum, and archives that unpack in one step or not at all."""

import gzip
import hashlib
import os
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

BLOCK = 1 << 20  # bytes
TIMEOUT = 60  # seconds without an answer
OpenUrl = Callable[[Request], Any]


class _HttpsRedirects(HTTPRedirectHandler):
    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Request | None:
        _require_https(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _require_https(url: str) -> None:
    if not url.startswith("https://"):
        raise ValueError(f"{url} is not downloaded: only https is")


def open_https(request: Request) -> Any:
    """Open a URL over https, redirections too.

    Raises:
        ValueError: one of them is not https.
    """
    _require_https(request.full_url)
    return build_opener(_HttpsRedirects).open(request, timeout=TIMEOUT)


def fetch(url: str, md5: str, path: Path, open_url: OpenUrl = open_https) -> None:
    """Download a file into PATH.part, going on with what is there, and rename it once its checksum is right.

    Args:
        url: where from.
        md5: of the whole file.
        path: where to; a file that is there already is only checked.
        open_url: opens the request; tests give one that allows http.

    Raises:
        ValueError: the download broke off (what came is kept and continued next time), or the checksum is wrong
            (what came is removed).
    """
    if path.is_file():
        if _md5(path) != md5:
            raise ValueError(f"{path} has not the md5 {md5} of {url}: remove it and run this again")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    have = part.stat().st_size if part.is_file() else 0
    request = Request(url, headers={"User-Agent": "dml"} | ({"Range": f"bytes={have}-"} if have else {}))
    go_on = f"Run this again to go on where it stopped, or fetch it by hand into {path.parent}"
    total = have
    try:
        with open_url(request) as response:
            if response.status != 206:  # the server sends the whole file, whatever it was asked for
                have = 0
            total = have + int(response.headers.get("Content-Length") or 0)
            _save(response, part, have, total or None)
    except HTTPError as error:
        if error.code != 416:  # nothing is left to send: the checksum tells whether the file is whole
            raise ValueError(f"{url} could not be downloaded ({error}). {go_on}") from error
    except (OSError, HTTPException) as error:
        raise ValueError(f"{url} could not be downloaded ({error}). {go_on}") from error
    size = part.stat().st_size
    if size < total:
        raise ValueError(f"the download of {url} broke off at {size:,} of {total:,} bytes. {go_on}")
    if (found := _md5(part)) != md5:
        part.unlink()
        raise ValueError(f"what came from {url} has the md5 {found}, expected {md5}: it was removed; run this again")
    os.replace(part, path)


def _save(response: Any, part: Path, have: int, total: int | None) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with part.open("ab" if have else "wb") as file, Progress(*columns, TimeRemainingColumn()) as progress:
        task = progress.add_task(part.stem, total=total, completed=have)
        while block := response.read(BLOCK):
            file.write(block)
            progress.advance(task, len(block))


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def unpack(archive: Path, target: Path) -> None:
    """Unpack a .tgz, .zip or .gz beside itself: `target`, a folder or file of it, is there whole or not at all.

    Raises:
        ValueError: the archive is damaged, has members that would land elsewhere, or does not hold the target.
    """
    with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=target.parent) as folder:
        unpacked = Path(folder) / target.name
        try:
            if archive.suffix == ".zip":
                with zipfile.ZipFile(archive) as members:
                    for name in members.namelist():
                        _check_member(archive, name)
                    members.extractall(folder)
            elif archive.suffix == ".gz":
                with gzip.open(archive) as source, unpacked.open("wb") as file:
                    shutil.copyfileobj(source, file)
            else:
                with tarfile.open(archive) as members:
                    for member in members:
                        _check_member(archive, member.name, plain=member.isfile() or member.isdir())
                    # Python's own filter came with 3.10.12 and 3.11.4; the check above does not depend on it.
                    safe: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
                    members.extractall(folder, **safe)
        except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
            raise ValueError(f"{archive} cannot be unpacked ({error})") from error
        if not unpacked.exists():
            raise ValueError(f"{archive} holds no {target.name}")
        os.replace(unpacked, target)


def _check_member(archive: Path, name: str, plain: bool = True) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if not plain or path.is_absolute() or ".." in path.parts or ":" in (path.parts or ("",))[0]:
        raise ValueError(f"{archive} is refused: its member {name} is a link or would land outside")
