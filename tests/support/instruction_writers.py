"""Writers of answers to the built-in instructions, who read nothing but the prompt."""

from __future__ import annotations

import json
import re

NUMBERS = {"one": 1}


def perfect(prompt: str) -> str:
    """Return an answer that does what a prompt asks, by its words alone."""
    if number := re.search(r"in at most (\d+) words", prompt):
        return " ".join(["It is"] + ["good"] * (int(number[1]) - 2)) + "."
    if number := re.search(r"in at least (\d+) words", prompt):
        return " ".join(["It is"] + ["very"] * (int(number[1]) - 2)) + "."
    if number := re.search(r"in exactly (\w+) sentences?", prompt):
        return " ".join(["It is good."] * NUMBERS.get(number[1], 0) or ["It is."] * int(number[1]))
    if number := re.search(r"in exactly (\d+) bullet points", prompt):
        return "\n".join(f"- Thing {place}" for place in range(int(number[1])))
    if keys := re.search(r"with exactly these keys: (.*)\. Write only", prompt):
        return json.dumps(dict.fromkeys(json.loads(f"[{keys[1]}]"), "good"))
    if "Use only small letters" in prompt:
        return "they are good, i think. they are old."
    if "Use only capital letters" in prompt:
        return "THEY ARE GOOD, I THINK. THEY ARE OLD."
    if word := re.search(r'Use the word "(\w+)" exactly two times', prompt):
        return f"They need {word[1]}. So say {word[1]}, too."
    if word := re.search(r'Do not use the word "(\w+)"', prompt):
        text = "The best of it, and that is a fact, are in what we want to say. Yes, really."
        return " ".join(re.sub(rf"\b{word[1]}\b", "", text, flags=re.IGNORECASE).split())
    return _with_phrases(prompt)


def _with_phrases(prompt: str) -> str:
    if phrase := re.search(r'Begin your answer with the words "(.*)"', prompt):
        return f"{phrase[1]}, they are good. They are old."
    if phrase := re.search(r'End your answer with the words "(.*)"', prompt):
        return f"They are good. {phrase[1]}."
    if "Do not use any commas" in prompt:
        return "They are good. They are old."
    if options := re.search(r"one of these words and nothing else: (.*)\.$", prompt):
        return options[1].split(", ")[-1]
    text = re.fullmatch(r"Repeat this text and write nothing else: (.*)", prompt)
    assert text, f"the writer does not understand: {prompt}"
    return text[1]
