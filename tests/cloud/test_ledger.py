"""The ledger: budgets hold under any interleaving and any number of processes; nothing is lost."""

import json
import multiprocessing
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offload_jax.cloud.ledger import BudgetConfig, Ledger, Usage, account, question_key
from offload_jax.cloud.prices import PriceConfig, Prices
from offload_jax.cloud.protocol import CloudError
from offload_jax.cloud.replay import Replay, ReplayConfig
from offload_jax.cloud.request import chat_request
from offload_jax.tasks.task import Prompt


def reserve(ledger, key, worst, seconds=60.0):
    return ledger.reserve(key, "m", worst, "price", seconds)


AMOUNTS = st.tuples(st.integers(0, 50), st.integers(0, 50), st.floats(0, 0.5))
STEPS = st.lists(st.tuples(st.integers(0, 5), AMOUNTS, st.floats(0, 1), st.booleans()), max_size=60)


@settings(max_examples=40, deadline=None)
@given(STEPS, st.integers(0, 20), st.integers(0, 400), st.floats(0, 3))
def test_no_order_of_reserving_and_settling_spends_more_than_the_budget(
    tmp_path_factory, steps, calls, tokens, dollars
):
    budget = BudgetConfig(calls, tokens, dollars)
    ledger = Ledger(tmp_path_factory.mktemp("l") / "l.sqlite", "run", budget)
    open_, number = {}, 0
    for slot, (prompt, response, cost), share, ok in steps:
        if slot in open_:  # settle what this slot reserved, at no more than that
            key, worst = open_.pop(slot)
            usage = Usage(int(share * worst.prompt_tokens), int(share * worst.tokens),
                          share * worst.cost)  # fmt: skip
            ledger.settle(key, "ok" if ok else "cut", None, usage, "text" if ok else None)
        else:
            number += 1
            worst = Usage(prompt, response, cost)
            if reserve(ledger, f"k{number}", worst) == "reserved":
                open_[slot] = f"k{number}", worst
        assert ledger.spent().within(budget)
    for key, worst in open_.values():  # the worst case of everything under way fits as well
        ledger.settle(key, "timeout", None, worst)
    assert ledger.spent().within(budget)


def _worker(path, name, count):
    ledger = Ledger(path, "run", BudgetConfig(calls=100, tokens=3_000, dollars=2.0))
    outcomes = []
    for i in range(count):
        key = f"shared{i}" if i % 2 else f"{name}/{i}"
        state = reserve(ledger, key, Usage(10, 30, 0.03))
        outcomes.append(state)
        if state == "reserved":
            ledger.settle(key, "ok", None, Usage(10, 20, 0.02), f"by {name}")
    return outcomes


def test_processes_share_one_budget_and_never_pay_twice(tmp_path):
    path = tmp_path / "l.sqlite"
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        found = pool.starmap(_worker, [(path, f"p{i}", 60) for i in range(4)])
    ledger = Ledger(path, "run", BudgetConfig())
    spent = ledger.spent()
    reserved = sum(states.count("reserved") for states in found)
    assert spent.calls == reserved <= 100 and spent.tokens <= 3_000 and spent.dollars <= 2.0
    assert any("spent" in states for states in found)
    keys = [f"shared{i}" for i in range(1, 60, 2)]
    assert sum(ledger.cached(key) is not None for key in keys) > 0
    (row,) = account(path)
    assert row["attempts"] == reserved and row["dollars"] == pytest.approx(0.02 * reserved)


def test_a_question_under_way_is_taken_and_then_answered(tmp_path):
    first, second = (Ledger(tmp_path / "l.sqlite", run) for run in ("a", "b"))
    assert reserve(first, "k", Usage(1, 2, 0.1)) == "reserved"
    assert reserve(second, "k", Usage(1, 2, 0.1)) == "taken"
    first.settle("k", "ok", None, Usage(1, 1, 0.05), "text")
    assert reserve(second, "k", Usage(1, 2, 0.1)) == "answered"
    assert second.cached("k")["text"] == "text" and second.spent().calls == 0


def test_what_a_dead_process_reserved_is_booked_at_its_worst(tmp_path):
    code = (
        "import os, signal, sys\n"
        "from offload_jax.cloud.ledger import Ledger, Usage\n"
        "ledger = Ledger(sys.argv[1], 'run')\n"
        "ledger.reserve('k', 'm', Usage(10, 20, 0.5), None, 0.2)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = tmp_path / "l.sqlite"
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == -9
    time.sleep(0.25)
    ledger = Ledger(path, "run")
    assert reserve(ledger, "k", Usage(1, 1, 0.0)) == "reserved"
    assert ledger.spent().tokens == 30 and ledger.spent().dollars == 0.5
    assert [row["outcome"] for row in account(path)] == ["lost"]


def test_who_was_taken_for_dead_does_not_settle_anothers_reservation(tmp_path):
    first, second = (Ledger(tmp_path / "l.sqlite", run) for run in "ab")
    assert reserve(first, "k", Usage(10, 20, 0.5), seconds=0.0) == "reserved"
    time.sleep(0.01)
    assert reserve(second, "k", Usage(10, 20, 0.5)) == "reserved"
    first.settle("k", "ok", None, Usage(1, 1, 0.1), "late")
    assert first.spent().dollars == 0.5 and second.cached("k")["text"] == "late"
    second.settle("k", "ok", None, Usage(2, 2, 0.2), "later")
    assert second.spent().dollars == 0.2 and second.cached("k")["text"] == "late"


def test_a_key_depends_on_everything_that_is_sent():
    config = ReplayConfig("replay", "m", "unused")
    request = chat_request(config, "q")
    keys = {question_key({**request, name: "x"}) for name in request} | {question_key(request)}
    assert len(keys) == len(request) + 1
    assert chat_request(config, "\ud800") == chat_request(config, "?")


def test_a_replay_answers_from_the_cache_and_names_what_is_missing(tmp_path):
    path = tmp_path / "l.sqlite"
    ledger = Ledger(path, "run")
    config = ReplayConfig("replay", "m", str(path))
    key = question_key(chat_request(config, "q1"))
    reserve(ledger, key, Usage(5, 9, 0.1))
    ledger.settle(key, "ok", None, Usage(5, 7, 0.05), "text")
    replay = Replay(config)
    (answer,) = replay.answer([Prompt(1, "q1", {})])
    assert (answer.text, answer.tokens, answer.cost, answer.cached) == ("text", 7, 0.05, True)
    with pytest.raises(CloudError, match="no answer of 'm' to prompt 2: 'q2'"):
        replay.answer([Prompt(1, "q1", {}), Prompt(2, "q2", {})])
    with pytest.raises(ValueError, match=r"config\.cloud\.ledger: nowhere is missing"):
        Replay(ReplayConfig("replay", "m", "nowhere"))


def test_a_replay_and_the_account_leave_the_file_and_its_folder_as_they_are(tmp_path):
    path = tmp_path / "a folder? #1" / "l.sqlite"
    ledger, other = (Ledger(path, run) for run in ("run", "other"))
    config = ReplayConfig("replay", "m", str(path))
    for i in range(2):
        key = question_key(chat_request(config, f"q{i}"))
        reserve(ledger, key, Usage(5, 9, 0.1))
        ledger.settle(key, "ok", None, Usage(5, 7, 0.05), "text")
        replay = Replay(config)
        assert replay.answer([Prompt(i, f"q{i}", {})])[0].text == "text"  # with its writer at work
    ledger.close()
    other.close()
    before = path.read_bytes()
    assert Replay(config).answer([Prompt(1, "q1", {})])[0].text == "text"
    assert account(path)[0]["attempts"] == 2
    assert [file.name for file in path.parent.iterdir()] == ["l.sqlite"]
    assert path.read_bytes() == before


def test_more_than_was_reserved_is_booked_and_nothing_is_reserved_after_it(tmp_path):
    ledger = Ledger(tmp_path / "l.sqlite", "run", BudgetConfig(tokens=100))
    assert reserve(ledger, "a", Usage(10, 20, 0.1)) == "reserved"
    ledger.settle("a", "ok", None, Usage(10, 500, 0.9), "text")
    assert ledger.spent().tokens == 510 and ledger.spent().dollars == 0.9
    assert reserve(ledger, "b", Usage(0, 0, 0.0)) == "spent"
    assert [row["over"] for row in account(ledger.path)] == [1]


def test_a_file_that_is_no_ledger_is_named(tmp_path):
    path = tmp_path / "l.sqlite"
    path.write_bytes(b"no database" * 100)
    with pytest.raises(ValueError, match=r"l\.sqlite cannot be used as a ledger"):
        Ledger(path, "run")
    with pytest.raises(ValueError, match=r"l\.sqlite cannot be read as a ledger"):
        account(path)
    with pytest.raises(ValueError, match=r"l\.sqlite cannot be used as a ledger"):
        Replay(ReplayConfig("replay", "m", str(path)))
    with pytest.raises(ValueError, match="nowhere is missing"):
        account(tmp_path / "nowhere")


def test_the_account_is_printed(tmp_path):
    path = tmp_path / "l.sqlite"
    ledger = Ledger(path, "run")
    for i, outcome in enumerate(["ok", "ok", "timeout"]):
        reserve(ledger, str(i), Usage(5, 9, 0.1))
        ledger.settle(str(i), outcome, None, Usage(5, 7, 0.05), "t" if outcome == "ok" else None)
    command = [sys.executable, "-m", "experiments.ledger", f"--path={path}"]
    said = subprocess.run([*command, "--json"], capture_output=True, text=True)
    rows = [json.loads(line) for line in said.stdout.splitlines()]
    assert [(row["outcome"], row["attempts"], row["tokens"]) for row in rows] == [
        ("ok", 2, 14), ("timeout", 1, 7),
    ]  # fmt: skip
    said = subprocess.run(command, capture_output=True, text=True)
    assert "timeout" in said.stdout and "0.15" in said.stdout and said.returncode == 0
    said = subprocess.run([*command[:-1], "--path=nowhere"], capture_output=True, text=True)
    assert said.returncode == 2 and said.stderr == "Error: nowhere is missing.\n"


# --- prices ---


def test_own_prices_override():
    prices = Prices("m", "http://x/v1", PriceConfig(1.0, 10.0, 0.5))
    assert prices.dollars(1_000, 100, 400) == pytest.approx((600 * 1 + 400 * 0.5 + 1_000) / 1e6)
    assert prices.known and "config" in prices.source
    assert Prices("m", "x", PriceConfig(1.0, 1.0)).dollars(10, 0, 10) == pytest.approx(1e-5)


def test_prices_of_the_package():
    pytest.importorskip("genai_prices")
    known = Prices("deepseek-reasoner", "https://api.deepseek.com/v1")
    assert known.known and known.source.startswith("genai-prices ")
    assert 0 < known.dollars(1_000_000, 0) < known.dollars(1_000_000, 1_000_000) < 100
    # Another host may ask another price.
    assert not Prices("deepseek-reasoner", "http://127.0.0.1:1/v1").known
    unknown = Prices("no-such-model-of-ours", "http://127.0.0.1:1/v1")
    assert not unknown.known and unknown.dollars(1, 1) is None
