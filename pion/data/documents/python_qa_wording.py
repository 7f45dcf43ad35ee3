"""The wording of the questions about the Python standard library.

In the templates `{full}` is email.header.Header.append, `{short}` append, `{module}` email.header,
`{kind}` method and `{call}` Header.append(s, charset=None, errors='strict').
"""

import re

SYSTEM = (
    "You are a helpful assistant who knows the Python standard library.",
    "You answer questions about Python.",
    "You are a Python expert. Be brief.",
    "Answer as Python's own documentation would.",
)
SYSTEM_BRIEF = ("Answer in one sentence.", "Be as brief as you can.", "One sentence, please.")

ABOUT_CALLABLE = (
    "What does `{call}` do?",
    "What does {full} do?",
    "Explain `{call}`.",
    "Explain what {full} does.",
    "Describe the {kind} {full}.",
    "What is {full} for?",
    "I found a call of {full} in some code. What does it do?",
    "Can you tell me what {short} in the {module} module does?",
    "Tell me about the {kind} {full}.",
    "What happens when I call `{call}`?",
    "What's the purpose of {full}?",
    "help({full})",
    "What is the {kind} `{call}` good for?",
    "Please explain {full} to me.",
)
ABOUT_CLASS = (
    "What is the class {full}?",
    "What is {full}?",
    "What is {full} used for?",
    "What is a {short} in the {module} module?",
    "Describe the class {full}.",
    "Explain {full}.",
    "I came across the class {full}. What is it?",
    "Tell me about {full}.",
    "help({full})",
)
ABOUT_PROPERTY = (
    "What is {full}?",
    "What does the property {full} hold?",
    "Describe the property {full}.",
    "Tell me about the property {short} in the {module} module.",
)
ABOUT_EXCEPTION = (
    "What does the exception {full} mean?",
    "What is {full}?",
    "My program stopped with {short} from {module}. What is that?",
    "Explain the exception {full}.",
)
ABOUT_MODULE = (
    "What is the {full} module?",
    "What is the module {full} for?",
    "What does `import {full}` give me?",
    "Describe the {full} module.",
    "I see `import {full}` at the top of a file. What is it?",
    "Tell me about the standard library's {full} module.",
    "What can I do with {full}?",
)
ABOUT = {
    "module": ABOUT_MODULE,
    "class": ABOUT_CLASS,
    "property": ABOUT_PROPERTY,
    "exception": ABOUT_EXCEPTION,
}
BRIEF = (
    "In one sentence, what is {full}?",
    "Summarise {full} in a sentence.",
    "Briefly, what is {full} for?",
    "Give me the short version: what is {full}?",
)
DOCSTRING = (
    "Write the docstring of `{call}`.",
    "Write a docstring for this {kind}:\n\ndef {call}:",
    "What does the docstring of {full} say?",
    "Document `{call}` from the {module} module.",
)
WHICH = (
    "Which {kind} in the {module} module does this: {summary}",
    'Which {kind} of {module} is documented as "{summary}"?',
    "Find me the {kind} in {module} with this description: {summary}",
)
RETURNS = (
    "What does {full} return?",
    "What do I get back from `{call}`?",
    "What is the result of `{call}`?",
    "What kind of value does {full} give?",
)
PARAMETERS = (
    "What parameters does {full} take?",
    "What are the arguments of {full}?",
    "Which arguments can I give to {full}?",
)
SIGNATURE = (
    "How do I call {full}?",
    "What is the signature of {full}?",
    "Show me the signature of {full}.",
)
DEFAULT = (
    "What is the default of {parameter} in `{call}`?",
    "If I leave out {parameter} when calling {full}, what is used?",
)
AND_PARAMETERS = ("And what arguments does it take?", "What are its parameters?")
AND_SIGNATURE = ("How do I call it?", "What is its signature?", "How is it called?")
AND_MODULE = ("Where is it defined?", "Which module is it in?", "Where do I find it?")
AND_SUMMARY = ("Shorter, please.", "And in one sentence?", "Can you say that more briefly?")
AND_ABOUT = ("What does it do?", "Explain it to me.", "What is it for?", "Tell me more about it.")
METHODS = (
    "What methods does {full} have?",
    "Name some methods of the class {full}.",
    "What can I call on a {full} object?",
)

INFINITIVES = frozenset(
    re.findall(
        r"\w+",
        """
        add adjust append apply attach build calculate call cancel change check clear close combine
        compare compile compute concatenate configure connect construct convert copy count create
        decode delete determine disable display download draw enable encode ensure escape evaluate
        execute expand extract fetch fill filter find flush format generate get group handle import
        initialize insert invoke iterate join launch limit list load lock look make map mark match
        merge modify move multiply normalize open override parse perform play prepare print process
        put quote raise read receive record redirect register release reload remove rename replace
        report reset resize restore retrieve reverse rotate round run save scan search seek select
        send serialize set shuffle sort split start stop store subtract switch test transform
        translate truncate try unregister update validate verify wait walk wrap write
        """,
    )
)
