"""What every command imports, compiles or loads before its own work: done once, before the fork (tests/command.py)."""

import gc

import torch  # noqa: F401
import transformers.models.llama.modeling_llama  # noqa: F401
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401

import towpath.cli.app
import towpath.run.pipeline
import towpath.run.preflight
import towpath.runtime.local
import towpath.stages.baseline
import towpath.stages.evaluate
import towpath.stages.label
import towpath.stages.policy
import towpath.stages.reward
import towpath.stages.sample
import towpath.stages.sft
import towpath.view.report.report
import towpath.web.server  # noqa: F401
from towpath.view import html

html._ENVIRONMENT.get_template(html.BASE)
# a collection in a fork would copy the pages of all these objects
gc.collect()
gc.freeze()
