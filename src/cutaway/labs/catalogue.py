"""All labs, by id, in the order a reader meets the questions."""

from __future__ import annotations

import difflib

from cutaway.errors import NotFound
from cutaway.labs.adaptive_softmax import adaptive_softmax
from cutaway.labs.adversarial_text import adversarial_text
from cutaway.labs.analogies import analogies
from cutaway.labs.attention_cost import attention_cost
from cutaway.labs.attention_steps import attention_steps
from cutaway.labs.capsule_routing import capsule_routing
from cutaway.labs.causal_mask import causal_mask
from cutaway.labs.cross_entropy import cross_entropy_lab
from cutaway.labs.depth_width import depth_width
from cutaway.labs.dropout import dropout_lab
from cutaway.labs.dropout_policy import dropout_policy
from cutaway.labs.dynamic_masking import dynamic_masking
from cutaway.labs.edit_sequence import edit_sequence
from cutaway.labs.encoder_vs_decoder import encoder_vs_decoder
from cutaway.labs.experts_counted import experts_counted
from cutaway.labs.factual_edit import factual_edit
from cutaway.labs.feed_forward_role import feed_forward_role
from cutaway.labs.flash_traffic import flash_traffic
from cutaway.labs.generative_vs_discriminative import generative_vs_discriminative
from cutaway.labs.gpt_generations import gpt_generations
from cutaway.labs.gpt_ladder import gpt_ladder
from cutaway.labs.head_views import head_views
from cutaway.labs.induction_heads import induction_heads
from cutaway.labs.init_scale import init_scale
from cutaway.labs.kl import kl
from cutaway.labs.kv_cache import kv_cache
from cutaway.labs.lab import Lab
from cutaway.labs.layer_vs_batch import layer_vs_batch
from cutaway.labs.linear_form import linear_attention
from cutaway.labs.linear_recall import linear_recall
from cutaway.labs.long_range import long_range
from cutaway.labs.mla import mla
from cutaway.labs.model_map import model_map
from cutaway.labs.multi_head import multi_head
from cutaway.labs.ngram_vs_neural import ngram_vs_neural
from cutaway.labs.normalizing import normalizing
from cutaway.labs.one_run import one_run
from cutaway.labs.online_softmax import online_softmax
from cutaway.labs.output_distribution import output_distribution
from cutaway.labs.packing import packing
from cutaway.labs.parallel_over_time import parallel_over_time
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
from cutaway.labs.senses import senses
from cutaway.labs.sequence_to_sequence import sequence_to_sequence
from cutaway.labs.sinusoids import sinusoidal
from cutaway.labs.softmax_choice import softmax_choice
from cutaway.labs.softmax_jacobian import softmax_jacobian
from cutaway.labs.sqrt_d import sqrt_d
from cutaway.labs.text_attribution import text_attribution
from cutaway.labs.three_families import three_families
from cutaway.labs.transformer_init import transformer_init
from cutaway.labs.where_facts_live import where_facts_live
from cutaway.labs.where_parameters import where_parameters
from cutaway.labs.why_kv_not_q import why_kv_not_q
from cutaway.labs.window_and_sinks import window_and_sinks

LABS: dict[str, Lab] = {
    lab.id: lab
    for lab in (
        one_run,
        where_parameters,
        gpt_generations,
        model_map,
        depth_width,
        experts_counted,
        ngram_vs_neural,
        sequence_to_sequence,
        long_range,
        parallel_over_time,
        three_families,
        attention_steps,
        sqrt_d,
        multi_head,
        causal_mask,
        packing,
        softmax_choice,
        attention_cost,
        flash_traffic,
        online_softmax,
        linear_attention,
        linear_recall,
        window_and_sinks,
        head_views,
        induction_heads,
        sinusoidal,
        rotary,
        rope_scaling,
        rope_extrapolation,
        residual_path,
        rms_vs_layer,
        layer_vs_batch,
        pre_vs_post,
        encoder_vs_decoder,
        gpt_ladder,
        dynamic_masking,
        normalizing,
        dropout_lab,
        dropout_policy,
        init_scale,
        transformer_init,
        feed_forward_role,
        where_facts_live,
        edit_sequence,
        factual_edit,
        senses,
        analogies,
        why_kv_not_q,
        mla,
        kv_cache,
        sampling,
        cross_entropy_lab,
        softmax_jacobian,
        kl,
        output_distribution,
        perplexity,
        generative_vs_discriminative,
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
