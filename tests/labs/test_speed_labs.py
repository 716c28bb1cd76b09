"""Parts of the labs on speed and price that have known values; times themselves are nobody's to assert."""

from __future__ import annotations

import time
from functools import partial

import pytest
import torch

from cutaway.budget.chips import CHIPS, Chip
from cutaway.budget.published import spec_named
from cutaway.errors import CutawayError
from cutaway.labs.engine import efficiency_economics, latency_metrics, reasoning_token_price, roofline_knee, speed
from cutaway.labs.engine.efficiency_economics import Rung
from cutaway.labs.engine.replay import finish
from cutaway.labs.engine.roofline_knee import Curve
from cutaway.labs.engine.speed import MANY, Arm
from cutaway.labs.subject import MODEL
from cutaway.models.cost import Cost
from cutaway.native.packing import Layout, pack_codes, pack_floats
from kit.threads import one_thread

__all__ = ["one_thread"]

H100, LLAMA = CHIPS["h100-sxm"], Cost(spec_named("llama-3-8b"))


@pytest.fixture(scope="module")
def arm() -> Arm:
    return speed.fastest(MODEL, running=4, context=64)


def test_weights_that_are_timed_are_as_many_bytes_as_packed_ones() -> None:
    codes_NK, scales_NS = torch.zeros(32, 64, dtype=torch.uint8), torch.ones(32, 2)
    packed = pack_codes(codes_NK, scales_NS, scales_NS, 0, 4)
    assert Layout(4, 0, True).bytes * 2 * 2 == packed.blocks.numel()
    assert Layout(16).bytes * 2 * 2 == pack_floats(torch.ones(32, 64, dtype=torch.bfloat16)).blocks.numel()


def test_rates_are_work_over_seconds(arm: Arm) -> None:
    """What `chip_of` says of products that take a second each, by hand."""
    width = arm.cost.spec.width
    chip = speed.chip_of(arm, 1.0, 1.0, 8)
    assert chip.rate(arm.dtype) == 2 * MANY * width * arm.square
    assert chip.bandwidth == pytest.approx(8e6, rel=0.01), "the megabytes that were asked for"


def test_a_product_multiplies() -> None:
    found = speed._torch_product(64)(3, 32)()
    assert isinstance(found, torch.Tensor)
    assert found.shape == (3, 32)


def test_steps_that_only_write_are_the_ones_counted(arm: Arm) -> None:
    """Three prompts of 5 tokens and replies of 4: one step reads, three write three tokens each."""
    arm.ask(arm.texts(3, 5), 4)
    assert len([*speed.writing(arm.engine, 3)]) == 3
    arm.ask(arm.texts(2, 1), 4)
    assert len([*speed.writing(arm.engine, 2)]) == 4, "a prompt of one token is read by a step like any other"


def test_nothing_of_a_prompt_is_kept(arm: Arm) -> None:
    for _ in range(2):
        (sequence,) = arm.ask(arm.texts(1, 40), 1)
        finish(arm.engine)
        assert sequence.cached == 0
        assert arm.engine.steps[-1].spans[0][1:3] == (0, 40)


def test_replies_are_long_enough_to_meet(arm: Arm) -> None:
    """4 prompts of 40 tokens, three of them read in a step, for a budget that is smaller than all of them."""
    assert speed.reply(64, 12, 256) == 12 + 37
    assert speed.reply(1, 12, 1) == 12 + 1
    arm.engine.scheduler.budget = 130
    try:
        arm.ask(arm.texts(4, 40), speed.reply(4, 6, 40))
        assert len([*speed.writing(arm.engine, 4)]) >= 5
    finally:
        arm.engine.scheduler.budget = MANY


@pytest.mark.parametrize("text", ["", "1,x", "0,4", "4,600"])
def test_lists_that_are_none_are_refused(text: str) -> None:
    assert speed.numbers("8,1,8", "batches", 512) == [1, 8]
    with pytest.raises(CutawayError, match="knob batches"):
        speed.numbers(text, "batches", 512)


def test_in_turns_gives_medians_and_leaves_the_first_round_out() -> None:
    said = iter([100.0, 100.0, 1.0, 7.0, 9.0, 8.0, 2.0, 6.0])
    order: list[str] = []

    def way(name: str) -> float:
        order.append(name)
        return next(said)

    assert speed.in_turns([partial(way, "a"), partial(way, "b")], 3) == [2.0, 7.0]
    assert order == ["a", "b"] * 4


def test_on_one_thread_waiting_costs_nothing(one_thread: None) -> None:
    assert speed.timed(lambda: time.sleep(0.05))() < 0.03
    with speed.on_threads(2):
        assert speed.timed(lambda: time.sleep(0.05))() > 0.04
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize(("ratio", "said"), [(1.25, "within 25%"), (0.75, "within"), (1.26, "not"), (0.74, "not")])
def test_a_ratio_is_judged_by_a_quarter(ratio: float, said: str) -> None:
    assert ("not" in speed.judged(ratio).en) == (said == "not")


# ---- the formulas


def test_the_two_formulas_on_an_a100() -> None:
    first, following = latency_metrics.on_paper(LLAMA, CHIPS["a100-80gb"], "bfloat16", 1000, 0.5)
    assert first == pytest.approx(2 * 8_030_261_248 * 1000 / 156e12)
    assert following == pytest.approx(2 * 8_030_261_248 / 2.039e12)


def test_a_knee_that_is_measured_as_it_is_foreseen(arm: Arm) -> None:
    """A machine that does what the roofline says: best rate over the first is the batch at balance."""
    read = arm.cost.parameters * arm.width
    chip = Chip("ideal", {arm.dtype: 2 * arm.cost.parameters * 1000.0}, 0, read * 100, "")
    ideal = {b: b / max(b / 1000, 1 / 100) for b in (1, 2, 4, 8, 16, 32)}
    curve = Curve(arm, chip, 0, ideal, ideal)
    assert curve.measured == pytest.approx(10)
    assert curve.predicted.batch == pytest.approx(10)
    assert "within 25%" in roofline_knee._foreseen(curve).en
    few = curve._replace(rates={1: 100.0, 4: 400.0})
    assert "beyond the batches" in roofline_knee._foreseen(few).en
    assert "no knee" in roofline_knee._foreseen(curve._replace(context=10**7)).en


def test_a_balance_in_the_wrong_place_is_noticed() -> None:
    knee = roofline_knee.knee(LLAMA, H100, "bfloat16", 256)
    assert roofline_knee._waits(LLAMA, knee)
    assert knee.batch is not None
    assert not roofline_knee._waits(LLAMA, knee._replace(batch=2 * knee.batch))
    assert not roofline_knee._waits(LLAMA, knee._replace(batch=None))


# ---- prices


def test_replies_that_cannot_share_memory_run_one_after_the_other() -> None:
    """Three requests of 3 units, room for two: three steps of two, three of one."""
    assert [*reasoning_token_price.seen(3, 3, 2)] == [[1, 1], [2, 2], [3, 3], [1], [2], [3]]


def test_a_simulated_token_by_hand() -> None:
    found = reasoning_token_price.simulate(32_768, 2)
    assert (found.together, found.held) == (13, 13 * 32_768)
    assert found.weights == pytest.approx(16_060_522_496 / 13)
    assert found.cache == pytest.approx(131_072 * (32_768 + reasoning_token_price.STEP) / 2)
    first, last = (16_060_522_496 - 2 * 128_256 * 4096 + 13 * 131_072 * t for t in (32_768 / 16, 32_768 * 15 / 16))
    assert found.rise == pytest.approx(last / first, rel=0.01), "reading, by the mean of an eighth"
    assert found.dollars == pytest.approx(2 * found.seconds * 1e6 / 3600)


def test_replies_share_what_the_memory_holds(arm: Arm) -> None:
    """16 tokens twice, or 32 once: tokens of a step, weights and cache read for each, by hand."""
    two, one = (reasoning_token_price.answer(arm, length, 32 // length, 1) for length in (16, 32))
    assert (two.together, one.together) == (2, 1)
    assert one.weights == 2 * two.weights == arm.cost.parameters * arm.width
    each = arm.cost.kv_bytes_per_token(arm.dtype).value
    assert (two.cache, one.cache) == (pytest.approx(each * 8), pytest.approx(each * 16)), "1, 2, ... of one fewer"


def test_lengths_that_do_not_divide_the_memory_are_refused() -> None:
    with pytest.raises(CutawayError, match="must divide the longest, 256"):
        reasoning_token_price.reasoning_token_price.run({"lengths": "100,256"}, "quick")


def test_who_pays_is_told() -> None:
    ladder = [Rung("a", 1, 10, 4.0, 1), Rung("b", 2, 80, 0.5, 1), Rung("c", 1, 400, 0.1, 1)]
    said = [efficiency_economics._verdict(ladder, 0.144, paid, 1).en for paid in (0.6, 0.01)]
    assert "first pays with b at batch 2" in said[0]
    assert "40 times less" in said[0]
    assert "does not pay on any rung" in said[1]
