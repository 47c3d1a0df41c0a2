"""`snugtune serve` in a process of its own: answers, SIGTERM, slow clients; schemathesis on its OpenAPI."""

import signal
import threading
import time

import httpx
import pytest

from serving import connection, eventually, live_process
from snugtune.errors import UserInputError
from trained import write_run


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Its process, address, what it says, and the run."""
    run = write_run(tmp_path_factory.mktemp("served"), "bert")
    with live_process(f"one={run}", "--read-timeout", "1", "--threads", "1") as (process, address, listener):
        yield process, address, listener


def ask(address, inputs="Card card", **options):
    return httpx.post(f"{address}/predict", json={"inputs": inputs}, timeout=30, **options)


def test_it_answers_on_this_machine_only(server):
    _, address, _ = server
    assert address.startswith("http://127.0.0.1:")
    assert ask(address).status_code == 200


def test_a_slow_client_holds_up_nobody_and_is_let_go(server):
    _, address, _ = server
    with connection(address) as slow:
        head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        head += b"Content-Length: 99\r\n\r\n{"
        slow.sendall(head)
        assert ask(address).status_code == 200
        assert b" 408 " in slow.recv(200)
    with connection(address) as silent:
        silent.sendall(b"POST /pre")
        assert silent.recv(200) == b""  # closed, once its time is up


def test_too_many_connections_are_told_when_to_come_back(tmp_path):
    run = write_run(tmp_path, "bert")
    with live_process(f"one={run}", "--max-connections", "2", "--threads", "1") as (_, address, _listener):
        with connection(address), connection(address):
            crowded = ask(address)
            assert crowded.status_code == 429
            assert crowded.headers["retry-after"] == "1"
            assert crowded.headers["connection"] == "close"
            assert crowded.json()["error_type"] == "Overloaded"
            assert httpx.get(f"{address}/health", timeout=30).status_code == 200
        eventually(lambda: ask(address).status_code == 200)


def test_many_at_once_each_have_their_own_answer(server):
    _, address, _ = server
    texts = [f"word{i} " * (1 + i % 5) for i in range(24)]
    alone = [ask(address, text).json() for text in texts]
    found = [None] * len(texts)

    def run(i):
        found[i] = ask(address, texts[i]).json()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, together in zip(alone, found, strict=True):
        assert {row["label"]: row["score"] for row in one} == pytest.approx(
            {row["label"]: row["score"] for row in together}, abs=1e-5
        )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_schemathesis_finds_nothing(server):
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st

    _, address, _ = server
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    assert {operation.path for operation in operations} >= {"/predict", "/v1/classify", "/health", "/info"}
    for operation in operations:

        @settings(max_examples=15, deadline=None, derandomize=True, database=None,
                  suppress_health_check=list(HealthCheck))  # fmt: skip
        @given(case=operation.as_strategy() if hasattr(operation, "as_strategy") else st.nothing())
        def check(case):
            case.call_and_validate()

        check()


def test_sigterm_answers_what_was_taken_on_and_ends_well(tmp_path):
    run = write_run(tmp_path, "bert")
    with live_process(run, "--threads", "1") as (process, address, _):
        answers = []

        def work():
            batch = [[f"word{i} " * 9] for i in range(32)]
            answers.append(ask(address, batch).status_code)

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        page = f"{address}/metrics"
        eventually(lambda: "te_request_count_total" in httpx.get(page, timeout=30).text)
        time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        assert process.wait(30) == 0
        assert set(answers) <= {200, 503}
        assert 200 in answers


def test_the_worker_is_replaced_when_it_is_killed(tmp_path):
    import psutil

    run = write_run(tmp_path, "bert")
    with live_process(run, "--threads", "1") as (process, address, listener):
        assert ask(address).status_code == 200
        (worker,) = psutil.Process(process.pid).children()
        worker.kill()
        listener.wait_for("The server died")
        eventually(lambda: answers(address), seconds=60)
    assert process.returncode == 0


def answers(address):
    try:
        return ask(address).status_code == 200
    except httpx.HTTPError:
        return False


def test_wrong_settings_are_one_sentence(tmp_path):
    from typer.testing import CliRunner

    from snugtune.cli import app

    runner = CliRunner()
    run = write_run(tmp_path, "bert")
    for arguments, words in (
        ([tmp_path / "none"], "is not a finished run"),
        ([run, "--host", "0.0.0.0"], "Give it a key"),
        ([run, run], "Two models are called"),
        ([run, "--timeout", "0"], "must be above 0"),
        ([run, "--key-file", tmp_path / "no.key"], "The key cannot be read"),
    ):
        result = runner.invoke(app, ["serve", "--no-supervise", "--port", "0", *map(str, arguments)])
        assert isinstance(result.exception, UserInputError), (arguments, result.output)
        assert words in str(result.exception)


def test_how_helpers_wait_is_bounded_unless_the_environment_says_it():
    from snugtune.serve.keeper import SPINS, worker_environment

    assert worker_environment({"A": "b"}) == {"A": "b", "GOMP_SPINCOUNT": SPINS}
    for told in ({"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "7"}):
        assert worker_environment(told) == told
