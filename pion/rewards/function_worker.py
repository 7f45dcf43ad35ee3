"""A process that runs a person's function for function.py, and does nothing else.

The function is called with what its parameters name: the fields of an Answered, or what verl and
TRL give to functions that were written for them.
"""

from __future__ import annotations

import inspect
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from numbers import Real
from operator import itemgetter
from traceback import walk_tb
from types import ModuleType
from typing import Any

from pion.bounded_child import Message, limit_memory, requests

# The bytes of address space that importing may take: packages reserve more than they use.
IMPORT_MEMORY = 16 << 30
# The largest size of a reward. The square of the sum over a batch still fits into float32.
MOST = 1e6
# The most characters of an error's message.
_MESSAGE_CHARS = 300
# The name of the module that the file becomes.
_MODULE = "reward_function"

Fields = Mapping[str, Any]


def _of_verl(answers: Sequence[Fields]) -> Fields:
    record = answers[0]["record"]
    return {
        "solution_str": answers[0]["text"],
        "ground_truth": answers[0]["answer"],
        "data_source": record.get("data_source"),
        "extra_info": record.get("extra_info"),
    }


def _of_trl(answers: Sequence[Fields]) -> Fields:
    columns = dict.fromkeys(key for answer in answers for key in answer["record"])
    return {key: [answer["record"].get(key) for answer in answers] for key in columns} | {
        "prompts": [answer["prompt"] for answer in answers],
        "completion_ids": [answer["ids"] for answer in answers],
        "completions": [
            answer["text"]
            if isinstance(answer["prompt"], str)
            else [{"role": "assistant", "content": answer["text"]}]
            for answer in answers
        ],
    }


# By the parameter that tells whose function it is.
_OTHERS = {"completions": _of_trl, "completion_ids": _of_trl, "solution_str": _of_verl}
# What TRL gives to functions, and Pion does not have.
_MISSING = ("trainer_state", "log_extra", "log_metric", "environments")
# An answer, to know what a function can be given.
_ANSWER = {"text": "", "prompt": "", "answer": "", "record": {}, "finished": True, "tokens": 0}
_ANSWER |= {"ids": []}


class Unusable(Exception):
    """The function can't be used. The message says what to do."""


class Call:
    """A function, and what it wants to be called with."""

    def __init__(self, function: Callable[..., object]) -> None:
        """Raises Unusable for a parameter without a value, and if nothing is given. (TRL's are
        known with a record.)"""
        self._function, self._signature = function, inspect.signature(function)
        names = self._signature.parameters
        self._given = next((_OTHERS[name] for name in names if name in _OTHERS), itemgetter(0))
        self.takes_lists = self._given is _of_trl
        if missing := [n for n in _MISSING if n in names and names[n].default is names[n].empty]:
            raise Unusable(
                f"Pion has no {missing[0]} to give to it: an answer gets the same reward at any "
                f"step. Remove the parameter, or write {missing[0]}=None"
            )
        try:
            if not self.takes_lists and not self._bound([_ANSWER]).arguments:
                raise TypeError("it has no parameter that gets something of an answer")
        except TypeError as error:
            raise Unusable(
                f"{error}. A function can have the parameters {', '.join(_ANSWER)}; or "
                "completions, prompts and the records' keys, as in TRL; or solution_str and "
                "ground_truth, as in verl"
            ) from None

    def __call__(self, answers: Sequence[Fields]) -> Sequence[object]:
        """Return what the function says of each answer. Raises what it raises."""
        bound = self._bound(answers)
        result = self._function(*bound.args, **bound.kwargs)
        if not self.takes_lists:
            # What verl's functions may return has more than the score.
            if isinstance(result, dict | tuple):
                result = result.get("score") if isinstance(result, dict) else [*result, None][0]
            return [result]
        if hasattr(result, "tolist"):  # an array, or a tensor
            result = result.tolist()
        if not isinstance(result, list | tuple) or len(result) != len(answers):
            raise Unusable("it has `completions`, and should return a list: a number for each")
        return [0.0 if one is None else one for one in result]

    def _bound(self, answers: Sequence[Fields]) -> inspect.BoundArguments:
        parameters = self._signature.parameters
        every = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
        given = self._given(answers)
        return self._signature.bind(
            **{name: given[name] for name in given if every or name in parameters}
        )


def judged(call: Call, answers: Sequence[Fields]) -> Message:
    """Return the reward of each answer, and why some have none."""
    try:
        rewards = [_reward(value) for value in call(answers)]
    except BaseException as error:  # SystemExit, too
        rewards = [(0.0, words(error))] * len(answers)
    return {
        "rewards": [reward for reward, _ in rewards],
        "errors": [why for _, why in rewards if why],
    }


def _reward(value: object) -> tuple[float, str | None]:
    if hasattr(value, "item"):  # of numpy, or a tensor
        value = value.item()
    value = float(value) if isinstance(value, Decimal) else value
    if isinstance(value, Real) and abs(float(value)) <= MOST:  # NaN is not
        return float(value), None
    what = "NaN or such a large one" if isinstance(value, Real) else f"a {type(value).__name__}"
    return 0.0, f"it should return True, False or a number up to {MOST:,.0f}, and returned {what}"


def loaded(first: Message) -> Callable[..., object]:
    """Import the file and return its function. Raises Unusable, and what the file raises."""
    # Only this file is copied to the machine that resumes the run.
    sys.path[:] = [path for path in sys.path if os.path.realpath(path) != first["folder"]]
    module = sys.modules[_MODULE] = ModuleType(_MODULE)
    code = compile(first["source"].encode("latin-1"), first["file"], "exec", dont_inherit=True)
    exec(code, vars(module))
    name = first["name"]
    function = getattr(module, name, None)
    if not callable(function) or inspect.isclass(function):
        there = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise Unusable(f"{name} is no function in it. Its functions: {', '.join(there) or 'none'}")
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise Unusable(f"{name} is async. Write `def` in the place of `async def`")
    return function


def words(error: BaseException) -> str:
    """Return one line about an error, with the last line of the file that took part."""
    if isinstance(error, Unusable):
        return str(error)
    text = " ".join(f"{type(error).__name__}: {error}"[:_MESSAGE_CHARS].split())
    lines = [
        line
        for frame, line in walk_tb(error.__traceback__)
        if frame.f_globals.get("__name__") == _MODULE
    ]
    if isinstance(error, ImportError):
        text += (
            ". Import the package at the top of the file, where it may take more memory"
            if "map segment" in text
            else ". Install this package. Of your own files only this one is there: put its code "
            "here"
        )
    return text + (f" (line {lines[-1]})" if lines else "")


def main() -> None:
    """Answer requests until the other side closes the pipe."""
    own = _go_apart()
    calls = requests()
    first, reply = next(calls)
    limit_memory(IMPORT_MEMORY)
    try:
        call = Call(loaded(first))
        limit_memory(first["memory"])
        hello: Message = {"lists": call.takes_lists}
    except BaseException as error:
        hello = {"broken": words(error)}
    _end_others(own)
    reply(hello)
    for request, reply in calls:
        # A signal that ends the process: an endless loop may run in C.
        signal.setitimer(signal.ITIMER_PROF, request["seconds"])
        answer = judged(call, request["answers"])
        signal.setitimer(signal.ITIMER_PROF, 0)
        _end_others(own)
        reply(answer)


def _go_apart() -> tuple[int, int]:
    """Go on in a child of this process, and return the ids of both.

    So the parent that the function sees is not the process that trains. This process waits for the
    child, and then ends all that the child has started.
    """
    child = os.fork()
    if child:
        os.close(int(sys.argv[1]))
        os.waitpid(child, 0)
        os.killpg(0, signal.SIGKILL)
    return os.getpid(), os.getppid()


def _end_others(own: tuple[int, int]) -> None:
    """End this process if it is a fork that the function has made, or has lost its parent."""
    if (os.getpid(), os.getppid()) != own:
        os._exit(1)


if __name__ == "__main__":
    try:
        main()
    finally:  # do not wait for the function's threads
        os._exit(0)
