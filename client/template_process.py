"""Renders one chat template and exits: a process with little memory and time, because templates are strangers' code.

Jinja's sandbox keeps a template from reaching Python's insides, but not from ``{{ 'a' * 2000000000 }}`` or a loop
without end. One JSON object comes on standard input, one goes to standard output:

    {"template", "variables", "memory", "cpu", "most"}
    {"text"} or {"fault": "template" | "messages" | "memory" | "size", "message"}

``memory`` is in bytes, ``cpu`` in seconds, ``most`` in characters of output. Over ``cpu`` the system ends the process.
Run as a file, so that it imports Jinja and nothing of this project. The environment is that of ``transformers`` 5.
"""

from __future__ import annotations

import contextlib
import json
import sys
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

FIRST_LOOK = 64 << 20  # characters of input read at most; the driver sends less
# Python and Jinja load modules at first use, and later no file can be opened: a string, the clock, JSON, lazy imports
# of filters, an error at run time, an error of syntax.
_WARM_UP = (
    "{{ 'a\\n' }}{{ strftime_now('%c') }}{{ [1.5] | tojson(indent=1) }}{{ [1] | pprint }}{{ lipsum(n=1) }}",
    "{{ raise_exception('x') }}",
    "{{ x.y }}",
    "{% if %}",
)


class RefusedError(jinja2.TemplateError):
    """The template itself refuses the messages, through ``raise_exception``."""


class Generation(jinja2.ext.Extension):
    """``{% generation %}``, which marks the assistant's own words for training and changes nothing here."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own declaration

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """The block's body, as if the marks were not there."""
        next(parser.stream)
        return [jinja2.nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True))]


class TemplateNamespace(Namespace):
    """``namespace()`` without underscored names, which lead into Python's insides."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        _check_names(dict(*args[1:], **kwargs))
        Namespace.__init__(*args, **kwargs)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_names((name,))
        super().__setitem__(name, value)


class TemplateDict:
    """``dict()`` without the attributes of the type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)


def environment() -> ImmutableSandboxedEnvironment:
    """What chat templates are written for."""
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    env.filters["tojson"] = _tojson
    env.globals["raise_exception"] = _raise_exception
    env.globals["strftime_now"] = _strftime_now
    env.globals["dict"] = TemplateDict()
    env.globals["namespace"] = TemplateNamespace
    return env


def render(request: dict[str, Any]) -> dict[str, str]:
    """The answer to one request; every fault of the template is an answer too."""
    try:
        text = environment().from_string(request["template"]).render(request["variables"])
        if len(text) > request["most"]:
            return {"fault": "size", "message": f"it writes {len(text)} characters"}
        text.encode("utf-8")
    except RefusedError as error:
        return {"fault": "messages", "message": _line(error)}
    except (MemoryError, OverflowError):
        return {"fault": "memory", "message": ""}
    except Exception as error:  # noqa: BLE001 - a template can raise whatever an expression can; it is reported
        return {"fault": "template", "message": f"{type(error).__name__}: {_line(error)}"}
    return {"text": text}


def main() -> None:
    """One request, one answer."""
    request = json.loads(sys.stdin.buffer.read(FIRST_LOOK))
    for sample in _WARM_UP:
        render({"template": sample, "variables": {}, "most": FIRST_LOOK})
    _limit(request["memory"], request["cpu"])
    sys.stdout.buffer.write(json.dumps(render(request)).encode("ascii"))
    sys.stdout.buffer.flush()


def _limit(memory: int, cpu: int) -> None:
    """Take the limits for good, where the system has them: no way back, no files, no processes."""
    try:
        import resource
    except ImportError:  # Windows: the driver's deadline and its limit on output still hold
        return
    limits = {
        "RLIMIT_AS": memory,
        "RLIMIT_CPU": cpu,
        "RLIMIT_CORE": 0,
        "RLIMIT_FSIZE": 0,
        "RLIMIT_NOFILE": 3,
        "RLIMIT_NPROC": 0,
    }
    for name, value in limits.items():
        with contextlib.suppress(AttributeError, ValueError, OSError):  # not every system has or lowers every one
            resource.setrlimit(getattr(resource, name), (value, value))


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    # Jinja's own escapes HTML, which would change the prompt.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: object) -> NoReturn:
    raise RefusedError(str(message))


def _strftime_now(form: str) -> str:
    return datetime.now().astimezone().strftime(form)


def _check_names(names: Any) -> None:
    for name in names:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a template cannot keep {name!r} in a namespace")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


if __name__ == "__main__":
    main()
