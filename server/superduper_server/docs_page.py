"""The API's documentation as a page, without a request to anybody else.

Swagger UI 5.35.0 lies in `static/`, as its makers publish it on npm (swagger-ui-dist).
"""

from collections.abc import Callable
from importlib.resources import files
from typing import Any

from fastapi import Request
from fastapi.responses import RedirectResponse, Response

from superduper_server.routes import Router

FILES = {
    "/docs": ("docs.html", "text/html; charset=utf-8"),
    "/docs/docs.js": ("docs.js", "text/javascript; charset=utf-8"),
    "/docs/swagger-ui.css": ("swagger-ui.css", "text/css; charset=utf-8"),
    "/docs/swagger-ui-bundle.js": ("swagger-ui-bundle.js", "text/javascript; charset=utf-8"),
}
# Swagger UI sets styles from its script, and draws its pictures from data: addresses.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'"
)


def add_docs(router: Router) -> None:
    """`/docs`, what it is made of, and the way there from `/`."""
    for path, (name, media_type) in FILES.items():
        router.add_plain(
            "GET", path, _file(name, media_type), None, name=name, include_in_schema=False
        )
    router.add_plain("GET", "/", _to_docs, None, name="root", include_in_schema=False)


def _file(name: str, media_type: str) -> Callable[..., Any]:
    content = files("superduper_server").joinpath("static", name).read_bytes()
    headers = {"content-security-policy": POLICY, "cache-control": "max-age=3600"}

    async def answer(request: Request) -> Response:
        return Response(content, headers=headers, media_type=media_type)

    return answer


async def _to_docs(request: Request) -> Response:
    return RedirectResponse("/docs")
