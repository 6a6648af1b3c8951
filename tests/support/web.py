"""The web application in tests: in this process, called as if it were not asynchronous."""

import asyncio
import functools
import re
from types import TracebackType
from typing import Any, Self

import httpx
import jsonschema

import pgfifo
from pgfifo.web import Settings, create_app

TOKEN = "a-token-of-ann-0001"


@functools.cache
def openapi() -> dict[str, Any]:
    """Return the OpenAPI document, which is the same for all applications, and takes a while to make."""
    document: dict[str, Any] = create_app("", settings=Settings(unauthenticated=True)).openapi()
    return document


class Api:
    """An application that may change things and knows Ann by her token, and a client that has it."""

    def __init__(self, dsn: str, *, base: str = "http://localhost", **settings: Any) -> None:
        given: dict[str, Any] = {"allow_changes": True, "tokens": {"ann": TOKEN}} | settings
        self.dsn = dsn
        self._runner = asyncio.Runner()
        self.checked: set[tuple[str, str, int]] = set()
        """Which answers were compared with the OpenAPI document."""
        self.fifo = pgfifo.AsyncClient(dsn, prepare_threshold=None)
        self.app: Any = create_app(self.fifo, settings=Settings(**given))
        self.headers = {"Authorization": f"Bearer {TOKEN}"}
        self._base = base
        self._client = self.client_of(self.app)

    def client_of(self, app: Any, address: str = "127.0.0.1") -> httpx.AsyncClient:
        """Return a client of an application, which sees it come from an address."""
        transport = httpx.ASGITransport(app, client=(address, 40000))
        return httpx.AsyncClient(transport=transport, base_url=self._base)

    def use(self, app: Any, address: str = "127.0.0.1") -> None:
        """Go on with another application, such as one that this one is mounted in."""
        self._client = self.client_of(app, address)

    def __call__(self, method: str, url: str, **more: Any) -> httpx.Response:
        """Send a request with the token; ``headers`` come on top."""
        headers = self.headers | more.pop("headers", {})
        found = self._runner.run(self._client.request(method, url, headers=headers, **more))
        self._check(found)
        return found

    def _check(self, found: httpx.Response) -> None:
        """Compare an answer with what the OpenAPI document says of it."""
        document = openapi()
        path = found.request.url.path
        for template, methods in document["paths"].items():
            pattern = re.sub(
                r"\\\{(action|pack|name)\\\}", "(.+)", re.sub(r"\\\{id\\\}", "([^/]+)", re.escape(template))
            )
            operation = methods.get(found.request.method.lower())
            if operation is None or not re.fullmatch(pattern, path):
                continue
            kind = found.headers.get("content-type", "").partition(";")[0]
            told = operation["responses"].get(str(found.status_code), operation["responses"]["default"])
            assert found.status_code >= 400 or str(found.status_code) in operation["responses"]
            schema = told.get("content", {}).get(kind, {}).get("schema")
            if schema is not None:
                jsonschema.validate(found.json(), schema | {"components": document["components"]})
                self.checked.add((found.request.method, template, found.status_code))
            return

    def stranger(self, method: str, url: str, **more: Any) -> httpx.Response:
        """Send a request without the token."""
        return self._runner.run(self._client.request(method, url, **more))

    def get(self, path: str, **query: Any) -> Any:
        """Look at something of /api/v1 that has to be there."""
        found = self("GET", f"/api/v1{path}", params={k: v for k, v in query.items() if v is not None})
        assert found.status_code == 200, found.text
        return found.json()

    def post(self, path: str, body: object = None, *, status: int = 200, **more: Any) -> Any:
        """Change something of /api/v1, and get what is under ``data``."""
        found = self("POST", f"/api/v1{path}", json=body, **more)
        assert found.status_code == status, found.text
        return found.json()["data"]

    def problem(self, method: str, path: str, status: int, **more: Any) -> dict[str, Any]:
        """Send what is refused, and get the problem document."""
        found = self(method, path, **more)
        return problem(found, status)

    def close(self) -> None:
        """End it."""
        self._runner.run(self._client.aclose())
        self._runner.run(self.fifo.close())
        self._runner.run(self.app.state.probe.close())
        self._runner.run(self.app.state.scraped.close())
        self._runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def problem(response: httpx.Response, status: int) -> dict[str, Any]:
    """Return the problem document of a response; it has no traceback and no secret of the server's."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = response.json()
    assert document["status"] == status
    assert document["type"].startswith("urn:pgfifo:problem:")
    assert document["detail"]
    assert "Traceback" not in response.text
    assert "password" not in response.text
    return document
