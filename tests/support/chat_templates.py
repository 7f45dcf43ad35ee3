"""Small chat templates with the traits of published ones, in our own words.

They lie in tests/fixtures/chat_templates.
"""

from tests.paths import TESTS


def template_of(name: str) -> str:
    """Return the template of a file."""
    return (TESTS / "fixtures/chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


# SmolLM2: a default system prompt, roles as they are.
CHATML = template_of("chatml")
# Qwen 2.5: tools in the system message, calls in answers, results as a user's turn.
QWEN25 = template_of("qwen25")
# Qwen 3: thoughts, which are removed before the last question.
QWEN3 = template_of("qwen3")
# Llama 3.2: a first token, headers, and the date in the system message.
LLAMA3 = template_of("llama3")
# Mistral: turns must alternate, and only answers have an end. No first token.
MISTRAL = template_of("mistral")
# Phi-3: a separator after the last turn, unless an answer follows.
PHI3 = template_of("phi3")
# gpt-oss: an answer ends with another token once a turn follows, and names its channel.
HARMONY = template_of("harmony")
# DeepSeek: the marks of turns are added tokens, but not special. Calls need null and JSON.
DEEPSEEK = template_of("deepseek")

# Gemma: the system message begins the user's, and "model" answers.
GEMMA = template_of("gemma")

# By name, the kind of tokenizer that the model has, and its template.
TEMPLATES = {
    "SmolLM2": ("smollm2", CHATML),
    "Qwen 2.5": ("qwen", QWEN25),
    "Qwen 3": ("qwen", QWEN3),
    "Llama 3.2": ("llama3", LLAMA3),
    "Mistral": ("llama3", MISTRAL),
    "Phi 3": ("qwen", PHI3),
    "gpt-oss": ("harmony", HARMONY),
    "DeepSeek": ("deepseek", DEEPSEEK),
    "Gemma": ("gemma", GEMMA),
    "Mistral 0.1": ("llama2", MISTRAL),
    "Mistral 0.3": ("mistral", MISTRAL),
}
