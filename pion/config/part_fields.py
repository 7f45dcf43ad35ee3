"""How the fields of a model's parts (parts.py) are declared and checked."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar, Literal, TypeAlias, get_args, get_origin, get_type_hints

from pion.errors import BadInput
from pion.later_fields import BEFORE, shown

MEANING, LEAST, MOST = "meaning", "least", "most"
# The largest numbers that a job may give. A factor is a learning rate, a limit or a weight.
SEQ_LEN = 2**20
WIDTH = 65_536
LAYERS = 1024
VOCABULARY = 2**20
FACTOR = 10**6
# The largest whole number that JSON carries exactly, and the largest number that is sure to fit
# fp32.
LARGEST_WHOLE, LARGEST_NUMBER = 2**53, 1e30
# Matrix products are fast, and grouped ones possible, if rows of bf16 are a multiple of this many
# bytes.
ROW_BYTES = 16


def setting(
    meaning: str,
    default: Any = dataclasses.MISSING,
    *,
    least: int = 1,
    most: float | None = None,
) -> Any:
    """Declare a field of a part that a job can set; `meaning` is for the job's reference.

    `least` is the smallest value of a whole number, and `most` the largest number of a job. A job
    can't set a field without a meaning: only an importer sets it, to compute what a seed computed.
    """
    return dataclasses.field(default=default, metadata={MEANING: meaning, LEAST: least, MOST: most})


def later_setting(meaning: str, default: Any, *, before: Any, most: float | None = None) -> Any:
    """Declare a field that a part gained after runs had recorded it; see later_fields.py."""
    about = {MEANING: meaning, BEFORE: before, MOST: most}
    return dataclasses.field(default=default, metadata=about)


def is_whole(value: object) -> bool:
    """Return whether a value is a whole number that any setting could have."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST_WHOLE


def is_number(value: object, above: float = -LARGEST_NUMBER) -> bool:
    """Return whether a value is a number above `above` that any setting could have."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and above < value <= LARGEST_NUMBER  # type: ignore[operator]


def require_whole(name: str, value: Any, least: int, most: int | None = None) -> None:
    """Raise BadInput for a value that is no whole number from `least` to `most`."""
    if not is_whole(value) or value < least or (most is not None and value > most):
        raise BadInput(
            f"{name} is {shown(value)}; it must be a whole number of at least {least}"
            + ("" if most is None else f" and at most {most:,}")
        )


_kinds_of: Callable[[Any], dict[str, Any]] = lru_cache(get_type_hints)


def check_fields(settings: Any, under: str = "") -> None:
    """Raise BadInput for a flag, a word or a count with a value that its type does not allow.

    `settings` is a dataclass, and `under` begins the names of its fields. A count is a whole number
    that was declared with its `least` value.
    """
    for field in dataclasses.fields(settings):
        value, kind = getattr(settings, field.name), _kinds_of(type(settings))[field.name]
        name = under + field.name
        if kind is int and LEAST in field.metadata:
            require_whole(name, value, field.metadata[LEAST])
        elif kind is bool and not isinstance(value, bool):
            raise BadInput(f"{name} is {shown(value)}; it must be true or false")
        elif get_origin(kind) is Literal and value not in get_args(kind):
            raise BadInput(f"{name} is {shown(value)}; it must be {' or '.join(get_args(kind))}")


def require_weight(name: str, value: object) -> None:
    if not is_number(value) or value < 0:  # type: ignore[operator]
        raise BadInput(f"{name} is {shown(value)}; it must be a number of at least 0")


def require_list(name: str, value: object) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise BadInput(f"{name} is {shown(value)}; it must be a list")
    return value


def layer_numbers(name: str, value: object) -> tuple[int, ...]:
    """Return layer numbers as a tuple: a record has a list."""
    layers = require_list(name, value)
    for layer in layers:
        require_whole(name, layer, least=0)
    return tuple(layers)


# A ModelConfig. Its module imports those of parts, which can't import it in turn.
Core: TypeAlias = Any


@dataclasses.dataclass(frozen=True)
class Measure:
    """A number of a record of what was measured; pion/measures.py has those of all models.

    Attributes:
        title: what a table calls it.
        form: how it is written: with so many digits, as a percentage, or as a whole number.
        error: whether its standard error is next to it.
        difference: whether it is written with its sign.
    """

    title: str
    form: int | Literal["share", "count"] = 3
    error: bool = True
    difference: bool = False


@dataclasses.dataclass(frozen=True)
class PartResult:
    """What an evaluation measures of a part alone, and how reports show it.

    Attributes:
        name: of the result.
        measures: the numbers of each entry.
        entries: what the entries are in words, by name. A summary has the last one that there is.
        about: what stands above the table of all entries.
        columns: the titles of the table's first columns.
        shown: the measures in the table's other columns.
        in_brief: what a summary says; `{}` is the first of these measures.
    """

    name: str
    measures: Mapping[str, Measure]
    entries: Mapping[str, str]
    about: str
    columns: Sequence[str]
    shown: Sequence[str]
    in_brief: str


class Part:
    """What the core asks of the settings of a part. By default, a part has nothing to say.

    Attributes:
        about: what the part is, for the job's reference.
        roles: the roles that only parameters of this part have.
        numbered: the fields that name layers by their numbers.
        hides: whether a token may not see all tokens before it.
        apart: whether the part learns from the model and changes nothing in it: texts are the same
            without it, no gradient of its loss reaches another weight, and it is exported apart.
        result: what an evaluation measures of the part alone; None: nothing.
        mixed: whether the matrices of layers are mixed of weights that layers share. Losses outside
            of blocks then read weights of blocks.
    """

    about: ClassVar[str]
    roles: ClassVar[tuple[str, ...]] = ()
    numbered: ClassVar[tuple[str, ...]] = ()
    hides: ClassVar[bool] = False
    apart: ClassVar[bool] = False
    mixed: ClassVar[bool] = False
    result: ClassVar[PartResult | None] = None

    def check(self, model: Core) -> None:
        """Raise BadInput for a model that the part does not fit."""

    def check_frozen(self, base: Any, model: Core) -> None:
        """Raise BadInput for a part that LoRA, which trains no part, would have to train.

        `base` is the same part of the model that LoRA adapts; None: that model has none.
        """

    def hides_in(self, tokens: int) -> bool:
        """Return whether a token may not see all tokens before it in a row of so many tokens."""
        return self.hides

    def entries(self, tokens: int) -> int:
        """Return how many entries blocks compute of the part behind a row of so many tokens."""
        return 0

    def tokens_seen(self) -> int | None:
        """Return the most tokens that a token sees in each layer, itself included; None: all."""

    def keys_seen(self, tokens: int) -> float | None:
        """Return how many keys a token and its share of the part's entries see on average, in a row
        of so many tokens; None: the part has no entries."""

    def one_choice(self, stage: str, top_ks: Sequence[int | None]) -> str | None:
        """Return why the loss would teach the part nothing; None: it teaches something.

        `top_ks` are those of the phases of a new run's first `stage`; None: the part's own. Weights
        of what is chosen add up to 1, so a single one weighs 1 whatever its logits say.
        """

    def too_short(self, tokens: int) -> str | None:
        """Return why rows of so many tokens can't train the part; None: they can."""

    def card(self) -> tuple[str, str] | None:
        """Return the part's row in a model card: its name, and what it is; None: it has no row."""


class FeedForwardPart(Part, ABC):
    """What the core asks of the settings of a part that computes feed-forward layers."""

    def modules(self, model: Core) -> int:
        """Return the number of modules inside a layer of the model."""
        return 0

    @abstractmethod
    def least_elements(self, model: Core) -> Iterator[tuple[str, int]]:
        """Yield the sizes of the largest tensors that the part needs, by what they are."""

    @property
    def packed(self) -> bool:
        """Whether the weights are packed, as in a published model. Then they can't be trained."""
        return False

    @property
    def unlike_dense(self) -> str | None:
        """What dense layers can't compute; None: the part can be multiplied out to dense layers."""

    @property
    def phase_sizes(self) -> dict[str, int]:
        """The sizes that a phase of training may change, and the largest of each."""
        return {}

    def matrices(self, *, multiplied_out: bool) -> str | None:
        """Say in a few words what the matrices of a layer are mixed of; None: they are not mixed.

        With `multiplied_out`, a file has the products instead.
        """

    @property
    def groups(self) -> int:
        """The number of groups of layers, of which a phase may train only some."""
        return 0
