"""Judges behind a server: scripted answers, and ``transformers serve`` with the embedded model."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import socket
from typing import Any

import pytest

from interp.errors import JudgeError, PersonaError
from interp.judges import COHERENCE, EndpointJudge, Judge, Rubric, cached, spelled
from interp.judges.server import Server
from interp.methods.persona_vectors.generation import ServedWriter, generated

pytest.importorskip("openai", reason="the extra `judge` is not installed: no endpoint is tested")

RUBRIC = Rubric("{question}|{answer}", "wet")
Reply = dict[str, Any] | str | tuple[int, dict[str, Any]] | float
"""A chat completion's choice, a body, a status and error, or seconds of silence."""
Answering = Callable[[dict[str, Any]], Reply]


def said(text: str, *alternatives: tuple[str, float], finish: str = "stop") -> dict[str, Any]:
    """A choice with a text, and with the probabilities of its first token."""
    top = [{"token": t, "logprob": math.log(p), "bytes": None} for t, p in alternatives]
    first = {"token": text, "logprob": 0.0, "bytes": None, "top_logprobs": top}
    return {
        "index": 0,
        "finish_reason": finish,
        "message": {"role": "assistant", "content": text},
        "logprobs": {"content": [first]} if top else None,
    }


@contextmanager
def served(answer: Answering) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The address of a server that answers so, and the requests that it got."""
    requests: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append(body | {"key": self.headers["Authorization"], "path": self.path})
            reply = answer(body)
            if isinstance(reply, float):
                time.sleep(reply)
                return
            status, sent = reply if isinstance(reply, tuple) else (200, reply)
            if status == 200 and isinstance(sent, dict):
                sent = {
                    "id": "1",
                    "object": "chat.completion",
                    "created": 0,
                    "model": "m",
                    "choices": [sent],
                }
            text = sent if isinstance(sent, str) else json.dumps(sent)
            self.send_response(status)
            self.send_header(
                "Content-Type", "application/json" if text[:1] in "{[" else "text/html"
            )
            self.send_header("Retry-After-Ms", "1")
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1", requests
        finally:
            server.shutdown()
            thread.join()


def scores(reply: Reply, n: int = 1, **options: Any) -> list[float | None]:
    with served(lambda _: reply) as (url, _):
        return EndpointJudge("m", RUBRIC, url, **options).score(["q"] * n, ["a"] * n)


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (said("0", ("0", 0.5), ("100", 0.5)), 50.0),
        (said("80", ("80", 0.6), (" 90", 0.2), ("very", 0.2)), 82.5),
        (said("I", ("I", 0.76), ("50", 0.24)), None),
        (said("101", ("101", 0.5), ("-5", 0.2), ("07", 0.1), ("40", 0.3)), 40.0),
        (said("REFUSAL", ("REFUSAL", 0.9), ("No", 0.1)), None),
        (said("85", ("8", 0.9), ("7", 0.1)), 85.0),  # digits: what follows decides
        (said("85"), 85.0),
        (said(" Score: **85**/100."), 85.0),
        (said("<think>50, or 60?</think>85"), 85.0),
        (said("85%"), 85.0),
        (said("8.5"), 8.5),
        (said("100 out of 100"), 100.0),
        (said("7/10"), None),
        (said("between 20 and 30"), None),
        (said("101"), None),
        (said("-5"), None),
        (said("1,000"), None),
        (said("I cannot judge this."), None),
        (said(""), None),
        (said("The score is 8", finish="length"), None),
        (said("8 because of", finish="length"), 8.0),
    ],
)  # fmt: skip
def test_replies(reply: Reply, expected: float | None) -> None:
    (found,) = scores(reply)
    assert found == (None if expected is None else pytest.approx(expected))


def test_requests() -> None:
    """Greedy, with the rubric filled in; in the order of the responses; no more at a time than allowed."""
    now, most = 0, 0
    lock = threading.Lock()

    def answer(body: dict[str, Any]) -> Reply:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.02)
        with lock:
            now -= 1
        return said(body["messages"][0]["content"].partition("|")[2])

    texts = [str(i) for i in range(12)]
    with served(answer) as (url, requests):
        judge = EndpointJudge("m", RUBRIC, url, concurrency=3)
        assert isinstance(judge, Judge)
        found = judge.score(["How wet?"] * 13, [*texts, " "])
    assert found == [*map(float, texts), None]
    assert 1 < most <= 3
    assert {r["temperature"] for r in requests} == {0.0}
    assert requests[0]["path"] == "/v1/chat/completions"
    assert all(r["messages"][0]["content"].startswith("How wet?|") for r in requests)


def test_a_busy_server_is_asked_again() -> None:
    replies = iter([(429, {"error": {"message": "slow down"}}), (503, {}), said("7")])
    with served(lambda _: next(replies)) as (url, requests):
        assert EndpointJudge("m", RUBRIC, url).score(["q"], ["a"]) == [7.0]
    assert len(requests) == 3


def test_settings_that_a_server_refuses_are_left_out() -> None:
    def answer(body: dict[str, Any]) -> Reply:
        for name in ("logprobs", "max_tokens"):
            if name in body:
                return 400, {"error": {"message": f"Unsupported parameter: '{name}'"}}
        return said("7")

    with served(answer) as (url, requests):
        judge = EndpointJudge("m", RUBRIC, url, concurrency=1)
        assert judge.score(["q", "q"], ["a", "b"]) == [7.0, 7.0]
    assert [("logprobs" in r, "max_tokens" in r) for r in requests] == [
        (True, True), (False, True), (False, False), (False, False)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (
            (429, {"error": {"message": "quota"}}),
            r"answered 429: .*quota.*; wait, or ask for fewer",
        ),
        ((401, {"error": {"message": "bad key"}}), r"answered 401: .*OPENAI_API_KEY"),
        ((404, {"error": {"message": "no model m"}}), r"answered 404: .*the model's name"),
        ((400, {"error": {"message": "too long"}}), r"answered 400: .*too long"),
        ((500, {}), r"answered 500: .*log"),
        ("<html>Hello</html>", "sent no chat completion"),
        ("{broken", "sent no chat completion"),
        ('{"choices": []}', "sent no chat completion"),
        ("[1]", "sent no chat completion"),
        (0.3, r"gave no reply within 0\.05 s, 2 times"),
    ],
)
def test_a_server_that_fails_is_an_error_and_no_score(reply: Reply, message: str) -> None:
    with pytest.raises(JudgeError, match=message):
        scores(reply, 2, retries=1, timeout=0.05 if isinstance(reply, float) else 5.0)


def test_a_prompt_that_the_content_filter_refuses_has_no_score() -> None:
    assert scores((400, {"error": {"message": "no", "code": "content_filter"}})) == [None]


def test_nobody_there() -> None:
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(JudgeError, match="cannot be reached"):
        EndpointJudge("m", RUBRIC, url, retries=0).score(["q"], ["a"])


@pytest.mark.parametrize("wrong", ["localhost:8000", "ftp://host/v1", "http://"])
def test_what_is_no_address(wrong: str) -> None:
    with pytest.raises(JudgeError, match="is no server; give an address"):
        EndpointJudge("m", RUBRIC, wrong).score(["q"], ["a"])


def test_a_served_model_writes_a_trait() -> None:
    whole = {
        "instruction": [{"pos": f"flatter {i}", "neg": f"be frank {i}"} for i in range(5)],
        "questions": [f"what is number {i}?" for i in range(40)],
    }
    with served(lambda _: said(json.dumps(whole))) as (url, requests):
        trait = generated(ServedWriter(Server("m", url)), "sycophancy", "agrees with all")
    assert len(trait.questions) == len(trait.evaluation_questions) == 20
    assert trait.made_by == f"m at {url}"
    (request,) = requests
    assert "agrees with all" in request["messages"][0]["content"]
    assert request["max_tokens"] > 1000
    filtered = (400, {"error": {"code": "content_filter", "message": "no"}})
    with (
        served(lambda _: filtered) as (url, _),
        pytest.raises(PersonaError, match="refuses the description"),
    ):
        generated(ServedWriter(Server("m", url)), "sycophancy")


@pytest.mark.parametrize("wrong", [{"concurrency": 0}, {"retries": -1}, {"timeout": 0.0}])
def test_impossible_settings(wrong: dict[str, Any]) -> None:
    with pytest.raises(JudgeError, match=r"needs (concurrency|retries)"):
        EndpointJudge("m", RUBRIC, **wrong)


def test_the_key_is_in_no_file_and_no_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is a password in the address, which the client sends in place of the key."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with served(lambda _: said("7")) as (url, requests):
        secret = url.replace("//", "//user:pass-word@") + "?token=to-ken"
        for judge in (EndpointJudge("m", RUBRIC, url), EndpointJudge("m2", RUBRIC, secret)):
            assert cached(judge, tmp_path).score(["q"], ["a"]) == [7.0]
            written = json.dumps(judge.as_json()) + repr(judge)
            written += "".join(path.read_bytes().decode("latin1") for path in tmp_path.iterdir())
            assert not any(word in written for word in ("sk-secret", "pass-word", "to-ken"))
    assert requests[0]["key"] == "Bearer sk-secret"
    assert requests[1]["key"].startswith("Basic")
    with pytest.raises(JudgeError, match=r"server http://127\.0\.0\.1:\d+/v1 cannot"):
        EndpointJudge("m", RUBRIC, secret, retries=0).score(["q"], ["b"])


def test_openai_itself_needs_a_key() -> None:
    with pytest.raises(JudgeError, match="set the environment variable OPENAI_API_KEY"):
        EndpointJudge("gpt-4.1-mini", RUBRIC).score(["q"], ["a"])


def test_names_of_served_judges(tmp_path: Path) -> None:
    (tmp_path / "wet.txt").write_text("{answer}")
    both = spelled(f"openai:llama3:8b@http://localhost:1/v1:{tmp_path / 'wet.txt'}")(None)  # type: ignore[arg-type]
    assert isinstance(both, EndpointJudge)
    assert (both.model, both.url, both.name) == ("llama3:8b", "http://localhost:1/v1", "wet")
    alone = spelled("openai:gpt-4.1-mini:coherence")(None)  # type: ignore[arg-type]
    assert isinstance(alone, EndpointJudge)
    assert (alone.model, alone.url, alone.rubric) == ("gpt-4.1-mini", None, COHERENCE)


# --- a real server -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """``(address, model)`` of ``transformers serve`` with the embedded model on the loopback address."""
    for package in ("fastapi", "uvicorn"):
        pytest.importorskip(
            package, reason=f"{package} is missing: `transformers serve` is not tested"
        )
    from interp.models.embedded import embedded_directory

    with socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    model = str(embedded_directory())
    command = [
        sys.executable, "-c", "from transformers.cli.transformers import main; main()",
        "serve", model, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu",
    ]  # fmt: skip
    log = tmp_path_factory.mktemp("serve") / "log"
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        _wait(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}/v1", model
    finally:
        process.terminate()
        process.wait(30)


def _wait(health: str, process: subprocess.Popen[bytes], log: Path, seconds: float = 240) -> None:
    for _ in range(int(seconds)):
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(health, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    raise AssertionError(log.read_text())


@pytest.mark.slow
def test_a_real_server(smollm2: tuple[str, str], tmp_path: Path) -> None:
    """Numbers that it repeats are scores; what it kept is not asked for again."""
    url, model = smollm2
    rubric = Rubric("Repeat this number and write nothing else: {answer}", "repeat")
    judge = EndpointJudge(model, rubric, url, timeout=120.0, concurrency=2)
    kept = cached(judge, tmp_path)
    found = kept.score([], ["42", "7", "83", ""])
    assert found[:3] == [42.0, 7.0, 83.0]
    assert found[3] is None
    away = EndpointJudge(model, rubric, url, retries=0)
    assert cached(away, tmp_path).score([], ["83", "42"]) == [83.0, 42.0]
    with pytest.raises(JudgeError, match="answered 4"):
        EndpointJudge("no-such-model", rubric, url).score([], ["42"])
