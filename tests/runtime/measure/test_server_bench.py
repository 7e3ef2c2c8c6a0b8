"""What is measured of a server: events in pieces of any size, answers of every kind, figures, a load of clients."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest
from fakes.openai_server import KEY, TEXT, OpenAiServer, openai_server
from hypothesis import given, settings
from hypothesis import strategies as st

from fastblt.runtime.measure.server_bench import run
from fastblt.runtime.measure.server_bench.answer import Answer, NotUnderstoodError, ReportedError, Usage
from fastblt.runtime.measure.server_bench.client import Connector, Question
from fastblt.runtime.measure.server_bench.events import LONGEST_LINE, EventReader
from fastblt.runtime.measure.server_bench.load import Load, Target, put_load
from fastblt.runtime.measure.server_bench.request import ServerBenchError, ServerBenchRequest
from fastblt.runtime.measure.server_bench.rows import row_of
from fastblt.runtime.measure.server_bench.run import run_server_bench

SIZE = len(TEXT.encode())


@pytest.fixture(scope="module")
def server() -> Iterator[OpenAiServer]:
    with openai_server() as found:
        yield found


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing stands between client and server; and the memory, whose bandwidth a report has, is not measured."""
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(run, "device_info", dict)


def request_to(server: OpenAiServer, kind: str, **options: object) -> ServerBenchRequest:
    given = {"clients": (1,), "duration": None, "requests": 2, **options}
    return ServerBenchRequest(url=f"{server.url}/{kind}/v1", **given)  # type: ignore[arg-type]


_LINES = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), min_size=1)


@settings(max_examples=30)
@given(st.lists(_LINES.filter(lambda text: text[0] != " ")), st.data())
def test_events_are_the_same_whatever_pieces_they_arrive_in(texts: list[str], data: st.DataObject) -> None:
    stream = ""
    for text in texts:
        end = data.draw(st.sampled_from(["\n", "\r\n", "\r"]))
        stream += f": comment{end}data:{data.draw(st.sampled_from(['', ' ']))}{text}{end}{end}"
    sent = f"{stream}\n".encode()  # a lone \r would wait for what is next
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=9)))
    reader = EventReader()
    pieces = [sent[start:end] for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True)]
    assert [each for piece in pieces for each in reader.feed(piece)] == [text.encode() for text in texts]


def test_line_without_an_end_is_refused() -> None:
    reader = EventReader()
    assert reader.feed(b"data: a\ndata: b\n\n") == [b"a\nb"]
    with pytest.raises(ValueError, match="found a line of more than"):
        reader.feed(b"x" * (LONGEST_LINE + 1))


@pytest.mark.parametrize("body", [b"[]", b"5", b"{", b"\xff", b"{}", b'{"choices": [5]}', b'{"choices": [{"text": 5}]}',
                                  b'{"choices": 5}', b"[" * 100_000, b"1" * 5000])  # fmt: skip
def test_what_is_no_answer_is_refused_in_a_line(body: bytes) -> None:
    with pytest.raises(NotUnderstoodError) as caught:
        Answer(0).take(body, chat=False)
    assert len(str(caught.value)) < 300
    assert len(str(caught.value).splitlines()) == 1


def test_answers_of_all_forms_are_read() -> None:
    answer = Answer(0)
    assert answer.take(b'{"choices": [{"delta": {"role": "assistant"}}]}', chat=True) is False
    assert answer.take(b'{"choices": [{"delta": {"content": "a"}}], "usage": null}', chat=True)
    assert answer.take(b'{"choices": [{"message": {"content": "b"}, "finish_reason": "stop"}]}', chat=True)
    usage = {"prompt_tokens": 4, "completion_tokens": 2, "completion_tokens_details": None, "prompt_tokens_details": 5}
    assert not answer.take(json.dumps({"choices": [], "usage": usage}).encode(), chat=True)
    assert (answer.text, answer.finish, answer.usage) == ("ab", "stop", Usage(4, 2))
    with pytest.raises(ReportedError, match="full"):
        answer.take(b'{"error": "full"}', chat=True)


def test_figures_of_a_row() -> None:
    answers = [
        Answer(0, 2.0, [0.5, 0.6, 1.0], "é" * 5, "stop", Usage(8, 10, 4, 6, 2)),
        Answer(1, 1.0, [0.1, 0.4], "abcde", "stop", Usage(8, 5, 0, 0, 0)),
        Answer(2, 9.0, [1.0], "abc").fail("cut off"),
        Answer(3, 9.0).fail("HTTP 429"),
        Answer(4, 9.0).fail("HTTP 429"),
    ]
    row = row_of(Load("http://h/v1/completions", 2, None, answers, 5.0))
    assert (row.requests, row.errors) == (5, {"cut off": 1, "HTTP 429": 2})
    assert (row.bytes, row.tokens, row.prompt_tokens, row.cached_tokens) == (15, 15, 16, 4)
    assert row.first_byte_ms_p50 == pytest.approx(300)
    assert row.first_byte_ms_p95 == pytest.approx(480)
    assert row.between_chunks_ms_p50 == pytest.approx(300)
    assert row.bytes_per_s_per_client_p50 == pytest.approx(5)
    assert row.bytes_per_s == pytest.approx(3)
    assert row.acceptance == pytest.approx(0.75)
    nothing = row_of(Load("http://h/v1/completions", 1, None, answers[2:], 5.0))
    assert (nothing.bytes_per_s, nothing.tokens, nothing.first_byte_ms_p50, nothing.acceptance) == (0, None, None, None)


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_rows_of_every_number_of_clients(server: OpenAiServer, stream: bool, chat: bool) -> None:
    server.bodies.clear()
    server.most_open = 0
    request = request_to(server, "ok", clients=(1, 4), requests=8, stream=stream, chat=chat, max_new_bytes=7)
    report = run_server_bench(request, ["a", "b", "c"])
    assert report.models == {request.endpoint: "tiny"}
    assert [row.clients for row in report.rows] == [1, 4]
    for row in report.rows:
        assert (row.requests, row.errors, row.bytes, row.tokens) == (8, {}, 8 * SIZE, 56)
        assert row.acceptance == 0.75
        assert row.cached_tokens == 8 * 16
        assert row.first_byte_ms_p50 is not None
        assert (row.between_chunks_ms_p50 is not None) == stream
        assert row.seconds_p50 is not None
        assert row.first_byte_ms_p50 < 1e3 * row.seconds_p50 + 1e-6
    assert server.most_open == 4
    expected = {"model", "max_tokens", "temperature", "messages" if chat else "prompt"}
    assert {frozenset(body) for body in server.bodies} == {
        frozenset(expected | ({"stream", "stream_options"} if stream else set()))
    }
    assert all(body["max_tokens"] == 7 and body["temperature"] == 0 for body in server.bodies)
    texts = [body["messages"][0]["content"] if chat else body["prompt"] for body in server.bodies]
    assert sorted(texts[1:9]) == sorted(["a", "b", "c"] * 2 + ["a", "b"])


def test_methods_are_sent_when_asked_for(server: OpenAiServer) -> None:
    server.bodies.clear()
    report = run_server_bench(request_to(server, "ok", requests=1, methods=("ar", "s:8"), model="mine"), ["a"])
    assert [row.method for row in report.rows] == ["ar", "s:8"]
    assert [body["method"] for body in server.bodies] == ["ar", "s:8", "ar", "s:8"]
    assert {body["model"] for body in server.bodies} == {"mine"}


def test_servers_are_measured_in_turn(server: OpenAiServer) -> None:
    server.bodies.clear()
    other = f"{server.url}/old/v1"
    request = request_to(server, "ok", clients=(1, 2), requests=1, against=(other, other))
    report = run_server_bench(request, ["a"])
    assert report.models == {request.endpoint: "tiny", f"{other}/completions": "tiny"}
    assert [(row.endpoint, row.clients) for row in report.rows] == [
        (request.endpoint, 1),
        (request.endpoint, 2),
        (f"{other}/completions", 1),
        (f"{other}/completions", 2),
    ]
    # One that is not measured for each, and one that the other server refuses first; then the rows, in turned order.
    assert ["stream_options" in body for body in server.bodies] == [True, True, False, True, False, False, True]


def test_server_without_usage_or_extensions_is_measured(server: OpenAiServer) -> None:
    (row,) = run_server_bench(request_to(server, "old"), ["a"]).rows
    assert (row.requests, row.errors, row.bytes, row.tokens, row.acceptance) == (2, {}, 6, None, None)
    assert row.first_byte_ms_p50 is not None
    assert row.between_chunks_ms_p50 is None


def test_requests_begin_until_the_duration_is_over(server: OpenAiServer) -> None:
    done: list[int] = []
    request = request_to(server, "ok", clients=(2,), requests=None, duration=0.3)
    report = run_server_bench(request, ["a"], lambda count, total, what: done.append(count / total))
    assert 2 < report.rows[0].requests < 30
    assert 0.3 <= report.rows[0].seconds < 3
    assert done == sorted(done)
    assert all(0 <= part <= 1 for part in done)


def test_errors_are_counted_by_kind_and_do_not_end_the_measurement(server: OpenAiServer) -> None:
    server.bodies.clear()
    (row,) = run_server_bench(request_to(server, "busy", clients=(2,), requests=8), ["a"]).rows
    assert row.errors == {"HTTP 429": 3}
    assert row.bytes == 5 * SIZE


@pytest.mark.parametrize(
    ("kind", "error", "detail"),
    [
        ("reports", "reported in the stream", "out of memory"),
        ("cut", "cut off", ""),
        ("ends", "cut off", "finish_reason"),
        ("damaged", "not understood", "expected a JSON object"),
        ("strange", "not understood", "expected text/event-stream"),
        ("silent", "timeout", "0.2 s"),
        ("nowhere", "HTTP 404", "Not Found"),
        ("locked", "HTTP 401", "wrong key"),
    ],
)
def test_failed_requests_have_a_kind_and_a_reason(server: OpenAiServer, kind: str, error: str, detail: str) -> None:
    request = request_to(server, kind, model="tiny", timeout=0.2)

    async def ask() -> list[Answer]:
        target = Target(Connector(request), "tiny", with_usage=True)
        async with target.connector.connect() as client:
            answer = await target.ask(client, Question(0, "a", None))
        return [answer, *(await put_load(target, 1, None, ["a"])).answers]

    answers = asyncio.run(ask())
    assert len(answers) == 3
    for answer in answers:
        assert answer.error == error
        assert detail in answer.detail
    with pytest.raises(ServerBenchError) as caught:
        run_server_bench(request, ["a"])
    line = str(caught.value)
    assert line.startswith(f"{request.endpoint}: found ")
    assert "expected" in line
    assert len(line.splitlines()) == 1


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("rubbish", "found '<html>welcome</html>', expected a JSON object"),
        ("empty", "found no model in the list, expected one, or --model NAME"),
        ("defect", "found HTTP 500, expected a list of models; --model NAME needs none"),
        ("locked", "found HTTP 401 (wrong key), expected a key that the server takes: --api-key or OPENAI_API_KEY"),
    ],
)
def test_list_of_models_fails_in_one_line(server: OpenAiServer, kind: str, expected: str) -> None:
    with pytest.raises(ServerBenchError) as caught:
        run_server_bench(request_to(server, kind), ["a"])
    assert str(caught.value) == f"{server.url}/{kind}/v1/models: {expected}"


def test_key_opens_and_is_nowhere_in_the_report(server: OpenAiServer) -> None:
    request = request_to(server, "locked", api_key=KEY)
    report = run_server_bench(request, ["a"])
    assert report.rows[0].errors == {}
    assert KEY not in repr(report)
    assert KEY not in json.dumps(report.to_dict())


def test_server_that_is_not_there() -> None:
    for request in (
        ServerBenchRequest("http://127.0.0.1:9"),
        ServerBenchRequest("http://127.0.0.1:9", model="tiny"),
        ServerBenchRequest("http://no-such-host.invalid", model="tiny"),
        ServerBenchRequest("http://a..b", model="tiny"),
    ):
        with pytest.raises(ServerBenchError, match=r"found .*expected (a running server|the address of a server)$"):
            run_server_bench(request, ["a"])


@pytest.mark.parametrize(
    "options",
    [
        {"url": "localhost:8000"},
        {"url": "ftp://h"},
        {"against": ("ftp://h",)},
        {"url": "http://"},
        {"url": "http://[::1"},
        {"url": "http://h:99999"},
        {"url": "http://h:0"},
        {"url": "http://a b"},
        {"url": "http://user:secret@h"},
        {"url": "http://h/v1?key=secret"},
        {"clients": ()},
        {"clients": (0,)},
        {"clients": (100_000,)},
        {"requests": 0, "duration": None},
        {"requests": 1},
        {"duration": None},
        {"duration": float("nan")},
        {"timeout": 0.0},
        {"max_new_bytes": 0},
        {"api_key": "secret\n"},
        {"api_key": "secretñ"},
    ],
)
def test_bad_requests_are_refused_without_secrets(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"found .*expected") as caught:
        ServerBenchRequest(**{"url": "http://h", **options})  # type: ignore[arg-type]
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://h:8000", "http://h:8000/v1"),
        ("http://h:8000/", "http://h:8000/v1"),
        ("https://h/v1/", "https://h/v1"),
        ("https://h/api/openai", "https://h/api/openai"),
    ],
)
def test_address_is_what_clients_of_openai_take(url: str, base: str) -> None:
    assert ServerBenchRequest(url).endpoint == f"{base}/completions"
    assert ServerBenchRequest(url, chat=True).endpoint == f"{base}/chat/completions"
