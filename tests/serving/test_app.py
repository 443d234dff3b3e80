"""The endpoint on a real port, by the stock client and by raw requests."""

import json
import socket
import threading
import time
import urllib.error
import urllib.request

import pytest

from offload_jax.cloud.protocol import Answer
from offload_jax.serving.app import Limits

openai = pytest.importorskip("openai")
ASK = {"model": "pair", "messages": [{"role": "user", "content": "Make 46 from 3, 7 and 25."}]}


def client(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=20)


def posted(url, body, kind="application/json", path="/v1/chat/completions"):
    """Status, headers and JSON of a raw request."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"Content-Type": kind})
    return opened(request)


def opened(request):
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.status, response.headers, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, error.headers, json.load(error)


def got(url, path):
    with urllib.request.urlopen(url + path, timeout=20) as response:
        return response.read().decode()


def until(condition):
    """Waits for what another thread is about to do."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


# --- answers ---


def test_the_stock_client_gets_an_answer_with_its_receipt(fakes):
    engine, cloud = fakes.FakeEngine(fakes.CALL, p=0.75), fakes.FakeCloud()
    with fakes.serving(engine, cloud) as (_, url):
        raw = client(url).chat.completions.with_raw_response.create(
            **ASK, temperature=0.5, seed=3, max_tokens=9, user="me", metadata={"a": "b"}
        )
        said = raw.parse()
        models = [model.id for model in client(url).models.list()]
        assert client(url).models.retrieve("pair").id == "pair"
    assert models == ["pair"]
    assert said.choices[0].message.content == "46" and said.choices[0].finish_reason == "stop"
    assert "reasoning_content" not in (said.choices[0].message.model_extra or {})
    receipt = said.model_extra["offload"]
    assert receipt["served_by"] == "cloud" and receipt["called"] and receipt["cost"] == 0.002
    assert said.usage.prompt_tokens == 7 + 11 and said.usage.completion_tokens == 13 + 5
    assert raw.headers["X-Offload-Served-By"] == "cloud"
    assert raw.headers["X-Offload-Called"] == "true"
    assert raw.headers["X-Offload-Call-Probability"] == "0.75"
    assert raw.headers["X-Offload-Degraded"] == "false"
    (question,) = engine.questions
    assert (question.temperature, question.seed, question.max_tokens) == (0.5, 3, 9)


def test_headers_and_json_say_the_same(fakes):
    with fakes.serving(fakes.FakeEngine(), fakes.FakeCloud()) as (_, url):
        _, headers, said = posted(url, ASK)
    known = {name for name, value in said["offload"].items() if value is not None}
    assert {f"x-offload-{name.replace('_', '-')}" for name in known} == {
        name.lower() for name in headers if name.lower().startswith("x-offload-")
    }
    assert headers["X-Offload-Reason"] == said["offload"]["reason"] == "answered"


def test_a_stream_starts_when_the_decision_is_known(fakes):
    engine = fakes.FakeEngine(fakes.CALL, seconds=0.1)
    with fakes.serving(engine, fakes.FakeCloud()) as (_, url):
        chunks = list(client(url).chat.completions.create(**ASK, stream=True))
        raw = urllib.request.Request(
            f"{url}/v1/chat/completions",
            json.dumps({**ASK, "stream": True}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(raw, timeout=20) as response:
            assert response.headers["Content-Type"].startswith("text/event-stream")
            text = response.read().decode()
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[1].model_extra["offload_decision"]["call"] is True
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "46"
    assert not any("reasoning_content" in c.choices[0].delta.model_extra for c in chunks)
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert chunks[-1].model_extra["offload"]["served_by"] == "cloud"
    assert all(chunk.usage is None for chunk in chunks)
    # Comments while the attempt lasts, a hundred milliseconds: one at once, then every twenty.
    before, _, after = text.partition("data: ")
    assert before.count(": the attempt is under way\n\n") >= 3 and after.endswith("[DONE]\n\n")


def test_a_stream_tells_its_usage_where_asked_to(fakes):
    with fakes.serving(fakes.FakeEngine(), fakes.FakeCloud()) as (_, url):
        chunks = list(
            client(url).chat.completions.create(
                **ASK, stream=True, stream_options={"include_usage": True}
            )
        )
    assert chunks[-1].choices == [] and chunks[-1].usage.total_tokens == 7 + 14


def test_work_is_streamed_as_reasoning_where_asked_to(fakes):
    extra = {"stream_device_work": True}
    with fakes.serving(fakes.FakeEngine(fakes.CALL), fakes.FakeCloud()) as (_, url):
        chunks = list(client(url).chat.completions.create(**ASK, stream=True, extra_body=extra))
        whole = client(url).chat.completions.create(**ASK, extra_body=extra)
    work = [c.choices[0].delta.model_extra.get("reasoning_content", "") for c in chunks]
    decided = next(i for i, c in enumerate(chunks) if "offload_decision" in c.model_extra)
    assert "".join(work[:decided]).split() == fakes.CALL.split()
    assert "".join(work[decided:]).strip() == "So: <answer> 46 </answer>"
    assert [c.choices[0].delta.content for c in chunks if c.choices[0].delta.content] == ["46"]
    assert fakes.CALL in whole.choices[0].message.model_extra["reasoning_content"]


def test_device_only_and_on_cloud_failure_are_taken_from_the_request(fakes):
    cloud = fakes.FakeCloud(Answer(None, "budget spent"))
    with fakes.serving(fakes.FakeEngine(fakes.CALL), cloud) as (_, url):
        chat = client(url).chat.completions
        kept = chat.create(**ASK, extra_body={"device_only": True})
        assert kept.model_extra["offload"]["reason"] == "device only" and cloud.asked == []
        degraded = chat.create(**ASK)
        assert degraded.choices[0].message.content == "3 + 7"
        assert degraded.model_extra["offload"]["degraded"] is True
        assert degraded.model_extra["offload"]["reason"] == "budget spent"
        with pytest.raises(openai.InternalServerError) as caught:
            chat.create(**ASK, extra_body={"on_cloud_failure": "error"})
        assert caught.value.status_code == 503 and caught.value.code == "budget_spent"
        assert caught.value.response.headers["X-Offload-Degraded"] == "true"
        with pytest.raises(openai.APIError, match="budget spent"):
            list(chat.create(**ASK, stream=True, extra_body={"on_cloud_failure": "error"}))
        cloud.said = Answer(None, "garbage")
        with pytest.raises(openai.InternalServerError) as caught:
            chat.create(**ASK, extra_body={"on_cloud_failure": "error"})
        assert caught.value.status_code == 502


# --- what cannot be served ---

USER = {"role": "user", "content": "?"}
BAD = [
    (b"{", "not valid JSON", None),
    (b"\xff\xfe{}", "not valid UTF-8", None),
    (json.dumps(ASK).encode("utf-16"), "not valid UTF-8", None),
    (b"[" * 100_000, "not valid JSON", None),
    (b'{"temperature": NaN}', "not valid JSON", None),
    (b'{"seed": ' + b"9" * 5_000 + b"}", "not valid JSON", None),
    (b"[1]", "JSON object", None),
    (b"", "not valid JSON", None),
    ({"model": "pair"}, "messages is missing", "messages"),
    ({**ASK, "temprature": 1}, "did you mean 'temperature'", "temprature"),
    ({**ASK, "tools": []}, "tools is not a setting", "tools"),
    ({**ASK, "temperature": "hot"}, "'hot'; it must be of type float", "temperature"),
    ({**ASK, "temperature": 3}, "must be in 0..2", "temperature"),
    ({**ASK, "temperature": -1e-9}, "must be in 0..2", "temperature"),
    ({**ASK, "stream": 1}, "of type bool", "stream"),
    ({**ASK, "n": 2}, "must be 1", "n"),
    ({**ASK, "seed": -1}, "seed is -1", "seed"),
    ({**ASK, "seed": True}, "of type int", "seed"),
    ({**ASK, "max_tokens": 0}, "at least 1", "max_tokens"),
    ({**ASK, "max_tokens": 5, "max_completion_tokens": 6}, "differ", "max_tokens"),
    ({**ASK, "stream_options": {"usage": True}}, "include_usage", "stream_options.usage"),
    ({**ASK, "on_cloud_failure": "shrug"}, "one of 'device', 'error'", "on_cloud_failure"),
    ({**ASK, "messages": "hello"}, "of type list", "messages"),
    ({**ASK, "messages": []}, "single one of the role 'user'", "messages"),
    ({**ASK, "messages": ["hello"]}, "list of objects", "messages"),
    ({**ASK, "messages": [{"role": "system", "content": "!"}, USER]}, "system, user", "messages"),
    ({**ASK, "messages": [USER, USER]}, "earlier turns", "messages"),
    ({**ASK, "messages": [{"role": "user"}]}, "must be a text", "messages.0.content"),
    ({**ASK, "messages": [{"role": "user", "content": " "}]}, "empty", "messages.0.content"),
    ({**ASK, "messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "must be a text",
     "messages.0.content"),
    ({**ASK, "messages": [{"role": "user", "content": "\ud800"}]}, "half a surrogate",
     "messages.0.content"),
    ({**ASK, "messages": [{"role": "user", "content": "x" * 10_001}]}, "99 tokens",
     "messages.0.content"),
    ({**ASK, "messages": [{"role": "user", "content": "refuse me"}]}, "ask for example",
     "messages.0.content"),
]  # fmt: skip


def test_bad_input_is_told_in_the_protocols_envelope_and_the_server_lives(fakes):
    def read(question):
        if question == "refuse me":
            raise ValueError("It is not understood; ask for example: Make 46 from 3, 7 and 25.")
        return fakes.plain(question)

    engine = fakes.FakeEngine()
    with fakes.serving(engine, fakes.FakeCloud(), read=read) as (service, url):
        for body, message, param in BAD:
            status, _, said = posted(url, body)
            error = said["error"]
            assert status == 400 and message in error["message"], (body, said)
            assert error["type"] == "invalid_request_error" and error["param"] == param, said
            assert set(error) == {"message", "type", "param", "code"}
        assert engine.questions == []  # nothing of it reached the device
        parts = [{"type": "text", "text": "Make 46 "}, {"type": "text", "text": "from 3."}]
        asked = {**ASK, "messages": [{"role": "user", "content": parts}], "max_tokens": None}
        assert posted(url, asked)[0] == 200
        assert engine.questions[0].prompt.question == "Make 46 from 3."
        assert service.account.requests == {400: len(BAD), 200: 1}


@pytest.mark.parametrize(
    ("kwargs", "error", "status", "code"),
    [
        ({"model": "gpt-4"}, "NotFoundError", 404, "model_not_found"),
        ({"temperature": 5}, "BadRequestError", 400, None),
    ],
)
def test_the_stock_client_knows_the_errors(fakes, kwargs, error, status, code):
    with (
        fakes.serving(fakes.FakeEngine(), fakes.FakeCloud()) as (_, url),
        pytest.raises(getattr(openai, error)) as caught,
    ):
        client(url).chat.completions.create(**{**ASK, **kwargs})
    assert caught.value.status_code == status and caught.value.code == code


def test_large_slow_and_foreign_bodies_are_refused(fakes):
    limits = Limits(body_bytes=1_000, body_seconds=0.1)
    with fakes.serving(fakes.FakeEngine(), fakes.FakeCloud(), limits=limits) as (_, url):
        status, _, said = posted(url, {**ASK, "user": "x" * 1_000})
        assert status == 413 and said["error"]["code"] == "body_too_large"
        # Any web page may send these without being allowed to.
        for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
            assert posted(url, ASK, kind)[0] == 415
        assert posted(url, ASK, "application/json; charset=utf-8")[0] == 200
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=20) as slow:
            slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type:"
                         b" application/json\r\nContent-Length: 99\r\n\r\n{")  # fmt: skip
            assert slow.recv(100).startswith(b"HTTP/1.1 408 ")


def test_unknown_paths_and_methods_have_the_envelope_too(fakes):
    with fakes.serving(fakes.FakeEngine(), fakes.FakeCloud()) as (_, url):
        for request, status in (
            (urllib.request.Request(f"{url}/v2/x"), 404),
            (urllib.request.Request(f"{url}/v1/models/other"), 404),
            (urllib.request.Request(f"{url}/v1/chat/completions"), 405),
        ):
            found, _, said = opened(request)
            assert found == status and said["error"]["type"] == "invalid_request_error"


def test_a_full_queue_is_429_with_a_time_to_wait(fakes):
    with fakes.serving(fakes.FakeEngine(full=True), fakes.FakeCloud()) as (_, url):
        with pytest.raises(openai.RateLimitError) as caught:
            client(url).chat.completions.create(**ASK, stream=True)
        assert caught.value.response.headers["Retry-After"] == "3"
        assert caught.value.code == "queue_full" and caught.value.type == "rate_limit_error"


def test_answers_that_wait_for_the_cloud_are_bounded_as_well(fakes):
    engine, limits = fakes.FakeEngine(hold=True), Limits(under_way=1, retry_after=7)
    with fakes.serving(engine, fakes.FakeCloud(), limits=limits) as (service, url):
        first = client(url).chat.completions.create(**ASK, stream=True)
        assert engine.begun.wait(10)
        status, headers, _ = posted(url, ASK)
        assert status == 429 and headers["Retry-After"] == "7"
        first.close()
        until(lambda: not service.visits)
        engine.hold = False
        assert posted(url, ASK)[0] == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_gives_up_its_question(fakes, stream):
    engine = fakes.FakeEngine(hold=True)
    with fakes.serving(engine, fakes.FakeCloud()) as (service, url):
        host, port = url.removeprefix("http://").split(":")
        body = json.dumps({**ASK, "stream": stream}).encode()
        with socket.create_connection((host, int(port)), timeout=20) as leaving:
            leaving.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type:"
                            b" application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
                            + body)  # fmt: skip
            assert engine.begun.wait(10) and not engine.cancelled.is_set()
        assert engine.cancelled.wait(10)
        until(lambda: not service.visits)
        assert service.account.left == 1 and sum(service.account.served.values()) == 0


def test_an_answered_question_is_not_cancelled(fakes):
    engine = fakes.FakeEngine()
    with fakes.serving(engine, fakes.FakeCloud()) as (service, url):
        posted(url, ASK)
        list(client(url).chat.completions.create(**ASK, stream=True))
        until(lambda: not service.visits)
    assert not engine.cancelled.is_set() and service.account.left == 0


def test_a_fault_of_ours_is_500_without_its_details(fakes):
    engine = fakes.FakeEngine(error=RuntimeError("secret details"))
    with fakes.serving(engine, fakes.FakeCloud()) as (service, url):
        status, _, said = posted(url, ASK)
        assert status == 500 and said["error"]["type"] == "server_error"
        assert "secret" not in json.dumps(said) and "Traceback" not in json.dumps(said)
        with pytest.raises(openai.APIError, match="went wrong"):
            list(client(url).chat.completions.create(**ASK, stream=True))
        assert service.account.requests[500] == 1
        until(lambda: not service.visits)


def test_a_dead_engine_is_told(fakes):
    with fakes.serving(fakes.FakeEngine(healthy=False), fakes.FakeCloud()) as (_, url):
        assert posted(url, ASK)[0] == 503
        status, _, said = opened(urllib.request.Request(f"{url}/health"))
        assert (status, said["status"]) == (503, "down")


# --- the account ---


def test_the_account_and_the_metrics_add_up(fakes):
    engine, cloud = fakes.FakeEngine(fakes.CALL), fakes.FakeCloud()
    spent = {"attempts": 2, "budget": {"calls": 9}}
    with fakes.serving(engine, cloud, spent=lambda: spent) as (_, url):
        assert json.loads(got(url, "/health")) == {"status": "ok", "model": "pair"}
        posted(url, ASK)
        posted(url, ASK)
        cloud.said = Answer(None, "timeout", cost=0.001)
        posted(url, ASK)
        posted(url, {**ASK, "on_cloud_failure": "error"})
        posted(url, {**ASK, "n": 2})
        account, metrics = json.loads(got(url, "/account")), got(url, "/metrics")
    assert account["served"] == {"cloud": 2, "device": 1, "nobody": 1}
    assert account["called"] == 4 and account["degraded"] == {"timeout": 2}
    assert account["dollars"] == pytest.approx(2 * 0.002 + 2 * 0.001)
    assert account["tokens"]["cloud_completion"] == 10 and account["tokens"]["cloud_prompt"] == 22
    assert account["requests"] == {"200": 3, "503": 1, "400": 1} and account["ledger"] == spent
    lines = metrics.splitlines()
    assert 'offload_answers_total{served_by="cloud"} 2' in lines
    assert 'offload_degraded_total{reason="timeout"} 2' in lines
    assert 'offload_tokens_total{side="cloud",kind="completion"} 10' in lines
    assert 'offload_requests_total{status="503"} 1' in lines
    assert "offload_engine_healthy 1" in lines and "offload_requests_under_way 0" in lines
    for line in lines:  # a name, labels and a number, as Prometheus reads it
        assert line.startswith("# TYPE offload_") or float(line.rpartition(" ")[2]) >= 0


def test_many_clients_at_once_each_get_their_own_answer(fakes):
    class Echo(fakes.FakeCloud):
        def answer(self, prompts):
            return [Answer(prompt.question) for prompt in prompts]

    engine, found = fakes.FakeEngine(fakes.CALL, seconds=0.01), {}
    with fakes.serving(engine, Echo()) as (service, url):

        def ask(i):
            message = {"role": "user", "content": f"question {i}"}
            found[i] = posted(url, {**ASK, "messages": [message]})[2]

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert service.account.served == {"cloud": 40}
    for i, said in found.items():
        assert said["choices"][0]["message"]["content"] == f"question {i}"
    assert len({said["id"] for said in found.values()}) == 40
