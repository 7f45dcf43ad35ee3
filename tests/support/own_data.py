"""Data as people have them: ten layouts, of which three are broken."""

import csv
import gzip
import json
import random

import pyarrow
import pyarrow.parquet

_WORDS = (
    "the river and a small boat that was not here when you came to see it with my old friend in "
    "this house on an island of stone where nobody has been for so long"
)


def words(count, seed):
    """Return a text of frequent English words."""
    chance, known = random.Random(seed), _WORDS.split()
    return " ".join(chance.choice(known) for _ in range(count))


def question(number):
    return f"What about {words(6, number)}?"


def answer(number):
    return f"Answer {number}: {words(25, 10_000 + number)}."


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def texts_folder(folder, files=12, paragraphs=40):
    """Write a folder of .txt and .md files, one of them in a folder below."""
    place = folder / "my-texts"
    (place / "more").mkdir(parents=True)
    for number in range(files):
        where = place / "more" if number == 1 else place
        text = "\n\n".join(words(60, 100 * number + n) for n in range(paragraphs))
        (where / f"{number}.{'md' if number % 2 else 'txt'}").write_text(text + "\n")
    return place


def jsonl_texts(folder, count=600, length=80):
    """Write `count` texts of `length` words."""
    return write_lines(
        folder / "articles.jsonl", [{"id": n, "text": words(length, n)} for n in range(count)]
    )


def csv_texts(folder, count=300):
    """Write a table in which two columns could be the text."""
    path = folder / "news.csv"
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["title", "body", "year"])
        table.writerows(
            [words(8, n), f"{words(80, 900 + n)},\n{words(9, n)}", 1990] for n in range(count)
        )
    return path


def parquet_texts(folder, count=600):
    path = folder / "stories.parquet"
    columns = {"story": [words(80, n) for n in range(count)], "likes": list(range(count))}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def alpaca(folder, count=200):
    path = folder / "alpaca.json"
    records = [
        {"instruction": question(n), "input": "here, there" if n % 2 else "", "output": answer(n)}
        for n in range(count)
    ]
    path.write_text(json.dumps(records, indent=1))
    return path


def turns(count, user, assistant, role, text):
    return [
        [{role: user, text: question(n)}, {role: assistant, text: answer(n)}] for n in range(count)
    ]


def sharegpt(folder, count=200):
    found = turns(count, "human", "gpt", "from", "value")
    return write_lines(folder / "sharegpt.jsonl", [{"conversations": one} for one in found])


def messages(folder, count=200):
    found = turns(count, "user", "assistant", "role", "content")
    system = [{"role": "system", "content": "Be short."}]
    return write_lines(folder / "chats.jsonl", [{"messages": system + one} for one in found])


def lists(folder, count=200):
    """Write questions and answers that are lists of messages."""
    found = turns(count, "user", "assistant", "role", "content")
    return write_lines(
        folder / "lists.jsonl", [{"prompt": one[:-1], "completion": one[-1:]} for one in found]
    )


def as_text(folder, count=200):
    """Write conversations as JSON in a text, with a column of nulls."""
    found = turns(count, "user", "assistant", "role", "content")
    return write_lines(
        folder / "saved.jsonl",
        [{"conversations": None, "messages": json.dumps(one)} for one in found],
    )


def prompter(folder, count=200):
    """Write conversations with names of roles that Pion reads as others."""
    found = turns(count, "Prompter", "bot", "from", "value")
    return write_lines(folder / "prompter.jsonl", [{"conversations": one} for one in found])


def customers(folder, count=200):
    """Write conversations with names of roles that nobody knows."""
    found = turns(count, "customer", "agent", "role", "content")
    return write_lines(folder / "support.jsonl", [{"messages": one} for one in found])


def bad_line(folder):
    """Write JSON Lines whose lines 3 and 7 are broken."""
    path = jsonl_texts(folder, 40)
    lines = path.read_text().splitlines()
    lines[2], lines[6] = lines[2][:30], "[1, 2]"
    path.write_text("\n".join(lines))
    return path


def cut_gzip(folder):
    """Write half of a .gz."""
    content = gzip.compress(jsonl_texts(folder, 3000).read_bytes())
    path = folder / "cut.jsonl.gz"
    path.write_bytes(content[: len(content) // 2])
    return path


def latin1(folder):
    """Write a text file that is not UTF-8, from its second line on."""
    path = folder / "letters.txt"
    path.write_bytes("Dear all,\nGrüße aus Köln\n".encode("latin-1") * 20)
    return path


GOOD = {
    "folder of text": texts_folder,
    "JSON Lines of text": jsonl_texts,
    "CSV": csv_texts,
    "parquet": parquet_texts,
    "Alpaca": alpaca,
    "ShareGPT": sharegpt,
    "messages": messages,
    "prompter and bot": prompter,
    "prompt and completion": lists,
    "JSON in a text": as_text,
}
BROKEN = {
    "a line that is not JSON": bad_line,
    "a .gz that is cut off": cut_gzip,
    "not UTF-8": latin1,
}
