"""Chatting shows the model what it saw in training, and survives what people type."""

import io
import itertools
import os
import pty
import select
import signal
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from pion.data.chat.chat_format import ChatFormat
from pion.data.chat.conversation import Turn, tokenize
from pion.errors import BadInput
from pion.generation.bounds import BOUNDS
from pipeline.cli import main
from pipeline.commands.chat import Conversation, chat
from pipeline.commands.sampling import DEFAULTS
from pipeline.models.find import FoundModel
from tests.hostile.in_process import pion
from tests.support.finished_run import make_run, tiny_model, tiny_tokenizer
from tests.support.waiting import wait_until

TOKENIZER = tiny_tokenizer()
FORMAT = ChatFormat("nowhere/tokenizer.json", TOKENIZER)  # no template: Pion's own
MODEL = tiny_model(TOKENIZER.vocab_size, seq_len=128)
SHORT = {**DEFAULTS, "max_tokens": 6, "seed": 1}


def talk(*lines, tuned=True, settings=SHORT):
    """Return what the terminal shows after each line."""
    out = io.StringIO()
    marks = []

    def typed():
        for line in lines:
            marks.append(len(out.getvalue()))
            yield line
        marks.append(len(out.getvalue()))

    found = FoundModel(Path("x"), "export", "tiny", tuned, None)
    chat(MODEL, FORMAT, found, settings, lines=typed(), out=out)
    shown = out.getvalue()
    return [shown[a:b] for a, b in itertools.pairwise(marks)]


# ---------------------------------------------------------------- what the model is shown


def test_the_prompt_has_the_ids_of_the_same_turns_in_training():
    conversation = Conversation(FORMAT, 512, template=True)
    conversation.system = "Be brief."
    told = [Turn("system", "Be brief.")]
    for question, answer in (("What is a fox? ", " An animal.\n"), ("And a\tdog?", "Another.")):
        ids, dropped = conversation.ask(question, 16)
        turns = [Turn(m["role"], m["content"]) for m in conversation.messages]
        trained = tokenize(TOKENIZER, [*told, *turns, Turn("assistant", answer)])
        first_learned = len(trained.ids) - trained.learned[::-1].argmin()
        assert ids == trained.ids[:first_learned].tolist()
        assert dropped == 0
        conversation.answered(answer)


def test_a_base_model_is_shown_the_text_and_nothing_else():
    conversation = Conversation(FORMAT, 64, template=False)
    for text in ("Return a", "The quick"):
        assert conversation.ask(text, 16) == (TOKENIZER.encode(text), 0)
        conversation.answered("something")


def test_when_the_context_is_full_the_oldest_messages_go_and_the_system_message_stays():
    conversation = Conversation(FORMAT, 128, template=True)
    conversation.system = "Be brief."
    dropped = 0
    for number in range(8):
        ids, gone = conversation.ask(f"Question {number}?", 16)
        assert len(ids) + 16 <= 128
        dropped += gone
        conversation.answered(f"Answer {number}.")
    assert dropped > 0
    assert dropped % 2 == 0
    assert conversation.messages[0]["role"] == "user"
    assert conversation.messages[-1]["content"] == "Answer 7."
    assert TOKENIZER.decode(ids).startswith("<|system|>\nBe brief.\n<|user|>\n")


def test_the_room_kept_for_an_answer_is_at_most_half_the_context():
    conversation = Conversation(FORMAT, 128, template=True)
    conversation.ask("Hello", 10_000)
    conversation.answered("Hi")
    _, dropped = conversation.ask("again", 10_000)
    assert dropped == 0


def test_a_text_that_fills_the_context_alone_is_refused_and_forgotten():
    conversation = Conversation(FORMAT, 64, template=True)
    conversation.ask("Hello", 8)
    conversation.answered("Hi")
    with pytest.raises(BadInput, match="the model's context is 64"):
        conversation.ask("fox " * 100, 8)
    assert [message["content"] for message in conversation.messages] == ["Hello", "Hi"]


# ---------------------------------------------------------------- a session


def test_each_line_gets_an_answer_that_ends_with_a_line_break():
    first, *empty, last = talk("What is a fox?", "", "  ", "And a dog?")
    for answer in (first, last):
        assert answer.strip()
        assert answer.endswith("\n")
    assert empty == ["", ""]


def test_a_seed_makes_a_session_repeatable():
    assert talk("What is a fox?") == talk("What is a fox?")


@pytest.mark.parametrize("tuned", [True, False])
def test_the_greeting_names_the_model_its_context_and_whether_it_only_continues_text(tuned):
    out = io.StringIO()
    found = FoundModel(Path("x"), "export", "demo (sft, step 5)", tuned, None)
    chat(MODEL, FORMAT, found, SHORT, lines=iter(()), out=out)
    assert "demo (sft, step 5)" in out.getvalue()
    assert "context 128 tokens" in out.getvalue()
    words = "was not fine-tuned on conversations. The model continues your text"
    assert (words in out.getvalue()) == (not tuned)


@pytest.mark.parametrize(
    ("line", "reply"),
    [
        ("/temp 0.5", "temperature is 0.5"),
        ("/temp", "temperature is 0.8"),
        ("/topk 0", "top k is 0"),
        ("/topp 0.5", "top p is 0.5"),
        ("/tokens 9", "max tokens is 9"),
        ("/penalty 1.2", "repetition penalty is 1.2"),
        ("/temp hot", f"temperature must be {BOUNDS['temperature']}, not 'hot'"),
        ("/temp -1", f"temperature must be {BOUNDS['temperature']}, not '-1'"),
        ("/topk 2.5", f"top k must be a whole number, {BOUNDS['top_k']}, not '2.5'"),
        ("/topp 2", "top p must be from 1e-30 to 1, not '2'"),
        ("/tokens 0", "max tokens must be a whole number, from 1 to 2,147,483,647, not '0'"),
        ("/tpok 3", "there is no command /tpok; did you mean /topk?"),
        ("/", "there is no command /; /help lists the commands"),
        ("/system Be brief.", "system: Be brief."),
        ("/system", "no system message"),
        ("/reset", "the conversation is forgotten"),
    ],
)
def test_commands_reply_and_bad_values_are_explained(line, reply):
    assert talk(line) == [f"{reply}\n"]


def test_a_setting_holds_for_the_answers_that_follow():
    assert len(talk("/temp 0", "/tokens 1", "hello")[-1]) <= len(talk("/temp 0", "hello")[-1])
    unseeded = {**SHORT, "seed": None}
    greedy = talk("/temp 0", "hello", settings=unseeded)
    assert greedy == talk("/temp 0", "hello", settings=unseeded)


def test_quit_ends_the_session_and_later_lines_are_not_read():
    assert talk("/quit", "hello") == []
    assert len(talk("hello", "/quit", "hello")) == 1


def test_help_names_every_command():
    shown = "\n".join(talk("/help"))
    for command in ("/temp", "/topk", "/topp", "/tokens", "/system", "/reset", "/quit"):
        assert command in shown


def test_a_full_context_is_announced():
    lines = [f"Question number {i}, about the fox?" for i in range(6)]
    assert any(
        "the context is full: the oldest 2 messages are forgotten" in s for s in talk(*lines)
    )


def test_a_text_too_long_is_explained_and_the_session_continues():
    long, answer = talk("fox " * 200, "hello")
    assert "Enter a shorter text" in long
    assert answer


def test_ctrl_c_stops_the_answer_and_not_the_program():
    class Impatient(io.StringIO):
        """A terminal whose user presses Ctrl-C at the third piece of the first answer."""

        pieces = 0

        def write(self, text):
            written = super().write(text)
            self.pieces += text not in ("", "\n")
            if self.pieces == 4:
                self.pieces += 1
                raise KeyboardInterrupt
            return written

    out = Impatient()
    found = FoundModel(Path("x"), "export", "tiny", True, None)
    settings = {**SHORT, "max_tokens": 30}
    chat(MODEL, FORMAT, found, settings, lines=iter(["hello", "/temp"]), out=out)
    assert " (stopped)\n" in out.getvalue()
    assert out.getvalue().endswith("temperature is 0.8\n")


# ---------------------------------------------------------------- the real program


def test_a_piped_conversation_needs_no_terminal(here):
    make_run(here / "runs")
    talk = pion("chat", "--max-tokens", "4", typed=b"hello \xff\n/quit\n")
    assert talk.code == 0, talk
    assert "demo (sft, step 5)" in talk.out
    assert talk.err == ""


def chat_in(folder):
    """Chat in a fork on the terminal that is its standard input; return the exit code.

    Ctrl-C is ignored, as a shell makes background jobs do.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.chdir(folder)
    torch.set_num_threads(1)  # threads of the parent are not in a fork
    sys.stdin, sys.stdout, sys.stderr = (
        os.fdopen(number, "w" if number else "r", closefd=False) for number in range(3)
    )
    return main(["chat", "--max-tokens", "4"])


def test_on_a_terminal_ctrl_c_asks_how_to_end_and_ctrl_d_ends_even_if_the_parent_ignores_ctrl_c(
    tmp_path,
):
    make_run(tmp_path / "runs")
    child, master = pty.fork()
    if child == 0:
        try:
            os._exit(chat_in(tmp_path))
        finally:
            os._exit(-1)
    ended = []

    def has_ended():
        ended[:] = os.waitpid(child, os.WNOHANG)
        return ended[0] == child

    try:
        read_until(master, b"> ")
        press = partial(os.kill, child, signal.SIGINT)
        press()
        # Repeat if nothing happens: a signal just before the program reads keys waits for a key.
        read_until(master, b"(Ctrl-D or /quit to quit)\r\n> ", in_silence=press)
        os.write(master, b"\x04")
        wait_until(has_ended, "the chat to end")
        assert ended[1] == 0
    finally:
        if not ended or ended[0] != child:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        os.close(master)


def read_until(terminal, expected, in_silence=lambda: None):
    """Block until the terminal shows `expected`; call `in_silence` when it shows nothing new."""
    shown = b""

    def seen():
        nonlocal shown
        readable, _, _ = select.select([terminal], [], [], 2.0)
        if readable:
            shown += os.read(terminal, 1024)
        else:
            in_silence()
        return expected in shown

    wait_until(seen, lambda: f"{expected!r} on the terminal, which shows {shown!r}")
