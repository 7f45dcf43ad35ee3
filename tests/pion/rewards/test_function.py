"""A person's function as a reward: how it is called, which files are refused, and that what it does
wrong costs one answer its reward and never the training."""

import hashlib
import os
import subprocess
import sys
from contextlib import suppress

import psutil
import pytest

from pion.errors import BadInput
from pion.rewards import function as function_module
from pion.rewards.answered import Answered
from pion.rewards.function import Function, FunctionReward, judged_differently, read_function
from tests.support.waiting import wait_until

RECORD = {"question": "1+1?", "solution": "2", "data_source": "sums", "extra_info": {"split": "a"}}


def said(text, prompt="1+1?", record=RECORD):
    return Answered(text, prompt, "2", record, True, len(text), [0] * len(text[:9]))


def judge(own, *texts):
    own.errors.clear()
    return own.judge([said(text) for text in texts], most_errors=9)


@pytest.fixture
def reward():
    """Return what makes a reward of a function `f`."""
    made = []

    def make(code, *hash_seed, **limits):
        source = code if isinstance(code, bytes) else code.encode()
        made.append(FunctionReward(Function("rewards.py", "f", source), *hash_seed, **limits))
        return made[-1]

    yield make
    for one in made:
        one.close()


# ---------------------------------------------------------------- how it is called

# The parameters of a function, what it returns, and the rewards of "no" and of "no!".
CALLS = [
    ("text", "len(text)", [2, 3]),
    ("prompt, answer, record", "prompt + answer + record['solution'] == '1+1?22'", [1, 1]),
    ("tokens, finished", "tokens / 2 if finished else 9", [1, 1.5]),
    ("text, *, scale=0.5", "scale", [0.5, 0.5]),
    ("**every", "len(every)", [7, 7]),
    ("text, *more", "len(more) + 1", [1, 1]),
    ("text, np=numpy", "np.float32(len(text))", [2, 3]),
    ("text, np=numpy", "np.any(np.array([text == 'no']))", [1, 0]),
    ("text, np=numpy", "np.array([[len(text)]])", [2, 3]),
    ("text", "__import__('decimal').Decimal(len(text))", [2, 3]),
    ("solution_str, ground_truth", "solution_str + ground_truth == 'no2'", [1, 0]),
    ("data_source, solution_str, **every", "len(every) if data_source == 'sums' else 0", [2, 2]),
    ("solution_str", "{'score': len(solution_str), 'acc': 1}", [2, 3]),
    ("solution_str", "len(solution_str), {'acc': 1}", [2, 3]),
    # TRL: lists, in one call
    ("completions, solution, **all", "[len(c) + len(all['prompts']) for c in completions]", [4, 5]),
    (
        "completions, trainer_state=None, np=numpy",
        "np.array([len(c) for c in completions])",
        [2, 3],
    ),
    ("prompts, completion_ids, **_", "[len(ids) for ids in completion_ids]", [2, 3]),
    ("prompts, completions", "None, prompts == ['1+1?', '1+1?'] and 0.5", [0, 0.5]),
]


@pytest.mark.parametrize(("parameters", "returned", "rewards"), CALLS)
def test_a_function_gets_what_its_parameters_name(reward, parameters, returned, rewards):
    own = reward(f"import numpy\ndef f({parameters}):\n return {returned}")
    assert judge(own, "no", "no!") == rewards
    assert judge(own) == []
    assert not own.errors


def test_texts_and_messages_reach_a_function_whole(reward):
    texts = ["\ud800\0\x7f", "ab" * 5_000_000]
    own = reward("def f(text, record): return text == record['text']")
    assert own.judge([said(text, record={"text": text}) for text in texts], 0) == [1, 1]
    trl = reward("def f(completions, **_): return [c[0]['content'] == 'no' for c in completions]")
    assert trl.judge([said("no", prompt=[{"role": "user", "content": "1+1?"}])], 0) == [1]


def test_the_bytes_that_are_hashed_are_the_bytes_that_run(reward, tmp_path):
    file = tmp_path / "rewards.py"
    file.write_bytes(b"\xef\xbb\xbfdef f(text):\r\n return text == '\xc3\xa9'")
    function = read_function(file, "f")
    assert function.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert judge(reward(function.source), "é") == [1]
    with pytest.raises(BadInput, match=r"none.py: .*No such file or directory. Correct the path"):
        read_function(tmp_path / "none.py", "f")
    with pytest.raises(BadInput, match="not a regular file"):
        read_function(tmp_path, "f")


UNUSABLE = {
    "def f(text:": r"SyntaxError: .* \(rewards.py, line 1\)",
    b"def f(text): return '\xff'": "SyntaxError",
    "def g(text): pass\ndef h(): pass": "f is no function in it. Its functions: g, h",
    "f = 3": "f is no function in it. Its functions: none",
    "class f:\n def __init__(self, text): pass": "f is no function",
    "async def f(text): return 1": "f is async. Write `def`",
    "def f(text, mood): return 1": "missing a required argument: 'mood'. .* text, prompt, answer,",
    "def f(solution_str, mood): return 1": "missing a required argument: 'mood'",
    "def f(text, /): return 1": "positional",
    "import helper\ndef f(text): return 1": r"No module named 'helper'. Install .* put its code",
    "from . import helper": "no known parent package. Install",
    "\nraise ValueError('x\\ny')": r"ValueError: x y \(line 2\)",
    "exit(3)": "SystemExit: 3",
    "import os; os._exit(0)": "its process ended while the file was imported",
    "import os\nif os.fork(): os._exit(0)\ndef f(text): return 1": "its process ended while",
    "while True: pass": "it took more than 1 s while the file was imported",
}


@pytest.mark.parametrize("code", UNUSABLE)
def test_a_file_that_can_not_be_used_is_refused_in_one_line(reward, tmp_path, code, monkeypatch):
    if code == "while True: pass":
        monkeypatch.setattr("pion.bounded_child.START_SECONDS", 1.0)
    (tmp_path / "helper.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # Python would find helper.py here, but not elsewhere
    with pytest.raises(BadInput, match=UNUSABLE[code]) as error:
        reward(code)
    assert str(error.value).startswith("rewards.py: the reward f can't be used: ")
    assert "\n" not in str(error.value)


def test_the_first_answer_that_two_processes_judge_differently_is_found(reward):
    code = "import itertools\nn = itertools.count()\na = 1\ndef f(text): return eval(text)"
    odd = ["hash(text) % 99991", "__import__('random').random()", "next(n)"]
    for text in [*odd, "sum(i * ord(c) for i, c in enumerate(set('abcdefgh')))"]:
        answers = [said("a"), said(text), said("a"), said(text)]
        assert judged_differently(lambda seed: reward(code, seed), answers) is answers[1]
    assert judged_differently(lambda seed: reward(code, seed), answers[:1]) is None


# ---------------------------------------------------------------- what it does wrong

# The text of an answer is what the function does.
CODE = "def f(text):\n    names = {}\n    exec(text, names)\n    return names.get('r')\n"
FINE = "r = 1"
FORK_STAYS = "import os, time\nif not os.fork(): time.sleep(1000)\nr = 1"


@pytest.fixture(scope="module")
def own():
    """Return a reward with half a second of a core, and minutes on a busy machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(function_module, "PATIENCE", 600.0)
        patch.setattr("pion.bounded_child.MOST_BYTES", 1 << 20)
        function = Function("f.py", "f", CODE.encode())
        made = FunctionReward(function, seconds=1.0, memory=1 << 27)
        yield made
        made.close()


ENDED = "its process ended (it may compute for 1 s, and should not exit)"
STRANGE = "its process wrote something else than an answer"
WRONG = {
    "r = None": "returned a NoneType",
    "r = '1'": "returned a str",
    "r = [1.0]": "returned a list",
    "import array; r = array.array('d', [1])": "returned a array",
    "r = float('nan')": "a number up to 1,000,000, and returned NaN",
    "r = float('inf')": "such a large one",
    "r = 1e300": "such a large one",
    "r = -10**400": "OverflowError",
    "raise ValueError('a\\n' * 10**6)": "ValueError: a a a",
    "exit()": "SystemExit: None",
    "raise KeyboardInterrupt": "KeyboardInterrupt: (line 3)",
    "def g(): g()\ng()": "RecursionError",
    "r = []\nwhile True: r.append(bytearray(1 << 24))": "MemoryError",
    "print('x' * 10**9)": "MemoryError",
    "import torch": "Import the package at the top of the file",
    "import os; os._exit(0)": ENDED,
    "import ctypes; ctypes.string_at(0)": ENDED,
    "import os; os.closerange(3, 9999); r = 1": ENDED,
    "import os; os.killpg(0, 15)": ENDED,
    "while True: pass": ENDED,
    "import re; re.fullmatch('(a+)+b', 'a' * 99)": ENDED,
    "import os, sys\nwhile True: os.write(int(sys.argv[1]), b'?' * 65536)": STRANGE,
    **{
        f"import os, sys; os.write(int(sys.argv[1]), b'{line}\\n'); r = 1": STRANGE
        for line in (
            *(
                "?",
                "[]",
                "{}",
                "[" * 9999,
                '{"rewards": [1.0]}',
                '{"rewards": [1.0], "errors": [1]}',
            ),
            *(
                f'{{"rewards": {r}, "errors": []}}'
                for r in ('["1"]', "[NaN]", "[1e999]", "[]", "[true]")
            ),
        )
    },
}


@pytest.mark.parametrize("text", WRONG)
def test_an_error_costs_one_answer_and_is_counted(own, text):
    assert judge(own, FINE, text, FINE) == [1, 0, 1]
    ((message, count),) = own.errors.items()
    assert WRONG[text] in message
    assert (count, len(message) < 400, "\n" in message) == (1, True, False)


def test_after_too_many_errors_no_other_answer_is_tried(own):
    own.errors.clear()
    texts = [FINE, "while True: pass", "while True: pass", FINE]
    assert own.judge([said(text) for text in texts * 9], most_errors=1) == [1] + [0] * 35
    assert own.errors == {ENDED: 2}


def test_a_function_that_kills_its_parent_ends_its_own_process_alone(own):
    judge(own, "import os; os.kill(os.getppid(), 9); r = 1")
    process = own._child.process
    # The parent is gone soon, and then the process ends.
    wait_until(lambda: judge(own, FINE, FINE) == [1, 1] and own._child.process is not process, "it")


HARMLESS = {
    "it prints a gigabyte": "import os; [os.write(n, bytes(1 << 20)) for n in (1, 2) * 512]; r = 1",
    "it empties its folder": "import os, shutil; shutil.rmtree(os.getcwd()); r = 1",
    "it waits longer than it may compute": "import time; time.sleep(0.7); r = 1",
    "it closes what it prints to": "import sys; sys.stdout.close(); sys.stdin.close(); r = 1",
    "a fork returns, too": "import os; os.fork(); r = 1",
    "a fork goes on": FORK_STAYS,
    "a thread goes on": "from threading import *; Thread(target=Event().wait).start(); r = 1",
    "it has no keys": "from os import environ as e; r = 'HF_TOKEN' not in e",
    "it sees no GPU": "from os import environ as e; r = not e['CUDA_VISIBLE_DEVICES']",
}


@pytest.mark.parametrize("text", HARMLESS.values(), ids=HARMLESS)
def test_a_function_may_do_that(text, own, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert judge(own, text, FINE, "r = 2") == [1, 1, 2]
    assert not own.errors


def gone(group):
    """Return whether all processes of a group have ended."""
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                return False
    return True


def test_what_takes_too_long_is_ended_with_its_forks(reward, monkeypatch):
    own = reward(CODE, seconds=0.5)
    for text in ("import os, time; os.fork(); time.sleep(1000)", FORK_STAYS):
        monkeypatch.setattr(function_module, "PATIENCE", 1.0)
        group = own._child.process.pid
        assert not gone(group)
        judge(own, text)
        own.close()
        wait_until(lambda group=group: gone(group), "the end of the group")
        monkeypatch.setattr(function_module, "PATIENCE", 600.0)
        assert judge(own, FINE) == [1]  # in another process


def test_lists_have_the_time_of_all_answers_and_a_number_for_each(reward, monkeypatch):
    own = reward("import time\ndef f(completions): return eval(completions[0])", seconds=0.25)
    for text in ("[1, 2, 3]", "1.0"):
        assert judge(own, text, "") == [0, 0]
        words = "it has `completions`, and should return a list: a number for each"
        assert own.errors == {words: 2}
    assert judge(own, "[1, 'a']", "") == [1, 0]
    monkeypatch.setattr(function_module, "PATIENCE", 1.0)
    assert judge(own, "time.sleep(1000)", "") == [0, 0]
    ((message, count),) = own.errors.items()
    assert message.startswith("it took more than 0.5 s")
    assert count == 2


def test_nothing_is_left_when_the_process_that_asks_is_killed(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # but for its empty folder
    code = (
        "import os; from pion.rewards.function import *;"
        f"own = FunctionReward(Function('f.py', 'f', {CODE.encode()!r}));"
        f"assert own.judge([Answered({FORK_STAYS!r}, '', None, {{}}, True, 1)], 0) == [1];"
        "print(own._child.process.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    wait_until(lambda: gone(int(asked.stdout)), "the end of the group")
