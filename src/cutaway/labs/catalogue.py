"""All labs, by id, in the order a reader meets the questions."""

from __future__ import annotations

import difflib

from cutaway.errors import NotFound
from cutaway.labs.arch.adaptive_softmax import adaptive_softmax
from cutaway.labs.arch.capsule_routing import capsule_routing
from cutaway.labs.arch.context_window import context_window
from cutaway.labs.arch.denoising import denoising
from cutaway.labs.arch.depth_width import depth_width
from cutaway.labs.arch.dynamic_masking import dynamic_masking
from cutaway.labs.arch.encoder_vs_decoder import encoder_vs_decoder
from cutaway.labs.arch.gpt_generations import gpt_generations
from cutaway.labs.arch.gpt_ladder import gpt_ladder
from cutaway.labs.arch.long_range import long_range
from cutaway.labs.arch.model_map import model_map
from cutaway.labs.arch.one_run import one_run
from cutaway.labs.arch.parallel_over_time import parallel_over_time
from cutaway.labs.arch.sequence_to_sequence import sequence_to_sequence
from cutaway.labs.arch.three_families import three_families
from cutaway.labs.arch.where_parameters import where_parameters
from cutaway.labs.attention.attention_cost import attention_cost
from cutaway.labs.attention.attention_steps import attention_steps
from cutaway.labs.attention.causal_mask import causal_mask
from cutaway.labs.attention.flash_traffic import flash_traffic
from cutaway.labs.attention.linear_form import linear_attention
from cutaway.labs.attention.linear_recall import linear_recall
from cutaway.labs.attention.mla import mla
from cutaway.labs.attention.multi_head import multi_head
from cutaway.labs.attention.online_softmax import online_softmax
from cutaway.labs.attention.packing import packing
from cutaway.labs.attention.shared_kv import shared_kv
from cutaway.labs.attention.softmax_choice import softmax_choice
from cutaway.labs.attention.sqrt_d import sqrt_d
from cutaway.labs.attention.why_kv_not_q import why_kv_not_q
from cutaway.labs.attention.window_and_sinks import window_and_sinks
from cutaway.labs.compress.block_scaling import block_scaling
from cutaway.labs.compress.number_formats import number_formats
from cutaway.labs.compress.quantization_basics import quantization_basics
from cutaway.labs.compress.weights_versus_activations import weights_versus_activations
from cutaway.labs.decode.best_of_n import best_of_n
from cutaway.labs.decode.fixed_labels import fixed_labels
from cutaway.labs.decode.greedy_and_beam import greedy_and_beam
from cutaway.labs.decode.multi_token_prediction import multi_token_prediction
from cutaway.labs.decode.repetition import repetition
from cutaway.labs.decode.restricted_vocabulary import restricted_vocabulary
from cutaway.labs.decode.settings_by_task import settings_by_task
from cutaway.labs.decode.speculative_exactness import speculative_exactness
from cutaway.labs.decode.speculative_speed import speculative_speed
from cutaway.labs.decode.stopping import stopping
from cutaway.labs.decode.valid_json import valid_json
from cutaway.labs.engine.batch_drift import batch_drift
from cutaway.labs.engine.bottleneck_diagnosis import bottleneck_diagnosis
from cutaway.labs.engine.continuous_batching import continuous_batching
from cutaway.labs.engine.efficiency_economics import efficiency_economics
from cutaway.labs.engine.hardware_choice import hardware_choice
from cutaway.labs.engine.kv_cache import kv_cache
from cutaway.labs.engine.kv_quantization import kv_quantization
from cutaway.labs.engine.latency_metrics import latency_metrics
from cutaway.labs.engine.low_bit_speed import low_bit_speed
from cutaway.labs.engine.optimization_ladder import optimization_ladder
from cutaway.labs.engine.paged_cache import paged_cache
from cutaway.labs.engine.prefix_reuse import prefix_reuse
from cutaway.labs.engine.reasoning_token_price import reasoning_token_price
from cutaway.labs.engine.roofline_knee import roofline
from cutaway.labs.engine.sampling import sampling
from cutaway.labs.engine.targets_by_application import targets_by_application
from cutaway.labs.inside.analogies import analogies
from cutaway.labs.inside.edit_sequence import edit_sequence
from cutaway.labs.inside.factual_edit import factual_edit
from cutaway.labs.inside.feed_forward_role import feed_forward_role
from cutaway.labs.inside.head_views import head_views
from cutaway.labs.inside.induction_heads import induction_heads
from cutaway.labs.inside.senses import senses
from cutaway.labs.inside.where_facts_live import where_facts_live
from cutaway.labs.lab import Lab
from cutaway.labs.moe.dense_first import dense_first
from cutaway.labs.moe.expert_balance import expert_balance
from cutaway.labs.moe.experts_counted import experts_counted
from cutaway.labs.moe.fine_grained_experts import fine_grained_experts
from cutaway.labs.norm.dropout import dropout_lab
from cutaway.labs.norm.dropout_policy import dropout_policy
from cutaway.labs.norm.init_scale import init_scale
from cutaway.labs.norm.layer_vs_batch import layer_vs_batch
from cutaway.labs.norm.normalizing import normalizing
from cutaway.labs.norm.pre_vs_post import pre_vs_post
from cutaway.labs.norm.residual_path import residual_path
from cutaway.labs.norm.rms_vs_layer import rms_vs_layer
from cutaway.labs.norm.transformer_init import transformer_init
from cutaway.labs.position.alibi import alibi
from cutaway.labs.position.extend_context import extend_context
from cutaway.labs.position.length_extrapolation import length_extrapolation
from cutaway.labs.position.longer_by_training import longer_by_training
from cutaway.labs.position.needle import needle
from cutaway.labs.position.rope_extrapolation import rope_extrapolation
from cutaway.labs.position.rope_scaling import rope_scaling
from cutaway.labs.position.rotary import rotary
from cutaway.labs.position.rotary_shift import rotary_shift
from cutaway.labs.position.shifting import shift_test
from cutaway.labs.position.sinusoids import sinusoidal
from cutaway.labs.position.without_positions import without_positions
from cutaway.labs.theory.adversarial_text import adversarial_text
from cutaway.labs.theory.cross_entropy import cross_entropy_lab
from cutaway.labs.theory.generative_vs_discriminative import generative_vs_discriminative
from cutaway.labs.theory.kl import kl
from cutaway.labs.theory.ngram_vs_neural import ngram_vs_neural
from cutaway.labs.theory.output_distribution import output_distribution
from cutaway.labs.theory.pca import pca
from cutaway.labs.theory.perplexity import perplexity
from cutaway.labs.theory.relu_gradient import relu_gradient
from cutaway.labs.theory.softmax_jacobian import softmax_jacobian
from cutaway.labs.theory.text_attribution import text_attribution

LABS: dict[str, Lab] = {
    lab.id: lab
    for lab in (
        one_run,
        context_window,
        where_parameters,
        gpt_generations,
        model_map,
        depth_width,
        experts_counted,
        expert_balance,
        dense_first,
        fine_grained_experts,
        ngram_vs_neural,
        sequence_to_sequence,
        long_range,
        parallel_over_time,
        three_families,
        denoising,
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
        without_positions,
        sinusoidal,
        rotary,
        rotary_shift,
        shift_test,
        alibi,
        rope_scaling,
        rope_extrapolation,
        extend_context,
        length_extrapolation,
        longer_by_training,
        needle,
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
        shared_kv,
        mla,
        kv_cache,
        kv_quantization,
        paged_cache,
        prefix_reuse,
        continuous_batching,
        low_bit_speed,
        quantization_basics,
        number_formats,
        block_scaling,
        weights_versus_activations,
        latency_metrics,
        roofline,
        hardware_choice,
        efficiency_economics,
        optimization_ladder,
        bottleneck_diagnosis,
        targets_by_application,
        reasoning_token_price,
        batch_drift,
        sampling,
        settings_by_task,
        greedy_and_beam,
        repetition,
        best_of_n,
        valid_json,
        restricted_vocabulary,
        fixed_labels,
        speculative_exactness,
        speculative_speed,
        multi_token_prediction,
        stopping,
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
