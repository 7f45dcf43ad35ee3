"""Small chat templates with the traits of published ones, in our own words."""

# SmolLM2: a default system prompt, roles as they are.
CHATML = (
    "{%- if not messages or messages[0]['role'] != 'system' -%}"
    "{{- '<|im_start|>system\nYou are a small model.<|im_end|>\n' -}}"
    "{%- endif -%}"
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' ~ message['role'] ~ '\n' ~ message['content'] ~ '<|im_end|>\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)

# Qwen 2.5: tools in the system message, calls in answers, results as a user's turn.
_TOOLS = """
{%- macro turn(role, text) -%}
{{- '<|im_start|>' ~ role ~ '\n' ~ text ~ '<|im_end|>\n' -}}
{%- endmacro -%}
{%- set told = namespace(text='You are a helper.', rest=messages) -%}
{%- if messages and messages[0].role == 'system' -%}
{%- set told.text = messages[0].content -%}
{%- set told.rest = messages[1:] -%}
{%- endif -%}
{%- if tools -%}
{%- set told.text = told.text ~ '\n\n# Tools\n' ~ (tools | map('tojson') | join('\n')) -%}
{%- endif -%}
{{- turn('system', told.text) -}}
"""
QWEN25 = (
    _TOOLS
    + """
{%- for message in told.rest -%}
{%- if message.role == 'tool' -%}
{{- turn('user', '<tool_response>' ~ message.content ~ '</tool_response>') -}}
{%- elif message.tool_calls -%}
{{- '<|im_start|>assistant' -}}
{%- if message.content -%}{{- '\n' ~ message.content -}}{%- endif -%}
{%- for call in message.tool_calls -%}
{{- '\n<tool_call>\n' ~ (call.function | tojson) ~ '\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\n' -}}
{%- else -%}
{{- turn(message.role, message.content) -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}
"""
)

# Qwen 3: thoughts, which are removed before the last question.
QWEN3 = """
{%- set asked = namespace(last=-1) -%}
{%- for message in messages -%}
{%- if message.role == 'user' -%}{%- set asked.last = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
{%- set text = message.content or '' -%}
{%- if message.role == 'assistant' -%}
{%- set thought = '' -%}
{%- if '</think>' in text -%}
{%- set thought = text.split('</think>')[0].split('<think>')[-1].strip('\n') -%}
{%- set text = text.split('</think>')[-1].lstrip('\n') -%}
{%- endif -%}
{%- if loop.index0 > asked.last -%}
{%- set text = '<think>\n' ~ thought ~ '\n</think>\n\n' ~ text -%}
{%- endif -%}
{%- endif -%}
{{- '<|im_start|>' ~ message.role ~ '\n' ~ text ~ '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\n' -}}
{%- if enable_thinking is defined and not enable_thinking -%}
{{- '<think>\n\n</think>\n\n' -}}
{%- endif -%}
{%- endif -%}
"""

# Llama 3.2: a first token, headers, and the date in the system message.
LLAMA3 = """
{%- set date = strftime_now('%d %b %Y') if strftime_now is defined else '26 Jul 2024' -%}
{%- macro head(role) -%}
{{- '<|start_header_id|>' ~ role ~ '<|end_header_id|>\n\n' -}}
{%- endmacro -%}
{%- set told = namespace(text='', rest=messages) -%}
{%- if messages and messages[0].role == 'system' -%}
{%- set told.text = messages[0].content -%}
{%- set told.rest = messages[1:] -%}
{%- endif -%}
{{- bos_token ~ head('system') ~ 'Today: ' ~ date ~ '\n\n' ~ told.text ~ '<|eot_id|>' -}}
{%- for message in told.rest -%}
{{- head(message.role) ~ message.content ~ '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- head('assistant') -}}{%- endif -%}
"""

# Mistral: turns must alternate, and only answers have an end. No first token.
MISTRAL = """
{%- for message in messages -%}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) -%}
{{- raise_exception('user and assistant must take turns') -}}
{%- endif -%}
{%- if message.role == 'user' -%}
{{- ' Question: ' ~ message.content ~ ' Answer:' -}}
{%- else -%}
{{- ' ' ~ message.content ~ eos_token -}}
{%- endif -%}
{%- endfor -%}
"""

# Phi-3: a separator after the last turn, unless an answer follows.
PHI3 = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' ~ message.role ~ '\n' ~ message.content ~ '<|im_end|>\n' -}}"
    "{%- endfor -%}"
    "{{- '<|im_start|>assistant\n' if add_generation_prompt else '<|endoftext|>' -}}"
)

# gpt-oss: an answer ends with another token once a turn follows, and names its channel.
HARMONY = """
{%- for m in messages -%}
{{- '<|start|>' ~ m.role -}}
{%- if m.role == 'assistant' -%}{{- '<|channel|>final' -}}{%- endif -%}
{%- set returns = loop.last and m.role == 'assistant' -%}
{{- '<|message|>' ~ m.content ~ ('<|return|>' if returns else '<|end|>') -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start|>assistant' -}}{%- endif -%}
"""

# DeepSeek: the marks of turns are added tokens, but not special. Calls need null and JSON.
DEEPSEEK = """
{{- bos_token -}}
{%- for m in messages -%}
{%- if m.role == 'user' -%}{{- '<｜User｜>' ~ m.content -}}{%- endif -%}
{%- if m.role == 'tool' -%}{{- '<｜output｜>' ~ m.content -}}{%- endif -%}
{%- if m.role == 'assistant' -%}
{{- '<｜Assistant｜>' -}}
{%- if m.content is none -%}
{{- '<｜call｜>' + m.tool_calls[0].function.name + '\n' + m.tool_calls[0].function.arguments -}}
{%- else -%}{{- m.content -}}{%- endif -%}
{{- eos_token -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<｜Assistant｜>' -}}{%- endif -%}
"""

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
}
