"""A page that asks again and again knows the same as one that asks for everything."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.live.feed import MOST_CHANGES, Feed
from pipeline.report.curves import CurveKey, Point, Rewound

LOSS = CurveKey("pretrain", "loss")

curves = st.dictionaries(
    st.sampled_from([LOSS, CurveKey("sft", "lr")]),
    st.lists(
        st.tuples(st.integers(0, 12), st.integers(0, 3)), unique_by=lambda point: point[0]
    ).map(lambda points: sorted((step, float(value)) for step, value in points)),
)


class Page:
    """What the page's script does with the answers."""

    def __init__(self) -> None:
        self.cursor: str | None = None
        self.parts: dict[str, Any] = {}
        self.curves: dict[tuple[str, str], list[Point]] = {}

    def learn(self, news: dict[str, Any]) -> None:
        if news["whole"]:
            self.parts, self.curves = {}, {}
        self.cursor = news["cursor"]
        self.parts |= news["parts"]
        for curve in news["curves"]:
            key = (curve["stage"], curve["name"])
            kept = [point for point in self.curves.get(key, []) if point[0] < curve["from"]]
            self.curves[key] = kept + curve["points"]

    def shown(self) -> tuple[Any, Any]:
        return self.parts, {key: points for key, points in self.curves.items() if points}


@given(st.lists(st.tuples(curves, st.integers(0, 2), st.booleans()), max_size=8))
@settings(max_examples=80, deadline=None)
def test_news_add_up_to_everything(
    updates: list[tuple[dict[CurveKey, list[Point]], int, bool]],
) -> None:
    feed, page = Feed(), Page()
    for present, summary, asks in updates:
        feed.update({"summary": summary}, present)
        if asks:
            page.learn(feed.since(page.cursor))
    page.learn(feed.since(page.cursor))
    fresh = Page()
    fresh.learn(feed.since(None))
    assert page.shown() == fresh.shown()


def test_a_page_that_knows_everything_gets_nothing() -> None:
    feed = Feed()
    feed.update({"summary": 1}, {LOSS: [(1, 2.0)]})
    feed.update({"summary": 1}, {LOSS: [(1, 2.0)]})
    news = feed.since(feed.cursor)
    assert (news["parts"], news["curves"], news["rewound"], news["whole"]) == ({}, [], [], False)


def test_a_rewind_is_named_and_its_points_are_replaced() -> None:
    feed = Feed()
    feed.update({}, {LOSS: [(1, 5.0), (2, 4.0), (3, 3.0)]})
    cursor = feed.cursor
    feed.update({}, {LOSS: [(1, 5.0), (2, 4.5)]}, [Rewound("pretrain", 2, 3, epoch=4)])
    news = feed.since(cursor)
    assert news["rewound"] == [{"stage": "pretrain", "first": 2, "last": 3, "epoch": 4}]
    assert news["curves"] == [
        {"stage": "pretrain", "name": "loss", "from": 2, "points": [(2, 4.5)]}
    ]
    assert feed.since(feed.cursor)["rewound"] == []


def test_a_cursor_of_another_server_or_of_long_ago_gets_everything() -> None:
    feed, other = Feed(), Feed()
    feed.update({}, {LOSS: [(1, 5.0)]})
    old = feed.cursor
    for step in range(2, MOST_CHANGES + 4):
        feed.update({}, {LOSS: [(step, 5.0)]})
    generation = old.partition(".")[0]
    for cursor in (None, "", "nonsense", other.cursor, old, f"{generation}.999999"):
        assert feed.since(cursor)["whole"], cursor
