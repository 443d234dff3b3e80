"""The cloud client through a real socket: what the caller sees of a fault, and what it costs."""

import asyncio
import dataclasses
import email.utils
import math
import sqlite3
import time
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.fake_cloud import passed_on
from offload_jax.cloud.fake import FakeCloud, running
from offload_jax.cloud.ledger import BudgetConfig, Ledger, account
from offload_jax.cloud.protocol import BUDGET, FAILURES
from offload_jax.tasks.task import Prompt

pytest.importorskip("openai")
pytest.importorskip("tenacity")

from offload_jax.cloud.attempt import retry_after
from offload_jax.cloud.openai import OpenAICloud, OpenAIConfig
from offload_jax.cloud.prices import PriceConfig

KEY = "sk-very-secret"
PRICE = PriceConfig(1.0, 10.0)


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def prompts(*ids):
    return [Prompt(i, f"question {i}", {}) for i in ids]


def echo(question):
    return f"answer to {question}"


def config(url, **changes):
    defaults = {
        "kind": "openai", "model": "m", "base_url": url, "max_tokens": 100, "deadline": 10.0,
        "attempt_timeout": 5.0, "attempts": 3, "wait": 0.01, "prices": PRICE, "check": False,
    }  # fmt: skip
    return OpenAIConfig(**{**defaults, **changes})


class Session:
    """A cloud on a fake endpoint with a ledger of its own."""

    def __init__(self, tmp_path, fake, run="run", **changes):
        self.fake, self.path, self.run, self.changes = fake, tmp_path / "c.sqlite", run, changes

    def __enter__(self):
        self._serving = running(self.fake)
        url = self._serving.__enter__()
        settings = config(url, **self.changes)
        self.ledger = Ledger(self.path, self.run, settings.budget)
        self.cloud = OpenAICloud(settings, self.ledger)
        return self

    def __exit__(self, *error):
        self.cloud.close()
        self._serving.__exit__(*error)

    def outcomes(self):
        return {row["outcome"]: row["attempts"] for row in account(self.path)}


def test_answers_come_in_order_once_each_and_are_paid_once(tmp_path):
    with Session(tmp_path, FakeCloud(echo)) as s:
        answers = s.cloud.answer(prompts(3, 1, 3, 2))
        assert [a.text for a in answers] == [f"answer to question {i}" for i in (3, 1, 3, 2)]
        assert sorted(s.fake.requests) == ["question 1", "question 2", "question 3"]
        first = answers[0]
        assert (first.prompt_tokens, first.tokens, first.cached) == (2, 4, False)
        assert first.cost == pytest.approx((2 * 1 + 4 * 10) / 1e6) and first.seconds > 0
        again = s.cloud.answer(prompts(1, 2))
        assert all(a.cached for a in again) and len(s.fake.requests) == 3
        assert again[0].text == answers[1].text and again[0].cost == first.cost
        spent = s.ledger.spent()
        assert (spent.calls, spent.tokens) == (3, 18)
        assert spent.dollars == pytest.approx(3 * first.cost)


def test_another_run_on_the_same_file_pays_nothing_and_a_changed_question_is_another(tmp_path):
    with running(FakeCloud(echo)) as url:
        for run, changes, expected in (
            ("first", {}, 1), ("second", {}, 0), ("third", {"temperature": 0.5}, 1),
            ("fourth", {"model": "other"}, 1), ("fifth", {"max_tokens": 50}, 1),
        ):  # fmt: skip
            settings = config(url, **changes)
            cloud = OpenAICloud(settings, Ledger(tmp_path / "c.sqlite", run))
            assert cloud.answer(prompts(1))[0].text == "answer to question 1"
            assert cloud.ledger.spent().calls == expected
            cloud.close()


# fault, what the caller sees after three of them, is it repeated, may it have been paid for
SEEN = [
    ("refuse", "cut", True, True), ("stall", "timeout", True, True),
    ("stall_body", "timeout", True, True), ("cut", "cut", True, True),
    ("garbage", "garbage", True, True), ("wrong_json", "garbage", True, True),
    ("429", "rate limit", True, False), ("500", "server error", True, False),
    ("401", "denied", False, False), ("400", "refused", False, False),
    ("empty", "empty", True, False), ("huge", "garbage", False, True),
    ("500_huge", "server error", True, False), ("headers", "cut", True, True),
    ("bomb", "garbage", False, True), ("redirect", "redirected", False, False),
]  # fmt: skip


@pytest.mark.parametrize(("fault", "failure", "repeated", "paid"), SEEN)
def test_what_the_caller_sees_of_a_fault(tmp_path, fault, failure, repeated, paid):
    fake = FakeCloud(echo, script=[fault] * 3)
    with Session(tmp_path, fake, attempt_timeout=0.3 if "stall" in fault else 5.0,
                 deadline=20.0) as s:  # fmt: skip
        (answer,) = s.cloud.answer(prompts(1))
        assert (answer.text, answer.failure) == (None, failure) and failure in FAILURES
        tries = 3 if repeated else 1
        assert len(fake.requests) == tries and s.outcomes() == {failure: tries}
        worst = len("question 1") + 64 + 100
        spent = s.ledger.spent()
        assert spent.calls == tries
        if paid:
            assert spent.tokens == tries * worst
        elif fault != "empty":  # which says what it took
            assert spent.tokens == 0
        fake.script.clear()
        (answer,) = s.cloud.answer(prompts(1))
        assert answer.text == "answer to question 1"  # a failure is not cached


@pytest.mark.parametrize("fault", ["refuse", "stall", "cut", "garbage", "429", "500", "empty"])
def test_after_one_fault_the_next_attempt_answers(tmp_path, fault):
    with Session(tmp_path, FakeCloud(echo, script=[fault]), attempt_timeout=0.5) as s:
        (answer,) = s.cloud.answer(prompts(1))
        assert answer.text == "answer to question 1" and answer.failure is None
        assert len(s.fake.requests) == 2
        assert answer.cost == pytest.approx(s.ledger.spent().dollars)  # the lost attempt is in it


def test_nobody_there_is_unreachable_and_costs_nothing(tmp_path):
    with running(FakeCloud(echo)) as url:
        pass
    cloud = OpenAICloud(config(url), Ledger(tmp_path / "c.sqlite", "run"))
    (answer,) = cloud.answer(prompts(1))
    assert answer.failure == "unreachable"
    assert cloud.ledger.spent().tokens == 0 and cloud.ledger.spent().calls == 3
    cloud.close()


@pytest.mark.parametrize("fault", ["no_usage", "lying_usage"])
def test_where_the_usage_is_missing_or_impossible_the_worst_case_is_booked(tmp_path, fault):
    with Session(tmp_path, FakeCloud(echo, script=[fault])) as s:
        (answer,) = s.cloud.answer(prompts(1))
        assert answer.text == "answer to question 1"
        assert s.ledger.spent().tokens == len("question 1") + 64 + 100
        assert account(s.path)[0]["estimated"] == 1


def test_more_than_was_reserved_is_booked_and_ends_the_spending(tmp_path):
    budget = BudgetConfig(tokens=2_000)
    with Session(tmp_path, FakeCloud(echo, script=["over_usage"]), budget=budget) as s:
        answer, later = (s.cloud.answer(prompts(i))[0] for i in range(2))
        assert (answer.prompt_tokens, answer.tokens) == (7, 5_000)
        assert answer.cost == pytest.approx((7 * 1 + 5_000 * 10) / 1e6)
        assert s.ledger.spent().tokens == 5_007 and later.failure == BUDGET
        assert len(s.fake.requests) == 1
        (row,) = account(s.path)
        assert (row["over"], row["estimated"]) == (1, 0)


def test_an_answer_that_is_no_text_is_stored_as_one_and_the_probe_ends(tmp_path):
    fake = FakeCloud(echo, script=["500", "500", "surrogate"])
    with Session(tmp_path, fake, breaker_failures=2, breaker_seconds=0.1, attempts=1) as s:
        for i in range(2):
            s.cloud.answer(prompts(i))
        time.sleep(0.15)
        (answer,) = s.cloud.answer(prompts(5))  # the probe
        assert answer.text == "half a letter: ?"
        assert s.cloud.answer(prompts(6))[0].text and s.cloud.answer(prompts(5))[0].cached


def test_what_is_fresh_and_what_is_cached_say_the_same(tmp_path):
    with Session(tmp_path, FakeCloud(echo, script=["500"])) as s:
        fresh, again = (s.cloud.answer(prompts(1))[0] for _ in range(2))
        assert dataclasses.replace(fresh, cached=True) == again


def test_hostile_sizes_cost_little_memory(tmp_path):
    faults = ["500_huge", "headers", "bomb", "huge"]  # the last is read up to 8 MiB
    with Session(tmp_path, FakeCloud(echo, script=faults[:]), attempts=1) as s:
        s.cloud.answer(prompts(100))
        for i, fault in enumerate(faults[1:]):
            tracemalloc.start()
            assert s.cloud.answer(prompts(i))[0].failure
            most = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert most < 2**20 * (24 if fault == "huge" else 8), fault


def test_an_error_whose_body_does_not_come_counts_as_its_status(tmp_path):
    with Session(tmp_path, FakeCloud(echo, script=["500_stall"]), attempts=1,
                 attempt_timeout=9.0) as s:  # fmt: skip
        assert s.cloud.answer(prompts(1))[0].failure == "server error"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("3", 3.0), (" 1.5 ", 1.5), ("0", 0.0), ("9" * 400, math.inf), ("-3", None), ("nan", None),
     ("inf", None), ("1e3", None), ("soon", None), ("", None), (None, None), ("\ud800", None),
     ("Sat, 01 Jan 2000 00:01:00 GMT", 60.0), ("Sat Jan  1 00:01:00 2000", 60.0),
     ("Fri, 31 Dec 1999 00:00:00 GMT", 0.0), ("Sat, 99 Jan 2000 00:00:00 GMT", None),
     ("Sat, 01 Jan 99999999999999999999 00:00:00 GMT", None)],
)  # fmt: skip
def test_retry_after_is_a_number_or_a_date(value, seconds):
    assert retry_after(value, now=946_684_800.0) == seconds  # the year 2000


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=60))
def test_no_retry_after_raises(text):
    assert retry_after(text, 0.0) is None or retry_after(text, 0.0) >= 0.0


def test_many_who_were_told_the_same_do_not_come_back_at_once(tmp_path):
    at = []
    fake = FakeCloud(lambda q: at.append(time.monotonic()) or "text", script=["429_after"] * 8)
    fake.retry_after = email.utils.formatdate(time.time() + 1.5, usegmt=True)
    with Session(tmp_path, fake, wait=1.0, concurrency=8) as s:
        began = time.monotonic()
        assert all(a.text for a in s.cloud.answer(prompts(*range(8))))
        assert max(at) - min(at) > 0.1 and max(at) - began < 3.0


@pytest.mark.parametrize("said", ["nan", "-5", "garbage", "Fri, 31 Dec 1999 00:00:00 GMT"])
def test_a_retry_after_that_says_nothing_is_our_own_waiting(tmp_path, said):
    with Session(tmp_path, FakeCloud(echo, script=["429_after"], retry_after=said)) as s:
        began = time.monotonic()
        assert s.cloud.answer(prompts(1))[0].text and time.monotonic() - began < 1.0


def test_a_retry_after_beyond_the_deadline_ends_the_chain_at_once(tmp_path):
    with Session(tmp_path, FakeCloud(echo, script=["429_after"], retry_after="9" * 400)) as s:
        began = time.monotonic()
        assert s.cloud.answer(prompts(1))[0].failure == "rate limit"
        assert time.monotonic() - began < 1.0 and len(s.fake.requests) == 1


def test_retry_after_is_waited_for_within_the_deadline_only(tmp_path):
    with Session(tmp_path, FakeCloud(echo, script=["429_after"])) as s:
        began = time.monotonic()
        assert s.cloud.answer(prompts(1))[0].text
        assert 1.0 <= time.monotonic() - began < 2.5
    with Session(tmp_path, FakeCloud(echo, script=["429_after"]), run="b", deadline=0.8) as s:
        began = time.monotonic()
        assert s.cloud.answer(prompts(2))[0].failure == "rate limit"
        assert time.monotonic() - began < 0.7


def test_the_deadline_is_of_the_whole_chain(tmp_path):
    fake = FakeCloud(echo, script=["stall"] * 9)
    with Session(tmp_path, fake, deadline=1.0, attempt_timeout=0.4, attempts=9) as s:
        began = time.monotonic()
        assert s.cloud.answer(prompts(1))[0].failure == "timeout"
        assert time.monotonic() - began < 1.5


def test_an_outage_costs_one_deadline_and_a_probe_ends_it(tmp_path):
    fake = FakeCloud(echo, faults={"500": 1.0})
    with Session(tmp_path, fake, breaker_failures=4, breaker_seconds=0.4) as s:
        first = s.cloud.answer(prompts(*range(20)))
        assert {a.failure for a in first} <= {"server error", "circuit open"}
        reached = len(fake.requests)
        began = time.monotonic()
        later = [s.cloud.answer(prompts(i))[0] for i in range(100, 130)]
        assert all(a.failure == "circuit open" for a in later)
        assert len(fake.requests) == reached and time.monotonic() - began < 0.4
        assert s.ledger.spent().tokens == 0 and s.ledger.spent().calls == reached
        time.sleep(0.4)
        fake.faults = {}
        assert [a.text is None for a in s.cloud.answer(prompts(200))] == [False]
        assert all(a.text for a in s.cloud.answer(prompts(201, 202)))


def test_sixty_four_calls_of_a_second_take_two(tmp_path):
    fake = FakeCloud(echo)
    with Session(tmp_path, fake, concurrency=32, attempt_timeout=5.0, deadline=10.0) as s:
        s.cloud.answer(prompts(64))  # the client imports parts of itself with the first call
        fake.seconds = 1.0
        began = time.monotonic()
        assert all(a.text for a in s.cloud.answer(prompts(*range(64))))
        assert time.monotonic() - began < 5  # one after the other they would take 64
        assert 16 < fake.most_at_once <= 32


def test_a_long_queue_is_not_held_against_the_deadline(tmp_path):
    fake = FakeCloud(echo, seconds=0.1)
    with Session(tmp_path, fake, concurrency=2, deadline=0.4) as s:  # twenty take a second
        answers = s.cloud.answer(prompts(*range(20)))
        assert all(a.text for a in answers) and max(a.seconds for a in answers) < 0.4


def test_a_spent_budget_says_so_and_asks_nobody(tmp_path):
    for name, limit in (("calls", 2), ("tokens", 360), ("dollars", 0.0024)):
        fake = FakeCloud(echo)
        budget = dataclasses.replace(BudgetConfig(), **{name: limit})
        with Session(tmp_path, fake, run=name, budget=budget, concurrency=1,
                     model=name) as s:  # fmt: skip
            answers = [s.cloud.answer(prompts(i))[0] for i in range(60)]
            spent = s.ledger.spent()
            assert spent.within(budget) and 1 <= spent.calls < 60
            assert answers[-1].failure == BUDGET and answers[0].text
            assert spent.calls == len(fake.requests)


def test_faults_of_all_kinds_at_once_never_exceed_the_budget(tmp_path):
    kinds = ("refuse", "cut", "garbage", "429", "500", "empty", "no_usage", "lying_usage", "400")
    budget = BudgetConfig(calls=60, tokens=6_000, dollars=0.05)
    fake = FakeCloud(echo, faults=dict.fromkeys(kinds, 0.08), seed=1)
    with Session(tmp_path, fake, budget=budget, breaker_failures=1000) as s:
        answers = s.cloud.answer(prompts(*range(200)))
        assert s.ledger.spent().within(budget)
        assert {a.failure for a in answers} >= {None, BUDGET}
        assert len(fake.requests) <= 60
        database = sqlite3.connect(s.path)
        assert database.execute("SELECT COUNT(*) FROM reservations").fetchone() == (0,)
        assert database.execute("SELECT COUNT(*) FROM attempts").fetchone() == (
            s.ledger.spent().calls,
        )


def test_the_key_is_nowhere(tmp_path):
    fake = FakeCloud(echo, script=["401", "400", "401", "400"] * 10)
    with Session(tmp_path, fake) as s:
        answers = [s.cloud.answer(prompts(i))[0] for i in range(40)]
        seen = repr(answers) + repr(s.cloud.config) + repr(dataclasses.asdict(s.cloud.config))
    assert KEY not in seen
    stored = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b"of the key" in stored and b"***" in stored  # the server did quote it
    assert KEY[:6].encode() not in stored  # nor a part of it


# --- another server behind the fake one ---


def test_what_the_backend_is_asked_and_says_is_passed_on(tmp_path):
    seen = []

    async def reply(request):
        seen.append(request)
        choice = {"message": {"content": "cut sh"}, "finish_reason": "length"}
        return 200, {"choices": [choice], "usage": {"prompt_tokens": 11, "completion_tokens": 13}}

    with running(FakeCloud(echo, reply=reply)) as url:
        fake = FakeCloud(echo, reply=passed_on(url))
        with Session(tmp_path, fake, max_tokens=77, temperature=0.3, model="tiny") as s:
            answer = s.cloud.answer(prompts(1))[0]
            assert (answer.text, answer.prompt_tokens, answer.tokens) == ("cut sh", 11, 13)
        said = asyncio.run(passed_on(url)({"model": "m", "messages": [{"content": "q"}]}))
    assert said[1]["choices"][0]["finish_reason"] == "length"
    assert seen[0] == {"model": "tiny", "max_tokens": 77, "temperature": 0.3,
                       "messages": [{"role": "user", "content": "question 1"}]}  # fmt: skip


@pytest.mark.parametrize(
    ("fault", "failure"),
    [("400", "refused"), ("429", "rate limit"), ("500", "server error"), ("401", "denied"),
     ("garbage", "server error"), ("wrong_json", "server error"), ("refuse", "server error")],
)  # fmt: skip
def test_a_backend_that_fails_is_an_honest_error(tmp_path, fault, failure):
    with running(FakeCloud(echo, {fault: 1.0})) as url:
        fake = FakeCloud(echo, reply=passed_on(url))
        with Session(tmp_path, fake, attempts=1) as s:
            assert s.cloud.answer(prompts(1))[0].failure == failure
            detail = sqlite3.connect(s.path).execute("SELECT detail FROM attempts").fetchone()[0]
            assert "the backend: " in detail and detail[:3] == (fault if fault.isdigit() else "502")


def test_a_backend_that_is_not_there_is_a_bad_gateway():
    with running(FakeCloud(echo)) as url:
        pass
    said = asyncio.run(passed_on(url)({"model": "m", "messages": []}))
    assert said == (502, {"error": {"message": "the backend: it does not answer"}})


# --- before a run ---


@pytest.mark.parametrize("listing", [b"[" * 9_000, b'{"data": [{"id": 3}, 7]}', b"x" * 9 * 2**20])
def test_a_hostile_list_of_models_is_no_list(tmp_path, listing):
    with running(FakeCloud(echo, models=listing)) as url:
        made(url, tmp_path)


def test_a_list_of_models_is_shown_without_control_characters(tmp_path):
    with running(FakeCloud(echo, models=["\x1b[2J\n" + "x" * 999])) as url:
        with pytest.raises(ValueError, match=r"it has \[2J x{76}\.") as raised:
            made(url, tmp_path)
        assert str(raised.value).isprintable()


@pytest.mark.parametrize(
    ("status", "said"),
    [(401, "denies access with the key in OPENAI_API_KEY: 401 no list"),
     (307, r"redirects \(307 http://127.0.0.1:9/v1\): give config\.cloud\.base_url")],
)  # fmt: skip
def test_a_denied_key_and_a_redirect_are_told(tmp_path, status, said):
    with running(FakeCloud(echo, models=status)) as url, pytest.raises(ValueError, match=said):
        made(url, tmp_path)


def made(url, tmp_path, **changes):
    settings = config(url, check=True, **changes)
    OpenAICloud(settings, Ledger(tmp_path / "c.sqlite", "run", settings.budget)).close()


def test_a_missing_key_is_told_first(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ValueError, match="environment variable OPENAI_API_KEY"):
        made("http://127.0.0.1:9/v1", tmp_path)


def test_a_host_that_is_not_there_is_told(tmp_path):
    with running(FakeCloud(echo)) as url:
        pass
    with pytest.raises(ValueError, match=r"config\.cloud\.base_url\) does not answer"):
        made(url, tmp_path)


def test_an_unknown_model_is_told_with_those_there_are(tmp_path):
    with running(FakeCloud(echo, models=["large", "small"])) as url:
        made(url, tmp_path, model="small")
        with pytest.raises(ValueError, match=r"no model 'm' .*; it has large, small"):
            made(url, tmp_path)
    with running(FakeCloud(echo)) as url:
        made(url, tmp_path)  # it lists none: nothing can be said


def test_a_dollar_budget_needs_a_price(tmp_path):
    with running(FakeCloud(echo)) as url:
        budget = BudgetConfig(dollars=1.0)
        with pytest.raises(ValueError, match=r"price of 'm' is not known: give config\.cloud\.pri"):
            made(url, tmp_path, prices=None, budget=budget)
        made(url, tmp_path, budget=budget)
        made(url, tmp_path, prices=None, budget=BudgetConfig(calls=3))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"base_url": "api.openai.com"}, "base_url"), ({"deadline": 0.0}, "deadline"),
     ({"attempts": 0}, "attempts"), ({"wait": -1.0}, "wait"), ({"model": ""}, "model")],
)  # fmt: skip
def test_impossible_settings_are_named(change, message):
    with pytest.raises(ValueError, match=rf"config\.cloud\.{message}"):
        config(**{"url": "http://x/v1", **change}) if "base_url" not in change else OpenAIConfig(
            kind="openai", model="m", **change
        )


@pytest.mark.parametrize(
    ("cls", "change"),
    [(BudgetConfig, {"calls": -1}), (BudgetConfig, {"dollars": float("nan")}),
     (PriceConfig, {"input": -1.0, "output": 1.0}),
     (PriceConfig, {"input": 1.0, "output": float("inf")})],
)  # fmt: skip
def test_impossible_amounts_are_named(cls, change):
    with pytest.raises(ValueError, match=r"config\.cloud\.(budget|prices)"):
        cls(**change)
