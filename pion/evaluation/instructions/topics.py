"""The English words that the built-in instructions are made of."""

from __future__ import annotations

_TOPICS = (
    "rain snow wind fire water ice sand gold glass paper",
    "bread cheese milk honey salt sugar tea coffee rice apples",
    "dogs cats horses birds bees fish cows mice frogs bears",
    "trees flowers grass forests rivers lakes mountains islands deserts caves",
    "trains ships bridges roads wheels clocks books letters maps doors",
    "music dancing cooking painting reading sleep friends teachers farmers doctors",
)
# Each fits after "Write about": nouns without an article.
TOPICS = tuple(word for line in _TOPICS for word in line.split())

# Words that plain prose hardly does without.
COMMON = ["the", "and", "a", "of", "to", "in", "is", "it", "are", "that"]

STARTS = (
    "In my opinion",
    "To begin with",
    "Long ago",
    "Good question",
    "Many people know",
    "Here is what I know",
    "First of all",
    "As you can see",
    "Let me explain",
    "Most of the time",
)
ENDS = (
    "That is all I know",
    "Now you know",
    "Thank you for asking",
    "This is the end",
    "I hope this helps",
    "What do you think",
    "It is that simple",
    "Ask me again",
    "And so it goes on",
    "Have a nice day",
)

KEYS = ["name", "color", "size", "age", "place", "use", "kind", "price", "shape", "smell"]

OPTIONS = (
    "red green blue",
    "yes no maybe",
    "north south east west",
    "small medium large",
    "agree disagree",
    "morning noon evening",
    "hot warm cold",
    "first second third",
    "animal plant thing",
    "old new",
    "fast slow",
    "spring summer autumn winter",
    "never sometimes always",
    "near far",
    "soft hard",
    "heavy light",
    "circle square triangle",
    "good bad",
    "open closed",
    "one two three four",
)

# What a text to repeat is made of.
WHO = ("My sister", "The baker", "An old man", "Our teacher", "The young farmer")
DID = ("bought", "found", "carried", "lost", "painted", "described")
WHEN = ("on Monday", "after lunch", "last winter", "before the storm", "at noon")
