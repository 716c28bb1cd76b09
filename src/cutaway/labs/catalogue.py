"""All labs, by id, in the order a reader meets the questions."""

from __future__ import annotations

import difflib

from cutaway.errors import NotFound
from cutaway.labs.adaptive_softmax import adaptive_softmax
from cutaway.labs.adversarial_text import adversarial_text
from cutaway.labs.attention_steps import attention_steps
from cutaway.labs.capsule_routing import capsule_routing
from cutaway.labs.cross_entropy import cross_entropy_lab
from cutaway.labs.dropout import dropout_lab
from cutaway.labs.dropout_policy import dropout_policy
from cutaway.labs.init_scale import init_scale
from cutaway.labs.kl import kl
from cutaway.labs.kv_cache import kv_cache
from cutaway.labs.lab import Lab
from cutaway.labs.layer_vs_batch import layer_vs_batch
from cutaway.labs.normalizing import normalizing
from cutaway.labs.output_distribution import output_distribution
from cutaway.labs.pca import pca
from cutaway.labs.perplexity import perplexity
from cutaway.labs.pre_vs_post import pre_vs_post
from cutaway.labs.relu_gradient import relu_gradient
from cutaway.labs.residual_path import residual_path
from cutaway.labs.rms_vs_layer import rms_vs_layer
from cutaway.labs.rope_extrapolation import rope_extrapolation
from cutaway.labs.rope_scaling import rope_scaling
from cutaway.labs.rotary import rotary
from cutaway.labs.sampling import sampling
from cutaway.labs.sinusoids import sinusoidal
from cutaway.labs.softmax_jacobian import softmax_jacobian
from cutaway.labs.sqrt_d import sqrt_d
from cutaway.labs.text_attribution import text_attribution
from cutaway.labs.transformer_init import transformer_init
from cutaway.labs.where_parameters import where_parameters
from cutaway.labs.why_kv_not_q import why_kv_not_q

LABS: dict[str, Lab] = {
    lab.id: lab
    for lab in (
        where_parameters,
        attention_steps,
        sqrt_d,
        sinusoidal,
        rotary,
        rope_scaling,
        rope_extrapolation,
        residual_path,
        rms_vs_layer,
        layer_vs_batch,
        pre_vs_post,
        normalizing,
        dropout_lab,
        dropout_policy,
        init_scale,
        transformer_init,
        why_kv_not_q,
        kv_cache,
        sampling,
        cross_entropy_lab,
        softmax_jacobian,
        kl,
        output_distribution,
        perplexity,
        relu_gradient,
        pca,
        text_attribution,
        adversarial_text,
        adaptive_softmax,
        capsule_routing,
    )
}


def find(id: str) -> Lab:
    """Errors: no such lab."""
    if id not in LABS:
        close = difflib.get_close_matches(id, LABS, 1)
        raise NotFound(f"no lab {id!r}", hint=f"did you mean {close[0]}?" if close else f"there are {', '.join(LABS)}")
    return LABS[id]
