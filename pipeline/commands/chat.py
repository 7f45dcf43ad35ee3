"""Talk to a model in the terminal, with the template it was trained on, or let the model continue
texts."""

from __future__ import annotations

import difflib
import json
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from pion.errors import BadInput, told
from pipeline.commands.sampling import Settings, convert
from pipeline.console.formats import printable

if TYPE_CHECKING:
    from pion.data.chat.chat_format import ChatFormat
    from pion.data.chat.messages import Message
    from pion.data.tokens.tokenizer import Tokenizer
    from pion.model.decoder import Decoder
    from pipeline.models.find import FoundModel

SETTINGS = {
    "/temp": "temperature",
    "/topk": "top_k",
    "/topp": "top_p",
    "/tokens": "max_tokens",
    "/minp": "min_p",
    "/penalty": "repetition_penalty",
    "/presence": "presence_penalty",
    "/frequency": "frequency_penalty",
}
COMMANDS = (*SETTINGS, "/system", "/reset", "/help", "/quit")
HELP = """\
/temp X     temperature: 0 takes the most likely token; higher is more random
/topk N     choose among the N most likely tokens (0: all)
/topp X     choose among the most likely tokens that add up to probability X
/minp X     leave out tokens less likely than this share of the likeliest one's probability
/tokens N   maximum length of an answer, in tokens
/penalty X  above 1, tokens that were already used become less likely
/presence X, /frequency X
            above 0, tokens of the answer become less likely: once, and for each time
/system T   instructions for the model before the conversation (empty: none)
/reset      forget the conversation
/quit       quit (also Ctrl-D); Ctrl-C stops an answer
A command without a value shows the current value."""


class Conversation:
    """The messages so far, and their ids in the format that the model was trained on.

    A base model (`template` False) has no messages: it only continues the last text.
    """

    def __init__(self, chat_format: ChatFormat, seq_len: int, *, template: bool) -> None:
        self.chat_format = chat_format
        self.seq_len = seq_len
        self.template = template
        self.system = ""
        self.messages: list[Message] = []

    def ask(self, text: str, answer_tokens: int) -> tuple[list[int], int]:
        """Add the user's message; return the prompt's ids and how many old messages were dropped.

        The oldest messages are dropped to leave room for `answer_tokens`, or for half the context
        if that is less. Raises BadInput, and adds nothing, if the text by itself fills the context
        or if the model's template refuses it.
        """
        question = {"role": "user", "content": text}
        messages = [*self.messages, question] if self.template else [question]
        room = min(answer_tokens, self.seq_len // 2)
        dropped = 0
        while len(ids := self._ids(messages)) + room > self.seq_len and len(messages) > 1:
            later = range(1, len(messages))
            keep = next((i for i in later if messages[i]["role"] == "user"), 1)
            dropped += keep
            messages = messages[keep:]
        if len(ids) >= self.seq_len:
            raise BadInput(
                f"this text has {len(ids):,} tokens, but the model's context is {self.seq_len:,} "
                "tokens. Enter a shorter text"
            )
        self.messages = messages
        return ids, dropped

    def answered(self, text: str) -> None:
        """Add the model's answer."""
        self.messages.append({"role": "assistant", "content": text})

    def _ids(self, messages: list[Message]) -> list[int]:
        if not self.template:
            return self.chat_format.tokenizer.prompt(messages[-1]["content"])
        system = [{"role": "system", "content": self.system}] if self.system else []
        return self.chat_format.prompt_ids([*system, *messages])


def prompt_ids(
    model: Decoder,
    chat_format: ChatFormat,
    prompt: str,
    settings: Settings,
    *,
    as_chat: bool,
) -> list[int]:
    """Return the ids of a text to continue, or with `as_chat` of a user's message.

    Raises BadInput if the text is empty or fills the context.
    """
    if not prompt.strip():
        raise BadInput("the prompt is empty. Give some text for the model to continue")
    conversation = Conversation(chat_format, model.config.seq_len, template=as_chat)
    return conversation.ask(prompt, settings["max_tokens"])[0]


def tell_replaced(
    tokenizer: Tokenizer, text: str, where: str, say: Callable[[str], None] | None = None
) -> None:
    """Say, on stderr unless `say` is given, if the vocabulary lacks characters of a text."""
    replaced = tokenizer.replaced()
    replaced.look(text, where)
    if replaced.count:
        (say or partial(print, file=sys.stderr))(printable(replaced.in_words()))


def answer_once(
    model: Decoder,
    chat_format: ChatFormat,
    prompt: str,
    settings: Settings,
    *,
    as_chat: bool,
) -> None:
    """Print `prompt` and its continuation, or with `as_chat` only the answer to it."""
    ids = prompt_ids(model, chat_format, prompt, settings, as_chat=as_chat)
    tell_replaced(chat_format.tokenizer, prompt, "the prompt")
    prompt_shown, last = "" if as_chat else prompt, ""
    for last in _pieces(model, chat_format, ids, settings, continues=not as_chat):
        print(printable(prompt_shown + last), end="", flush=True)
        prompt_shown = ""  # printed with the first token: nothing may be printed before an error
    print(printable(prompt_shown), end="" if last.endswith("\n") else "\n")


def chat(
    model: Decoder,
    chat_format: ChatFormat,
    found: FoundModel,
    settings: Settings,
    *,
    lines: Iterator[str] | None = None,
    out: TextIO | None = None,
) -> None:
    """Read turns, print answers as they are written, until /quit or the end of the input."""
    session = _Session(model, chat_format, settings, found.chat, out or sys.stdout)
    session.say(
        f"{found.label}: {model.num_params() / 1e6:.4g}M parameters, context "
        f"{model.config.seq_len:,} tokens. /help lists the commands, Ctrl-D quits."
    )
    if not found.chat:
        session.say(
            "This model was not fine-tuned on conversations. The model continues your text."
        )
    for line in lines if lines is not None else _typed_lines(session.say):
        if not session.take(line):
            break


class _Session:
    def __init__(
        self,
        model: Decoder,
        chat_format: ChatFormat,
        settings: Settings,
        template: bool,
        out: TextIO,
    ) -> None:
        self.model, self.chat_format, self.settings, self.out = model, chat_format, settings, out
        self.conversation = Conversation(chat_format, model.config.seq_len, template=template)

    def say(self, text: str, end: str = "\n") -> None:
        print(printable(text), end=end, file=self.out, flush=True)

    def take(self, line: str) -> bool:
        """Act on one line; return False to end the session."""
        text = line.strip()
        if text == "/quit":
            return False
        if not text:
            return True
        try:
            if text.startswith("/"):
                name, _, value = text.partition(" ")
                self._command(name, value.strip())
            else:
                self._answer(text if self.conversation.template else line.rstrip("\n"))
        except BadInput as error:
            self.say(str(error))
        return True

    def _answer(self, text: str) -> None:
        ids, dropped = self.conversation.ask(text, self.settings["max_tokens"])
        tell_replaced(self.chat_format.tokenizer, text, "this message", self.say)
        if dropped:
            self.say(f"(the context is full: the oldest {dropped} messages are forgotten)")
        answer = ""
        try:
            for piece in _pieces(self.model, self.chat_format, ids, self.settings):
                answer += piece
                self.say(piece, end="")
        except KeyboardInterrupt:
            self.say(" (stopped)", end="")
        if not answer.endswith("\n"):
            self.say("")
        self.conversation.answered(answer)

    def _command(self, name: str, value: str) -> None:
        if name in SETTINGS:
            setting = SETTINGS[name]
            if value:
                self.settings = {**self.settings, setting: convert(setting, value)}
            self.say(f"{setting.replace('_', ' ')} is {self.settings[setting]:g}")
        elif name == "/system":
            if not self.conversation.template:
                raise BadInput("this model has no system message: it was not fine-tuned")
            self.conversation.system = value
            self.say(f"system: {value}" if value else "no system message")
        elif name == "/reset":
            self.conversation.messages.clear()
            self.say("the conversation is forgotten")
        elif name == "/help":
            self.say(HELP)
        else:
            close = difflib.get_close_matches(name, COMMANDS, 1, 0.5)
            hint = f"; did you mean {close[0]}?" if close else "; /help lists the commands"
            raise BadInput(f"there is no command {name}{hint}")


def _pieces(
    model: Decoder,
    chat_format: ChatFormat,
    ids: list[int],
    settings: Settings,
    *,
    continues: bool = False,
) -> Iterator[str]:
    """Yield the continuation of `ids` as pieces of text, up to the end of the turn or text.

    `continues`: as in `stream_text`.
    """
    from pion.generation.generate import generate, stream_text

    new = generate(model, ids, **library_settings(chat_format, settings))
    return stream_text(chat_format.tokenizer, new, continues=continues)


def library_settings(chat_format: ChatFormat, settings: Settings) -> dict[str, Any]:
    """Return the keywords of `pion.generate`, which stops at the end of the turn or text."""
    ends = {"stop_ids": chat_format.stop_ids, "vocab_size": chat_format.tokenizer.vocab_size}
    return {**ends, **settings}


def _typed_lines(say: Callable[[str], None]) -> Iterator[str]:
    """Yield lines from standard input; on a terminal, with a prompt and line editing."""
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    import readline  # noqa: F401  (arrow keys and history in input())

    # The parent process may have disabled Ctrl-C, but /help promises it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    while True:
        try:
            yield input("> ")
        except EOFError:
            say("")
            return
        except KeyboardInterrupt:
            say("\n(Ctrl-D or /quit to quit)")


# ---------------------------------------------------------------- many texts


class Prompt(NamedTuple):
    """A text to continue, and the file and line that it is from."""

    where: str
    text: str


def read_prompts(path: Path) -> list[Prompt]:
    """Return the texts to continue: each line that is not empty, or in a `.jsonl` each "prompt".

    Raises BadInput, naming the file and the line.
    """
    try:
        if path.suffix == ".jsonl":
            from pion.data.documents.file_to_documents import json_lines

            prompts = [Prompt(where, _prompt(where, value)) for where, value in json_lines(path)]
        else:
            from pion.untrusted import read_file

            prompts = [
                Prompt(f"{path}:{number}", line)
                for number, line in enumerate(read_file(path).decode().splitlines(), 1)
                if line.strip()
            ]
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: can't read these prompts ({error})") from None
    if not prompts:
        raise BadInput(f"{path}: the file has no prompt")
    return prompts


def _prompt(where: str, value: Any) -> str:
    text = value.get("prompt") if isinstance(value, dict) else None
    if not isinstance(text, str):
        raise BadInput(f'{where}: not a prompt. Write {{"prompt": "the text to continue"}}')
    return text


def answer_all(
    model: Decoder,
    chat_format: ChatFormat,
    prompts: list[Prompt],
    settings: Settings,
    *,
    as_chat: bool,
) -> None:
    """Print a line of JSON for each prompt, in their order, as soon as the text is complete."""
    from pion.generation.generate import generate_batch, stream_text

    ids = []
    for prompt in prompts:
        with told(f"{prompt.where}: "):
            ids.append(prompt_ids(model, chat_format, prompt.text, settings, as_chat=as_chat))
        tell_replaced(chat_format.tokenizer, prompt.text, prompt.where)
    new: list[list[int]] = [[] for _ in prompts]
    complete: set[int] = set()
    printed = 0
    for number, token in generate_batch(model, ids, **library_settings(chat_format, settings)):
        if token is not None:
            new[number].append(token)
            continue
        complete.add(number)
        while printed in complete:
            pieces = stream_text(chat_format.tokenizer, new[printed], continues=not as_chat)
            text = "".join(pieces)
            print(json.dumps({"prompt": prompts[printed].text, "text": text}), flush=True)
            printed += 1
