"""Serves the page at ``/``: the files of one folder of this package, read once, and nothing else."""

from __future__ import annotations

import hashlib
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import Response

FOLDER = Path(__file__).parent / "page"
INDEX = "index.html"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
#: Nothing from elsewhere, nothing inline, in no frame.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    # Another version of the package has other files of the same names: browsers ask whether theirs is still the one.
    "Cache-Control": "no-cache",
}


def page_router() -> APIRouter:
    """Return the routes of the page and its files; none where the package has no page."""
    router = APIRouter(include_in_schema=False)
    for path in sorted(FOLDER.iterdir()) if FOLDER.is_dir() else []:
        if path.suffix in _TYPES:
            _add(router, path)
    return router


def _add(router: APIRouter, path: Path) -> None:
    """Add the route of a file."""
    data = path.read_bytes()
    tag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
    headers = {**_HEADERS, "ETag": tag}

    async def file(request: Request) -> Response:
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(data, headers=headers, media_type=_TYPES[path.suffix])

    where = ["/", f"/{INDEX}"] if path.name == INDEX else [f"/{path.name}"]
    for each in where:
        router.add_api_route(each, file, methods=["GET", "HEAD"])
