"""Makes the application: an ASGI app with OpenAI's interface, for uvicorn, Ray Serve or any other host."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import PlainTextResponse, Response

from fastblt import __version__
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.serving import responses as answers
from fastblt.runtime.serving.answers import Reply
from fastblt.runtime.serving.api_error import ApiError
from fastblt.runtime.serving.chat import ChatWriter, new_bytes_of, prompt_of
from fastblt.runtime.serving.chat_requests import ChatRequest
from fastblt.runtime.serving.chat_template import load_template
from fastblt.runtime.serving.completions import CompletionWriter, prompts_of
from fastblt.runtime.serving.gates import FACTS, BodyLimit, KeyCheck, RequestLog, log_defect
from fastblt.runtime.serving.model_host import Loader, ModelHost, not_ready
from fastblt.runtime.serving.page_files import page_router
from fastblt.runtime.serving.plan import check_model, plan_texts, unknown_model
from fastblt.runtime.serving.requests import CompletionRequest
from fastblt.runtime.serving.schema import ERRORS, describe, stream_of
from fastblt.runtime.serving.settings import ServingSettings
from fastblt.runtime.serving.tool_calls import ToolCallWriter
from fastblt.runtime.serving.tools import functions_to_call
from fastblt.runtime.serving.validation import first_error, unreadable

#: Type of Prometheus's text.
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def create_app(source: BltRuntime | Loader, settings: ServingSettings | None = None) -> FastAPI:
    """Make an application that serves a model.

    Its lifespan loads the model in the background, proves that it writes a known text, and ends every text when it
    closes. ``app.state.host`` is the `ModelHost`.

    Args:
        source: a loaded model, which nothing else may use meanwhile; or a function that loads one.
        settings: see there; None: the defaults.

    Raises:
        ChatTemplateError: the template cannot be used.
        OSError: a file cannot be read.
    """
    settings = settings or ServingSettings()
    host = ModelHost(source, settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # The first use of a thread imports AnyIO's event loop, which takes up to half a second in which nothing else is
        # answered: not during the first stream.
        await run_in_threadpool(int)
        host.start()
        try:
            yield
        finally:
            await host.stop()

    app = FastAPI(
        title="fastblt", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    app.state.host = host
    _add_model(app, host)
    _add_texts(app, host)
    _add_probes(app, host)
    if settings.page:
        app.include_router(page_router())
    _add_gates(app, host)
    describe(app)
    return app


def _add_texts(app: FastAPI, host: ModelHost) -> None:
    """Add the two endpoints that generate."""
    template = load_template(host.settings.chat_template)

    @app.post("/v1/completions", responses={200: stream_of(answers.Completion, answers.Completion), **ERRORS})
    async def completions(request: Request, body: CompletionRequest) -> Response:
        """Continue one or more prompts."""
        check_model(host, body)
        deadline, prompts = host.deadline(), prompts_of(body)
        wanted = await plan_texts(
            host, body, prompts, deadline, new_bytes=body.max_tokens, logprobs=body.logprobs is not None
        )
        writer = CompletionWriter(host.model_name, body)
        return await Reply(host, request, writer, wanted, deadline, echo=bool(body.echo)).respond()

    @app.post("/v1/chat/completions", responses={200: stream_of(answers.ChatCompletion, answers.ChatChunk), **ERRORS})
    async def chat(request: Request, body: ChatRequest) -> Response:
        """Write the next message of a chat."""
        check_model(host, body)
        deadline, functions = host.deadline(), functions_to_call(body)
        prompt = prompt_of(body, template, host.runtime.backend.max_bytes)
        wanted = await plan_texts(
            host,
            body,
            [prompt],
            deadline,
            new_bytes=new_bytes_of(body),
            logprobs=bool(body.logprobs),
            functions=functions,
        )
        writer = (ToolCallWriter if functions else ChatWriter)(host.model_name, body)
        return await Reply(host, request, writer, wanted, deadline).respond()


def _add_model(app: FastAPI, host: ModelHost) -> None:
    """Add what describes the model."""

    def entry() -> dict[str, Any]:
        runtime = host.runtime
        return {
            "id": host.model_name,
            "object": "model",
            "created": host.started,
            "owned_by": "fastblt",
            "fastblt": {
                "methods": host.method_names(),
                "default_method": host.default_method(),
                "max_bytes": runtime.backend.max_bytes,
                "sequences": host.places,
            },
        }

    @app.get("/v1/models", response_model=answers.ModelList, responses=ERRORS)
    async def models() -> Any:
        """List the served model."""
        return JSONResponse({"object": "list", "data": [entry()]})

    @app.get("/v1/models/{model:path}", response_model=answers.Model, responses=ERRORS)
    async def model(model: str) -> Any:
        """Describe the served model."""
        found = entry()
        if model != found["id"]:
            raise unknown_model(model, found["id"])
        return JSONResponse(found)


def _add_probes(app: FastAPI, host: ModelHost) -> None:
    """Add what watches the server."""

    @app.get("/health", response_model=answers.Health, responses=ERRORS)
    async def health() -> Any:
        """Report that the process answers."""
        if host.failure is not None:
            raise not_ready(host)
        return JSONResponse({"status": "ok"})

    @app.get("/ready", response_model=answers.Health, responses=ERRORS)
    async def ready() -> Any:
        """Report that the model has written a known text, and that texts can be had now."""
        if not host.ready:
            raise not_ready(host)
        return JSONResponse({"status": "ready"})

    @app.get("/metrics", response_class=PlainTextResponse)
    def metrics() -> Response:
        """Return counters, for Prometheus."""
        return Response(host.metrics.text(), media_type=_METRICS_TYPE)


def _add_gates(app: FastAPI, host: ModelHost) -> None:
    """Add what every request passes, from the inside to the outside, and what turns errors into OpenAI's."""
    settings = host.settings
    app.add_middleware(BodyLimit, most=settings.max_body, seconds=settings.stall)
    if settings.keys:
        app.add_middleware(KeyCheck, keys=settings.keys)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-Request-Id"],
            expose_headers=["X-Request-Id", "Retry-After"],
        )
    paths = frozenset(path for route in app.routes if "{" not in (path := getattr(route, "path", "{")))
    app.add_middleware(RequestLog, metrics=host.metrics, paths=paths)

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> Response:
        request.scope[FACTS]["code"] = error.code
        if error.__cause__ is not None:
            log_defect("a text failed", request.scope[FACTS], error.__cause__)
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> Response:
        return await api_error(request, first_error(error))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        if error.status_code == 400 and error.__cause__ is not None:  # FastAPI could not read the body
            return await api_error(request, unreadable(error.__cause__))
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
        headers = dict(error.headers or {})
        message = f"{request.method} {request.url.path[:200]}: {error.detail}"
        return await api_error(request, ApiError(error.status_code, message, code=code, headers=headers))
