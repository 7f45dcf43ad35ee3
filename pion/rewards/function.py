"""A person's own function that judges answers. It runs in a bounded process.

The bounds are a limit, not a jail: the function is the person's own code, and has the person's
rights. The bounds keep its mistakes away from training: exits, endless loops, forks, memory,
prints, deleted files where it runs, signals to its parent and its group. The bounds do not keep
away what it does to other processes by their ids, to files by their whole paths, or by endless
forks.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from pion.bounded_child import BoundedChild, Message, NoAnswer
from pion.errors import BadInput
from pion.rewards.answered import Answered
from pion.rewards.function_worker import MOST
from pion.untrusted import read_file

# How long an answer may be computed on, in seconds of a core.
SECONDS = 10.0
# How long an answer may take, in multiples of that. Whether a function is stopped should depend as
# little as possible on what else the machine does: a stopped function changes what is learned.
PATIENCE = 3.0
# The bytes that judging may add to what the file has taken when it was imported.
MEMORY = 1 << 30


@dataclass(frozen=True)
class Function:
    """A function in a file that was read once: what is hashed is what runs.

    Attributes:
        path: where the file was, for messages. Nothing that lies next to it can be imported.
        name: of the function.
        source: the bytes of the file.
    """

    path: str
    name: str
    source: bytes = field(repr=False)

    @property
    def sha256(self) -> str:
        """The hash of the file, in hex digits."""
        return hashlib.sha256(self.source).hexdigest()


def read_function(path: str | Path, name: str) -> Function:
    """Read a file. Raises BadInput if there is none, or it is too large."""
    try:
        return Function(str(path), name, read_file(path))
    except OSError as error:
        raise BadInput(
            f"{path}: the file of the reward {name} can't be read: {error.strerror}. "
            "Correct the path, or put the file there"
        ) from None


class FunctionReward:
    """Judges by a function. It is for one thread, and has a process until `close`.

    Attributes:
        name: of the function.
        errors: how many answers got 0 because of an error, by its message.
        unjudged: how many answers got 0 because they can't be judged, by the reason.
    """

    def __init__(
        self,
        function: Function,
        hash_seed: int = 0,
        *,
        seconds: float = SECONDS,
        memory: int = MEMORY,
        forgiving: bool = False,
    ) -> None:
        """Import the file in a process. `seconds` are those of a core, for each answer. With
        `forgiving`, an answer that takes longer is no error of the function.

        Raises BadInput if the file can't be imported, or has no such function that can be called.
        """
        self.name, self._seconds, self._forgiving = function.name, seconds, forgiving
        self.errors, self.unjudged = Counter[str](), Counter[str]()
        self._unusable = f"{function.path}: the reward {function.name} can't be used:"
        path = Path(function.path).resolve()
        first = {
            "file": path.name,
            "folder": str(path.parent),
            "name": function.name,
            "source": function.source.decode("latin-1"),  # any bytes
            "memory": memory,
        }
        self._child = BoundedChild("pion.rewards.function_worker", first, hash_seed)
        try:
            hello = self._child.start()
        except NoAnswer as error:
            raise BadInput(f"{self._unusable} {error} while the file was imported") from None
        self._takes_lists = self._usable(hello).get("lists") is True

    def close(self) -> None:
        """End the process."""
        self._child.close()

    def judge(self, answers: Sequence[Answered], most_errors: float) -> list[float]:
        """Return the reward of each answer. A function of TRL gets all answers in one call.

        An error of the function makes the reward 0, and is counted. After more than `most_errors`
        the other answers get 0 at once: an endless loop takes all its time for each. Raises
        BadInput if the process had to start again, and the file can't be imported any more.
        """
        parts = [answers] if self._takes_lists and answers else [[one] for one in answers]
        return [reward for part in parts for reward in self._called(part, most_errors)]

    def _called(self, answers: Sequence[Answered], most_errors: float) -> list[float]:
        if self.errors.total() > most_errors:
            return [0.0] * len(answers)
        seconds = self._seconds * len(answers)
        request = {"answers": [vars(answer) for answer in answers], "seconds": seconds}
        try:
            judged = self._usable(self._child.ask(request, PATIENCE * seconds))
            rewards, errors = _checked(judged, len(answers))
        except NoAnswer as error:
            self._child.close()  # what else it has written is no answer to the next request
            why = f"{error} (it may compute for {seconds:g} s, and should not exit)"
            (self.unjudged if self._forgiving else self.errors).update([why] * len(answers))
            return [0.0] * len(answers)
        self.errors.update(errors)
        return rewards

    def _usable(self, message: Message) -> Message:
        if "broken" in message:
            raise BadInput(f"{self._unusable} {message['broken']}")
        return message


def _checked(judged: Message, count: int) -> tuple[list[float], list[str]]:
    """Return the rewards of so many answers, and the errors. The function may have written to the
    pipe, too: raises NoAnswer if this is not what Pion's side of the process writes."""
    rewards, errors = judged.get("rewards"), judged.get("errors")
    if (
        isinstance(rewards, list)
        and isinstance(errors, list)
        and len(rewards) == count >= len(errors)
        and all(type(one) is float and abs(one) <= MOST for one in rewards)  # NaN is not
        and all(isinstance(one, str) for one in errors)
    ):
        return rewards, errors
    raise NoAnswer("its process wrote something else than an answer")


def judged_differently(
    make: Callable[[int], FunctionReward], answers: Sequence[Answered]
) -> Answered | None:
    """Return the first answer that gets another reward in another process; None: there is none.

    `make` is called with the seed of hashes. The other process judges the answers from the last to
    the first, so that a function that remembers something is found, too.
    """
    with closing(make(0)) as one, closing(make(1)) as other:
        pairs = zip(
            one.judge(answers, len(answers)),
            reversed(other.judge(answers[::-1], len(answers))),
            strict=True,
        )
        return next((answer for answer, (a, b) in zip(answers, pairs) if a != b), None)
