"""Qdrant: a folder of this machine, or a server or cluster by its address; its key is QDRANT_API_KEY's value."""

import io
import os
import pickle
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from dml.use.embeddings import COLUMNS, About, Embeddings
from dml.use.missing import optional

_BATCH = 256  # points a request


@contextmanager
def build(
    embeddings: Embeddings, folder: Path, *, url: str | None = None, collection: str
) -> Iterator[tuple[dict[str, Any], Callable[..., Any]]]:
    """Fill a collection; yields what index.json keeps of it, and its search.

    Args:
        embeddings: a file of them.
        folder: to write into, without a url.
        url: of a server or cluster.
        collection: its name there, which must be free.

    Raises:
        ValueError: the server cannot be reached or refuses, or the collection is there; what was written is removed.
    """
    models = optional("qdrant_client.models", "qdrant", "--store qdrant")
    about, client = embeddings.about, None
    with _told(url or str(folder)):
        client = _client(url, folder)
        if client.collection_exists(collection):
            raise ValueError(f"{url} has a collection {collection} already: give another --collection")
        begun = False
        try:
            size = models.VectorParams(size=about.dimension, distance=models.Distance.EUCLID)
            begun = client.create_collection(collection, vectors_config=size)
            if url is None:
                _wait_for_no_disk(client, collection)
            client.upload_points(collection, _points(models, embeddings), batch_size=_BATCH, wait=True)
            if (count := client.count(collection, exact=True).count) != about.images:
                raise ValueError(f"{url or folder} has taken {count} of {about.images} embeddings")
            yield {"url": url, "collection": collection}, _finder(client, collection, about)
        except BaseException:
            if begun and url:
                client.delete_collection(collection)
            raise
        finally:
            client.close()


def open_store(path: Path, content: dict[str, Any], about: About) -> Callable[..., Any]:
    """The search of an index folder.

    Raises:
        ValueError: the server cannot be reached, or its collection is gone or of another model.
    """
    optional("qdrant_client", "qdrant", f"{path}")
    url, collection = content["url"], content["collection"]
    with _told(url or str(path)):
        if url is None:
            _refuse_code(path / "qdrant")
        client = _client(url, path)
        if not client.collection_exists(collection):
            raise ValueError(f"{url or path} has no collection {collection} (any more): build the index again")
        points, _ = client.scroll(collection, limit=1, with_payload=["model"])
        if not points or (points[0].payload or {}).get("model") != about.model:
            raise ValueError(f"the collection {collection} of {url or path} is of another model: build the index again")
    return _finder(client, collection, about, url or str(path))


def _client(url: str | None, folder: Path) -> Any:
    qdrant = optional("qdrant_client", "qdrant", "--store qdrant")
    if url is None:
        return qdrant.QdrantClient(path=str(folder / "qdrant"))
    return qdrant.QdrantClient(url=url, api_key=os.environ.get("QDRANT_API_KEY"), check_compatibility=False)


def _wait_for_no_disk(client: Any, collection: str) -> None:
    """Have a local store not wait 20 ms for the disk after each point: the whole folder is brought there later."""
    with suppress(AttributeError):  # of another version, which then waits
        client._client.collections[collection].storage.storage.execute("PRAGMA synchronous=OFF")


class _PointsOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) != ("qdrant_client.http.models.models", "PointStruct"):
            raise pickle.UnpicklingError(f"{module}.{name}")
        return super().find_class(module, name)


def _refuse_code(folder: Path) -> None:
    """Qdrant's local store unpickles its points, which could run any code of who wrote them: look at them first.

    Raises:
        ValueError: something else than points is in it.
    """
    for file in folder.rglob("*.sqlite"):
        try:
            with closing(sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True)) as database:
                for (point,) in database.execute("SELECT point FROM points"):
                    _PointsOnly(io.BytesIO(point)).load()
        except Exception as error:  # whatever a pickle that is none of ours makes of it
            raise ValueError(f"{file} holds something else than points, and could run code: {error}") from error


def _points(models: Any, embeddings: Embeddings) -> Iterator[Any]:
    row, paths = 0, embeddings.paths()
    words = {COLUMNS[name]: column for name, column in embeddings.columns().items() if name != "boxes"}

    def text(word: Any) -> str:
        """JSON is UTF-8: of a name that is not, its bytes are written as \\xNN (paths.npy has them as they are)."""
        return os.fsencode(word).decode(errors="backslashreplace")

    for block in embeddings.blocks():
        for vector in block:
            known = {name: text(str(column[row])) for name, column in words.items()}
            payload = {"path": text(paths[row]), **known, "model": embeddings.about.model}
            yield models.PointStruct(id=row, vector=vector.tolist(), payload=payload)
            row += 1


def _finder(client: Any, collection: str, about: About, where: str = "") -> Callable[..., Any]:
    def find(queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        distances = np.full((len(queries), k), np.inf, dtype=np.float32)
        rows = np.full((len(queries), k), -1)
        with _told(where):
            for i, query in enumerate(queries):
                points = client.query_points(collection, query=query.tolist(), limit=k, with_payload=False).points
                distances[i, : len(points)] = [point.score for point in points]
                rows[i, : len(points)] = [point.id for point in points]
        return distances, rows

    return find


@contextmanager
def _told(where: str) -> Iterator[None]:
    """What the client raises where a store is away or refuses, in one line."""
    from qdrant_client.http.exceptions import ApiException

    try:
        yield
    except (ApiException, ConnectionError, RuntimeError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(f"the store {where} cannot be used: {reason}") from error
