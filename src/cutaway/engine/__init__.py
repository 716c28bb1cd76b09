"""Generation: sequences go in, tokens come out.

There is no prefill phase and no decode phase. A `Sequence` has tokens, of which `computed` are in its cache;
a step computes a span of what is missing for some sequences at once and draws a token wherever a span reached
the end.
"""
