# SPDX-License-Identifier: Apache-2.0
"""Whom the Peers admit: verdicts at once, disappearances after a while, accidents never."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wirekube.relay.members import HOLD_SECONDS, Members, News, news_of

A, B, C = (bytes([number]) * 32 for number in (1, 2, 3))
STAMP = "2026-01-01T00:00:00Z"


def peer(key: bytes | None, verdict: str | None = None, names: bytes | None = None) -> Any:
    status: dict[str, Any] = {"publicKey": text(key)} if key else {}
    if verdict:
        message = text(names or key or C)
        condition = {"type": "KeyAccepted", "status": verdict, "reason": "X", "message": message}
        status["conditions"] = [condition | {"lastTransitionTime": STAMP}]
    return {"metadata": {"name": "a"}, "spec": {}, "status": status}


def text(key: bytes) -> str:
    return base64.b64encode(key).decode()


@pytest.mark.parametrize(
    ("obj", "news"),
    [
        (None, News("a", "gone")),
        (peer(A, "True"), News("a", "accepted", A)),
        (peer(A, "True", names=B), News("a", "refused", A)),
        (peer(A, "False"), News("a", "refused", A)),
        (peer(A, "Unknown"), News("a", "unjudged", A)),
        (peer(A), News("a", "unjudged", A)),
        (peer(None), News("a", "unjudged")),
        (peer(None, "Unknown"), News("a", "unjudged")),
        (peer(None, "True"), News("a", "refused")),
        ({"metadata": {"name": "a"}, "status": {"publicKey": "short"}}, News("a", "refused")),
        ({"metadata": {"name": "a"}, "status": 7}, News("a", "refused")),
    ],
)
def test_what_a_peer_says(obj: Any, news: News) -> None:
    assert news_of("a", obj) == news


def after(*news: tuple[float, News]) -> Members:
    members = Members()
    for now, each in news:
        members.take(each, now)
    return members


def test_a_verdict_counts_at_once() -> None:
    members = after((0, News("a", "accepted", A)), (0, News("b", "accepted", B)))
    assert members.admitted(0) == {A, B}
    members.take(News("a", "accepted", C), 1)
    members.take(News("b", "refused", B), 1)
    assert members.admitted(1) == {C}


def test_a_peer_that_vanished_leaves_after_a_while() -> None:
    members = after((0, News("a", "accepted", A)), (0, News("b", "accepted", B)), (5, News("a", "gone")))
    assert members.admitted(5 + HOLD_SECONDS - 0.1) == {A, B}
    assert members.admitted(5 + HOLD_SECONDS) == {B}


def test_all_at_once_is_an_accident_until_one_is_back() -> None:
    members = after((0, News("a", "accepted", A)), (0, News("b", "accepted", B)))
    for name in "ab":
        members.take(News(name, "gone"), 5)
    assert members.admitted(500) == {A, B}
    members.take(News("a", "unjudged"), 600)  # made anew, without a status yet
    assert members.admitted(600) == {A}


def test_one_that_was_made_anew_keeps_its_key_until_it_publishes_another() -> None:
    members = after((0, News("a", "accepted", A)), (0, News("b", "accepted", B)), (1, News("a", "gone")))
    for news in (News("a", "unjudged"), News("a", "unjudged", A)):
        members.take(news, 2)
        assert members.admitted(100) == {A, B}
    members.take(News("a", "unjudged", C), 101)
    assert members.admitted(101) == {B}


def test_who_was_never_accepted_is_not_admitted() -> None:
    assert (
        after((0, News("a", "unjudged", A)), (0, News("b", "gone")), (0, News("c", "refused", C))).admitted(9) == set()
    )


_NEWS = st.builds(
    News,
    st.sampled_from("abc"),
    st.sampled_from(["accepted", "refused", "unjudged", "gone"]),
    st.sampled_from([A, B, C, None]),
)


@given(st.lists(st.tuples(st.floats(0, 3), _NEWS)))
def test_only_keys_that_were_accepted_under_that_name_are_ever_admitted(steps: list[tuple[float, News]]) -> None:
    members, now, accepted = Members(), 0.0, set[bytes]()
    for pause, news in steps:
        now += pause
        members.take(news, now)
        if news.standing == "accepted" and news.key is not None:
            accepted.add(news.key)
        admitted = members.admitted(now)
        assert admitted <= accepted
        if news.standing == "accepted" and news.key is not None:
            assert news.key in admitted
