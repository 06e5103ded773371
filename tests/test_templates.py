"""Chat templates are programs that strangers wrote: those that hang, swell, break out or change what is said end in
an error that names them."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from towpath.data import template_renderer, template_worker
from towpath.data.chat import CHATML, Chat
from towpath.data.corpus import Corpus
from towpath.errors import ModelError
from towpath.models import base
from towpath.run import model_checks

SPOKEN = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
OPEN = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
LOOP = "{% for a in range(9999) %}" * 4 + "{% set x = a %}" + "{% endfor %}" * 4
DOUBLING = "{% set n = namespace(s='x') %}{% for i in range(40) %}{% set n.s = n.s + n.s %}{% endfor %}{{ n.s }}"
HOSTILE = {
    "nested loops": (LOOP, "it has not ended within 2 s"),
    "a power of powers": ("{{ 9 ** (9 ** 9) }}", "it has not ended within 2 s|more than 512 MiB"),
    "a string that doubles": (DOUBLING, "it takes more than 512 MiB"),
    "a string of a constant": ("{{ 'x' * (10 ** 11) }}", "it takes more than 512 MiB"),
    "a long text of a short one": (
        "{{ messages[0].content * 10 ** 7 }}",
        "it writes [0-9,]+ characters for messages of",
    ),
    "a macro that calls itself": (
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "it calls itself without end|RecursionError",
    ),
    "a way out of the sandbox": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
    "a format that is a way out": ("{{ '{0.__class__.__init__.__globals__}'.format(messages) }}", "SecurityError"),
    "a change of what it is given": ("{{ messages.append(1) }}", "SecurityError"),
    "another file": ("{% include '/etc/passwd' %}", "no loader|TypeError"),
    "a huge range": ("{% for i in range(10 ** 9) %}{% endfor %}", "OverflowError"),
    "no Jinja": ("{% for %}", "TemplateSyntaxError"),
    "an error of its own": ("line\n{{ raise_exception('not today') }}", r"\.jinja, line 2\): TemplateError: not today"),
    "a division": ("{{ 1 // 0 }}", "ZeroDivisionError"),
    "a message that is dropped": ("<|im_start|>user\n" + OPEN, "drops the user's message"),
    "a message twice": (SPOKEN + SPOKEN + OPEN, "writes the user's message twice"),
    "an answer twice": (
        SPOKEN + "{% if messages[1] %}{{ messages[1].content }}{% endif %}" + OPEN,
        "writes the answer twice",
    ),
    "a long message twice": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% if m.content | length > 999 %}{{ "
        "m.content }}{% endif %}<|im_end|>\n"
        "{% endfor %}" + OPEN,
        r"the prompt 'word0 .*by apply_chat_template",
    ),
    "a long message that hangs it": (
        SPOKEN + "{% if messages[0].content | length > 999 %}" + LOOP + "{% endif %}" + OPEN,
        "it has not ended within 2 s",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_template_ends_in_an_error_that_names_it(tiny_folder: str, tmp_path: Path, kind: str) -> None:
    template, words = HOSTILE[kind]
    path = tmp_path / "chat.jinja"
    path.write_text(template)
    tokenizer = base.load_tokenizer(tiny_folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.monotonic()
    with pytest.raises(ModelError, match=words) as report:
        Chat(tokenizer, str(path))
    assert report.value.rule and report.value.fix
    if "the chat template fails" in report.value.value:
        assert str(path) in report.value.value
    assert time.monotonic() - start < 30, "by the clock, on a machine with much else to do"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, (
        "kilobytes; a doubling string took 4.3 GB"
    )
    assert Chat(tokenizer, "chatml").prompt("x"), "the next template is rendered again"


def test_the_check_does_not_hang(tiny_folder: str, tmp_path: Path) -> None:
    """The command a user types, on a model whose own template hangs."""
    model = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    run = tmp_path / "run"
    (model / "chat_template.jinja").write_text(LOOP)
    command = [sys.executable, "-m", "towpath"]
    subprocess.run([*command, "new", run, "--recipe", "tiny"], check=True, capture_output=True)
    done = subprocess.run(
        [*command, "check", run, "--set", f"model.source={model}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (
        done.returncode == 1 and f"{model}: chat_template" in done.stderr and "has not ended within 2 s" in done.stderr
    ), done.stderr


def test_an_answer_that_is_dropped_is_found(tiny_folder: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jinja"
    path.write_text(
        "{% for m in messages if m.role == 'user' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor "
        "%}<|im_start|>assistant\n"
    )
    findings = model_checks.check_template(Chat(base.load_tokenizer(tiny_folder), str(path)), Corpus(()))
    assert "the template drops the answer" in [f.evidence for f in findings]


def test_what_the_worker_renders_is_what_transformers_renders(tiny_folder: str) -> None:
    tokenizer = base.load_tokenizer(tiny_folder)
    templates = [
        CHATML,
        SPOKEN + OPEN,
        "{{ bos_token }}" + SPOKEN + OPEN,
        "{{ messages | tojson }}",
        "{%- for m in messages -%}\n  {%- if loop.first %}[{{ m['content'] }}]{% endif %}\n{% break %}{%- endfor %}\n",
    ]
    for template in templates:
        for text in ("How?", "Grüße 東京 🙂\n\n{{ 7 * 7 }} {% raw %}", "x" * 3000):
            messages = [{"role": "user", "content": text}]
            ours = template_renderer.get_renderer().render(
                template, "here", messages, True, {"bos_token": tokenizer.bos_token}
            )
            theirs = tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=False, add_generation_prompt=True
            )
            assert ours == theirs


def test_a_worker_that_was_killed_is_replaced_and_many_renderings_are_quick(chat) -> None:
    assert chat.render("x") == chat.render("x")
    worker = template_renderer.get_renderer()._process
    assert worker is not None
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    assert chat.render("x").count("x") == 1
    start = time.process_time()
    for number in range(1000):
        chat.render(f"message {number}", "answer")
    assert time.process_time() - start < 2
    assert template_renderer.get_renderer()._process is not worker


def test_a_forked_process_has_a_worker_of_its_own(chat) -> None:
    code = (
        "import os\nfrom towpath.data.template_renderer import get_renderer\n"
        "ask = lambda text: get_renderer().render('{{ messages[0].content }}', 'here', [{'role': 'user', 'content': "
        "text}], True, {})\n"
        "assert ask('one') == 'one'\npid = os.fork()\n"
        "if not pid:\n    assert ask('two') == 'two'\n    raise SystemExit(0)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0\nassert get_renderer()._process.poll() is "
        "None\nassert ask('three') == 'three'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_worker_loads_no_torch_and_ends_with_its_input() -> None:
    script = f"runpy.run_path({str(template_worker.__file__)!r}, run_name='__main__')"
    code = f"import runpy, sys; sys.stdin = open('/dev/null'); {script}; assert not sys.modules['torch']"
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, timeout=60).returncode == 0
