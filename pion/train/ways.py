"""The ways to learn, by what the settings of a stage say of its way.

A way is the feed of a rank: it makes the batch of each step, says what the step minimizes, and
measures held-out rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType

from pion.train.feed import BatchFeed
from pion.train.preference import Preference
from pion.train.preferences import PreferenceFeed
from pion.train.reinforce import Reinforcement
from pion.train.rollout_feed import RolloutFeed

# What a trainer asks of the way of its stage.
Feed = BatchFeed | RolloutFeed

WAYS: Mapping[type, type[BatchFeed] | type[RolloutFeed]] = {
    NoneType: BatchFeed,
    Preference: PreferenceFeed,
    Reinforcement: RolloutFeed,
}
