"""Mistakes between the engine's thread and those who listen to it."""

# ruff: noqa: E501  (one mutant a row)

from __future__ import annotations

from kit.mutation import edit, mutants

SERVICE = "cutaway.engine.service:"
ENGINE = "cutaway.engine.engine:"

# fmt: off
MUTANTS = mutants(
    ("service: the first of a request hears for all", "service told", edit(SERVICE + "Service._tell", "(number, event)", "(0, event)")),
    ("service: a wake-up for each token", "service told", edit(SERVICE + "Service._tell", "mail.setdefault(loop, []).append((inbox, (number, event)))", "loop.call_soon_threadsafe(_deliver, [(inbox, (number, event))])")),
    ("failing: all of a step for one", "service failing", edit(ENGINE + "Engine._compute", "len(spans) == 1 or has_states", "spans or has_states")),
    ("failing: only the first is tried again", "service failing", edit(ENGINE + "Engine._compute", "for span in spans for each in self._compute", "for span in spans[:1] for each in self._compute")),
    ("failing: one draw for all", "service failing", edit(ENGINE + "Engine._compute", "brought = self._failed(span, error)", "brought = [each for other in spans for each in self._failed(other, error)]")),
    ("failing: it keeps its pages", "service failing", edit("cutaway.engine.scheduler:Scheduler.fail", "self._leave(sequence)", "self.running.pop(sequence)")),
    ("failing: its memory is kept", "service failing", edit(ENGINE + "Engine._failed", "self._forget(span.sequence)", "pass")),
    ("failing: it is tried for ever", "service failing", edit("cutaway.engine.scheduler:Scheduler.fail", "self._leave(sequence)", "sequence.finish = None")),
    ("ids: one beyond the last", "service refuses", edit(ENGINE + "Engine._known", "token < vocab", "token <= vocab")),
    ("ids: those that end a reply are not looked at", "service refuses", edit(ENGINE + "Engine.prepare", "self._known(params.stop_token_ids, 'stop_token_ids')", "pass")),
    ("ids: biases are not looked at", "service refuses", edit(ENGINE + "Engine.prepare", "self._known(params.logit_bias, 'logit_bias')", "pass")),
    ("wait: those who run, too", "service waits", edit(SERVICE + "Service.wait", "[*scheduler.waiting] or", "[*scheduler.waiting] +")),
    ("wait: time between steps, too", "service waits", edit(SERVICE + "Service.wait", "sum((step.seconds[1] for step in steps))", "(steps[-1].ended - steps[0].ended if steps else 0)")),
    ("wait: the model's time alone", "service waits", edit(SERVICE + "Service.wait", "step.seconds[1]", "step.seconds[0]")),
    ("wait: as long as it takes", "service waits", edit(SERVICE + "Service.wait", "min(max(LEAST_WAIT, seconds), MOST_WAIT)", "max(LEAST_WAIT, seconds)")),
    ("wait: no time at all", "service waits", edit(SERVICE + "Service.wait", "max(LEAST_WAIT, seconds)", "seconds")),
    ("best of: long replies are at a loss", "service best", edit("cutaway.serve.generation:mean_logprob", " / len(events)", "")),
    ("best of: the least probable", "service best", edit("cutaway.serve.generation:best_of", "-mean_logprob(r[1])", "mean_logprob(r[1])")),
    ("best of: of all prompts together", "service best", edit("cutaway.serve.generation:best_of", "range(0, len(numbered), of)", "range(0, len(numbered), 2 * of)")),
    ("best of: by their order", "service best", edit("cutaway.serve.generation:best_of", "sorted(group, key=lambda r: -mean_logprob(r[1]))[:n]", "group[:n]")),
    ("prompt: what was thought of the token before", "prompts llama", edit("cutaway.engine.sequence:Sequence.look", "len(self.seen) + 1", "len(self.seen)")),
    ("prompt: rows of the span's beginning, wherever it is", "prompts llama", edit(ENGINE + "_looked", "range(end - (start + count) + first, end - (start + count) + last)", "range(end - max(0, last - first), end)")),
    ("prompt: what is found in pages is not told", "prompts llama", edit(ENGINE + "Engine.prepare", "os.urandom(16) if looks else salt", "salt")),
    ("prompt: only of the first piece", "prompts llama", edit(ENGINE + "_looked", "min(start + count, sequence.unseen.stop)", "min(start + count, sequence.unseen.stop) * (start == 0)")),
    ("prompt: scores for logarithms", "prompts llama", edit("cutaway.engine.sampler:given", "float(logits.values_V[i]) - logits.total", "float(logits.values_V[i])")),
    ("prompt: all but its last token", "prompts llama", edit("cutaway.engine.sequence:Sequence.unseen.fget", "len(self.prompt) - 1", "len(self.prompt) - 2")),
    ("prompt: as many rows as there are", "prompts few", edit(ENGINE + "Engine._most", "LOOKED //", "10 ** 9 //")),
    ("prompt: of another request", "prompts echoed", edit("cutaway.serve.completions:completion_format", "index * body.choices // body.n", "index")),
    ("prompt: a reply's text begins at 0", "prompts echoed", edit("cutaway.serve.completions:completion_format", "len(echo) + event.offset", "event.offset")),
    ("prompt: nothing for its first token", "prompts echoed", edit("cutaway.serve.logprobs:of_prompt", "[Choice(sequence.prompt[0], math.nan), *sequence.seen]", "sequence.seen")),
    ("prompt: where tokens end, not begin", "prompts echoed", edit("cutaway.serve.logprobs:of_prompt", "told.append((choice, min(at, len(text))))\n        at += len(stream.push(choice.token))", "at += len(stream.push(choice.token))\n        told.append((choice, min(at, len(text))))")),
)
# fmt: on
