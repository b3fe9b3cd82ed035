"""Chat templates: what ``transformers`` writes, and strangers' templates that do harm."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

import client.template
import client.template_process
from client.template import MAX_MESSAGES, MAX_TEMPLATE, ChatTemplate, RenderLimits
from client.testing import PUBLISHER
from client.tokenizer import Tokenizer
from swarm.errors import RemoteError, UsageError
from tests.client.tokenizers_here import DEMO, demo_objects

CHAT: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief. <é> & 😀"},
    {"role": "user", "content": "What is 1 < 2?"},
    {"role": "assistant", "content": "True.", "tool_calls": [{"name": "f", "arguments": {"x": "ü", "a": [1.5, None]}}]},
    {"role": "user", "content": "Why?"},
]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
TEMPLATES = [
    Tokenizer.load(demo_objects()).chat_template_sources["default"],
    # Blocks on lines of their own, loop controls, namespaces, JSON, white space control, the marks for training.
    """{%- set ns = namespace(seen=false, d=dict(a=1)) -%}
{% if tools %}
    {{- tools | tojson(indent=2) }}
{% endif %}
{% for message in messages %}
    {% if message.role == 'system' %}
        {% set ns.seen = true %}
        {% continue %}
    {% endif %}
  {{ loop.index0 }}:{{ message['content'] | trim }}
    {% if message.tool_calls is defined %}{{ message.tool_calls | tojson }}{% endif %}
    {% if message.role == 'assistant' %}{% generation %}{{ eos_token }}{% endgeneration %}{% endif %}
{% endfor %}
{% if add_generation_prompt %}{{ ns.seen }}{{ ns.d.a }}{{ strftime_now('%%') }}{{ documents is none }}>{% endif %}
""",
]


def _template(source: str, **limits: Any) -> ChatTemplate:
    return ChatTemplate(
        source=source,
        variables={"bos_token": "<|begin|>", "eos_token": "<|end|>", "pad_token": "<|pad|>"},
        publisher=PUBLISHER.peer_id,
        limits=RenderLimits(**limits),
    )


@pytest.mark.parametrize("source", TEMPLATES, ids=["demo", "everything"])
async def test_the_prompt_is_the_one_of_transformers(source: str) -> None:
    from transformers import PreTrainedTokenizerFast

    reference = PreTrainedTokenizerFast.from_pretrained(DEMO)
    for tools, start in ((None, True), (TOOLS, False)):
        expected = reference.apply_chat_template(
            CHAT, tools=tools, chat_template=source, add_generation_prompt=start, tokenize=False
        )
        assert await _template(source).render(CHAT, tools=tools, add_generation_prompt=start) == expected


HARM = {
    "memory": ("{{ 'a' * 2000000000 }}", "memory"),
    "memory-bit-by-bit": ("{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(60) %}"
                          "{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}", "memory|processor time"),
    "loop": ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "processor time"),
    "output": ("{{ 'a' * 9000000 }}", "more than a prompt may have"),
    "syntax": ("{% if %}", "does not work"),
    "depth": ("{{ " + "(" * 5000 + ")" * 5000 + " }}", "template"),
    "class": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
    "globals": ("{{ lipsum.__globals__['os'].popen('id').read() }}", "SecurityError"),
    "attribute": ("{{ (''|attr('__class__')).mro() }}", "SecurityError"),
    "mutation": ("{{ messages.append(1) }}", "SecurityError"),
    "import": ("{% include '/etc/passwd' %}", "does not work"),
    "half-a-character": ("{{ '\\ud800' }}", "does not work"),
}  # fmt: skip

PROBE = """
import importlib.util, json, os, socket, sys
spec = importlib.util.spec_from_file_location("template_process", {path!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
sys.stdin.buffer.read()
module._limit(1 << 28, 5)
found = dict(environ=list(os.environ))
for name, attempt in dict(open=lambda: open("/etc/passwd"), socket=socket.socket).items():
    try:
        attempt()
    except OSError as error:
        found[name] = error.strerror
sys.stdout.write(json.dumps(dict(text=json.dumps(found))))
"""


@pytest.mark.parametrize("name", HARM)
async def test_a_harmful_template_is_one_error_that_names_its_publisher(name: str) -> None:
    source, expected = HARM[name]
    with pytest.raises(RemoteError, match=expected) as caught:
        await _template(source, cpu=1).render(CHAT)
    assert caught.value.peer_id == PUBLISHER.peer_id
    assert str(caught.value).isprintable()


async def test_what_the_template_refuses_is_the_callers_to_change() -> None:
    with pytest.raises(UsageError, match=r"roles must alternate . x"):
        await _template("{{ raise_exception('roles must alternate \\n\\x1b x') }}").render(CHAT)


async def test_code_that_escaped_would_find_nothing_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = tmp_path / "probe.py"
    probe.write_text(PROBE.format(path=client.template_process.__file__))
    monkeypatch.setenv("SWARM_SECRET", "hunter2")
    monkeypatch.setattr(client.template, "_PROCESS", probe)
    found = json.loads(await _template("x").render(CHAT))
    assert "SWARM_SECRET" not in found["environ"]
    assert found["open"] == found["socket"] == "Too many open files"


async def test_a_cancelled_rendering_ends_its_process() -> None:
    template = _template(HARM["loop"][0], cpu=60)
    with trio.move_on_after(0.3) as scope:
        await template.render(CHAT)
    assert scope.cancelled_caught  # trio.run_process returns only when the process is gone


async def test_a_slow_rendering_is_an_error() -> None:
    with pytest.raises(RemoteError, match=r"more than 0\.3 s"):
        await _template(HARM["loop"][0], cpu=60, seconds=0.3).render(CHAT)


def test_a_template_over_the_limit_is_refused_before_anything_runs() -> None:
    with pytest.raises(RemoteError, match=str(MAX_TEMPLATE)):
        _template("x" * (MAX_TEMPLATE + 1))


@pytest.mark.parametrize(
    "messages",
    [[], ["hello"], [{"role": "user", "content": object()}], [{"content": float("nan")}], [{"c": "x" * MAX_MESSAGES}]],
    ids=["none", "text", "object", "nan", "too-long"],
)
async def test_messages_that_are_no_chat_are_refused(messages: list[Any]) -> None:
    with pytest.raises(UsageError):
        await _template("x").render(messages)


def test_the_process_answers_one_request_with_one_line_of_json() -> None:
    request = {"template": "{{ a }}", "variables": {"a": "é"}, "memory": 1 << 29, "cpu": 5, "most": 10}
    command = [sys.executable, "-m", "client.template_process"]
    done = subprocess.run(command, input=json.dumps(request).encode(), capture_output=True, check=True)
    assert json.loads(done.stdout) == {"text": "é"}
